"""Composite Gauss-Legendre quadrature, for the coefficients that have no closed form."""

from functools import cache
from math import ceil

import numpy as np


def panels(low: float, high: float, width: float, order: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights on [low, high], `order` to a panel, panels no wider than `width`.

    Where the integrand is analytic within pi of the line, as a logistic function is, panels of width 2 leave
    an error of 1e-12 with eight points.
    """
    points, weights = _rule(order)
    count = max(1, ceil((high - low) / width))
    half = (high - low) / (2 * count)
    middles = low + half * (2 * np.arange(count) + 1)
    return (middles[:, None] + half * points).ravel(), np.tile(half * weights, count)


@cache
def _rule(order: int) -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(order)
