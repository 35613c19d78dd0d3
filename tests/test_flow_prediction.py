"""Exponential integrators in flow prediction: straight paths on any process."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import sdekit as sk
from sdekit import samplers as ss
from sdekit.processes import ALL as PROCESSES

F64 = torch.float64
VP, LINE = sk.VP(), ss.FlowTime()
TOY = sk.GaussianMixture([0.3, 0.7], [-1.4, 0.6], 0.4)
STARTS = torch.tensor([-1.5, -0.7, -0.2, 0.3, 1.1, 2.0], dtype=F64)[:, None]


def straight(order: int, start: str = "ramp") -> ss.ExponentialAB:
    """Adams-Bashforth of noise - data in sigma / (alpha + sigma)."""
    return ss.ExponentialAB(order, prediction="flow", clock=LINE, start=start)


def run(sampler: ss.Sampler, times: list[float], process: sk.Process, x: Tensor) -> Tensor:
    model = TOY.denoiser(process)
    return sk.sample(model, tuple(x.shape), sampler=sampler, grid=times, x_init=x).x


def quantile_map(x: Tensor, t: float, s: float) -> Tensor:
    return TOY.at(VP, s).quantile(TOY.at(VP, t).cdf(x))


def slope(sampler: ss.PlanSampler, grid: ss.TimeGrid, steps: int) -> float:
    exact, errors = quantile_map(STARTS, 1.0, 1e-2), []
    for n in (steps, 2 * steps):
        x = run(sampler, grid.times(VP, n, 1.0, 1e-2), VP, STARTS)
        errors.append((x - exact).abs().max().item())
    return math.log2(errors[0] / errors[1])


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_the_clock_is_the_share_of_the_noise(process: sk.Process) -> None:
    for t in (0.9 * process.t_max, 0.3 * process.t_max):
        node = process.node(t)
        assert LINE.clock(process, t) == pytest.approx(
            node.sigma / (node.alpha + node.sigma), rel=1e-13
        )
        (reading,) = LINE.at_log_snr(process, torch.tensor([process.log_snr(t)], dtype=F64))
        assert reading == pytest.approx(LINE.clock(process, t), rel=1e-13)


def test_the_clock_of_the_interpolant_is_its_time() -> None:
    flow = sk.Interpolant()
    for t in (0.0, 1e-3, 0.3, 0.97, 1.0):
        assert LINE.clock(flow, t) == pytest.approx(t, rel=1e-13)
    assert LINE.times(flow, 4, 1.0, 0.0) == pytest.approx([1, 0.75, 0.5, 0.25, 0], rel=1e-13)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("grid", ["log-snr", "uniform", "beta6"])
def test_order_one_is_ddim_on_any_process(process: sk.Process, grid: str) -> None:
    end = max(1e-3 * process.horizon, process.t_min)
    times = ss.GRIDS[grid].times(process, 12, process.t_max, end)
    x = process.prior.std * STARTS
    ddim = run(ss.DDIM(), times, process, x)
    for sampler in (straight(1), ss.ExponentialAB(1, prediction="flow")):
        out = run(sampler, times, process, x)
        assert (out - ddim).abs().max() <= 1e-11 * (1 + ddim.abs().max().item())


@pytest.mark.parametrize("start", ["ramp", "single-step"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_on_the_interpolant_it_is_the_velocity_method(order: int, start: str) -> None:
    """There dx/dt is noise - data and the clock is t."""
    flow, times = sk.Interpolant(), [0.95 * (1 - i / 14) ** 1.5 + 0.02 for i in range(14)]
    ours, theirs = (run(s, times, flow, STARTS) for s in (
        straight(order, start), ss.VelocityAB(order, start)))  # fmt: skip
    assert (ours - theirs).abs().max() < 1e-11


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_any_process_is_solved_as_the_interpolant_of_its_log_snr(order: int) -> None:
    """x / (alpha + sigma) at equal log-SNR: VP, sub-VP and EDM take the same path as `Interpolant`."""
    flow = sk.Interpolant()
    logs = torch.linspace(-7, 6, 15, dtype=F64).tolist()
    base = run(ss.VelocityAB(order), [float(flow.time_at_log_snr(v)) for v in logs], flow, STARTS)
    base = base / sum(_ends(flow, logs[-1]))
    for process in (VP, sk.SubVP(), sk.EDM()):
        times = [float(process.time_at_log_snr(v)) for v in logs]
        x = STARTS * (sum(_ends(process, logs[0])) / sum(_ends(flow, logs[0])))
        out = run(straight(order), times, process, x) / sum(_ends(process, logs[-1]))
        assert (out - base).abs().max() < 1e-10


def _ends(process: sk.Process, log_snr: float) -> tuple[float, float]:
    node = process.node_at_log_snr(log_snr)
    return node.alpha, node.sigma


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_a_constant_data_prediction_is_solved_exactly(process: sk.Process, order: int) -> None:
    """Data at one point move along straight lines, at any order.

    Where steps in the clock grow a hundredfold, as on log-SNR or EDM's uniform grid, order 4 has weights
    of 1e4 and more, and the variance carries their square in rounding: so three grids that are even enough.
    """
    for grid in ("beta6", "angle", "quadratic"):
        end = 1e-2 * process.horizon
        times = ss.GRIDS[grid].times(process, 7, process.t_max, end)
        law = straight(order).plan(process, times).gaussian_law(0.7, 0.0, start="exact")
        assert law[0].item() == pytest.approx(process.alpha(end) * 0.7, rel=1e-10)
        assert law[1].item() == pytest.approx(process.sigma(end) ** 2, rel=1e-9)


def test_weights_are_those_of_polynomials_in_closed_form() -> None:
    """Order 2 on uneven steps of ratio r: 1 + r / 2 and -r / 2 of the step in the clock."""
    nodes = [VP.node(t) for t in (0.9, 0.6, 0.45)]
    u = [LINE.clock(VP, node.t) for node in nodes]
    last = straight(2).plan(VP, [node.t for node in nodes]).rows[-1]
    h, scale = u[2] - u[1], nodes[2].alpha + nodes[2].sigma
    r = h / (u[1] - u[0])
    assert last.p[1] == pytest.approx(scale * h * (1 + r / 2), rel=1e-13)
    assert last.p[0] == pytest.approx(-scale * h * r / 2, rel=1e-13)
    assert last.x[1] == pytest.approx(scale / (nodes[1].alpha + nodes[1].sigma), rel=1e-14)


@pytest.mark.parametrize(
    ("sampler", "grid", "steps"),
    [
        (straight(1), ss.Beta(5.0), 128),
        (straight(2), ss.Beta(5.0), 128),
        (straight(3, "single-step"), ss.Beta(5.0), 128),
        (straight(4, "single-step"), ss.Beta(5.0), 256),
        (straight(4), ss.LogSNR(), 256),
        # What the first step leaves is of second order and small: see the next test.
        (ss.ExponentialAB(4, prediction="flow", start="single-step"), ss.LogSNR(), 256),
    ],
    ids=repr,
)
def test_order_on_the_quantile_map(sampler: ss.PlanSampler, grid: ss.TimeGrid, steps: int) -> None:
    assert slope(sampler, grid, steps) == pytest.approx(sampler.order, abs=0.15)


def test_a_ramp_leaves_an_error_of_second_order_below_two_in_ten_million() -> None:
    """On its own grid: that is why order 4 is measured with another start or another grid."""
    times = straight(4).grid.times(VP, 256, 1.0, 1e-2)
    exact = quantile_map(STARTS, 1.0, 1e-2)
    assert (run(straight(4), times, VP, STARTS) - exact).abs().max() < 2e-7
    assert slope(straight(4), straight(4).grid, 512) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize(
    ("sampler", "gates"),
    [
        (straight(4), {10: 1.6e-3, 20: 2.1e-4, 50: 5.1e-6, 100: 8.4e-7, 200: 2.4e-7}),
        (
            ss.ExponentialAB(4, prediction="v"),
            {10: 8.3e-3, 20: 6.1e-4, 50: 1.2e-5, 100: 6.1e-7, 200: 3.5e-8},
        ),
    ],
    ids=repr,
)
def test_accuracy_on_the_two_mode_mixture(
    sampler: ss.ExponentialAB, gates: dict[int, float]
) -> None:
    """RMS distance to the exact end points of 4,096 paths on the sampler's own grid.

    Both keep well within 1.8e-2, 1.6e-3, 2.0e-5, 1.7e-6 and 4e-7.
    """
    x = torch.randn(4096, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    exact = quantile_map(x, 1.0, 1e-3)
    for calls, gate in gates.items():
        out = sk.sample(TOY.denoiser(VP), (4096, 1), sampler=sampler, steps=calls, x_init=x)
        assert out.nfe == calls
        assert (out.x - exact).square().mean().sqrt().item() <= gate


def test_at_ten_calls_it_is_five_times_nearer_than_v_prediction() -> None:
    x = torch.randn(4096, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    exact = quantile_map(x, 1.0, 1e-3)
    errors = [
        (sk.sample(TOY.denoiser(VP), (4096, 1), sampler=s, steps=10, x_init=x).x - exact).norm()
        for s in (straight(4), ss.ExponentialAB(4, prediction="v"))
    ]
    assert 5 * errors[0] < errors[1]


def test_two_readings_of_one_state_cost_one_call() -> None:
    """A reading of noise - data agrees with the difference of the two."""
    tape = ss.Tape(VP)
    s, t = VP.node(0.8), VP.node(0.5)
    x = tape.start(s)
    form = tape.flow(x, s) - (tape.noise(x, s) - tape.data(x, s))
    assert max(abs(weight) for weight in form.terms.values()) < 1e-14
    tape.node(x + form, t)
    assert tape.plan("one call").nfe == 1


def test_its_plan_is_the_same_on_equal_steps_as_the_classical_method() -> None:
    """Equal steps in the clock have the weights of Adams and Bashforth."""
    classical = [
        [1],
        [1.5, -0.5],
        [23 / 12, -16 / 12, 5 / 12],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    ]
    times = LINE.times(VP, 6, 1.0, 1e-2)
    u = [LINE.clock(VP, t) for t in times]
    rows = straight(4).plan(VP, times).rows
    for i, ((s, t), row) in enumerate(zip(pairwise(u), rows[1:], strict=True)):
        scale = VP.alpha(times[i + 1]) + VP.sigma(times[i + 1])
        weights = [row.p[i - j] / (scale * (t - s)) for j in range(len(row.p))]
        assert weights == pytest.approx(classical[min(i, 3)], rel=1e-10)
