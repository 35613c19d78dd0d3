"""What the Fokker-Planck solver asks: a grid that holds the mass and resolves the density."""

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from sdekit.data.mixtures import GaussianMixture
from sdekit.elementary import ratio
from sdekit.errors import check_number
from sdekit.pde.equations import Equation
from sdekit.processes import GaussianPrior

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


def array(name: str, value: Any, ndim: int) -> np.ndarray:
    """A float64 copy of numbers given as an array, a tensor or a sequence, of so many dimensions."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    found = np.array(value)
    if found.dtype.kind not in "iuf":
        raise TypeError(f"{name} must hold numbers, got {found.dtype}")
    if found.ndim != ndim:
        kind = {1: "one", 2: "two"}[ndim]
        raise ValueError(f"{name} must be {kind}-dimensional, got shape {found.shape}")
    if not np.isfinite(found).all():
        raise ValueError(f"{name} must be finite, got {found[~np.isfinite(found)][0]}")
    return found.astype(np.float64)


def vector(name: str, value: Any) -> np.ndarray:
    """A float64 copy of a row of numbers."""
    return array(name, value, 1)


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


def check_start(start: Any, equation: Equation) -> float:
    """The time of density0, where the equation has terms."""
    return check_number("start", equation.start if start is None else start, *equation.span)


def check_times(times: Vector, start: float, equation: Equation) -> np.ndarray:
    """Times from `start` on in the direction of the equation, with finite terms at both ends, float64."""
    clock = vector("times", times)
    if not len(clock):
        raise ValueError("times must hold at least one time, got none")
    equation.head_for(start, float(clock[-1]))
    sign, verb = (-1, "decrease") if equation.backward else (1, "increase")
    if (back := np.flatnonzero(sign * np.diff(clock) <= 0)).size:
        i = back[0]
        raise ValueError(f"times must {verb}, got {clock[i]:g} and then {clock[i + 1]:g}")
    low, high = equation.span
    low, high = (low, start) if equation.backward else (start, high)
    if clock.min() < low or clock.max() > high:
        raise ValueError(
            f"times must lie in [{low:g}, {high:g}], {verb} from start = {start:g}, for {equation!r};"
            f" got [{clock.min():g}, {clock.max():g}]"
        )
    for t in (start, float(clock[-1])):
        if why := equation.singular(t):
            raise ValueError(f"times must avoid t = {t:g}, where {why}")
    return clock


def cell_averages(
    density0: Density | GaussianPrior | Vector, grid: np.ndarray
) -> tuple[np.ndarray, float | None]:
    """Averages over the cells, and the smallest standard deviation of a component where it is known."""
    h = (grid[-1] - grid[0]) / (len(grid) - 1)
    if isinstance(density0, GaussianPrior):
        density0 = GaussianMixture(None, [0.0], stds=density0.std)
    if isinstance(density0, Density):
        x = torch.from_numpy(grid)
        below = vector("density0.cdf(edges)", density0.cdf(x))
        survival = getattr(density0, "survival", None)
        above = 1 - below if survival is None else vector("density0.survival(edges)", survival(x))
        # The difference of the smaller of the two keeps the digits of both tails.
        averages = np.where(below[1:] < 0.5, np.diff(below), -np.diff(above)) / h
        outside, narrowest = below[0] + above[-1], getattr(density0, "narrowest", None)
    else:
        averages, narrowest, outside = vector("density0", density0), None, 0.0
        if len(averages) != len(grid) - 1:
            raise ValueError(
                f"density0 must have one average for each of the {len(grid) - 1} cells,"
                f" got {len(averages)}"
            )
        check_averages(averages, h)
    if outside > _OUTSIDE:
        raise ValueError(
            f"edges must hold the mass of density0: {outside:.2g} of it is outside"
            f" [{grid[0]:g}, {grid[-1]:g}]; at most {_OUTSIDE:g} may be"
        )
    if narrowest == 0:
        raise ValueError("density0 must have no atoms (components of standard deviation 0)")
    return averages, None if narrowest is None else float(narrowest)


def check_averages(averages: np.ndarray, cell: float) -> None:
    """Raise unless averages over cells of this size are those of a density: of mass 1, and not negative."""
    if -cell * averages.clip(max=0).sum() > _OUTSIDE:
        raise ValueError(f"density0 must not be negative, got {averages.min():g}")
    mass = cell * averages.sum()
    if abs(mass - 1) > _OUTSIDE:
        raise ValueError(
            f"density0 must have mass 1 to {_OUTSIDE:g}, got {mass:.9g}: averages are densities, not"
            " probabilities of cells; divide by the mass, or widen edges"
        )


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


def check_width(width: float | None, grid: np.ndarray, t: float) -> None:
    """Raise if the cells are too coarse for the narrowest component of the density at t, if it is known."""
    h, cells = grid[1] - grid[0], len(grid) - 1
    if width is None or width >= _CELLS_PER_STD * h * (1 - 1e-9):
        return
    raise ValueError(
        f"edges must give {_CELLS_PER_STD} cells to the narrowest standard deviation, {width:.3g} at"
        f" t = {t:g}: at least {math.ceil(_CELLS_PER_STD * h * cells / width * (1 - 1e-9))} cells,"
        f" got {cells}"
    )


def steepness(
    equation: Equation, averages: np.ndarray, grid: np.ndarray, t: float, scale: float, std: float
) -> float:
    """|a| h / D where there is density at t, or 0 if the density is smooth.

    Central differences oscillate where a feature is as narrow as the layer D / |a| of a steep cell, so the
    bound |a| h / D <= 2 matters only for features of fewer than three cells: a smooth density stays smooth
    (it is scaled and blurred), and sub-VP, where D(0) = 0, needs no exception.
    """
    h = grid[1] - grid[0]
    if math.hypot(scale * h * cells_per_std(averages), std) >= _CELLS_PER_STD * h:
        return 0.0
    support = grid[:-1][averages > 1e-12 * averages.max()]
    low = max(scale * support[0] - _SUPPORT * std, grid[0]) - h / 2
    high = min(scale * (support[-1] + h) + _SUPPORT * std, grid[-1]) + h / 2
    drift, spread, _ = equation.terms(grid[(grid > low) & (grid < high)], t)
    steepest = float(np.abs(drift).max())
    return float(ratio(steepest * h, spread)) if steepest else 0.0


def cells_per_std(averages: np.ndarray) -> float:
    """The standard deviation, in cells, of a Gaussian with the peak and the largest curvature given."""
    curvature = np.abs(np.diff(averages, 2)).max() / averages.max()
    # At the peak of a Gaussian the second derivative is peak / std^2.
    return 1 / math.sqrt(curvature) if curvature else math.inf


def check_walls(density: np.ndarray, grid: np.ndarray, times: np.ndarray) -> None:
    """Raise if mass has come to the ends of the grid, where it cannot go further."""
    cells = density.shape[1]
    ends = max(1, cells // 100)
    near = (grid[1] - grid[0]) * (density[:, :ends].sum(1) + density[:, -ends:].sum(1))
    if near.max() > _OUTSIDE:
        worst = int(near.argmax())
        raise ValueError(
            f"edges must hold the mass until t = {times[worst]:g}, where {near[worst]:.2g} of it has come"
            f" to the outermost {ends} of the {cells} cells at either end; at most {_OUTSIDE:g} may"
        )
