"""Euler-Maruyama's variances, reverse diffusion, the frozen noise prediction, the optimal ancestral variance.

Orders, costs and what holds for every sampler are in test_samplers and test_sample.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from helpers import log_snr_times, variance_at
from scipy.integrate import quad
from torch import Tensor

import sdekit as sk
from sdekit import samplers as ss
from sdekit.processes import ALL as PROCESSES
from sdekit.sampling.ancestral import _FittedAncestral, posterior_variances
from sdekit.sampling.one_step import integrated_g2
from sdekit.sampling.plan import Plan

F64 = torch.float64
VP, EDM, SUBVP, FLOW = sk.VP(), sk.EDM(), sk.SubVP(), sk.Interpolant()
TOY = sk.GaussianMixture([0.3, 0.7], [-1.4, 0.6], 0.4)
OPTIMAL, INTEGRATED = ss.Ancestral("optimal"), ss.EulerMaruyama("integrated")


def distance(plan: Plan) -> float:
    """W2 of the exact output density of a one-step plan on the two-mode mixture, with no sample drawn.

    A step is a Gaussian kernel, p_{k+1} = K_k p_k on a grid of 900 points; W2 by quantiles.
    """
    model = TOY.denoiser(plan.process)
    x = torch.linspace(-5, 5, 900, dtype=F64)
    width = (x[1] - x[0]).item()
    p = TOY.at(plan.process, plan.rows[0].t).log_prob(x[:, None]).exp()
    for k, row in enumerate(plan.rows[1:]):
        before = plan.rows[k]
        assert before.read is not None
        read = before.read[0] * x + before.read[1] * model.data(x[:, None], before.t)[:, 0]
        mean = row.x.get(k, 0.0) * x + row.p.get(k, 0.0) * read
        (std,) = row.z.values()
        kernel = torch.exp(-0.5 * ((x[:, None] - mean) / std) ** 2)
        p = kernel @ p * (width / (std * math.sqrt(2 * math.pi)))
    below = (p.cumsum(0) - 0.5 * p) * width
    u = (torch.arange(20_000, dtype=F64) + 0.5) / 20_000
    found = torch.from_numpy(np.interp(u.numpy(), (below / (p.sum() * width)).numpy(), x.numpy()))
    exact = TOY.at(plan.process, plan.rows[-1].t).quantile(u)
    return (found - exact).square().mean().sqrt().item()


# ---------------------------------------------------------------------------------- Euler-Maruyama

PRIMITIVES: list[tuple[sk.Process, Callable[[float], float]]] = [
    (VP, lambda t: VP.schedule.B(t)),
    (PROCESSES[1], lambda t: PROCESSES[1].schedule.B(t)),  # type: ignore[attr-defined]
    (PROCESSES[3], lambda t: PROCESSES[3].schedule.B(t)),  # type: ignore[attr-defined]
    (SUBVP, lambda t: SUBVP.schedule.B(t) + 0.5 * math.exp(-2 * SUBVP.schedule.B(t))),
    (sk.VE(), lambda t: sk.VE().sigma(t) ** 2),
    (sk.VE(start_at_sigma_min=True), lambda t: sk.VE().sigma(t) ** 2),
    (EDM, lambda t: t**2),
    (sk.Heat(), lambda t: 2 * t),
    (sk.OrnsteinUhlenbeck(0.7, 1.3), lambda t: 1.69 * t),
    (FLOW, lambda t: -2 * t - 2 * math.log1p(-t)),
]


@pytest.mark.parametrize(
    ("process", "primitive"), PRIMITIVES, ids=lambda v: "" if callable(v) else repr(v)[:40]
)
def test_the_integral_of_g2(process: sk.Process, primitive: Callable[[float], float]) -> None:
    times = log_snr_times(process, 7)
    for pair in [*pairwise(times[1:]), (times[1], times[-1])]:
        t, s = pair
        exact = primitive(t) - primitive(s)
        assert integrated_g2(process, s, t) == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize("process", [VP, SUBVP, EDM, sk.VE(), FLOW], ids=repr)
def test_the_integral_of_g2_over_a_short_step(process: sk.Process) -> None:
    s, h = 0.25, 2.0**-30
    _, g2 = process.rates(s + h / 2)
    assert integrated_g2(process, s, s + h) == pytest.approx(g2 * h, rel=1e-8)


@pytest.mark.parametrize("process", [VP, SUBVP, sk.VE(), sk.OrnsteinUhlenbeck()], ids=repr)
def test_the_integrated_variance_replaces_the_noise_only(process: sk.Process) -> None:
    times = INTEGRATED.grid.times(process, 12, process.t_max, 1e-2 * process.horizon)
    one, other = (s.plan(process, times).rows[1:] for s in (INTEGRATED, ss.EulerMaruyama()))
    for a, b, (s, t) in zip(one, other, pairwise(times), strict=True):
        assert (a.x, a.p, a.read) == (b.x, b.p, b.read)
        (noise,) = a.z.values()
        exact = quad(lambda u: process.rates(u)[1], t, s, epsabs=0, epsrel=1e-12)[0]
        assert noise**2 == pytest.approx(exact, rel=1e-10)


def test_the_integrated_variance_halves_the_distance() -> None:
    """W2 on the two-mode mixture to 0.001, without sampling: 25 and 50 steps, uniform in t."""
    for steps, plain, better in ((25, 4.22e-2, 2.19e-2), (50, 2.01e-2, 1.18e-2)):
        times = ss.GRIDS["uniform"].times(VP, steps, 1.0, 1e-3)
        assert distance(ss.EulerMaruyama().plan(VP, times)) == pytest.approx(plain, rel=5e-3)
        assert distance(INTEGRATED.plan(VP, times)) == pytest.approx(better, rel=5e-3)


def test_on_one_bell_the_integrated_variance_doubles_the_error() -> None:
    times, exact = ss.GRIDS["uniform"].times(VP, 50, 1.0, 1e-3), variance_at(VP, 1e-3)
    plain, other = (
        s.plan(VP, times).gaussian_law(0.7, 0.25)[1].item() / exact - 1
        for s in (ss.EulerMaruyama(), INTEGRATED)
    )
    assert (plain, other) == pytest.approx((0.0327, -0.0639), rel=5e-3)


# --------------------------------------------------------------------------------- reverse diffusion


def test_reverse_diffusion_of_a_chain_is_the_formula() -> None:
    """(2 - sqrt(1 - beta)) x + beta score + sqrt(beta) z on the chain's own nodes."""
    betas = [1e-4 + i * (0.2 - 1e-4) / 39 for i in range(40)]
    process = sk.VP.from_betas(betas)
    plan = ss.ReverseDiffusion().plan(process, [i / 40 for i in range(40, 0, -1)])
    for k, (row, beta) in enumerate(zip(plan.rows[1:], reversed(betas[1:]), strict=True)):
        read = plan.rows[k].read
        assert read is not None
        score = [row.p[k] * weight for weight in read]
        sigma, alpha = process.sigma((40 - k) / 40), process.alpha((40 - k) / 40)
        assert row.x[k] == pytest.approx(2 - math.sqrt(1 - beta), rel=1e-10)
        assert score[0] == pytest.approx(-beta / sigma**2, rel=1e-10)
        assert score[1] == pytest.approx(beta * alpha / sigma**2, rel=1e-10)
        assert list(row.z.values()) == pytest.approx([math.sqrt(beta)], rel=1e-10)


@pytest.mark.parametrize("process", [EDM, sk.VE(start_at_sigma_min=True)], ids=repr)
def test_reverse_diffusion_where_the_variance_explodes(process: sk.Process) -> None:
    """The law of x + (sigma_s^2 - sigma_t^2) score + noise of that variance."""
    times = log_snr_times(process, 30, 1e-3)
    mean, variance = 0.7, variance_at(process, times[0])
    for s, t in pairwise(times):
        v = process.sigma(s) ** 2 - process.sigma(t) ** 2
        variance = (1 - v / variance_at(process, s)) ** 2 * variance + v
    law = ss.ReverseDiffusion().plan(process, times).gaussian_law(0.7, 0.25, start="exact")
    assert law[0].item() == pytest.approx(mean, rel=1e-12)
    assert law[1].item() == pytest.approx(variance, rel=1e-10)


# --------------------------------------------------------------------------------- exponential steps


@pytest.mark.parametrize("process", [VP, SUBVP, EDM, FLOW], ids=repr)
@pytest.mark.parametrize("tau", [0.4, 1.0])
def test_a_frozen_noise_prediction_is_integrated_exactly(process: sk.Process, tau: float) -> None:
    """Both weights against quadrature of the variation of constants."""
    t, s = 0.1 * process.horizon, 0.4 * process.horizon
    plan = ss.ItoExponential(tau).plan(process, [s, t])
    row, (a, b) = plan.rows[1], plan.rows[0].read or (0.0, 0.0)

    def drift(u: float) -> float:
        half = 0.5 * (1 + tau**2) * process.rates(u)[1] / process.sigma(u)
        return -half * process.alpha(t) / process.alpha(u)

    def spread(u: float) -> float:
        return tau**2 * process.rates(u)[1] * (process.alpha(t) / process.alpha(u)) ** 2

    assert (a, b) == (1 / process.sigma(s), -process.alpha(s) / process.sigma(s))
    assert row.x[0] == pytest.approx(process.alpha(t) / process.alpha(s), rel=1e-12)
    assert row.p[0] == pytest.approx(quad(drift, t, s, epsrel=1e-11)[0], rel=1e-10)
    assert row.z[0] ** 2 == pytest.approx(quad(spread, t, s, epsrel=1e-11)[0], rel=1e-10)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_the_mean_with_frozen_noise_is_exact(process: sk.Process) -> None:
    for steps in (1, 7, 40):
        plan = ss.ItoExponential(0.8).plan(process, log_snr_times(process, steps))
        mean = plan.gaussian_law(0.7, 0.25, start="exact")[0].item()
        assert mean == pytest.approx(process.alpha(plan.rows[-1].t) * 0.7, rel=1e-11)


def test_without_noise_it_is_ddim() -> None:
    for process in (VP, EDM, FLOW):
        times = log_snr_times(process, 9)
        laws = [
            torch.cat(s.plan(process, times).gaussian_law([0.7, -1], [0.25, 2.0]))
            for s in (ss.ItoExponential(0.0), ss.DDIM())
        ]
        assert torch.allclose(*laws, rtol=1e-11, atol=0)
    assert not ss.ItoExponential(0.0).stochastic


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("tau", [0.3, 1.0])
def test_a_frozen_data_prediction_is_ddim_with_an_eta_of_the_step(
    process: sk.Process, tau: float
) -> None:
    """1 - e^(-2 tau^2 h) = eta^2 (1 - e^(-2h)): two writings of DDIM, at tau = 1 of ancestral sampling."""
    for s, t in pairwise(log_snr_times(process, 6)):
        width = process.delta_log_snr(s, t)
        eta = math.sqrt(math.expm1(-(tau**2) * width) / math.expm1(-width))
        same = [ss.DDIM(min(eta, 1.0)), ss.Ancestral()] if tau == 1 else [ss.DDIM(eta)]
        for one in (ss.ExponentialAB(1, tau), ss.DPMSolverPP(1, tau)):
            for other in same:
                a, b = (sampler.plan(process, [s, t]).rows[1] for sampler in (one, other))
                for mine, theirs in ((a.x, b.x), (a.p, b.p), (a.z, b.z)):
                    assert mine == pytest.approx(theirs, rel=1e-10)


@pytest.mark.parametrize(
    ("sampler", "order"),
    [(ss.ItoExponential(0.5), 1), (ss.DPMSolverPP(1, 1.0), 1), (ss.EulerMaruyama("integrated"), 1)],
    ids=repr,
)
def test_weak_order(sampler: ss.PlanSampler, order: int) -> None:
    errors = []
    for steps in (64, 128, 256):
        plan = sampler.plan(VP, sampler.grid.times(VP, steps, 1.0, 1e-2))
        errors.append(plan.gaussian_law(0.7, 0.25, start="exact")[1].item() - variance_at(VP, 1e-2))
    slopes = [math.log2(abs(a / b)) for a, b in pairwise(errors)]
    assert slopes[-1] == pytest.approx(order, abs=0.15)


# ------------------------------------------------------------------------------ the optimal variance


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("std", [0.05, 0.5, 3.0])
def test_the_optimal_variance_is_exact_on_gaussian_data(process: sk.Process, std: float) -> None:
    target = sk.GaussianMixture(None, [[0.7, -1.0, 0.2]], std)
    for steps in (1, 2, 5, 40):
        for grid in (ss.LogSNR(), ss.Power(1.0)):
            times = grid.times(process, steps, process.t_max, 1e-3 * process.horizon)
            plan = OPTIMAL.fitted(target.denoiser(process), times).plan(process, times)
            mean, variance = plan.gaussian_law(target.means[0], std**2, start="exact")
            exact = process.alpha(times[-1]) * target.means[0]
            assert torch.allclose(mean, exact, rtol=1e-10, atol=0)
            v = variance_at(process, times[-1], std**2)
            assert variance.tolist() == pytest.approx([v] * 3, rel=1e-10)


def test_an_estimate_from_data_is_within_its_error() -> None:
    """|x_0 - E[x_0 | x]|^2 / v is chi-squared: 4 standard errors of its mean over n d values."""
    target, n = sk.GaussianMixture(None, [[0.7, -1.0]], 0.5), 20_000
    model, times = target.denoiser(VP), log_snr_times(VP, 12)
    data = target.sample(n, seed=1)
    found = posterior_variances(model, times[:-1], data=data, seed=2)
    exact = posterior_variances(model, times[:-1])
    for a, b in zip(found, exact, strict=True):
        assert abs(a / b - 1) < 4 * math.sqrt(2 / (2 * n))
    plan = OPTIMAL.fitted(model, times, data=data, seed=2).plan(VP, times)
    variance = plan.gaussian_law(target.means[0], 0.25, start="exact")[1]
    # A mean of such variances with weights below 1, and of terms that are exact.
    assert (variance / variance_at(VP, times[-1]) - 1).abs().max() < 4 * math.sqrt(2 / (2 * n))


def test_data_and_noise_of_one_seed_are_independent() -> None:
    """Within 4 standard errors of the exact value, whatever generator of that seed drew the data."""
    model, n, t = TOY.denoiser(VP), 100_000, 0.6
    (exact,) = posterior_variances(model, [t])
    drawn = sk.sample(model, (n, 1), sampler=ss.DPMSolverPP(), steps=100, seed=0, dtype=F64).x
    for data in (TOY.sample(n, seed=0), drawn):
        (found,) = posterior_variances(model, [t], data=data, seed=0)
        # Tails of (x_0 - D)^2 are not heavier than those of chi-squared of a bell of the data's variance.
        assert abs(found - exact) < 4 * math.sqrt(2 / n)


def test_the_average_on_the_line_is_the_one_of_the_score() -> None:
    """sigma^2 / alpha^2 (1 - E |noise|^2), the paper's form, with the expectation by adaptive quadrature."""
    model, times = TOY.denoiser(VP), [0.05, 0.2, 0.5, 0.8]

    def square(x: float, t: float) -> float:
        at = torch.tensor([[x]], dtype=F64)
        return (model.noise(at, t).square() * TOY.at(VP, t).log_prob(at).exp()).item()

    for t, found in zip(times, posterior_variances(model, times), strict=True):
        mean = quad(square, -9, 9, (t,), epsabs=0, epsrel=1e-11, limit=400)[0]
        exact = (VP.sigma(t) / VP.alpha(t)) ** 2 * (1 - mean)
        assert found == pytest.approx(exact, rel=1e-7)


def test_in_the_plane_it_is_drawn_from_the_mixture() -> None:
    """Within 4 standard errors of the average trace of the posterior covariance, from other draws."""
    target, t, n = sk.data.ring(), 0.3, 20_000
    (found,) = posterior_variances(target.denoiser(VP), [t], samples=n)
    x0 = target.sample(n, seed=5)
    noise = torch.randn(n, 2, generator=torch.Generator().manual_seed(6), dtype=F64)
    x = VP.perturb(x0, t, noise)
    traces = target.posterior(VP, x, t).covariance.diagonal(dim1=1, dim2=2).mean(1)
    squares = (x0 - target.denoiser(VP).data(x, t)).square().mean(1)
    error = math.sqrt((traces.var().item() + squares.var().item()) / n)
    assert abs(found - traces.mean().item()) < 4 * error


@pytest.mark.parametrize("steps", [25, 50])
def test_it_beats_both_other_variances_on_two_modes(steps: int) -> None:
    times = ss.GRIDS["uniform"].times(VP, steps, 1.0, 1e-3)
    fitted = OPTIMAL.fitted(TOY.denoiser(VP), times)
    optimal, large, small = (
        distance(s.plan(VP, times)) for s in (fitted, ss.Ancestral("beta"), ss.Ancestral())
    )
    known = {25: (4.72e-2, 5.55e-2, 1.096e-1), 50: (2.40e-2, 2.86e-2, 6.26e-2)}
    assert (optimal, large, small) == pytest.approx(known[steps], rel=5e-3)
    assert optimal < large < small


class Off(sk.Denoiser):
    """An exact model plus a constant; counts its calls."""

    prediction = "data"

    def __init__(self, error: float) -> None:
        self.inner, self.error, self.process = TOY.denoiser(VP), error, VP
        self.calls = 0

    def predict(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
        self.calls += 1
        return self.inner.predict(x, t) + self.error


def test_a_wrong_mean_is_paid_for() -> None:
    """The variance about a mean that is off by e is larger by e^2 (Bao et al. 2022b)."""
    data, times = TOY.sample(200_000, seed=0), [0.6, 0.3]
    right, wrong = (posterior_variances(Off(e), times, data=data) for e in (0.0, 0.5))
    for a, b, exact in zip(right, wrong, posterior_variances(TOY.denoiser(VP), times), strict=True):
        # 2 e (x_0 - D) has mean 0 and standard error 2 e sqrt(v / n); 4 of them.
        assert abs(b - a - 0.25) < 4 * math.sqrt(exact / len(data))


def test_a_model_without_data_is_refused_before_it_is_called() -> None:
    model = Off(0.0)
    with pytest.raises(ValueError, match="give data="):
        sk.sample(model, (4, 1), sampler=OPTIMAL, steps=5, seed=0)
    assert model.calls == 0
    times = log_snr_times(VP, 5)
    fitted = OPTIMAL.fitted(model, times, data=TOY.sample(500, seed=0))
    assert model.calls == 5
    out = sk.sample(model, (4, 1), sampler=fitted, grid=times, seed=0)
    assert out.nfe == 5


def test_a_run_fits_itself_to_an_exact_model() -> None:
    """Mean and variance of 1e5 samples within 4 standard errors of the exact law, at 3 steps."""
    target, n = sk.GaussianMixture(None, [0.7], 0.5), 100_000
    out = sk.sample(target.denoiser(VP), (n, 1), sampler=OPTIMAL, steps=3, seed=3, dtype=F64)
    assert out.plan is not None
    assert out.plan.name.startswith("Ancestral(variance='optimal', 3 times, ")
    v = variance_at(VP, 1e-3)
    assert abs(out.x.mean().item() - VP.alpha(1e-3) * 0.7) < 4 * math.sqrt(v / n)
    assert abs(out.x.var().item() / v - 1) < 4 * math.sqrt(2 / n)


def test_a_fit_is_a_value() -> None:
    model, times = TOY.denoiser(VP), log_snr_times(VP, 5)
    one, same = (OPTIMAL.fitted(model, torch.tensor(times, dtype=F64)) for _ in range(2))
    other = OPTIMAL.fitted(sk.GaussianMixture(None, [0.7], 0.5).denoiser(VP), times)
    assert one == same
    assert hash(one) == hash(same)
    assert repr(one) == repr(same) != repr(other)
    assert len(repr(one)) < 60
    first, second = (
        OPTIMAL.fitted(model, times, data=TOY.sample(50, seed=0), seed=s) for s in (1, 2)
    )
    assert first != second


def test_a_fit_goes_where_a_sampler_goes() -> None:
    model = TOY.denoiser(FLOW)
    times = [1.0, 0.7, 0.3, 0.0]
    fitted = OPTIMAL.fitted(model, times)
    assert isinstance(fitted, _FittedAncestral)
    assert fitted.times == (0.7, 0.3)
    assert fitted.plan(FLOW, times).nfe == 3
    steps = ss.PredictorCorrector(predictor=fitted).plan(FLOW, times)
    assert steps.nfe == 4


BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: ss.EulerMaruyama("exact"), ValueError, "variance must be one of 'step', 'integrated'"),
    (lambda: ss.ItoExponential(-1.0), ValueError, "tau"),
    (lambda: ss.ItoExponential(True), TypeError, "tau must be a number"),
    (lambda: OPTIMAL.plan(VP, [1, 0.5]), ValueError, r"take that of Ancestral\('optimal'\).fitted"),
    (lambda: ss.Ancestral().fitted(Off(0), [1, 0.5]), ValueError, "'beta_tilde' needs no fit"),
    (lambda: OPTIMAL.fitted(VP, [1, 0.5]), TypeError, "denoiser must be a Denoiser, got VP"),  # type: ignore[arg-type]
    (lambda: OPTIMAL.fitted(Off(0), [0.5, 1]), ValueError, "times must decrease strictly"),
    (lambda: OPTIMAL.fitted(Off(0), [1, 0.5], data=[1.0]), TypeError, "data must be a torch.Tensor"),  # type: ignore[arg-type]
    (lambda: OPTIMAL.fitted(Off(0), [1, 0.5], data=torch.zeros(0, 1)), ValueError, "at least one row"),
    (lambda: OPTIMAL.fitted(Off(0), [1, 0.5], data=torch.tensor([[math.nan]])), ValueError, "NaN"),
    (lambda: OPTIMAL.fitted(Off(0), [1, 0.5], seed=-1), ValueError, "seed must be >= 0"),
    (lambda: OPTIMAL.fitted(Off(0), [1, 0.5], samples=1), ValueError, "samples must be >= 2"),
    (lambda: _FittedAncestral((1.0,), (0.1,)).plan(VP, [0.9, 0.5]), ValueError, "other times: t = 0.9"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[m for _, _, m in BAD])
def test_bad_input(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
