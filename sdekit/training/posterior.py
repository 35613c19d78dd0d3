"""The law of each coordinate of x_0 given x_t, of a Gaussian mixture at a time of each sample's own."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sdekit.data.mixtures import GaussianMixture
from sdekit.elementary import Number
from sdekit.processes import Process, expand

#: Of the interval of component means: to rounding.
_HALVINGS = 55
_SMALLEST = 1e-300
#: Numbers (points, components, coordinates) worked on at once.
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Marginals:
    """One-dimensional mixtures, one a coordinate, that share their weights.

    Attributes:
        weights: (n, k).
        means: (n, k, d).
        variances: (n, k, d), >= 0.
        log_prob: log density of the x_t that is given, (n,).
    """

    weights: Tensor
    means: Tensor
    variances: Tensor
    log_prob: Tensor

    def affine(self, x: Tensor, a: Number, b: Number) -> "Marginals":
        """The laws of a x + b X for x (n, d) and numbers a, b or (n,)."""
        shift, b = expand(a, x) * x, expand(b, self.means)
        return replace(
            self, means=shift[:, None] + b * self.means, variances=b * b * self.variances
        )

    def spread(self, norm: str) -> Tensor:
        """The least mean error of a constant: the variance ("l2"), or E|X - median| ("l1"); (n, d)."""
        return self.error(self.mean() if norm == "l2" else self.median(), norm)

    def error(self, c: Tensor, norm: str) -> Tensor:
        """E|X - c|^2 ("l2") or E|X - c| ("l1") for c (n, d): (n, d)."""
        away = self.means - c[:, None]
        if norm == "l2":
            return self._mean_of(away.square() + self.variances)
        std = self.variances.sqrt()
        z = away / std.clamp(min=_SMALLEST) / math.sqrt(2)
        folded = away * torch.erf(z) + std * math.sqrt(2 / math.pi) * torch.exp(-z * z)
        return self._mean_of(folded)

    def mean(self) -> Tensor:
        """E X, (n, d)."""
        return self._mean_of(self.means)

    def median(self) -> Tensor:
        """The median, (n, d), by bisection: it lies between the means of the components."""
        low, high = self.means.amin(1), self.means.amax(1)
        scale = self.variances.sqrt().clamp(min=_SMALLEST) * math.sqrt(2)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            # twice the mass above: erfc keeps the digits of both tails
            above = self._mean_of(torch.erfc((middle[:, None] - self.means) / scale)) > 1
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return (low + high) / 2

    def _mean_of(self, values: Tensor) -> Tensor:
        return torch.einsum("nk,nkd->nd", self.weights, values)


def marginals(target: GaussianMixture, process: Process, t: Tensor, x: Tensor) -> Marginals:
    """The coordinates of x_0 given x_t = x (n, d), at times t (n,) with sigma > 0; float64."""
    alpha, sigma = (torch.as_tensor(c)[:, None, None] for c in (process.alpha(t), process.sigma(t)))
    prior, axes = target.variances.expand(-1, target.dim), target.axes
    away = x[:, None] - alpha * target.means
    if axes is not None:
        away = torch.einsum("nki,kij->nkj", away, axes)
    total = alpha * alpha * prior + sigma * sigma
    logs = target.log_weights - 0.5 * (away * away / total + total.log()).sum(2)
    shift, variances = alpha * prior / total * away, prior * sigma * sigma / total
    if axes is not None:
        shift = torch.einsum("nkj,kij->nki", shift, axes)
        variances = torch.einsum("nkj,kij->nki", variances, axes * axes)
    log_prob = logs.logsumexp(1) - 0.5 * target.dim * math.log(2 * math.pi)
    return Marginals(logs.softmax(1), target.means + shift, variances, log_prob)


def in_blocks(target: GaussianMixture, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`function` of tensors (n, ...), as many rows at once as a posterior of each leaves in the cache."""
    rows = max(1, _BLOCK // target.means.numel())
    blocks = zip(*(v.split(rows) for v in tensors), strict=True)
    return torch.cat([function(*block) for block in blocks])
