"""The density of x_t on a line, from the Fokker-Planck equation p_t = -(a(x, t) p)_x + (g(t)^2 / 2) p_xx."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from sdekit.errors import check_choice, check_number
from sdekit.pde import esdirk, implicit_euler
from sdekit.pde.arguments import (
    Density,
    Vector,
    cell_averages,
    cells_per_std,
    check_edges,
    check_mass,
    check_start,
    check_times,
    check_walls,
    check_width,
    steepness,
    vector,
)
from sdekit.pde.contour import Exponential, exponential
from sdekit.pde.coordinates import RAW, Coordinates
from sdekit.pde.equations import Equation, LinearEquation, equation_of
from sdekit.pde.finite_volumes import FourthOrder, Upwinded
from sdekit.pde.sde import SDE
from sdekit.processes import GaussianPrior, Heat, Process
from sdekit.sampling.flow_ode import ProbabilityFlow
from sdekit.sampling.reverse_sde import ReverseSDE

#: Discretisation in space and integrator of those that step in time.
_STEPPED = {
    "fv4": (FourthOrder, esdirk.integrate),
    "sg": (Upwinded, implicit_euler.integrate),
}
#: The schemes, and the tolerance of each unless told otherwise.
_TOLERANCES = {"exponential": 1e-9, "fv4": 1e-7, "sg": 1e-5}
#: The most mass below zero that "auto" lets a scheme of fourth order have.
_NEGATIVE = 1e-5


@dataclass(frozen=True, eq=False)
class Solution:
    """Cell averages of a density at several times.

    Attributes:
        density: averages of the density of x over the cells, shape (times, cells), float64.
        edges: ends of the cells, shape (cells + 1,); those of u = x / scale where coordinates are scaled.
        times: times of the rows of `density`.
        steps: accepted time steps from the start to the last time; 0 for "exponential".
        scheme: "exponential", "fv4" or "sg".
        reason: why "auto" took steps for a process, or "sg"; empty otherwise.
        coordinates: what `edges` are in.
    """

    density: np.ndarray
    edges: np.ndarray
    times: np.ndarray
    steps: int
    scheme: str = "fv4"
    reason: str = ""
    coordinates: Coordinates = RAW

    def __repr__(self) -> str:
        times, cells = self.density.shape
        scheme = f"{self.scheme}: {self.reason}" if self.reason else self.scheme
        return f"Solution({times} times, {cells} cells, {self.steps} steps, {scheme})"

    @property
    def centers(self) -> np.ndarray:
        """Midpoints of the cells, in the units of `edges`, shape (cells,)."""
        return (self.edges[:-1] + self.edges[1:]) / 2

    @property
    def scale(self) -> np.ndarray:
        """The length in x of a unit of `edges` at each time, shape (times,): ones unless scaled."""
        return self.coordinates.scales(self.times)

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

    @property
    def resolution(self) -> np.ndarray:
        """Cells to the standard deviation of the sharpest feature at each time; below 3 it is unresolved."""
        return np.array([cells_per_std(row) for row in self.density])


def solve_fokker_planck(
    equation: Process | SDE | ReverseSDE | ProbabilityFlow,
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
    above -1e-12 of its peak; `Solution.minimum` tells.

    "exponential" has the same volumes and no time steps: between two times a process has the kernel of an
    equation of constant coefficients, whose exponential is a dozen linear solves (`sdekit.pde.contour`). It
    reads alpha and sigma where "fv4" reads f and g. It is for processes, of moderate drift: |a| h / D at most
    2 out to the ends of the grid, which are at most some 16 standard deviations of the stationary law away.
    Every output is computed from `start`, so that errors do not add up.

    "sg" keeps any density positive, with steps of any length: fluxes of Scharfetter & Gummel 1969, and
    backward Euler steps extrapolated to second order. The same grid gives 6e-5; half the cells, 4 times the
    error. For a flow, which has no diffusion, its fluxes are upwind and of first order (1e-2).

    Args:
        equation: a process; an `SDE`; or a model's `ReverseSDE` or `ProbabilityFlow` in one dimension,
            whose density is then that of an infinitely fine sampler.
        density0: the density at `start`: anything with `.cdf(x)` (and, for the digits of the right tail,
            `.survival(x)`), from which exact cell averages come, such as a mixture or the prior of a process;
            or the averages themselves, shape (cells,).
        edges: uniform, increasing ends of at least 8 cells.
        times: times of the process from `start` on, each once: increasing for a process and an `SDE`,
            decreasing for a `ReverseSDE` (whose own clock and unit are not used), either for a flow.
        start: time of `density0`; 0 for a process and an `SDE`, t_max for a model unless its
            `ReverseSDE` starts earlier.
        scheme: "exponential", "fv4", "sg", or "auto": "sg" if features of `density0` narrower than 3 cells
            meet |a| h / D > 2, or another scheme left a mass of more than 1e-5 below zero; otherwise
            "exponential" if it is known to reach `tol` there, and "fv4" if not; `Solution.reason` says.
        coordinates: "raw" has `edges` in x; "scaled" in u = x / s(t) with s^2 = alpha^2 + sigma^2, the
            standard deviation of data of variance 1: one grid for all times of VE and EDM. Averages given and
            returned are those of the density of x, over the cells s(t) * edges.
        tol: largest L1 norm of the estimated error of a step, relative to the mass; for "exponential" a bound
            on the error in time but for round-off. In [1e-13, 0.1]; 1e-9 for "exponential", 1e-7 for "fv4"
            and 1e-5 for "sg" unless given; for "sg" at least 1e-8, and 1e-5 where "auto" takes it.

    Raises:
        ValueError: an argument out of its range; a grid that leaves more than 1e-6 of the mass outside at
            `start` or at one of `times`, or has fewer than 3 cells in the narrowest standard deviation known;
            "exponential" where it is not known to reach `tol`.
        TypeError: not an equation, not numbers.
        NumericsError: the rates or the model are not finite between the times.
    """
    posed = _posed(equation_of(equation, coordinates), density0, edges, times, start)
    scheme = check_choice("scheme", scheme, ("auto", *_TOLERANCES))
    least = 1e-8 if scheme == "sg" else 1e-13
    tol = None if tol is None else check_number("tol", tol, least, 0.1)
    problem = _Problem(*posed, scheme, tol)
    with problem.equation.evaluating():
        return problem.solution()


def heat_equation(
    density0: Density | Vector,
    edges: Vector,
    times: Vector,
    **keywords: Any,
) -> Solution:
    """p_t = p_xx from `density0`: `solve_fokker_planck` for the process `Heat`, same arguments."""
    last = float(vector("times", times).max(initial=1.0))
    return solve_fokker_planck(Heat(horizon=last), density0, edges, times, **keywords)


@dataclass(frozen=True, eq=False)
class _Problem:
    """A density to carry: averages of the density of u at `start` over the cells of `grid`."""

    equation: Equation
    averages: np.ndarray
    narrowest: float | None
    grid: np.ndarray
    start: float
    clock: np.ndarray
    scheme: str
    tol: float | None

    def solution(self) -> Solution:
        """The solution by the scheme asked for, or by the one that will do."""
        rough, taken, reason = self.check(), self.scheme, ""
        if self.scheme == "auto":
            taken, reason = ("sg", rough) if rough else self.fourth_order()
        q, steps = self.carried(taken)
        below = (self.grid[1] - self.grid[0]) * -q.clip(max=0).sum(axis=1).min()
        if self.scheme == "auto" and below > _NEGATIVE:
            reason, taken = f"{taken} left a mass of {below:.1g} below zero", "sg"
            q, steps = self.carried(taken)
        if not isinstance(self.equation, LinearEquation):
            check_walls(q, self.grid, self.clock)
        coordinates = self.equation.coordinates
        density = q / coordinates.scales(self.clock)[:, None]
        return Solution(density, self.grid, self.clock, steps, taken, reason, coordinates)

    @cached_property
    def laws(self) -> list[tuple[float, tuple[float, float] | None]]:
        """Each of the times, and (scale, std) of the kernel from the start to there if it is known."""
        start, law = self.start, self.equation.transition
        return [(t, (1.0, 0.0) if t == start else law(start, t)) for t in self.clock.tolist()]

    def check(self) -> str:
        """Why the scheme of fourth order will not do, if so; raises where none will."""
        rough = ""
        for t, law in [(self.start, (1.0, 0.0)), *self.laws]:
            check_width(self.equation.narrowest(t), self.grid, t)
            if law is None:
                continue
            check_mass(self.averages, self.grid, t, *law)
            if self.narrowest is not None:
                check_width(math.hypot(law[0] * self.narrowest, law[1]), self.grid, t)
            elif not rough:
                steep = steepness(self.equation, self.averages, self.grid, t, *law)
                if steep > 2:
                    rough = f"density0 is not smooth and |a| h / D = {steep:.3g} at t = {t:g}"
        return rough

    def tolerance(self, taken: str) -> float:
        """That of a scheme; one meant for fourth order would cost "sg" very many steps."""
        tol = _TOLERANCES[taken] if self.tol is None else self.tol
        return max(tol, _TOLERANCES[taken]) if taken == "sg" != self.scheme else tol

    def fourth_order(self) -> tuple[str, str]:
        """The scheme of fourth order to take, and why it has steps if that is for a process."""
        unfit = self.exponentials[1]
        if not unfit:
            return "exponential", ""
        return "fv4", unfit if isinstance(self.equation, LinearEquation) else ""

    @cached_property
    def exponentials(self) -> tuple[list[Exponential], str]:
        """What carries the averages to each of the times at once, or why nothing is known to."""
        found, tol = [], self.tolerance("exponential")
        for t, law in self.laws:
            if law is None:
                return [], f"{self.equation!r} is not a process"
            found.append(exponential(self.averages, self.grid, *law, tol))
            if not found[-1].nodes:
                return (
                    [],
                    f"the drift until t = {t:g} is too steep for the exponential on this grid",
                )
        return found, ""

    def carried(self, scheme: str) -> tuple[np.ndarray, int]:
        """The averages at the times of `clock`, and the steps they took."""
        if scheme in _STEPPED:
            return self.stepped(scheme)
        found, unfit = self.exponentials
        if unfit:
            raise ValueError(
                f'scheme="exponential" will not do: {unfit}; give scheme="auto" or "fv4", more cells, or'
                ' coordinates="scaled"'
            )
        volumes = FourthOrder(self.equation, self.grid)
        return np.stack([e.of(volumes, self.averages) for e in found]), 0

    def stepped(self, scheme: str) -> tuple[np.ndarray, int]:
        """The averages at the times of `clock` by steps in time, and the number of these."""
        tol = self.tolerance(scheme)
        discretised, integrate = _STEPPED[scheme]
        system, y, steps, rows = discretised(self.equation, self.grid), self.averages, 0, []
        for begin, stops, wanted in _smooth_pieces(self.equation, self.start, self.clock):
            solved = list(integrate(system, y, begin, stops, tol))
            rows += [row for row, _ in solved[:wanted]]
            y, accepted = solved[-1]
            steps += accepted
        return np.stack(rows), steps


def _posed(
    equation: Equation,
    density0: Density | GaussianPrior | Vector,
    edges: Vector,
    times: Vector,
    start: float | None,
) -> tuple[Equation, np.ndarray, float | None, np.ndarray, float, np.ndarray]:
    """What a problem holds, in the coordinates of the equation, its arguments checked."""
    grid, begin = check_edges(edges), check_start(start, equation)
    clock = check_times(times, begin, equation)
    scale = equation.coordinates.scale(begin)
    averages, narrowest = cell_averages(density0, scale * grid)
    narrowest = None if narrowest is None else narrowest / scale
    return equation, scale * averages, narrowest, grid, begin, clock


def _smooth_pieces(
    equation: Equation, start: float, clock: np.ndarray
) -> Iterator[tuple[float, list[float], int]]:
    """Beginnings and stops of pieces on which the terms are smooth, and how many of the stops were asked for.

    They are in the increasing time of the integrators. An embedded error hardly sees a jump inside a step
    (its weights are small), so every piece is a run of its own. At a jump the terms are those of earlier
    times of the process, so the piece on its other side keeps off by 1e-12.
    """
    sign = -1.0 if equation.backward else 1.0
    jumps = sorted(sign * t for t in equation.jumps())
    gap = 1e-12 if jumps else 0.0
    start, clock = sign * start, sign * clock
    last = float(clock[-1])
    inside = [s for s in jumps if start < s and (s <= last if equation.backward else s < last)]
    for a, b in pairwise((-math.inf, *inside, math.inf)):
        if equation.backward:
            begin, end = max(a, start), min(b - gap, last)
            stops = clock[(clock >= a) & (clock < b)].tolist()
        else:
            begin, end = max(a, start) + gap, min(b, last)
            stops = clock[(clock > a) & (clock <= b)].tolist()
        yield begin, stops if end in stops else [*stops, end], len(stops)
