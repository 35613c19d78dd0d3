import math

import pytest
import torch

from sdekit.data import toys
from sdekit.data.toys import Moons, Ring, Spiral, SwissRoll, Toy

VARIANTS = [
    Spiral(0.25, 0.0), Spiral(1.3, 0.2), Ring(1, 2.0, 0.5), Ring(2), Ring(3, 4.0, 0.01), Ring(5, 0.0),
    Moons(0.0), Moons(0.5), SwissRoll(0.0),
]  # fmt: skip
each_toy = pytest.mark.parametrize("toy", [*toys.ALL, *VARIANTS], ids=repr)


def test_all_is_every_toy_and_reprs_are_unique():
    kinds = {
        kind for kind in vars(toys).values() if isinstance(kind, type) and issubclass(kind, Toy)
    }
    assert {type(toy) for toy in toys.ALL} == kinds - {Toy}
    assert len({repr(toy) for toy in toys.ALL}) == len(toys.ALL)


@each_toy
def test_mean_zero_and_variance_one(toy):
    n = 200_000
    x = toy.sample(n, seed=3, dtype=torch.float64)
    # Four standard errors, of the mean and of the mean square, from the sample's own spread.
    assert (x.mean(0).abs() < 4 * x.std(0) / math.sqrt(n)).all()
    square = x.square()
    # A coordinate with two values has no spread in its square: rounding is all that is left.
    assert ((square.mean(0) - 1).abs() < 4 * square.std(0) / math.sqrt(n) + 1e-12).all()


@each_toy
def test_moments_are_those_of_the_raw_points(toy):
    n = 200_000
    z = toy._points(n, torch.Generator().manual_seed(4))
    for sample, exact in zip((z, z * z, z.abs() ** 2), toy._moments(), strict=True):
        for part in (torch.real, torch.imag) if sample.is_complex() else (torch.real,):
            value = complex(exact).real if part is torch.real else complex(exact).imag
            draws = part(sample)
            assert abs(draws.mean() - value) < 4 * draws.std() / math.sqrt(n) + 1e-12


@each_toy
def test_seeds_and_generators(toy):
    state = torch.get_rng_state()
    x = toy.sample(100, seed=5)
    assert x.shape == (100, 2)
    assert x.dtype == torch.float32
    assert torch.equal(x, toy.sample(100, seed=5))
    assert torch.equal(x, toy.sample(100, generator=torch.Generator().manual_seed(5)))
    assert torch.equal(x, toy.sample(100, seed=5, dtype=torch.float64).float())
    assert not torch.equal(x, toy.sample(100, seed=6))
    assert not torch.equal(toy.sample(100), toy.sample(100))
    generator = torch.Generator().manual_seed(5)
    first, second = (toy.sample(100, generator=generator) for _ in range(2))
    assert not torch.equal(first, second)
    assert toy.sample(0).shape == (0, 2)
    assert torch.equal(torch.get_rng_state(), state)


def raw(toy: Toy) -> torch.Tensor:
    """Raw points, by undoing the standardisation."""
    x = toy.sample(20_000, seed=1, dtype=torch.float64)
    mean, std = torch.tensor([toy.raw_mean, toy.raw_std], dtype=torch.float64)
    return x * std + mean


def polar(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x.norm(dim=-1), torch.atan2(x[:, 1], x[:, 0])


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
    assert (counts - 1 / 8).abs().max() < 4 * math.sqrt(7 / 64 / 20_000)
    assert (radius - 1).abs().max() < 0.06


BAD = [
    (lambda: Spiral(turns=0.1), ValueError, "turns must be"),
    (lambda: Spiral(noise=-0.1), ValueError, "noise must be"),
    (lambda: Spiral(turns=True), TypeError, "turns must be a number"),
    (lambda: Ring(modes=0), ValueError, "modes must be >= 1"),
    (lambda: Ring(modes=2.5), TypeError, "modes must be an integer"),  # type: ignore[arg-type]
    (lambda: Ring(radius=-1.0), ValueError, "radius must be"),
    (lambda: Ring(std=0.0), ValueError, "std must be"),
    (lambda: Moons(noise=math.nan), ValueError, "noise must be"),
    (lambda: SwissRoll(noise=-1.0), ValueError, "noise must be"),
    (lambda: Moons().sample(-1), ValueError, "n must be >= 0"),
    (lambda: Moons().sample(1.0), TypeError, "n must be an integer"),  # type: ignore[arg-type]
    (lambda: Moons().sample(1, seed=-1), ValueError, "seed must be >= 0"),
    (lambda: Moons().sample(1, seed=1, generator=torch.Generator()), ValueError, "not both"),
    (lambda: Moons().sample(1, generator=1), TypeError, "generator must be"),  # type: ignore[arg-type]
    (lambda: Moons().sample(1, dtype=torch.int64), TypeError, "dtype must be a floating-point"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=range(len(BAD)))
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
