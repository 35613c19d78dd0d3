"""Toys that are a curve in the plane and normal noise about it.

The density is an integral along the curve. Ten Gauss-Legendre nodes to a panel, at most two standard
deviations of the noise long, give its logarithm to 1e-11 within four standard deviations of the curve, 1e-9
within eight and 1e-4 within sixteen; the nodes with their weights are a Gaussian mixture.
"""

import cmath
import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdekit.data.mixtures import GaussianMixture
from sdekit.data.toys.plane import Plane
from sdekit.data.toys.toy import MixtureToy, complex_normals, uniforms
from sdekit.errors import check_number
from sdekit.quadrature import even_panels

#: Gauss-Legendre nodes on a panel.
_NODES = 10
#: More panels than these are not laid out: the noise is then too fine for a mixture.
_PANELS = 20_000


class Curve(MixtureToy, Plane):
    """gamma(s) + noise, with s drawn by its quantile function from a uniform."""

    noise: float
    #: Intervals of s on which gamma and the density of s are smooth.
    _pieces: ClassVar[tuple[tuple[float, float], ...]]
    #: The largest |gamma(s)| about the centre of the turns.
    _radius: ClassVar[float]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("noise", self.noise, 0.0)

    def _complex_points(self, n: int, generator: torch.Generator) -> Tensor:
        s = self._place(uniforms(n, generator))
        return self._curve(s) + self.noise * complex_normals(n, generator)

    def _as_mixture(self) -> GaussianMixture:
        nodes, weights = zip(*(self._rule(*piece) for piece in self._pieces), strict=True)
        s = torch.cat(nodes)
        means = torch.view_as_real(self._curve(s))
        return GaussianMixture(torch.cat(weights) * self._density(s), means, self.noise)

    def _rule(self, low: float, high: float) -> tuple[Tensor, Tensor]:
        """Nodes and weights on panels within which neither the bell nor the curve turns much."""
        length = (high - low) * self._speed
        if length > 2 * self.noise * _PANELS:
            raise ValueError(
                f"noise must be at least {length / (2 * _PANELS):.2g} for a density, got {self.noise}"
            )
        return even_panels(low, high, min(2 * self.noise, self._radius) / self._speed, _NODES)

    @property
    @abstractmethod
    def _speed(self) -> float:
        """The largest |gamma'(s)|."""

    @abstractmethod
    def _place(self, u: Tensor) -> Tensor:
        """s from uniforms."""

    @abstractmethod
    def _density(self, s: Tensor) -> Tensor:
        """Density of s."""

    @abstractmethod
    def _curve(self, s: Tensor) -> Tensor:
        """gamma(s), complex128."""


@dataclass(frozen=True)
class Spiral(Curve):
    """z = s exp(2 pi i turns s) + noise, with s = sqrt(u) so that points are spread along the arc.

    Args:
        turns: how often it winds, at least 0.25.
        noise: standard deviation about the curve, whose end is at radius 1.
        standardise: see `Toy`.
    """

    turns: float = 2.0
    noise: float = 0.03
    standardise: bool = True

    _pieces: ClassVar = ((0.0, 1.0),)
    _radius: ClassVar = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("turns", self.turns, 0.25)

    @property
    def _rate(self) -> float:
        return 2 * math.pi * self.turns

    @property
    def _speed(self) -> float:
        return math.hypot(1, self._rate)

    def _place(self, u: Tensor) -> Tensor:
        return u.sqrt()

    def _density(self, s: Tensor) -> Tensor:
        return 2 * s

    def _curve(self, s: Tensor) -> Tensor:
        return torch.polar(s, self._rate * s)

    def _moments(self) -> tuple[complex, complex, float]:
        z, square = 2 * _power_wave(2, self._rate, 0, 1), 2 * _power_wave(3, 2 * self._rate, 0, 1)
        return z, square, 0.5 + 2 * self.noise**2


@dataclass(frozen=True)
class SwissRoll(Curve):
    """z = s exp(i s) + noise with s uniform between 3/2 pi and 9/2 pi: the roll seen from its end.

    Args:
        noise: standard deviation about the curve, whose windings are 2 pi apart.
        standardise: see `Toy`.
    """

    noise: float = 0.5
    standardise: bool = True

    _pieces: ClassVar = ((1.5 * math.pi, 4.5 * math.pi),)
    _radius: ClassVar = 4.5 * math.pi

    @property
    def _speed(self) -> float:
        return math.hypot(1, 4.5 * math.pi)

    def _place(self, u: Tensor) -> Tensor:
        return math.pi * (1.5 + 3 * u)

    def _density(self, s: Tensor) -> Tensor:
        return torch.full_like(s, 1 / (3 * math.pi))

    def _curve(self, s: Tensor) -> Tensor:
        return torch.polar(s, s)

    def _moments(self) -> tuple[complex, complex, float]:
        ((low, high),) = self._pieces
        z = _power_wave(1, 1, low, high) / (high - low)
        square = _power_wave(2, 2, low, high) / (high - low)
        power = (high**3 - low**3) / (3 * (high - low))
        return z, square, power + 2 * self.noise**2


@dataclass(frozen=True)
class Moons(Curve):
    """Two interleaving half circles of radius 1, the lower one centred at (1, 1/2).

    Args:
        noise: standard deviation about the curves.
        standardise: see `Toy`.
    """

    noise: float = 0.1
    standardise: bool = True

    _pieces: ClassVar = (
        (0.0, 1.0),
        (1.0, 2.0),
    )  # the whole part of s picks the moon, the rest the angle
    _radius: ClassVar = 1.0

    @property
    def _speed(self) -> float:
        return math.pi

    def _place(self, u: Tensor) -> Tensor:
        return 2 * u

    def _density(self, s: Tensor) -> Tensor:
        return torch.full_like(s, 0.5)

    def _curve(self, s: Tensor) -> Tensor:
        arc = torch.polar(torch.ones_like(s), math.pi * (s % 1))
        return torch.where(s >= 1, 1 + 0.5j - arc, arc)

    def _moments(self) -> tuple[complex, complex, float]:
        arc, centre = 2j / math.pi, 1 + 0.5j  # the mean of the upper moon; its E z^2 is 0
        square = (centre**2 - 2 * centre * arc) / 2
        power = (1 + abs(centre) ** 2 + 1 - 2 * (centre * arc.conjugate()).real) / 2
        return centre / 2, square, power + 2 * self.noise**2


def _power_wave(k: int, rate: float, low: float, high: float) -> complex:
    """The integral of s^k exp(i rate s) from low to high, by parts."""
    ends = high**k * cmath.exp(1j * rate * high) - low**k * cmath.exp(1j * rate * low)
    return (ends - (k * _power_wave(k - 1, rate, low, high) if k else 0)) / (1j * rate)
