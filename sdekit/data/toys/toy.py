"""What every toy has: draws and a log density, standardised by its exact mean and standard deviation.

A subclass writes raw points, the mean and standard deviations of their coordinates in closed form, and
their log density; nothing is standardised by its own sample.
"""

import math
from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import Tensor

from sdekit.data.mixtures import GaussianMixture
from sdekit.errors import check_finite, check_flag, check_integer, generator_of


class Toy(ABC):
    """A law on the line or in the plane; data for training, with a density to hold the result against.

    Attributes:
        standardise: whether each coordinate is moved and scaled to mean 0 and variance 1. Samples and
            densities are in the same coordinates.
    """

    standardise: bool

    def __post_init__(self) -> None:
        check_flag("standardise", self.standardise)

    @property
    def dim(self) -> int:
        """Dimension d: 1 or 2."""
        return len(self.raw_mean)

    def sample(
        self,
        n: int,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """`n` points (n, d), drawn in float64 and cast, so that a seed means the same in each dtype.

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
        mean, std = self._coordinates(points)
        return ((points - mean) / std).to(dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density in nats at x (n, d), computed in float64: (n,), -inf off the support.

        Raises:
            ValueError: x has another shape, or the toy has no density because its noise is 0.
        """
        if check_finite("x", x).ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"x must be (n, {self.dim}), got shape {tuple(x.shape)}")
        mean, std = self._coordinates(x)
        raw = x.double() * std + mean
        return (self._log_density(raw) + std.log().sum()).to(x.dtype)

    @property
    @abstractmethod
    def raw_mean(self) -> tuple[float, ...]:
        """The exact mean of the raw coordinates."""

    @property
    @abstractmethod
    def raw_std(self) -> tuple[float, ...]:
        """The exact standard deviations of the raw coordinates."""

    @abstractmethod
    def _points(self, n: int, generator: torch.Generator) -> Tensor:
        """Raw points (n, d), float64."""

    @abstractmethod
    def _log_density(self, raw: Tensor) -> Tensor:
        """Log density of the raw points (n, d), float64: (n,)."""

    def _coordinates(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Where samples have their 0 and 1, in raw coordinates: (d,) each, float64."""
        shape = self.raw_mean, self.raw_std
        if not self.standardise:
            shape = (0.0,) * self.dim, (1.0,) * self.dim
        mean, std = torch.tensor(shape, dtype=torch.float64, device=like.device)
        return mean, std


class MixtureToy(Toy):
    """A toy that is a Gaussian mixture, so that its score is known at every noise level as well."""

    @cached_property
    def mixture(self) -> GaussianMixture:
        """The law of the samples; `mixture.denoiser(process)` is the perfectly trained network.

        Raises:
            ValueError: the toy has no density because its noise is 0.
        """
        raw = self._raw_mixture
        mean, std = self._coordinates(raw.means)
        stds = raw.variances.sqrt() / std
        return GaussianMixture(None, (raw.means - mean) / std, stds, logits=raw.log_weights)

    @cached_property
    def _raw_mixture(self) -> GaussianMixture:
        return self._as_mixture()

    def _log_density(self, raw: Tensor) -> Tensor:
        return self._raw_mixture.log_prob(raw)

    @abstractmethod
    def _as_mixture(self) -> GaussianMixture:
        """The law of the raw points."""


def uniforms(n: int, generator: torch.Generator) -> Tensor:
    """Uniforms on [0, 1), (n,) float64."""
    return torch.rand(n, generator=generator, device=generator.device, dtype=torch.float64)


def complex_normals(n: int, generator: torch.Generator) -> Tensor:
    """Complex numbers whose parts are unit normals, (n,) complex128."""
    draws = torch.randn(n, 2, generator=generator, device=generator.device, dtype=torch.float64)
    return torch.view_as_complex(draws)


def log_normal(z: Tensor, std: float) -> Tensor:
    """log N(z; 0, std^2), elementwise."""
    return -0.5 * (z / std).square() - math.log(std * math.sqrt(2 * math.pi))
