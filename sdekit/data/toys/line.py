"""Toys on the line, known by their distribution functions too: a Fokker-Planck solve can start from them."""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit.data.mixtures import GaussianMixture
from sdekit.data.toys.toy import MixtureToy, Toy, uniforms
from sdekit.errors import check_number


class Line(Toy):
    """A law on the line, with its distribution function and quantiles."""

    def cdf(self, x: Tensor) -> Tensor:
        """P(X <= x), float64, elementwise for x of any shape; relative accuracy in the left tail."""
        return self._raw_cdf(self._raw(x))

    def survival(self, x: Tensor) -> Tensor:
        """P(X > x), float64, elementwise; relative accuracy in the right tail."""
        return self._raw_survival(self._raw(x))

    def quantile(self, u: Tensor) -> Tensor:
        """The x with cdf(x) = u, float64, elementwise for u in [0, 1]."""
        u = torch.as_tensor(u, dtype=torch.float64)
        if not bool(((u >= 0) & (u <= 1)).all()):
            raise ValueError(f"u must lie in [0, 1], got [{u.min().item()}, {u.max().item()}]")
        mean, std = self._coordinates(u)
        return (self._raw_quantile(u) - mean) / std

    def _raw(self, x: Tensor) -> Tensor:
        x = torch.as_tensor(x, dtype=torch.float64)
        mean, std = self._coordinates(x)
        return x * std + mean

    @abstractmethod
    def _raw_cdf(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _raw_survival(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _raw_quantile(self, u: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class TwoMode(MixtureToy, Line):
    """Two bells of one width: weight N(-distance/2, std^2) + (1 - weight) N(distance/2, std^2).

    Args:
        weight: of the left bell, in (0, 1).
        distance: between the means.
        std: of a bell; positive.
        standardise: see `Toy`. Standardised, the default is the mixture `sdekit.data.two_mode()`.
    """

    weight: float = 0.3
    distance: float = 1.0
    std: float = 0.2
    standardise: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("weight", self.weight, 0.0, 1.0, open_low=True, open_high=True)
        check_number("distance", self.distance, 0.0)
        check_number("std", self.std, 0.0, open_low=True)

    @property
    def raw_mean(self) -> tuple[float]:
        """The exact mean of the raw points."""
        return (self.distance * (0.5 - self.weight),)

    @property
    def raw_std(self) -> tuple[float]:
        """The exact standard deviation of the raw points."""
        between = self.weight * (1 - self.weight) * self.distance**2
        return (math.sqrt(self.std**2 + between),)

    @property
    def narrowest(self) -> float:
        """Standard deviation of a bell, in the coordinates of the samples."""
        return self.mixture.narrowest

    def _points(self, n: int, generator: torch.Generator) -> Tensor:
        left = uniforms(n, generator) < self.weight
        z = torch.randn(n, generator=generator, device=generator.device, dtype=torch.float64)
        return (self.std * z + self.distance * (0.5 - left.double()))[:, None]

    def _as_mixture(self) -> GaussianMixture:
        half = self.distance / 2
        return GaussianMixture([self.weight, 1 - self.weight], [-half, half], self.std)

    def _raw_cdf(self, x: Tensor) -> Tensor:
        return self._raw_mixture.cdf(x)

    def _raw_survival(self, x: Tensor) -> Tensor:
        return self._raw_mixture.survival(x)

    def _raw_quantile(self, u: Tensor) -> Tensor:
        return self._raw_mixture.quantile(u)


@dataclass(frozen=True)
class Ramp(Line):
    """The smaller of two uniforms: density 2 (1 - x) on [0, 1], a jump at one end and none at the other.

    Args:
        standardise: see `Toy`.
    """

    standardise: bool = True

    @property
    def raw_mean(self) -> tuple[float]:
        """The exact mean of the raw points."""
        return (1 / 3,)

    @property
    def raw_std(self) -> tuple[float]:
        """The exact standard deviation of the raw points."""
        return (math.sqrt(1 / 18),)

    def _points(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.minimum(uniforms(n, generator), uniforms(n, generator))[:, None]

    def _log_density(self, raw: Tensor) -> Tensor:
        inside = (raw >= 0) & (raw <= 1)
        return torch.where(inside, math.log(2) + torch.log1p(-raw.clamp(0, 1)), -math.inf)[:, 0]

    def _raw_cdf(self, x: Tensor) -> Tensor:
        x = x.clamp(0, 1)
        return x * (2 - x)

    def _raw_survival(self, x: Tensor) -> Tensor:
        return (1 - x.clamp(0, 1)).square()

    def _raw_quantile(self, u: Tensor) -> Tensor:
        return u / (1 + (1 - u).sqrt())  # 1 - sqrt(1 - u) without its cancellation
