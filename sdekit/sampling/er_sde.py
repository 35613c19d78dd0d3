"""ER-SDE: the reverse SDE with as much noise as one likes, integrated in rho = sigma / alpha."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, expm1, log, sqrt

import numpy as np

from sdekit.errors import check_integer, check_number
from sdekit.processes import Node, Process
from sdekit.quadrature import even_panels
from sdekit.sampling.grids import LogSNR, TimeGrid
from sdekit.sampling.multistep import Past, integrated_lagrange, weighted
from sdekit.sampling.sampler import PlanSampler
from sdekit.sampling.tape import Form, Tape


@dataclass(frozen=True)
class ERSDE(PlanSampler):
    """Extended reverse-time SDE solver, ER-SDE-Solver-1 to -3.  Cui et al. 2023.

    The extended SDE leaves the amount of noise to a function phi of rho = sigma / alpha. In y = x / alpha its
    solution is, with r = phi(rho_t) / phi(rho_s) and D = E[x_0 | x],

        y_t = r y_s + phi(rho_t) int D d(1 / phi) + sqrt(rho_t^2 - r^2 rho_s^2) z

    D is the polynomial in rho through the last p predictions and the integral is taken by Gauss-Legendre
    quadrature. Published code has a left Riemann sum there, and takes differences for derivatives at the
    newest point, which loses the third order.

    Args:
        p: predictions used, 1 to 3.
        power: phi = rho^power, at least 1: 1 is the probability flow, 2 the reverse SDE, 1 + tau^2 that of
            constant tau; None is phi = rho (e^(rho^0.3) + 10), which the paper found best.
    """

    p: int = 3
    power: float | None = None

    def __post_init__(self) -> None:
        if check_integer("p", self.p, 1) > 3:
            raise ValueError(f"p must be 1 to 3, got {self.p}")
        if self.power is not None:
            check_number("power", self.power, 1)

    @property
    def order(self) -> int:  # type: ignore[override]
        """p without noise; with noise, which the history carries, the law's is at most 2.

        The paper's phi has so little noise that on a log-SNR grid p = 3 converges as h^3 down to errors of
        1e-6.
        """
        return self.p if self.power == 1 else min(self.p, 2)

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """power other than 1."""
        return self.power != 1

    @property
    def grid(self) -> TimeGrid:
        """Uniform in log-SNR."""
        return LogSNR()

    def write(self, tape: Tape, process: Process, nodes: Sequence[Node], x: Form) -> Form:
        """Carry the state, add the integral, add the noise."""
        past: Past = []
        for s, t in pairwise(nodes):
            past = [(s, tape.data(x, s)), *past[: self.p - 1]]
            surplus, _ = self._log_noise(np.array([t.rho, s.rho]))
            gain = float(surplus[0] - surplus[1])  # log r - log(rho_t / rho_s) <= 0
            moments = self.moments(s.rho, t.rho, len(past))
            weights = integrated_lagrange([node.rho - s.rho for node, _ in past], moments)
            form = t.sigma / s.sigma * exp(gain) * x + t.alpha * weighted(weights, past)
            if self.stochastic:
                z = tape.normal((s.rho**-2, t.rho**-2))
                form = form + t.sigma * sqrt(-expm1(2 * gain)) * z
            x = tape.node(form, t)
        return x

    def moments(self, start: float, end: float, count: int) -> list[float]:
        """phi(end) int (rho - start)^j d(1 / phi) from start down to end, for j = 0 .. count - 1."""
        _, steepest = self._log_noise(np.array([start]))
        width = 1 / (1 + float(steepest[0]))
        places, weights = (v.numpy() for v in even_panels(log(end), log(start), width))
        rho = np.exp(places)
        log_noise, slope = self._log_noise(rho)
        (last,), _ = self._log_noise(np.array([end]))
        weights = weights * (1 + slope) * np.exp(last + log(end) - log_noise - places)
        return [float(weights @ (rho - start) ** j) for j in range(count)]

    def _log_noise(self, rho: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log(phi / rho), which has no overflow, and its slope in log rho."""
        if self.power is not None:
            return (self.power - 1) * np.log(rho), np.full_like(rho, self.power - 1)
        bent = rho**0.3
        value = np.logaddexp(bent, log(10))
        return value, 0.3 * bent * np.exp(bent - value)
