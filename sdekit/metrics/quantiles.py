"""The quantile function of a law on the line as piecewise polynomials, and what samples cost to it."""

import math
from functools import lru_cache
from typing import Protocol

import torch
from numpy.polynomial import legendre
from torch import Tensor

from sdekit.metrics.arguments import exact
from sdekit.quadrature import rule

# Panels of the unit interval are not halved below this width: beyond it 1 - u has no digits.
_NARROWEST = 2.0**-50
# Aim for the last coefficients of a quantile function's series, as a mean over (0, 1).
_TOLERANCE = 1e-13

# Gauss-Legendre nodes on [-1, 1], weights that give the mean over it, and the matrix that takes
# values at the nodes to Legendre coefficients.
_NODES, _WEIGHTS = rule(12)
_WEIGHTS = _WEIGHTS / 2
_TO_SERIES = _WEIGHTS[:, None] * torch.from_numpy(legendre.legvander(_NODES.numpy(), 11))
_TO_SERIES = _TO_SERIES * (2 * torch.arange(12) + 1)


class Truth1D(Protocol):
    """A law on the line, known through its distribution function and its quantiles."""

    def cdf(self, x: Tensor, /) -> Tensor:
        """P(X <= x), shape (n,) for x of shape (n,)."""
        ...

    def quantile(self, u: Tensor, /) -> Tensor:
        """The inverse of `cdf` on (0, 1), shape (n,) for u of shape (n,)."""
        ...


def law_cost(x: Tensor, truth: Truth1D, p: int) -> float:
    """W_p^p of sorted samples (n,) to a law."""
    n = len(x)
    try:
        left, right, series = _quantile_series(truth)
    except TypeError:  # unhashable: not kept
        left, right, series = _quantile_series.__wrapped__(truth)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    cuts = [steps, left]
    if p == 1:
        # Where x_i - G^{-1} changes sign within its cell, if it does.
        cuts.append(truth.cdf(x).double().clamp(min=steps[:-1], max=steps[1:]))
    edges = torch.cat(cuts).unique()
    width = edges.diff()
    middle = edges[:-1] + width / 2
    panel = torch.searchsorted(left, middle, right=True) - 1
    u = middle[:, None] + width[:, None] / 2 * _NODES
    z = (u - left[panel, None]) * (2 / (right - left))[panel, None] - 1
    gap = x[(middle * n).long().clamp(max=n - 1), None] - _legendre_sum(series[panel], z)
    cost = (gap @ _WEIGHTS).abs() if p == 1 else gap.square() @ _WEIGHTS
    return float(width @ cost)


@lru_cache(maxsize=8)  # a table asks for the same law's quantiles dozens of times
def _quantile_series(truth: Truth1D) -> tuple[Tensor, Tensor, Tensor]:
    """G^{-1} as Legendre series (panels, degree) on panels [left, right] that cover (0, 1).

    Panels shrink by halves towards both ends, and are halved where the series does not settle.
    """
    tail = torch.exp2(torch.arange(math.log2(_NARROWEST), 0, dtype=torch.float64))
    edges = torch.cat([tail.new_zeros(1), tail, 1 - tail[:-1].flip(0), tail.new_ones(1)])
    left, right = edges[:-1], edges[1:]
    done: list[tuple[Tensor, Tensor, Tensor]] = []
    allowed = 0.0
    while len(left):
        u = left[:, None] + (right - left)[:, None] * (1 + _NODES) / 2
        quantiles = truth.quantile(u.clamp(max=1 - 2.0**-53).reshape(-1))
        series = exact("truth.quantile(u)", quantiles).reshape(u.shape) @ _TO_SERIES
        width = right - left
        # The scale is the first estimate of the mean distance to the law's local means.
        allowed = allowed or _TOLERANCE * float(width @ series[:, 1].abs())
        again = (width * series[:, -2:].abs().amax(1) > allowed) & (width > _NARROWEST)
        done.append((left[~again], right[~again], series[~again]))
        left, right = left[again], right[again]
        middle = (left + right) / 2
        left, right = torch.cat([left, middle]), torch.cat([middle, right])
    left, right, series = (torch.cat(parts) for parts in zip(*done, strict=True))
    order = left.argsort()
    return left[order], right[order], series[order]


def _legendre_sum(series: Tensor, z: Tensor) -> Tensor:
    """Legendre series (panels, degree) at z (panels, points) by the three-term recurrence."""
    before, now = torch.ones_like(z), z
    total = series[:, :1] + series[:, 1:2] * z
    for k in range(2, series.shape[1]):
        before, now = now, ((2 * k - 1) * z * now - (k - 1) * before) / k
        total = torch.addcmul(total, series[:, k : k + 1], now)
    return total
