"""Divergences of densities on a grid."""

import math

import torch
from torch import Tensor

from sdekit.metrics.arguments import exact

# Densities are raised to this value before a logarithm is taken.
_TINY = 1e-300
# Negative values may carry this much mass (round-off, overshoot) before they count as a mistake.
_NEGATIVE_MASS = 1e-6
# A density on a grid integrates to 1 within this much, or the grid is not its own.
_MASS_ERROR = 1e-2


def kl_divergence(p: Tensor, q: Tensor, dx: float | Tensor) -> float:
    """Kullback-Leibler divergence KL(p | q) in nats, of densities on a grid.

    Summed as p log(p/q) - p + q, which is KL(p | q) for densities of mass 1, is never negative, is
    0 only for p = q, and feels an error of the masses in second order only. For smooth densities at
    uniform points that reach into both tails the error is round-off; for cell averages it is
    O(dx^2) and from below (averaging loses information).

    Values below 1e-300 are raised to 1e-300, so a q of 0 under a positive p gives a large number
    and not infinity: about 690 nats times the mass of p there.

    Args:
        p: shape (cells,), densities at uniform points or averages over cells.
        q: shape (cells,), the same for the other law.
        dx: the spacing, or the cells' increasing edges of shape (cells + 1,).

    Raises:
        ValueError: for values not finite, shapes that differ, a mass off 1 by more than 1e-2,
            negative values with more than 1e-6 of mass, a dx that is not positive.
        TypeError: for densities that are not floating tensors or a dx that is not a number.
    """
    p, q, widths = _densities(p, q, dx)
    p, q = p.clamp(min=_TINY), q.clamp(min=_TINY)
    excess = (q - p) / p
    # log(q/p) by log1p where the two are close, where the plain difference has no digits left.
    log_ratio = torch.where(excess.abs() < 0.5, torch.log1p(excess), q.log() - p.log())
    return float((((q - p) - p * log_ratio) * widths).sum())


def total_variation(p: Tensor, q: Tensor, dx: float | Tensor) -> float:
    """Total variation distance, half the integral of |p - q|, of densities on a grid.

    Values below 0 are set to 0. The error is at most dx^2/8 |p' - q'| at each crossing of p and q,
    to leading order, and from below for cell averages.

    Args:
        p: shape (cells,), densities at uniform points or averages over cells.
        q: shape (cells,), the same for the other law.
        dx: the spacing, or the cells' increasing edges of shape (cells + 1,).

    Returns:
        A number in [0, 1], up to the error of the masses.

    Raises:
        ValueError: as `kl_divergence`.
        TypeError: as `kl_divergence`.
    """
    p, q, widths = _densities(p, q, dx)
    return 0.5 * float(((p.clamp(min=0) - q.clamp(min=0)).abs() * widths).sum())


def _densities(p: Tensor, q: Tensor, dx: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Densities and cell widths as float64 (cells,), checked."""
    p, q = exact("p", p), exact("q", q)
    if p.ndim != 1 or p.shape != q.shape or len(p) == 0:
        shapes = f"{tuple(p.shape)} and {tuple(q.shape)}"
        raise ValueError(f"p and q must share one shape (cells,), got {shapes}")
    widths = _widths(dx, len(p))
    for name, density in (("p", p), ("q", q)):
        mass = float((density * widths).sum())
        if abs(mass - 1) > _MASS_ERROR:
            raise ValueError(
                f"{name} must integrate to 1 within {_MASS_ERROR} on the grid, got {mass:.6g}"
            )
        negative = -float((density.clamp(max=0) * widths).sum())
        if negative > _NEGATIVE_MASS:
            raise ValueError(
                f"{name} must not be negative, got values of negative mass {negative:.3g},"
                f" allowed {_NEGATIVE_MASS}"
            )
    return p, q, widths


def _widths(dx: float | Tensor, cells: int) -> Tensor:
    """Widths (cells,) from a spacing or from edges (cells + 1,)."""
    if isinstance(dx, Tensor) and dx.ndim > 0:
        edges = exact("dx", dx)
        if edges.shape != (cells + 1,) or not bool((edges.diff() > 0).all()):
            raise ValueError(
                f"dx as edges must be increasing of shape ({cells + 1},),"
                f" got shape {tuple(edges.shape)}"
            )
        return edges.diff()
    if isinstance(dx, Tensor):
        dx = dx.item()
    if isinstance(dx, bool) or not isinstance(dx, int | float):
        raise TypeError(f"dx must be a number or a tensor of edges, got {type(dx).__name__}")
    if not (math.isfinite(dx) and dx > 0):
        raise ValueError(f"dx must be finite and positive, got {dx!r}")
    return torch.full((cells,), float(dx), dtype=torch.float64)
