# Bad input is passed on purpose.
# pyright: reportArgumentType=false
import math
import re
from functools import cache
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from helpers import normal
from scipy import stats
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sdekit.data import GaussianMixture
from sdekit.metrics import (
    Floor,
    assigned_wasserstein,
    energy_distance,
    floor,
    kl_divergence,
    sliced_wasserstein,
    total_variation,
    wasserstein_1d,
)


def mixture(weights: list[float], means: list[float], stds: list[float]) -> GaussianMixture:
    w, m, s = (torch.tensor(v, dtype=torch.float64) for v in (weights, means, stds))
    return GaussianMixture(w, m, stds=s)


BIMODAL = mixture([0.3, 0.7], [-1.4, 0.6], [0.4, 0.4])
GAUSSIAN = mixture([1.0], [0.5], [2.0])
APART = mixture([0.5, 0.5], [-50.0, 50.0], [1.0, 1.0])
SPIKED = mixture([0.1, 0.6, 0.3], [-3.0, 0.0, 2.0], [0.01, 1.0, 0.1])
LAWS = {"bimodal": BIMODAL, "gaussian": GAUSSIAN, "apart": APART, "spiked": SPIKED}


def components(law: GaussianMixture, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, std = law.means[:, 0], law.covariances[:, 0, 0].sqrt()
    z = (x[:, None] - mean) / std
    return mean, std, z, torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def cdf_integral(law: GaussianMixture, x: Tensor) -> Tensor:
    """int_{-inf}^x G in closed form."""
    _, std, z, density = components(law, x)
    return (law.weights * std * (z * torch.special.ndtr(z) + density)).sum(1)


def w1_from_cdf(x: Tensor, law: GaussianMixture) -> float:
    """int |F_n - G| dx, split where F_n steps and where G crosses it, each part in closed form."""
    x, n = x.flatten().sort().values, x.numel()
    level = torch.arange(1, n, dtype=torch.float64) / n
    a, b = x[:-1], x[1:]
    c = law.quantile(level).clamp(min=a, max=b)
    at_a, at_b, at_c = (cdf_integral(law, point) for point in (a, b, c))
    inner = (c - a) * level - (at_c - at_a) + (at_b - at_c) - (b - c) * level
    mirrored = GaussianMixture(law.weights, -law.means, stds=law.covariances[:, 0, 0].sqrt())
    outer = cdf_integral(law, x[:1]) + cdf_integral(mirrored, -x[-1:])
    return float(inner.sum() + outer)


def w2_from_moments(x: Tensor, law: GaussianMixture) -> float:
    """Sum over cells of x_i^2 m_0 - 2 x_i m_1 + m_2, the partial moments of G in closed form."""
    x, n = x.flatten().sort().values, x.numel()
    cut = law.quantile(torch.arange(n + 1, dtype=torch.float64) / n)
    mean, std, z, density = components(law, cut)
    below = torch.special.ndtr(z)
    slope = torch.where(z.isfinite(), z * density, 0.0)
    first = mean * below - std * density
    second = mean**2 * below - 2 * mean * std * density + std**2 * (below - slope)
    m0, m1, m2 = ((law.weights * moment).sum(1).diff() for moment in (below, first, second))
    return math.sqrt(float((x * x * m0 - 2 * x * m1 + m2).sum()))


# ---- Wasserstein on the line ---------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 101, 10_000])
@pytest.mark.parametrize("name", LAWS)
def test_wasserstein_to_a_mixture_is_its_closed_form(name, n):
    law = LAWS[name]
    x = law.sample(n, seed=n)
    assert wasserstein_1d(x, law, 1) == pytest.approx(w1_from_cdf(x, law), rel=2e-12)
    # The closed form subtracts second moments: its own round-off is about 1e-15 E x^2 of W_2^2.
    expected = w2_from_moments(x, law)
    round_off = 2e-15 * float(law.covariance + law.mean**2) / expected**2
    assert wasserstein_1d(x, law, 2) == pytest.approx(expected, rel=2e-12 + round_off)


def test_wasserstein_to_random_mixtures():
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        weights, means, stds = torch.rand(3, 4, generator=generator, dtype=torch.float64)
        law = GaussianMixture(weights**4 + 1e-6, 6 * means, stds=0.003 + stds**3)
        x = 1.1 * law.sample(50, seed=seed)
        assert wasserstein_1d(x, law, 1) == pytest.approx(w1_from_cdf(x, law), rel=1e-11)
        assert wasserstein_1d(x, law, 2) == pytest.approx(w2_from_moments(x, law), rel=1e-11)


def test_wasserstein_of_a_point_is_a_moment():
    # Two equal samples at c: W_p^p = E |Y - c|^p; for N(m, s^2) both moments are closed forms.
    m, s, c = 0.5, 2.0, 1.7
    x, z = torch.full((2,), c, dtype=torch.float64), (c - m) / s
    absolute = s * (2 * stats.norm.pdf(z) + z * (2 * stats.norm.cdf(z) - 1))
    assert wasserstein_1d(x, GAUSSIAN, 1) == pytest.approx(absolute, rel=1e-13)
    assert wasserstein_1d(x, GAUSSIAN, 2) == pytest.approx(math.hypot(s, c - m), rel=1e-13)


def test_wasserstein_of_exact_quantiles_is_the_quantisation_error():
    # With x_i the cell means, W_2^2 is Var(Y) - Var(x); it is small and must not lose digits.
    n = 1000
    cut = stats.norm.ppf(np.arange(n + 1) / n)
    means = -n * np.diff(stats.norm.pdf(cut))
    law = mixture([1.0], [0.0], [1.0])
    expected = math.sqrt(1 - np.mean(means**2))
    assert wasserstein_1d(torch.from_numpy(means), law, 2) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("p", [1, 2])
def test_wasserstein_to_a_law_without_gaussian_tails(p):
    class Exponential:
        def cdf(self, x: Tensor) -> Tensor:
            return -torch.expm1(-x.clamp(min=0))

        def quantile(self, u: Tensor) -> Tensor:
            return -torch.log1p(-u)

    # E |Y - 1| = 2/e and E (Y - 1)^2 = 1.
    expected = {1: 2 / math.e, 2: 1.0}[p]
    x = torch.ones(3, dtype=torch.float64)
    assert wasserstein_1d(x, Exponential(), p) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("p", [1, 2])
def test_wasserstein_moves_and_scales_with_samples_and_law(p):
    x = BIMODAL.sample(500, seed=1)
    moved = mixture([0.3, 0.7], [3 - 2 * -1.4, 3 - 2 * 0.6], [0.8, 0.8])
    expected = 2 * wasserstein_1d(x, BIMODAL, p)
    assert wasserstein_1d(3 - 2 * x, moved, p) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("p", [1, 2])
def test_wasserstein_between_samples_is_a_metric(p):
    x, y, z = (normal(60, seed=s) * (1 + s) for s in range(3))
    xy, yz, xz = (wasserstein_1d(a, b, p) for a, b in ((x, y), (y, z), (x, z)))
    assert wasserstein_1d(x, x.flip(0), p) == 0
    assert xy == wasserstein_1d(y, x, p) > 0
    assert xz <= xy + yz
    assert wasserstein_1d(x, x + 0.75, p) == pytest.approx(0.75, rel=1e-14)
    assert wasserstein_1d(-3 * x, -3 * y, p) == pytest.approx(3 * xy, rel=1e-14)
    assert wasserstein_1d(x[:, None], y, p) == xy


@pytest.mark.parametrize(("n", "m"), [(7, 5), (100, 300), (64, 64), (2, 999)])
def test_wasserstein_of_unequal_counts(n, m):
    x, y = normal(n, seed=1), 1.3 * normal(m, seed=2) + 0.2
    expected = stats.wasserstein_distance(x, y)
    assert wasserstein_1d(x, y, 1) == pytest.approx(expected, rel=1e-13)
    # Repeating every sample leaves a law alone, and makes the counts equal.
    a, b = x.repeat(m), y.repeat(n)
    for p in (1, 2):
        assert wasserstein_1d(x, y, p) == pytest.approx(wasserstein_1d(a, b, p), rel=1e-12)


def test_wasserstein_reads_any_floating_dtype():
    x = BIMODAL.sample(100, seed=0).float()
    assert wasserstein_1d(x, BIMODAL) == wasserstein_1d(x.double(), BIMODAL)
    assert wasserstein_1d(x.requires_grad_(), BIMODAL, 2) > 0


# ---- sliced Wasserstein --------------------------------------------------------------------------


def assigned(x: Tensor, y: Tensor, p: int) -> float:
    """W_p of equally many points by the optimal assignment."""
    cost = torch.cdist(x, y).pow(p).numpy()
    return float(cost[linear_sum_assignment(cost)].mean()) ** (1 / p)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("d", [2, 5])
def test_sliced_is_at_most_the_whole(p, d):
    for seed in range(10):
        x, y = normal(40, d, seed=seed), 1.5 * normal(40, d, seed=seed + 100) + 0.1 * seed
        assert 0 < sliced_wasserstein(x, y, p, seed=seed) <= assigned(x, y, p)


@pytest.mark.parametrize("p", [1, 2])
def test_sliced_on_the_line_is_the_whole(p):
    x, y = normal(40, 1), normal(40, 1, seed=1) + 1
    expected = assigned(x, y, p)
    assert sliced_wasserstein(x, y, p, projections=3) == pytest.approx(expected, rel=1e-13)
    x = normal(25, 1, seed=2)
    expected = wasserstein_1d(x, y, p)
    assert sliced_wasserstein(x, y, p, projections=3) == pytest.approx(expected, rel=1e-13)


def test_sliced_of_a_translation():
    # (c . direction)^2 has mean |c|^2 / d and variance |c|^4 2 (d-1) / (d^2 (d+2)). Four se.
    d, projections = 3, 20_000
    x, c = normal(50, d), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    square = float(c @ c)
    se = square * math.sqrt(2 * (d - 1) / (d * d * (d + 2)) / projections)
    value = sliced_wasserstein(x, x + c, 2, projections)
    assert abs(value**2 - square / d) < 4 * se


def test_sliced_is_the_average_over_rotations():
    # In the plane, against 2,000 evenly turned projections measured one by one. Four se.
    x, y, projections = normal(30, 2), normal(45, 2, seed=1) * torch.tensor([2.0, 0.5]) + 0.5, 4000
    angles = torch.arange(2000, dtype=torch.float64) * (math.pi / 2000)
    turned = torch.stack([angles.cos(), angles.sin()])
    each = np.array([stats.wasserstein_distance(x @ way, y @ way) for way in turned.T])
    value = sliced_wasserstein(x, y, 1, projections)
    assert abs(value - each.mean()) < 4 * each.std() / math.sqrt(projections)


def test_sliced_flattens_events_and_keeps_to_its_seed():
    x, y = normal(30, 2, 3, 4), normal(20, 2, 3, 4, seed=1)
    state = torch.get_rng_state()
    value = sliced_wasserstein(x, y, seed=5)
    assert torch.equal(state, torch.get_rng_state())
    assert value == sliced_wasserstein(x.flatten(1), y.flatten(1), seed=5)
    assert value == pytest.approx(sliced_wasserstein(y, x, seed=5), rel=1e-13)
    assert value != sliced_wasserstein(x, y, seed=6)


# ---- Wasserstein by assignment -------------------------------------------------------------------


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("d", [1, 2, 40])
def test_assignment_is_the_best_permutation(p, d):
    # Also where the distances that are assigned come from a matrix product.
    x, y = 100 + normal(6, d), 100.3 + normal(6, d, seed=1)
    cost = (x[:, None] - y).norm(dim=2).pow(p)
    best = min(float(cost[range(6), order].mean()) for order in permutations(range(6)))
    assert assigned_wasserstein(x, y, p) == pytest.approx(best ** (1 / p), rel=1e-13)


@pytest.mark.parametrize("p", [1, 2])
def test_assignment_on_the_line_is_sorting(p):
    x, y = normal(300), 1.5 * normal(300, seed=1) + 0.2
    assert assigned_wasserstein(x, y, p) == pytest.approx(wasserstein_1d(x, y, p), rel=1e-13)


@pytest.mark.parametrize("p", [1, 2])
def test_assignment_is_a_metric_that_moves_and_scales(p):
    x, y, z = (normal(50, 3, seed=s) * (1 + s) for s in range(3))
    xy, yz, xz = (assigned_wasserstein(a, b, p) for a, b in ((x, y), (y, z), (x, z)))
    assert assigned_wasserstein(x, x.flip(0), p) == 0
    assert assigned_wasserstein(y, x, p) == pytest.approx(xy, rel=1e-14)
    assert xz <= xy + yz
    shift = torch.tensor([3.0, 0.0, 4.0], dtype=torch.float64)
    assert assigned_wasserstein(x, x + shift, p) == pytest.approx(5, rel=1e-14)
    assert assigned_wasserstein(-3 * x + 1, -3 * y + 1, p) == pytest.approx(3 * xy, rel=1e-13)
    assert assigned_wasserstein(x[:, None], y[:, None], p) == xy


# ---- energy distance -----------------------------------------------------------------------------


def folded(mean, std):
    """E |N(mean, std^2)|."""
    z = mean / std
    return std * (2 * stats.norm.pdf(z) + z * (2 * stats.norm.cdf(z) - 1))


def plain_energy(x: Tensor, y: Tensor) -> float:
    n, m = len(x), len(y)
    between, inner_x, inner_y = ((a[:, None] - b).norm(dim=2) for a, b in ((x, y), (x, x), (y, y)))
    inner = inner_x.sum() / (n * (n - 1)) + inner_y.sum() / (m * (m - 1))
    return float(2 * between.mean() - inner)


@pytest.mark.parametrize("d", [1, 2, 8, 9, 40])
def test_energy_is_the_u_statistic(d):
    x, y = 100 + normal(60, d), 100 + 1.2 * normal(35, d, seed=1)
    # Above eight dimensions distances come from a matrix product: 1e-7 on the zero diagonal.
    tolerance = 1e-12 if d <= 8 else 1e-8
    assert energy_distance(x, y).value == pytest.approx(plain_energy(x, y), abs=tolerance)


def test_energy_on_the_line_is_the_general_one():
    x, y = normal(60, 1), 0.3 + normal(35, 1, seed=1)
    line = energy_distance(x, y)
    plane = energy_distance(*(torch.cat([a, torch.zeros_like(a)], 1) for a in (x, y)))
    assert line.value == pytest.approx(plane.value, rel=1e-12)
    assert line.stderr == pytest.approx(plane.stderr, rel=1e-10)


def test_energy_in_blocks(monkeypatch):
    x, y = normal(60, 2), 0.3 + normal(35, 2, seed=1)
    whole = energy_distance(x, y)
    monkeypatch.setattr("sdekit.metrics.two_sample.BLOCK", 1)
    rows = energy_distance(x, y)
    assert rows.value == pytest.approx(whole.value, rel=1e-12)
    assert rows.stderr == pytest.approx(whole.stderr, rel=1e-12)


ENERGY_CASES = [(20, 30, 1.0, 1.5), (12, 9, 2.0, 1.0), (5, 4, 4.0, 1.0)]
EQUAL = (20, 25, 0.0, 1.0)


@cache
def replicates(n: int, m: int, shift: float, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Values and variances of 600 energy distances of N(0, 1) and N(shift, scale^2)."""
    x, y = normal(600, n), shift + scale * normal(600, m, seed=1)
    results = [energy_distance(a, b) for a, b in zip(x, y, strict=True)]
    return np.array([each.value for each in results]), np.array([e.stderr**2 for e in results])


@pytest.mark.parametrize("case", [*ENERGY_CASES, EQUAL])
def test_energy_is_unbiased(case):
    # Within four standard errors over 600 replicates.
    _, _, shift, scale = case
    values, _ = replicates(*case)
    between = folded(shift, math.hypot(1, scale))
    expected = 2 * between - folded(0, math.sqrt(2)) - folded(0, scale * math.sqrt(2))
    assert abs(values.mean() - expected) < 4 * values.std() / math.sqrt(600)


@pytest.mark.parametrize("case", ENERGY_CASES)
def test_energy_standard_error_is_the_spread(case):
    # Mean reported variance against the variance of 600 replicates; four standard errors.
    values, variances = replicates(*case)
    gap = variances - (values - values.mean()) ** 2 * 600 / 599
    assert abs(gap.mean()) < 4 * gap.std() / math.sqrt(600)


def test_energy_standard_error_of_equal_laws_errs_to_the_safe_side():
    values, variances = replicates(*EQUAL)
    reported, spread = math.sqrt(variances.mean()), values.std()
    # The cut at zero about doubles the variance; 0.29 is four standard errors of the ratio.
    assert 1.0 < reported / spread < math.sqrt(2) + 0.29


def test_energy_of_many_samples():
    x, y = normal(10_000, 1), 1 + normal(10_000, 1, seed=1)
    expected = 2 * folded(1, math.sqrt(2)) - 2 * folded(0, math.sqrt(2))
    result = energy_distance(x, y)
    assert abs(result.value - expected) < 4 * result.stderr
    # First order: 4/n Var(E|x - Y| - E|x - X'|) from either side; second order adds 1e-4 of it.
    # The projections are themselves known to about 1/sqrt(n) of the shift, four of these are 6 %.
    at = np.linspace(-9, 9, 1801)
    weight, apart = 0.01 * stats.norm.pdf(at), folded(at - 1, 1) - folded(at, 1)
    variance = weight @ apart**2 - (weight @ apart) ** 2
    assert result.stderr == pytest.approx(math.sqrt(8 * variance / 1e4), rel=0.06)


@pytest.mark.parametrize("d", [2, 3, 20])
def test_energy_of_gaussians_in_space(d):
    # E|N(0, s^2 I)| = s sqrt 2 Gamma((d+1)/2) / Gamma(d/2): scales 1 and 2, 200 replicates, four se.
    radius = math.sqrt(2) * math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2))
    expected = radius * (2 * math.sqrt(5) - math.sqrt(2) - 2 * math.sqrt(2))
    x, y = normal(200, 30, d), 2 * normal(200, 25, d, seed=1)
    values = np.array([energy_distance(a, b).value for a, b in zip(x, y, strict=True)])
    assert abs(values.mean() - expected) < 4 * values.std() / math.sqrt(200)


# ---- densities on a grid -------------------------------------------------------------------------


def grid(mean: float, std: float, dx: float = 0.01) -> Tensor:
    x = np.arange(-16, 16 + dx / 2, dx)
    return torch.from_numpy(stats.norm.pdf(x, mean, std))


def cells(mean: float, std: float, edges: Tensor) -> Tensor:
    return torch.from_numpy(stats.norm.cdf(edges, mean, std)).diff() / edges.diff()


GAUSSIANS = [(0.0, 1.0, 0.3, 1.2), (0.0, 1.0, 0.0, 2.0), (-1.0, 0.5, 1.0, 0.7), (0.0, 1.0, 1e-4, 1)]


def gaussian_kl(mean: float, std: float, other_mean: float, other_std: float) -> float:
    ratio = std / other_std
    return ((mean - other_mean) / other_std) ** 2 / 2 + (ratio**2 - 1) / 2 - math.log(ratio)


@pytest.mark.parametrize("case", GAUSSIANS)
def test_kl_of_gaussians(case):
    p, q = grid(*case[:2]), grid(*case[2:])
    expected = gaussian_kl(*case)
    assert kl_divergence(p, q, 0.01) == pytest.approx(expected, rel=1e-10)
    assert kl_divergence(p, p, 0.01) == 0


def test_kl_of_cell_averages_approaches_from_below_in_second_order():
    gaps = []
    for count in (200, 400):
        edges = torch.linspace(-16, 16, count + 1, dtype=torch.float64)
        value = kl_divergence(cells(0, 1, edges), cells(0.3, 1.2, edges), edges)
        gaps.append(gaussian_kl(0, 1, 0.3, 1.2) - value)
    assert gaps[1] > 0
    assert math.log2(gaps[0] / gaps[1]) == pytest.approx(2, abs=0.05)


def test_kl_feels_the_mass_in_second_order_and_clips():
    p, q = grid(0, 1), grid(0.3, 1.2)
    e = 1e-5
    assert kl_divergence(p * (1 + e), p, 0.01) == pytest.approx(e * e / 2, rel=1e-4)
    assert kl_divergence(p, p * (1 + e), 0.01) > 0
    dusty = torch.where(p < 1e-12, -1e-12, p)
    assert kl_divergence(dusty, q, 0.01) == pytest.approx(kl_divergence(p, q, 0.01), abs=1e-9)
    # A q of zero under a quarter of p's mass.
    p, q = torch.tensor([0.25, 0.75]).double(), torch.tensor([0.0, 1.0]).double()
    expected = 0.25 * math.log(0.25 / 1e-300) + 0.75 * math.log(0.75)
    assert kl_divergence(p, q, 1.0) == pytest.approx(expected, rel=1e-12)


def test_kl_is_not_negative():
    for seed in range(20):
        p, q = (normal(50, seed=s).square() for s in (seed, seed + 100))
        p, q = p / p.sum(), q / q.sum()
        assert kl_divergence(p, q, 1.0) > 0
        expected = stats.entropy(p, q)
        assert kl_divergence(p, q, 1.0) == pytest.approx(expected, rel=1e-12)
        # Pinsker: TV^2 <= KL / 2.
        assert total_variation(p, q, 1.0) ** 2 <= kl_divergence(p, q, 1.0) / 2


@pytest.mark.parametrize("shift", [0.01, 0.5, 4.0])
def test_total_variation_of_shifted_gaussians(shift):
    # 2 Phi(c/2) - 1. The densities cross at c/2: exact when an edge lies there.
    expected = 2 * stats.norm.cdf(shift / 2) - 1
    edges = shift / 2 + torch.linspace(-16, 16, 401, dtype=torch.float64)
    p, q = cells(0, 1, edges), cells(shift, 1, edges)
    assert total_variation(p, q, edges) == pytest.approx(expected, abs=1e-14)
    assert total_variation(q, p, edges) == total_variation(p, q, edges)
    assert total_variation(p, p, edges) == 0
    # Point values, to 1e-10.
    dx = 2e-5
    p, q = grid(0, 1, dx), grid(shift, 1, dx)
    assert total_variation(p, q, dx) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("offset", [0.0, 0.25, 0.5])
def test_total_variation_error_bound(offset):
    # Where the crossing falls in its cell decides the sign, the bound is dx^2/8 |p' - q'|.
    dx, shift = 0.02, 1.0
    expected = 2 * stats.norm.cdf(shift / 2) - 1
    bound = dx**2 / 8 * shift * stats.norm.pdf(shift / 2)
    edges = shift / 2 + (torch.arange(-800, 801, dtype=torch.float64) + offset) * dx
    averages = total_variation(cells(0, 1, edges), cells(shift, 1, edges), edges)
    assert -1.001 * bound <= averages - expected <= 1e-14
    p, q = (torch.from_numpy(stats.norm.pdf(edges, mean)) for mean in (0, shift))
    assert abs(total_variation(p, q, dx) - expected) <= 1.001 * bound


# ---- the floor -----------------------------------------------------------------------------------


def test_floor_of_w1():
    # E |F_n - G| is sqrt(2/pi) sqrt(G (1 - G) / n) to leading order, so W_1 is .01109 here; the
    # next order is O(1/n). Four standard errors.
    n = 10_000
    result = floor(wasserstein_1d, BIMODAL, n)
    x = torch.linspace(-6, 6, 20_001, dtype=torch.float64)
    cdf = BIMODAL.cdf(x)
    expected = float(torch.trapezoid((cdf * (1 - cdf) * (2 / math.pi / n)).sqrt(), x))
    assert expected == pytest.approx(0.01109, abs=5e-6)
    assert abs(result.mean - expected) < 4 * result.stderr


@pytest.mark.parametrize(("n", "repeats"), [(20, 25), (500, 20)])
def test_floor_of_w2(n, repeats):
    # Exactly, E W_2^2 = 2 (E Y^2 - sum_i E[x_(i)] int_cell G^{-1}), with the mean of the i-th of n
    # sorted samples from its Beta density. Four standard errors.
    result = floor(lambda x, law: wasserstein_1d(x, law, 2) ** 2, BIMODAL, n, repeats)
    x = np.linspace(-5, 4, 1001)
    weight = BIMODAL.log_prob(torch.from_numpy(x)[:, None]).exp().numpy() * (x[1] - x[0])
    cdf, i = BIMODAL.cdf(torch.from_numpy(x)).numpy(), np.arange(1, n + 1)
    cut = BIMODAL.quantile(torch.arange(n + 1, dtype=torch.float64) / n)
    mean, std, z, density = components(BIMODAL, cut)
    below = (BIMODAL.weights * (mean * torch.special.ndtr(z) - std * density)).sum(1)
    cell = below.diff().numpy()
    cross = (weight * x) @ stats.beta.pdf(cdf[:, None], i, n + 1 - i) @ cell
    second = float(BIMODAL.covariance + BIMODAL.mean**2)
    assert abs(result.mean - 2 * (second - cross)) < 4 * result.stderr


def test_floor_summary():
    result = floor(lambda x, law: float(x.mean()), GAUSSIAN, 100, repeats=400, seed=3)
    values = np.array(result.values)
    assert result.mean == pytest.approx(values.mean(), rel=1e-12)
    assert result.std == pytest.approx(values.std(ddof=1), rel=1e-12)
    assert result.quantile95 == pytest.approx(np.quantile(values, 0.95), rel=1e-12)
    assert result.stderr == pytest.approx(result.std / 20, rel=1e-12)
    assert len(set(result.values)) == 400
    # Means of 100 samples of N(0.5, 2^2): mean 0.5, std 0.2; four standard errors.
    assert abs(result.mean - 0.5) < 4 * 0.01
    assert abs(result.std - 0.2) < 4 * 0.2 / math.sqrt(800)
    assert "values" not in repr(result)


def test_floor_is_a_function_of_its_seed():
    def first(x: Tensor, law: GaussianMixture) -> float:
        return float(x[0])

    def run(seed: int) -> Floor:
        return floor(first, GAUSSIAN, 5, repeats=6, seed=seed)

    state = torch.get_rng_state()
    assert run(0) == run(0)
    assert torch.equal(state, torch.get_rng_state())
    # Neighbouring seeds share no set of samples.
    assert not set(run(0).values) & set(run(1).values)


# ---- bad input -----------------------------------------------------------------------------------

LINE, PLANE, HALF = normal(8), normal(8, 2), torch.full((4,), 0.5, dtype=torch.float64)
HOLED = torch.tensor([0.0, 1.0, math.nan, 2.0, math.inf])
HOLED_PLANE = torch.zeros(5, 2).index_fill(0, torch.tensor([3]), math.nan)


class Unbounded:
    def cdf(self, x: Tensor) -> Tensor:
        return torch.full_like(x, 0.5)

    def quantile(self, u: Tensor) -> Tensor:
        return u / 0


def score(value: Any):
    return lambda: floor(lambda x, law: value, GAUSSIAN, 5)


BAD = [
    (lambda: wasserstein_1d(HOLED, GAUSSIAN), ValueError, r"samples has 2 NaN .* first at \(2,\)"),
    (lambda: wasserstein_1d(LINE, HOLED), ValueError, r"truth has 2 NaN .* first at \(2,\)"),
    (lambda: wasserstein_1d(LINE[:1], GAUSSIAN), ValueError, r"samples .* at least 2 .* \(1,\)"),
    (lambda: wasserstein_1d(LINE[0], GAUSSIAN), ValueError, r"samples .* at least 2 .* \(\)"),
    (lambda: wasserstein_1d(LINE, LINE[:0]), ValueError, r"truth .* at least 2 .* \(0,\)"),
    (lambda: wasserstein_1d(PLANE, GAUSSIAN), ValueError, r"samples .* \(n, 1\), .* \(8, 2\)"),
    (lambda: wasserstein_1d(LINE, GAUSSIAN, 3), ValueError, "p must be 1 or 2, got 3"),
    (lambda: wasserstein_1d(LINE, GAUSSIAN, True), TypeError, "p must be .* got True"),
    (lambda: wasserstein_1d(LINE, GAUSSIAN, 2.0), TypeError, "p must be .* got 2.0"),
    (lambda: wasserstein_1d([0.0, 1.0], GAUSSIAN), TypeError, "samples must be .* list"),
    (
        lambda: wasserstein_1d(torch.arange(4), GAUSSIAN),
        TypeError,
        "samples must be .* torch.int64",
    ),
    (lambda: wasserstein_1d(LINE, [0.0, 1.0]), TypeError, "truth must be .* list"),
    (
        lambda: wasserstein_1d(LINE, Unbounded()),
        ValueError,
        "truth.quantile.* has 1200 NaN or infinite",
    ),
    (lambda: sliced_wasserstein(PLANE, normal(8, 3)), ValueError, r"\(8, 2\) and \(8, 3\)"),
    (
        lambda: sliced_wasserstein(PLANE, HOLED_PLANE),
        ValueError,
        r"y has 2 NaN .* first at \(3, 0\)",
    ),
    (lambda: sliced_wasserstein(PLANE[:1], PLANE), ValueError, "x must hold at least 2"),
    (lambda: sliced_wasserstein(PLANE, PLANE, 0), ValueError, "p must be 1 or 2, got 0"),
    (
        lambda: sliced_wasserstein(PLANE, PLANE, projections=0),
        ValueError,
        "projections .* 1, got 0",
    ),
    (lambda: sliced_wasserstein(PLANE, PLANE, projections=1.5), TypeError, "projections .* 1.5"),
    (lambda: sliced_wasserstein(PLANE, PLANE, seed=-1), ValueError, "seed .* got -1"),
    (lambda: sliced_wasserstein(PLANE, PLANE, seed=True), TypeError, "seed .* got True"),
    (lambda: assigned_wasserstein(PLANE, PLANE[:7]), ValueError, "equally many .* 8 and 7"),
    (lambda: assigned_wasserstein(PLANE[:1], PLANE[:1]), ValueError, "x must hold at least 2"),
    (lambda: assigned_wasserstein(PLANE, normal(8, 3)), ValueError, r"\(8, 2\) and \(8, 3\)"),
    (lambda: assigned_wasserstein(PLANE, PLANE, 3), ValueError, "p must be 1 or 2, got 3"),
    (lambda: assigned_wasserstein(normal(5001), normal(5001)), ValueError, "at most 5000 .* 5001"),
    (lambda: energy_distance(PLANE, PLANE[:3]), ValueError, "y must hold at least 4"),
    (lambda: energy_distance(PLANE, LINE), ValueError, r"\(8, 2\) and \(8,\)"),
    (
        lambda: energy_distance(HOLED_PLANE, PLANE),
        ValueError,
        "x has 2 NaN or infinite values, the first at",
    ),
    (lambda: energy_distance(PLANE.long(), PLANE), TypeError, "x must be .* torch.int64"),
    (lambda: kl_divergence(HALF, HALF[:3], 0.5), ValueError, r"\(4,\) and \(3,\)"),
    (lambda: kl_divergence(HALF[None], HALF[None], 0.5), ValueError, r"\(cells,\)"),
    (lambda: kl_divergence(HALF, HALF, 0.0), ValueError, "dx must be .* got 0.0"),
    (lambda: kl_divergence(HALF, HALF, math.nan), ValueError, "dx must be .* got nan"),
    (lambda: kl_divergence(HALF, HALF, True), TypeError, "dx must be .* bool"),
    (lambda: kl_divergence(HALF, HALF, "0.5"), TypeError, "dx must be .* str"),
    (lambda: kl_divergence(HALF, HALF, LINE[:5]), ValueError, r"dx as edges .* increasing"),
    (
        lambda: kl_divergence(HALF, HALF, HALF),
        ValueError,
        r"dx as edges .* \(5,\), got shape \(4,\)",
    ),
    (lambda: kl_divergence(HALF, HALF, 0.1), ValueError, "p must integrate to 1 .* got 0.2"),
    (lambda: total_variation(HALF, 2 * HALF, 0.5), ValueError, "q must integrate to 1 .* got 2"),
    (
        lambda: total_variation(HALF, torch.tensor([1.5, 0.6, -0.1, 0.0]), 0.5),
        ValueError,
        "q must not be negative, .* 0.05",
    ),
    (lambda: total_variation(HOLED, HOLED, 0.5), ValueError, "p has 2 NaN or infinite values"),
    (lambda: floor(energy_distance, GAUSSIAN, 1), ValueError, "n must be >= 2, got 1"),
    (lambda: floor(energy_distance, GAUSSIAN, 1e4), TypeError, "n must be .* got 10000.0"),
    (lambda: floor(energy_distance, GAUSSIAN, 5, repeats=1), ValueError, "repeats .* got 1"),
    (lambda: floor(energy_distance, GAUSSIAN, 5, seed=0.5), TypeError, "seed .* got 0.5"),
    (score(None), TypeError, "metric must return a number"),
    (score(math.nan), ValueError, "metric must return a finite number, got nan"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=range(len(BAD)))
def test_bad_input(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert re.search(message, str(caught.value)), str(caught.value)
