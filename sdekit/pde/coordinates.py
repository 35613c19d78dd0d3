"""Coordinates that follow a process: u = x / s(t) with s^2 = alpha^2 + sigma^2.

s(t) is the standard deviation at t of data of variance 1, so a density that explodes in x stays put in u, and
one grid serves all times. From (s^2)' = 2 f s^2 + g^2, the density q = s p of u obeys

    q_t = (g^2 / 2 s^2) ((u q)_u + q_uu)

for every affine process: the Ornstein-Uhlenbeck equation in a clock of its own. For VP s = 1.
"""

import math
from dataclasses import dataclass

import numpy as np

from sdekit.processes import Process


@dataclass(frozen=True)
class Coordinates:
    """u = x / s(t) for the s of a process; x itself without one."""

    process: Process | None = None

    def scale(self, t: float) -> float:
        """s(t), the length in x of a unit of u."""
        if self.process is None:
            return 1.0
        return math.hypot(self.process.alpha(t), self.process.sigma(t))

    def scales(self, times: np.ndarray) -> np.ndarray:
        """s at each of several times, (times,)."""
        return np.array([self.scale(t) for t in times.tolist()])

    def growth(self, t: float) -> float:
        """d log s / dt = f + g^2 / (2 s^2)."""
        if self.process is None:
            return 0.0
        f, g2 = self.process.rates(t)
        return float(f + 0.5 * g2 / self.scale(t) ** 2)


#: x itself.
RAW = Coordinates()
