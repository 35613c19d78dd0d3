# Bad input is passed on purpose.
# pyright: reportArgumentType=false
import math
from typing import Any

import mpmath
import pytest
import torch
from helpers import bad_input
from hypothesis import assume, example, given
from hypothesis import strategies as st
from mpmath import mpf

from sdekit import schedules
from sdekit.schedules import (
    Angle,
    Constant,
    Cosine,
    Linear,
    Quadratic,
    Schedule,
    Sigmoid,
    Tabulated,
)
from sdekit.testing import strategies as sts

#: Sixty digits, in a context of its own: the subtractions below lose up to twenty-five.
MP = mpmath.mp.clone()
MP.dps = 60

UNIT_TIMES = st.one_of(
    st.floats(0.0, 1.0),
    sts.log_uniform(1e-12, 1.0),
    sts.log_uniform(1e-12, 1.0).map(lambda u: 1.0 - u),
)


def exact_B(schedule: Schedule, t: Any) -> mpf:
    """The integral of beta from its definition, in sixty digits."""
    u = MP.mpf(t)
    match schedule:
        case Linear(low, high):
            return MP.mpf(low) * u + (MP.mpf(high) - low) * u**2 / 2
        case Constant(rate):
            return MP.mpf(rate) * u
        case Quadratic(low, high):
            a, b = MP.sqrt(low), MP.sqrt(high)
            return ((a + (b - a) * u) ** 3 - a**3) / (3 * (b - a)) if high > low else a**2 * u
        case Sigmoid(low, high, start, end):
            slope = MP.mpf(end) - start
            gain = MP.log(1 + MP.exp(start + slope * u)) - MP.log(1 + MP.exp(start))
            return MP.mpf(low) * u + (MP.mpf(high) - low) / slope * gain
        case Cosine(s):
            angle, first = ((v + s) / (1 + MP.mpf(s)) * MP.pi / 2 for v in (u, MP.mpf(0)))
            return -2 * MP.log(MP.cos(angle) / MP.cos(first)) if t < 1 else MP.inf
        case Angle(high, low):
            first, last = MP.acos(high), MP.acos(low)
            return -2 * MP.log(MP.cos(first + (last - first) * u)) if t < 1 or low else MP.inf
        case Tabulated(betas, _):
            cell = min(max(int(MP.ceil(u * len(betas))) - 1, 0), len(betas) - 1)
            steps = [-MP.log(1 - MP.mpf(b)) for b in betas[: cell + 1]]
            return MP.fsum(steps[:cell]) + (u * len(betas) - cell) * steps[cell]
    raise AssertionError(f"{schedule!r} has no reference")


def close(got: Any, want: Any, rel: float) -> bool:
    """Within `rel` of the reference; 1e-50 admits its own rounding where it is zero."""
    if MP.isinf(want):
        return got == want
    return abs(MP.mpf(got) - want) <= rel * abs(want) + MP.mpf(1e-50)


@given(sts.schedules(), UNIT_TIMES)
@example(Cosine(), 1 - 1e-12)
@example(Cosine(0.0), 1e-12)
@example(Quadratic(), 1e-12)
@example(Sigmoid(0.1, 20.0, -18.0, 10.0), 1e-12)
@example(Angle(0.95, 0.0), 1.0)
def test_integral_keeps_twelve_digits_at_both_ends(schedule: Schedule, t: float) -> None:
    want = exact_B(schedule, t)
    assert close(schedule.B(t), want, 1e-12), (schedule, t, schedule.B(t), want)


@given(sts.schedules(), UNIT_TIMES, UNIT_TIMES)
@example(Cosine(), 0.5, 0.5 + 1e-12)
@example(Linear(), 0.999, 1.0)
@example(Angle(1.0, 0.0), 1e-12, 2e-12)
def test_increments_keep_their_digits_when_times_are_close(
    schedule: Schedule, s: float, t: float
) -> None:
    s, t = min(s, t), max(s, t)
    assume(s < t)
    rel = 1e-12
    if isinstance(schedule, Tabulated):
        n = len(schedule.betas)
        if math.ceil(s * n) != math.ceil(t * n):
            rel += 4e-16 / (t - s)  # the grid point i/N between them is itself a rounded number
    with MP.workdps(90):
        want = exact_B(schedule, t) - exact_B(schedule, s)
    assert close(schedule.delta_B(s, t), want, rel)


@given(sts.schedules(), UNIT_TIMES)
def test_rate_is_the_derivative_of_the_integral(schedule: Schedule, t: float) -> None:
    if isinstance(schedule, Tabulated):
        position = t * len(schedule.betas)
        assume(abs(position - round(position)) > 1e-9)  # the rate jumps at grid points
    assume(1e-12 <= t <= 1 - 1e-6)
    time = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(torch.as_tensor(schedule.B(time)), time)
    assert schedule.beta(t) >= 0
    assert schedule.beta(t) == pytest.approx(slope.item(), rel=1e-10)


@given(sts.schedules(), UNIT_TIMES)
def test_inverse_of_the_integral(schedule: Schedule, t: float) -> None:
    b = float(schedule.B(t))
    assume(math.isfinite(b) and b > schedule.B(0.0))
    back = schedule.inverse(b)
    # Rounding b by an ulp moves t by ulp(b) / beta, which no inverse can undo.
    conditioning = 4e-16 * b / (schedule.beta(t) * t)
    rel = 1e-13 if not isinstance(schedule, (Sigmoid, Tabulated)) else 1e-9
    assert back == pytest.approx(t, rel=rel + 4 * conditioning)
    tensor = schedule.inverse(torch.tensor([b, b], dtype=torch.float64))
    assert tensor.tolist() == pytest.approx([t, t], rel=rel + 4 * conditioning)


class Cubic(Schedule):
    """beta = 12 t^2: what a user writes, two methods."""

    def beta(self, t: Any) -> Any:
        return 12 * t * t

    def B(self, t: Any) -> Any:
        return 4 * t**3


@pytest.mark.parametrize("t", [1e-4, 0.3, 1.0])
def test_a_schedule_of_two_methods_has_the_rest(t: float) -> None:
    assert Cubic().inverse(4 * t**3) == pytest.approx(t, rel=1e-14)
    assert Cubic().delta_B(0.5 * t, t) == pytest.approx(3.5 * t**3, rel=1e-14)


@given(
    st.integers(1, 300), st.integers(0, 2**31), st.sampled_from(["any", "increasing", "decreasing"])
)
def test_table_is_hit_at_every_grid_point(n: int, seed: int, order: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    logs = math.log(1e-6) + math.log(0.999e6) * torch.rand(
        n, generator=generator, dtype=torch.float64
    )
    betas = logs.exp()
    if order != "any":
        betas = betas.sort(descending=order == "decreasing").values
    if order == "decreasing":
        betas = betas.clamp(max=0.9)  # from above 0.9 it would be taken for alpha_bar
    schedule = Tabulated(betas)
    times = [(i + 1) / n for i in range(n)]
    want, total = [], MP.mpf(0)
    for beta in betas.tolist():
        total -= MP.log(1 - MP.mpf(beta))
        want.append(total)
    assert all(close(schedule.B(t), w, 1e-13) for t, w in zip(times, want, strict=True))
    rates = torch.as_tensor(schedule.beta(torch.tensor(times, dtype=torch.float64)))
    assert torch.equal(rates, n * -torch.log1p(-betas))


def test_zero_terminal_snr_reaches_alpha_zero_in_the_last_cell_only() -> None:
    schedule = Tabulated([0.1, 0.2, 1.0], zero_terminal_snr=True)
    assert schedule.B(1.0) == math.inf
    assert schedule.B(2 / 3) == pytest.approx(-math.log(0.9 * 0.8), rel=1e-15)
    assert schedule.delta_B(1 / 3, 2 / 3) == pytest.approx(-math.log(0.8), rel=1e-15)
    assert schedule.delta_B(1 / 3, 1.0) == math.inf
    assert schedule.inverse(math.inf) == 1.0


@pytest.mark.parametrize("schedule", schedules.ALL, ids=repr)
def test_floats_and_tensors_agree(schedule: Schedule) -> None:
    times = torch.linspace(0.001, 0.999, 101, dtype=torch.float64)
    for name in ("beta", "B"):
        method = getattr(schedule, name)
        column = torch.as_tensor(method(times))
        assert torch.equal(column, torch.stack([torch.as_tensor(method(t)) for t in times]))
        floats = [method(t) for t in times.tolist()]
        # The C library and torch round elementary functions differently in the last place.
        assert column.tolist() == pytest.approx(floats, rel=2e-15, abs=0)


@pytest.mark.parametrize(
    ("name", "schedule", "alpha_bar"),
    [
        ("linear 1e-4 to 0.02, 1000", [1e-4 + i * 0.0199 / 999 for i in range(1000)], 4.0358e-5),
        ("linear 1e-4 to 0.2, 200", [1e-4 + i * 0.1999 / 199 for i in range(200)], 4.599e-10),
        ("alpha = 0.9999 - 1.99e-5 i", [1e-4 + i * 1.99e-5 for i in range(1000)], 4.077e-5),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_published_tables_end_where_they_should(
    name: str, schedule: list[float], alpha_bar: float
) -> None:
    assert math.exp(-Tabulated(schedule).B(1.0)) == pytest.approx(alpha_bar, rel=2e-4), name


BAD: list[tuple[str, Any, type[Exception], list[str]]] = [
    ("negative rate", lambda: Linear(-0.1, 20), ValueError, ["beta_min", "-0.1"]),
    ("zero rate", lambda: Linear(0.0, 20), ValueError, ["beta_min", "0.0"]),
    ("infinite rate", lambda: Linear(0.1, math.inf), ValueError, ["beta_max", "inf"]),
    ("nan rate", lambda: Quadratic(math.nan), ValueError, ["beta_min", "nan"]),
    ("rates reversed", lambda: Linear(5.0, 1.0), ValueError, ["beta_min", "beta_max", "5.0 > 1.0"]),
    ("rates reversed, quad", lambda: Quadratic(5.0, 1.0), ValueError, ["beta_min", "5.0 > 1.0"]),
    ("bool rate", lambda: Linear(True, 20), TypeError, ["beta_min", "True"]),
    ("text rate", lambda: Constant("10"), TypeError, ["rate", "'10'"]),
    ("zero constant", lambda: Constant(0), ValueError, ["rate", "0"]),
    ("cosine offset", lambda: Cosine(-0.01), ValueError, ["s must", "-0.01"]),
    ("signal above 1", lambda: Angle(1.2, 0.1), ValueError, ["signal_max", "1.2"]),
    ("signals reversed", lambda: Angle(0.3, 0.6), ValueError, ["signal_min", "0.6"]),
    ("sigmoid reversed", lambda: Sigmoid(start=3, end=-3), ValueError, ["end - start", "-6"]),
    ("sigmoid start", lambda: Sigmoid(start=None), TypeError, ["start", "None"]),
    ("sigmoid nan", lambda: Sigmoid(end=math.nan), ValueError, ["end", "nan"]),
    ("no betas", lambda: Tabulated([]), ValueError, ["betas", "(0,)"]),
    ("matrix of betas", lambda: Tabulated(torch.ones(2, 2)), ValueError, ["betas", "(2, 2)"]),
    ("one number", lambda: Tabulated(0.5), TypeError, ["betas", "0.5"]),
    ("beta of 0", lambda: Tabulated([0.1, 0.0]), ValueError, ["betas[1] = 0.0"]),
    ("negative beta", lambda: Tabulated([-0.1, 0.1]), ValueError, ["betas[0] = -0.1"]),
    ("beta of 1", lambda: Tabulated([0.1, 1.0]), ValueError, ["betas[1] = 1", "zero_terminal_snr"]),
    ("early beta of 1", lambda: Tabulated([1.0, 0.5], True), ValueError, ["betas[0] = 1"]),
    ("beta above 1", lambda: Tabulated([0.1, 1.5], True), ValueError, ["betas[1] = 1.5"]),
    ("nan beta", lambda: Tabulated([0.1, math.nan]), ValueError, ["betas[1] = nan"]),
    ("alpha_bar", lambda: Tabulated([0.99, 0.5, 0.1]), ValueError, ["betas", "alpha_bar"]),
]


test_bad_input = bad_input(BAD)


def test_non_monotone_betas_are_fine() -> None:
    assert Tabulated([0.3, 0.1, 0.2]).B(1.0) == pytest.approx(-math.log(0.7 * 0.9 * 0.8))
