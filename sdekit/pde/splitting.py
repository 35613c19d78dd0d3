"""Time steps of a linear equation in the plane, p' = (X(t) + Y(t)) p, one axis after the other.

A step is Strang's splitting, half a step along the first axis, a whole one along the second, half a step
along the first (Strang 1968, SIAM Journal on Numerical Analysis 5); each is a step of TR-BDF2, which is
L-stable and of second order (Bank et al. 1985, IEEE Transactions on Electron Devices 32). The operators of a
step are the means of those at its ends. All lines along an axis are solved in one call.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from sdekit.errors import NumericsError
from sdekit.pde.adaptive import check_shrinks, proposed
from sdekit.pde.scharfetter_gummel import Tridiagonal, generator

#: With the trapezoidal part 2 - sqrt 2 of a step, both stages of TR-BDF2 have one matrix, I - _STAGE dt M.
_STAGE = 1 - 1 / math.sqrt(2)
#: Weight of the start, taken off the middle, in the second stage: (w_1 p_middle - w_0 p_start).
_START = (3 - 2 * math.sqrt(2)) / (2 * math.sqrt(2) - 2)


class FaceTerms(NamedTuple):
    """The equation at one time.

    Attributes:
        drifts: for each axis the drift along it at the interior faces, (lines, cells - 1), or (1, cells - 1)
            where all lines share it.
        spread: D.
    """

    drifts: tuple[np.ndarray, np.ndarray]
    spread: float


class State(NamedTuple):
    """What has been reached: the averages, accepted steps, and the sum of their estimated L1 errors."""

    averages: np.ndarray
    steps: int
    error: float


def tr_bdf2(M: Tridiagonal, dt: float, p: np.ndarray) -> np.ndarray:
    """One step of p' = M p: trapezoidal rule to (2 - sqrt 2) dt, then backward differences to dt."""
    weight = _STAGE * dt
    middle = M.solve(weight, p + weight * M.product(p))
    return M.solve(weight, (1 + _START) * middle - _START * p)


def strang(first: Tridiagonal, second: Tridiagonal, dt: float, p: np.ndarray) -> np.ndarray:
    """One step of p' = (X + Y) p for averages (cells of the first axis, cells of the second)."""
    p = tr_bdf2(first, dt / 2, np.ascontiguousarray(p.T))
    p = tr_bdf2(second, dt, np.ascontiguousarray(p.T))
    return tr_bdf2(first, dt / 2, np.ascontiguousarray(p.T)).T


def step(
    begin: FaceTerms, end: FaceTerms, widths: tuple[float, float], dt: float, p: np.ndarray
) -> np.ndarray:
    """One step with the mean of the terms at its ends."""
    spread = (begin.spread + end.spread) / 2
    first, second = (
        generator((a + b) / 2, spread, h)
        for a, b, h in zip(begin.drifts, end.drifts, widths, strict=True)
    )
    return strang(first, second, dt, p)


def integrate(
    terms: Callable[[float], FaceTerms],
    widths: tuple[float, float],
    p: np.ndarray,
    start: float,
    times: Sequence[float],
    tol: float,
    clock: str = "t",
) -> Iterator[State]:
    """Yield the state at each of the increasing `times`, which errors call by the name of their `clock`.

    Two steps are held against one of twice the length, and kept if the L1 norm of the error that this
    suggests, a third of the difference, is at most `tol`. The equation brings any two densities closer
    together in L1, so the errors of all steps add up at most.

    Raises:
        NumericsError: a step is not finite, or has shrunk to nothing.
    """
    t, here, steps, total = start, terms(start), 0, 0.0
    dt = (times[-1] - start) / 64
    for end in times:
        while t < end:
            # The last steps before an output stretch by a tenth rather than leave a sliver.
            stop = end if t + 1.1 * dt >= end else t + dt
            middle = (t + stop) / 2
            between, there = terms(middle), terms(stop)
            whole = step(here, there, widths, stop - t, p)
            half = step(here, between, widths, middle - t, p)
            half = step(between, there, widths, stop - middle, half)
            error = math.prod(widths) * float(np.abs(half - whole).sum()) / 3
            if not (math.isfinite(error) and t < middle < stop):
                raise NumericsError(f"the time step failed at {clock} = {abs(t):g} (step {dt:g})")
            proposal = proposed(stop - t, error, tol, 2)
            if error > tol:
                check_shrinks(t, proposal, clock)
                dt = proposal
                continue
            # Steps cut short by an output say nothing against those before.
            dt = max(dt, proposal) if stop == end else proposal
            t, here, p, steps, total = stop, there, half, steps + 2, total + error
        yield State(p, steps, total)
