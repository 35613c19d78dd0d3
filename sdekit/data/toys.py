"""Two-dimensional toy laws, as plain samples with mean 0 and variance 1 in each coordinate.

A point is a complex number z. E z, E z^2 and E |z|^2 are known in closed form for every law here, and
they give the mean and the variances of both coordinates, so nothing is standardised by its own sample.
"""

import cmath
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit.errors import check_integer, check_number, generator_of


class Toy(ABC):
    """A law in the plane, standardised; a subclass writes its raw points and their moments."""

    def sample(
        self,
        n: int,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """`n` points (n, 2), drawn in float64 and cast, so that a seed means the same in each dtype.

        Args:
            n: how many.
            seed: of the draw; without seed or generator a fresh one is taken from the system.
            generator: draws and moves on; not together with `seed`.
            dtype: of the result.
        """
        check_integer("n", n, 0)
        if not dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating-point type, got {dtype}")
        points = self._points(n, generator_of(seed, generator))
        (x, y), (a, b) = self.raw_mean, self.raw_std
        points = torch.stack([(points.real - x) / a, (points.imag - y) / b], dim=-1)
        return points.to(dtype)

    @property
    def raw_mean(self) -> tuple[float, float]:
        """The exact mean of the raw coordinates."""
        z, _, _ = self._moments()
        return z.real, z.imag

    @property
    def raw_std(self) -> tuple[float, float]:
        """The exact standard deviations of the raw coordinates."""
        z, square, power = self._moments()
        a = (power + square.real) / 2 - z.real**2
        b = (power - square.real) / 2 - z.imag**2
        return math.sqrt(a), math.sqrt(b)

    @abstractmethod
    def _points(self, n: int, generator: torch.Generator) -> Tensor:
        """Raw points (n,), complex128."""

    @abstractmethod
    def _moments(self) -> tuple[complex, complex, float]:
        """E z, E z^2 and E |z|^2 of the raw points."""


@dataclass(frozen=True)
class Spiral(Toy):
    """z = s exp(2 pi i turns s) + noise, with s = sqrt(u) so that points are spread along the arc.

    Args:
        turns: how often it winds, at least 0.25.
        noise: standard deviation about the curve, whose end is at radius 1.
    """

    turns: float = 2.0
    noise: float = 0.03

    def __post_init__(self) -> None:
        check_number("turns", self.turns, 0.25)
        check_number("noise", self.noise, 0.0)

    def _points(self, n: int, generator: torch.Generator) -> Tensor:
        s = _uniform(n, generator).sqrt()
        return torch.polar(s, 2 * math.pi * self.turns * s) + _noise(n, self.noise, generator)

    def _moments(self) -> tuple[complex, complex, float]:
        rate = 2 * math.pi * self.turns  # s has density 2 s
        z, square = 2 * _power_wave(2, rate, 0, 1), 2 * _power_wave(3, 2 * rate, 0, 1)
        return z, square, 0.5 + 2 * self.noise**2


@dataclass(frozen=True)
class Ring(Toy):
    """Equally likely normal blobs, equally spaced on a circle.

    Args:
        modes: how many, at least 1.
        radius: of the circle.
        std: standard deviation of a blob; positive.
    """

    modes: int = 8
    radius: float = 1.0
    std: float = 0.1

    def __post_init__(self) -> None:
        check_integer("modes", self.modes, 1)
        check_number("radius", self.radius, 0.0)
        check_number("std", self.std, 0.0, open_low=True)

    def _points(self, n: int, generator: torch.Generator) -> Tensor:
        mode = torch.floor(self.modes * _uniform(n, generator))
        centre = torch.polar(torch.full_like(mode, self.radius), 2 * math.pi / self.modes * mode)
        return centre + _noise(n, self.std, generator)

    def _moments(self) -> tuple[complex, complex, float]:
        power = self.radius**2
        z = self.radius if self.modes == 1 else 0.0
        square = power if self.modes <= 2 else 0.0
        return complex(z), complex(square), power + 2 * self.std**2


@dataclass(frozen=True)
class Moons(Toy):
    """Two interleaving half circles of radius 1, the lower one centred at (1, 1/2).

    Args:
        noise: standard deviation about the curves.
    """

    noise: float = 0.1

    def __post_init__(self) -> None:
        check_number("noise", self.noise, 0.0)

    def _points(self, n: int, generator: torch.Generator) -> Tensor:
        u = 2 * _uniform(n, generator)  # the whole part picks the moon, the rest the angle
        lower = u >= 1
        arc = torch.polar(torch.ones_like(u), math.pi * (u % 1))
        return torch.where(lower, 1 + 0.5j - arc, arc) + _noise(n, self.noise, generator)

    def _moments(self) -> tuple[complex, complex, float]:
        arc, centre = 2j / math.pi, 1 + 0.5j  # the mean of the upper moon; its E z^2 is 0
        square = (centre**2 - 2 * centre * arc) / 2
        power = (1 + abs(centre) ** 2 + 1 - 2 * (centre * arc.conjugate()).real) / 2
        return centre / 2, square, power + 2 * self.noise**2


@dataclass(frozen=True)
class SwissRoll(Toy):
    """z = s exp(i s) + noise with s uniform between 3/2 pi and 9/2 pi: the roll seen from its end.

    Args:
        noise: standard deviation about the curve, whose windings are 2 pi apart.
    """

    noise: float = 0.5

    def __post_init__(self) -> None:
        check_number("noise", self.noise, 0.0)

    def _points(self, n: int, generator: torch.Generator) -> Tensor:
        s = math.pi * (1.5 + 3 * _uniform(n, generator))
        return torch.polar(s, s) + _noise(n, self.noise, generator)

    def _moments(self) -> tuple[complex, complex, float]:
        low, high = 1.5 * math.pi, 4.5 * math.pi
        z = _power_wave(1, 1, low, high) / (high - low)
        square = _power_wave(2, 2, low, high) / (high - low)
        power = (high**3 - low**3) / (3 * (high - low))
        return z, square, power + 2 * self.noise**2


def _power_wave(k: int, rate: float, low: float, high: float) -> complex:
    """The integral of s^k exp(i rate s) from low to high, by parts."""
    ends = high**k * cmath.exp(1j * rate * high) - low**k * cmath.exp(1j * rate * low)
    return (ends - (k * _power_wave(k - 1, rate, low, high) if k else 0)) / (1j * rate)


def _uniform(n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator, device=generator.device, dtype=torch.float64)


def _noise(n: int, std: float, generator: torch.Generator) -> Tensor:
    """Complex normals, `std` in each part."""
    draws = torch.randn(n, 2, generator=generator, device=generator.device, dtype=torch.float64)
    return std * torch.view_as_complex(draws)


ALL: tuple[Toy, ...] = (Spiral(), Ring(), Moons(), SwissRoll())
