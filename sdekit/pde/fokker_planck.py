"""The density of x_t on a line, from the Fokker-Planck equation p_t = -(f(t) x p)_x + (g(t)^2 / 2) p_xx.

Unknowns are cell averages on a uniform grid, with zero flux through both ends. The flux F = a p - D p_x at
an interior face takes p and p_x from the four averages around it, to fourth order:

    p   = (7 (p_k + p_k+1) - (p_k-1 + p_k+2)) / 12
    p_x = (15 (p_k+1 - p_k) - (p_k+2 - p_k-1)) / (12 h)

and to second order at the outermost interior faces, where no mass should be. Mass is a telescoping sum, so
it is conserved to round-off. Time is stepped by `sdekit.pde.esdirk`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from sdekit.elementary import ratio
from sdekit.errors import NumericsError, check_number
from sdekit.pde.esdirk import integrate
from sdekit.processes import Heat, Process
from sdekit.schedules import Tabulated

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


@dataclass(frozen=True, eq=False)
class Solution:
    """Cell averages of a density at several times.

    Attributes:
        density: averages over the cells, shape (times, cells), float64.
        edges: ends of the cells, shape (cells + 1,).
        times: times of the rows of `density`.
        steps: accepted time steps from the start to the last time.
    """

    density: np.ndarray
    edges: np.ndarray
    times: np.ndarray
    steps: int

    @property
    def centers(self) -> np.ndarray:
        """Midpoints of the cells, shape (cells,)."""
        return (self.edges[:-1] + self.edges[1:]) / 2

    @property
    def mass(self) -> np.ndarray:
        """Integral of the density at each time, shape (times,)."""
        return self.density @ np.diff(self.edges)

    @property
    def minimum(self) -> np.ndarray:
        """Smallest cell average at each time, shape (times,): how far the scheme falls below zero."""
        return self.density.min(axis=1)


def solve_fokker_planck(
    process: Process,
    density0: Density | Vector,
    edges: Vector,
    times: Vector,
    *,
    start: float = 0.0,
    tol: float = 1e-7,
) -> Solution:
    """Carry a density of `process` from `start` to each of `times` by the Fokker-Planck equation.

    Fourth-order finite volumes, ESDIRK4(3)6L[2]SA of Kennedy & Carpenter 2003 in time. Twenty cells to the
    narrowest standard deviation and the default `tol` give an L1 error below 5e-7 for VP, sub-VP and heat;
    half the cells, 16 times the error. The scheme keeps mass to round-off, and keeps a resolved density
    above -1e-12 of its peak; `Solution.minimum` tells.

    Args:
        process: gives the drift f(t) x and the squared diffusion g(t)^2 through `rates`.
        density0: the density at `start`: anything with `.cdf(x)` (and, for the digits of the right tail,
            `.survival(x)`), from which exact cell averages come, or the averages themselves, shape (cells,).
        edges: uniform, increasing ends of at least 8 cells.
        times: increasing times in [start, T].
        start: time of `density0`.
        tol: largest L1 norm of the embedded error of a step, relative to the mass; in [1e-13, 0.1].

    Raises:
        ValueError: an argument out of its range; a grid that leaves more than 1e-6 of the mass outside at
            `start` or at one of `times`, or has fewer than 3 cells in the narrowest standard deviation; bare
            averages that are not smooth where |f x| h / D > 2.
        TypeError: not a process, not numbers.
        NumericsError: the rates of the process are not finite between the times.
    """
    if not isinstance(process, Process):
        raise TypeError(f"process must be a Process, got {type(process).__name__}")
    tol = check_number("tol", tol, 1e-13, 0.1)
    start = check_number("start", start, 0.0, process.horizon)
    grid, clock = _check_edges(edges), _check_times(times, process, start)
    averages, narrowest = _cell_averages(density0, grid)
    for t in (start, *clock.tolist()):
        # The drift is linear: x_t = scale x_start + std z.
        scale, std = (1.0, 0.0) if t == start else map(float, process.transition(start, t))
        _check_mass(averages, grid, t, scale, std)
        _check_resolution(process.rates(t), averages, narrowest, grid, t, scale, std)
    volumes, y, steps = _FiniteVolumes(process, grid), averages, 0
    rows, wanted = [], set(clock.tolist())
    for begin, stops in _smooth_pieces(process, start, clock):
        solved = list(integrate(volumes, y, begin, stops, tol))
        rows += [row for t, (row, _) in zip(stops, solved, strict=True) if t in wanted]
        y, accepted = solved[-1]
        steps += accepted
    return Solution(np.stack(rows), grid, clock, steps)


def heat_equation(
    density0: Density | Vector,
    edges: Vector,
    times: Vector,
    **keywords: Any,
) -> Solution:
    """p_t = p_xx from `density0`: `solve_fokker_planck` for the process `Heat`, same arguments."""
    last = float(_vector("times", times).max(initial=1.0))
    return solve_fokker_planck(Heat(horizon=last), density0, edges, times, **keywords)


class _FiniteVolumes:
    """p' = (f(t) K + D(t) L) p for the cell averages p; K and L are pentadiagonal and made once."""

    def __init__(self, process: Process, edges: np.ndarray) -> None:
        from scipy.linalg import get_lapack_funcs

        self.faces = edges[1:-1]
        self.h = (edges[-1] - edges[0]) / (len(edges) - 1)
        # Weights of the cells k - 1 .. k + 2 at face k, between cells k and k + 1.
        value = np.tile(np.array([-1, 7, 7, -1]) / 12, (len(self.faces), 1))
        slope = np.tile(np.array([1, -15, 15, -1]) / (12 * self.h), (len(self.faces), 1))
        value[[0, -1]] = np.array([0, 1, 1, 0]) / 2
        slope[[0, -1]] = np.array([0, -1, 1, 0]) / self.h
        self.K, self.L = self._bands(value * self.faces[:, None]), self._bands(-slope)
        self.matrix = np.empty_like(self.K)
        (self.gbsv,) = get_lapack_funcs(("gbsv",), (self.K,))
        # A stage asks twice; rates by automatic differentiation are not cheap.
        self.coefficients = lru_cache(maxsize=1)(partial(_coefficients, process))

    def _bands(self, flux: np.ndarray) -> np.ndarray:
        """Minus the divergence of a flux given by its weights, in the band storage of LAPACK."""
        cells = len(flux) + 1
        # Rows 0 and 1 are room for the fill of the factorisation; row 4 is the diagonal.
        bands = np.zeros((7, cells), order="F")
        for j in range(4):
            face = np.arange(max(0, 1 - j), min(cells - 1, cells + 1 - j))
            column = face - 1 + j
            bands[5 - j, column] -= flux[face, j] / self.h
            bands[6 - j, column] += flux[face, j] / self.h
        return bands

    def rate(self, t: float, y: np.ndarray) -> np.ndarray:
        """Minus the differences of the fluxes, not a matrix product: they telescope, so mass is kept."""
        f, D = self.coefficients(t)
        drift, spread = f / 12 * self.faces, D / (12 * self.h)
        inner, jump = y[:-1] + y[1:], y[1:] - y[:-1]
        flux = np.zeros(len(y) + 1)
        flux[2:-2] = drift[1:-1] * (7 * inner[1:-1] - y[:-3] - y[3:])
        flux[2:-2] -= spread * (15 * jump[1:-1] - y[3:] + y[:-3])
        flux[[1, -2]] = (6 * drift * inner - 12 * spread * jump)[[0, -1]]
        return (flux[:-1] - flux[1:]) / self.h

    def solve(self, t: float, weight: float, y: np.ndarray) -> np.ndarray:
        """One factorisation and one solve: every stage of a step has its own time, so its own matrix."""
        f, D = self.coefficients(t)
        np.multiply(self.K, -weight * f, out=self.matrix)
        self.matrix += (-weight * D) * self.L
        self.matrix[4] += 1.0
        *_, x, info = self.gbsv(2, 2, self.matrix, y, overwrite_ab=True, overwrite_b=True)
        if info:
            raise NumericsError(f"the matrix of the implicit stage at t = {t:g} is singular")
        return x


def _coefficients(process: Process, t: float) -> tuple[float, float]:
    """f(t) and D(t) = g(t)^2 / 2."""
    f, g2 = (float(rate) for rate in process.rates(t))
    if not (math.isfinite(f) and math.isfinite(g2)):
        raise NumericsError(f"the rates (f, g^2) of {process!r} at t = {t:g} are ({f:g}, {g2:g})")
    return f, g2 / 2


def _smooth_pieces(
    process: Process, start: float, clock: np.ndarray
) -> Iterator[tuple[float, list[float]]]:
    """Beginnings and stops of the pieces of [start, last time] on which the rates are smooth.

    The rates of a tabulated chain jump at i / N and are continuous from the left. An embedded error hardly
    sees a jump inside a step (its weights are small), so every piece is a run of its own.
    """
    schedule, last = getattr(process, "schedule", None), float(clock[-1])
    n = len(schedule.betas) if isinstance(schedule, Tabulated) else 0
    jumps = [i / n for i in range(1, n) if start < i / n < last]
    # Just after a jump: at the jump itself the rates are still those before it.
    after = 1e-12 if n else 0.0
    for a, b in pairwise((-math.inf, *jumps, last)):
        times = clock[(clock > a) & (clock <= b)].tolist()
        yield max(a, start) + after, times if b in times else [*times, b]


def _vector(name: str, value: Any) -> np.ndarray:
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


def _check_edges(edges: Vector) -> np.ndarray:
    grid = _vector("edges", edges)
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


def _check_times(times: Vector, process: Process, start: float) -> np.ndarray:
    clock = _vector("times", times)
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


def _cell_averages(density0: Density | Vector, grid: np.ndarray) -> tuple[np.ndarray, float | None]:
    """Averages over the cells, and the smallest standard deviation of a component where it is known."""
    h = (grid[-1] - grid[0]) / (len(grid) - 1)
    if isinstance(density0, Density):
        x = torch.from_numpy(grid)
        below = _vector("density0.cdf(edges)", density0.cdf(x))
        survival = getattr(density0, "survival", None)
        above = 1 - below if survival is None else _vector("density0.survival(edges)", survival(x))
        # The difference of the smaller of the two keeps the digits of both tails.
        averages = np.where(below[1:] < 0.5, np.diff(below), -np.diff(above)) / h
        outside, narrowest = below[0] + above[-1], getattr(density0, "narrowest", None)
    else:
        averages, narrowest = _vector("density0", density0), None
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


def _check_mass(averages: np.ndarray, grid: np.ndarray, t: float, scale: float, std: float) -> None:
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


def _check_resolution(
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
