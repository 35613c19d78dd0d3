"""Multistep exponential integrators: each step reuses the predictions of the steps before.

All are quadratures of the exact solution over a step from s to t (h = half_log_snr_t - half_log_snr_s), with
E[x_0 | x] written D and c = 1 + tau^2 (Lu et al. 2022b, eq. 8; Xue et al. 2023, eq. 15):

    x_t = sigma_t / sigma_s e^(-tau^2 h) x_s + alpha_t c int_0^h e^(c (u - h)) D(u) du
          + sigma_t sqrt(1 - e^(-2 tau^2 h)) z
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, expm1, factorial, sqrt
from typing import ClassVar

import numpy as np

from sdekit.errors import check_integer, check_number
from sdekit.processes import Node, Process
from sdekit.sampling.grids import LogSNR, TimeGrid
from sdekit.sampling.sampler import PlanSampler
from sdekit.sampling.tape import Form, Tape

#: Predictions so far, newest first: (half_log_snr, E[x_0 | x]).
Past = list[tuple[float, Form]]


@dataclass(frozen=True)
class _Multistep(PlanSampler):
    """Partial: the exact solution with an integral made of the last `order` predictions.

    The first steps use as many predictions as there are.
    """

    order: int = 2
    tau: float = 0.0
    highest: ClassVar[int]

    def __post_init__(self) -> None:
        if check_integer("order", self.order, 1) > self.highest:
            raise ValueError(f"order must be 1 to {self.highest}, got {self.order}")
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
        """One call a step: carry the state, add the integral, add the noise."""
        past: Past = []
        for s, t in pairwise(nodes):
            h = t.half_log_snr - s.half_log_snr
            past = [(s.half_log_snr, tape.data(x, s)), *past[: self.order - 1]]
            form = t.sigma / s.sigma * exp(-(self.tau**2) * h) * x + t.alpha * self._integral(
                past, h
            )
            if self.tau:
                z = tape.normal((s.rho ** (-2 * self.tau**2), t.rho ** (-2 * self.tau**2)))
                form = form + t.sigma * sqrt(-expm1(-2 * self.tau**2 * h)) * z
            x = tape.node(form, t)
        return x

    @abstractmethod
    def _integral(self, past: Past, h: float) -> Form:
        """c int_0^h e^(c (u - h)) D(u) du from the predictions so far."""


@dataclass(frozen=True)
class ExponentialAB(_Multistep):
    """Exponential Adams-Bashforth: D is the polynomial through the last k predictions, integrated exactly.

    The predictor of SA-Solver (Xue et al. 2023, eq. 15); with tau = 0 deterministic, with tau = 1 it has the
    noise of the reverse SDE. The history then carries noise, and the order of the law is at most 2.
    """

    order: int = 3
    highest = 4

    def _integral(self, past: Past, h: float) -> Form:
        places = [place - past[0][0] for place, _ in past]
        weights = integrated_lagrange(places, exponential_moments(self.tau, h, len(past)))
        total = Form({})
        for weight, (_, data) in zip(weights, past, strict=True):
            total = total + weight * data
        return total


@dataclass(frozen=True)
class DPMSolverPP(_Multistep):
    """DPM-Solver++ (2M, 3M): Taylor terms of D by divided differences.  Lu et al. 2022b, algorithm 2.

    Order 2 takes D at mid-step, as the paper does; order 3 integrates the Taylor terms, with the second
    difference 2 (d10 - d11) / (r0 + r1): widely used code omits the 2 and is then of second order. tau = 1 is
    SDE-DPM-Solver++; the order of its law is at most 2.
    """

    highest = 3

    def _integral(self, past: Past, h: float) -> Form:
        moments = exponential_moments(self.tau, h, 3)
        slope, curvature = _differences(past)
        total = moments[0] * past[0][1]
        if slope is not None:
            total = total + (moments[0] * h / 2 if self.order == 2 else moments[1]) * slope
        if curvature is not None:
            total = total + 0.5 * moments[2] * curvature
        return total


def _differences(past: Past) -> tuple[Form | None, Form | None]:
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
