"""Two discretisations of p_t = -(a p)_x + D p_xx: averages over uniform cells, no flux through the ends.

`FourthOrder` takes p and p_x in the flux F = a p - D p_x at a face from the four averages around it,

    p   = (7 (p_k + p_k+1) - (p_k-1 + p_k+2)) / 12
    p_x = (15 (p_k+1 - p_k) - (p_k+2 - p_k-1)) / (12 h)

and to second order at the outermost interior faces, where no mass should be. `Upwinded` has the fluxes of
Scharfetter and Gummel: of second order, but positive however steep the drift. Mass is a telescoping sum in
both. Their clock increases: it is minus the time of an equation that runs backward.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from sdekit.errors import NumericsError
from sdekit.pde.equations import Equation, Terms
from sdekit.pde.scharfetter_gummel import Tridiagonal, generator

#: More times than any step has stages, so that a rejected step starts from what is known.
_KEPT = 8


class FourthOrder:
    """p' = M p with M = K(a) + D L; K and L are pentadiagonal, and made once where a = f(t) x."""

    def __init__(self, equation: Equation, edges: np.ndarray) -> None:
        from scipy.linalg import get_lapack_funcs

        self.faces = faces = edges[1:-1]
        self.h = (edges[-1] - edges[0]) / (len(edges) - 1)
        # Weights of the cells k - 1 .. k + 2 at face k, between cells k and k + 1.
        self.value = np.tile(np.array([-1, 7, 7, -1]) / 12, (len(faces), 1))
        slope = np.tile(np.array([1, -15, 15, -1]) / (12 * self.h), (len(faces), 1))
        self.value[[0, -1]] = np.array([0, 1, 1, 0]) / 2
        slope[[0, -1]] = np.array([0, -1, 1, 0]) / self.h
        self.K, self.L = self._bands(self.value * faces[:, None]), self._bands(-slope)
        self.matrix = np.empty_like(self.K)
        (self.gbsv,) = get_lapack_funcs(("gbsv",), (self.K,))
        (self.complex_gbsv,) = get_lapack_funcs(("gbsv",), dtype=complex)
        self.terms = _terms_at(equation, faces)

    def _bands(self, flux: np.ndarray) -> np.ndarray:
        """Minus the divergence of a flux given by its weights, in the band storage of LAPACK."""
        cells = len(flux) + 1
        # Rows 0 and 1 are room for the fill of the factorisation; row 4 is the diagonal.
        bands = np.zeros((7, cells), order="F")
        weights = flux / self.h
        for j in range(4):
            face = slice(max(0, 1 - j), min(cells - 1, cells + 1 - j))
            column = slice(face.start - 1 + j, face.stop - 1 + j)
            bands[5 - j, column] -= weights[face, j]
            bands[6 - j, column] += weights[face, j]
        return bands

    def rate(self, t: float, y: np.ndarray) -> np.ndarray:
        """M(t) y."""
        drift, D, _ = self.terms(t)
        return self.product(drift, D, y)

    def product(self, drift: np.ndarray, D: float, y: np.ndarray) -> np.ndarray:
        """Minus the differences of the fluxes, not a matrix product: they telescope, so mass is kept."""
        drift, spread = drift / 12, D / (12 * self.h)
        inner, jump = y[:-1] + y[1:], y[1:] - y[:-1]
        flux = np.zeros(len(y) + 1)
        flux[2:-2] = drift[1:-1] * (7 * inner[1:-1] - y[:-3] - y[3:])
        flux[2:-2] -= spread * (15 * jump[1:-1] - y[3:] + y[:-3])
        flux[[1, -2]] = (6 * drift * inner - 12 * spread * jump)[[0, -1]]
        return (flux[:-1] - flux[1:]) / self.h

    def solve(self, t: float, weight: float, y: np.ndarray) -> np.ndarray:
        """One factorisation and one solve: every stage of a step has its own time, so its own matrix."""
        drift, D, f = self.terms(t)
        if f is None:
            np.multiply(self._bands(self.value * drift[:, None]), -weight, out=self.matrix)
        else:
            np.multiply(self.K, -weight * f, out=self.matrix)
        self.matrix += (-weight * D) * self.L
        self.matrix[4] += 1.0
        *_, x, info = self.gbsv(2, 2, self.matrix, y, overwrite_ab=True, overwrite_b=True)
        if info:
            raise NumericsError(f"the matrix of the implicit stage at t = {abs(t):g} is singular")
        return x

    def resolvents(self, rate: float, tau: float, z: np.ndarray, y: np.ndarray) -> np.ndarray:
        """(z - tau M)^-1 y for each z, with the constant M of a = rate x and D = 1; shape (len(z), cells).

        The matrices stand side by side in one of bands, without entries between them: one call of LAPACK.
        """
        matrix = np.empty((len(z), *self.K.T.shape), complex)
        matrix[:] = -tau * (rate * self.K + self.L).T
        matrix[:, :, 4] += z[:, None]
        bands, right = matrix.reshape(-1, len(self.K)).T, np.tile(y + 0j, len(z))
        *_, x, _ = self.complex_gbsv(2, 2, bands, right, overwrite_ab=True, overwrite_b=True)
        return x.reshape(len(z), len(y))


class Upwinded:
    """p' = M p with the tridiagonal M of Scharfetter and Gummel."""

    def __init__(self, equation: Equation, edges: np.ndarray) -> None:
        self.h = (edges[-1] - edges[0]) / (len(edges) - 1)
        terms = _terms_at(equation, edges[1:-1])

        @lru_cache(maxsize=_KEPT)
        def matrix(t: float) -> Tridiagonal:
            drift, D, _ = terms(t)
            return generator(drift, D, self.h)

        self.matrix = matrix

    def rate(self, t: float, y: np.ndarray) -> np.ndarray:
        """M y."""
        return self.matrix(t).product(y)

    def solve(self, t: float, weight: float, y: np.ndarray) -> np.ndarray:
        """The positive solution x of (I - weight M) x = y."""
        return self.matrix(t).solve(weight, y)


def _terms_at(equation: Equation, faces: np.ndarray) -> Callable[[float], Terms]:
    """The terms at the faces as a function of the increasing clock, a model asked once a time."""
    sign = -1.0 if equation.backward else 1.0

    @lru_cache(maxsize=_KEPT)
    def terms(t: float) -> Terms:
        return equation.terms(faces, sign * t)

    return terms
