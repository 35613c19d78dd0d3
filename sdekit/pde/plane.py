"""The density of x_t in the plane, from the Fokker-Planck equation p_t = -div(a p) + (g^2 / 2) laplacian p.

Unknowns are cell averages on a uniform grid, with zero flux through its boundary. Fluxes are those of
Scharfetter and Gummel (`sdekit.pde.scharfetter_gummel`), steps split the two axes (`sdekit.pde.splitting`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdekit.data.mixtures import GaussianMixture
from sdekit.errors import check_number
from sdekit.pde.arguments import Vector, check_start, check_times
from sdekit.pde.equations import Equation, equation_of
from sdekit.pde.plane_arguments import (
    Edges,
    check_edge_pair,
    check_ends,
    check_grid,
    plane_averages,
)
from sdekit.pde.sde import SDE
from sdekit.pde.splitting import FaceTerms, integrate
from sdekit.processes import GaussianPrior, Process
from sdekit.sampling.reverse_sde import ReverseSDE


@dataclass(frozen=True, eq=False)
class PlaneSolution:
    """Cell averages of a density in the plane at several times.

    Attributes:
        density: averages over the cells, shape (times, cells along x[0], cells along x[1]), float64.
        edges: ends of the cells along x[0] and along x[1].
        times: times of `density`.
        steps: accepted time steps from the start to the last time.
        time_error: estimated L1 error of all time steps until each time, shape (times,).
    """

    density: np.ndarray
    edges: Edges
    times: np.ndarray
    steps: int
    time_error: np.ndarray

    def __repr__(self) -> str:
        times, first, second = self.density.shape
        return f"PlaneSolution({times} times, {first} x {second} cells, {self.steps} steps)"

    @property
    def centers(self) -> tuple[np.ndarray, np.ndarray]:
        """Midpoints of the cells along x[0] and along x[1]."""
        first, second = ((edge[:-1] + edge[1:]) / 2 for edge in self.edges)
        return first, second

    @property
    def mass(self) -> np.ndarray:
        """Integral of the density at each time, shape (times,)."""
        return self.marginal(0) @ np.diff(self.edges[0])

    @property
    def minimum(self) -> np.ndarray:
        """Smallest cell average at each time, shape (times,): how far the scheme falls below zero."""
        return self.density.min(axis=(1, 2))

    def marginal(self, axis: int) -> np.ndarray:
        """Averages of the density of x[axis] over its cells at each time, shape (times, cells)."""
        if axis not in (0, 1) or isinstance(axis, bool):
            raise ValueError(f"axis must be 0 or 1, got {axis!r}")
        return np.moveaxis(self.density, 1 + axis, 1) @ np.diff(self.edges[1 - axis])


def solve_fokker_planck_2d(
    equation: Process | SDE | ReverseSDE,
    density0: GaussianMixture | GaussianPrior | Any,
    edges: Sequence[Vector],
    times: Vector,
    *,
    start: float | None = None,
    tol: float = 1e-5,
) -> PlaneSolution:
    """Carry a density in the plane from `start` to each of `times` by the Fokker-Planck equation of an SDE.

    Scharfetter-Gummel fluxes and Strang splitting with TR-BDF2: of second order in the cells and in time,
    L-stable, and mass is kept to round-off. Ten cells to the narrowest standard deviation give an L1 error
    of 1e-3 to 3e-3; half the cells, four times the error. Where |a| h > 2 D the fluxes turn upwind, with an
    error of first order: for sub-VP that is so shortly after t = 0.

    Args:
        equation: a process; an `SDE`; or the `ReverseSDE` of any model in two dimensions, whose density
            is then that of an infinitely fine sampler.
        density0: the density at `start`: a mixture or the prior of a process (exact cell averages where its
            axes are those of the plane, 3 x 3 Gauss-Legendre nodes a cell where covariances are full), or the
            averages themselves, shape (cells along x[0], cells along x[1]).
        edges: a pair of uniform, increasing ends of at least 8 cells, along x[0] and along x[1].
        times: times of the process from `start` on, each once: increasing for a process and an `SDE`,
            decreasing for a `ReverseSDE` (whose own clock and unit are not used).
        start: time of `density0`; 0 for a process and an `SDE`, t_max for a model unless its
            `ReverseSDE` starts earlier.
        tol: largest L1 norm of the estimated error of two time steps, in [1e-9, 0.1]; the steps are as long
            as it allows. `PlaneSolution.time_error` sums the estimates.

    Raises:
        ValueError: an argument out of its range; a grid that leaves more than 1e-6 of the mass outside, or at
            whose ends more than that piles up by one of `times`; fewer than 3 cells along an axis to the
            narrowest component known (of a mixture carried by a process, of an exact model).
        TypeError: not an equation, not numbers.
        NumericsError: the rates or the drift are not finite between the times.
    """
    grid = check_edge_pair(edges)
    problem = equation_of(equation, dim=2)
    tol = check_number("tol", tol, 1e-9, 0.1)
    begin = check_start(start, problem)
    clock = check_times(times, begin, problem)
    averages, law = plane_averages(density0, grid)
    check_grid(problem, averages, law, grid, begin, clock.tolist())
    sign, pace = -1.0 if problem.backward else 1.0, problem.pace
    widths = float(grid[0][1] - grid[0][0]), float(grid[1][1] - grid[1][0])
    states = []
    with problem.evaluating():
        first, *stops = (sign * pace.reading(t) for t in (begin, *clock.tolist()))
        terms = face_terms(problem, grid)
        solve = integrate(terms, widths, averages, first, stops, tol, pace.name)
        for t, state in zip(clock.tolist(), solve, strict=True):
            check_ends(state.averages, grid, t)
            states.append(state)
    density = np.stack([state.averages for state in states])
    errors = np.array([state.error for state in states])
    return PlaneSolution(density, grid, clock, states[-1].steps, errors)


def face_terms(equation: Equation, edges: Edges) -> Callable[[float], FaceTerms]:
    """The terms at the interior faces, per unit of its pace, as a function of a clock that increases.

    A drift a = f x is that of every line along an axis. Any other is asked for once a cell and carried to
    the faces: cubic interpolation from the centres of four cells costs half of what evaluation at the faces
    of both axes does, and its error is of fourth order.
    """
    sign = -1.0 if equation.backward else 1.0
    centers = [(edge[1:] + edge[:-1]) / 2 for edge in edges]
    grid = np.stack(np.meshgrid(*centers, indexing="ij"), -1)

    def terms(s: float) -> FaceTerms:
        (t, rate), (low, high) = equation.pace.time(sign * s), equation.span
        t = min(max(t, low), high)  # the inverse of a clock may round
        drift, spread, slope = equation.terms(grid.reshape(-1, 2), t)
        if slope is None:
            first, second = np.moveaxis(rate * drift.reshape(grid.shape), -1, 0)
            return FaceTerms((_at_faces(first.T), _at_faces(second)), rate * spread)
        first, second = (rate * slope * edge[None, 1:-1] for edge in edges)
        return FaceTerms((first, second), rate * spread)

    return terms


def _at_faces(values: np.ndarray) -> np.ndarray:
    """(lines, cells) at centres to (lines, cells - 1) at the interior faces, cubic but at the outermost."""
    faces = (values[:, :-1] + values[:, 1:]) / 2
    faces[:, 1:-1] = (9 * (values[:, 1:-2] + values[:, 2:-1]) - values[:, :-3] - values[:, 3:]) / 16
    return faces
