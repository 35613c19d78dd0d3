"""Steps of each sample's own: error against tolerance, independence of the batch, counts, bad models."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdekit as sk
from sdekit import samplers as ss
from sdekit.sampling.adaptive import FIRST, GROW, LONGEST

F64 = torch.float64
VP = sk.VP()
TOY = sk.GaussianMixture([0.3, 0.7], [-1.4, 0.6], 0.4)
THIN = sk.GaussianMixture([0.3, 0.7], [-1.4, 0.6], 0.02)
STARTS = torch.tensor([-1.5, -0.7, -0.2, 0.3, 1.1, 2.0], dtype=F64)[:, None]
PROCESSES = [
    VP,
    sk.VP(schedule=sk.schedules.Cosine()),
    sk.SubVP(),
    sk.VE(),
    sk.EDM(),
    sk.Interpolant(),
]


def solver(tol: float, order: int = 3) -> ss.AdaptiveDPMSolver:
    return ss.AdaptiveDPMSolver(order, rtol=tol, atol=tol)


def quantile_map(
    target: sk.GaussianMixture, process: sk.Process, x: Tensor, t: float, s: float
) -> Tensor:
    """The probability flow in 1-D, exactly."""
    return target.at(process, s).quantile(target.at(process, t).cdf(x))


def draws(n: int, d: int = 1) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=F64)


class Watched(sk.Denoiser):
    """Counts how often each sample is read, by the condition that names it, or by the size of the batch."""

    def __init__(self, inner: sk.Denoiser, prediction: str = "data") -> None:
        self.inner, self.process, self.prediction = inner, inner.process, prediction
        self.sizes: list[int] = []
        self.reads = torch.zeros(1000, dtype=torch.int64)

    def predict(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
        assert t.shape == x.shape[:1]
        assert t.dtype == F64
        self.sizes.append(len(x))
        if "cond" in conditions:
            self.reads[conditions["cond"]] += 1
        return getattr(self.inner, self.prediction)(x, t)


class Made(sk.Denoiser):
    prediction = "data"

    def __init__(self, function: Any, process: sk.Process = VP) -> None:
        self.function, self.process = function, process

    def predict(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
        return self.function(x, t)


# -------------------------------------------------------------------------------- error and tolerance


@pytest.mark.parametrize(
    ("order", "tolerances"), [(2, (1e-2, 1e-3)), (3, (1e-2, 1e-3, 1e-4))], ids=str
)
@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_the_error_is_within_some_tolerances(
    process: sk.Process, order: int, tolerances: tuple[float, ...]
) -> None:
    """Of 401 end points on the two-mode mixture, by the stretch of the flow; the worst seen is 10."""
    start = process.prior.std * torch.linspace(-2.5, 2.5, 401, dtype=F64)[:, None]
    first, last = process.t_max, 1e-3 * process.horizon
    exact = quantile_map(TOY, process, start, first, last)
    densities = TOY.at(process, first).log_prob(start) - TOY.at(process, last).log_prob(exact)
    stretch = (process.prior.std * densities.exp()).clamp(min=1)
    for tol in tolerances:
        out = sk.sample(
            TOY.denoiser(process), start.shape, sampler=solver(tol, order), x_init=start
        )
        assert ((out.x - exact).abs()[:, 0] / stretch).max() < 15 * tol


@pytest.mark.parametrize(("order", "tolerances"), [(2, (1e-3, 1e-5)), (3, (1e-5, 1e-7))], ids=str)
def test_error_and_cost_follow_the_tolerance(order: int, tolerances: tuple[float, ...]) -> None:
    """Mean error ~ tol; calls ~ tol^(-1 / order), and fewer where the longest step is taken."""
    start = torch.linspace(-2, 2, 41, dtype=F64)[:, None]
    exact, errors, costs = quantile_map(TOY, VP, start, 1.0, 1e-2), [], []
    for tol in tolerances:
        out = sk.sample(
            TOY.denoiser(VP), start.shape, sampler=solver(tol, order), x_init=start, t_end=1e-2
        )
        assert out.nfe_per_sample is not None
        errors.append((out.x - exact).abs().mean().item())
        costs.append(out.nfe_per_sample.double().mean().item())
    assert math.log10(errors[0] / errors[1]) / 2 == pytest.approx(1, abs=0.15)
    assert 1 / order - 0.07 < math.log10(costs[1] / costs[0]) / 2 < 1 / order + 0.01


@pytest.mark.parametrize("order", [2, 3])
def test_a_single_step_is_that_of_dpm_solver(order: int) -> None:
    """With a tolerance that accepts anything, steps of 0.05, 0.25 and 1."""
    model, start, clock = TOY.denoiser(VP), draws(5), [-1.0]
    for k in range(3):
        clock.append(clock[-1] + min(FIRST * GROW**k, LONGEST))
    times = [VP.time_at_log_snr(2 * half) for half in clock]
    settings = {"x_init": start, "grid": [times[0], times[-1]]}
    out = sk.sample(model, (5, 1), sampler=solver(1e9, order), **settings)
    fixed = sk.sample(
        model, (5, 1), sampler=ss.DPMSolver(order), x_init=start, grid=times, dtype=F64
    )
    assert out.nfe == fixed.nfe == 3 * order
    assert (out.x - fixed.x).abs().max() < 1e-12


@pytest.mark.parametrize(("target", "share"), [(TOY, 2.1), (THIN, 0.85)], ids=["broad", "thin"])
def test_the_cost_beside_dopri5(target: sk.GaussianMixture, share: float) -> None:
    """At one tolerance and a smaller mean error: fewer calls on modes of width 0.02, twice as many on 0.4."""
    start = draws(200)
    exact = quantile_map(target, VP, start, 1.0, 1e-3)
    runs = [
        sk.sample(target.denoiser(VP), (200, 1), sampler=sampler, x_init=start)
        for sampler in (solver(1e-3), ss.FlowODE("dopri5", rtol=1e-3, atol=1e-3))
    ]
    errors = [(run.x - exact).abs().mean().item() for run in runs]
    assert runs[0].nfe_per_sample is not None
    assert runs[0].nfe_per_sample.double().mean() < share * runs[1].nfe
    assert errors[0] < errors[1]


def test_any_prediction_gives_the_same_run() -> None:
    model = TOY.denoiser(VP)
    runs = [
        sk.sample(Watched(model, kind), (6, 1), sampler=solver(1e-3), x_init=STARTS)
        for kind in ("data", "noise", "score", "velocity")
    ]
    for run in runs[1:]:
        assert run.nfe == runs[0].nfe
        assert (run.x - runs[0].x).abs().max() < 1e-10


@pytest.mark.parametrize("process", PROCESSES[:4], ids=repr)
def test_single_precision_is_good_to_its_rounding(process: sk.Process) -> None:
    start = process.prior.std * STARTS
    exact = quantile_map(TOY, process, start, process.t_max, 1e-3 * process.horizon)
    out = sk.sample(TOY.denoiser(process), (6, 1), sampler=solver(1e-5), x_init=start.float())
    assert out.x.dtype == torch.float32
    assert (out.x - exact).abs().max() < 5e-4


# -------------------------------------------------------------------------- each sample for itself


@pytest.mark.parametrize("order", [2, 3])
def test_a_sample_is_the_same_alone_and_in_any_batch(order: int) -> None:
    """To round-off, with an outlier among its batch mates."""
    model, start, tol = TOY.denoiser(VP), draws(64), 1e-2
    start[5] = 30.0
    whole = sk.sample(model, (64, 1), sampler=solver(tol, order), x_init=start)
    assert whole.nfe_per_sample is not None
    assert whole.nfe_per_sample.unique().numel() > 3
    for size in (1, 7):
        for low in (0, 5, 30):
            part = sk.sample(
                model,
                (size, 1),
                sampler=solver(tol, order),
                x_init=start[low : low + size],
            )
            assert (part.x - whole.x[low : low + size]).abs().max() < 1e-12
            assert torch.equal(part.nfe_per_sample, whole.nfe_per_sample[low : low + size])
    chunks = sk.sample(model, (64, 1), sampler=solver(tol, order), x_init=start, chunk=10)
    assert (chunks.x - whole.x).abs().max() < 1e-12
    assert torch.equal(chunks.nfe_per_sample, whole.nfe_per_sample)
    assert chunks.nfe == whole.nfe == whole.nfe_per_sample.max()


def test_the_batch_is_what_couples_the_adaptive_methods_of_flow_ode() -> None:
    """The control: there a sample moves with its batch mates, and chunk=1 is the remedy."""
    model, start = TOY.denoiser(VP), draws(64)
    sampler = ss.FlowODE(rtol=1e-3, atol=1e-3)
    whole, alone, one = (
        sk.sample(model, (len(x), 1), sampler=sampler, x_init=x, chunk=chunk).x[:2]
        for x, chunk in ((start, None), (start[:2], 1), (start[:5], 1))
    )
    assert (whole - alone).abs().max() > 1e-5
    assert torch.equal(alone, one)


def test_calls_are_counted_for_the_samples_that_make_them() -> None:
    """Every sample is read as often as it says; none that has arrived is read."""
    n, model = 50, Watched(TOY.denoiser(VP))
    settings = {"sampler": solver(1e-4), "x_init": draws(n)}
    out = sk.sample(model, (n, 1), cond=torch.arange(n), **settings)
    assert out.nfe_per_sample is not None
    assert torch.equal(model.reads[:n], out.nfe_per_sample)
    assert sum(model.sizes) == out.nfe_per_sample.sum()
    assert len(model.sizes) == out.nfe == out.nfe_per_sample.max()
    assert sorted(model.sizes, reverse=True) == model.sizes
    ended = sk.sample(TOY.denoiser(VP), (n, 1), final="data", **settings)
    assert torch.equal(ended.nfe_per_sample, out.nfe_per_sample + 1)
    assert ended.nfe == out.nfe + 1
    assert sk.sample(TOY.denoiser(VP), (n, 1)).nfe_per_sample is None


def test_a_rejected_step_costs_one_call_less() -> None:
    """Its first reading holds: of order 3, steps and rejections cost 3 and 2."""
    calls: list[float] = []
    model = Made(lambda x, t: calls.append(t.item()) or TOY.denoiser(VP).predict(x, t))
    out = sk.sample(model, (1, 1), sampler=solver(1e-4), x_init=STARTS[:1])
    assert len(set(calls)) == len(calls) == out.nfe
    back = sum(a < b for a, b in pairwise(calls))
    assert back > 0
    assert (out.nfe - 2 * back) % 3 == 0


def test_conditions_go_with_their_samples() -> None:
    class Moved(nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            assert cond.shape == x.shape
            return TOY.denoiser(VP).data(x - VP.alpha(t)[:, None] * cond, t) + cond

    model = sk.NetworkDenoiser(Moved(), VP, prediction="data")
    shifts, start = torch.linspace(-5, 5, 12, dtype=F64)[:, None], draws(12)
    out = sk.sample(
        model,
        (12, 1),
        sampler=solver(1e-4),
        x_init=start + shifts * VP.alpha(1.0),
        cond=shifts,
        chunk=8,
    )
    exact = quantile_map(TOY, VP, start, 1.0, 1e-3) + VP.alpha(1e-3) * shifts
    assert (out.x - exact).abs().max() < 2e-3


# ------------------------------------------------------------------------------ states on the way


@pytest.mark.parametrize("order", [2, 3])
def test_states_at_the_grid_are_as_good_as_the_end(order: int) -> None:
    """Read off the steps, to ten tolerances; watching changes neither cost nor result."""
    settings = {
        "sampler": solver(1e-3 if order == 2 else 1e-4, order),
        "x_init": STARTS,
        "steps": 40,
    }
    plain = sk.sample(TOY.denoiser(VP), (6, 1), **settings)
    out = sk.sample(TOY.denoiser(VP), (6, 1), trajectory=True, **settings)
    assert torch.equal(out.x, plain.x)
    assert torch.equal(out.nfe_per_sample, plain.nfe_per_sample)
    assert out.trajectory is not None
    for t, x in zip(out.times, out.trajectory, strict=True):
        exact = quantile_map(TOY, VP, STARTS, 1.0, t)
        assert (x - exact).abs().max() < (1e-2 if order == 2 else 1e-3)


def test_the_grid_between_its_ends_does_not_matter() -> None:
    runs = [
        sk.sample(TOY.denoiser(VP), (6, 1), sampler=solver(1e-4), x_init=STARTS, **settings)
        for settings in ({"steps": 1}, {"steps": 30}, {"grid": "uniform"}, {"grid": [1.0, 1e-3]})
    ]
    for run in runs[1:]:
        assert torch.equal(run.x, runs[0].x)


# --------------------------------------------------------------------------------- what goes wrong


def test_a_bad_output_is_named() -> None:
    def function(x: Tensor, t: Tensor) -> Tensor:
        out = 0.5 * x
        out[(t < 0.5) & (x[:, 0] > 0)] = math.nan
        return out

    message = r"in a step from t = 0\.\d+, log_snr = .*the model returned NaN.*for \d of 6 samples"
    with pytest.raises(sk.NumericsError, match=message):
        sk.sample(Made(function), (6, 1), sampler=solver(1e-5), x_init=STARTS)
    with pytest.raises(sk.NumericsError, match=r"from t = 1, .* for 6 of 6 samples"):
        sk.sample(Made(lambda x, t: x * math.inf), (6, 1), sampler=solver(1e-5), x_init=STARTS)


class Chance(sk.Denoiser):
    """A model of noise: no step is small enough for it."""

    process, prediction = VP, "data"

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def predict(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
        return torch.randn(x.shape, generator=self.generator, dtype=x.dtype)


def test_a_step_too_small_is_named() -> None:
    with pytest.raises(
        sk.NumericsError, match=r"t = 1, .*step became too small .* \d of 6 samples"
    ):
        sk.sample(Chance(), (6, 1), sampler=solver(1e-20), x_init=STARTS)


def test_a_run_without_end_is_given_up() -> None:
    message = r"log_snr = .*not done after max_nfe = 200 calls, for 6 of 6 samples"
    with pytest.raises(sk.NumericsError, match=message):
        sk.sample(Chance(), (6, 1), sampler=ss.AdaptiveDPMSolver(max_nfe=200), x_init=STARTS)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"order": 1}, ValueError, "order must be >= 2, got 1"),
    ({"order": 4}, ValueError, "order must be 2 or 3, got 4"),
    ({"order": True}, TypeError, "order must be an integer"),
    ({"rtol": 0.0}, ValueError, "rtol"),
    ({"atol": math.inf}, ValueError, "atol"),
    ({"atol": "1e-5"}, TypeError, "atol must be a number"),
    ({"max_nfe": 0}, ValueError, "max_nfe must be >= 1, got 0"),
    ({"max_nfe": 1e4}, TypeError, "max_nfe must be an integer"),
]


@pytest.mark.parametrize(("bad", "error", "message"), BAD, ids=[m for *_, m in BAD])
def test_bad_hyper_parameters(bad: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ss.AdaptiveDPMSolver(**bad)


@pytest.mark.parametrize("process", [sk.Interpolant(), sk.VP(schedule=sk.schedules.Cosine())])
def test_infinite_ends_are_refused(process: sk.Process) -> None:
    model = Made(lambda x, t: pytest.fail("the model was called"), process)
    with pytest.raises(ValueError, match="log_snr is infinite at t = 1, where alpha = 0"):
        sk.sample(model, (4, 1), sampler=solver(1e-5), t_start=1.0)
    with pytest.raises(ValueError, match="t must lie in"):
        sk.sample(model, (4, 1), sampler=solver(1e-5), t_end=0.0)
