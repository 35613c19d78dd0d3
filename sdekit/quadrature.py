"""Integrals by Gauss-Legendre panels: given ones, and ones that are halved until nothing changes."""

import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

_POINTS, _DEPTH = 8, 40


@cache
def rule(order: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on [-1, 1], float64 (order,) each."""
    from numpy.polynomial.legendre import leggauss

    points, weights = leggauss(order)
    return torch.from_numpy(points), torch.from_numpy(weights)


def panels(cuts: Tensor, order: int = 8) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the integral over the panels between cuts, `order` a panel."""
    points, weights = rule(order)
    half = 0.5 * cuts.diff()[:, None]
    return (cuts[:-1, None] + half * (points + 1)).flatten(), (half * weights).flatten()


def even_panels(low: float, high: float, width: float, order: int = 8) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [low, high], in equal panels no wider than `width`.

    Where the integrand is analytic within pi of the line, as a logistic function is, panels of width 2 leave
    an error of 1e-12 with eight points.
    """
    count = max(1, math.ceil((high - low) / width))
    return panels(torch.linspace(low, high, count + 1, dtype=torch.float64), order)


def gauss_legendre(
    cuts: Sequence[float], total: int = 600, most: int = 24
) -> tuple[Tensor, Tensor]:
    """Nodes and weights on the panels between cuts: about `total` nodes, 2 to `most` a panel."""
    order = max(2, min(most, total // len(cuts)))
    return panels(torch.tensor(cuts, dtype=torch.float64), order)


def integrate(
    function: Callable[[Tensor, Tensor], Tensor], cuts: Tensor, tolerance: Tensor
) -> Tensor:
    """Integrals of m functions at once, each over the panels between its own cuts, float64 (m,).

    A panel is halved until that changes its part by no more than the tolerance (at most 40 times).

    Args:
        function: values (k,) of the functions of index `row` (k,) at x (k,).
        cuts: ascending, (m, panels + 1).
        tolerance: of a panel of each function, (m,).
    """
    row = torch.arange(len(cuts))[:, None].expand(-1, cuts.shape[1] - 1).flatten()
    low, high = cuts[:, :-1].flatten(), cuts[:, 1:].flatten()
    coarse, total = (
        _of_each_panel(function, row, low, high),
        torch.zeros(len(cuts), dtype=torch.float64),
    )
    for _ in range(_DEPTH):
        middle = (low + high) / 2
        left, right = (
            _of_each_panel(function, row, *ends) for ends in ((low, middle), (middle, high))
        )
        rough = (left + right - coarse).abs() > tolerance[row]
        total.index_add_(0, row[~rough], (left + right)[~rough])
        if not bool(rough.any()):
            return total
        low, middle, high, left, right = (v[rough] for v in (low, middle, high, left, right))
        row, coarse = row[rough].repeat(2), torch.cat([left, right])
        low, high = torch.cat([low, middle]), torch.cat([middle, high])
    return total.index_add(0, row, coarse)


def _of_each_panel(
    function: Callable[[Tensor, Tensor], Tensor], row: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """The integral over each panel."""
    points, weights = rule(_POINTS)
    half = 0.5 * (high - low)[:, None]
    x = low[:, None] + half * (points + 1)
    values = function(row.repeat_interleave(_POINTS), x.flatten()).view(x.shape)
    return (values * half * weights).sum(1)
