import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from helpers import bad_input
from torch import Tensor

import sdekit as sk
from sdekit.data import toys
from sdekit.data.toys import (
    Checkerboard,
    MixtureToy,
    Moons,
    Pinwheel,
    Plane,
    Ramp,
    Ring,
    Spiral,
    SwissRoll,
    Toy,
    TwoMode,
)

WITH_DENSITY: list[Toy] = [
    *toys.ALL, TwoMode(0.9, 3.0, 0.5), Ramp(standardise=False), Spiral(1.3, 0.2), Ring(1, 2.0, 0.5),
    Ring(3, 2.0, 0.1, standardise=False), Checkerboard(2), Checkerboard(6, standardise=False), Moons(0.5),
    SwissRoll(2.0, standardise=False), Pinwheel(3, 0.2, 0.2, -0.5),
]  # fmt: skip
WITHOUT: list[Toy] = [Spiral(0.25, 0.0), Ring(2), Ring(3, 4.0, 0.01), Moons(0.0), SwissRoll(0.0)]
each_toy = pytest.mark.parametrize("toy", [*WITH_DENSITY, *WITHOUT], ids=repr)
each_density = pytest.mark.parametrize("toy", WITH_DENSITY, ids=repr)
lines = [toy for toy in WITH_DENSITY if isinstance(toy, toys.Line)]
planes = [toy for toy in WITH_DENSITY if isinstance(toy, Plane)]
mixtures = [toy for toy in WITH_DENSITY if isinstance(toy, MixtureToy)]
each_line = pytest.mark.parametrize("toy", lines, ids=repr)


def test_all_is_every_toy_and_reprs_are_unique():
    bases = {Toy, MixtureToy, toys.Line, Plane, toys.Curve}
    kinds = {
        kind for kind in vars(toys).values() if isinstance(kind, type) and issubclass(kind, Toy)
    }
    assert {type(toy) for toy in toys.ALL} == kinds - bases
    assert len(toys.ALL) == len(kinds - bases)
    assert len({repr(toy) for toy in WITH_DENSITY}) == len(WITH_DENSITY)


# ---- draws ---------------------------------------------------------------------------------------
@each_toy
def test_mean_zero_and_variance_one(toy):
    n = 200_000
    x = toy.sample(n, seed=3, dtype=torch.float64)
    mean, std = (0.0, 1.0) if toy.standardise else torch.tensor([toy.raw_mean, toy.raw_std])
    x = (x - mean) / std
    # Four standard errors, of the mean and of the mean square, from the sample's own spread.
    assert (x.mean(0).abs() < 4 * x.std(0) / math.sqrt(n)).all()
    square = x.square()
    # A coordinate with two values has no spread in its square: rounding is all that is left.
    assert ((square.mean(0) - 1).abs() < 4 * square.std(0) / math.sqrt(n) + 1e-12).all()


@pytest.mark.parametrize("toy", [t for t in [*planes, *WITHOUT] if t.standardise], ids=repr)
def test_moments_are_those_of_the_raw_points(toy):
    n = 200_000
    z = toy._complex_points(n, torch.Generator().manual_seed(4))
    for sample, exact in zip((z, z * z, z.abs() ** 2), toy._moments(), strict=True):
        for part in (torch.real, torch.imag) if sample.is_complex() else (torch.real,):
            value = complex(exact).real if part is torch.real else complex(exact).imag
            draws = part(sample)
            # Four standard errors.
            assert abs(draws.mean() - value) < 4 * draws.std() / math.sqrt(n) + 1e-12


@each_toy
def test_seeds_and_generators(toy):
    state = torch.get_rng_state()
    x = toy.sample(100, seed=5)
    assert x.shape == (100, toy.dim)
    assert x.dtype == torch.float32
    assert torch.equal(x, toy.sample(100, seed=5))
    assert torch.equal(x, toy.sample(100, generator=torch.Generator().manual_seed(5)))
    assert torch.equal(x, toy.sample(100, seed=5, dtype=torch.float64).float())
    assert not torch.equal(x, toy.sample(100, seed=6))
    assert not torch.equal(toy.sample(100), toy.sample(100))
    generator = torch.Generator().manual_seed(5)
    first, second = (toy.sample(100, generator=generator) for _ in range(2))
    assert not torch.equal(first, second)
    assert toy.sample(0).shape == (0, toy.dim)
    assert torch.equal(torch.get_rng_state(), state)


def raw(toy: Toy) -> Tensor:
    """Raw points, by undoing the standardisation."""
    x = toy.sample(20_000, seed=1, dtype=torch.float64)
    mean, std = torch.tensor([toy.raw_mean, toy.raw_std], dtype=torch.float64)
    return x * std + mean


def polar(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.norm(dim=-1), torch.atan2(x[:, 1], x[:, 0])


def test_raw_coordinates_are_the_same_points():
    for toy in toys.ALL:
        kind = replace(toy, standardise=False)  # type: ignore[type-var]
        torch.testing.assert_close(kind.sample(20_000, seed=1, dtype=torch.float64), raw(toy))


def test_a_spiral_without_noise_is_on_its_curve():
    radius, angle = polar(raw(Spiral(turns=2.0, noise=0.0)))
    off = (angle - 4 * math.pi * radius + math.pi) % (2 * math.pi) - math.pi
    assert off.abs().max() < 1e-9
    assert radius.max() <= 1.0 + 1e-12


def test_a_swiss_roll_without_noise_is_on_its_curve():
    radius, angle = polar(raw(SwissRoll(noise=0.0)))
    off = (angle - radius + math.pi) % (2 * math.pi) - math.pi
    assert off.abs().max() < 1e-9
    assert 1.5 * math.pi <= radius.min() < radius.max() <= 4.5 * math.pi


def test_moons_without_noise_are_two_half_circles():
    x = raw(Moons(noise=0.0))
    upper = ((x.norm(dim=-1) - 1).abs() < 1e-12) & (x[:, 1] >= -1e-12)
    centre = torch.tensor([1.0, 0.5])
    lower = (((x - centre).norm(dim=-1) - 1).abs() < 1e-12) & (x[:, 1] <= 0.5 + 1e-12)
    assert (upper | lower).all()
    # A fair coin a point: four standard errors of its mean.
    assert abs(upper.double().mean() - 0.5) < 4 * 0.5 / math.sqrt(20_000)


def test_a_ring_has_its_modes_equally_often():
    radius, angle = polar(raw(Ring(modes=8, radius=1.0, std=0.01)))
    counts = torch.bincount((angle / (math.pi / 4)).round().long() % 8, minlength=8) / 20_000
    # Four standard errors of a share of 1/8.
    assert (counts - 1 / 8).abs().max() < 4 * math.sqrt(7 / 64 / 20_000)
    assert (radius - 1).abs().max() < 0.06


@pytest.mark.parametrize("cells", [2, 4, 10])
def test_black_squares_are_equally_often_and_white_ones_never(cells):
    place = ((raw(Checkerboard(cells)) + 1) * cells / 2).floor().long()
    counts = torch.bincount(place[:, 0] * cells + place[:, 1], minlength=cells**2) / 20_000
    black = torch.arange(cells)[:, None] + torch.arange(cells) & 1 == 0
    share = 2 / cells**2
    assert (counts[~black.flatten()] == 0).all()
    # Four standard errors of a share.
    bound = 4 * math.sqrt(share * (1 - share) / 20_000)
    assert (counts[black.flatten()] - share).abs().max() < bound


def test_unbending_a_pinwheel_gives_its_bells():
    z = torch.view_as_complex(raw(Pinwheel(6, 0.2, 0.05, 0.4)).contiguous())
    w = z * torch.polar(torch.ones(1).double(), -0.4 * z.abs().exp())
    blade = (w.angle() / (math.pi / 3)).round()
    w = w * torch.polar(torch.ones(1).double(), -math.pi / 3 * blade)
    along, across = (w.real - 1) / 0.2, w.imag / 0.05
    for part in (along, across):
        # Four standard errors of the mean and of the mean square of unit normals.
        assert abs(part.mean()) < 4 / math.sqrt(20_000)
        assert abs(part.square().mean() - 1) < 4 * math.sqrt(2 / 20_000)


# ---- densities -----------------------------------------------------------------------------------
@cache
def grid(toy: Toy) -> tuple[Tensor, Tensor, float]:
    """Centres of cells that hold the samples, the log density there, and the area of a cell."""
    mean, std = torch.tensor([toy.raw_mean, toy.raw_std], dtype=torch.float64)
    if isinstance(
        toy, Checkerboard
    ):  # whose board ends sqrt(3) standard deviations from its centre
        half, cells = math.sqrt(3), 40 * toy.cells
    elif isinstance(toy, Pinwheel):  # whose tips are sheared thin
        half, cells = 4.4, 740
    else:  # curves end within 2.3; the midpoint rule is exact to rounding for bells wider than two cells
        assert isinstance(toy, MixtureToy)
        width = toy.mixture.narrowest / (1 if toy.standardise else float(std.max()))
        half = 2.3 + 8 * width
        cells = math.ceil(2 * half / (width / 2))
    line = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells * 2 * half - half
    points, area = torch.cartesian_prod(line, line), (2 * half / cells) ** 2
    if not toy.standardise:
        points, area = points * std + mean, area * float(std.prod())
    return points, toy.log_prob(points), area


@pytest.mark.parametrize("toy", planes, ids=repr)
def test_plane_densities_have_mass_one_and_the_exact_moments(toy):
    points, logs, area = grid(toy)
    p = logs.exp() * area
    assert p.sum() == pytest.approx(1, abs=1e-9)
    mean = p @ points
    variance = p @ points.square() - mean**2
    if isinstance(toy, Checkerboard):  # a uniform on a cell adds its own variance to the centre's
        variance += area / 12
    expected = (toy.raw_mean, toy.raw_std) if not toy.standardise else ((0, 0), (1, 1))
    assert mean.tolist() == pytest.approx(expected[0], abs=1e-8)
    assert variance.sqrt().tolist() == pytest.approx(expected[1], rel=1e-8)


@pytest.mark.parametrize("toy", planes, ids=repr)
def test_plane_densities_are_those_of_the_draws(toy):
    n = 50_000
    points, logs, area = grid(toy)
    p = logs.exp() * area
    x = toy.sample(n, seed=11, dtype=torch.float64)
    std = 1.0 if toy.standardise else torch.tensor(toy.raw_std).double()
    for k in [(1.0, 0.0), (0.0, 1.0), (1.5, -1.0), (2.0, 3.0), (-5.0, 4.0), (9.0, 2.0)]:
        wave = torch.tensor(k, dtype=torch.float64) / std
        draws, expected = torch.polar(torch.ones(n).double(), x @ wave), points @ wave
        # Over a square cell the wave's mean is its value at the centre times two sincs.
        shrink = torch.sinc(wave * math.sqrt(area) / (2 * math.pi)).prod()
        shrink = shrink if isinstance(toy, Checkerboard) else 1.0
        for part, function in ((draws.real, torch.cos), (draws.imag, torch.sin)):
            # Four standard errors.
            exact = shrink * (p @ function(expected))
            assert abs(part.mean() - exact) < 4 * part.std() / math.sqrt(n) + 1e-8
    found = toy.log_prob(x)
    exact = torch.where(p > 0, p * logs, 0.0).sum()
    assert abs(found.mean() - exact) < 4 * found.std() / math.sqrt(n) + 1e-8


@pytest.mark.parametrize("toy", [t for t in planes if isinstance(t, toys.Curve)], ids=repr)
def test_curve_densities_are_the_integral_along_the_curve(toy):
    from scipy.integrate import quad

    raw_toy = replace(toy, standardise=False)
    curve, noise = toy._curve, toy.noise
    x = raw_toy.sample(4, seed=2, dtype=torch.float64)
    x[2:] += torch.tensor([[3.0, 1.0], [0.0, -8.0]]).double() * noise
    for point, found in zip(x, raw_toy.log_prob(x), strict=True):
        centre = torch.view_as_complex(point)

        def integrand(s: float, centre: Tensor = centre) -> float:
            place = torch.tensor([s], dtype=torch.float64)
            away = float((centre - curve(place)).abs().square())
            return float(toy._density(place)) * math.exp(-away / (2 * noise**2))

        total = 0.0
        for low, high in toy._pieces:
            # Many short intervals, so that no bell is stepped over.
            cuts = torch.linspace(low, high, 61, dtype=torch.float64).tolist()
            total += math.fsum(
                quad(integrand, a, b, epsabs=1e-200, epsrel=1e-10)[0]
                for a, b in zip(cuts[:-1], [*cuts[1:-1], math.nextafter(high, 0)], strict=True)
            )
        expected = math.log(total) - math.log(2 * math.pi * noise**2)
        assert float(found) == pytest.approx(expected, abs=1e-9)


def test_standardising_moves_the_density_along():
    for toy in toys.ALL:
        kind = replace(toy, standardise=False)  # type: ignore[type-var]
        x = toy.sample(50, seed=1, dtype=torch.float64)
        mean, std = torch.tensor([toy.raw_mean, toy.raw_std], dtype=torch.float64)
        expected = kind.log_prob(x * std + mean) + std.log().sum()
        torch.testing.assert_close(toy.log_prob(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("toy", mixtures, ids=repr)
def test_mixtures_are_the_law_of_the_samples(toy):
    x = toy.sample(100, seed=1, dtype=torch.float64)
    torch.testing.assert_close(toy.mixture.log_prob(x), toy.log_prob(x), rtol=1e-11, atol=1e-11)
    mean, std = (toy.raw_mean, toy.raw_std) if not toy.standardise else ([0] * 2, [1] * 2)
    assert toy.mixture.mean.tolist() == pytest.approx(mean[: toy.dim], abs=1e-13)
    variances = toy.mixture.covariance.diagonal()
    assert variances.sqrt().tolist() == pytest.approx(std[: toy.dim], rel=1e-13)


def test_the_default_two_modes_are_the_target_of_that_name():
    found, target = TwoMode().mixture, sk.data.two_mode()
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)[:, None]
    torch.testing.assert_close(found.log_prob(x), target.log_prob(x), rtol=1e-12, atol=1e-12)


@each_line
def test_line_densities_have_mass_one_and_the_exact_moments(toy):
    from scipy.integrate import quad

    low, high = (
        [float(toy.quantile(torch.tensor(u))) for u in (0.0, 1.0)]
        if isinstance(toy, Ramp)
        else (-12.0, 12.0)
    )

    def pdf(x: float) -> float:
        return float(toy.log_prob(torch.tensor([[x]], dtype=torch.float64)).exp())

    def moment(k: int) -> float:
        return quad(lambda x: x**k * pdf(x), low, high, epsabs=1e-12, limit=200)[0]

    mean, std = (toy.raw_mean[0], toy.raw_std[0]) if not toy.standardise else (0.0, 1.0)
    assert [moment(k) for k in range(3)] == pytest.approx([1, mean, mean**2 + std**2], abs=1e-9)
    middle = float(toy.quantile(torch.tensor(0.3, dtype=torch.float64)))
    assert quad(pdf, low, middle, epsabs=1e-12)[0] == pytest.approx(0.3, abs=1e-9)


@each_line
def test_cdf_survival_and_quantile_agree_and_are_those_of_the_draws(toy):
    u = torch.tensor([0.0, 1e-12, 1e-3, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    # Near a hard end x itself is rounded to about 1e-16.
    torch.testing.assert_close(toy.cdf(toy.quantile(u)), u, rtol=1e-9, atol=1e-15)
    x = toy.sample(100_000, seed=8, dtype=torch.float64)[:, 0]
    torch.testing.assert_close(toy.cdf(x) + toy.survival(x), torch.ones_like(x))
    found = torch.stack([(x <= q).double().mean() for q in toy.quantile(u)])
    # Four standard errors of a share.
    assert ((found - u).abs() <= 4 * (u * (1 - u) / 100_000).sqrt() + 1e-9).all()
    logs = toy.log_prob(x[:, None])
    slope = (toy.cdf(x + 1e-6) - toy.cdf(x - 1e-6)) / 2e-6
    inside = (toy.cdf(x) > 1e-4) & (toy.survival(x) > 1e-4)
    torch.testing.assert_close(logs[inside].exp(), slope[inside], rtol=1e-6, atol=1e-8)


def test_the_ramp_in_closed_form():
    ramp = Ramp(standardise=False)
    x = torch.tensor([-0.1, 0.0, 0.25, 1.0, 1.1], dtype=torch.float64)
    assert ramp.log_prob(x[:, None]).exp().tolist() == pytest.approx([0, 2, 1.5, 0, 0], abs=1e-15)
    assert ramp.cdf(x).tolist() == pytest.approx([0, 0, 0.4375, 1, 1], abs=1e-15)
    assert ramp.survival(torch.tensor(1 - 1e-9)).item() == pytest.approx(1e-18, rel=1e-6)
    assert ramp.quantile(torch.tensor(1e-20)).item() == pytest.approx(5e-21, rel=1e-12)
    draws = Ramp().log_prob(Ramp().sample(100_000, seed=1, dtype=torch.float64))
    # The entropy is 1/2 - log 2, less what the scale adds; log(1 - x) has standard deviation 1/2.
    exact = math.log(2) - 0.5 + math.log(ramp.raw_std[0])
    assert abs(draws.mean() - exact) < 4 * 0.5 / math.sqrt(100_000)


def test_a_ramp_starts_a_fokker_planck_solve():
    """An Ornstein-Uhlenbeck process shrinks it and adds a bell; its jump leaves two of the four orders."""
    process, t = sk.OrnsteinUhlenbeck(theta=0.5), 0.05
    alpha, sigma = process.alpha(t), process.sigma(t)
    y, w = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(200))
    y, w = (y + 1) / 2, w / 2 * (1 - y)  # 2 (1 - y) dy on [0, 1]
    errors = []
    for cells in (700, 1400):
        edges = torch.linspace(-3.0, 4.0, cells + 1, dtype=torch.float64)
        found = sk.pde.solve_fokker_planck(process, Ramp(standardise=False), edges, [t], tol=1e-8)
        z = (edges[:, None] - alpha * y) / sigma
        below = 0.5 * torch.special.erfc(-z / math.sqrt(2)) @ w  # P(alpha X + sigma Z <= x)
        error = torch.from_numpy(found.density[-1]) - below.diff() / edges.diff()
        errors.append(float(error.abs().max()))
    assert errors[0] < 5e-5
    assert errors[0] / errors[1] == pytest.approx(4, abs=0.05)


test_bad_input_is_named = bad_input(
    [
        ("turns", lambda: Spiral(turns=0.1), ValueError, ["turns must be"]),
        ("noise", lambda: Spiral(noise=-0.1), ValueError, ["noise must be"]),
        ("bool", lambda: Spiral(turns=True), TypeError, ["turns must be a number"]),
        ("flag", lambda: Spiral(standardise=1), TypeError, ["standardise must be True or False"]),  # type: ignore[arg-type]
        ("modes", lambda: Ring(modes=0), ValueError, ["modes must be >= 1"]),
        ("half a mode", lambda: Ring(modes=2.5), TypeError, ["modes must be an integer"]),  # type: ignore[arg-type]
        ("radius", lambda: Ring(radius=-1.0), ValueError, ["radius must be"]),
        ("std", lambda: Ring(std=0.0), ValueError, ["std must be"]),
        ("nan", lambda: Moons(noise=math.nan), ValueError, ["noise must be"]),
        ("roll", lambda: SwissRoll(noise=-1.0), ValueError, ["noise must be"]),
        ("odd board", lambda: Checkerboard(3), ValueError, ["cells must be even, got 3"]),
        ("no board", lambda: Checkerboard(0), ValueError, ["cells must be >= 2"]),
        ("two blades", lambda: Pinwheel(2), ValueError, ["modes must be >= 3"]),
        ("radial", lambda: Pinwheel(radial_std=0), ValueError, ["radial_std must be"]),
        ("tangential", lambda: Pinwheel(tangential_std=-1), ValueError, ["tangential_std must be"]),
        ("rate", lambda: Pinwheel(rate=math.inf), ValueError, ["rate must be"]),
        ("weight", lambda: TwoMode(weight=1.0), ValueError, ["weight must be", "(0, 1)"]),
        ("distance", lambda: TwoMode(distance=-1.0), ValueError, ["distance must be"]),
        ("two-mode std", lambda: TwoMode(std=0.0), ValueError, ["std must be"]),
        ("n", lambda: Moons().sample(-1), ValueError, ["n must be >= 0"]),
        ("float n", lambda: Moons().sample(1.0), TypeError, ["n must be an integer"]),  # type: ignore[arg-type]
        ("seed", lambda: Moons().sample(1, seed=-1), ValueError, ["seed must be >= 0"]),
        ("both", lambda: Moons().sample(1, seed=1, generator=torch.Generator()), ValueError, ["not both"]),
        ("generator", lambda: Moons().sample(1, generator=1), TypeError, ["generator must be"]),  # type: ignore[arg-type]
        ("dtype", lambda: Moons().sample(1, dtype=torch.int64), TypeError, ["dtype must be"]),
        ("no noise", lambda: Moons(0.0).log_prob(torch.zeros(1, 2)), ValueError, ["noise must be at least"]),
        ("too fine", lambda: Moons(1e-7).mixture, ValueError, ["at least 7.9e-05", "got 1e-07"]),
        ("shape", lambda: Moons().log_prob(torch.zeros(3)), ValueError, ["x must be (n, 2), got shape (3,)"]),
        ("columns", lambda: Ramp().log_prob(torch.zeros(3, 2)), ValueError, ["x must be (n, 1)", "(3, 2)"]),
        ("integers", lambda: Ramp().log_prob(torch.zeros(3, 1).long()), TypeError, ["x must be a float"]),
        ("nan x", lambda: Ramp().log_prob(torch.full((1, 1), math.nan)), ValueError, ["x has 1 NaN"]),
        ("u", lambda: Ramp().quantile(torch.tensor(1.5)), ValueError, ["u must lie in [0, 1]"]),
    ]
)  # fmt: skip
