"""SA-Solver, ER-SDE, DPM-Solver++(2S) ancestral, restarts and annealed Langevin: their laws and equivalences.

Costs and what holds for every sampler are in test_samplers and test_sample.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers import log_snr_times, variance_at
from scipy.integrate import quad

import sdekit as sk
from sdekit import samplers as ss
from sdekit.processes import ALL as PROCESSES
from sdekit.quadrature import even_panels
from sdekit.sampling.noise import BlockNormals
from sdekit.sampling.plan import Plan, Row
from sdekit.sampling.sa_solver import piecewise_moments

F64 = torch.float64
VP, EDM, SUBVP = sk.VP(), sk.EDM(), sk.SubVP()
TOY = sk.GaussianMixture([0.3, 0.7], [-1.4, 0.6], 0.4)
STARTS = torch.tensor([-1.5, -0.7, -0.2, 0.3, 1.1, 2.0], dtype=F64)[:, None]
BALANCED = [
    ss.SASolver(), ss.SASolver(2, 3, 0.6, low=0.3, high=2.0), ss.SASolver(3, 0, 1.0),
    *(ss.ERSDE(p, power) for p in (1, 2, 3) for power in (None, 1.0, 2.0)),
    ss.DPMSolverPP2SAncestral(), ss.DPMSolverPP2SAncestral(0.5), ss.DPMSolverPP2SAncestral(0.0),
    ss.Restart(), ss.Restart(0.05, 0.4, 3, ss.DDIM()),
]  # fmt: skip


def excess(sampler: ss.PlanSampler, steps: int, grid: ss.TimeGrid | None = None) -> float:
    """Relative error of the variance on N(0.7, 0.25), from the exact law at t = 1 to t = 0.01."""
    plan = sampler.plan(VP, (grid or sampler.grid).times(VP, steps, 1.0, 1e-2))
    return plan.gaussian_law(0.7, 0.25, start="exact")[1].item() / variance_at(VP, 1e-2) - 1


def assert_same_rows(one: Plan, other: Plan, skip: int = 0, rel: float = 1e-10) -> None:
    assert len(one.rows) == len(other.rows)
    for a, b in list(zip(one.rows, other.rows, strict=True))[skip:]:
        assert (a.t, a.read is None) == (b.t, b.read is None)
        for mine, theirs in ((a.x, b.x), (a.p, b.p), (a.z, b.z)):
            assert dict(mine) == pytest.approx(dict(theirs), rel=rel, abs=1e-13)


# ------------------------------------------------------------------------------------ all of them


@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        (ss.SASolver(1, 2), 2), (ss.SASolver(3, 4, 0.5), 2), (ss.SASolver(3, 4, 1.0, 0.05, 1.0), 2),
        (ss.SASolver(2, 3, 0.0), 3), (ss.SASolver(3, 4, 0.0), 4),
        (ss.ERSDE(1), 1), (ss.ERSDE(2), 2), (ss.ERSDE(2, 2.0), 2), (ss.ERSDE(3, 2.0), 2),
        (ss.DPMSolverPP2SAncestral(0.5), 2), (ss.DPMSolverPP2SAncestral(0.0), 2),
        (ss.Restart(solver=ss.DDIM()), 1), (ss.AnnealedLangevin(0.2, 5), 1),
    ],
    ids=repr,
)  # fmt: skip
def test_weak_order_of_the_variance(sampler: ss.PlanSampler, order: int) -> None:
    errors = [excess(sampler, steps) for steps in (128, 256)]
    assert math.log2(abs(errors[0] / errors[1])) == pytest.approx(order, abs=0.15)
    assert sampler.order == order


@pytest.mark.parametrize(
    "sampler",
    [ss.DPMSolverPP(3, 1.0), ss.SASolver(3, 0), ss.SASolver(4, 0)],
    ids=repr,
)
def test_noise_in_the_history_caps_the_weak_order_at_two(sampler: ss.PlanSampler) -> None:
    errors = [excess(sampler, steps) for steps in (128, 256)]
    assert math.log2(abs(errors[0] / errors[1])) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("sampler", [*BALANCED, ss.AnnealedLangevin()], ids=repr)
def test_the_mean_is_exact(sampler: ss.PlanSampler, process: sk.Process) -> None:
    for steps in (1, 9):
        plan = sampler.plan(process, log_snr_times(process, steps))
        mean = plan.gaussian_law(0.7, 0.25, start="exact")[0].item()
        assert mean == pytest.approx(process.alpha(plan.rows[-1].t) * 0.7, rel=1e-9)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("sampler", BALANCED, ids=repr)
def test_point_data_are_exact(sampler: ss.PlanSampler, process: sk.Process) -> None:
    """The noise carries the variance that is lost: any grid, any amount of noise."""
    for grid in (ss.LogSNR(), ss.Karras()):
        times = grid.times(process, 7, process.t_max, 1e-2 * process.horizon)
        law = sampler.plan(process, times).gaussian_law(0.7, 0.0, start="exact")
        assert law[0].item() == pytest.approx(process.alpha(times[-1]) * 0.7, rel=1e-9)
        assert law[1].item() == pytest.approx(process.sigma(times[-1]) ** 2, rel=1e-8)


# --------------------------------------------------------------------------------------- SA-Solver


@pytest.mark.parametrize("process", [VP, EDM, SUBVP], ids=repr)
@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_its_predictor_is_exponential_adams_bashforth(
    p: int, tau: float, process: sk.Process
) -> None:
    times = log_snr_times(process, 9)
    assert_same_rows(
        ss.SASolver(p, 0, tau).plan(process, times), ss.ExponentialAB(p, tau).plan(process, times)
    )


def test_without_noise_it_is_unipc_once_there_is_a_history() -> None:
    """Both then integrate the polynomial through three, and through four, predictions exactly."""
    times = log_snr_times(VP, 8)
    one, other = (s.plan(VP, times) for s in (ss.SASolver(3, 4, 0.0), ss.UniPC(3)))
    for k, data in enumerate(_as_functions(one, other)):
        if k >= 4:
            assert data[0] == pytest.approx(data[1], rel=1e-9, abs=1e-12)


def _as_functions(one: Plan, other: Plan) -> list[tuple[dict, dict]]:
    """At each node the state in terms of the node before and the predictions, corrections worked in."""
    found = []
    for plan in (one, other):
        steps, states = [], {}
        for k, row in enumerate(plan.rows):
            total: dict[tuple[str, float], float] = {}
            for j, c in row.x.items():
                inner = states[j] if plan.rows[j].node is None else {("x", plan.rows[j].t): 1.0}
                for key, weight in inner.items():
                    total[key] = total.get(key, 0.0) + c * weight
            for j, c in row.p.items():
                key = ("p", plan.rows[j].t)
                total[key] = total.get(key, 0.0) + c
            states[k] = total
            if row.node is not None:
                steps.append(total)
        found.append(steps)
    return list(zip(*found, strict=True))


def test_noise_only_where_it_is_wanted() -> None:
    sampler = ss.SASolver(3, 4, 1.0, low=0.2, high=3.0)
    plan = sampler.plan(VP, log_snr_times(VP, 40))
    for (s, t), noise in _noise_of_steps(plan):
        a, b = max(t, 0.2), min(s, 3.0)  # the part of the step in the range
        decay = math.log(b / a) if b > a else 0.0
        assert noise**2 == pytest.approx(-math.expm1(-2 * decay), rel=1e-9, abs=1e-15)
    quiet = ss.SASolver(3, 4, 1.0, low=1e4)
    assert_same_rows(
        quiet.plan(VP, log_snr_times(VP, 9)), ss.SASolver(3, 4, 0.0).plan(VP, log_snr_times(VP, 9))
    )
    everywhere = ss.SASolver(3, 4, 1.0, low=1e-9, high=1e9)
    assert_same_rows(
        everywhere.plan(VP, log_snr_times(VP, 9)),
        ss.SASolver().plan(VP, log_snr_times(VP, 9)),
        rel=1e-12,
    )


def _noise_of_steps(plan: Plan) -> list[tuple[tuple[float, float], float]]:
    """(rho before, rho after) and noise over sigma of every predicted state."""
    rows: list[Row] = [row for row in plan.rows if row.read is not None or row is plan.rows[-1]]
    nodes = [plan.process.node(row.t) for row in rows]
    return [
        ((s.rho, t.rho), math.sqrt(sum(c * c for c in row.z.values())) / t.sigma)
        for (s, t), row in zip(pairwise(nodes), rows[1:], strict=True)
    ]


def test_moments_of_a_step_with_a_jump_of_tau() -> None:
    stretches = [(0.0, 0.3, 0.0), (0.3, 1.1, 1.0), (1.1, 1.4, 0.5)]

    def rate(u: float) -> float:
        return next(1 + tau**2 for a, b, tau in stretches if a <= u <= b)

    def weight(u: float) -> float:
        return rate(u) * math.exp(
            -sum((1 + tau**2) * max(0, b - max(a, u)) for a, b, tau in stretches)
        )

    for j, found in enumerate(piecewise_moments(stretches, 4)):
        exact = sum(
            quad(lambda u, j=j: weight(u) * u**j, a + 1e-15, b, epsabs=1e-14)[0]
            for a, b, _ in stretches
        )
        assert found == pytest.approx(exact, rel=1e-10)


def test_one_call_a_step_and_the_same_noise_twice() -> None:
    plan = ss.SASolver().plan(VP, log_snr_times(VP, 10))
    assert plan.nfe == 10
    assert len(plan.normals) == 10
    corrected = [row for row in plan.rows if row.node is not None and not row.z][1:]
    assert len(corrected) == 9
    assert all(list(row.x.values()) == [1.0] for row in corrected)


# ------------------------------------------------------------------------------------------ ER-SDE


@pytest.mark.parametrize("process", [VP, EDM, SUBVP], ids=repr)
@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_a_power_is_a_constant_tau(tau: float, process: sk.Process) -> None:
    times = log_snr_times(process, 9)
    one, other = ss.ERSDE(1, 1 + tau**2), ss.ExponentialAB(1, tau)
    assert one.stochastic == other.stochastic
    assert_same_rows(one.plan(process, times), other.plan(process, times))


@pytest.mark.parametrize("power", [None, 1.0, 1.7, 2.0])
@pytest.mark.parametrize(
    ("start", "end"), [(80.0, 60.0), (80.0, 0.05), (0.1, 0.099999), (0.2, 0.1)]
)
def test_its_moments_are_the_papers_integrals(
    power: float | None, start: float, end: float
) -> None:
    """1 - r, and by parts end - start + phi(end) int d rho / phi and the one with rho - start."""

    def log_phi(rho: float) -> float:
        if power is None:
            return math.log(rho * (math.exp(rho**0.3) + 10))
        return power * math.log(rho)

    def ratio(rho: float) -> float:
        return math.exp(log_phi(end) - log_phi(rho))

    found = ss.ERSDE(3, power).moments(start, end, 3)
    first = end - start + quad(ratio, end, start, epsabs=0, epsrel=1e-12, limit=200)[0]
    slanted = quad(lambda u: (u - start) * ratio(u), end, start, epsabs=0, epsrel=1e-12, limit=200)
    second = (end - start) ** 2 + 2 * slanted[0]
    size = start - end
    assert found[0] == pytest.approx(-math.expm1(log_phi(end) - log_phi(start)), rel=1e-9)
    assert found[1] == pytest.approx(first, rel=1e-9, abs=1e-14 * size)
    assert found[2] == pytest.approx(second, rel=1e-9, abs=1e-13 * size**2)


def test_the_papers_phi_is_of_third_order_until_its_noise_shows() -> None:
    """Third order on the log-SNR grid while the error is above 1e-6; second on Karras's grid."""
    errors = [excess(ss.ERSDE(3), steps) for steps in (16, 32, 64, 128)]
    for a, b in pairwise(errors):
        assert math.log2(a / b) > 2.85
    errors = [excess(ss.ERSDE(3), steps, ss.Karras()) for steps in (256, 512)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.15)


def test_third_order_on_the_quantile_map() -> None:
    exact = TOY.at(VP, 1e-2).quantile(TOY.at(VP, 1.0).cdf(STARTS))
    errors = []
    for steps in (64, 128, 256):
        out = sk.sample(
            TOY.denoiser(VP),
            (6, 1),
            sampler=ss.ERSDE(3, 1.0),
            steps=steps,
            t_end=1e-2,
            x_init=STARTS,
        )
        errors.append((out.x - exact).abs().max().item())
    assert math.log2(errors[1] / errors[2]) == pytest.approx(3, abs=0.15)


@pytest.mark.parametrize("power", [1.0, 2.0, 10.0, 100.0, 1000.0])
@pytest.mark.parametrize("p", [1, 3])
def test_any_power_is_exact_on_point_data(p: int, power: float) -> None:
    for process in (VP, EDM):
        times = log_snr_times(process, 6)
        found = ss.ERSDE(p, power).plan(process, times).gaussian_law(0.7, 0.0, start="exact")
        assert found[0].item() == pytest.approx(process.alpha(times[-1]) * 0.7, rel=1e-11)
        assert found[1].item() == pytest.approx(process.sigma(times[-1]) ** 2, rel=1e-11)


def test_phi_does_not_overflow() -> None:
    process = sk.VP(schedule=sk.schedules.Constant(54.0))
    times = ss.LogSNR().times(process, 12, 1.0, 1e-2)
    assert process.node(1.0).rho > 1e11
    with pytest.raises(OverflowError):
        math.exp(process.node(1.0).rho ** 0.3)
    law = ss.ERSDE().plan(process, times).gaussian_law(0.7, 0.0, start="exact")
    assert law[1].item() == pytest.approx(process.sigma(1e-2) ** 2, rel=1e-8)


def test_panels_integrate_logistic_functions_to_1e_12() -> None:
    for low, high in ((-12.0, 30.0), (-0.1, 0.2), (3.0, 3.0)):
        points, weights = even_panels(low, high, 2.0)
        found = float((weights / (1 + points.exp())).sum())
        exact = (high - low) - (math.log1p(math.exp(high)) - math.log1p(math.exp(low)))
        assert found == pytest.approx(exact, rel=1e-11, abs=1e-13)


# --------------------------------------------------------------------------- DPM-Solver++(2S) ancestral


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("process", [EDM, VP], ids=repr)
def test_two_stages_are_the_published_loop(process: sk.Process, eta: float) -> None:
    """Written out in rho and y, with the noise levels as the published helper computes them."""
    model, times = TOY.denoiser(process), log_snr_times(process, 6)
    start = process.sigma(times[0]) * STARTS
    sampler = ss.DPMSolverPP2SAncestral(eta)
    out = sk.sample(model, (6, 1), sampler=sampler, grid=times, x_init=start, seed=5)
    normals = BlockNormals(5, 0, 6, (1,), F64, torch.device("cpu"))

    def denoised(y: torch.Tensor, rho: float) -> torch.Tensor:
        node = process.node_at_log_snr(-2 * math.log(rho))
        return model.data(node.alpha * y, node.t)

    y = start / process.alpha(times[0])
    for k, (s, t) in enumerate(pairwise(process.node(u) for u in times)):
        up = min(t.rho, eta * math.sqrt(t.rho**2 * (s.rho**2 - t.rho**2) / s.rho**2))
        down = math.sqrt(t.rho**2 - up**2)
        middle = math.sqrt(s.rho * down)
        first = middle / s.rho * y + (1 - middle / s.rho) * denoised(y, s.rho)
        y = down / s.rho * y + (1 - down / s.rho) * denoised(first, middle) + up * normals(k)
    assert (out.x - process.alpha(times[-1]) * y).abs().max() < 1e-10


def test_two_stages_without_noise_follow_the_quantile_map() -> None:
    exact = TOY.at(VP, 1e-2).quantile(TOY.at(VP, 1.0).cdf(STARTS))
    errors = []
    for steps in (64, 128, 256):
        sampler = ss.DPMSolverPP2SAncestral(0.0)
        out = sk.sample(
            TOY.denoiser(VP), (6, 1), sampler=sampler, steps=steps, t_end=1e-2, x_init=STARTS
        )
        errors.append((out.x - exact).abs().max().item())
    assert math.log2(errors[1] / errors[2]) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_two_stages_in_one_step_of_any_length(process: sk.Process, eta: float) -> None:
    """From end to end of the process, where rho_up is rho_t to rounding; exact on point data."""
    plan = ss.DPMSolverPP2SAncestral(eta).plan(process, [process.t_max, process.t_min])
    mean, variance = plan.gaussian_law(0.7, 0.0, start="exact")
    assert mean.item() == pytest.approx(process.alpha(process.t_min) * 0.7, rel=1e-10)
    assert variance.item() == pytest.approx(process.sigma(process.t_min) ** 2, rel=1e-6)


# ----------------------------------------------------------------------------------------- restarts


@pytest.mark.parametrize("repeats", [1, 2, 4])
def test_restarts_contract_the_error(repeats: int) -> None:
    """With the flow all but exact, an excess variance shrinks by (v + low^2) / (v + high^2) a restart."""
    process, v, low, high = sk.EDM(0.002, 3.0), 0.25, 0.1, 1.0
    sampler = ss.Restart(low, high, repeats, ss.SigmaRungeKutta("rk4"))
    plan = sampler.plan(process, ss.LogSNR().times(process, 120, 3.0, 0.01))
    found = plan.gaussian_law(0.0, v)[1].item() - (v + 0.01**2)
    start = -v  # the prior lacks the variance of the data
    exact = start * (v + 0.01**2) / (v + 9) * ((v + low**2) / (v + high**2)) ** repeats
    assert found == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_a_restart_costs_the_steps_it_repeats(process: sk.Process) -> None:
    sampler, times = ss.Restart(repeats=3), log_snr_times(process, 20)
    rho = [process.node(t).rho for t in times]
    low, high = max(0.1, rho[-1]), min(1.0, rho[0])
    plan = sampler.plan(process, times)
    inside = sum(low < r < high for r in rho) + 1
    assert plan.nfe == 2 * (20 + (low not in rho) + 3 * inside)
    assert len(plan.normals) == 3
    assert plan.normals == (None,) * 3
    assert [r.node for r in plan.rows if r.node is not None] == list(range(21))


def test_ends_on_the_grid_are_not_doubled() -> None:
    nodes = [EDM.time_at_log_snr(-2 * math.log(r)) for r in (5.0, 1.0, 0.5, 0.1, 0.02)]
    assert ss.Restart(0.1, 1.0, 1).plan(EDM, nodes).nfe == 2 * (4 + 2)


def test_outside_of_the_grid_there_is_no_restart() -> None:
    times = ss.LogSNR().times(EDM, 6, 0.09, 0.01)
    for sampler in (ss.Restart(), ss.Restart(0.001, 0.009)):
        assert sampler.plan(EDM, times).rows == ss.EDMHeun().plan(EDM, times).rows


def test_the_noise_of_a_restart() -> None:
    """From low to high as the forward process does it: the law there stays that of the data, diffused."""
    sampler = ss.Restart(0.2, 2.0, 1, ss.ExponentialAB(4))
    plan = sampler.plan(VP, ss.LogSNR().times(VP, 200, 1.0, 1e-2))
    (jump,) = (k for k, row in enumerate(plan.rows) if row.z)
    (before,) = plan.rows[jump].x
    scale, std = VP.transition(plan.rows[before].t, plan.rows[jump].t)
    assert plan.rows[jump].x[before] == pytest.approx(scale, rel=1e-10)
    assert list(plan.rows[jump].z.values()) == pytest.approx([std], rel=1e-10)


# ----------------------------------------------------------------------------------- annealed Langevin


@pytest.mark.parametrize(("step", "variance"), [(0.1, 0.25), (1.0, 0.25), (0.5, 4.0)])
def test_langevin_settles_at_its_biased_variance(step: float, variance: float) -> None:
    sampler, t = ss.AnnealedLangevin(step, 600), 0.3
    law = sampler.plan(VP, [1.0, t]).gaussian_law(0.7, variance)
    exact = variance_at(VP, t, variance)
    q = step * VP.sigma(t) ** 2 / exact
    assert law[0].item() == pytest.approx(VP.alpha(t) * 0.7, rel=1e-12)
    assert law[1].item() == pytest.approx(exact / (1 - q / 2), rel=1e-12)


@pytest.mark.parametrize("process", [sk.VE(), VP, SUBVP], ids=repr)
def test_langevin_is_the_closed_recursion(process: sk.Process) -> None:
    times = log_snr_times(process, 15)
    mean, variance = process.alpha(times[0]) * 0.3, variance_at(process, times[0])
    for s, t in pairwise(times):
        ratio, v = process.alpha(t) / process.alpha(s), variance_at(process, t)
        mean, variance, e = ratio * mean, ratio**2 * variance, 0.2 * process.sigma(t) ** 2
        for _ in range(4):
            mean = mean - e * (mean - process.alpha(t) * 0.3) / v
            variance = (1 - e / v) ** 2 * variance + 2 * e
    law = ss.AnnealedLangevin(0.2, 4).plan(process, times).gaussian_law(0.3, 0.25, start="exact")
    assert law[0].item() == pytest.approx(mean, rel=1e-12)
    assert law[1].item() == pytest.approx(variance, rel=1e-12)


@pytest.mark.parametrize(
    ("step", "moves", "steps"), [(0.1, 10, 128), (0.1, 5, 256), (0.05, 10, 256)]
)
def test_what_langevin_leaves_behind(step: float, moves: int, steps: int) -> None:
    """The documented remainder v h / (moves step), to a fifth of it."""
    nodes = [VP.node(t) for t in log_snr_times(VP, steps)]
    h = (nodes[-1].half_log_snr - nodes[0].half_log_snr) / steps
    assert excess(ss.AnnealedLangevin(step, moves), steps) == pytest.approx(
        h / (moves * step), rel=0.2
    )


def test_langevins_bias_is_not_removed_by_steps() -> None:
    """On data of variance 0.01 the law at t = 0.01 is off by its stationary bias q / (2 - q)."""
    sampler, exact = ss.AnnealedLangevin(1.0, 20), variance_at(VP, 1e-2, 0.01)
    q = VP.sigma(1e-2) ** 2 / exact
    for steps in (256, 1024):
        law = sampler.plan(VP, log_snr_times(VP, steps)).gaussian_law(0.7, 0.01, start="exact")
        assert law[1].item() / exact - 1 == pytest.approx(q / (2 - q), rel=0.05)
    assert sampler.biased


def test_a_wrapped_bias_stays() -> None:
    corrected = ss.PredictorCorrector()
    churned = ss.EDMHeun(churn=20.0, noise=1.007)
    for biased in (
        ss.Restart(solver=corrected),
        ss.ParallelInTime(corrected),
        ss.PredictorCorrector(churned, reference_steps=50),
        ss.NormCorrector(churned, reference_steps=50),
    ):
        assert biased.biased
    for right in (
        ss.Restart(),
        ss.ParallelInTime(),
        ss.PredictorCorrector(reference_steps=50),
        ss.Restart(solver=ss.PredictorCorrector(reference_steps=50)),
    ):
        assert not right.biased


# --------------------------------------------------------------------------------- bad hyper-parameters

BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: ss.SASolver(0), ValueError, "predictor must be >= 1, got 0"),
    (lambda: ss.SASolver(5), ValueError, "predictor must be 1 to 4, got 5"),
    (lambda: ss.SASolver(2, 1), ValueError, "corrector must be 0 or 2 to 4, got 1"),
    (lambda: ss.SASolver(2, 5), ValueError, "corrector must be 0 or 2 to 4, got 5"),
    (lambda: ss.SASolver(2.0), TypeError, "predictor must be an integer"),
    (lambda: ss.SASolver(True), TypeError, "predictor must be an integer"),
    (lambda: ss.SASolver(tau=-1.0), ValueError, "tau"),
    (lambda: ss.SASolver(low=-1.0), ValueError, "low"),
    (lambda: ss.SASolver(low=2.0, high=1.0), ValueError, "high must be"),
    (lambda: ss.ERSDE(0), ValueError, "p must be >= 1, got 0"),
    (lambda: ss.ERSDE(4), ValueError, "p must be 1 to 3, got 4"),
    (lambda: ss.ERSDE(2, 0.5), ValueError, r"power must be a finite number in \[1, inf\]"),
    (lambda: ss.ERSDE(2, "er"), TypeError, "power must be a number"),
    (lambda: ss.DPMSolverPP2SAncestral(1.5), ValueError, "eta"),
    (lambda: ss.DPMSolverPP2SAncestral(False), TypeError, "eta must be a number"),
    (lambda: ss.Restart(0.0), ValueError, "low must be"),
    (lambda: ss.Restart(1.0, 1.0), ValueError, "high must be"),
    (lambda: ss.Restart(repeats=0), ValueError, "repeats must be >= 1"),
    (lambda: ss.Restart(repeats=1.0), TypeError, "repeats must be an integer"),
    (lambda: ss.Restart(solver=ss.FlowODE()), TypeError, "solver must be a PlanSampler, got FlowODE"),
    (lambda: ss.AnnealedLangevin(0.0), ValueError, "step"),
    (lambda: ss.AnnealedLangevin(1.5), ValueError, "step"),
    (lambda: ss.AnnealedLangevin(moves=0), ValueError, "moves must be >= 1"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[m for _, _, m in BAD])
def test_bad_input(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
