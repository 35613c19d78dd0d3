# Bad input is passed on purpose.
# pyright: reportArgumentType=false
import math
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from helpers import bad_input
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.integrate import quad
from scipy.optimize import brentq
from torch import Tensor

from sdekit import EDM, VE, VP, Denoiser, GaussianMixture, Interpolant, SubVP
from sdekit.ddpm import cosine_betas, linear_betas, rescale_zero_terminal_snr, sigmoid_betas
from sdekit.denoisers import Prediction, conversion
from sdekit.processes import ALL as PROCESSES
from sdekit.processes import expand
from sdekit.training import (
    DenoisingLoss,
    ImplicitScoreMatching,
    LogNormalTimes,
    SlicedScoreMatching,
    draw_times,
    minimum_loss,
    minimum_with_error,
    resolve_times,
)
from sdekit.training.losses import Weighting
from sdekit.training.minima import least

KINDS = Prediction.__args__
WEIGHTINGS = Weighting.__args__
UNIT = GaussianMixture(None, [0.0], 1.0)
FAMILIES = (VP(), SubVP(), VE(), EDM(), Interpolant())
TWO_MODES = GaussianMixture([0.3, 0.7], [-1.4, 0.6], 0.4)
L1 = DenoisingLoss(norm="l1")


class As(Denoiser):
    """The exact posterior mean, given as a prediction of any kind."""

    def __init__(self, target, process, prediction) -> None:
        self.exact, self.process, self.prediction = target.denoiser(process), process, prediction

    def predict(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
        a, b = (expand(c, x) for c in conversion(self.process, "data", self.prediction, t))
        return a * x + b * self.exact.predict(x, t)


def least_at(target, process, loss, t):
    """Least loss at each time, on the line."""
    return least(target, process, loss, t, "noise", 2, torch.Generator())[0]


def chain(betas, zero: bool = False) -> VP:
    return VP.from_betas(betas, zero_terminal_snr=zero)


# ---------------------------------------------------------------------------------- chains


@pytest.mark.parametrize(
    ("betas", "unit", "two_modes"),
    [
        (linear_betas(1000), 0.275513, 0.243551),
        (linear_betas(200, 1e-4, 0.2), 0.195563, 0.173171),
        (sigmoid_betas(), 0.681542, 0.657077),
        (cosine_betas(1000), 0.495578, 0.434744),
    ],
    ids=["linear, 1000", "linear, 200", "sigmoid, 40", "cosine, 1000"],
)
def test_mean_over_the_steps_of_a_chain(betas, unit, two_modes):
    """On N(0, 1) the mean of alpha_bar."""
    process, n = chain(betas), len(betas)
    alphas_bar = (1 - betas).cumprod(0).mean().item()
    assert minimum_loss(UNIT, process, labels=n) == pytest.approx(alphas_bar, rel=1e-12)
    assert alphas_bar == pytest.approx(unit, abs=5e-7)
    assert minimum_loss(TWO_MODES, process, labels=n) == pytest.approx(two_modes, abs=1e-6)


def test_chain_that_ends_without_signal():
    """There nothing is known of the data, and all of the noise."""
    betas = rescale_zero_terminal_snr(linear_betas(50, 1e-3, 0.1))
    process, target = chain(betas, zero=True), GaussianMixture(None, [0.3], 0.5)
    alphas_bar = (1 - betas).cumprod(0)
    expected = (alphas_bar * 0.25 / (alphas_bar * 0.25 + 1 - alphas_bar)).mean().item()
    assert minimum_loss(target, process, labels=50) == pytest.approx(expected, rel=1e-10)
    data = 0.25 * (1 - alphas_bar) / (alphas_bar * 0.25 + 1 - alphas_bar)
    found = minimum_loss(
        target, process, labels=50, loss=DenoisingLoss("target"), prediction="data"
    )
    assert found == pytest.approx(data.mean().item(), rel=1e-10)


# --------------------------------------------------------------------------------- Gaussians


@pytest.mark.parametrize("process", FAMILIES, ids=repr)
@pytest.mark.parametrize("std", [0.2, 1.0, 3.0])
def test_edm_objective_of_gaussians_of_its_std_is_one(process, std):
    """The weight is one over the variance that is left, at every level: whatever the times."""
    loss, target = DenoisingLoss("edm", data_std=std), GaussianMixture(None, [0.4], std)
    for times in ("log-normal", "stratified"):
        assert minimum_loss(target, process, loss=loss, times=times) == pytest.approx(1, rel=1e-9)


def test_edm_objective_of_two_modes():
    """Against adaptive quadrature in log sigma of the least loss at each level, not cut off."""
    loss, process = DenoisingLoss("edm"), EDM(1e-5, 1e4)
    found = minimum_loss(TWO_MODES, process, loss=loss, times="log-normal")
    assert found == pytest.approx(0.890191, abs=5e-7)

    def expected(sigma: float) -> float:
        law = TWO_MODES.at(process, sigma)
        fisher = quad(
            lambda x: (
                math.exp(law.log_prob(t := torch.tensor([[x]]).double()).item())
                * law.score(t).item() ** 2
            ),
            -8 - 8 * sigma,
            8 + 8 * sigma,
            limit=400,
            points=[-1.4, 0.6],
        )[0]
        return (1 + sigma**2) * (1 - sigma**2 * fisher)

    for sigma in (0.05, 0.3, 2.0):
        t = torch.tensor([sigma], dtype=torch.float64)
        assert least_at(TWO_MODES, process, loss, t).item() == pytest.approx(
            expected(sigma), rel=1e-7
        )


def gaussian(d: int, seed: int = 0) -> GaussianMixture:
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(d, d, generator=g, dtype=torch.float64) * 0.6
    return GaussianMixture(None, torch.ones(1, d), covariances=(root @ root.mT)[None])


@pytest.mark.parametrize("process", FAMILIES, ids=repr)
@pytest.mark.parametrize("weighting", ["simple", "likelihood", "min-snr", "truncated-snr"])
def test_gaussians_of_any_covariance(process, weighting):
    """Against adaptive quadrature of w(t) sum_i alpha^2 c_i / (alpha^2 c_i + sigma^2), in log-SNR."""
    target, loss = gaussian(3), DenoisingLoss(weighting)
    c = torch.linalg.eigvalsh(target.covariances[0]).numpy()

    def integrand(log_snr: float) -> float:
        t = process.time_at_log_snr(log_snr)
        t = min(max(t, process.t_min), process.t_max)
        snr = math.exp(log_snr)
        rate = process.rates(t)[1] / process.sigma(t) ** 2
        weight = {
            "simple": 1.0,
            "likelihood": 0.5 * rate,
            "min-snr": min(snr, 5.0) / snr,
            "truncated-snr": max(snr, 1.0) / snr,
        }[weighting]
        return weight * float((snr * c / (snr * c + 1)).mean()) / rate

    low, high = process.log_snr(process.t_max), process.log_snr(process.t_min)
    cuts = sorted({low, high, *(v for v in (0.0, math.log(5.0)) if low < v < high)})
    total = math.fsum(
        quad(integrand, a, b, epsabs=1e-13, epsrel=1e-11, limit=500)[0] for a, b in pairwise(cuts)
    )
    found, error = minimum_with_error(target, process, loss=loss)
    assert found == pytest.approx(total / (process.t_max - process.t_min), rel=1e-8)
    assert error == 0


@pytest.mark.parametrize("process", FAMILIES, ids=repr)
def test_absolute_error_of_gaussians(process):
    """E|X| = sqrt(2 v / pi), element by element, at every time of a chain of 7."""
    target = gaussian(3)
    total = 0.0
    for k in range(1, 8):
        t = k / 7 * process.horizon
        alpha, sigma = process.alpha(t), process.sigma(t)
        covariance = target.covariances[0]
        # of eps given x_t: I - sigma^2 (alpha^2 C + sigma^2 I)^-1
        eye = torch.eye(3, dtype=torch.float64)
        left = eye - sigma**2 * torch.linalg.inv(alpha**2 * covariance + sigma**2 * eye)
        total += (2 * left.diagonal().clamp(min=0) / math.pi).sqrt().mean().item() / 7
    assert minimum_loss(target, process, loss=L1, labels=7) == pytest.approx(total, rel=1e-9)


# ---------------------------------------------------------------------- mixtures on the line


@pytest.mark.parametrize("time", [0.02, 0.3, 0.8])
def test_absolute_error_of_two_modes(time):
    """Against scipy: posterior by Bayes, its median by root finding, both integrals adaptive."""
    process, w, m, s = VP(), [0.3, 0.7], [-1.4, 0.6], 0.4
    alpha, sigma = process.alpha(time), process.sigma(time)
    spread = math.sqrt(alpha**2 * s**2 + sigma**2)
    left = s * sigma / spread

    def given(x: float) -> Any:
        terms = [a * stats.norm.pdf(x, alpha * b, spread) for a, b in zip(w, m, strict=True)]
        means = [b + alpha * s**2 / spread**2 * (x - alpha * b) for b in m]
        r = [a / sum(terms) for a in terms]

        def cdf(c: float) -> Any:
            return sum(a * stats.norm.cdf(c, b, left) for a, b in zip(r, means, strict=True))

        median: Any = brentq(
            lambda c: cdf(c) - 0.5, min(means) - left, max(means) + left, xtol=1e-13
        )
        distance = sum(
            a * stats.foldnorm.mean(abs(b - median) / left, scale=left)
            for a, b in zip(r, means, strict=True)
        )
        return sum(terms) * distance

    cuts = np.linspace(-1.4 * alpha - 9 * spread, 0.6 * alpha + 9 * spread, 30)
    total = sum(quad(given, a, b, epsabs=1e-9, epsrel=1e-7)[0] for a, b in pairwise(cuts))
    t = torch.tensor([time], dtype=torch.float64)
    found = least_at(TWO_MODES, process, L1, t)
    assert found.item() == pytest.approx(alpha / sigma * total, rel=1e-6)


def test_likelihood_weighting_on_two_modes():
    """Mean 6.586. Importance times bring the standard deviation down to 13.

    Over uniform times it is heavy-tailed, but no less than that of w(t) least(t) alone: by quadrature.
    """
    loss, process, n = DenoisingLoss("likelihood"), VP(), 200_000
    lowest = minimum_loss(TWO_MODES, process, loss=loss)
    assert lowest == pytest.approx(6.586, abs=5e-4)
    exact, spreads = TWO_MODES.denoiser(process), {}
    for times in ("uniform", "importance"):
        g, law = torch.Generator().manual_seed(0), resolve_times(times)
        t = law.draw(n, process, g)
        x0 = TWO_MODES.sample(n, generator=g)
        noise = torch.randn(x0.shape, generator=g, dtype=torch.float64)
        values, weight = loss(exact, x0, t, noise), law.importance(process, t)
        values = values if weight is None else values * weight
        spreads[times] = values.std().item()
        assert abs(values.mean().item() - lowest) < 4 * spreads[times] / math.sqrt(n)
    assert spreads["importance"] == pytest.approx(13.2, rel=0.05)
    t, weights = resolve_times("uniform").nodes(process)
    each = least_at(TWO_MODES, process, loss, t)
    across = math.sqrt((weights @ each.square()).item() - lowest**2)
    assert across > 10 * spreads["importance"]


def test_minimum_depends_on_the_objective_alone():
    for times in ("uniform", "stratified", "importance"):
        assert minimum_loss(TWO_MODES, VP(), times=times) == minimum_loss(TWO_MODES, VP())
    assert minimum_loss(TWO_MODES, VP(), times="log-normal") > 0.5
    for loss in (ImplicitScoreMatching(), SlicedScoreMatching()):
        assert minimum_loss(TWO_MODES, VP(), loss=loss) == minimum_loss(TWO_MODES, VP())


def test_atoms_and_an_atom():
    """Two atoms are found out where the noise is small, and the median sits on one of them."""
    one, two = GaussianMixture(None, [0.7], 0.0), GaussianMixture(None, [-1.0, 1.0], 0.0)
    for loss in (DenoisingLoss(), L1):
        assert minimum_loss(one, VP(), loss=loss) == 0
    process, t = VP(), 0.2
    alpha, sigma = process.alpha(t), process.sigma(t)
    # the rarer of the two is missed by 2: E 2 min(r, 1 - r) = 2 P(the wrong one is nearer)
    wrong = stats.norm.cdf(-alpha / sigma)
    time = torch.tensor([t], dtype=torch.float64)
    found = least_at(two, process, L1, time)
    assert found.item() == pytest.approx(alpha / sigma * 2 * wrong, rel=1e-9)


# --------------------------------------------------------------- exact denoisers, and networks


def losses_of(model, target, loss, times, n: int, seed: int = 0):
    g, law = torch.Generator().manual_seed(seed), resolve_times(times)
    t = law.draw(n, model.process, g)
    x0 = target.sample(n, generator=g)
    noise = torch.randn(x0.shape, generator=g, dtype=torch.float64)
    values, weight = loss(model, x0, t, noise), law.importance(model.process, t)
    return values if weight is None else values * weight


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_exact_denoiser_has_the_least_loss(process, weighting, kind):
    """Within 4 standard errors; log-normal times, which spare weights without a variance."""
    loss, law = DenoisingLoss(weighting), LogNormalTimes(-0.5, 0.5, stratified=False)
    if kind != "noise" and weighting != "target":
        # the same number from other outputs; the target weighting alone has other minima
        pair = [
            losses_of(As(TWO_MODES, process, k), TWO_MODES, loss, law, 50) for k in (kind, "noise")
        ]
        torch.testing.assert_close(*pair, rtol=1e-6, atol=1e-9)
        return
    values = losses_of(As(TWO_MODES, process, kind), TWO_MODES, loss, law, 4000)
    low = minimum_loss(TWO_MODES, process, loss=loss, times=law, prediction=kind)
    assert abs(values.mean().item() - low) < 4 * values.std().item() / math.sqrt(4000)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_exact_denoiser_over_importance_times(weighting):
    """Within 4 standard errors."""
    loss, model = DenoisingLoss(weighting), As(TWO_MODES, VP(), "v")
    values = losses_of(model, TWO_MODES, loss, "importance", 20_000)
    low = minimum_loss(TWO_MODES, VP(), loss=loss, times="importance", prediction="v")
    assert abs(values.mean().item() - low) < 4 * values.std().item() / math.sqrt(20_000)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_mixtures_of_any_dimension_by_draws(weighting, toy2):
    """Against the exact denoiser's loss: within 4 standard errors of both together."""
    process, loss = VP(), DenoisingLoss(weighting)
    low, error = minimum_with_error(toy2, process, loss=loss, n=20_000)
    values = losses_of(toy2.denoiser(process), toy2, loss, "importance", 40_000)
    if weighting == "target":
        low, error = minimum_with_error(toy2, process, loss=loss, n=20_000, prediction="data")
    assert 0 < error < 0.02 * low
    assert abs(values.mean().item() - low) < 4 * math.hypot(
        error, values.std().item() / math.sqrt(40_000)
    )


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_draws_agree_with_quadrature(norm):
    """Two independent copies in the plane, rotated: quadrature of one within 4 standard errors.

    Absolute errors do not survive the rotation; they are compared in the axes of the copies.
    """
    w, m = TWO_MODES.weights, TWO_MODES.means[:, 0]
    means, covariances = torch.cartesian_prod(m, m), 0.16 * torch.eye(2).double().expand(4, 2, 2)
    if norm == "l2":
        turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
        means = means @ turn
    plane = GaussianMixture(torch.outer(w, w).flatten(), means, covariances=covariances)
    loss = DenoisingLoss(norm=norm)
    found, error = minimum_with_error(plane, VP(), loss=loss, n=20_000)
    assert 0 < error < 4e-3
    assert abs(found - minimum_loss(TWO_MODES, VP(), loss=loss)) < 4 * error


SIZE = st.floats(-2, 2)


class Wave(Denoiser):
    def __init__(self, process, prediction, a, b, c, d) -> None:
        self.process, self.prediction, self.numbers = process, prediction, (a, b, c, d)

    def predict(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
        a, b, c, d = self.numbers
        return a * torch.sin(b * x + c * t[:, None] / self.process.horizon) + d * x


@cache
def known(process, loss, law, kind):
    return minimum_loss(TWO_MODES, process, loss=loss, times=law, prediction=kind)


@settings(max_examples=40)
@given(
    st.tuples(SIZE, SIZE, SIZE, SIZE),
    st.sampled_from(KINDS),
    st.sampled_from(
        [(w, p, "l2") for w in WEIGHTINGS for p in FAMILIES] + [("simple", VP(), "l1")]
    ),
)
def test_no_network_is_below_the_least_loss(numbers, kind, how):
    """A theorem on the mean; the draws may be below it by 4 standard errors."""
    weighting, process, norm = how
    loss, law = DenoisingLoss(weighting, norm), LogNormalTimes(-0.5, 0.5, stratified=False)
    values = losses_of(Wave(process, kind, *numbers), TWO_MODES, loss, law, 2000)
    low = known(process, loss, law, "noise" if weighting != "target" else kind)
    assert values.mean().item() >= low - 4 * values.std().item() / math.sqrt(2000)


def test_drawn_minima_are_a_function_of_the_seed(toy2):
    once = minimum_with_error(toy2, VP(), n=2000)
    assert once == minimum_with_error(toy2, VP(), n=2000, seed=0)
    assert once != minimum_with_error(toy2, VP(), n=2000, seed=1)


test_bad_input = bad_input(
    [
        ("target", lambda: minimum_loss(torch.randn(9, 1), VP()), TypeError, ["target", "Tensor"]),
        ("loss", lambda: minimum_loss(UNIT, VP(), loss="simple"), TypeError, ["loss", "'simple'"]),
        ("times", lambda: minimum_loss(UNIT, VP(), times="often"), ValueError, ["times", "often"]),
        ("labels", lambda: minimum_loss(UNIT, VP(), labels=0), ValueError, ["labels", ">= 1"]),
        (
            "prediction",
            lambda: minimum_loss(UNIT, VP(), loss=DenoisingLoss("target"), prediction="nois"),
            ValueError,
            ["prediction", "'noise'"],
        ),
        ("n", lambda: minimum_loss(UNIT, VP(), n=1.5), TypeError, ["n must be an integer"]),
        ("draw", lambda: draw_times(2, VP(), torch.Generator(), None), TypeError, ["times"]),
    ]
)
