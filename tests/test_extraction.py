"""Plans read out of black boxes: our own come back the same, what is no plan is refused."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import sdekit as sk
from sdekit import samplers as ss
from sdekit.sampling.engine import CompiledPlan, Engine
from sdekit.testing import affine_deviation, plan_from_sampler
from sdekit.testing.extraction import BlackBox, Model

F64 = torch.float64
VP, EDM = sk.VP(), sk.EDM()
PLANS = [s for s in ss.ALL if isinstance(s, ss.PlanSampler)]
MEAN, VARIANCES = torch.tensor([0.7, -0.2], dtype=F64), torch.tensor([0.25, 2.0], dtype=F64)


class Asking(sk.Denoiser):
    """A model of somebody else as a denoiser."""

    def __init__(self, process: sk.Process, model: Model, prediction: str = "data") -> None:
        self.process, self.model, self.prediction = process, model, prediction

    def predict(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
        return self.model(x, t)


def black_box(plan: ss.Plan, prediction: str = "data") -> BlackBox:
    """A compiled plan as a sampler of which only the calls are seen."""
    program = CompiledPlan(plan, prediction)

    def run(model: Model, x: Tensor) -> Tensor:
        drawn: dict[int, Tensor] = {}
        engine = Engine(Asking(plan.process, model, prediction), lambda m: drawn[m])  # type: ignore[arg-type]
        for m in range(len(plan.normals)):
            drawn[m] = torch.randn_like(x)
        return program(engine, x)

    return run


def times_of(sampler: ss.Sampler, process: sk.Process, steps: int = 12) -> list[float]:
    return sampler.grid.times(process, steps, process.t_max, 1e-2)


def in_noise(sampler: ss.Sampler) -> bool:
    return getattr(sampler, "prediction", "data") == "noise"


def ddim(process: sk.Process, times: list[float]) -> BlackBox:
    """DDIM by hand."""

    def run(model: Model, x: Tensor) -> Tensor:
        for s, t in pairwise(times):
            (a, b), (c, d) = ((process.alpha(u), process.sigma(u)) for u in (s, t))
            data = model(x, s)
            x = c * data + d / b * (x - a * data)
        return x

    return run


@pytest.mark.parametrize("process", [VP, EDM, sk.VP(schedule=sk.schedules.Cosine())], ids=repr)
@pytest.mark.parametrize("sampler", PLANS, ids=repr)
def test_our_own_plans_come_back(sampler: ss.PlanSampler, process: sk.Process) -> None:
    times = times_of(sampler, process)
    plan = sampler.plan(process, times)
    got = plan_from_sampler(black_box(plan), process, times=times)
    assert got.nfe == plan.nfe
    assert got.stochastic == plan.stochastic
    assert [row.t for row in got.rows if row.read] == [row.t for row in plan.rows if row.read]
    for ours, theirs in zip(
        plan.gaussian_law(MEAN, VARIANCES), got.gaussian_law(MEAN, VARIANCES), strict=True
    ):
        torch.testing.assert_close(theirs, ours, rtol=1e-10, atol=1e-10)
    # In noise prediction x / alpha is carried: what is rounded in the first row (two products and a sum of
    # numbers up to 1.5, half a unit each) grows by alpha_N / alpha_0, 22,000 with the cosine schedule, before
    # it is held against a result of about 0.4. All else is far below.
    growth = process.alpha(times[-1]) / process.alpha(times[0])
    limit = max(1e-12, 6 * 2**-52 * growth) if in_noise(sampler) else 1e-12
    assert affine_deviation(black_box(plan), got) < limit
    assert affine_deviation(black_box(got), plan) < limit


@pytest.mark.parametrize(
    "sampler",
    [ss.EDMHeun(churn=8.0), ss.DPMSolverPP(order=3, tau=1.0), ss.PredictorCorrector(ss.DDIM())],
    ids=repr,
)
def test_outputs_are_the_same_on_an_exact_model(sampler: ss.PlanSampler, toy: Any) -> None:
    times = times_of(sampler, VP)
    plan = sampler.plan(VP, times)
    got = plan_from_sampler(black_box(plan), VP, times=times)
    x = torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    normals = torch.randn(len(plan.normals), 9, 1, generator=torch.Generator().manual_seed(0)).to(x)

    def run(which: ss.Plan) -> Tensor:
        engine = Engine(toy.denoiser(VP), lambda m: normals[m])  # type: ignore[arg-type]
        return CompiledPlan(which, "data")(engine, x.clone())

    torch.testing.assert_close(run(got), run(plan), rtol=1e-10, atol=1e-10)


def test_rows_are_as_short_as_written_ones() -> None:
    for sampler in (ss.DDIM(), ss.ExponentialAB(3), ss.DPMSolver(2), ss.EDMHeun(), ss.Ancestral()):
        times = times_of(sampler, VP)
        plan = sampler.plan(VP, times)
        got = plan_from_sampler(black_box(plan), VP, times=times, name=repr(sampler))
        numbers = [sum(len(r.x) + len(r.p) + len(r.z) for r in p.rows) for p in (got, plan)]
        assert numbers[0] == numbers[1], sampler
        assert got.registers <= plan.registers
    plan = ss.ExponentialAB(3).plan(VP, times_of(ss.ExponentialAB(3), VP))
    got = plan_from_sampler(
        black_box(plan), VP, times=times_of(ss.ExponentialAB(3), VP), name=plan.name
    )
    assert got.describe() == plan.describe()


@pytest.mark.parametrize("prediction", ["data", "noise", "score", "v", "velocity"])
def test_any_prediction(prediction: str) -> None:
    plan = ss.ExponentialAB(2).plan(VP, times_of(ss.ExponentialAB(2), VP))
    got = plan_from_sampler(black_box(plan, prediction), VP, prediction=prediction)
    torch.testing.assert_close(
        got.gaussian_law(MEAN, VARIANCES), plan.gaussian_law(MEAN, VARIANCES), rtol=1e-10, atol=0
    )
    other = "noise" if prediction == "data" else "data"
    assert affine_deviation(black_box(plan, prediction), got, prediction=prediction) < 1e-10
    assert affine_deviation(black_box(plan, prediction), got, prediction=other) > 1e-3


def test_sampler_in_noise_is_read_in_noise() -> None:
    """Adams-Bashforth on noise predictions in sigma / alpha: two readings and a state a row, not four."""
    times = ss.Karras().times(VP, 10, 1.0, 1e-2)
    nodes = [VP.node(t) for t in times]

    def lms(model: Model, x: Tensor) -> Tensor:
        y, before = x / nodes[0].alpha, None
        for k, (s, t) in enumerate(pairwise(nodes)):
            slope, h = (y - model(s.alpha * y, s.t)) / s.rho, t.rho - s.rho
            r = 0.0 if before is None else h / (s.rho - nodes[k - 1].rho) / 2
            y = y + h * ((1 + r) * slope - r * (slope if before is None else before))
            before = slope
        return nodes[-1].alpha * y

    plan = plan_from_sampler(lms, VP, times=times)
    assert [len(row.x) + len(row.p) for row in plan.rows] == [0, 2, *[3] * 9]
    k = 5
    assert plan.rows[k].read == pytest.approx(
        (1 / nodes[k].sigma, -nodes[k].alpha / nodes[k].sigma)
    )
    assert [row.node for row in plan.rows] == list(range(11))
    assert [row.t for row in plan.rows] == times


def test_every_way_to_draw_normals_is_seen() -> None:
    """Five draws of variance v each, through five functions and with generators, add 5 v."""
    generator = torch.Generator().manual_seed(3)
    ways: list[Callable[[Tensor], Tensor]] = [
        torch.randn_like,
        lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype),
        lambda x: torch.normal(0.0, 1.0, x.shape, generator=generator, dtype=x.dtype),
        lambda x: torch.normal(torch.zeros_like(x), torch.ones_like(x)),
        lambda x: torch.empty_like(x).normal_(0.0, 2.0, generator=generator) / 2,
    ]

    def sampler(model: Model, x: Tensor) -> Tensor:
        torch.randn_like(x)  # drawn and not used
        for draw in ways:
            x = 0.5 * model(x, 0.5) + 0.1 * draw(x)
        return x

    state = torch.get_rng_state()
    plan = plan_from_sampler(sampler, VP)
    assert torch.equal(torch.get_rng_state(), state)
    assert [dict(row.z) for row in plan.rows[1:]] == [
        {m: pytest.approx(0.1, abs=1e-15)} for m in range(1, 6)
    ]
    assert len(plan.normals) == 6
    alone = plan_from_sampler(lambda m, x: m(x, 0.5) * 0 + sum(w(x) for w in ways), VP)
    torch.testing.assert_close(alone.gaussian_law(0.0, 1.0)[1], torch.tensor([5.0], dtype=F64))


def test_normal_in_several_rows_becomes_a_row() -> None:
    """x_2 = model(x_0 + z) + z: the law needs the covariance of the two, not two draws."""

    def sampler(model: Model, x: Tensor) -> Tensor:
        z = torch.randn_like(x)
        data = model(x, 0.9)
        return model(0.5 * data + z, 0.5) - 3 * z

    plan = plan_from_sampler(sampler, EDM)
    assert sum(len(row.z) for row in plan.rows) == 1
    gain = [1 / (1 + t * t) for t in (0.9, 0.5)]  # data N(0, 1), alpha = 1
    scale = gain[1] * 0.5 * gain[0]
    expected = scale**2 * EDM.prior.std**2 + (gain[1] - 3) ** 2
    torch.testing.assert_close(
        plan.gaussian_law(0.0, 1.0)[1], torch.tensor([expected], dtype=F64), rtol=1e-12, atol=0
    )
    assert affine_deviation(sampler, plan) < 1e-12


def test_single_precision_sampler_needs_its_tolerance() -> None:
    times = times_of(ss.DDIM(), VP)

    def rounded(model: Model, x: Tensor) -> Tensor:
        return ddim(VP, times)(lambda y, t: model(y, t), x.float())

    plan = plan_from_sampler(rounded, VP, times=times, tolerance=1e-4)
    law = ss.DDIM().plan(VP, times).gaussian_law(MEAN, VARIANCES)
    torch.testing.assert_close(plan.gaussian_law(MEAN, VARIANCES), law, rtol=1e-5, atol=1e-6)
    assert all(len(row.x) + len(row.p) == 2 for row in plan.rows[1:])
    with pytest.raises(ValueError, match="not affine"):
        plan_from_sampler(rounded, VP, times=times)


# --------------------------------------------------------------------------------------- what is refused


def norm_corrector(model: Model, x: Tensor) -> Tensor:
    """A Langevin step whose size comes from norms (Song et al. 2021, algorithm 5)."""
    alpha, sigma = VP.alpha(0.5), VP.sigma(0.5)
    score, z = (alpha * model(x, 0.5) - x) / sigma**2, torch.randn_like(x)
    e = 2 * (0.16 * z.norm() / score.norm()) ** 2
    return x + e * score + torch.sqrt(2 * e) * z


def thresholded(model: Model, x: Tensor) -> Tensor:
    """Dynamic thresholding (Saharia et al. 2022): E[x_0 | x] clipped at a quantile of its size."""
    data = model(x, 0.5)
    s = data.abs().quantile(0.9).clamp(min=1.0)
    return 0.5 * x + data.clamp(-s, s) / s


def adaptive(model: Model, x: Tensor) -> Tensor:
    t = 0.8
    while t > 0.1:
        data = model(x, t)
        t, x = t - (0.1 if float((data - x).abs().max()) > 3.0 else 0.3), 0.5 * (x + data)
    return x


def wandering(model: Model, x: Tensor) -> Tensor:
    x = 0.5 * (x + model(x, 0.8))
    return model(x, 0.5 if float(x[0, 0]) > 0 else 0.6)


class Stateful:
    """Adds to its result the number of times it was run."""

    runs = 0

    def __call__(self, model: Model, x: Tensor) -> Tensor:
        self.runs += 1
        return 0.5 * x + model(x, 0.5) + self.runs


TAKES_ONE = torch.tensor([0.5])
REFUSED: list[tuple[BlackBox, type[Exception], str]] = [
    (norm_corrector, ValueError, "not affine.* deviates from its plan by"),
    (thresholded, ValueError, "not affine"),
    (lambda m, x: x + m(x, 0.5).clamp(-1, 1), ValueError, "not affine"),
    (lambda m, x: x + m(x, 0.5) + 0.1, ValueError, "not affine"),
    (lambda m, x: x + m(x, 0.5).mean(), ValueError, "not affine"),
    (adaptive, ValueError, "depends on the data: .* model calls"),
    (wandering, ValueError, r"depends on the data: call 1 at t = 0\.\d"),
    (Stateful(), ValueError, "not deterministic"),
    (lambda m, x: x + m(x, 0.5) + torch.rand_like(x), ValueError, "not deterministic"),
    (lambda m, x: m(x, 999), TypeError, "integer 999"),
    (lambda m, x: m(x, torch.full((1,), 999)), TypeError, "integer .*time_of"),
    (lambda m, x: m(x, torch.tensor(True)), TypeError, "integer"),
    (lambda m, x: m(x, torch.tensor([0.5, 0.6])), ValueError, "several times at once"),
    (lambda m, x: m(x, 80.0), ValueError, r"t = 80, outside \[0, 1\]"),
    (lambda m, x: m(x, math.nan), ValueError, "t = nan"),
    (lambda m, x: m(2 * x, 0.5), ValueError, "at 2 times its start"),
    (lambda m, x: m(x + torch.randn_like(x), 0.5), ValueError, "before its first.*give `times`"),
    (lambda m, x: x, ValueError, "never called the model"),
    (lambda m, x: m(x[:, :1], 0.5), ValueError, r"called the model at shape \(1, 1\)"),
    (lambda m, x: m(x, 0.5)[:, :1], ValueError, r"returned shape \(1, 1\)"),
    (lambda m, x: (m(x, 0.5),), TypeError, "returned tuple"),  # type: ignore[arg-type, return-value]
    (lambda m, x: m(x, 0.5) + torch.randn(3), ValueError, "drew 3 normals at once"),
    (lambda m, x: m(x, 0.5) / 0, ValueError, "NaN or infinity"),
]


@pytest.mark.parametrize(("sampler", "error", "message"), REFUSED)
def test_what_is_no_plan_is_refused(sampler: BlackBox, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        plan_from_sampler(sampler, VP)


def test_bad_arguments() -> None:
    box = ddim(VP, [0.9, 0.5, 0.1])
    for arguments, error, message in (
        ({"tolerance": 0}, ValueError, "tolerance"),
        ({"tolerance": "small"}, TypeError, "tolerance"),
        ({"times": [0.1, 0.9]}, ValueError, "times must decrease"),
        ({"prediction": "x0"}, ValueError, "prediction must be one of"),
    ):
        with pytest.raises(error, match=message):
            plan_from_sampler(box, VP, **arguments)
    flow = sk.Interpolant()
    with pytest.raises(ValueError, match="'noise' does not determine 'data'"):
        plan_from_sampler(lambda m, x: x - m(x, 1.0), flow, prediction="noise")
    plan = plan_from_sampler(box, VP)
    with pytest.raises(ValueError, match="calls the model at t"):
        affine_deviation(ddim(VP, [0.9, 0.1]), plan)
    noisy = ss.DDIM(1.0).plan(VP, [0.9, 0.5, 0.1])
    with pytest.raises(ValueError, match="draws 0 normals, the plan 2"):
        affine_deviation(box, noisy)


def test_times_name_nodes_and_result() -> None:
    times = [0.9, 0.5, 0.1]
    named = plan_from_sampler(ddim(VP, times), VP, times=times)
    assert [(row.t, row.node) for row in named.rows] == [(0.9, 0), (0.5, 1), (0.1, 2)]
    bare = plan_from_sampler(ddim(VP, times), VP)
    assert [(row.t, row.node) for row in bare.rows] == [(0.9, 0), (0.5, None), (0.0, 1)]
    assert bare.describe().splitlines()[0].startswith("ddim.<locals>.run: 3 rows, 2 model calls")


@pytest.mark.parametrize("process", [VP, EDM], ids=repr)
def test_move_before_the_first_call_is_a_row(process: sk.Process) -> None:
    """To the next level at the same x / alpha, and a call there: the start is a row that reads nothing."""
    times = [process.t_max, 0.3 * process.t_max, 0.01 * process.t_max]
    alpha = [process.alpha(t) for t in times]

    def sampler(model: Model, x: Tensor) -> Tensor:
        y = alpha[1] / alpha[0] * x
        return 0.5 * y + 0.25 * model(y, times[1])

    plan = plan_from_sampler(sampler, process, times=times)
    assert [(row.t, row.node) for row in plan.rows] == list(zip(times, range(3), strict=True))
    assert [row.read is None for row in plan.rows] == [True, False, True]
    assert dict(plan.rows[1].x) == {0: pytest.approx(alpha[1] / alpha[0], rel=1e-15)}
    gain = 0.5 + 0.25 * alpha[1] / (alpha[1] ** 2 + process.sigma(times[1]) ** 2)  # data N(0, 1)
    expected = (gain * alpha[1] / alpha[0] * process.prior.std) ** 2
    found = plan.gaussian_law(0.0, 1.0)[1].item()
    assert found == pytest.approx(expected, rel=1e-13)
    if alpha[1] != alpha[0]:
        with pytest.raises(ValueError, match=r"times its start.*give `times`"):
            plan_from_sampler(sampler, process)
        with pytest.raises(ValueError, match="times its start"):
            plan_from_sampler(sampler, process, times=[times[1], 0.0])


@pytest.mark.parametrize("sampler", [ss.ExponentialAB(4), ss.DPMSolverPP(2, tau=1.0)], ids=repr)
def test_long_run_does_not_amplify_rounding(sampler: ss.PlanSampler) -> None:
    times = times_of(sampler, VP, 120)
    plan = plan_from_sampler(black_box(sampler.plan(VP, times)), VP, times=times)
    assert affine_deviation(black_box(plan), sampler.plan(VP, times)) < 1e-12
    assert plan.registers == sampler.plan(VP, times).registers
