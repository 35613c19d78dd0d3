"""exp(tau M) y for the operator of fourth order: no time steps where coefficients can be made constant.

Between two times the kernel of an affine process is u_t = scale u_s + std N(0, 1), and so is that of

    p_tau = -(rate u p)_u + p_uu,   rate = (scale^2 - 1) / std^2,   tau = log(scale) / rate

(std^2 / 2 where scale = 1): a constant operator, run for a time that the kernel tells. For VP rate is -1 and
tau half the increment of B; in units of s(t) every process has rate -1; where there is no drift it is 0.

Its exponential is an integral over a parabola around the negative axis, and the midpoint rule with n nodes
errs by 2.85^-n: Weideman & Trefethen 2007, "Parabolic and hyperbolic contours for computing the Bromwich
integral", Mathematics of Computation 76. The nodes come in conjugate pairs, so n / 2 solves do.

That is the error on the negative axis, where the spectrum of the differential operator lies: it is
self-adjoint in the L2 norm weighted with w = exp(-rate u^2 / 2). The matrix has pairs of eigenvalues off the
axis once |rate u| h exceeds 1.6 in some cell (on 60 to 200 cells; 1.9 on 30). Measured in the weighted norm,
for tau from h^2 / 100 to 3000 h^2, the error is at most 4 * 2.85^-n as far as 1.75, 5.2 * 2.85^-n at 2, a
hundred times that at 2.5 and without bound at 3: so at most 2 is asked for. In the L1 norm far-out mass and
a strong drift make it much larger, as the weight says.
"""

import math
import sys
from dataclasses import dataclass

import numpy as np

from sdekit.pde.finite_volumes import FourthOrder

#: The error of n nodes is at most 6 * 2.85^-n in the weighted norm where |rate u| h is at most this.
_CONSTANT, _BASE, _STEEPEST = 6.0, 2.85, 2.0
#: With fewer nodes the tails are not positive; with more, round-off has grown to nearly 1e-12 of the mass.
_FEWEST, _MOST = 28, 48


@dataclass(frozen=True)
class Exponential:
    """exp(tau M) for M = rate K + L, with n nodes on the contour (even; 0 where no number is known to do)."""

    rate: float
    tau: float
    nodes: int

    def of(self, volumes: FourthOrder, y: np.ndarray) -> np.ndarray:
        """exp(tau M) y, the sum of w_k (z_k - tau M)^-1 y, as y + tau M v with weights w_k / z_k in v.

        M v is a difference of fluxes, so mass is kept to round-off; values have one of some 1e-16 tau / h^2.
        """
        if not self.tau:
            return y
        angle = np.pi * (2 * np.arange(self.nodes // 2) + 1) / self.nodes
        z = self.nodes * (0.1309 - 0.1194 * angle**2 + 0.2500j * angle)
        weights = 2 * np.exp(z) * (0.2500j - 0.2388 * angle) / z
        v = (weights @ volumes.resolvents(self.rate, self.tau, z, y)).imag
        return y + self.tau * volumes.product(self.rate * volumes.faces, 1.0, v)


def exponential(
    y: np.ndarray, edges: np.ndarray, scale: float, std: float, tol: float
) -> Exponential:
    """That of the kernel N(scale u, std^2), with an L1 error below `tol` where it is applied to y."""
    if not std:
        return Exponential(0.0, 0.0, _FEWEST)
    # scale - 1 is exact where it is small, so the quotients lose no digits where times are close. The other
    # way, the law is stationary long before scale underflows.
    fall, logarithm = (scale - 1) * (scale + 1), math.log(max(scale, sys.float_info.min))
    rate, tau = fall / std**2, std**2 * (logarithm / fall if fall else 0.5)
    return Exponential(rate, tau, _nodes(y, edges, rate, tau, tol))


def _nodes(y: np.ndarray, edges: np.ndarray, rate: float, tau: float, tol: float) -> int:
    """How many nodes bring the L1 error of exp(tau M) y below `tol`; 0 if no number is known to.

    In the weighted norm the error is that of scalars, and by the inequality of Schwarz the L1 norm is at most
    the weighted one times the root of the integral of 1 / w. Round-off counts as part of y: far out the
    weight can be very large. A drift that moves nothing by a hundredth of a cell does not matter, and `rate`
    need not have a digit then: the weight is 1.
    """
    h, reach = (edges[-1] - edges[0]) / len(y), np.abs(edges).max()
    if abs(rate) * tau * reach <= h / 100:
        rate = 0.0
    elif abs(rate) * reach * h > _STEEPEST:
        return 0
    half = -rate * (edges[:-1] + edges[1:]) ** 2 / 16  # log w / 2 at the centres
    size = np.abs(y)
    size += np.finfo(float).eps * size.max()
    growth = _log_norm(np.log(size) + half) + _log_norm(-half) + math.log(h)
    found = (growth + math.log(_CONSTANT / tol)) / math.log(_BASE)
    return 0 if found > _MOST else max(_FEWEST, 2 * math.ceil(found / 2))


def _log_norm(logs: np.ndarray) -> float:
    """The logarithm of the root of the sum of the squares of e^logs."""
    top = float(logs.max())
    return top + 0.5 * math.log(np.exp(2 * (logs - top)).sum())
