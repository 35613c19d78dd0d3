"""Exponential integrators: exactness, other writings of the members, orders, starts and accuracy."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sdekit as sk
from sdekit import samplers as ss
from sdekit.sampling.exponential import EXPONENTIAL_TABLEAUS, PREDICTIONS, Semilinear, phi
from sdekit.testing import strategies

F64 = torch.float64
VP = sk.VP()
TOY = sk.GaussianMixture([0.3, 0.7], [-1.4, 0.6], 0.4)
STARTS = torch.tensor([-1.5, -0.7, -0.2, 0.3, 1.1, 2.0], dtype=F64)[:, None]
AB, T, RHO = ss.ExponentialAB, ss.Power(1.0), ss.Karras(1.0)
CLOCKS = [ss.LogSNR(), T, RHO, ss.Angle(), ss.Beta(2.0), ss.FlowTime()]


def run(sampler: ss.Sampler, times: list[float], process: sk.Process = VP) -> Tensor:
    out = sk.sample(
        TOY.denoiser(process), (6, 1), sampler=sampler, grid=times, x_init=STARTS, seed=0
    )
    return out.x


def quantile_map(x: Tensor, t: float, s: float) -> Tensor:
    return TOY.at(VP, s).quantile(TOY.at(VP, t).cdf(x))


def slope(sampler: ss.PlanSampler, start: float = 1.0, steps: int = 128) -> float:
    """Measured order on the sampler's own grid, from so many steps to twice as many."""
    exact, errors = quantile_map(STARTS, start, 1e-2), []
    for n in (steps, 2 * steps):
        x = run(sampler, sampler.grid.times(VP, n, start, 1e-2))
        errors.append((x - exact).abs().max().item())
    return math.log2(errors[0] / errors[1])


class Constant(sk.Denoiser):
    """The model whose reading of one kind is a constant."""

    def __init__(self, process: sk.Process, kind: str, value: float) -> None:
        self.process, self.kind, self.value, self.prediction = process, kind, value, "data"

    def predict(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        if self.kind == "data":
            return torch.full_like(x, self.value)
        if self.kind == "noise":
            return (x - sigma * self.value) / alpha
        if self.kind == "flow":
            return (x - sigma * self.value) / (alpha + sigma)
        length = math.hypot(alpha, sigma)
        return (alpha * x - sigma * length * self.value) / length**2


# ---------------------------------------------------------------------------------------- exactness


@pytest.mark.parametrize("z", [0.0, 1e-6, 0.3, -1.0, 1.99, -1.99, 2.01, -2.01, 7.0, -12.0])
def test_phi_against_its_integral(z: float) -> None:
    import mpmath

    with mpmath.workdps(40):
        for j in range(1, 5):
            at = mpmath.mpf(z)
            exact = mpmath.quad(
                lambda u, j=j: mpmath.exp((1 - u) * at) * u ** (j - 1) / mpmath.factorial(j - 1),  # noqa: B023
                [0, 1],
            )
            assert phi(j, z) == pytest.approx(float(exact), rel=1e-13)
    assert phi(0, z) == pytest.approx(math.exp(z), rel=1e-14)


def exact_members(kind: str) -> list[ss.PlanSampler]:
    members = [AB(k, prediction=kind, clock=c) for k in (1, 2, 4) for c in CLOCKS]
    members += [ss.ExponentialRK(m, kind) for m in EXPONENTIAL_TABLEAUS]
    members += {
        "data": [ss.DPMSolverPP(k) for k in (1, 2, 3)] + [ss.DPMSolverPP(variant="published-3m")],
        "noise": [ss.DPMSolverMultistep(k) for k in (1, 2, 3)] + [ss.DPMSolver(2), ss.DPMSolver(3)],
    }.get(kind, [])
    return members


@pytest.mark.parametrize("kind", PREDICTIONS)
@settings(max_examples=20)
@given(data=st.data())
def test_a_constant_reading_is_solved_exactly(kind: str, data: st.DataObject) -> None:
    """On any process and grid, by every member that interpolates this reading: the solution of dy/dk."""
    process = data.draw(strategies.processes())
    times = data.draw(strategies.grids(process, 1, 6, gap=1e-4))
    sampler = data.draw(st.sampled_from(exact_members(kind)))
    first, last, value = process.node(times[0]), process.node(times[-1]), 0.7
    flow, x = Semilinear(kind), torch.tensor([[first.sigma - 0.3 * first.alpha]], dtype=F64)
    model = Constant(process, kind, value)
    out = sk.sample(model, (1, 1), sampler=sampler, grid=times, x_init=x).x.item()
    y, k = x.item() / flow.scale(first), flow.time(last) - flow.time(first)
    y = math.exp(-k) * (y - value) + value if flow.rate else y + k * value
    # A reading divides by the rates: what rounds at the first node is a part of both of them.
    size = abs(flow.scale(last)) * (
        1 + abs(x.item() / flow.scale(first)) * math.exp(-k * flow.rate)
    )
    assert out == pytest.approx(flow.scale(last) * y, rel=1e-9, abs=1e-9 * size)


@pytest.mark.parametrize("clock", CLOCKS, ids=repr)
@pytest.mark.parametrize(
    ("kind", "tau"), [("data", 0.0), ("data", 1.0), ("noise", 0.0), ("v", 0.0), ("flow", 0.0)]
)
def test_weights_are_the_integrals_of_the_cardinal_functions(
    kind: str, tau: float, clock: ss.TimeGrid
) -> None:
    """The last row of order 4 against adaptive quadrature: a step of two units, uneven places."""
    from scipy.integrate import quad

    nodes = [VP.node_at_log_snr(v) for v in (-5.0, -4.0, -2.2, -1.0, 3.0)]
    plan = AB(4, tau, kind, clock).plan(VP, [node.t for node in nodes])
    places = [clock.clock(VP, node.t) for node in nodes[:4]]
    s, t = nodes[-2:]
    for i, place in enumerate(places):

        def integrand(half: float, i: int = i, place: float = place) -> float:
            at = clock.clock(VP, VP.time_at_log_snr(2 * half))
            value = math.prod((at - p) / (place - p) for j, p in enumerate(places) if j != i)
            rate = 1 + tau**2
            if kind == "v":
                return value * -0.5 / math.cosh(half)
            if kind == "flow":
                return value * -math.exp(half) / (1 + math.exp(half)) ** 2
            if kind == "noise":
                return -value * math.exp(t.half_log_snr - half)
            return value * rate * math.exp(rate * (half - t.half_log_snr))

        scale = {"data": t.alpha, "noise": t.sigma, "v": 1.0, "flow": t.alpha + t.sigma}[kind]
        exact = scale * quad(integrand, s.half_log_snr, t.half_log_snr, epsabs=0, epsrel=1e-13)[0]
        assert plan.rows[-1].p[i] == pytest.approx(exact, rel=1e-11)


# ------------------------------------------------------------------------------- other writings


def test_members_of_order_one_are_ddim() -> None:
    for name in ("log-snr", "uniform", "karras"):
        times = ss.GRIDS[name].times(VP, 12, 1.0, 1e-3)
        ddim = run(ss.DDIM(), times)
        members: list[ss.PlanSampler] = [AB(1, prediction=p) for p in ("data", "noise", "flow")]
        members += [ss.DEIS(1), ss.DEIS(1, RHO), ss.DPMSolverPP(1), ss.DPMSolverMultistep(1)]
        for sampler in members:
            assert (run(sampler, times) - ddim).abs().max() < 1e-12


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_deis_in_rho_is_the_linear_multistep_method(order: int) -> None:
    """Adams-Bashforth in sigma on d = (x - E[x_0 | x]) / sigma, its weights by adaptive quadrature."""
    from scipy.integrate import quad

    edm, model = sk.EDM(), TOY.denoiser(sk.EDM())
    times = ss.Karras().times(edm, 9, 80.0, 0.01)
    start = x = 80 * STARTS
    past: list[tuple[float, Tensor]] = []
    for s, t in pairwise(times):
        past = [(s, (x - model.data(x, s)) / s), *past[: order - 1]]
        for i, (place, slope) in enumerate(past):
            others = [p for j, (p, _) in enumerate(past) if j != i]
            cardinal = quad(
                lambda u, place=place, others=others: math.prod(
                    (u - p) / (place - p) for p in others
                ),
                s,
                t,
                epsabs=0,
                epsrel=1e-13,
            )[0]
            x = x + cardinal * slope
    for sampler in (ss.DEIS(order, RHO), AB(order, prediction="noise", clock=RHO)):
        out = sk.sample(model, (6, 1), sampler=sampler, grid=times, x_init=start).x
        assert (out - x).abs().max() < 1e-9


@pytest.mark.parametrize("order", [2, 3])
def test_dpm_solver_as_printed(order: int) -> None:
    """Lu et al. 2022a, algorithms 1 and 2, written out."""
    model, times = TOY.denoiser(VP), ss.LogSNR().times(VP, 7, 1.0, 1e-2)
    x, expm1 = STARTS, math.expm1
    for s, t in pairwise(VP.node(t) for t in times):
        h, noise = t.half_log_snr - s.half_log_snr, model.noise(x, s.t)
        r1, r2 = (1 / 2, None) if order == 2 else (1 / 3, 2 / 3)
        u = VP.node_at_log_snr(2 * (s.half_log_snr + r1 * h))
        first = u.alpha / s.alpha * x - u.sigma * expm1(r1 * h) * noise
        change = model.noise(first, u.t) - noise
        after = t.alpha / s.alpha * x - t.sigma * expm1(h) * noise
        if r2 is None:
            x = after - t.sigma / (2 * r1) * expm1(h) * change
            continue
        v = VP.node_at_log_snr(2 * (s.half_log_snr + r2 * h))
        second = v.alpha / s.alpha * x - v.sigma * expm1(r2 * h) * noise
        second = second - v.sigma * r2 / r1 * (expm1(r2 * h) / (r2 * h) - 1) * change
        x = after - t.sigma / r2 * (expm1(h) / h - 1) * (model.noise(second, v.t) - noise)
    for sampler in (ss.DPMSolver(order), ss.ExponentialRK(f"{order}s", "noise")):
        assert (run(sampler, times) - x).abs().max() < 1e-12


def test_dpm_solver_pp_2s_as_printed() -> None:
    """Lu et al. 2022b, algorithm 1, written out."""
    model, times = TOY.denoiser(VP), ss.LogSNR().times(VP, 7, 1.0, 1e-2)
    x = STARTS
    for s, t in pairwise(VP.node(t) for t in times):
        h, data = t.half_log_snr - s.half_log_snr, model.data(x, s.t)
        u = VP.node_at_log_snr(s.half_log_snr + t.half_log_snr)
        inner = u.sigma / s.sigma * x - u.alpha * math.expm1(-h / 2) * data
        x = t.sigma / s.sigma * x - t.alpha * math.expm1(-h) * model.data(inner, u.t)
    assert (run(ss.ExponentialRK("2s"), times) - x).abs().max() < 1e-12


def test_two_writings_of_three_predictions() -> None:
    times = ss.Beta(6.0).times(VP, 12, 1.0, 1e-3)
    for a, b in (
        (ss.DPMSolverMultistep(3), AB(3, prediction="noise")),
        (ss.DPMSolverPP(3), AB(3)),
        (ss.DEIS(4), AB(4, prediction="noise", clock=T)),
    ):
        assert (run(a, times) - run(b, times)).abs().max() < 1e-10


def test_velocity_on_equal_steps_has_the_classical_weights() -> None:
    flow, times = sk.Interpolant(), [0.9 - 0.05 * i for i in range(17)]
    model, past, x = TOY.denoiser(flow), list[Tensor](), STARTS
    weights = [
        [1],
        [3 / 2, -1 / 2],
        [23 / 12, -16 / 12, 5 / 12],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    ]
    for s in times[:-1]:
        past = [model.noise(x, s) - model.data(x, s), *past[:3]]
        for weight, velocity in zip(weights[len(past) - 1], past, strict=True):
            x = x - 0.05 * weight * velocity
    assert (run(ss.VelocityAB(4), times, flow) - x).abs().max() < 1e-11


def test_order_one_in_v_turns_by_the_angle() -> None:
    model, times = TOY.denoiser(VP), ss.Angle().times(VP, 9, 1.0, 1e-3)
    x, past = STARTS, list[Tensor]()
    for s, t in pairwise(VP.node(t) for t in times):
        past = [s.alpha * model.noise(x, s.t) - s.sigma * model.data(x, s.t), *past[:1]]
        slope = past[0] if len(past) == 1 else 1.5 * past[0] - 0.5 * past[1]
        x = x + (math.atan2(t.sigma, t.alpha) - math.atan2(s.sigma, s.alpha)) * slope
    # On a grid uniform in its clock Adams-Bashforth has the weights 3/2 and -1/2.
    assert (run(AB(2, prediction="v", clock=ss.Angle()), times) - x).abs().max() < 1e-12


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("clock", [c for c in CLOCKS if c != T], ids=repr)
def test_clocks_of_the_log_snr_know_no_parametrisation(kind: str, clock: ss.TimeGrid) -> None:
    """VP and EDM on the same log-SNR nodes: the same samples but for the scale alpha."""
    times, edm = ss.LogSNR().times(VP, 15, 1.0, 1e-2), sk.EDM(1e-3, 200.0)
    grid = [edm.time_at_log_snr(VP.log_snr(t)) for t in times]
    sampler = AB(3, prediction=kind, clock=clock)
    mine = run(sampler, times) / VP.alpha(times[-1])
    settings = {"sampler": sampler, "grid": grid, "x_init": STARTS / VP.alpha(1.0)}
    theirs = sk.sample(TOY.denoiser(edm), (6, 1), **settings).x
    assert (mine - theirs).abs().max() < 1e-9


# ------------------------------------------------------------------------------------------ orders


SINGLE = "single-step"


@pytest.mark.parametrize(
    ("sampler", "steps"),
    [
        *((AB(k, prediction="v"), 128) for k in (1, 2, 3)),
        (AB(3, clock=T, start=SINGLE), 128),
        (AB(3, clock=ss.Angle()), 128),
        (AB(4, clock=ss.Angle(), start=SINGLE), 128),
        *((AB(k, prediction="noise"), 128) for k in (2, 3)),
        (AB(4, prediction="noise", start=SINGLE), 128),
        (ss.DEIS(2), 128),
        (ss.DEIS(4, start=SINGLE), 128),
        (ss.DEIS(3, RHO), 128),
        *((ss.VelocityAB(k, start=SINGLE), 128) for k in (1, 2, 4)),
        (ss.DPMSolverMultistep(3), 128),
        (ss.DPMSolverPP(variant="published-3m"), 256),
        *((ss.ExponentialRK(m, p), 64) for m in ("2s", "3s") for p in PREDICTIONS),
        *((ss.ExponentialRK("krogstad", p), 64) for p in ("noise", "v", "flow")),
        *((ss.LogSNRRungeKutta(m), n) for m, n in (("euler", 256), ("heun", 64), ("midpoint", 64))),
    ],
    ids=repr,
)
def test_order_on_the_quantile_map(sampler: ss.PlanSampler, steps: int) -> None:
    """Six paths on the two-mode mixture, an octave where the leading term rules and rounding does not."""
    assert slope(sampler, steps=steps) == pytest.approx(sampler.order, abs=0.15)


def test_the_most_accurate_is_of_fourth_order_in_the_end() -> None:
    """On its own grid it falls faster than its order down to 1e-9; on log-SNR the order can be seen."""
    best, errors = AB(4, prediction="v"), []
    for n in (256, 512):
        x = run(best, ss.LogSNR().times(VP, n, 1.0, 1e-2))
        errors.append((x - quantile_map(STARTS, 1.0, 1e-2)).abs().max().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.15)
    assert slope(best) > 4


def test_published_third_order_is_second() -> None:
    """What published code leaves out costs an order: at 256 steps ten times the error."""
    published, corrected = ss.DPMSolverPP(variant="published-3m"), ss.DPMSolverPP(3)
    assert published.order == 2
    times, exact = ss.LogSNR().times(VP, 256, 1.0, 1e-2), quantile_map(STARTS, 1.0, 1e-2)
    wrong, right = ((run(s, times) - exact).abs().max().item() for s in (published, corrected))
    assert wrong > 10 * right


@pytest.mark.parametrize(
    ("make", "order"),
    [
        (lambda start: AB(3, start=start), 3),
        (lambda start: AB(4, start=start), 4),
        (lambda start: AB(4, prediction="v", start=start), 4),
        (lambda start: ss.DEIS(3, start=start), 3),
        (lambda start: ss.VelocityAB(4, start=start), 4),
        (lambda start: ss.DPMSolverMultistep(3, start=start), 3),
        (lambda start: ss.UniPC(3, start=start), 4),
    ],
)
def test_from_the_middle_of_a_path_the_start_makes_the_order(make: Any, order: int) -> None:
    ramp, single = make("ramp"), make("single-step")
    if isinstance(ramp, ss.UniPC):  # which corrects its first step: a ramp costs it one order less
        assert slope(ramp, 0.5) < 3.6
    else:
        assert slope(ramp, 0.5) == pytest.approx(2, abs=0.15)
    assert slope(single, 0.5, 64) == pytest.approx(order, abs=0.15)


# ----------------------------------------------------------------------------- starts, ends, cost


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
def test_a_single_step_start_costs_what_is_said(steps: int) -> None:
    times = ss.LogSNR().times(VP, steps, 1.0, 1e-2)
    for order in (1, 2, 3, 4):
        for sampler in (AB(order, start="single-step"), ss.DEIS(order, start="single-step")):
            alone = min(steps, max(0, order - 2))
            assert sampler.plan(VP, times).nfe == steps + alone * (order - 2)
        assert AB(order).plan(VP, times).nfe == steps
    for p in (1, 2, 3):
        plan = ss.UniPC(p, start="single-step").plan(VP, times)
        assert plan.nfe == steps + 2 * (p == 3)


@pytest.mark.parametrize("steps", [1, 2, 5, 6, 9, 10])
def test_the_last_steps_fall_to_order_one_for_any_number_of_steps(steps: int) -> None:
    times = ss.LogSNR().times(VP, steps, 1.0, 1e-2)
    for sampler in (AB(3, lower_order_final=True), ss.DPMSolverPP(3, lower_order_final=True)):
        used = [len(row.p) for row in sampler.plan(VP, times).rows[1:]]
        assert used == [min(i, 3, steps + 1 - i) for i in range(1, steps + 1)]
    plain = [len(row.p) for row in AB(3).plan(VP, times).rows[1:]]
    assert plain == [min(i, 3) for i in range(1, steps + 1)]
    last = ss.UniPC(3, lower_order_final=True).plan(VP, times).rows[-1]
    assert len(last.p) == 1


# ---------------------------------------------------------------------------------------- accuracy


def test_accuracy_on_the_two_mode_mixture() -> None:
    """RMS distance to the exact end points of 4,096 paths, at most this for so many calls."""
    best = AB(4, prediction="v")
    x = torch.randn(4096, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    exact = quantile_map(x, 1.0, 1e-3)
    for calls, gate in {10: 1.8e-2, 20: 1.6e-3, 50: 2.0e-5, 100: 1.7e-6, 200: 4e-7}.items():
        out = sk.sample(TOY.denoiser(VP), (4096, 1), sampler=best, steps=calls, x_init=x)
        assert out.nfe == calls
        assert (out.x - exact).square().mean().sqrt().item() <= gate


def test_accuracy_on_a_ring() -> None:
    """Median distance to the end points of an adaptive solver of order 8 at 1e-12, in the plane."""
    from scipy.integrate import solve_ivp

    turns = torch.arange(8, dtype=F64) * math.pi / 4
    means = 1.4 * torch.stack([turns.cos(), turns.sin()], 1)
    ring = sk.GaussianMixture([k / 36 for k in range(1, 9)], means, 0.07).denoiser(VP)
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(1), dtype=F64)

    def slope(half: float, y: np.ndarray) -> np.ndarray:
        node, state = VP.node_at_log_snr(2 * half), torch.from_numpy(y).view(-1, 2)
        return (ring.data(node.alpha * state, node.t) - state).numpy().ravel()

    first, last = VP.node(1.0), VP.node(1e-3)
    solved = solve_ivp(
        slope,
        (first.half_log_snr, last.half_log_snr),
        (x / first.alpha).numpy().ravel(),
        method="DOP853",
        rtol=1e-12,
        atol=1e-12,
    )
    exact = last.alpha * torch.from_numpy(solved.y[:, -1]).view(-1, 2)
    for calls, gate in {20: 2.9e-3, 50: 4.3e-5, 200: 1.1e-7}.items():
        out = sk.sample(ring, (64, 2), sampler=AB(4, prediction="v"), steps=calls, x_init=x)
        assert (out.x - exact).norm(dim=1).median().item() <= gate


# --------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: AB(prediction="score"), ValueError, "prediction must be one of 'data', 'noise'"),
        (lambda: AB(clock="log-snr"), TypeError, "clock must be a TimeGrid"),
        (lambda: ss.DEIS(clock=1.0), TypeError, "clock must be a TimeGrid"),
        (lambda: ss.DEIS(5), ValueError, "order must be 1 to 4, got 5"),
        (lambda: ss.VelocityAB(0), ValueError, "order must be >= 1, got 0"),
        (lambda: AB(tau=1.0, prediction="noise"), ValueError, "tau must be 0"),
        (lambda: AB(tau=1.0, start="single-step"), ValueError, 'start must be "ramp" with tau > 0'),
        (lambda: AB(start="warm"), ValueError, "start must be one of 'ramp', 'single-step'"),
        (
            lambda: AB(lower_order_final=1),
            TypeError,
            "lower_order_final must be True or False, got 1",
        ),
        (lambda: ss.UniPC(lower_order_final=0), TypeError, "lower_order_final"),
        (lambda: ss.UniPC(start="warm"), ValueError, "start must be one of"),
        (lambda: ss.DPMSolverPP(variant="published"), ValueError, "did you mean 'published-3m'"),
        (lambda: ss.DPMSolverPP(3, variant="published-3m"), ValueError, "order must be 2"),
        (lambda: ss.DPMSolverMultistep(4), ValueError, "order must be 1 to 3, got 4"),
        (
            lambda: ss.ExponentialRK("4s"),
            ValueError,
            "method must be one of '2s', '3s', 'krogstad'",
        ),
        (lambda: ss.ExponentialRK(prediction="x"), ValueError, "prediction must be one of"),
        (lambda: ss.LogSNRRungeKutta("rk5"), ValueError, "did you mean 'rk4'"),
    ],
)
def test_bad_input(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
