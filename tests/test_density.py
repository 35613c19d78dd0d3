"""`Density1D` against closed forms: densities on a grid, and densities carried by a map."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from helpers import bad_input
from scipy import integrate
from scipy.special import ndtr, ndtri

import sdekit as sk
from sdekit.errors import NumericsError
from sdekit.pde import Density1D
from sdekit.pde.density import _absolute_integral, same_rank

TARGET = sk.data.two_mode()
NORMAL = sk.GaussianMixture(None, [0.0], stds=1.0)


def on_grid(law, points=601, reach=9.0):
    """A mixture on a grid, x = u."""
    nodes = np.linspace(-reach, reach, points)
    rho = law.log_prob(torch.from_numpy(nodes)).exp().numpy()
    return Density1D(nodes, rho, nodes, np.ones(points))


def carried(bend, points=801):
    """The law of z + bend sin(z) for a standard normal z: rises for |bend| < 1."""
    z = np.linspace(-8.2, 8.2, points)
    rho = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return Density1D(z, rho, z + bend * np.sin(z), 1 + bend * np.cos(z))


def quad(function, *cuts):
    """An independent integral between cuts."""
    pieces = itertools.pairwise(cuts)
    return sum(
        integrate.quad(function, a, b, epsabs=1e-12, epsrel=1e-12, limit=500)[0] for a, b in pieces
    )


def test_density_on_a_grid_is_the_mixture():
    law, x = on_grid(TARGET), torch.linspace(-3, 3, 77).double()
    torch.testing.assert_close(law.pdf(x), TARGET.log_prob(x).exp(), rtol=0, atol=1e-12)
    torch.testing.assert_close(law.cdf(x), TARGET.cdf(x), rtol=0, atol=1e-13)
    torch.testing.assert_close(law.survival(x), TARGET.survival(x), rtol=0, atol=1e-13)
    assert abs(law.mass - 1) < 1e-14
    assert abs(law.mean - TARGET.mean.item()) < 1e-14
    assert abs(law.variance - TARGET.covariance.item()) < 1e-13
    levels = torch.linspace(0.01, 0.99, 23).double()
    torch.testing.assert_close(law.quantile(levels), TARGET.quantile(levels), rtol=0, atol=1e-11)


def test_shapes_follow_the_points():
    law = on_grid(TARGET)
    assert law.pdf(torch.zeros(2, 3)).shape == (2, 3)
    assert law.cdf(torch.tensor(0.0)).shape == ()
    assert law.quantile(torch.full((4, 1), 0.5)).dtype == torch.float64


def test_beyond_the_nodes_there_is_nothing():
    law, far = on_grid(TARGET), torch.tensor([-50.0, 50.0]).double()
    assert law.pdf(far).tolist() == [0.0, 0.0]
    assert law.cdf(far).tolist() == [0.0, 1.0]
    assert law.survival(far).tolist() == [1.0, 0.0]
    assert law.log_prob(far).tolist() == [-math.inf, -math.inf]


def test_distances_of_a_law_from_itself_vanish():
    law = on_grid(TARGET)
    assert abs(law.kl(TARGET)) < 1e-14
    assert law.tv(TARGET) < 1e-14
    assert law.w1(TARGET) < 1e-13
    assert law.w2(TARGET) < 1e-10


@pytest.mark.parametrize(("mean", "std"), [(0.3, 1.0), (0.0, 1.7), (-0.2, 0.8)])
def test_two_gaussians(mean, std):
    """KL and W2 in closed form; TV and W1 of a shift too."""
    law, other = (
        on_grid(sk.GaussianMixture(None, [mean], stds=std), reach=15.0, points=1201),
        NORMAL,
    )
    kl = 0.5 * (std**2 + mean**2 - 1) - math.log(std)
    assert abs(law.kl(other) - kl) < 1e-13
    assert abs(law.w2(other) - math.hypot(mean, std - 1)) < 1e-10
    if std == 1.0:
        assert abs(law.w1(other) - abs(mean)) < 1e-12
        assert abs(law.tv(other) - (2 * ndtr(abs(mean) / 2) - 1)) < 1e-13


def test_distances_of_mixtures_against_adaptive_quadrature():
    """The kinks of |p - q| and |F - G| are found by an independent adaptive rule."""
    other = sk.GaussianMixture([0.5, 0.5], [-1.0, 0.7], stds=[0.5, 0.6])
    law = on_grid(TARGET, points=1201)

    def parts(mixture):
        stds = mixture.variances.expand(-1, 1)[:, 0].sqrt()
        return list(
            zip(*(v.tolist() for v in (mixture.weights, mixture.means[:, 0], stds)), strict=True)
        )

    def density(mixture, x):
        bells = ((w / s, (x - m) / s) for w, m, s in parts(mixture))
        return sum(w * math.exp(-z * z / 2) for w, z in bells) / math.sqrt(2 * math.pi)

    def cdf(mixture, x):
        return sum(w * math.erfc((m - x) / s / math.sqrt(2)) / 2 for w, m, s in parts(mixture))

    cuts = np.linspace(-6, 6, 49)
    tv = 0.5 * quad(lambda x: abs(density(TARGET, x) - density(other, x)), *cuts)
    w1 = quad(lambda x: abs(cdf(TARGET, x) - cdf(other, x)), *cuts)
    kl = quad(
        lambda x: density(TARGET, x) * math.log(density(TARGET, x) / density(other, x)), *cuts
    )
    assert abs(law.tv(other) - tv) < 1e-9
    assert abs(law.w1(other) - w1) < 1e-9
    assert abs(law.kl(other) - kl) < 1e-11


def test_law_of_a_map():
    """z + sin(z) / 2 of a normal z: distribution function, density, and distances in the variable z."""
    law = carried(0.5)
    z = torch.linspace(-3, 3, 31).double()
    x = z + 0.5 * torch.sin(z)
    torch.testing.assert_close(law.cdf(x), NORMAL.cdf(z), rtol=0, atol=1e-13)
    density = NORMAL.log_prob(z).exp() / (1 + 0.5 * torch.cos(z))
    torch.testing.assert_close(law.pdf(x), density, rtol=0, atol=1e-11)
    torch.testing.assert_close(law.quantile(NORMAL.cdf(z)), x, rtol=0, atol=1e-11)

    def normal(z):
        return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    cuts = np.linspace(-8, 8, 33)
    # x(z) is the optimal map from the normal to the law, so |x - z| = |sin(z)| / 2 is the displacement.
    w1 = quad(lambda z: normal(z) * abs(math.sin(z)) / 2, *np.pi * np.arange(-3, 4))
    assert abs(law.w1(NORMAL) - w1) < 1e-9
    assert (
        abs(law.w2(NORMAL) - math.sqrt(quad(lambda z: normal(z) * math.sin(z) ** 2 / 4, *cuts)))
        < 1e-11
    )

    def terms(z):
        x, slope = z + math.sin(z) / 2, 1 + math.cos(z) / 2
        return normal(z) * (math.log(normal(z) / slope) - math.log(normal(x)))

    assert abs(law.kl(NORMAL) - quad(terms, *cuts)) < 1e-11


def test_a_density_is_a_target_too():
    law, other = carried(0.5), on_grid(NORMAL)
    assert abs(law.w2(other) - law.w2(NORMAL)) < 1e-9
    assert abs(law.kl(other) - law.kl(NORMAL)) < 1e-9
    assert abs(law.tv(other) - other.tv(law)) < 1e-9


def test_a_change_of_sign_at_a_node_is_a_kink():
    """Of two normals of mean 0 the displacement is 0 at the middle node: W1 = (1.5 - 1) E|z|."""
    law, other = on_grid(NORMAL), sk.GaussianMixture(None, [0.0], stds=1.5)
    assert law.nodes[300] == 0
    assert abs(law.w1(other) - 0.5 * math.sqrt(2 / math.pi)) < 1e-9
    nodes = np.linspace(-1, 1, 65)
    assert abs(_absolute_integral(nodes, nodes) - 1) < 1e-12
    assert abs(_absolute_integral(nodes, np.zeros(65))) == 0


class Cauchy:
    """Tails so heavy that no float has less than 1e-300 beyond it."""

    def log_prob(self, x):
        return -(math.pi * (1 + x * x)).log()

    def cdf(self, x):
        return torch.where(x < -1, (-1 / x).atan() / math.pi, 0.5 + x.atan() / math.pi)

    def survival(self, x):
        return self.cdf(-x)


def test_a_target_with_heavy_tails():
    """The point of the rank of z, by the quantile function; W2^2 over |z| < 5, beyond which 5e-7 is left."""
    z = np.linspace(-5, 5, 21)
    found = same_rank(Cauchy(), ndtr(z), ndtr(-z), z)
    expected = np.sign(z) / np.tan(math.pi * ndtr(-np.abs(z)))
    np.testing.assert_allclose(found, np.where(z == 0, 0, expected), rtol=1e-9, atol=1e-9)
    law = on_grid(NORMAL)
    assert 0 < law.tv(Cauchy()) < 1
    assert math.isfinite(law.w1(Cauchy()))


def test_a_fold_whose_weights_do_not_add_up():
    """Round-off in the sum of the weights must not send the points of the last ranks to infinity."""
    laws = [carried(1.5, points=points) for points in range(1001, 1041)]
    weights = [law._h * law.rho[np.argsort(law.x, kind="stable")] for law in laws]
    assert any(w.sum() < (np.cumsum(w) - w / 2)[-1] for w in weights)
    found = [law.w1(NORMAL) for law in laws]
    assert max(found) - min(found) < 1e-4


def test_target_mass_beyond_the_nodes_counts():
    """A law on [-1, 1] against the normal: half of the difference lies outside."""
    nodes = np.linspace(-1, 1, 501)
    bump = 15 / 16 * (1 - nodes**2) ** 2
    law = Density1D(nodes, bump, nodes, np.ones(501))
    inside = quad(lambda x: abs(15 / 16 * (1 - x * x) ** 2 - math.exp(-x * x / 2) / math.sqrt(2 * math.pi)),
                  *np.linspace(-1, 1, 21))  # fmt: skip
    assert abs(law.tv(NORMAL) - 0.5 * (inside + 2 * ndtr(-1.0))) < 1e-7


def test_a_fold_gives_w_by_sorting_and_refuses_the_density():
    """z + 1.5 sin(z) turns back; the same law drawn as quantiles of many normals is the check."""
    law = carried(1.5, points=4001)
    assert law.folded
    z = ndtri((np.arange(200_000) + 0.5) / 200_000)
    x = np.sort(z + 1.5 * np.sin(z))
    assert abs(law.w2(NORMAL) - math.sqrt(np.mean((x - z) ** 2))) < 2e-3
    assert abs(law.w1(NORMAL) - np.mean(np.abs(x - z))) < 2e-3
    for call in (law.kl, law.tv, law.pdf, law.cdf, law.quantile):
        with pytest.raises(NumericsError, match="fold"):
            call(NORMAL if call in (law.kl, law.tv) else torch.tensor([0.5]))


def test_repr_says_what_is_wrong():
    law = dataclasses.replace(on_grid(TARGET), t=0.1, error=1e-9, alarms=("mass off by 1e-02",))
    assert repr(law) == "Density1D(t=0.1, 601 points, error=1.0e-09, mass off by 1e-02)"


def test_nan_stays_nan():
    law, x = on_grid(TARGET), torch.tensor([math.nan, math.inf, -math.inf]).double()
    for function, ends in [
        (law.cdf, (1.0, 0.0)),
        (law.survival, (0.0, 1.0)),
        (law.pdf, (0.0, 0.0)),
    ]:
        value = function(x)
        assert value[0].isnan()
        assert tuple(value[1:].tolist()) == ends


test_bad_input = bad_input(
    [
        ("target", lambda: on_grid(TARGET).kl("normal"), TypeError, ["target", "str"]),
        ("plane", lambda: on_grid(TARGET).w1(sk.data.ring()), TypeError, ["target", "d = 2"]),
        (
            "level",
            lambda: on_grid(TARGET).quantile(torch.tensor([1.5])),
            ValueError,
            ["u", "[0, 1]"],
        ),
        (
            "nan",
            lambda: on_grid(TARGET).quantile(torch.tensor([math.nan])),
            ValueError,
            ["u", "NaN"],
        ),
    ]
)
