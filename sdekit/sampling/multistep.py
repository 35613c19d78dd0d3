"""Multistep exponential integrators: each step reuses the predictions of the steps before.

All are quadratures of the exact solution over a step from s to t (h = half_log_snr_t - half_log_snr_s), with
E[x_0 | x] written D and c = 1 + tau^2 (Lu et al. 2022b, eq. 8; Xue et al. 2023, eq. 15):

    x_t = sigma_t / sigma_s e^(-tau^2 h) x_s + alpha_t c int_0^h e^(c (u - h)) D(u) du
          + sigma_t sqrt(1 - e^(-2 tau^2 h)) z
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, expm1, factorial, sqrt

import numpy as np

from sdekit.errors import check_integer, check_number
from sdekit.processes import Node, Process
from sdekit.sampling.grids import LogSNR, TimeGrid
from sdekit.sampling.sampler import PlanSampler
from sdekit.sampling.tape import Form, Tape


@dataclass(frozen=True)
class ExponentialAB(PlanSampler):
    """Exponential Adams-Bashforth: D is the polynomial through the last k predictions, integrated exactly.

    The predictor of SA-Solver (Xue et al. 2023, eq. 15); with tau = 0 deterministic, with tau = 1 it has the
    noise of the reverse SDE. The history then carries noise, and the order of the law is at most 2. The first
    steps use as many predictions as there are.
    """

    order: int = 3
    tau: float = 0.0

    def __post_init__(self) -> None:
        if check_integer("order", self.order, 1) > 4:
            raise ValueError(f"order must be 1 to 4, got {self.order}")
        check_number("tau", self.tau, 0)

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """tau > 0."""
        return self.tau > 0

    @property
    def grid(self) -> TimeGrid:
        """Uniform in log-SNR."""
        return LogSNR()

    def write(self, tape: Tape, process: Process, nodes: Sequence[Node], x: Form) -> Form:
        """The exact integral of the interpolating polynomial."""
        past: list[tuple[float, Form]] = []
        for s, t in pairwise(nodes):
            h = t.half_log_snr - s.half_log_snr
            past = [(s.half_log_snr, tape.data(x, s)), *past[: self.order - 1]]
            places = [place - s.half_log_snr for place, _ in past]
            weights = integrated_lagrange(places, exponential_moments(self.tau, h, len(past)))
            x = _decayed(tape, self.tau, h, s, t, x)
            for weight, (_, data) in zip(weights, past, strict=True):
                x = x + t.alpha * weight * data
            x = tape.node(x, t)
        return x


@dataclass(frozen=True)
class DPMSolverPP(PlanSampler):
    """DPM-Solver++ (2M, 3M): Taylor terms of D by divided differences.  Lu et al. 2022b, algorithm 2.

    The second difference of order 3 is 2 (d10 - d11) / (r0 + r1); widely used code omits the 2 and is then
    of second order. tau = 1 is SDE-DPM-Solver++; the order of its law is at most 2.
    """

    order: int = 2
    tau: float = 0.0

    def __post_init__(self) -> None:
        if check_integer("order", self.order, 1) > 3:
            raise ValueError(f"order must be 1 to 3, got {self.order}")
        check_number("tau", self.tau, 0)

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """tau > 0."""
        return self.tau > 0

    @property
    def grid(self) -> TimeGrid:
        """Uniform in log-SNR."""
        return LogSNR()

    def write(self, tape: Tape, process: Process, nodes: Sequence[Node], x: Form) -> Form:
        """Order 2 takes D at mid-step, as the paper does; order 3 integrates the Taylor terms."""
        past: list[tuple[float, Form]] = []
        for s, t in pairwise(nodes):
            h = t.half_log_snr - s.half_log_snr
            past = [(s.half_log_snr, tape.data(x, s)), *past[: self.order - 1]]
            moments = exponential_moments(self.tau, h, 3)
            slope, curvature = _differences(past)
            x = _decayed(tape, self.tau, h, s, t, x) + t.alpha * moments[0] * past[0][1]
            if curvature is not None and slope is not None:
                x = x + t.alpha * (moments[1] * slope + 0.5 * moments[2] * curvature)
            elif slope is not None:
                middle = moments[0] * (h / 2)
                x = x + t.alpha * (middle if self.order == 2 else moments[1]) * slope
            x = tape.node(x, t)
        return x


def _differences(past: list[tuple[float, Form]]) -> tuple[Form | None, Form | None]:
    """First and second derivative of D at the newest of up to three predictions, where there are enough."""
    if len(past) < 2:
        return None, None
    (a, newest), (b, before) = past[:2]
    first = (newest - before) / (a - b)
    if len(past) < 3:
        return first, None
    c, oldest = past[2]
    second = (first - (before - oldest) / (b - c)) * (2 / (a - c))
    return first + second * ((a - b) / 2), second


def _decayed(tape: Tape, tau: float, h: float, s: Node, t: Node, x: Form) -> Form:
    """The part of the exact solution without D: the state carried over and the fresh noise."""
    carried = t.sigma / s.sigma * exp(-(tau**2) * h) * x
    if not tau:
        return carried
    clock = (s.rho**-2, t.rho**-2)
    return carried + t.sigma * sqrt(-expm1(-2 * tau**2 * h)) * tape.normal(clock)


def exponential_moments(tau: float, h: float, count: int) -> list[float]:
    """c int_0^h e^(c (u - h)) u^j du for j = 0 .. count - 1, with c = 1 + tau^2.

    By the recursion h^j - (j / c) M_{j-1}, which cancels for small c h; there by the series of phi_{j+1}.
    """
    c = 1 + tau**2
    if c * h < 1:
        return [
            c
            * h ** (j + 1)
            * factorial(j)
            * sum((-c * h) ** n / factorial(n + j + 1) for n in range(20))
            for j in range(count)
        ]
    moments = [-expm1(-c * h)]
    for j in range(1, count):
        moments.append(h**j - j / c * moments[-1])
    return moments


def integrated_lagrange(places: Sequence[float], moments: Sequence[float]) -> list[float]:
    """Weights on the values at `places` of the integral of their interpolating polynomial."""
    weights = []
    for i, place in enumerate(places):
        others = [p for j, p in enumerate(places) if j != i]
        basis = np.polynomial.polynomial.polyfromroots(others)
        scale = np.prod([place - p for p in others])
        weights.append(float(np.dot(basis, moments[: len(places)]) / scale))
    return weights
