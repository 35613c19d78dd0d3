"""Adaptive ESDIRK4(3)6L[2]SA for linear systems with time-dependent coefficients, y' = M(t) y.

Six stages, the first explicit and five implicit with one diagonal coefficient; order 4 with an embedded
order 3, L-stable and stiffly accurate. It is the implicit half of ARK4(3)6L[2]SA in Kennedy & Carpenter
2003, "Additive Runge-Kutta schemes for convection-diffusion-reaction equations", Applied Numerical
Mathematics 44, appendix C. The system is linear, so a stage is one linear solve and no Newton iteration.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction as F
from functools import partial
from typing import Protocol

import numpy as np

from sdekit.pde import adaptive

#: The tableau as exact rationals: row i holds the weights of stages 0 .. i.
A: tuple[tuple[F, ...], ...] = (
    (F(0),),
    (F(1, 4), F(1, 4)),
    (F(8611, 62500), F(-1743, 31250), F(1, 4)),
    (F(5012029, 34652500), F(-654441, 2922500), F(174375, 388108), F(1, 4)),
    (
        F(15267082809, 155376265600),
        F(-71443401, 120774400),
        F(730878875, 902184768),
        F(2285395, 8070912),
        F(1, 4),
    ),
    (F(82889, 524892), F(0), F(15625, 83664), F(69875, 102672), F(-2260, 8211), F(1, 4)),
)
#: Nodes: the row sums of `A`.
C = (F(0), F(1, 2), F(83, 250), F(31, 50), F(17, 20), F(1))
#: Weights of the embedded method of order 3.
B_EMBEDDED = (
    F(4586570599, 29645900160),
    F(0),
    F(178811875, 945068544),
    F(814220225, 1159782912),
    F(-3700637, 11593932),
    F(61727, 225920),
)

_NODES = [float(c) for c in C]
_DIAGONAL = float(A[1][1])
_EARLIER = [np.array([float(a) for a in row[:-1]]) for row in A]
_WEIGHTS = np.array([float(b) for b in A[-1]])
_ERROR = np.array([float(b - e) for b, e in zip(A[-1], B_EMBEDDED, strict=True)])


class LinearSystem(Protocol):
    """y' = M(t) y, given by its product and its shifted inverse."""

    def rate(self, t: float, y: np.ndarray) -> np.ndarray:
        """M(t) y."""
        ...

    def solve(self, t: float, weight: float, y: np.ndarray) -> np.ndarray:
        """The solution x of (I - weight M(t)) x = y; may overwrite y."""
        ...


def step(
    system: LinearSystem, start: float, end: float, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One step from `start` to `end`: the solution of order 4 and its difference from the order 3."""
    dt = end - start
    slopes = np.empty((len(A), len(y)))
    slopes[0] = system.rate(start, y)
    for i in range(1, len(A)):
        # The last node is `end` itself: start + dt can round past the end of the process.
        t = end if C[i] == 1 else start + _NODES[i] * dt
        stage = system.solve(t, _DIAGONAL * dt, y + dt * (_EARLIER[i] @ slopes[:i]))
        slopes[i] = system.rate(t, stage)
    # The last stage is the same vector, but it carries the round-off of its solve; the slopes keep the
    # linear invariants of `rate` (mass) to the last digit.
    return y + dt * (_WEIGHTS @ slopes), dt * (_ERROR @ slopes)


def integrate(
    system: LinearSystem, y: np.ndarray, start: float, times: Sequence[float], tol: float
) -> Iterator[tuple[np.ndarray, int]]:
    """`adaptive.integrate` with these steps: the error of the order 3 is controlled, the order 4 carried."""
    slope = system.rate(start, y)
    return adaptive.integrate(partial(step, system), 3, slope, y, start, times, tol)
