import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import bad_input, normal

import sdekit as sk
from sdekit import samplers as ss
from sdekit.errors import CheckpointError
from sdekit.processes import Process
from sdekit.sampling.endpoint_fit import Family
from sdekit.sampling.unrolled import endpoint, endpoint_jacobian, unrolled

F64 = torch.float64
VP = sk.VP(0.1, 20.0)
TOY = sk.data.two_mode()
RING = sk.data.ring(5)
FLOWS = [s for s in ss.ALL if isinstance(s, ss.PlanSampler) and not s.stochastic]


def times_of(sampler: ss.Sampler, process: Process, steps: int) -> list[float]:
    return sampler.grid.times(process, steps, process.t_max, 1e-3 * process.horizon)


def error(found: ss.Optimised, n: int = 4096) -> float:
    """RMS against the exact flow, which is the quantile map, at starts that no search has seen."""
    x = normal(n, 1, seed=77)
    out = sk.sample(
        TOY.denoiser(VP),
        (n, 1),
        sampler=found.sampler,
        grid=found.grid,
        steps=found.steps,
        x_init=x,
    )
    start, end = TOY.at(VP, 1.0), TOY.at(VP, 1e-3)
    exact = end.quantile(start.cdf(x[:, 0]))
    return (out.x[:, 0] - exact).square().mean().sqrt().item()


@pytest.fixture(scope="module")
def grid10() -> ss.Optimised:
    return ss.optimise_grid(TOY.denoiser(VP), ss.ExponentialAB(4), 10)


@pytest.fixture(scope="module")
def plan5() -> ss.Optimised:
    return ss.optimise_plan(TOY.denoiser(VP), ss.ExponentialAB(3), 5)


# ------------------------------------------------------------------------------- closed form


@pytest.mark.parametrize("process", [VP, sk.EDM()], ids=repr)
@pytest.mark.parametrize("sampler", FLOWS, ids=repr)
def test_the_table_gives_the_endpoints_of_the_plan(
    sampler: ss.PlanSampler, process: Process
) -> None:
    x, model, times = (
        process.prior.std * normal(20, 2),
        RING.denoiser(process),
        times_of(sampler, process, 6),
    )
    form = unrolled(sampler.plan(process, times))
    wanted = sk.sample(model, (20, 2), sampler=sampler, grid=times, x_init=x).x
    torch.testing.assert_close(endpoint(model, form, x), wanted, rtol=1e-11, atol=1e-11)


def exact_on_constants(sampler: ss.Sampler, process: Process) -> bool:
    """Whether E[x_0 | x] = c at all calls gives the exact flow x = alpha c + sigma e in every step."""
    if isinstance(sampler, ss.VelocityAB):
        return isinstance(process, sk.EDM)  # alpha' c + sigma' e is a polynomial in t
    in_v = isinstance(sampler, ss.ExponentialAB) and sampler.prediction == "v"
    return not (in_v or isinstance(sampler, ss.LogSNRRungeKutta))


PAIRS = [(sampler, process) for sampler in FLOWS for process in (VP, sk.EDM())]


@pytest.mark.parametrize(("sampler", "process"), [p for p in PAIRS if exact_on_constants(*p)])
def test_a_computed_plan_reproduces_a_sampler_that_is_exact_on_constants(
    sampler: ss.PlanSampler, process: Process
) -> None:
    x, model, times = (
        process.prior.std * normal(20, 2),
        RING.denoiser(process),
        times_of(sampler, process, 6),
    )
    plan = ss.ComputedPlan.from_unrolled(process, unrolled(sampler.plan(process, times)))
    ours = sk.sample(model, (20, 2), sampler=plan, steps=6, x_init=x, trajectory=True)
    wanted = sk.sample(model, (20, 2), sampler=sampler, grid=times, x_init=x, trajectory=True)
    assert ours.nfe == wanted.nfe == len(plan.weights)
    assert ours.times == wanted.times
    assert ours.trajectory is not None
    assert len(ours.trajectory) == 7
    torch.testing.assert_close(ours.x, wanted.x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("sampler", "process"), PAIRS)
def test_samplers_that_are_exact_on_constants_are_those_that_say_so(
    sampler: ss.PlanSampler, process: Process
) -> None:
    x, point = process.prior.std * normal(20, 1), sk.GaussianMixture(None, [0.7], 0.0)
    times = times_of(sampler, process, 6)
    found = sk.sample(point.denoiser(process), (20, 1), sampler=sampler, grid=times, x_init=x).x
    (a, b), (c, d) = ((process.alpha(t), process.sigma(t)) for t in (times[0], times[-1]))
    error = (found - (c * 0.7 + d / b * (x - a * 0.7))).abs().max().item()
    assert error < 1e-11 if exact_on_constants(sampler, process) else error > 1e-4


@pytest.mark.parametrize(("sampler", "process"), [p for p in PAIRS if not exact_on_constants(*p)])
def test_other_samplers_are_no_computed_plan(sampler: ss.PlanSampler, process: Process) -> None:
    form = unrolled(sampler.plan(process, times_of(sampler, process, 6)))
    with pytest.raises(ValueError, match="must be exact on constant predictions, row"):
        ss.ComputedPlan.from_unrolled(process, form)
    with pytest.raises(ValueError, match=r"sampler must be .*constant predictions"):
        ss.optimise_plan(Uncalled(process), sampler, 6, event=(1,))


class Uncalled(sk.Denoiser):
    """Must not be asked."""

    prediction = "data"

    def __init__(self, process: Process) -> None:
        self.process = process

    def predict(self, x: torch.Tensor, t: object, **conditions: object) -> torch.Tensor:
        raise AssertionError


@pytest.mark.parametrize("sampler", [ss.ExponentialAB(3), ss.EDMHeun(), ss.UniPC(3)], ids=repr)
@pytest.mark.parametrize("few", [False, True], ids=["by columns", "by directions"])
def test_jacobian_is_that_of_central_differences(sampler: ss.PlanSampler, few: bool) -> None:
    model, x = RING.denoiser(VP), normal(30, 2)
    family = Family(sampler, model, (1.0, 1e-3), 4)
    own = family.parameters(times_of(sampler, VP, 4))
    family = family.with_weights(family.at(own))
    rng = np.random.default_rng(0)
    theta = np.append(own, np.zeros(len(family.rows))) + 0.02 * rng.normal(
        size=3 + len(family.rows)
    )
    which = [0, 5] if few else list(range(len(theta)))  # at most d, or more
    slopes = [s[which] for s in family.slopes(theta)]
    found = endpoint_jacobian(model, family.at(theta), slopes[0], slopes[1], x)
    for row, i in zip(found, which, strict=True):
        step = 1e-5 * np.eye(len(theta))[i]
        more, less = (endpoint(model, family.at(theta + s), x) for s in (step, -step))
        torch.testing.assert_close(row, (more - less) / 2e-5, rtol=1e-6, atol=1e-7)


def test_parameters_and_times_are_inverse_and_stay_apart() -> None:
    family = Family(ss.DDIM(), TOY.denoiser(VP), (1.0, 1e-3), 8)
    for grid in ss.GRIDS.values():
        times = grid.times(VP, 8, 1.0, 1e-3)
        assert family.times(family.parameters(times)) == pytest.approx(times, rel=1e-6)
    for extreme in (1e3 * np.eye(7)[0], -1e3 * np.ones(7), 50.0 * np.arange(7)):
        times = family.times(extreme)
        assert (times[0], times[-1]) == (1.0, 1e-3)
        assert (np.diff(times) < 0).all()


# ---------------------------------------------------------------------------------- optima


@pytest.mark.parametrize(
    ("process", "t_end", "std"), [(sk.EDM(), 0.002, 0.5), (VP, 1e-3, 0.5)], ids=["EDM", "VP"]
)
def test_ddim_on_a_bell_finds_the_angle_grid(process: Process, t_end: float, std: float) -> None:
    # rho = std tan(theta), theta uniform, is the optimum in closed form (Sabour et al. 2024).
    target = sk.GaussianMixture(None, [0.0], std)
    search = ss.Search(loss="linear", trajectories=16, held_out=16, iterations=40)
    found = ss.optimise_grid(target.denoiser(process), ss.DDIM(), 5, t_end=t_end, search=search)
    clock = ss.Angle(std)
    angles = torch.tensor([clock.clock(process, t) for t in found.grid.nodes], dtype=F64)
    uniform = torch.linspace(angles[0].item(), angles[-1].item(), 6, dtype=F64)
    torch.testing.assert_close(angles, uniform, rtol=0, atol=1e-5)


def test_a_computed_plan_is_exact_on_a_bell() -> None:
    target = sk.GaussianMixture(None, [0.4], 0.5)
    search = ss.Search(trajectories=32, held_out=64)
    with pytest.warns(UserWarning, match="the reference changes"):  # nothing measures such an error
        found = ss.optimise_plan(target.denoiser(VP), ss.DDIM(), 3, search=search)
    assert found.held_out[0].rms > 1e-2
    assert found.held_out[1].rms < 1e-8
    assert isinstance(found.sampler, ss.ComputedPlan)
    plan = found.sampler.plan(VP, found.grid.nodes)
    mean, variance = plan.gaussian_law(0.4, 0.25, start="exact")
    law = target.at(VP, 1e-3)
    assert mean.item() == pytest.approx(law.mean.item(), abs=1e-7)
    assert variance.item() == pytest.approx(law.variances.item(), rel=1e-7)


def test_grid_of_ten_steps_against_the_quantile_map(grid10: ss.Optimised) -> None:
    assert error(grid10) < 3.5e-3
    assert grid10.gain > 3
    assert grid10.overfit < 1.2
    assert grid10.sampler == ss.ExponentialAB(4)
    assert grid10.distances["W2"][1] < grid10.distances["W2"][0]


def test_plan_of_five_calls_against_the_quantile_map(plan5: ss.Optimised) -> None:
    assert error(plan5) < 4e-3
    assert plan5.gain > 10
    before, after, fine = plan5.distances["W1"]
    assert after - fine < 0.05 * (before - fine)


def test_the_reported_errors_are_those_of_sampling(grid10: ss.Optimised) -> None:
    assert error(grid10) == pytest.approx(grid10.held_out[1].rms, rel=0.15)
    text = str(grid10)
    assert f"{grid10.held_out[1].rms:.3e}" in text
    assert grid10.start in text


def test_any_event_shape_and_the_result_is_a_function_of_the_arguments() -> None:
    target = sk.GaussianMixture([0.4, 0.6], normal(2, 4), 0.3)
    search = ss.Search(trajectories=40, held_out=40, iterations=3, seed=3)
    flat, again, shaped = (
        ss.optimise_plan(target.denoiser(VP), ss.DPMSolverPP(), 3, event=event, search=search)
        for event in (None, (4,), (1, 2, 2))
    )
    assert flat.sampler == again.sampler
    assert hash(flat.sampler) == hash(again.sampler)
    assert flat.grid == again.grid
    assert shaped.grid.nodes == pytest.approx(flat.grid.nodes, rel=1e-6)
    assert shaped.held_out[1].rms == pytest.approx(flat.held_out[1].rms, rel=1e-4)


def test_a_network_is_searched_in_float64_and_left_alone() -> None:
    torch.manual_seed(0)
    net = sk.networks.MLP(2, hidden=16, depth=2)
    torch.nn.init.normal_(net.out.weight, std=0.3)
    model = sk.NetworkDenoiser(net, VP).train()
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    search = ss.Search(trajectories=40, held_out=40, iterations=8)
    found = ss.optimise_grid(model, ss.ExponentialAB(2), 4, event=(2,), truth=RING, search=search)
    assert found.gain > 1.2
    assert set(found.distances) == {"energy distance"}
    assert model.training
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, weights[name])
        assert not value.requires_grad


def test_time_limit_and_progress(capfd: pytest.CaptureFixture[str]) -> None:
    search = ss.Search(trajectories=20, held_out=20, seconds=1e-6)
    found = ss.optimise_plan(TOY.denoiser(VP), ss.ExponentialAB(2), 6, search=search, progress=True)
    # The named grids, the first run of the search over times, and two over weights: one gives the scale.
    assert found.evaluations == len(ss.GRIDS) + 3
    assert "optimising" in capfd.readouterr().err


def test_doubts(grid10: ss.Optimised) -> None:
    assert grid10.doubts() == []
    same = replace(grid10, held_out=(grid10.held_out[0], grid10.held_out[0]))
    assert "nothing gained" in same.doubts()[0]
    search = ss.Search(trajectories=20, held_out=20, iterations=4, reference_steps=20)
    with pytest.warns(UserWarning, match="raise Search.reference_steps"):
        ss.optimise_grid(TOY.denoiser(VP), ss.ExponentialAB(3), 8, search=search)


# --------------------------------------------------------------------------- the sampler itself


def computed(process: Process = VP, seed: int = 0) -> ss.ComputedPlan:
    """Random weights: what holds for them holds whatever a search finds."""
    rng = np.random.default_rng(seed)
    weights = tuple(tuple(rng.normal(size=k).tolist()) for k in range(4))
    times = (process.t_max, 0.7, 0.3, 0.1, 0.01)
    return ss.ComputedPlan(process, times, (0, 1, None, 2, 3), weights)


def test_rows_are_exact_on_constant_predictions() -> None:
    point = sk.GaussianMixture(None, [0.7], 0.0)
    x = normal(50, 1)
    out = sk.sample(point.denoiser(VP), (50, 1), sampler=computed(), steps=3, t_end=0.01, x_init=x)
    scale, start = VP.sigma(0.01) / VP.sigma(1.0), VP.alpha(1.0) * 0.7
    torch.testing.assert_close(
        out.x, VP.alpha(0.01) * 0.7 + scale * (x - start), rtol=0, atol=1e-13
    )
    assert out.nfe == 4


def test_facts_repr_and_file(tmp_path, plan5: ss.Optimised) -> None:
    plan = computed()
    assert (plan.steps, plan.nfe_per_step, plan.stochastic) == (3, None, False)
    assert repr(plan) == repr(computed()) != repr(computed(seed=1))
    assert len(repr(plan)) < 60
    for original in (plan, plan5.sampler):
        assert isinstance(original, ss.ComputedPlan)
        original.save(tmp_path / "plan.safetensors")
        again = ss.ComputedPlan.load(tmp_path / "plan.safetensors", VP)
        assert again == original
        assert hash(again) == hash(original)
    assert plan5.sampler.nfe_per_step == 1
    with pytest.raises(CheckpointError, match="is a plan for VP"):
        ss.ComputedPlan.load(tmp_path / "plan.safetensors", sk.VP(0.1, 19.0))
    sk.NetworkDenoiser(sk.networks.MLP(1), VP).save(tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match="holds no computed plan"):
        ss.ComputedPlan.load(tmp_path / "net.safetensors", VP)


def test_in_compare_and_with_a_last_reading(plan5: ss.Optimised) -> None:
    model = TOY.denoiser(VP)
    table = sk.compare(
        model, [plan5.sampler, ss.ExponentialAB(3)], [5], TOY, n=2_000, floor_repeats=2
    )
    assert [row["error"] for row in table.rows] == ["", ""]
    assert table.rows[0]["W2"] < 0.5 * table.rows[1]["W2"]
    out = sk.sample(model, (10, 1), sampler=plan5.sampler, steps=5, final="data", seed=0)
    assert out.nfe == 6


def sampled(sampler: ss.Sampler, process: Process = VP, **keywords: object) -> None:
    sk.sample(TOY.denoiser(process), (4, 1), sampler=sampler, **keywords)  # type: ignore[arg-type]


NANS = ((), (math.nan,))
PLAN, OTHER = computed(), sk.VP(0.1, 19.0)
NETWORK = sk.NetworkDenoiser(sk.networks.MLP(1), VP)
MODEL = TOY.denoiser(VP)
AB = ss.ExponentialAB()
BAD = [
    ("process", lambda: sampled(PLAN, OTHER, steps=3, t_end=0.01), ValueError, ["computed for", "19"]),
    ("other steps", lambda: sampled(PLAN, steps=4, t_end=0.01), ValueError, ["own grid", "steps=3", "got 4"]),
    ("other grid", lambda: sampled(PLAN, grid="cubic", steps=3), ValueError, ["own grid", "leave out grid"]),
    ("no process", lambda: ss.ComputedPlan("vp", (1.0, 0.1), (0, 1), ((),)), TypeError, ["process", "str"]),
    ("increasing", lambda: ss.ComputedPlan(VP, (0.1, 1.0), (0, 1), ((),)), ValueError, ["times[1]"]),
    ("a node twice", lambda: ss.ComputedPlan(VP, (0.5, 0.5), (0, 1), ((),)), ValueError, ["decreas"]),
    ("end without node", lambda: ss.ComputedPlan(VP, (1.0, 0.5), (0, None), ((),)), ValueError, ["nodes"]),
    ("weights shape", lambda: ss.ComputedPlan(VP, (1.0, 0.5), (0, 1), ((1.0,),)), ValueError, ["[1]"]),
    ("weights nan", lambda: ss.ComputedPlan(VP, (1, 0.5, 0.1), (0, 1, 2), NANS), ValueError, ["[1][0]"]),
    ("denoiser", lambda: ss.optimise_grid("model", AB, 5), TypeError, ["denoiser", "got str"]),
    ("no plan", lambda: ss.optimise_grid(MODEL, ss.FlowODE(), 5), TypeError, ["PlanSampler", "FlowODE"]),
    ("stochastic", lambda: ss.optimise_plan(MODEL, ss.EulerMaruyama(), 5), ValueError, ["draws normals"]),
    ("computed", lambda: ss.optimise_plan(MODEL, computed(), 5), ValueError, ["grid of its own"]),
    ("steps", lambda: ss.optimise_grid(MODEL, AB, 1), ValueError, ["steps", ">= 2"]),
    ("steps bool", lambda: ss.optimise_grid(MODEL, AB, True), TypeError, ["steps", "True"]),
    ("event", lambda: ss.optimise_grid(NETWORK, AB, 5), ValueError, ["event must be given"]),
    ("event size", lambda: ss.optimise_grid(NETWORK, AB, 5, event=(0,)), ValueError, ["event[0]"]),
    ("t_end", lambda: ss.optimise_grid(MODEL, AB, 5, t_end=0.0), ValueError, ["t_end", "1e-05"]),
    ("truth", lambda: ss.optimise_grid(MODEL, AB, 5, truth="toy"), TypeError, ["truth", "str"]),
    ("search", lambda: ss.optimise_grid(MODEL, AB, 5, search={"seed": 1}), TypeError, ["search", "seed"]),
    ("loss", lambda: ss.Search(loss="cauchi"), ValueError, ["loss", "did you mean 'cauchy'"]),
    ("iterations", lambda: ss.Search(iterations=0), ValueError, ["iterations"]),
    ("held_out", lambda: ss.Search(held_out=1.5), TypeError, ["held_out"]),
    ("seconds", lambda: ss.Search(seconds=0), ValueError, ["seconds"]),
    ("seed", lambda: ss.Search(seed=-1), ValueError, ["seed"]),
]  # fmt: skip


test_bad_input = bad_input(BAD)


def test_tabulated_grid() -> None:
    grid = ss.Tabulated((1.0, 0.3, 0.02, 1e-3))
    assert grid.times(VP, 3, 1.0, 1e-3) == list(grid.nodes)
    assert ss.Tabulated.from_json(grid.to_json()) == grid
    assert eval(repr(grid), vars(ss)) == grid
    double = grid.times(VP, 6, 1.0, 1e-3)
    assert double[::2] == list(grid.nodes)
    middle = [VP.log_snr(t) for t in double]
    for i in (1, 3, 5):
        assert middle[i] == pytest.approx((middle[i - 1] + middle[i + 1]) / 2, rel=1e-12)
    for t in (0.9, 0.1, 0.002):
        assert grid.time(VP, grid.clock(VP, t)) == pytest.approx(t, rel=1e-12)
