"""What the Fokker-Planck solver asks: a grid that holds the mass and resolves the density."""

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from sdekit.elementary import ratio
from sdekit.processes import Process

_OUTSIDE = 1e-6  # the largest mass that may lie beyond the ends of the grid
_CELLS_PER_STD = 3  # fewer cells in the smallest standard deviation are not resolved
_SUPPORT = 7.4  # exp(-7.4^2 / 2) = 1e-12 of the peak

Vector = np.ndarray | torch.Tensor | Sequence[float]


@runtime_checkable
class Density(Protocol):
    """A density on the line known by its distribution function, such as a 1-D `GaussianMixture`.

    Two optional attributes are read: `survival(x)`, 1 - cdf(x) with the digits of the right tail, and
    `narrowest`, the smallest standard deviation of a component.
    """

    def cdf(self, x: torch.Tensor, /) -> torch.Tensor:
        """P(X <= x), elementwise for x of shape (n,)."""
        ...


def vector(name: str, value: Any) -> np.ndarray:
    """A float64 copy of numbers given as an array, a tensor or a sequence."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    array = np.array(value)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name} must hold numbers, got {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {array[~np.isfinite(array)][0]}")
    return array.astype(np.float64)


def check_edges(edges: Vector) -> np.ndarray:
    """Uniform, increasing ends of at least 8 cells, float64."""
    grid = vector("edges", edges)
    if len(grid) < 9:
        raise ValueError(f"edges must bound at least 8 cells, got {len(grid)} edges")
    widths = np.diff(grid)
    if widths.min() <= 0:
        raise ValueError(f"edges must increase, got a cell of width {widths.min():g}")
    if np.ptp(widths) > 1e-8 * widths.mean():
        raise ValueError(
            f"edges must be uniform, got widths from {widths.min():.12g} to {widths.max():.12g}"
            " (float32 is too coarse)"
        )
    return grid


def check_times(times: Vector, process: Process, start: float) -> np.ndarray:
    """Increasing times in [start, T] with finite rates at both ends, float64."""
    clock = vector("times", times)
    if not len(clock):
        raise ValueError("times must hold at least one time, got none")
    if (back := np.flatnonzero(np.diff(clock) <= 0)).size:
        i = back[0]
        raise ValueError(f"times must increase, got {clock[i]:g} and then {clock[i + 1]:g}")
    if clock[0] < start or clock[-1] > process.horizon:
        raise ValueError(
            f"times must lie in [start, T] = [{start:g}, {process.horizon:g}] for {process!r},"
            f" got [{clock[0]:g}, {clock[-1]:g}]"
        )
    for t in (start, float(clock[-1])):
        f, g2 = process.rates(t)
        if not (math.isfinite(f) and math.isfinite(g2)):
            raise ValueError(
                f"times must avoid t = {t:g}, where (f, g^2) of {process!r} is ({f:g}, {g2:g});"
                f" its t_max is {process.t_max:g}"
            )
    return clock


def cell_averages(density0: Density | Vector, grid: np.ndarray) -> tuple[np.ndarray, float | None]:
    """Averages over the cells, and the smallest standard deviation of a component where it is known."""
    h = (grid[-1] - grid[0]) / (len(grid) - 1)
    if isinstance(density0, Density):
        x = torch.from_numpy(grid)
        below = vector("density0.cdf(edges)", density0.cdf(x))
        survival = getattr(density0, "survival", None)
        above = 1 - below if survival is None else vector("density0.survival(edges)", survival(x))
        # The difference of the smaller of the two keeps the digits of both tails.
        averages = np.where(below[1:] < 0.5, np.diff(below), -np.diff(above)) / h
        outside, narrowest = below[0] + above[-1], getattr(density0, "narrowest", None)
    else:
        averages, narrowest = vector("density0", density0), None
        if len(averages) != len(grid) - 1:
            raise ValueError(
                f"density0 must have one average for each of the {len(grid) - 1} cells,"
                f" got {len(averages)}"
            )
        if -h * averages.clip(max=0).sum() > _OUTSIDE:
            raise ValueError(f"density0 must not be negative, got {averages.min():g}")
        mass, outside = h * averages.sum(), 0.0
        if abs(mass - 1) > _OUTSIDE:
            raise ValueError(
                f"density0 must have mass 1 to {_OUTSIDE:g}, got {mass:.9g}: averages are densities, not"
                " probabilities of cells; divide by the mass, or widen edges"
            )
    if outside > _OUTSIDE:
        raise ValueError(
            f"edges must hold the mass of density0: {outside:.2g} of it is outside"
            f" [{grid[0]:g}, {grid[-1]:g}]; at most {_OUTSIDE:g} may be"
        )
    if narrowest == 0:
        raise ValueError("density0 must have no atoms (components of standard deviation 0)")
    return averages, None if narrowest is None else float(narrowest)


def check_mass(averages: np.ndarray, grid: np.ndarray, t: float, scale: float, std: float) -> None:
    """Raise if the density at t, a sum of Gaussians of this std, reaches beyond the grid."""
    from scipy.special import ndtr

    if not std:
        return
    x = scale * (grid[:-1] + grid[1:]) / 2
    outside = (grid[1] - grid[0]) * (
        averages @ (ndtr((grid[0] - x) / std) + ndtr((x - grid[-1]) / std))
    )
    if outside > _OUTSIDE:
        raise ValueError(
            f"edges must hold the mass until t = {t:g}, where {outside:.2g} of it is outside"
            f" [{grid[0]:g}, {grid[-1]:g}]; at most {_OUTSIDE:g} may be (the noise added by then has"
            f" standard deviation {std:.3g})"
        )


def check_resolution(
    rates: tuple[Any, Any],
    averages: np.ndarray,
    narrowest: float | None,
    grid: np.ndarray,
    t: float,
    scale: float,
    std: float,
) -> None:
    """Raise if the cells are too coarse for the density at t.

    Central differences oscillate where a feature is as narrow as the layer D / |a| of a steep cell, so the
    bound |a| h / D <= 2 matters only for unresolved features: a smooth density stays smooth under a linear
    drift (it is scaled and blurred), and sub-VP, where D(0) = 0, needs no exception. Three cells in the
    narrowest standard deviation are asked of densities that name it; bare averages, whose features may be
    sharp on purpose, are let through below the bound.
    """
    h, cells = grid[1] - grid[0], len(grid) - 1
    curvature = np.abs(np.diff(averages, 2)).max() / averages.max()
    # At the peak of a Gaussian the second derivative is peak / std^2.
    peak_width = h / math.sqrt(curvature) if curvature else math.inf
    width = peak_width if narrowest is None else narrowest
    width = math.hypot(scale * width, std)
    if width >= _CELLS_PER_STD * h * (1 - 1e-9):
        return
    if narrowest is not None:
        raise ValueError(
            f"edges must give {_CELLS_PER_STD} cells to the narrowest standard deviation,"
            f" {width:.3g} at t = {t:g}: at least"
            f" {math.ceil(_CELLS_PER_STD * h * cells / width * (1 - 1e-9))} cells, got {cells}"
        )
    f, g2 = map(float, rates)
    support = np.flatnonzero(averages > 1e-12 * averages.max())
    reach = max(abs(grid[support[0]]), abs(grid[support[-1] + 1]))
    reach = min(scale * reach + _SUPPORT * std, max(-grid[0], grid[-1]))
    layers = ratio(abs(f) * reach * h, g2 / 2) if f else 0.0
    if layers > 2:
        enough = f"at least {math.ceil(layers / 2 * cells)} cells are needed" if g2 else "D is 0"
        raise ValueError(
            f"edges must keep |f x| h / D <= 2 where density0 is not smooth (its features are narrower"
            f" than {_CELLS_PER_STD} cells), got {layers:.3g} at t = {t:g}: {enough}, or a smooth density"
        )
