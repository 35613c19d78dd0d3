# Bad input is passed on purpose.
# pyright: reportArgumentType=false
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import mpmath
import pytest
import torch
from helpers import bad_input
from hypothesis import assume, example, given
from hypothesis import strategies as st
from mpmath import mpf
from test_schedules import MP, close, exact_B
from torch import Tensor

from sdekit import EDM, VE, VP, Heat, Interpolant, OrnsteinUhlenbeck, Process, SubVP, processes
from sdekit.elementary import Number, cos, sin
from sdekit.processes import expand
from sdekit.schedules import Angle, Constant, Cosine, Linear, Sigmoid, Tabulated
from sdekit.testing import strategies as sts

ALL = pytest.mark.parametrize("process", processes.ALL, ids=repr)


def exact_curves(process: Process, t: Any) -> tuple[mpf, mpf]:
    """(alpha, sigma^2) from their definitions, in sixty digits."""
    u = MP.mpf(t)
    match process:
        case VP():
            B = exact_B(process.schedule, t)
            return MP.exp(-B / 2), 1 - MP.exp(-B)
        case SubVP():
            B = exact_B(process.schedule, t)
            return MP.exp(-B / 2), (1 - MP.exp(-B)) ** 2
        case VE(low, high, jump):
            return MP.mpf(1), MP.mpf(low) ** 2 * ((MP.mpf(high) / low) ** (2 * u) - (not jump))
        case EDM():
            return MP.mpf(1), u**2
        case Heat():
            return MP.mpf(1), 2 * u
        case OrnsteinUhlenbeck(theta, D, _):
            rate = 2 * MP.mpf(theta)
            growth = (1 - MP.exp(-rate * u)) / rate if theta else u
            return MP.exp(-MP.mpf(theta) * u), MP.mpf(D) ** 2 * growth
        case Interpolant():
            return 1 - u, u**2
    raise AssertionError(f"{process!r} has no reference")


def at_time(domain: str = "closed", count: int = 1) -> st.SearchStrategy[tuple[Any, ...]]:
    """(process, t) or (process, s, t, ...) over all families."""

    def with_times(process: Process) -> st.SearchStrategy[tuple[Any, ...]]:
        drawn = [sts.times(process, domain) for _ in range(count)]
        return st.tuples(st.just(process), *drawn)

    return sts.processes().flatmap(with_times)


def off_the_table(process: Process, t: float) -> bool:
    """Whether beta is smooth at t: a table's jumps at its grid points."""
    schedule = getattr(process, "schedule", None)
    if not isinstance(schedule, Tabulated):
        return True
    position = t * len(schedule.betas)
    return abs(position - round(position)) > 1e-9


# ---- the curves ------------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize(
    "share", [0.0, 1e-12, 1e-9, 1e-6, 1e-3, 0.1, 0.5, 0.9, 0.999, 1 - 1e-9, 1 - 1e-12, 1.0]
)
def test_curves_of_the_catalogue(process: Process, share: float) -> None:
    t = share * process.horizon
    alpha, variance = exact_curves(process, t)
    assert close(process.alpha(t), alpha, 1e-12)
    assert close(process.sigma(t), MP.sqrt(variance), 1e-12)


@given(at_time("closed"))
def test_curves_of_random_processes(drawn: tuple[Process, float]) -> None:
    process, t = drawn
    alpha, variance = exact_curves(process, t)
    assert close(process.alpha(t), alpha, 1e-12)
    assert close(process.sigma(t), MP.sqrt(variance), 1e-12)
    if alpha and variance:
        want = MP.log(alpha**2 / variance)
        assert abs(MP.mpf(process.log_snr(t)) - want) <= 1e-12 * (1 + abs(want))


@given(at_time("closed"))
def test_vp_is_on_the_circle_and_sub_vp_has_its_variance(drawn: tuple[Process, float]) -> None:
    process, t = drawn
    alpha, sigma = process.alpha(t), process.sigma(t)
    if isinstance(process, VP):
        assert abs(alpha**2 + sigma**2 - 1) <= 4.5e-16
    if isinstance(process, SubVP):
        assert abs(sigma - (1 - alpha**2)) <= 1e-15


@given(sts.schedules())
def test_small_times_have_sigma_like_the_root_of_B(schedule: Any) -> None:
    assume(schedule.B(0.0) == 0)
    sigma, B = VP(schedule=schedule).sigma(1e-12), schedule.B(1e-12)
    assert abs(sigma / math.sqrt(B) - 1) <= 1e-15 + B / 4
    assert SubVP(schedule=schedule).sigma(1e-12) == pytest.approx(B, rel=1e-15 + B)


@given(
    sts.processes().flatmap(lambda p: st.tuples(st.just(p), sts.grids(p, 2, 12, "closed", 1e-6)))
)
def test_log_snr_decreases_strictly(drawn: tuple[Process, list[float]]) -> None:
    process, grid = drawn
    values = [process.log_snr(t) for t in grid]
    assert all(a < b for a, b in pairwise(values))


# ---- the SDE ---------------------------------------------------------------------------------------


@given(at_time("readable"))
@example((VP(schedule=Cosine()), 1e-5))
@example((SubVP(schedule=Angle(1.0, 0.0)), 1e-5))
def test_rates_are_those_of_the_curves(drawn: tuple[Process, float]) -> None:
    """alpha' = f alpha and (sigma^2)' = 2 f sigma^2 + g^2, against automatic differentiation."""
    process, t = drawn
    assume(off_the_table(process, t))
    f, g2 = process.rates(t)
    assert (f, g2) == pytest.approx(Process._rates(process, t), rel=1e-10, abs=0)
    assert g2 >= 0
    time = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    log_snr = torch.as_tensor(process._log_snr(time))
    (slope,) = torch.autograd.grad(log_snr, time)
    assert g2 == pytest.approx(-(process.sigma(t) ** 2) * slope.item(), rel=1e-10)
    assert process.diffusion(t) == pytest.approx(math.sqrt(g2), rel=1e-15)


@given(at_time("readable"))
def test_slopes_are_those_of_the_curves(drawn: tuple[Process, float]) -> None:
    """Against numerical differentiation of the definitions, in sixty digits."""
    process, t = drawn
    assume(off_the_table(process, t))
    alpha, sigma = process.slopes(t)
    assert close(alpha, MP.diff(lambda u: exact_curves(process, u)[0], t), 1e-12)
    assert close(sigma, MP.diff(lambda u: MP.sqrt(exact_curves(process, u)[1]), t), 1e-12)
    f, g2 = process.rates(t)
    (exact_alpha, variance) = exact_curves(process, t)
    exact_f = MP.diff(lambda u: exact_curves(process, u)[0], t) / exact_alpha
    growth = MP.diff(lambda u: exact_curves(process, u)[1], t)
    assert close(f, exact_f, 1e-12)
    assert close(g2, growth - 2 * exact_f * variance, 1e-12)


def test_slopes_at_the_ends_where_the_rates_are_not_finite() -> None:
    assert Interpolant().slopes(1.0) == Interpolant().slopes(0.0) == (-1.0, 1.0)
    assert Interpolant().rates(1.0) == (-math.inf, math.inf)
    assert SubVP(0.5, 3.0).slopes(0.0) == (-0.25, 0.5)
    assert EDM().slopes(0.0) == (0.0, 1.0)
    assert VP().slopes(0.0) == (-0.05, math.inf)


def test_drift_is_linear_in_the_state_and_keeps_its_dtype() -> None:
    process, x = OrnsteinUhlenbeck(theta=2.0), torch.tensor([[1.0, -3.0]])
    assert torch.equal(process.drift(x, 0.5), -2 * x)
    times = torch.tensor([0.5], dtype=torch.float64)
    assert torch.equal(process.drift(x, times), -2 * x)
    assert process.drift(x, times).dtype == torch.float32
    assert VP().drift(x, 0.25) == pytest.approx(-0.5 * (0.1 + 19.9 * 0.25) * x)


# ---- the clock -------------------------------------------------------------------------------------


@ALL
def test_clock_and_its_inverse(process: Process) -> None:
    starts_at_data = process.sigma(0.0) == 0
    tabulated = isinstance(getattr(process, "schedule", None), (Tabulated, Sigmoid))
    for share in (1e-12, 1e-9, 1e-5, 1e-2, 0.1, 0.5, 0.9, 0.99, 1.0):
        t = min(share * process.horizon, process.t_max)
        value = process.log_snr(t)
        back = process.time_at_log_snr(value)
        assert process.log_snr(back) == pytest.approx(value, rel=1e-13, abs=1e-13)
        if starts_at_data:  # elsewhere log_snr(t) hardly moves at small t
            assert back == pytest.approx(t, rel=1e-9 if tabulated else 1e-13)


@given(at_time("readable"))
def test_clock_inverse_of_random_processes(drawn: tuple[Process, float]) -> None:
    process, t = drawn
    value = process.log_snr(t)
    back = process.time_at_log_snr(value)
    tabulated = isinstance(getattr(process, "schedule", None), (Tabulated, Sigmoid))
    slope = process.rates(t)[1] / process.sigma(t) ** 2  # -d log_snr / dt
    conditioning = 1e-15 * (1 + abs(value)) / (slope * t)
    assert back == pytest.approx(t, rel=(1e-9 if tabulated else 1e-13) + conditioning)
    vector = process.time_at_log_snr(torch.tensor(value, dtype=torch.float64).expand(3))
    assert vector.tolist() == pytest.approx([back] * 3, rel=1e-13 + conditioning)


@ALL
def test_clock_refuses_values_it_never_shows(process: Process) -> None:
    low, high = process.log_snr(process.horizon), process.log_snr(0.0)
    assert process.time_at_log_snr(low) == pytest.approx(process.horizon, rel=1e-12)
    assert process.time_at_log_snr(high) == pytest.approx(0.0, abs=1e-12)
    outside = [low - 0.5] * math.isfinite(low) + [high + 0.5] * math.isfinite(high) + [math.nan]
    for value in outside:
        for given_value in (value, torch.tensor([value], dtype=torch.float64)):
            with pytest.raises(ValueError, match="log_snr must lie in"):
                process.time_at_log_snr(given_value)


@pytest.mark.parametrize(
    "process",
    [
        VP(schedule=Cosine()),
        VP(schedule=Angle(0.95, 0.0)),
        SubVP(schedule=Cosine()),
        Interpolant(),
        VP(0.1, 5_000.0),
    ],
    ids=repr,
)
def test_without_signal_at_the_end_models_are_read_down_to_log_snr_minus_20(
    process: Process,
) -> None:
    assert process.alpha(process.horizon) == 0
    assert process.t_max < process.horizon
    assert process.log_snr(process.t_max) == pytest.approx(-20, abs=1e-10)
    process.check_readable(process.horizon)
    with pytest.raises(ValueError, match="t must lie in"):
        process.check_readable((process.t_max + process.horizon) / 2)


def test_readable_times() -> None:
    assert (VP().t_min, VP().t_max) == (1e-5, 1.0)
    assert (EDM().t_min, EDM().t_max, EDM().horizon) == (0.002, 80.0, 80.0)
    assert Heat(horizon=3.0).t_min == pytest.approx(3e-5)
    last = VP.from_betas([0.1, 0.2, 1.0], zero_terminal_snr=True)
    assert last.t_max == pytest.approx(2 / 3)
    assert math.isfinite(last.log_snr(last.t_max))


# ---- transitions -----------------------------------------------------------------------------------


def exact_transition(process: Process, s: float, t: float) -> tuple[mpf, mpf]:
    (alpha_s, var_s), (alpha_t, var_t) = exact_curves(process, s), exact_curves(process, t)
    scale = alpha_t / alpha_s
    return scale, MP.sqrt(abs(var_t - scale**2 * var_s))


@given(at_time("closed", 2))
@example((VP(), 0.5, 0.5 + 1e-12))
@example((Interpolant(), 0.5, 1 - 1e-12))
@example((VP(schedule=Cosine()), 0.5, 1.0))
@example((OrnsteinUhlenbeck(theta=300.0, horizon=10.0), 1e-3, 10.0))
@example((VP.from_betas([0.998] * 300), 0.0, 1.0))
@example((VE(1.0, 1.0 + 1e-9), 0.25, 0.5))
def test_transition_and_its_increment(drawn: tuple[Process, float, float]) -> None:
    process, s, t = drawn
    s, t = min(s, t), max(s, t)
    assume(s < t)
    rel = 1e-13
    if not off_the_table_between(process, s, t):
        rel += 4e-16 / (t - s)  # the grid point i/N between them is itself a rounded number
    (scale, std), want = process.transition(s, t), exact_transition(process, s, t)
    assert close(scale, want[0], rel), (scale, want)
    assert close(std, want[1], rel), (std, want)
    tensors = process.transition(torch.tensor([s, s], dtype=torch.float64), t)
    for column, value in zip(tensors, (scale, std), strict=True):
        assert column.tolist() == pytest.approx([value] * 2, rel=rel + 1e-14, abs=0)


def off_the_table_between(process: Process, s: float, t: float) -> bool:
    schedule = getattr(process, "schedule", None)
    n = len(schedule.betas) if isinstance(schedule, Tabulated) else 0
    return math.ceil(s * n) == math.ceil(t * n)


@given(at_time("closed", 3))
def test_transitions_compose(drawn: tuple[Any, ...]) -> None:
    process, (r, s, t) = drawn[0], sorted(drawn[1:])
    (a1, v1), (a2, v2), (a, v) = (process.transition(*pair) for pair in ((r, s), (s, t), (r, t)))
    assert a1 * a2 == pytest.approx(a, rel=2e-14, abs=1e-300)
    assert math.hypot(a2 * v1, v2) == pytest.approx(v, rel=1e-13, abs=1e-15 * process.sigma(t))


@given(at_time("closed"))
def test_transition_to_the_same_time_is_the_identity(drawn: tuple[Process, float]) -> None:
    process, t = drawn
    assert process.transition(t, t) == (1.0, 0.0)
    time = torch.tensor([t, t], dtype=torch.float64)
    scale, std = process.transition(time, time)
    assert torch.equal(scale, torch.ones_like(time))
    assert torch.equal(std, torch.zeros_like(time))
    assert process.delta_log_snr(t, t) == 0.0


@ALL
def test_transition_vanishes_with_the_interval(process: Process) -> None:
    s = 0.4 * process.horizon
    stds = [process.transition(s, s + process.horizon * 10.0**-k)[1] for k in range(1, 13)]
    assert all(later < earlier for earlier, later in pairwise(stds))
    assert 0 < stds[-1] < 1e-4 * stds[0]


@ALL
def test_increments_of_the_clock_are_antisymmetric(process: Process) -> None:
    s, t = 0.3 * process.horizon, process.t_max
    change = process.delta_log_snr(s, t)
    assert change == pytest.approx(process.log_snr(t) - process.log_snr(s), rel=1e-12)
    assert process.delta_log_snr(t, s) == -change
    times = torch.tensor([s, t, t], dtype=torch.float64)
    column = process.delta_log_snr(times, times.roll(1))
    assert column.tolist() == pytest.approx([change, -change, 0.0], rel=1e-13, abs=0)
    if process.alpha(process.horizon) == 0:
        assert process.delta_log_snr(process.horizon, s) == math.inf


# ---- kinds of time ---------------------------------------------------------------------------------


@ALL
def test_floats_and_tensors_of_any_shape_agree(process: Process) -> None:
    times = process.horizon * torch.linspace(0, 1, 37, dtype=torch.float64)
    for name in ("alpha", "sigma", "log_snr"):
        method = getattr(process, name)
        column = method(times)
        assert torch.equal(column, torch.stack([method(t) for t in times]))
        assert torch.equal(column[3:5], method(times[3:5]))
        # The C library and torch round elementary functions differently in the last place.
        scale = 1 if name == "log_snr" else 0
        floats = [method(t) for t in times.tolist()]
        assert column.tolist() == pytest.approx(floats, rel=2e-15, abs=4e-15 * scale)
        assert isinstance(method(0), float)


@ALL
def test_float32_is_float64_rounded(process: Process) -> None:
    times = (process.horizon * torch.linspace(0, 1, 37)).float()
    wide = times.double().clamp(max=process.horizon)
    for name in ("alpha", "sigma", "log_snr"):
        method = getattr(process, name)
        assert torch.equal(method(times), method(wide).float())
    scale, std = process.transition(times[:-1], times[1:])
    wide_scale, wide_std = process.transition(wide[:-1], wide[1:])
    assert torch.equal(scale, wide_scale.float())
    assert torch.equal(std, wide_std.float())


@given(at_time("closed"), sts.event_shapes())
def test_perturb_is_the_formula(drawn: tuple[Process, float], event: tuple[int, ...]) -> None:
    process, t = drawn
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 3, *event, generator=generator, dtype=torch.float64)
    want = process.alpha(t) * x0 + process.sigma(t) * noise
    assert torch.equal(process.perturb(x0, t, noise), want)
    column = process.perturb(x0, torch.full((3,), t, dtype=torch.float64), noise)
    assert torch.allclose(column, want, rtol=1e-14, atol=1e-14 * process.sigma(process.horizon))
    assert process.perturb(x0.float(), t, noise.float()).dtype == torch.float32


# ---- priors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("process", "std"),
    [
        (VP(), 1.0),
        (VP(schedule=Angle()), 1.0),
        (SubVP(), 1.0),
        (VE(0.01, 50.0), math.sqrt(50.0**2 - 0.01**2)),
        (VE(0.01, 50.0, start_at_sigma_min=True), 50.0),
        (EDM(sigma_max=10.0), 10.0),
        (Heat(horizon=3.0), math.sqrt(6.0)),
        (OrnsteinUhlenbeck(theta=0.5, D=3.0), 3.0),
        (OrnsteinUhlenbeck(theta=0.0, D=3.0, horizon=4.0), 6.0),
        (Interpolant(), 1.0),
    ],
    ids=repr,
)
def test_prior(process: Process, std: float) -> None:
    assert process.prior.std == pytest.approx(std, rel=1e-14)


@given(sts.event_shapes())
def test_prior_density_and_draws(event: tuple[int, ...]) -> None:
    prior = EDM(sigma_max=3.0).prior
    x = prior.sample((4, *event), torch.Generator().manual_seed(1), torch.float64)
    want = torch.distributions.Normal(0 * x, 3.0).log_prob(x).reshape(4, -1).sum(1)
    assert torch.allclose(prior.log_prob(x), want, rtol=1e-14)
    again = prior.sample((4, *event), torch.Generator().manual_seed(1), torch.float64)
    assert torch.equal(x, again)
    assert prior.sample((2, *event)).shape == (2, *event)


def test_prior_draws_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    VP().prior.sample((3,))
    assert torch.equal(torch.get_rng_state(), before)


# ---- discrete chains -------------------------------------------------------------------------------


@given(sts.betas(60))
def test_a_chain_comes_back_from_its_process(betas: list[float]) -> None:
    back = VP.from_betas(betas).to_betas(len(betas)).tolist()
    assert back == pytest.approx(betas, rel=1e-13, abs=0)


def test_a_chain_with_zero_terminal_signal_comes_back() -> None:
    betas = [1e-4, 0.3, 1.0]
    process = VP.from_betas(betas, zero_terminal_snr=True)
    assert process.to_betas(3).tolist() == pytest.approx(betas, rel=1e-13)
    assert (process.alpha(1.0), process.sigma(1.0)) == (0.0, 1.0)


@given(sts.betas(60))
def test_alpha_bar_of_the_chain_at_every_grid_point(betas: list[float]) -> None:
    process, product = VP.from_betas(betas), MP.mpf(1)
    for i, beta in enumerate(betas):
        product *= 1 - MP.mpf(beta)
        t = (i + 1) / len(betas)
        assert close(process.alpha(t), MP.sqrt(product), 1e-13)
        assert close(process.sigma(t), MP.sqrt(1 - product), 1e-13)


# ---- processes of two methods ----------------------------------------------------------------------


@dataclass(frozen=True)
class PlainEDM(Process):
    """EDM as a user would write it."""

    @property
    def horizon(self) -> float:
        return 80.0

    @property
    def t_min(self) -> float:
        return 0.002

    def _alpha(self, t: Number) -> Number:
        return 1.0 + 0 * t

    def _sigma(self, t: Number) -> Number:
        return t


@dataclass(frozen=True)
class Trigonometric(Process):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2), which is the cosine schedule without an offset."""

    def _alpha(self, t: Number) -> Number:
        return sin(0.5 * math.pi * (1 - t))

    def _sigma(self, t: Number) -> Number:
        return sin(0.5 * math.pi * t)


@dataclass(frozen=True)
class Slower(Process):
    """alpha = cos(t): does not reach zero."""

    def _alpha(self, t: Number) -> Number:
        return cos(t)

    def _sigma(self, t: Number) -> Number:
        return sin(t)


@pytest.mark.parametrize(
    ("own", "twin"),
    [
        (PlainEDM(), EDM()),
        (Trigonometric(), VP(schedule=Cosine(0.0))),
        (Slower(), VP(schedule=Angle(1.0, math.cos(1.0)))),
    ],
    ids=lambda p: type(p).__name__,
)
def test_a_process_of_two_methods_has_the_rest(own: Process, twin: Process) -> None:
    assert own.t_max == pytest.approx(twin.t_max, rel=1e-13)
    assert own.prior.std == own.sigma(own.horizon)
    for share in (1e-3, 0.1, 0.5, 0.9):
        t = share * own.horizon
        assert own.rates(t) == pytest.approx(twin.rates(t), rel=1e-12, abs=1e-15)
        assert own.slopes(t) == pytest.approx(twin.slopes(t), rel=1e-12, abs=1e-15)
        assert own.log_snr(t) == pytest.approx(twin.log_snr(t), rel=1e-12, abs=1e-13)
        assert own.time_at_log_snr(own.log_snr(t)) == pytest.approx(t, rel=1e-13)
        s = 0.4 * t
        assert own.transition(s, t) == pytest.approx(twin.transition(s, t), rel=1e-13)
        assert own.transition(t, t) == (1.0, 0.0)
        times = torch.tensor([t, s], dtype=torch.float64)
        for one, two in zip(own.rates(times), twin.rates(times), strict=True):
            assert torch.allclose(torch.as_tensor(one), torch.as_tensor(two), rtol=1e-12)
    with pytest.raises(ValueError, match="log_snr"):
        own.time_at_log_snr(math.nan if own.alpha(own.horizon) == 0 else -30.0)


# ---- bad input -------------------------------------------------------------------------------------

X = torch.zeros(4, 2)
BAD: list[tuple[str, Any, type[Exception], list[str]]] = [
    ("t above T", lambda: VP().alpha(1.5), ValueError, ["t must", "[0, 1]", "1.5"]),
    ("t below 0", lambda: VP().sigma(-1e-3), ValueError, ["t must", "[0, 1]", "-0.001"]),
    ("t below 0, float32", lambda: VP().sigma(torch.tensor([-1e-8])), ValueError, ["t must", "-1e-08"]),
    ("t nan", lambda: VE().sigma(math.nan), ValueError, ["t must", "nan"]),
    ("t nan tensor", lambda: VE().sigma(torch.tensor(math.nan)), ValueError, ["t must", "nan"]),
    ("t bool", lambda: VP().alpha(True), TypeError, ["t must", "True"]),
    ("t bool tensor", lambda: VP().alpha(torch.tensor(True)), TypeError, ["t must", "bool"]),
    ("t text", lambda: VP().alpha("0.5"), TypeError, ["t must", "'0.5'"]),
    ("t None", lambda: VP().log_snr(None), TypeError, ["t must", "None"]),
    ("t integer tensor", lambda: VP().alpha(torch.tensor([3])), TypeError, ["int64", "divide", "N"]),
    ("t matrix", lambda: VP().alpha(torch.zeros(2, 1)), ValueError, ["t must", "(2, 1)"]),
    ("t (n, 1)", lambda: VP().perturb(X, torch.ones(4, 1), X), ValueError, ["t must", "(4, 1)"]),
    ("t too long", lambda: VP().perturb(X, torch.ones(5), X), ValueError, ["(4,)", "(5,)"]),
    ("t (n, 1) expand", lambda: expand(torch.ones(4, 1), X), ValueError, ["(4,)", "(4, 1)"]),
    ("g at 0", lambda: VP().diffusion(0.0), ValueError, ["[1e-05, 1]", "0.0"]),
    ("f at 0", lambda: VP().drift(X, 0), ValueError, ["[1e-05, 1]", "got 0"]),
    ("f at alpha 0", lambda: Interpolant().drift(X, 1.0), ValueError, ["0.99", "got 1.0"]),
    ("EDM t", lambda: EDM().diffusion(1e-3), ValueError, ["[0.002, 80]", "0.001"]),
    ("noise shape", lambda: VP().perturb(X, 0.5, X[:1]), ValueError, ["noise", "(4, 2)", "(1, 2)"]),
    ("x0 int", lambda: VP().perturb(X.long(), 0.5, X), TypeError, ["x0", "int64", "scale"]),
    ("backwards", lambda: VP().transition(0.5, 0.2), ValueError, ["t_from", "0.5", "0.2"]),
    ("t_from outside", lambda: VP().transition(-0.5, 0.2), ValueError, ["[0, 1]", "-0.5"]),
    ("betas reversed", lambda: VP(5.0, 1.0), ValueError, ["beta_min", "5.0 > 1.0"]),
    ("negative beta", lambda: VP(-1.0), ValueError, ["beta_min", "-1.0"]),
    ("infinite beta", lambda: SubVP(0.1, math.inf), ValueError, ["beta_max", "inf"]),
    ("bool beta", lambda: VP(True), TypeError, ["beta_min", "True"]),
    ("both", lambda: VP(0.1, schedule=Linear()), ValueError, ["beta_min", "schedule"]),
    ("named schedule", lambda: VP(schedule="cosine"), TypeError, ["schedule", "str"]),
    ("sigma_min 0", lambda: VE(0.0), ValueError, ["sigma_min", "0.0"]),
    ("sigmas equal", lambda: VE(1.0, 1.0), ValueError, ["sigma_min", "1.0"]),
    ("sigmas reversed", lambda: EDM(100.0), ValueError, ["sigma_min", "80", "100.0"]),
    ("sigma_max inf", lambda: EDM(sigma_max=math.inf), ValueError, ["sigma_max", "inf"]),
    ("horizon 0", lambda: Heat(0.0), ValueError, ["horizon", "0.0"]),
    ("horizon nan", lambda: Heat(math.nan), ValueError, ["horizon", "nan"]),
    ("theta", lambda: OrnsteinUhlenbeck(theta=-1.0), ValueError, ["theta", "-1.0"]),
    ("D", lambda: OrnsteinUhlenbeck(D=0), ValueError, ["D must", "0"]),
    ("no betas", lambda: VP.from_betas([]), ValueError, ["betas", "(0,)"]),
    ("beta 1", lambda: VP.from_betas([0.1, 1.0]), ValueError, ["betas[1]", "zero_terminal_snr"]),
    ("steps 0", lambda: VP().to_betas(0), ValueError, ["n must", "0"]),
    ("steps 10.0", lambda: VP().to_betas(10.0), TypeError, ["n must", "10.0"]),
    ("steps True", lambda: VP().to_betas(True), TypeError, ["n must", "True"]),
]  # fmt: skip


test_bad_input = bad_input(BAD)


def test_integers_of_python_and_numpy_floats_are_times(toy: Any) -> None:
    import numpy as np

    assert VP().alpha(0) == 1.0
    assert VP().alpha(np.float64(0.5)) == VP().alpha(0.5)
    assert VP().to_betas(np.int64(3)).shape == (3,)
    empty: Tensor = torch.empty(0, dtype=torch.float64)
    assert VP(schedule=Constant(1.0)).alpha(empty).shape == (0,)
    assert mpmath.mp.dps == 15  # the references leave the common context alone
