"""Backward Euler steps, extrapolated from one step and two halves, that keep a density positive.

One step and two half steps of a method of order one give its error, y2 - y1, and a solution of order two,
y2 + (y2 - y1). For an M-matrix y2 is positive for any step; the sum need not be. The correction is a
difference of fluxes, so it is limited face by face to what the cells it leaves can give (Zalesak 1979,
"Fully multidimensional flux-corrected transport algorithms for fluids", Journal of Computational Physics 31).
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from sdekit.pde import adaptive
from sdekit.pde.esdirk import LinearSystem


def step(
    system: LinearSystem, start: float, end: float, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One step from `start` to `end`: positive, with the mass of y, and the error of the half steps."""
    dt = end - start
    whole = system.solve(end, dt, y.copy())
    half = system.solve(start + 0.5 * dt, 0.5 * dt, y.copy())
    halves = system.solve(end, 0.5 * dt, half)
    correction = halves - whole
    new = _moved(halves, correction)
    # The solves keep the mass to round-off each, and there are many of them.
    return new * (y.sum() / new.sum()), correction


def integrate(
    system: LinearSystem, y: np.ndarray, start: float, times: Sequence[float], tol: float
) -> Iterator[tuple[np.ndarray, int]]:
    """`adaptive.integrate` with these steps."""
    slope = system.rate(start, y)
    return adaptive.integrate(partial(step, system), 1, slope, y, start, times, tol)


def _moved(y: np.ndarray, change: np.ndarray) -> np.ndarray:
    """y + change, as flows between neighbours none of which may take more than a cell has."""
    flow = -np.cumsum(change)[:-1]
    leaving = np.zeros_like(y)
    leaving[:-1] += flow.clip(min=0)
    leaving[1:] -= flow.clip(max=0)
    # Rounding must not take the last digit of a cell that is emptied.
    share = (1 - 1e-12) * y.clip(min=0) / (np.maximum(leaving, y) + np.finfo(float).tiny)
    flow *= np.where(flow > 0, share[:-1], share[1:])
    moved = y.copy()
    moved[:-1] -= flow
    moved[1:] += flow
    return moved
