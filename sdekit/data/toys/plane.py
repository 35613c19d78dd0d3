"""Toys in the plane. A raw point is a complex number z.

E z, E z^2 and E |z|^2 are known in closed form for every law here, and they give the mean and the
variances of both coordinates.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit.data.mixtures import GaussianMixture
from sdekit.data.toys.toy import MixtureToy, Toy, complex_normals, log_normal, uniforms
from sdekit.errors import check_integer, check_number


class Plane(Toy):
    """A law in the plane; a subclass writes its raw points and their moments as complex numbers."""

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

    def _points(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.view_as_real(self._complex_points(n, generator))

    @abstractmethod
    def _complex_points(self, n: int, generator: torch.Generator) -> Tensor:
        """Raw points (n,), complex128."""

    @abstractmethod
    def _moments(self) -> tuple[complex, complex, float]:
        """E z, E z^2 and E |z|^2 of the raw points."""


@dataclass(frozen=True)
class Ring(MixtureToy, Plane):
    """Equally likely normal blobs, equally spaced on a circle.

    Args:
        modes: how many, at least 1.
        radius: of the circle.
        std: standard deviation of a blob; positive.
        standardise: see `Toy`.
    """

    modes: int = 8
    radius: float = 1.0
    std: float = 0.1
    standardise: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("modes", self.modes, 1)
        check_number("radius", self.radius, 0.0)
        check_number("std", self.std, 0.0, open_low=True)

    def _complex_points(self, n: int, generator: torch.Generator) -> Tensor:
        mode = torch.floor(self.modes * uniforms(n, generator))
        return self._centres(mode) + self.std * complex_normals(n, generator)

    def _moments(self) -> tuple[complex, complex, float]:
        power = self.radius**2
        z = self.radius if self.modes == 1 else 0.0
        square = power if self.modes <= 2 else 0.0
        return complex(z), complex(square), power + 2 * self.std**2

    def _as_mixture(self) -> GaussianMixture:
        centres = self._centres(torch.arange(self.modes, dtype=torch.float64))
        return GaussianMixture(None, torch.view_as_real(centres), self.std)

    def _centres(self, mode: Tensor) -> Tensor:
        return torch.polar(torch.full_like(mode, self.radius), 2 * math.pi / self.modes * mode)


@dataclass(frozen=True)
class Checkerboard(Plane):
    """Uniform on the black squares of a board over [-1, 1]^2: edges everywhere and no score at them.

    Args:
        cells: squares along a side; even, at least 2.
        standardise: see `Toy`.
    """

    cells: int = 4
    standardise: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if check_integer("cells", self.cells, 2) % 2:
            raise ValueError(f"cells must be even, got {self.cells}")

    def _complex_points(self, n: int, generator: torch.Generator) -> Tensor:
        x = self.cells * uniforms(n, generator)
        y = (
            self.cells / 2 * uniforms(n, generator)
        )  # the whole part picks a black square of the column
        y = y + y.floor() + x.floor() % 2
        return torch.complex(x, y) * (2 / self.cells) - (1 + 1j)

    def _moments(self) -> tuple[complex, complex, float]:
        # Squares of one parity have their centres 1 / cells off the middle, to the same side in x and y.
        return 0j, 2j / self.cells**2, 2 / 3

    def _log_density(self, raw: Tensor) -> Tensor:
        place = ((raw + 1) * (self.cells / 2)).floor()
        black = (place.sum(1) % 2 == 0) & ((place >= 0) & (place < self.cells)).all(1)
        return torch.where(black, raw.new_full((), -math.log(2.0)), -math.inf)


@dataclass(frozen=True)
class Pinwheel(Plane):
    """Long bells pointing outwards, bent into blades: turned by `rate` exp(|z|) about the origin.

    After M. Johnson et al., Composing graphical models with neural networks, 2016, whose angle grows with
    the coordinate along the blade; with the radius in its place areas are kept, and so the density of a
    blade is that of the bell it is bent from.

    Args:
        modes: blades, at least 3.
        radial_std: standard deviation along a blade, about radius 1; positive.
        tangential_std: standard deviation across it; positive.
        rate: how much the blades bend, in radians.
        standardise: see `Toy`.
    """

    modes: int = 5
    radial_std: float = 0.3
    tangential_std: float = 0.1
    rate: float = 0.25
    standardise: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("modes", self.modes, 3)
        check_number("radial_std", self.radial_std, 0.0, open_low=True)
        check_number("tangential_std", self.tangential_std, 0.0, open_low=True)
        check_number("rate", self.rate)

    def _complex_points(self, n: int, generator: torch.Generator) -> Tensor:
        mode = torch.floor(self.modes * uniforms(n, generator))
        w = complex_normals(n, generator)
        w = torch.complex(1 + self.radial_std * w.real, self.tangential_std * w.imag)
        return w * self._turn(w, mode)

    def _moments(self) -> tuple[complex, complex, float]:
        return 0j, 0j, 1 + self.radial_std**2 + self.tangential_std**2  # three blades or more

    def _log_density(self, raw: Tensor) -> Tensor:
        z = torch.view_as_complex(raw.contiguous())[:, None]
        mode = torch.arange(self.modes, dtype=torch.float64, device=raw.device)
        w = z * self._turn(z, mode).conj()
        along, across = (
            log_normal(w.real - 1, self.radial_std),
            log_normal(w.imag, self.tangential_std),
        )
        return torch.logsumexp(along + across, 1) - math.log(self.modes)

    def _turn(self, w: Tensor, mode: Tensor) -> Tensor:
        """exp(i angle) of blade `mode` at the radius of w."""
        angle = self.rate * w.abs().exp() + 2 * math.pi / self.modes * mode
        return torch.polar(torch.ones_like(angle), angle)
