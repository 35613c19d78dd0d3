"""The density of x_t on a line, from the Fokker-Planck equation p_t = -(a(x, t) p)_x + (g(t)^2 / 2) p_xx."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from sdekit.errors import check_choice, check_number
from sdekit.pde import esdirk, implicit_euler
from sdekit.pde.arguments import (
    Density,
    Vector,
    cell_averages,
    check_edges,
    check_mass,
    check_start,
    check_times,
    check_walls,
    check_width,
    steepness,
    vector,
)
from sdekit.pde.equations import Equation, ScalarSDE, equation_of
from sdekit.pde.finite_volumes import FourthOrder, Upwinded
from sdekit.processes import GaussianPrior, Heat, Process
from sdekit.sampling.flow_ode import ProbabilityFlow
from sdekit.sampling.reverse_sde import ReverseSDE

#: Discretisation in space, integrator in time, and the tolerance it has unless told otherwise.
_SCHEMES = {
    "fv4": (FourthOrder, esdirk.integrate, 1e-7),
    "sg": (Upwinded, implicit_euler.integrate, 1e-5),
}
#: How far below zero, relative to the peak, "auto" lets the scheme of fourth order fall.
_NEGATIVE = 1e-9


@dataclass(frozen=True, eq=False)
class Solution:
    """Cell averages of a density at several times.

    Attributes:
        density: averages of the density of x over the cells, shape (times, cells), float64.
        edges: ends of the cells, shape (cells + 1,); those of u = x / scale where coordinates are scaled.
        times: times of the rows of `density`.
        steps: accepted time steps from the start to the last time.
        scale: x of a unit of `edges` at each time, shape (times,): ones unless coordinates are scaled.
        scheme: "fv4" or "sg".
        reason: why "auto" took "sg"; empty otherwise.
    """

    density: np.ndarray
    edges: np.ndarray
    times: np.ndarray
    steps: int
    scale: np.ndarray
    scheme: str = "fv4"
    reason: str = ""

    def __repr__(self) -> str:
        times, cells = self.density.shape
        scheme = f"{self.scheme}: {self.reason}" if self.reason else self.scheme
        return f"Solution({times} times, {cells} cells, {self.steps} steps, {scheme})"

    @property
    def centers(self) -> np.ndarray:
        """Midpoints of the cells, in the units of `edges`, shape (cells,)."""
        return (self.edges[:-1] + self.edges[1:]) / 2

    @property
    def x(self) -> np.ndarray:
        """Midpoints of the cells in x at each time, shape (times, cells)."""
        return self.scale[:, None] * self.centers

    @property
    def mass(self) -> np.ndarray:
        """Integral of the density at each time, shape (times,)."""
        return self.scale * (self.density @ np.diff(self.edges))

    @property
    def minimum(self) -> np.ndarray:
        """Smallest cell average at each time, shape (times,): how far the scheme falls below zero."""
        return self.density.min(axis=1)


def solve_fokker_planck(
    equation: Process | ScalarSDE | ReverseSDE | ProbabilityFlow,
    density0: Density | GaussianPrior | Vector,
    edges: Vector,
    times: Vector,
    *,
    start: float | None = None,
    scheme: str = "auto",
    coordinates: str = "raw",
    tol: float | None = None,
) -> Solution:
    """Carry a density from `start` to each of `times` by the Fokker-Planck equation of an SDE.

    "fv4" is of fourth order: finite volumes, and ESDIRK4(3)6L[2]SA of Kennedy & Carpenter 2003 in time.
    Twenty cells to the narrowest standard deviation and the default `tol` give an L1 error below 5e-7 for VP,
    sub-VP and heat; half the cells, 16 times the error. It keeps mass to round-off, and a resolved density
    above -1e-12 of its peak; `Solution.minimum` tells. "sg" is of second order and keeps any density positive
    with steps of any length: fluxes of Scharfetter & Gummel 1969, extrapolated backward Euler in time.

    Args:
        equation: a process; a `ScalarSDE`; or a model's `ReverseSDE` or `ProbabilityFlow` in one dimension,
            whose density is then that of an infinitely fine sampler.
        density0: the density at `start`: anything with `.cdf(x)` (and, for the digits of the right tail,
            `.survival(x)`), from which exact cell averages come, such as a mixture or the prior of a process;
            or the averages themselves, shape (cells,).
        edges: uniform, increasing ends of at least 8 cells.
        times: times of the process from `start` on, each once: increasing for a process and a `ScalarSDE`,
            decreasing for a `ReverseSDE` (whose own clock and unit are not used), either for a flow.
        start: time of `density0`; 0 for a process and a `ScalarSDE`, t_max for a model unless its
            `ReverseSDE` starts earlier.
        scheme: "fv4", "sg", or "auto": "fv4" unless features narrower than 3 cells meet |a| h / D > 2, or it
            fell below -1e-9 of the peak; `Solution.reason` says.
        coordinates: "raw" has `edges` in x; "scaled" in u = x / s(t) with s^2 = alpha^2 + sigma^2, the
            standard deviation of data of variance 1: one grid for all times of VE and EDM. Averages given and
            returned are those of the density of x, over the cells s(t) * edges.
        tol: largest L1 norm of the estimated error of a step, relative to the mass; in [1e-13, 0.1]; 1e-7 for
            "fv4" and 1e-5 for "sg" unless given.

    Raises:
        ValueError: an argument out of its range; a grid that leaves more than 1e-6 of the mass outside at
            `start` or at one of `times`, or has fewer than 3 cells in the narrowest standard deviation known.
        TypeError: not an equation, not numbers.
        NumericsError: the rates or the model are not finite between the times.
    """
    problem, grid = equation_of(equation, coordinates), check_edges(edges)
    check_choice("scheme", scheme, ("auto", *_SCHEMES))
    tol = None if tol is None else check_number("tol", tol, 1e-13, 0.1)
    start = check_start(start, problem)
    clock = check_times(times, start, problem)
    scale = problem.coordinates.scale
    averages, narrowest = cell_averages(density0, scale(start) * grid)
    averages = scale(start) * averages
    if narrowest is not None:
        narrowest = narrowest / scale(start)
    with problem.evaluating():
        reason = _check_grid(problem, averages, narrowest, grid, (start, *clock.tolist()))
        reason = reason if scheme == "auto" else ""
        taken = scheme if scheme != "auto" else "sg" if reason else "fv4"
        density, steps = _carried(taken, problem, averages, grid, start, clock, tol)
        depth = (density.min(axis=1) / density.max(axis=1)).min()
        if scheme == "auto" and depth < -_NEGATIVE:
            taken, reason = "sg", f"fv4 fell to {depth:.1g} of the peak"
            density, steps = _carried(taken, problem, averages, grid, start, clock, tol)
    if problem.transition(start, start) is None:
        check_walls(density, grid, clock)
    scales = np.array([scale(t) for t in clock.tolist()])
    return Solution(density / scales[:, None], grid, clock, steps, scales, taken, reason)


def heat_equation(
    density0: Density | Vector,
    edges: Vector,
    times: Vector,
    **keywords: Any,
) -> Solution:
    """p_t = p_xx from `density0`: `solve_fokker_planck` for the process `Heat`, same arguments."""
    last = float(vector("times", times).max(initial=1.0))
    return solve_fokker_planck(Heat(horizon=last), density0, edges, times, **keywords)


def _check_grid(
    problem: Equation,
    averages: np.ndarray,
    narrowest: float | None,
    grid: np.ndarray,
    times: tuple[float, ...],
) -> str:
    """Why the scheme of fourth order will not do, if so; raises where none will."""
    start, reason = times[0], ""
    for t in times:
        law = problem.transition(start, t) if t != start else (1.0, 0.0)
        if law is None:
            check_width(problem.narrowest(t), grid, t)
            continue
        if t != start:
            check_mass(averages, grid, t, *law)
        if narrowest is not None:
            check_width(math.hypot(law[0] * narrowest, law[1]), grid, t)
        elif not reason and (steep := steepness(problem, averages, grid, t, *law)) > 2:
            reason = f"density0 is not smooth and |a| h / D = {steep:.3g} at t = {t:g}"
    return reason


def _carried(
    scheme: str,
    problem: Equation,
    y: np.ndarray,
    grid: np.ndarray,
    start: float,
    clock: np.ndarray,
    tol: float | None,
) -> tuple[np.ndarray, int]:
    """The rows at the times of `clock` and the steps they took."""
    discretised, integrate, usual = _SCHEMES[scheme]
    system, steps, rows = discretised(problem, grid), 0, []
    sign = -1.0 if problem.backward else 1.0
    wanted = set((sign * clock).tolist())
    for begin, stops in _smooth_pieces(problem, sign * start, sign * clock):
        solved = list(integrate(system, y, begin, stops, usual if tol is None else tol))
        rows += [row for s, (row, _) in zip(stops, solved, strict=True) if s in wanted]
        y, accepted = solved[-1]
        steps += accepted
    return np.stack(rows), steps


def _smooth_pieces(
    problem: Equation, start: float, clock: np.ndarray
) -> Iterator[tuple[float, list[float]]]:
    """Beginnings and stops of the pieces of [start, last time] on which the terms are smooth.

    An embedded error hardly sees a jump inside a step (its weights are small), so every piece is a run of its
    own. At a jump the terms are those of earlier times: the pieces at its later side keep off by 1e-12.
    """
    jumps, last = problem.jumps(), float(clock[-1])
    gap = 1e-12 if jumps else 0.0
    if problem.backward:
        joints = [-t for t in reversed(jumps) if start < -t <= last]
        for a, b in pairwise((-math.inf, *joints, math.inf)):
            stops = clock[(clock >= a) & (clock < b)].tolist()
            yield max(a, start), _ending_with(min(b - gap, last), stops)
    else:
        joints = [t for t in jumps if start < t < last]
        for a, b in pairwise((-math.inf, *joints, math.inf)):
            stops = clock[(clock > a) & (clock <= b)].tolist()
            yield max(a, start) + gap, _ending_with(min(b, last), stops)


def _ending_with(end: float, stops: list[float]) -> list[float]:
    return stops if end in stops else [*stops, end]
