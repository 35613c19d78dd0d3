"""Other libraries' solutions of the Fokker-Planck equation, as calls that give densities.

Each adapter starts from exact numbers of its own kind (cell averages, or values at points) and gives the same
kind at the times asked for; the error is h times the sum of the absolute differences. Where a library has no
coefficients that depend on time, it gets the equation in the clock tau in which VP and heat have none,

    p_tau = (x p)_x + p_xx,  tau = B(t) / 2  (VP),        p_tau = p_xx,  tau = t  (heat),

which is by hand and exists for these two only.

- fplanck 0.2.2: no time in the coefficients. Its master equation is stepped by the action of a matrix
  exponential (its dense one is slower still). `numpy.product`, which numpy 2 dropped, is lent to it while it
  builds its matrix. Its grid is centred, its units are those of physics (temperature 1 / k_B).
- findiff: operators constant in time; Crank-Nicolson on them. Stencils of order 4 to 8 with centred
  boundaries (with one-sided ones order 8, and 6 on fine grids, blows up here: it warns). Zero at both ends.
  One solve with three step lengths, shared out between the three times as its error asks for: about the
  fewest steps, found by trial, and more than a first user would do.
- findiff + LSODA: the same operators in the method of lines, by scipy's LSODA with a banded Jacobian and the
  rates of the process in t. No library's product: it is what somebody assembles who knows both.
- py-pde: the equation as an expression in t and x, central differences of second order, its adaptive
  Runge-Kutta. Compiling (some ten seconds) is done before the clock starts and reported beside it. Its
  implicit solvers are fixed-point iterations, which do not converge here.
"""

import importlib.util
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

import sdekit as sk

if TYPE_CHECKING:
    from exact_densities import Problem

#: Densities at the times, (times, points).
Run = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Solver:
    """One library at one setting.

    Attributes:
        library: its name.
        setting: what was chosen, in words.
        points: number of unknowns, about.
        prepare: compiles what is compiled, and gives the call that is timed.
        x: where the unknowns are values of the density; None if they are averages over the cells.
    """

    library: str
    setting: str
    points: int
    prepare: Callable[[], Run]
    x: np.ndarray | None = None


def solvers(problem: "Problem", *, quick: bool = False) -> Iterator[Solver]:
    """All libraries that import, at every setting that is tried."""
    if found("findiff"):
        ladder = (200,) if quick else (100, 150, 200, 300, 400, 800)
        for n, order in product(ladder, (4, 8) if quick else (4, 6, 8)):
            for steps in (50, 200) if quick else (25, 50, 100, 200, 400, 800):
                yield crank_nicolson(problem, n, order, steps)
            for digits in (5, 7) if quick else (4, 5, 6, 7, 8):
                yield lines(problem, n, order, 10.0**-digits)
    for n in (200,) if quick else (200, 400, 800):
        if found("fplanck"):
            yield master_equation(problem, n)
        if found("pde") and not quick:  # it compiles for ten seconds
            yield expression(problem, n)


def found(package: str) -> bool:
    """Whether it is installed."""
    return importlib.util.find_spec(package) is not None


def clock(problem: "Problem", t: float) -> float:
    """tau(t)."""
    process = problem.process
    return float(process.schedule.B(t)) / 2 if isinstance(process, sk.VP) else t


def pulled(problem: "Problem") -> bool:
    """Whether there is a drift."""
    return isinstance(problem.process, sk.VP)


# ---------------------------------------------------------------------------------------------- fplanck


@contextmanager
def lent(module: Any, name: str, value: Any) -> Iterator[None]:
    """`module` has `value` under a name that it does not have itself."""
    lend = not hasattr(module, name)
    if lend:
        setattr(module, name, value)
    try:
        yield
    finally:
        if lend:
            delattr(module, name)


def master_equation(problem: "Problem", cells: int) -> Solver:
    """fplanck, from probabilities of cells to probabilities of cells."""
    from scipy.constants import k

    edges = problem.edges(cells)
    h, start = edges[1] - edges[0], problem.averages(0.0, edges)
    times = [clock(problem, t) for t in problem.times]

    def run() -> np.ndarray:
        import fplanck

        with lent(np, "product", np.prod):
            solver = fplanck.fokker_planck(
                temperature=1 / k,
                drag=1.0,
                extent=edges[-1] - edges[0],
                resolution=h * (1 + 1e-12),  # its number of cells is rounded up
                force=(lambda x: -x) if pulled(problem) else None,
            )
        rows, at, p = [], 0.0, start * h
        for tau in times:
            p = solver.propagate(lambda _, p=p: p, tau - at, normalize=False)
            at = tau
            rows.append(p / h)
        return np.stack(rows)

    return Solver("fplanck", "default", cells, lambda: run)


# ---------------------------------------------------------------------------------------------- findiff


def operator(problem: "Problem", x: np.ndarray, order: int) -> Any:
    """(x p)_x + p_xx, or p_xx."""
    from findiff import Coef, Diff, Identity

    d = Diff(0, x[1] - x[0], acc=order, boundary="centered")
    return d**2 + Coef(x) * d + Identity() if pulled(problem) else d**2


def crank_nicolson(problem: "Problem", cells: int, order: int, steps: int) -> Solver:
    """findiff, in the clock tau; `steps` to the first time and in proportion to the others."""
    x = problem.edges(cells)
    start = problem.values(0.0, x)
    shares = (1, 2, 0.1) if pulled(problem) else (1, 1.5, 0.6)

    def run() -> np.ndarray:
        from findiff import BoundaryConditions, TimeDependentPDE

        ends = BoundaryConditions(x.shape)
        ends[0] = ends[-1] = 0
        taus, marks, rows = [0.0], [], []
        for t, share in zip(problem.times, shares, strict=True):
            count = max(4, math.ceil(share * steps))
            taus += np.linspace(taus[-1], clock(problem, t), count + 1)[1:].tolist()
            marks.append(len(taus) - 1)

        def keep(step: int, _: float, p: np.ndarray) -> None:
            if step in marks:
                rows.append(p)

        equation = TimeDependentPDE(operator(problem, x, order), start, ends, np.array(taus))
        equation.solve("crank-nicolson", callback=keep)
        return np.stack(rows)

    setting = f"order {order}, {steps} steps to the first time"
    return Solver("findiff", setting, cells, lambda: run, x)


def lines(problem: "Problem", cells: int, order: int, rtol: float) -> Solver:
    """findiff's operator, the rates of the process, and scipy's LSODA with the Jacobian in bands."""
    x, process, width = problem.edges(cells), problem.process, order // 2
    start = problem.values(0.0, x)

    def run() -> np.ndarray:
        from scipy.integrate import solve_ivp

        matrix = operator(problem, x, order).matrix(x.shape).tocsr()
        entries, inner = matrix.tocoo(), np.arange(len(x))
        keep = (inner[entries.row] > 0) & (entries.row < len(x) - 1)  # the ends stay at zero
        i, j = entries.row[keep], entries.col[keep]
        bands = np.zeros((2 * width + 1, len(x)))
        bands[width + i - j, j] = entries.data[keep]
        matrix.data[matrix.indptr[0] : matrix.indptr[1]] = 0
        matrix.data[matrix.indptr[-2] : matrix.indptr[-1]] = 0

        def speed(t: float) -> float:
            return float(process.rates(min(t, process.horizon))[1]) / 2

        solved = solve_ivp(
            lambda t, p: speed(t) * (matrix @ p),
            (0.0, problem.times[-1]),
            start,
            "LSODA",
            problem.times,
            rtol=rtol,
            atol=rtol / 10,
            jac=lambda t, _: speed(t) * bands,
            lband=width,
            uband=width,
        )
        return solved.y.T

    return Solver("findiff + LSODA", f"order {order}, rtol {rtol:g}", cells, lambda: run, x)


# ----------------------------------------------------------------------------------------------- py-pde


def expression(problem: "Problem", cells: int, tolerance: float = 1e-6) -> Solver:
    """py-pde, compiled beforehand: the stepper that its own `solve` makes, called again."""
    edges = problem.edges(cells)
    x = (edges[:-1] + edges[1:]) / 2
    start = problem.values(0.0, x)
    beta = "(0.05 + 9.95 * t)"  # beta(t) / 2 of the default VP
    rhs = f"{beta} * (c + x * d_dx(c) + laplace(c))" if pulled(problem) else "laplace(c)"

    def prepare() -> Run:
        import pde
        from pde.solvers.runge_kutta import RungeKuttaSolver

        grid = pde.CartesianGrid([(edges[0], edges[-1])], cells)
        state = pde.ScalarField(grid, start)
        equation = pde.PDE({"c": rhs}, bc={"value": 0})
        solver = RungeKuttaSolver(equation, adaptive=True, tolerance=tolerance)
        stepper = solver.make_stepper(state, dt=1e-6)

        def run() -> np.ndarray:
            field, rows, at = state.copy(), [], 0.0
            for t in problem.times:
                stepper(field, at, t)
                at = t
                rows.append(field.data.copy())
            return np.stack(rows)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run()  # compiles
        return run

    return Solver("py-pde", f"tolerance {tolerance:g}", cells, prepare, x)


def ours(problem: "Problem", *, quick: bool = False) -> Iterator[Solver]:
    """sdekit at several numbers of cells, as it comes and by steps in time at several tolerances."""
    ladder = (150, 200, 300) if quick else (100, 150, 200, 300, 400, 600, 800, 1200, 1600)
    stepped = replace(problem, scheme="fv4")
    for n in ladder:
        edges = problem.edges(n)
        start = problem.averages(0.0, edges)
        solve = partial(problem.solve, start, edges)
        yield Solver("sdekit", "default", n, partial(_densities, solve))
        for digits in (5, 7) if quick else (4, 5, 6, 7, 8, 9):
            solve = partial(stepped.solve, start, edges, tol=10.0**-digits)
            yield Solver("sdekit by steps", f"tol 1e-{digits}", n, partial(_densities, solve))


def _densities(solve: Callable[[], Any]) -> Run:
    return lambda: solve().density
