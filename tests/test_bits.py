"""Bits per dimension and dequantisation."""

import math

import pytest
import torch

import sdekit as sk
from tests.helpers import bad_input, normal

F64 = torch.float64


@pytest.mark.parametrize("scale", [1.0, 2.0, 0.3])
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_uniform_levels_cost_their_logarithm(scale: float, levels: int) -> None:
    """A uniform density on x = scale u + b is -d log(scale)."""
    d = 12
    logp = torch.full((3,), -d * math.log(scale), dtype=F64)
    bits = sk.bits_per_dim(logp, d, scale=scale, levels=levels, dequantised=True)
    assert (bits - math.log2(levels)).abs().max() < 1e-12


def test_the_usual_offsets() -> None:
    """8 for [0, 1] and 7 for [-1, 1], of 256 levels."""
    assert sk.bits_per_dim(0.0, 5, dequantised=True).item() == 8
    assert sk.bits_per_dim(0.0, 5, scale=2.0, dequantised=True).item() == 7


def test_continuous_data_may_have_negative_bits() -> None:
    law = sk.GaussianMixture(None, torch.zeros(1, 2), 1e-3)
    bits = sk.bits_per_dim(-law.entropy(), 2, levels=None, dequantised=False)
    assert bits.item() == pytest.approx(0.5 * math.log2(2 * math.pi * math.e) - math.log2(1e3))


def test_bits_bound_those_of_the_levels() -> None:
    """Of a normal density on 8 levels: above their entropy under it, by the noise's share, and within it."""
    law = sk.GaussianMixture(None, [0.5], 0.2)
    edges = torch.linspace(0, 1, 9, dtype=F64)
    masses = law.cdf(edges).diff()
    masses = masses / masses.sum()
    k = torch.multinomial(masses, 20_000, True, generator=torch.Generator().manual_seed(0))
    u = sk.dequantise(k[:, None], levels=8, seed=1, dtype=F64)
    logp = law.log_prob(u) - (law.cdf(edges[-1]) - law.cdf(edges[0])).log()
    bits = sk.bits_per_dim(logp, 1, levels=8, dequantised=True)
    entropy = -(masses * masses.log2()).sum()
    spread = 4 * bits.std() / math.sqrt(20_000)  # four standard errors
    assert entropy - spread < bits.mean() < entropy + 0.1


def test_a_negative_mean_is_not_silent() -> None:
    """Points on a lattice and a density that has found it."""
    with pytest.warns(UserWarning, match=r"-1\.97 bits per dimension.*scale = 1 that of x"):
        sk.bits_per_dim(torch.tensor([6.91], dtype=F64), 1, dequantised=True)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("levels", [2, 10, 17, 256])
def test_dequantised_levels_stay_in_their_cells(levels: int, dtype: torch.dtype) -> None:
    """And are uniform there: mean and variance within 4 standard errors."""
    k = torch.arange(levels).repeat(200_000 // levels)
    u = sk.dequantise(k, levels=levels, seed=0, dtype=dtype)
    assert u.dtype == dtype
    assert torch.equal((u.double() * levels * (1 + 1e-15)).floor().long().clamp(max=levels - 1), k)
    assert 0 <= u.min() <= u.max() < 1
    noise, n = u.double() * levels - k, len(k)
    assert abs(noise.mean() - 0.5) < 4 / math.sqrt(12 * n)
    assert abs(noise.var() - 1 / 12) < 4 / math.sqrt(180 * n)


def test_the_largest_noise_does_not_round_up(monkeypatch: pytest.MonkeyPatch) -> None:
    k = torch.arange(256, dtype=torch.uint8)
    largest = torch.full(k.shape, 1 - 2**-53, dtype=F64)
    monkeypatch.setattr(torch, "rand", lambda *a, **b: largest)
    u = sk.dequantise(k)
    assert u.dtype == torch.float32
    assert torch.equal((u * 256).floor().int(), k.int())


def test_dequantisation_is_a_function_of_the_seed() -> None:
    images = torch.randint(256, (5, 3, 3), generator=torch.Generator().manual_seed(0))
    first = sk.dequantise(images.to(torch.uint8), seed=3)
    assert torch.equal(first, sk.dequantise(images, seed=3))
    assert not torch.equal(first, sk.dequantise(images, seed=4))
    assert not torch.equal(sk.dequantise(images), sk.dequantise(images))
    assert torch.equal(sk.dequantise(images[:2], seed=3), first[:2])


K = torch.arange(4)
test_bad_input = bad_input(
    [
        (
            "no tensor",
            lambda: sk.bits_per_dim(sk.VP(), 2, dequantised=True),  # type: ignore[arg-type]
            TypeError,
            ["logp must be a tensor", ".value", "VP"],
        ),
        (
            "lattice",
            lambda: sk.bits_per_dim(0.0, 1, dequantised=False),
            ValueError,
            ["256 levels", "sk.dequantise", "levels=None"],
        ),
        ("flag", lambda: sk.bits_per_dim(0.0, 1, dequantised=1), TypeError, ["dequantised"]),  # type: ignore[arg-type]
        ("dims", lambda: sk.bits_per_dim(0.0, 0, dequantised=True), ValueError, ["dims"]),
        (
            "scale",
            lambda: sk.bits_per_dim(0.0, 1, dequantised=True, scale=0),
            ValueError,
            ["scale"],
        ),
        (
            "levels",
            lambda: sk.bits_per_dim(0.0, 1, dequantised=True, levels=1),
            ValueError,
            ["levels must be >= 2"],
        ),
        (
            "nan",
            lambda: sk.bits_per_dim(math.nan, 1, dequantised=True),
            ValueError,
            ["logp", "NaN"],
        ),
        ("float", lambda: sk.dequantise(normal(3)), TypeError, ["images must hold integer levels"]),
        ("bool", lambda: sk.dequantise(K > 1), TypeError, ["images must hold integer", "bool"]),
        ("list", lambda: sk.dequantise([1, 2]), TypeError, ["images must be a torch.Tensor"]),  # type: ignore[arg-type]
        ("high", lambda: sk.dequantise(K, levels=3), ValueError, ["[0, 2]", "[0, 3]"]),
        ("low", lambda: sk.dequantise(K - 1), ValueError, ["[0, 255]", "[-1, 2]"]),
        ("one", lambda: sk.dequantise(K, levels=1), ValueError, ["levels must be >= 2"]),
        ("seed", lambda: sk.dequantise(K, seed=-1), ValueError, ["seed"]),
    ]
)
