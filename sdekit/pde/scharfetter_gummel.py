"""Scharfetter-Gummel fluxes on uniform cells: with backward Euler, positive for any time step.

Between two cell centres the flux F = a p - D p_x is taken constant, with a and D constant; then

    F = (D / h) (B(-w) p_k - B(w) p_k+1),    B(w) = w / (e^w - 1),    w = a h / D

(Scharfetter & Gummel 1969, IEEE Transactions on Electron Devices 16). It is of second order where the cells
resolve the layer D / |a| and upwind where they do not; both weights are positive, so I - dt M is an M-matrix
and mass is a telescoping sum. Arrays are (..., cells): every leading index is a line of its own.
"""

from typing import NamedTuple

import numpy as np

from sdekit.errors import NumericsError


class Tridiagonal(NamedTuple):
    """The rows of M in p' = M p, for lines of cells that exchange nothing with one another.

    `lower[..., 0]` and `upper[..., -1]` are zero: nothing flows through the ends of a line. Bands of shape
    (1, cells) are those of every line.
    """

    lower: np.ndarray
    diagonal: np.ndarray
    upper: np.ndarray

    def product(self, p: np.ndarray) -> np.ndarray:
        """M p, (..., cells)."""
        out = self.diagonal * p
        out[..., 1:] += self.lower[..., 1:] * p[..., :-1]
        out[..., :-1] += self.upper[..., :-1] * p[..., 1:]
        return out

    def solve(self, weight: float, p: np.ndarray) -> np.ndarray:
        """The x of (I - weight M) x = p, all lines in one call of LAPACK."""
        from scipy.linalg import get_lapack_funcs

        (gtsv,) = get_lapack_funcs(("gtsv",), (p,))
        low, middle, up = (np.ravel(-weight * band) for band in self)
        middle += 1.0
        # Lines of their own are laid end to end, one long system: the zeros at their ends keep them apart.
        # Where all share their bands, they are the right-hand sides of one short system.
        sides = np.reshape(p, (-1, len(middle))).T
        *_, x, info = gtsv(low[1:], middle, up[:-1], sides, True, True, True)
        if info:
            raise NumericsError("the matrix of the implicit step is singular")
        return np.reshape(x.T, p.shape)


def face_weights(drift: np.ndarray, spread: float, h: float) -> tuple[np.ndarray, np.ndarray]:
    """The positive (left, right) of F = left p_k - right p_k+1, for drifts a at the faces and D = spread.

    D = 0 is the upwind flux.
    """
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        w = drift * h / spread if spread else np.copysign(np.inf, drift)
        # (D / h) B(-w) = a / (1 - e^-w), written with what does not overflow to inf / inf.
        left, right = -drift / np.expm1(-w), drift / np.expm1(w)
    # B(w) = 1 to round-off; where w underflows to 0 the quotients are not even finite.
    still = np.abs(w) < 1e-17
    return np.where(still, spread / h, left), np.where(still, spread / h, right)


def generator(drift: np.ndarray, spread: float, h: float) -> Tridiagonal:
    """M of p' = M p = -(F_right - F_left) / h, from drifts (..., cells - 1) at the interior faces."""
    left, right = (weight / h for weight in face_weights(drift, spread, h))
    edge = [(0, 0)] * (drift.ndim - 1)
    lower, upper = np.pad(left, [*edge, (1, 0)]), np.pad(right, [*edge, (0, 1)])
    leaving = np.pad(left, [*edge, (0, 1)]) + np.pad(right, [*edge, (1, 0)])
    return Tridiagonal(lower, -leaving, upper)
