"""The measures of the toy studies, held against scipy, quadrature and laws with known answers."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import gaussian_kde

import sdekit as sk
from sdekit.denoisers import Denoiser
from sdekit.pde import Density1D

sys.path.insert(0, str(Path(__file__).parent.parent / "experiments"))

import spiral_2d
import toy_1d

TWO_MODE, RAMP = toy_1d.TARGETS["two-mode"], toy_1d.TARGETS["ramp"]


class Off(Denoiser):
    """The exact noise and a constant."""

    prediction = "noise"

    def __init__(self, exact, by):
        self.exact, self.by, self.process = exact, by, exact.process

    def predict(self, x, t, **conditions):
        return self.exact.noise(x, t) + self.by


def test_the_two_mode_toy_is_the_mixture_of_the_published_study():
    mixture = toy_1d.diffusible(TWO_MODE)
    assert mixture.weights.tolist() == pytest.approx([0.3, 0.7], rel=1e-14)
    assert mixture.means.flatten().tolist() == pytest.approx([-1.4, 0.6], rel=1e-14)
    assert mixture.variances.sqrt().flatten().tolist() == pytest.approx([0.4, 0.4], rel=1e-14)
    assert mixture.narrowest == pytest.approx(sk.data.two_mode().narrowest, rel=1e-14)


def test_the_least_loss_of_the_chain():
    betas = toy_1d.CHAIN.betas
    assert (float(betas[0]), float(betas[-1]), len(betas)) == (1e-4, 0.2, 200)
    # 1 - sigma^2 E |score|^2 at three steps by adaptive quadrature, and their part in the mean
    _, weight, noise = toy_1d.levels("two-mode")
    ours = 1 - (weight * noise.square()).sum(1)
    for i in (1, 60):
        law = TWO_MODE.mixture.at(toy_1d.CHAIN.process, i / 200)

        def integrand(x, law=law):
            point = torch.tensor([[x]], dtype=torch.float64)
            return (law.log_prob(point).exp() * law.score(point)[:, 0] ** 2).item()

        fisher = quad(integrand, -8, 8, epsabs=1e-12, limit=400)[0]
        exact = 1 - toy_1d.CHAIN.process.sigma(i / 200) ** 2 * fisher
        assert float(ours[i - 1]) == pytest.approx(exact, abs=1e-9)
    assert toy_1d.least_loss("two-mode") == pytest.approx(float(ours.mean()), rel=1e-14)
    assert toy_1d.least_loss("two-mode") == pytest.approx(0.173171, abs=1e-6)


def test_excess_is_the_square_of_what_is_wrong():
    exact = TWO_MODE.mixture.denoiser(toy_1d.CHAIN.process)
    assert float(toy_1d.excess(exact, "two-mode").max()) < 1e-25
    off = toy_1d.excess(Off(exact, 0.03), "two-mode")
    assert off.shape == (200,)
    assert off.tolist() == pytest.approx([9e-4] * 200, rel=1e-12)


@pytest.mark.parametrize("x", [-1.45, -1.3, 0.2, 2.8, 2.84])
def test_the_ramp_as_atoms_has_its_exact_noise_at_the_first_step(x):
    process, t = toy_1d.CHAIN.process, 1 / 200
    alpha, sigma = process.alpha(t), process.sigma(t)
    (mean,), (std,) = RAMP.raw_mean, RAMP.raw_std
    low, high = -mean / std, (1 - mean) / std

    def moment(k):
        def integrand(y):
            z = (x - alpha * y) / sigma
            return z**k * 2 * (1 - (y * std + mean)) * math.exp(-0.5 * z * z)

        # Panels of half the noise's width, ten widths about x: the rest is less than 1e-20 of it.
        centre = min(max(x / alpha, low), high)
        cuts = np.clip(centre + sigma * np.arange(-10, 10.5, 0.5), low, high)
        z, weight = np.polynomial.legendre.leggauss(20)
        half = np.diff(cuts)[:, None] / 2
        places = cuts[:-1, None] + half * (z + 1)
        return math.fsum((half * weight * np.vectorize(integrand)(places)).ravel())

    exact = moment(1) / moment(0)
    atoms = toy_1d.diffusible(RAMP).denoiser(process)
    given = atoms.noise(torch.tensor([[x]], dtype=torch.float64), t).item()
    assert given == pytest.approx(exact, abs=2e-9)


def test_distances_of_a_law_that_is_the_truth_moved():
    x = np.linspace(-6, 6, 2001)
    rho = TWO_MODE.log_prob(torch.from_numpy(x)[:, None]).exp().numpy()
    same = toy_1d.distances(Density1D(x, rho, x, np.ones_like(x)), TWO_MODE)
    assert same["W1"] < 1e-10
    assert abs(same["KL"]) < 1e-10
    moved = toy_1d.distances(Density1D(x, rho, x + 0.05, np.ones_like(x)), TWO_MODE)
    assert moved["W1"] == pytest.approx(0.05, rel=1e-9)

    log_p, log_q = (TWO_MODE.log_prob(torch.from_numpy(x - by)[:, None]) for by in (0, 0.05))
    exact = float((log_p.exp() * (log_p - log_q)).sum()) * (x[1] - x[0])
    assert moved["KL"] == pytest.approx(exact, abs=1e-8)  # the tails beyond 1e-9 are left out


def test_kernels_are_those_of_scipy():
    points = TWO_MODE.sample(400, seed=3)[:, 0].double()
    for rule in ("Scott", "Silverman"):
        theirs = gaussian_kde(points.numpy(), bw_method=rule.lower())
        width = toy_1d.bandwidth(points, rule)
        assert width == pytest.approx(math.sqrt(theirs.covariance[0, 0]), rel=1e-12)
        found = toy_1d.by_kernels(points, rule, TWO_MODE)
        exact = theirs(toy_1d.SHOWN.numpy())
        assert found["density"] == pytest.approx(exact.tolist(), abs=1e-9)


def test_the_width_by_leaving_one_out():
    points = TWO_MODE.sample(300, seed=4)[:, 0].double()
    n, chosen = len(points), toy_1d.bandwidth(points, "leave-one-out")
    away = (points[:, None] - points).square()
    away.fill_diagonal_(math.inf)

    def likelihood(width):
        terms = (-0.5 * away / width**2).exp() / (width * math.sqrt(2 * math.pi))
        return float((terms.sum(1) / (n - 1)).log().sum())

    assert likelihood(chosen) > likelihood(1.08 * chosen)
    assert likelihood(chosen) > likelihood(chosen / 1.08)


def test_lengths_halve_down_to_five_hundred():
    assert spiral_2d.lengths(4_000) == [500, 1_000, 2_000, 4_000]
    assert spiral_2d.lengths(500) == [500]
    assert spiral_2d.lengths(300) == [300]


@pytest.mark.parametrize("target", spiral_2d.TARGETS)
def test_exact_samples_are_as_good_as_they_can_be(target):
    n, law = 500, spiral_2d.TARGETS[target]
    found = spiral_2d.quality(law.sample(n, seed=1), target)
    values = spiral_2d.floor(target, n).values
    assert min(values) / 2 < found["sliced W2"] < 2 * max(values)
    # Two samples of n, one that sets the level and one that is held against it: four standard errors.
    assert found["outside"] <= 0.001 + 4 * math.sqrt(2 * 0.001 / n)
    noise = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    assert spiral_2d.quality(noise, target)["outside"] > 0.3


def test_the_chains_end_in_noise():
    for steps in spiral_2d.CHAINS:
        assert float(spiral_2d.chain_of(steps).alphas_bar[-1]) < 5e-5


def test_bounds_change_no_law_that_stays_where_the_data_are():
    points = TWO_MODE.sample(1_000, seed=0)
    exact = TWO_MODE.mixture.denoiser(toy_1d.CHAIN.process)
    free, _ = toy_1d.laws(exact, TWO_MODE, points)
    bounded, _ = toy_1d.laws(toy_1d.Bounded(exact, points), TWO_MODE, points)
    want = toy_1d.distances(free, TWO_MODE)
    assert want["KL"] == pytest.approx(6.13e-4, rel=1e-3)
    assert toy_1d.distances(bounded, TWO_MODE) == pytest.approx(want, rel=1e-6)


def test_bounds_hold_a_model_that_runs_away():
    class Away(sk.Denoiser):
        """Twice as far out as x, wherever that is."""

        process, prediction = toy_1d.CHAIN.process, "data"

        def predict(self, x, t, **conditions):
            return 2 * x

    points = TWO_MODE.sample(1_000, seed=0)
    bounded = toy_1d.Bounded(Away(), points)
    x = torch.linspace(-50, 50, 1001, dtype=torch.float64)[:, None]
    out = bounded.data(x, 0.5)[:, 0]
    assert bool((out.diff() > 0).all())
    assert points.min() - 3 < out.min() < out.max() < points.max() + 3
    near = x[:, 0].abs() < 1
    assert torch.equal(out[near], 2 * x[near, 0])
