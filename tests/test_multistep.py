"""Equivalences and exactness of the multistep and multistage samplers; their orders are in test_samplers."""

from itertools import pairwise

import pytest
import torch

import sdekit as sk
from sdekit import samplers as ss
from sdekit.sampling.multistep import exponential_moments, integrated_lagrange

VP = sk.VP()
TOY = sk.GaussianMixture([0.3, 0.7], [-1.4, 0.6], 0.4)
STARTS = torch.tensor([-1.5, -0.7, -0.2, 0.3, 1.1, 2.0], dtype=torch.float64)[:, None]
EXACT_ON_CONSTANTS = [
    ss.ExponentialAB(1), ss.ExponentialAB(2), ss.ExponentialAB(3), ss.ExponentialAB(4),
    ss.DPMSolverPP(2), ss.DPMSolverPP(3), ss.UniPC(1), ss.UniPC(2), ss.UniPC(3), ss.UniPC(2, "bh1"),
    ss.EDMHeun(), *(ss.SigmaRungeKutta(m) for m in ("euler", "heun", "midpoint", "rk4")),
]  # fmt: skip


def run(sampler: ss.Sampler, steps: int = 12, process: sk.Process = VP, grid: str = "log-snr"):
    return sk.sample(
        TOY.denoiser(process),
        (6, 1),
        sampler=sampler,
        steps=steps,
        grid=grid,
        x_init=STARTS,
        seed=3,
    ).x


@pytest.mark.parametrize(
    ("one", "other", "tolerance"),
    [
        (ss.ExponentialAB(1), ss.DDIM(), 1e-12),
        (ss.SigmaRungeKutta("euler"), ss.DDIM(), 1e-12),
        (ss.SigmaRungeKutta("heun"), ss.EDMHeun(), 1e-12),
        (ss.DPMSolverPP(1), ss.DDIM(), 1e-12),
        (ss.DPMSolverPP(3), ss.ExponentialAB(3), 1e-10),
        (ss.DPMSolverPP(3, tau=1.0), ss.ExponentialAB(3, tau=1.0), 1e-10),
        (ss.EDMHeun(churn=3.0, low=1e3), ss.EDMHeun(), 0.0),
    ],
    ids=lambda v: repr(v),
)
@pytest.mark.parametrize("process", [VP, sk.EDM(), sk.SubVP()], ids=repr)
def test_two_writings_of_one_sampler(one, other, tolerance, process):
    a, b = run(one, process=process), run(other, process=process)
    assert (a - b).abs().max() <= tolerance * max(1.0, b.abs().max().item())


def test_the_predictor_of_unipc_2_is_dpm_solver_pp_2m():
    """With two points bh2 takes the middle of the step; only the corrector is added."""
    times = ss.LogSNR().times(VP, 3, 1.0, 1e-2)
    unipc, multistep = (s.plan(VP, times).rows for s in (ss.UniPC(2), ss.DPMSolverPP(2)))
    corrected = {k for k, row in enumerate(unipc) if row.node is not None and row.read is None}
    assert corrected
    first = multistep[1]
    assert dict(unipc[1].p) == pytest.approx(dict(first.p), rel=1e-12)
    # The last row extrapolates from the corrected state with the weights of 2M.
    assert sorted(unipc[-1].p.values()) == pytest.approx(
        sorted(multistep[-1].p.values()), rel=1e-12
    )


@pytest.mark.parametrize("sampler", EXACT_ON_CONSTANTS, ids=repr)
@pytest.mark.parametrize("grid", ["log-snr", "uniform", "karras"])
def test_a_constant_prediction_is_integrated_exactly(sampler, grid):
    """The rows satisfy the alpha and the sigma balance: point data move along exact paths, any grid."""
    times = ss.GRIDS[grid].times(VP, 7, 1.0, 1e-3)
    mean, variance = sampler.plan(VP, times).gaussian_law(0.7, 0.0, start="exact")
    assert mean.item() == pytest.approx(VP.alpha(1e-3) * 0.7, rel=1e-11)
    assert variance.item() == pytest.approx(VP.sigma(1e-3) ** 2, rel=1e-9)


@pytest.mark.parametrize("tau", [0.5, 1.0])
@pytest.mark.parametrize("sampler", [ss.ExponentialAB, ss.DPMSolverPP], ids=lambda c: c.__name__)
def test_noise_of_the_exact_solution(sampler, tau):
    """On point data the law is exact at any tau: the noise carries the variance that is decayed."""
    times = ss.LogSNR().times(VP, 9, 1.0, 1e-3)
    law = sampler(2, tau=tau).plan(VP, times).gaussian_law(0.7, 0.0, start="exact")
    assert law[0].item() == pytest.approx(VP.alpha(1e-3) * 0.7, rel=1e-12)
    assert law[1].item() == pytest.approx(VP.sigma(1e-3) ** 2, rel=1e-11)


@pytest.mark.parametrize("sampler", [ss.ExponentialAB(2, 1.0), ss.DPMSolverPP(2, 0.5)], ids=repr)
def test_weak_order_two_with_noise(sampler):
    exact, errors = VP.alpha(1e-2) ** 2 * 0.25 + VP.sigma(1e-2) ** 2, []
    for steps in (64, 128, 256):
        plan = sampler.plan(VP, sampler.grid.times(VP, steps, 1.0, 1e-2))
        errors.append(plan.gaussian_law(0.7, 0.25, start="exact")[1].item() / exact - 1)
    slopes = [torch.tensor(a / b).log2().item() for a, b in pairwise(errors)]
    assert sum(slopes) / 2 == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("churn", [2.0, 20.0])
def test_churn_of_unit_noise_keeps_the_limit_and_other_noise_does_not(churn):
    exact = VP.alpha(1e-2) ** 2 * 0.25 + VP.sigma(1e-2) ** 2
    off = {}
    for noise in (1.0, 1.007):
        sampler = ss.EDMHeun(churn=churn, noise=noise)
        plan = sampler.plan(VP, sampler.grid.times(VP, 512, 1.0, 1e-2))
        off[noise] = abs(plan.gaussian_law(0.7, 0.25, start="exact")[1].item() / exact - 1)
    assert off[1.0] < 2e-3
    assert off[1.007] > 3 * off[1.0]


@pytest.mark.parametrize("h", [1e-3, 0.3, 0.99, 1.01, 4.0])
@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_moments_against_quadrature(h, tau):
    from scipy.integrate import quad

    c = 1 + tau**2
    for j, moment in enumerate(exponential_moments(tau, h, 4)):
        value = quad(lambda u, j=j: c * torch.tensor(c * (u - h)).exp().item() * u**j, 0, h)[0]
        assert moment == pytest.approx(value, rel=1e-6)
    import mpmath

    with mpmath.workdps(40):
        for j, moment in enumerate(exponential_moments(tau, h, 4)):
            rate, end = mpmath.mpf(c), mpmath.mpf(h)
            exact = mpmath.quad(lambda u: rate * mpmath.exp(rate * (u - end)) * u**j, [0, end])  # noqa: B023
            assert moment == pytest.approx(float(exact), rel=1e-12)


def test_weights_integrate_polynomials_of_their_degree():
    places, moments = [0.0, -0.3, -0.7, -1.5], exponential_moments(0.0, 0.4, 4)
    for count in (1, 2, 3, 4):
        weights = integrated_lagrange(places[:count], moments)
        for degree in range(count):
            total = sum(w * p**degree for w, p in zip(weights, places, strict=False))
            assert total == pytest.approx(moments[degree], rel=1e-12)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ss.ExponentialAB(0), ValueError, "order must be >= 1, got 0"),
        (lambda: ss.ExponentialAB(5), ValueError, "order must be 1 to 4, got 5"),
        (lambda: ss.ExponentialAB(2.0), TypeError, "order must be an integer"),
        (lambda: ss.ExponentialAB(tau=-1.0), ValueError, "tau"),
        (lambda: ss.DPMSolverPP(4), ValueError, "order must be 1 to 3, got 4"),
        (lambda: ss.DPMSolver(1), ValueError, "order must be >= 2, got 1"),
        (lambda: ss.DPMSolver(4), ValueError, "order must be 2 or 3, got 4"),
        (lambda: ss.UniPC(4), ValueError, "p must be 1 to 3, got 4"),
        (lambda: ss.UniPC(2, "bh3"), ValueError, "variant must be one of 'bh1', 'bh2'"),
        (lambda: ss.SigmaRungeKutta("rk5"), ValueError, "did you mean 'rk4'"),
        (lambda: ss.EDMHeun(churn=-1.0), ValueError, "churn"),
        (lambda: ss.EDMHeun(low=2.0, high=1.0), ValueError, "high"),
        (lambda: ss.EDMHeun(noise=-1.0), ValueError, "noise"),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()
