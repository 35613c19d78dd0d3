"""One contract for every sampler, and what each claims: its order, its exactness, its law."""

import dataclasses
import inspect
import math
import warnings
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers import variance_at
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor

import sdekit as sk
from sdekit import samplers as ss
from sdekit.metrics import floor, wasserstein_1d
from sdekit.processes import ALL as PROCESSES
from sdekit.sampling.engine import Engine
from sdekit.sampling.noise import BlockNormals
from sdekit.sampling.reverse_sde import METHODS, _path

F64 = torch.float64
VP, SUBVP, COSINE = sk.VP(), sk.SubVP(), sk.VP(schedule=sk.schedules.Cosine())
TOY = sk.GaussianMixture([0.3, 0.7], [-1.4, 0.6], 0.4)
GAUSS1 = sk.GaussianMixture(None, [0.7], 0.5)
EM, DDIM, ANCESTRAL = ss.EulerMaruyama(), ss.DDIM(), ss.Ancestral()
EXPONENTIAL = [DDIM, ss.DDIM(0.4), ss.DDIM(1.0), ANCESTRAL, ss.Ancestral("beta")]
PLANS = [s for s in ss.ALL if isinstance(s, ss.PlanSampler)]
STARTS = torch.tensor([-1.5, -0.7, -0.2, 0.3, 1.1, 2.0], dtype=F64)[:, None]


def times_of(
    sampler: ss.Sampler, steps: int, t_end: float = 1e-2, process: sk.Process = VP
) -> list[float]:
    return sampler.grid.times(process, steps, process.t_max, t_end)


def flow_map(
    target: sk.GaussianMixture, process: sk.Process, x: Tensor, t: float, s: float
) -> Tensor:
    """Where the probability flow in 1-D takes x from t to s: to the same quantile."""
    return target.at(process, s).quantile(target.at(process, t).cdf(x))


def slopes(errors: list[float]) -> list[float]:
    return [math.log2(abs(a / b)) for a, b in pairwise(errors)]


class Atom(sk.Denoiser):
    """The model of data at one point; `kind` of prediction."""

    def __init__(self, process: sk.Process, where: float, kind: str = "data") -> None:
        self.process, self.where, self.prediction = process, where, kind

    def predict(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        data = torch.full_like(x, self.where)
        noise = (x - alpha * data) / sigma
        return data if self.prediction == "data" else alpha * noise - sigma * data


class Reparametrised(sk.Denoiser):
    """The same model, predicting v."""

    prediction = "v"

    def __init__(self, inner: sk.Denoiser) -> None:
        self.inner, self.process = inner, inner.process

    def predict(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        data = self.inner.predict(x, t)
        return alpha * (x - alpha * data) / sigma - sigma * data


# ------------------------------------------------------------------------------------- the contract


def test_all_is_complete_and_named() -> None:
    names = [repr(s) for s in ss.ALL]
    assert len(set(names)) == len(names)
    known = [c for _, c in inspect.getmembers(ss, inspect.isclass) if issubclass(c, ss.Sampler)]
    # One is computed for a model, the other needs a model that knows the variance of a step.
    special = {ss.ComputedPlan, ss.LearnedAncestral}
    assert {type(s) for s in ss.ALL} == {c for c in known if not inspect.isabstract(c)} - special


@pytest.mark.parametrize("sampler", ss.ALL, ids=repr)
def test_a_sampler_is_its_hyper_parameters(sampler: ss.Sampler) -> None:
    assert eval(repr(sampler), vars(ss)) == sampler
    assert hash(sampler) == hash(eval(repr(sampler), vars(ss)))
    assert dataclasses.is_dataclass(sampler)
    with pytest.raises(dataclasses.FrozenInstanceError):
        sampler.order = 7  # type: ignore[misc]
    assert isinstance(sampler.order, int)
    assert sampler.order >= 1
    assert isinstance(sampler.grid, ss.TimeGrid)
    assert type(sampler).__doc__
    assert "20" in type(sampler).__doc__, "names its paper"


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("sampler", ss.ALL, ids=repr)
def test_few_steps_are_finite_and_cost_what_is_said(
    sampler: ss.Sampler, process: sk.Process
) -> None:
    for steps in (1, 2, 3):
        out = sk.sample(TOY.denoiser(process), (5, 1), sampler=sampler, steps=steps, seed=0)
        assert out.x.shape == (5, 1)
        assert torch.isfinite(out.x).all()
        if sampler.nfe_per_step is not None:
            checks = isinstance(sampler, ss.TorchSDE)
            assert out.nfe == steps * sampler.nfe_per_step + checks
        assert len(out.times) == steps + 1


@pytest.mark.parametrize("sampler", ss.ALL, ids=repr)
def test_noise_is_drawn_exactly_where_it_is_said(sampler: ss.Sampler) -> None:
    runs = [
        sk.sample(TOY.denoiser(VP), (6, 1), sampler=sampler, steps=5, x_init=STARTS, seed=seed)
        for seed in (0, 1)
    ]
    assert torch.equal(runs[0].x, runs[1].x) != sampler.stochastic
    if isinstance(sampler, ss.PlanSampler):
        assert runs[0].plan is not None
        assert runs[0].plan.stochastic == sampler.stochastic
        assert len(runs[0].plan.normals) == 0 or sampler.stochastic


# ------------------------------------------------------------------------------------------ orders


# A fixed corrector has a bias; the noise of ER-SDE is so little that its order shows on other grids, see
# test_stochastic_samplers.
SPECIAL = (ss.PredictorCorrector, ss.ERSDE)
RANDOM = [s for s in PLANS if s.stochastic and not isinstance(s, SPECIAL)]
STEADY = [s for s in PLANS if not s.stochastic]


@pytest.mark.parametrize("sampler", [*RANDOM, DDIM, ss.DDIM(0.5)], ids=repr)
def test_weak_order_of_the_variance(sampler: ss.PlanSampler) -> None:
    """On the sampler's own grid, 64 to 256 steps, from the exact law."""
    exact, errors = variance_at(VP, 1e-2), []
    for steps in (64, 128, 256):
        plan = sampler.plan(VP, times_of(sampler, steps))
        errors.append(plan.gaussian_law(0.7, 0.25, start="exact")[1].item() - exact)
    assert sum(slopes(errors)) / 2 == pytest.approx(sampler.order, abs=0.15)


def test_euler_maruyama_halves_its_error_when_steps_double() -> None:
    exact, errors = variance_at(VP, 1e-3), []
    for steps in (256, 512):
        plan = EM.plan(VP, times_of(EM, steps, 1e-3))
        errors.append(plan.gaussian_law(0.7, 0.25, start="exact")[1].item() - exact)
    assert slopes(errors)[0] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    "sampler",
    [
        # In v and flow prediction order 4 shows on other grids: see test_exponential, test_flow_prediction.
        *(s for s in STEADY if not isinstance(s, ss.ExponentialAB) or s.order < 4),
        *(ss.ExponentialAB(k) for k in (1, 2)),
        # From a ramp the error of the first step, of second order, is what is left at 256 steps.
        ss.ExponentialAB(4, start="single-step"),
        ss.DPMSolverPP(1),
        ss.DPMSolverPP(3),
        *(ss.UniPC(1, v) for v in ("bh1", "bh2")),
        ss.UniPC(3),
        *(ss.SigmaRungeKutta(m) for m in ("euler", "heun", "midpoint")),
    ],
    ids=repr,
)
def test_order_on_the_quantile_map(sampler: ss.PlanSampler) -> None:
    """The end points of six paths on the two-mode mixture, the finest octave that is above round-off."""
    exact, errors = flow_map(TOY, VP, STARTS, 1.0, 1e-2), []
    for steps in (64, 128, 256):
        out = sk.sample(
            TOY.denoiser(VP),
            (6, 1),
            sampler=sampler,
            steps=steps,
            t_end=1e-2,
            x_init=STARTS,
            seed=0,
        )
        errors.append((out.x - exact).abs().max().item())
    assert slopes(errors)[-1] == pytest.approx(sampler.order, abs=0.15)


@pytest.mark.parametrize(
    ("method", "steps", "grid"),
    [
        ("euler", (64, 128, 256), "angle"),
        ("midpoint", (64, 128, 256), "uniform"),
        ("heun2", (64, 128, 256), "uniform"),
        ("heun3", (64, 128), "uniform"),
        ("rk4", (128, 256), "quadratic"),
    ],
)
def test_order_of_the_fixed_methods(method: str, steps: tuple[int, ...], grid: str) -> None:
    sampler = ss.FlowODE(method)
    exact, errors = flow_map(TOY, VP, STARTS, 1.0, 1e-2), []
    for n in steps:
        out = sk.sample(
            TOY.denoiser(VP), (6, 1), sampler=sampler, steps=n, grid=grid, t_end=1e-2, x_init=STARTS
        )
        assert sampler.nfe_per_step is not None
        assert out.nfe == n * sampler.nfe_per_step
        errors.append((out.x - exact).abs().max().item())
    for slope in slopes(errors):
        assert slope == pytest.approx(sampler.order, abs=0.15)


def test_implicit_adams_is_at_least_of_its_order_on_equal_steps() -> None:
    sampler, errors = ss.FlowODE("implicit_adams"), []
    exact = flow_map(TOY, VP, STARTS, 1.0, 1e-2)
    for steps in (32, 64, 128):
        out = sk.sample(
            TOY.denoiser(VP), (6, 1), sampler=sampler, steps=steps, t_end=1e-2, x_init=STARTS
        )
        errors.append((out.x - exact).abs().max().item())
    assert min(slopes(errors)) > sampler.order
    with pytest.raises(ValueError, match="implicit_adams takes equal steps"):
        sk.sample(TOY.denoiser(VP), (2, 1), sampler=sampler, grid="quadratic")


# ------------------------------------------------------------------------------- laws on Gaussians


@pytest.mark.parametrize("process", [VP, SUBVP, sk.VE(), sk.OrnsteinUhlenbeck()], ids=repr)
def test_euler_maruyama_is_the_closed_recursion(process: sk.Process) -> None:
    times = EM.grid.times(process, 100, process.t_max, 1e-3 * process.horizon)
    mean, variance = process.alpha(times[0]) * 0.7, variance_at(process, times[0])
    for s, t in pairwise(times):
        h, (f, g2), v = s - t, process.rates(s), variance_at(process, s)
        keep = 1 - h * f - h * g2 / v
        mean = keep * mean + h * g2 * process.alpha(s) * 0.7 / v
        variance = keep**2 * variance + g2 * h
    law = EM.plan(process, times).gaussian_law(0.7, 0.25, start="exact")
    assert law[0].item() == pytest.approx(mean, rel=1e-12)
    assert law[1].item() == pytest.approx(variance, rel=1e-12)


@pytest.mark.parametrize("process", [VP, COSINE, SUBVP, sk.EDM(), sk.Interpolant()], ids=repr)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_is_the_closed_recursion(process: sk.Process, eta: float) -> None:
    times = ss.Angle().times(process, 30, process.t_max, 1e-3 * process.horizon)
    mean, variance = process.alpha(times[0]) * 0.7, variance_at(process, times[0])
    for s, t in pairwise(times):
        a, b, total = process.alpha(s), process.alpha(t), variance_at(process, s)
        v = (eta * process.sigma(t)) ** 2 * -math.expm1(process.delta_log_snr(t, s))
        gain = a * 0.25 / total  # data = 0.7 + gain (x - a 0.7)
        slope = b * gain + math.sqrt(process.sigma(t) ** 2 - v) / process.sigma(s) * (1 - a * gain)
        mean = b * 0.7 + slope * (mean - a * 0.7)
        variance = slope**2 * variance + v
    law = ss.DDIM(eta).plan(process, times).gaussian_law(0.7, 0.25, start="exact")
    assert law[0].item() == pytest.approx(mean, rel=1e-12)
    assert law[1].item() == pytest.approx(variance, rel=1e-12)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("sampler", EXPONENTIAL, ids=repr)
def test_exponential_integrators_have_the_exact_mean(
    sampler: ss.PlanSampler, process: sk.Process
) -> None:
    for steps in (1, 2, 7, 40):
        times = times_of(sampler, steps, 1e-3 * process.horizon, process)
        mean = sampler.plan(process, times).gaussian_law(0.7, 0.25, start="exact")[0].item()
        assert mean == pytest.approx(process.alpha(times[-1]) * 0.7, rel=1e-12)


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_beta_is_exact_for_standard_normal_data(steps: int) -> None:
    for process in (VP, COSINE, sk.VP(schedule=sk.schedules.Angle())):
        times = ss.LogSNR().times(process, steps, process.t_max, 1e-3)
        law = ss.Ancestral("beta").plan(process, times).gaussian_law(0.0, 1.0)
        assert law[1].item() == pytest.approx(1, rel=1e-12)


def test_the_two_variances_err_on_either_side() -> None:
    exact = variance_at(VP, 1e-2)
    for steps in (5, 50):
        small, large = (
            ss.Ancestral(v).plan(VP, times_of(ANCESTRAL, steps)).gaussian_law(0.7, 0.25)[1].item()
            for v in ("beta_tilde", "beta")
        )
        assert small < exact < large


@pytest.mark.parametrize("c", [0.1, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 5, 10, 64])
def test_on_the_angle_grid_ddim_shrinks_by_cosines(c: float, steps: int) -> None:
    edm = sk.EDM()
    times = ss.Angle(data_std=c).times(edm, steps, 80.0, 0.002)
    variance = DDIM.plan(edm, times).gaussian_law(0.0, c**2, start="exact")[1].item()
    angle = math.atan(80 / c) - math.atan(0.002 / c)
    ratio = math.sqrt(variance / (c**2 + 0.002**2))
    assert ratio == pytest.approx(math.cos(angle / steps) ** steps, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("sampler", [DDIM, ss.DDIM(0.4), ss.DDIM(1.0), ANCESTRAL], ids=repr)
@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_point_data_are_exact_on_any_grid(sampler: ss.PlanSampler, process: sk.Process) -> None:
    for steps in (1, 2, 9):
        times = times_of(sampler, steps, 1e-2 * process.horizon, process)
        law = sampler.plan(process, times).gaussian_law(0.7, 0.0, start="exact")
        assert law[0].item() == pytest.approx(process.alpha(times[-1]) * 0.7, rel=1e-12)
        assert law[1].item() == pytest.approx(process.sigma(times[-1]) ** 2, rel=1e-11)


@pytest.mark.parametrize(
    "process", [VP, COSINE, SUBVP, sk.VE(), sk.EDM(), sk.Interpolant()], ids=repr
)
def test_point_data_are_hit_and_flow_along_straight_lines(process: sk.Process) -> None:
    model = Atom(process, 0.7)
    first, last = process.t_max, 1e-2 * process.horizon
    for steps in (1, 2, 9):
        for sampler in (DDIM, ANCESTRAL, EM, ss.PredictorCorrector()):
            out = sk.sample(model, (6, 1), sampler=sampler, steps=steps, t_end=0.0, x_init=STARTS)
            assert (out.x - 0.7).abs().max() == 0
        out = sk.sample(model, (6, 1), steps=steps, t_end=last, x_init=STARTS)
        noise = (STARTS - process.alpha(first) * 0.7) / process.sigma(first)
        exact = process.alpha(last) * 0.7 + process.sigma(last) * noise
        assert (out.x - exact).abs().max() < 1e-12


def test_one_step_to_the_data_is_the_posterior_mean() -> None:
    for process in PROCESSES:
        if process.sigma(0.0) == 0:
            model = TOY.denoiser(process)
            out = sk.sample(model, (6, 1), steps=1, t_end=0.0, x_init=STARTS)
            assert torch.equal(out.x, model.data(STARTS, process.t_max))


@pytest.mark.parametrize(("r", "variance"), [(0.16, 0.25), (0.3, 1.0), (0.3, 4.0)])
def test_a_corrector_settles_at_its_biased_variance(r: float, variance: float) -> None:
    sampler = ss.PredictorCorrector(r=r, corrections=2000, data_std=math.sqrt(variance))
    law = sampler.plan(VP, [1.0, 0.3]).gaussian_law(0.7, variance)
    assert law[0].item() == pytest.approx(VP.alpha(0.3) * 0.7, rel=1e-12)
    assert law[1].item() == pytest.approx(variance_at(VP, 0.3, variance) / (1 - r**2), rel=1e-12)


@pytest.mark.parametrize("sampler", [*PLANS, ss.DDIM(0.5)], ids=repr)
def test_samples_have_the_law_of_their_plan(sampler: ss.PlanSampler) -> None:
    """Mean and variance of 2e5 samples within 4 standard errors."""
    n = 200_000
    out = sk.sample(GAUSS1.denoiser(VP), (n, 1), sampler=sampler, steps=8, seed=1, dtype=F64)
    assert out.plan is not None
    mean, variance = (v.item() for v in out.plan.gaussian_law(0.7, 0.25))
    assert abs(out.x.mean().item() - mean) < 4 * math.sqrt(variance / n)
    assert abs(out.x.var().item() / variance - 1) < 4 * math.sqrt(2 / n)


# ------------------------------------------------------------------------------------ equivalences


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_ddim_at_eta_one_is_ancestral(process: sk.Process) -> None:
    for steps in (1, 10, 200):
        times = times_of(ANCESTRAL, steps, 1e-3 * process.horizon, process)
        one, other = (s.plan(process, times) for s in (ss.DDIM(1.0), ANCESTRAL))
        assert one.normals == other.normals
        for k, (a, b) in enumerate(zip(one.rows[1:], other.rows[1:], strict=True)):
            assert (a.t, a.read, a.node) == (b.t, b.read, b.node)
            for mine, theirs in ((a.x, b.x), (a.p, b.p), (a.z, b.z)):
                assert mine.keys() == theirs.keys()
                for j in mine:
                    size = max(abs(theirs[j]), process.sigma(a.t) if j == k else 0)
                    assert abs(mine[j] - theirs[j]) < 1e-12 * max(size, 1)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_ddim_is_the_first_order_exponential_integrator(process: sk.Process) -> None:
    times = times_of(DDIM, 25, 1e-3 * process.horizon, process)
    plan = DDIM.plan(process, times)
    nodes = [process.node(t) for t in times]
    for k, (s, t) in enumerate(pairwise(nodes)):
        h = (
            -process.delta_log_snr(s.t, t.t) / 2
            if s.t < t.t
            else process.delta_log_snr(t.t, s.t) / -2
        )
        row = plan.rows[k + 1]
        assert set(row.x) == set(row.p) == {k}
        assert row.z == {}
        assert row.x[k] == pytest.approx(t.sigma / s.sigma, rel=1e-12)
        assert row.p[k] == pytest.approx(-t.alpha * math.expm1(-h), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("sampler", EXPONENTIAL[:-1], ids=repr)
def test_rescaled_processes_give_rescaled_samples(sampler: ss.PlanSampler) -> None:
    """VP and its variance-exploding twins on the same log-SNR nodes: x / alpha is the same.

    But for the variance "beta", which is that of the forward transition and scales with it.
    """
    times = ss.LogSNR().times(VP, 15, 1.0, 1e-2)
    log_snr = [VP.log_snr(t) for t in times]
    start = torch.linspace(-2, 2, 8, dtype=F64)[:, None]
    settings = {"sampler": sampler, "seed": 3}
    mine = sk.sample(TOY.denoiser(VP), (8, 1), grid=times, x_init=start, **settings).x
    mine = mine / VP.alpha(times[-1])
    for twin in (sk.EDM(1e-3, 200.0), sk.VE(1e-3, 200.0), sk.VE(1e-3, 200.0, True)):
        grid = [twin.time_at_log_snr(v) for v in log_snr]
        x = start / VP.alpha(1.0)
        theirs = sk.sample(TOY.denoiser(twin), (8, 1), grid=grid, x_init=x, **settings).x
        assert (mine - theirs).abs().max() < 1e-10


@pytest.mark.parametrize("sampler", EXPONENTIAL, ids=repr)
def test_only_the_log_snr_of_the_nodes_matters(sampler: ss.PlanSampler) -> None:
    """Another schedule, the same curve: the same samples."""
    times = ss.LogSNR().times(VP, 15, 1.0, 1e-2)
    start = torch.linspace(-2, 2, 8, dtype=F64)[:, None]
    settings = {"sampler": sampler, "x_init": start, "seed": 3}
    mine = sk.sample(TOY.denoiser(VP), (8, 1), grid=times, **settings).x
    for schedule in (
        sk.schedules.Cosine(),
        sk.schedules.Constant(11.0),
        sk.schedules.Linear(1, 25),
    ):
        other = sk.VP(schedule=schedule)
        grid = [other.time_at_log_snr(VP.log_snr(t)) for t in times]
        theirs = sk.sample(TOY.denoiser(other), (8, 1), grid=grid, **settings).x
        assert (mine - theirs).abs().max() < 1e-10


@pytest.mark.parametrize("sampler", EXPONENTIAL, ids=repr)
def test_samples_move_with_the_target(sampler: ss.PlanSampler) -> None:
    shift, start = 1.7, torch.linspace(-2, 2, 8, dtype=F64)[:, None]
    moved = sk.GaussianMixture([0.3, 0.7], [-1.4 + shift, 0.6 + shift], 0.4)
    a = sk.sample(TOY.denoiser(VP), (8, 1), sampler=sampler, steps=12, x_init=start, seed=2)
    x = start + VP.alpha(1.0) * shift
    b = sk.sample(moved.denoiser(VP), (8, 1), sampler=sampler, steps=12, x_init=x, seed=2)
    assert (b.x - a.x - VP.alpha(1e-3) * shift).abs().max() < 1e-12


@pytest.mark.parametrize("sampler", [DDIM, ss.FlowODE(), ss.FlowODE("heun2")], ids=repr)
def test_the_flow_keeps_points_in_order(sampler: ss.Sampler) -> None:
    start = torch.linspace(-4, 4, 400, dtype=F64)[:, None]
    for steps in (5, 20):
        out = sk.sample(TOY.denoiser(VP), (400, 1), sampler=sampler, steps=steps, x_init=start)
        assert (out.x.diff(dim=0) > 0).all()


# ---------------------------------------------------------------------------------------- the ends


@pytest.mark.parametrize(
    "sampler", [EM, ANCESTRAL, ss.DDIM(1.0), ss.PredictorCorrector()], ids=repr
)
def test_the_mean_is_the_sample_without_its_last_noise(sampler: ss.PlanSampler) -> None:
    settings = {"sampler": sampler, "steps": 6, "x_init": STARTS, "seed": 4}
    full, mean = (
        sk.sample(TOY.denoiser(VP), (6, 1), final=final, **settings) for final in ("none", "mean")
    )
    assert full.plan is not None
    ((m, weight),) = full.plan.rows[-1].z.items()
    z = BlockNormals(4, 0, 6, (1,), F64, torch.device("cpu"))(m)
    assert (full.x - mean.x - weight * z).abs().max() < 1e-14
    assert full.nfe == mean.nfe


@pytest.mark.parametrize("sampler", ss.ALL, ids=repr)
def test_the_data_estimate_is_one_more_call(sampler: ss.Sampler) -> None:
    settings = {"sampler": sampler, "steps": 6, "x_init": STARTS, "seed": 4}
    model = TOY.denoiser(VP)
    none, data = (sk.sample(model, (6, 1), final=final, **settings) for final in ("none", "data"))
    # In parallel in time, the call joins every sweep, and the sweeps may need one more.
    assert data.nfe == none.nfe + 1 or isinstance(sampler, ss.ParallelInTime)
    assert (data.x - model.data(none.x, 1e-3)).abs().max() < 1e-14


@pytest.mark.parametrize("sampler", PLANS, ids=repr)
def test_zero_ends_with_the_data_estimate(sampler: ss.PlanSampler) -> None:
    model, times = TOY.denoiser(VP), [1.0, 0.6, 0.2, 0.05, 0.0]
    settings = {"sampler": sampler, "x_init": STARTS, "seed": 4}
    before = sk.sample(model, (6, 1), grid=times[:-1], **settings)
    for final in ("none", "mean", "data"):
        out = sk.sample(model, (6, 1), grid=times, final=final, **settings)
        assert (out.x - model.data(before.x, 0.05)).abs().max() < 1e-14
        assert out.nfe == before.nfe + 1


@pytest.mark.parametrize("process", [sk.Interpolant(), COSINE], ids=repr)
@pytest.mark.parametrize("sampler", PLANS, ids=repr)
def test_a_start_without_signal(sampler: ss.PlanSampler, process: sk.Process) -> None:
    """The first step is DDIM from E[x_0]; data and v models agree."""
    model = TOY.denoiser(process)
    settings = {"sampler": sampler, "x_init": STARTS, "seed": 0}
    out = sk.sample(model, (6, 1), grid=[1.0, 0.8], **settings)
    first = process.sigma(0.8) * STARTS / process.sigma(1.0)  # E[x_0] = 0
    assert (out.x - first).abs().max() < 1e-14
    for grid in ([1.0, 0.8, 0.3, 0.1], [1.0, 0.5, 0.0], [1.0, 0.0]):
        runs = [
            sk.sample(m, (6, 1), grid=grid, **settings).x for m in (model, Reparametrised(model))
        ]
        assert (runs[0] - runs[1]).abs().max() < 1e-10
    drawn = sk.sample(model, (50, 1), sampler=sampler, steps=10, t_start=1.0, seed=0)
    assert drawn.times[0] == 1
    assert torch.isfinite(drawn.x).all()


def test_the_flow_starts_without_signal_where_its_slopes_are_finite() -> None:
    process = sk.Interpolant()
    out = sk.sample(
        TOY.denoiser(process),
        (6, 1),
        sampler=ss.FlowODE(rtol=1e-9, atol=1e-9),
        x_init=STARTS,
        t_start=1.0,
    )
    exact = flow_map(TOY, process, STARTS, 1.0, 1e-3)
    assert (out.x - exact).abs().max() < 1e-6


# ---------------------------------------------------------------------------- a mixture, end to end


def test_euler_maruyama_samples_the_mixture() -> None:
    """W2 of 20,000 samples below what 95 of 100 exact draws of that size score."""
    n, target = 20_000, TOY.at(VP, 1e-3)
    out = sk.sample(TOY.denoiser(VP), (n, 1), sampler=EM, steps=1000, seed=0, dtype=F64)

    def w2(x: Tensor, truth: Any) -> float:
        return wasserstein_1d(x, truth, p=2)

    assert w2(out.x[:, 0], target) < floor(w2, target, n, repeats=40, seed=1).quantile95


# ------------------------------------------------------------------------------ torchdiffeq's solvers


def test_the_flow_is_the_quantile_map() -> None:
    start = torch.linspace(-4, 4, 41, dtype=F64)[:, None]
    exact = flow_map(TOY, VP, start, 1.0, 1e-3)
    sampler = ss.FlowODE("dopri5", rtol=1e-8, atol=1e-8)
    out = sk.sample(TOY.denoiser(VP), (41, 1), sampler=sampler, x_init=start)
    assert (out.x - exact).abs().max() < 1e-6

    from torchdiffeq import odeint

    flow = sk.ProbabilityFlow(TOY.denoiser(VP))
    clock = torch.tensor([1.0, 1e-3], dtype=F64)
    options = {"step_t": clock[-1:], "first_step": 1e-2}
    states = odeint(flow, start, clock, rtol=1e-8, atol=1e-8, method="dopri5", options=options)
    assert isinstance(states, Tensor)
    assert (states[-1] - exact).abs().max() < 1e-6
    back = odeint(
        flow,
        states[-1],
        clock.flip(0),
        rtol=1e-8,
        atol=1e-8,
        method="dopri5",
        options={"step_t": clock[:1], "first_step": 1e-4},
    )
    assert isinstance(back, Tensor)
    assert (back[-1] - start).abs().max() < 1e-5


def test_the_flows_velocity() -> None:
    model = TOY.denoiser(VP)
    f, g2 = VP.rates(0.4)
    expected = f * STARTS - 0.5 * g2 * model.score(STARTS, 0.4)
    flow = sk.ProbabilityFlow(model)
    for t in (0.4, torch.tensor(0.4, dtype=F64)):
        assert (flow(t, STARTS) - expected).abs().max() < 1e-13


@pytest.mark.parametrize(
    ("method", "tolerance", "error"),
    [
        ("dopri8", 1e-6, 1e-5),
        ("bosh3", 1e-5, 1e-4),
        ("fehlberg2", 1e-5, 5e-3),
        ("adaptive_heun", 1e-4, 1e-3),
    ],
)
def test_the_adaptive_methods_converge(method: str, tolerance: float, error: float) -> None:
    sampler = ss.FlowODE(method, rtol=tolerance, atol=tolerance)
    out = sk.sample(TOY.denoiser(VP), (6, 1), sampler=sampler, x_init=STARTS, t_end=1e-2)
    assert (out.x - flow_map(TOY, VP, STARTS, 1.0, 1e-2)).abs().max() < error
    assert sampler.nfe_per_step is None
    assert not sampler.stochastic


@pytest.mark.parametrize("method", ["dopri5", "heun2"])
def test_the_solver_works_in_single_precision_and_any_shape(method: str) -> None:
    target = sk.GaussianMixture(None, [[0.1] * 6], 0.5)
    start = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    runs = [
        sk.sample(
            target.denoiser(VP), (4, 2, 3), sampler=ss.FlowODE(method), x_init=start.to(dtype)
        )
        for dtype in (torch.float32, F64)
    ]
    assert runs[0].x.dtype == torch.float32
    assert (runs[0].x - runs[1].x).abs().max() < 1e-3


def test_a_solver_that_gives_up_is_a_numerics_error() -> None:
    class Nan(sk.Denoiser):
        process = VP

        def predict(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
            return x * math.nan

    with pytest.raises(sk.NumericsError, match="model returned NaN"):
        sk.sample(Nan(), (3, 1), sampler=ss.FlowODE())


# --------------------------------------------------------------------------------- torchsde's solvers


def test_euler_is_our_formula_on_the_same_normals() -> None:
    steps, n = 20, 300
    out = sk.sample(
        TOY.denoiser(VP), (n, 1), sampler=ss.TorchSDE(), steps=steps, t_end=1e-2, seed=9, dtype=F64
    )
    normals, model = BlockNormals(9, 0, n, (1,), F64, torch.device("cpu")), TOY.denoiser(VP)
    x = normals.start()
    for k, (s, t) in enumerate(pairwise(times_of(EM, steps))):
        (f, g2), h = VP.rates(s), s - t
        x = x - h * (f * x - g2 * model.score(x, s)) + math.sqrt(g2 * h) * normals(2 * k)
    assert (out.x - x).abs().max() < 1e-10


class OneStepLaw:
    """Mean and variance of torchsde's methods on GAUSS1, exactly.

    A step is affine in x with noise of degree 3 in the first of its two normals and 1 in the second, and
    there is no product of x and noise: four Gauss-Hermite points times two integrate its square.
    """

    def __init__(self) -> None:
        points, weights = hermegauss(4)
        pairs = [(w, u, p) for w, p in zip(points, weights, strict=True) for u in (-1.0, 1.0)]
        first, second, self.weights = torch.tensor(pairs, dtype=F64).T
        self.weights = self.weights / self.weights.sum()
        self.normals = [torch.cat([z, torch.zeros(2)])[:, None] for z in (first, second)]
        self.start = torch.zeros(10, 1, dtype=F64)
        self.start[9] = 1.0

    def __call__(self, sampler: ss.TorchSDE, times: list[float]) -> tuple[float, float]:
        model = GAUSS1.denoiser(VP)
        mean, variance = VP.alpha(times[0]) * 0.7, variance_at(VP, times[0])
        for s, t in pairwise(times):
            engine = Engine(model, self.normals.__getitem__)  # type: ignore[arg-type]
            x = sampler.program(model, [s, t], "none")(engine, self.start)[:, 0]
            shift = (self.weights @ x[:8]).item()
            fresh = (self.weights @ (x[:8] - shift).square()).item()
            slope = (x[9] - x[8]).item()
            mean, variance = slope * mean + shift, slope**2 * variance + fresh
        return mean, variance


@pytest.mark.parametrize("method", [m for m in METHODS if m != "reversible_heun"])
def test_weak_order_of_torchsdes_methods(method: str) -> None:
    sampler, law, exact, errors = ss.TorchSDE(method), OneStepLaw(), variance_at(VP, 1e-2), []
    for steps in (64, 128):
        mean, variance = law(sampler, times_of(EM, steps))
        errors.append(variance - exact)
    assert slopes(errors)[0] == pytest.approx(sampler.order, abs=0.15)
    assert mean == pytest.approx(VP.alpha(1e-2) * 0.7, abs=5e-3)


def test_the_exact_laws_of_eulers_variants() -> None:
    """Milstein is Euler where the noise is additive; euler_heun averages g over the step."""
    times, law = times_of(EM, 32), OneStepLaw()
    euler = [v.item() for v in EM.plan(VP, times).gaussian_law(0.7, 0.25, start="exact")]
    variance = variance_at(VP, 1.0)
    for s, t in pairwise(times):
        f, g2 = VP.rates(s)
        g = 0.5 * (VP.diffusion(s) + VP.diffusion(t))
        variance *= (1 - (s - t) * (f + g2 / variance_at(VP, s))) ** 2
        variance += g**2 * (s - t)
    assert law(ss.TorchSDE("euler"), times) == pytest.approx(euler, rel=1e-10)
    assert law(ss.TorchSDE("milstein"), times) == pytest.approx(euler, rel=1e-10)
    assert law(ss.TorchSDE("euler_heun"), times) == pytest.approx([euler[0], variance], rel=1e-10)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "reversible_heun"])
def test_torchsde_has_the_law(method: str) -> None:
    """Mean and variance of 20,000 samples within 4 standard errors of the exact law of the method."""
    sampler, steps, n = ss.TorchSDE(method), 50, 20_000
    out = sk.sample(
        GAUSS1.denoiser(VP), (n, 1), sampler=sampler, steps=steps, t_end=1e-2, seed=2, dtype=F64
    )
    assert sampler.nfe_per_step is not None
    assert out.nfe == sampler.nfe_per_step * steps + 1
    mean, variance = OneStepLaw()(sampler, list(out.times))
    assert abs(out.x.mean().item() - mean) < 4 * math.sqrt(variance / n)
    assert abs(out.x.var().item() / variance - 1) < 4 * math.sqrt(2 / n)


def test_the_path_has_the_law_of_a_brownian_motion() -> None:
    """Covariances of the increment and the area over an interval, within 4 standard errors."""
    n, h = 50_000, 0.25
    normals = BlockNormals(0, 0, n, (1,), F64, torch.device("cpu"))
    path = _path(Engine(TOY.denoiser(VP), normals), torch.empty(n, 1, dtype=F64))
    w, area = path(0.5, 0.5 + h, return_U=True)
    assert torch.equal(path(0.5, 0.5 + h), w)
    exact = {(0, 0): h, (0, 1): h**2 / 2, (1, 1): h**3 / 3}
    for (i, j), covariance in exact.items():
        a, b = (w, area)[i], (w, area)[j]
        spread = math.sqrt(exact[i, i] * exact[j, j] + covariance**2)
        assert abs((a * b).mean().item() - covariance) < 4 * spread / math.sqrt(n)
    later, _ = path(0.5 + h, 0.5 + 2 * h, return_U=True)
    assert abs((w * later).mean().item()) < 4 * h / math.sqrt(n)


def test_a_finer_step_inside_the_intervals() -> None:
    """With dt a quarter of an interval, the law of four times the steps, within 4 standard errors."""
    n, sampler = 20_000, ss.TorchSDE(dt=0.25 * 0.99 / 20)
    out = sk.sample(
        GAUSS1.denoiser(VP), (n, 1), sampler=sampler, steps=20, t_end=1e-2, seed=0, dtype=F64
    )
    mean, variance = (v.item() for v in EM.plan(VP, times_of(EM, 80)).gaussian_law(0.7, 0.25))
    assert abs(out.x.mean().item() - mean) < 4 * math.sqrt(variance / n)
    assert abs(out.x.var().item() / variance - 1) < 4 * math.sqrt(2 / n)
    assert sampler.nfe_per_step is None
    assert out.nfe == 81


def test_the_reverse_sde_in_torchsde_itself() -> None:
    """Euler's law within 4 standard errors, on torchsde's own Brownian path."""
    from torchsde import BrownianInterval, sdeint

    n, steps = 20_000, 50
    reverse = sk.ReverseSDE(GAUSS1.denoiser(VP))
    clock = reverse.clock([1.0, 0.5, 1e-2])
    assert clock.tolist() == pytest.approx([0, 0.5, 0.99])
    start = torch.randn(n, 1, generator=torch.Generator().manual_seed(3), dtype=F64)
    dt = 0.99 / steps
    path = BrownianInterval(0.0, 0.99, size=(n, 1), dtype=F64, dt=dt, entropy=5)
    states = sdeint(reverse, start, clock[[0, 2]], bm=path, dt=dt, method="euler")
    assert isinstance(states, Tensor)
    law = EM.plan(VP, times_of(EM, steps)).gaussian_law(0.7, 0.25)
    mean, variance = (v.item() for v in law)
    assert abs(states[-1].mean().item() - mean) < 4 * math.sqrt(variance / n)
    assert abs(states[-1].var().item() / variance - 1) < 4 * math.sqrt(2 / n)


def test_the_reverse_sdes_coefficients() -> None:
    model = sk.GaussianMixture(None, [[0.2] * 6], 0.5).denoiser(VP)
    x = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    reverse = sk.ReverseSDE(model, event=(2, 3), start=0.8, unit=0.5)
    f, g2 = VP.rates(0.8 - 0.5 * 0.6)
    drift = 0.5 * (g2 * model.score(x, 0.5) - f * x)
    flat = x.reshape(4, 6)
    assert (reverse.f(0.6, flat) - drift.reshape(4, 6)).abs().max() < 1e-12
    assert (reverse.g(0.6, flat) - math.sqrt(0.5 * g2)).abs().max() < 1e-14
    assert reverse.noise_type == "diagonal"
    assert reverse.sde_type == "ito"


def test_torchsde_carries_event_shapes() -> None:
    model = sk.GaussianMixture(None, [[0.2] * 6], 0.5).denoiser(VP)
    out = sk.sample(
        model, (4, 2, 3), sampler=ss.TorchSDE("srk"), steps=5, trajectory=True, seed=0, dtype=F64
    )
    assert out.x.shape == (4, 2, 3)
    assert out.trajectory is not None
    assert out.trajectory.shape == (6, 4, 2, 3)
    flat = sk.sample(model, (4, 6), sampler=ss.TorchSDE("srk"), steps=5, seed=0, dtype=F64)
    assert torch.equal(out.x.reshape(4, 6), flat.x)


# ---------------------------------------------------------------------------- predictor-corrector


def test_published_norms_approach_the_number_in_high_dimension() -> None:
    """On N(0, v I) |z| / |score| concentrates, so the step from norms is 2 a r^2 Var: the same law."""
    d, n = 400, 200
    target = sk.GaussianMixture(None, torch.zeros(1, d), 0.5)
    for norm in ("sample", "batch"):
        sampler = ss.NormCorrector(norm=norm)
        out = sk.sample(target.denoiser(VP), (n, d), sampler=sampler, steps=100, seed=0, dtype=F64)
        plan = ss.PredictorCorrector(data_std=0.5).plan(VP, out.times)
        variance = plan.gaussian_law(0.0, 0.25)[1].item()
        assert out.plan is None
        assert out.nfe == 200
        # the factor a = alpha_s^2 / alpha_t^2 and the fluctuation of the norms are of order 1 / d, 1 / N
        assert out.x.var().item() == pytest.approx(variance, rel=0.02)


def test_a_step_from_one_norm_in_one_dimension_is_warned_of() -> None:
    sampler = ss.NormCorrector()
    with pytest.warns(UserWarning, match="infinite mean in one and two dimensions"):
        sk.sample(TOY.denoiser(VP), (3, 1), sampler=sampler, steps=2, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        target = sk.GaussianMixture(None, [[0.0] * 3], 0.5)
        sk.sample(target.denoiser(VP), (3, 3), sampler=sampler, steps=2, seed=0)


def test_the_corrector_from_norms_is_the_published_step() -> None:
    model = sk.GaussianMixture(None, [[0.0] * 3], 0.5).denoiser(VP)
    start = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    times = [0.9, 0.5]
    for norm in ("sample", "batch"):
        sampler = ss.NormCorrector(DDIM, norm=norm, r=0.2)
        out = sk.sample(model, (5, 3), sampler=sampler, grid=times, x_init=start, seed=7)
        x = sk.sample(model, (5, 3), grid=times, x_init=start).x
        z = BlockNormals(7, 0, 5, (3,), F64, torch.device("cpu"))(0)
        score = model.score(x, 0.5)
        lengths = [v.norm(dim=1, keepdim=True) for v in (z, score)]
        if norm == "batch":
            lengths = [v.mean() for v in lengths]
        e = 2 * VP.transition(0.5, 0.9)[0] ** 2 * (0.2 * lengths[0] / lengths[1]) ** 2
        assert (out.x - (x + e * score + (2 * e).sqrt() * z)).abs().max() < 1e-12
        quiet = sk.sample(
            model, (5, 3), sampler=sampler, grid=times, x_init=start, seed=7, final="mean"
        )
        assert (quiet.x - (x + e * score)).abs().max() < 1e-12


# --------------------------------------------------------------------------------- bad hyper-parameters

BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda: ss.DDIM(eta=-0.1), ValueError, "eta"),
    (lambda: ss.DDIM(eta=1.5), ValueError, r"eta must be a finite number in \[0, 1\], got 1.5"),
    (lambda: ss.DDIM(eta=math.nan), ValueError, "eta"),
    (lambda: ss.DDIM(eta="1"), TypeError, "eta"),
    (lambda: ss.DDIM(eta=True), TypeError, "eta must be a number, got True"),
    (lambda: ss.Ancestral("posterior"), ValueError, "variance must be one of 'beta', 'beta_tilde'"),
    (lambda: ss.Ancestral("betatilde"), ValueError, "did you mean 'beta_tilde'"),
    (lambda: ss.FlowODE("tsit5"), ValueError, "method must be one of"),
    (lambda: ss.FlowODE("dopri"), ValueError, "did you mean 'dopri"),
    (lambda: ss.FlowODE(rtol=0.0), ValueError, "rtol"),
    (lambda: ss.FlowODE(atol=-1.0), ValueError, "atol"),
    (lambda: ss.TorchSDE("adjoint_reversible_heun"), ValueError, "method must be one of"),
    (lambda: ss.TorchSDE(dt=0.0), ValueError, "dt"),
    (lambda: ss.TorchSDE(dt="0.1"), TypeError, "dt"),
    (lambda: ss.PredictorCorrector(ss.FlowODE()), TypeError, "predictor must be a PlanSampler"),
    (lambda: ss.PredictorCorrector(r=0.0), ValueError, r"r must be a finite number in \(0, 1\)"),
    (lambda: ss.PredictorCorrector(r=1.0), ValueError, "r must be"),
    (lambda: ss.PredictorCorrector(corrections=0), ValueError, "corrections"),
    (lambda: ss.PredictorCorrector(corrections=1.5), TypeError, "corrections"),
    (lambda: ss.PredictorCorrector(data_std=-1.0), ValueError, "data_std"),
    (lambda: ss.PredictorCorrector(reference_steps=0), ValueError, "reference_steps must be >= 1"),
    (lambda: ss.PredictorCorrector(reference_steps=True), TypeError, "reference_steps"),
    (lambda: ss.NormCorrector(norm="l2"), ValueError, "norm must be one of"),
    (lambda: sk.ReverseSDE(TOY.denoiser(VP), unit=0.0), ValueError, "unit"),
    (lambda: sk.ReverseSDE(TOY.denoiser(VP), sde_type="itō"), ValueError, "sde_type"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[m for _, _, m in BAD])
def test_bad_hyper_parameters(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3"])
@pytest.mark.parametrize("process", [VP, SUBVP, sk.VE(), sk.Interpolant()], ids=repr)
def test_the_flow_by_hand_with_its_options(method: str, process: sk.Process) -> None:
    from torchdiffeq import odeint

    flow = sk.ProbabilityFlow(TOY.denoiser(process))
    times = torch.tensor([process.t_max, 1e-3 * process.horizon], dtype=F64)
    start = process.prior.std * STARTS
    out = odeint(
        flow, start, times, method=method, rtol=1e-7, atol=1e-7, options=flow.options(times)
    )
    exact = flow_map(TOY, process, start, times[0].item(), times[1].item())
    assert (out[-1] - exact).abs().max() < 1e-4


def test_a_rounded_zero_of_alpha_ends_the_readable_range() -> None:
    @dataclasses.dataclass(frozen=True)
    class Trigonometric(sk.Process):
        def _alpha(self, t: Any) -> Any:
            return sk.elementary.cos(0.5 * math.pi * t)

        def _sigma(self, t: Any) -> Any:
            return sk.elementary.sin(0.5 * math.pi * t)

    process = Trigonometric()
    assert process.log_snr(process.t_max) == pytest.approx(-20, rel=1e-9)
    out = sk.sample(TOY.denoiser(process), (4000, 1), sampler=EM, steps=200, seed=0, dtype=F64)
    assert wasserstein_1d(out.x, TOY.at(process, 1e-3)) < 0.1
