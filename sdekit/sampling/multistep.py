"""Multistep samplers: each step reuses the predictions of the steps before.

All are quadratures of the exact solution of the probability flow (`exponential.py`) over a step from s to t.
With h = half_log_snr_t - half_log_snr_s, E[x_0 | x] written D and c = 1 + tau^2 it is in data prediction
(Lu et al. 2022b, eq. 8; Xue et al. 2023, eq. 15)

    x_t = sigma_t / sigma_s e^(-tau^2 h) x_s + alpha_t c int_0^h e^(c (u - h)) D(u) du
          + sigma_t sqrt(1 - e^(-2 tau^2 h)) z

**The start.** A first step from one prediction is DDIM, whose local error is of second order: harmless at
the noisy end, where predictions hardly change, but from the middle of a path it holds any multistep sampler
at order 2. `start="ramp"` accepts that: the first steps use as many predictions as there are.
`start="single-step"` takes the first order - 2 steps by an exponential Runge-Kutta method of order - 1
stages and order, the least that keeps the order from any start: (order - 2)^2 calls more a run.

**The end.** `lower_order_final` takes the last steps with no more predictions than steps are left, for any
number of steps: the last is DDIM.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import ceil, exp, expm1, factorial, sqrt
from typing import Any

import numpy as np
import torch

from sdekit.errors import check_choice, check_integer, check_number
from sdekit.processes import Node, Process
from sdekit.sampling.exponential import Semilinear, exponential_step, phi
from sdekit.sampling.grids import LogSNR, TimeGrid
from sdekit.sampling.sampler import PlanSampler
from sdekit.sampling.tape import Form, Tape

#: Predictions so far, newest first, with the nodes they were read at.
Past = list[tuple[Node, Form]]
STARTS = ("ramp", "single-step")
CLOCKS = ("log-snr", "rho", "t")


class Multistep(PlanSampler):
    """Partial: the loop over steps, with a history of the last `order` predictions."""

    order: int = 2
    start: str = "ramp"
    lower_order_final: bool = False
    highest: int = 4

    def __post_init__(self) -> None:
        if check_integer("order", self.order, 1) > self.highest:
            raise ValueError(f"order must be 1 to {self.highest}, got {self.order}")
        check_choice("start", self.start, STARTS)
        check_flag("lower_order_final", self.lower_order_final)

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """Never, unless it says so."""
        return False

    @property
    def grid(self) -> TimeGrid:
        """Uniform in log-SNR."""
        return LogSNR()

    def write(self, tape: Tape, process: Process, nodes: Sequence[Node], x: Form) -> Form:
        """One call a step, after the start."""
        past: Past = []
        steps = len(nodes) - 1
        alone = max(0, self.order - 2) if self.start == "single-step" else 0
        for i, (s, t) in enumerate(pairwise(nodes)):
            past = [(s, self._read(tape, x, s)), *past[: self._kept - 1]]
            if i < alone:
                method = {2: "2s", 3: "3s"}[self.order - 1]
                form = exponential_step(tape, process, x, s, t, method, "data")
            else:
                used = steps - i if self.lower_order_final else self._kept
                form = self._step(tape, process, x, past[:used], t)
            x = tape.node(form, t)
        return x

    @property
    def _kept(self) -> int:
        """How many predictions a step uses."""
        return self.order

    @abstractmethod
    def _read(self, tape: Tape, x: Form, node: Node) -> Form:
        """The prediction that is kept."""

    @abstractmethod
    def _step(self, tape: Tape, process: Process, x: Form, past: Past, t: Node) -> Form:
        """The state at t from x at the newest node of the past."""


class _Exponential(Multistep):
    """Partial: the exact solution, with an integral made of the past predictions."""

    tau: float = 0.0
    prediction: str = "data"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("prediction", self.prediction, ("data", "noise"))
        check_number("tau", self.tau, 0)
        if self.tau and self.prediction == "noise":
            raise ValueError(f"tau must be 0 in noise prediction, got {self.tau}")
        if self.tau and self.start != "ramp":
            raise ValueError(
                f'start must be "ramp" with tau > 0, where no start raises the order of the law, '
                f"got {self.start!r}"
            )

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """tau > 0."""
        return self.tau > 0

    def _read(self, tape: Tape, x: Form, node: Node) -> Form:
        return Semilinear(self.prediction).read(tape, x, node)

    def _step(self, tape: Tape, process: Process, x: Form, past: Past, t: Node) -> Form:
        """Carry the state, add the integral, add the noise."""
        flow, s = Semilinear(self.prediction), past[0][0]
        h = flow.time(t) - flow.time(s)
        form = flow.carry(s, t) * exp(-(self.tau**2) * h) * x
        form = form + flow.scale(t) * self._integral(process, past, h)
        if self.tau:
            z = tape.normal((s.rho**-2, t.rho**-2))
            form = form + t.sigma * sqrt(-expm1(-2 * self.tau**2 * h)) * z
        return form

    @abstractmethod
    def _integral(self, process: Process, past: Past, h: float) -> Form:
        """c int_0^h e^(c (u - h)) P(u) du from the predictions so far."""


class _AdamsBashforth(_Exponential):
    """Partial: P is the polynomial in a clock through the past predictions, integrated exactly."""

    clock: str = "log-snr"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("clock", self.clock, CLOCKS)

    def _integral(self, process: Process, past: Past, h: float) -> Form:
        flow, c, s = Semilinear(self.prediction), 1 + self.tau**2, past[0][0]
        # Sixteen Gauss-Legendre points to a unit of c k leave nothing but rounding.
        u, weights = _gauss_legendre(h, ceil(c * abs(h)))
        weights = weights * c * np.exp(c * (u - h))
        half_log_snr = s.half_log_snr + (u if flow.prediction == "data" else -u)
        readings = _clock_at(self.clock, process, half_log_snr) - _clock(self.clock, s)
        moments = [float(weights @ readings**j) for j in range(len(past))]
        return _combined(self.clock, past, moments)


@dataclass(frozen=True)
class ExponentialAB(_AdamsBashforth):
    """Exponential Adams-Bashforth: the last predictions as a polynomial in a clock, integrated exactly.

    The general form of a family (Zhang & Chen 2023; Lu et al. 2022b): in data prediction and log-SNR it is the predictor of SA-Solver (Xue et al. 2023, eq. 15) and to order 1 DDIM; in noise
    prediction `DEIS` has it in t or rho. The weights are integrals against the kernel of the exact solution
    to rounding, in any clock and on any grid.

    Args:
        order: predictions used, 1 to 4.
        tau: strength of the noise, data prediction only; 0 is deterministic, 1 has the noise of the reverse
            SDE. The history then carries noise, and the order of the law is at most 2.
        prediction: "data" or "noise".
        clock: "log-snr", "rho" (sigma / alpha) or "t".
        start: "ramp" or "single-step".
        lower_order_final: whether the last steps fall to order 1.
    """

    order: int = 3
    tau: float = 0.0
    prediction: str = "data"
    clock: str = "log-snr"
    start: str = "ramp"
    lower_order_final: bool = False


@dataclass(frozen=True)
class DEIS(_AdamsBashforth):
    """Diffusion exponential integrator sampler: `ExponentialAB` in noise prediction.  Zhang & Chen 2023.

    The clock "t" is tAB-DEIS and "rho" is rhoAB-DEIS of degree order - 1; the latter is also the linear
    multistep method (LMS) of published code on the derivative (x - E[x_0 | x]) / sigma. Published weights of
    tAB are sums with a relative error of 1e-4; these are Gauss-Legendre integrals, exact to rounding.
    """

    order: int = 3
    clock: str = "t"
    start: str = "ramp"
    lower_order_final: bool = False

    prediction = "noise"


@dataclass(frozen=True)
class VelocityAB(Multistep):
    """Adams-Bashforth on the velocity dx / d clock of the probability flow.  Song et al. 2021, eq. 13.

    The clock is the variable the velocity is a derivative in and the polynomial a polynomial of: "t" for the
    flow-matching view (dx/dt = noise - data on the straight path), "log-snr" or "rho" independent of the
    parametrisation in time. No part of the flow is solved exactly, so large steps cost more than with
    `ExponentialAB`, least in "log-snr".
    """

    order: int = 3
    clock: str = "log-snr"
    start: str = "ramp"
    lower_order_final: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("clock", self.clock, CLOCKS)

    def _read(self, tape: Tape, x: Form, node: Node) -> Form:
        alpha_slope, sigma_slope = (float(v) for v in tape.process.slopes(node.t))
        fall = sigma_slope / node.sigma - alpha_slope / node.alpha  # -d half_log_snr / dt
        rate = {"t": 1.0, "log-snr": -fall, "rho": node.rho * fall}[self.clock]
        return tape.velocity(x, node) / rate

    def _step(self, tape: Tape, process: Process, x: Form, past: Past, t: Node) -> Form:
        h = _clock(self.clock, t) - _clock(self.clock, past[0][0])
        return x + _combined(self.clock, past, [h ** (j + 1) / (j + 1) for j in range(len(past))])


class _Taylor(_Exponential):
    """Partial: Taylor terms of P by divided differences, as DPM-Solver++ has them.

    Order 2 takes P at mid-step; order 3 integrates the Taylor terms, with the second difference
    2 (d10 - d11) / (r0 + r1).
    """

    highest = 3
    variant: str = "standard"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("variant", self.variant, ("standard", "published-3m"))
        if self.variant != "standard" and self.order != 2:
            raise ValueError(
                f"order must be 2, which it has, for variant={self.variant!r}, got {self.order}"
            )

    @property
    def _kept(self) -> int:
        return self.order if self.variant == "standard" else 3

    def _integral(self, process: Process, past: Past, h: float) -> Form:
        time = Semilinear(self.prediction).time
        moments = exponential_moments(self.tau, h, 3)
        slope, curvature = _differences([(time(node), form) for node, form in past])
        total = moments[0] * past[0][1]
        if slope is not None:
            total = total + (moments[0] * h / 2 if self._kept == 2 else moments[1]) * slope
        if curvature is not None:
            share = 0.5 if self.variant == "standard" else 0.25
            total = total + share * moments[2] * curvature
        return total


@dataclass(frozen=True)
class DPMSolverPP(_Taylor):
    """DPM-Solver++ (2M, 3M): Taylor terms of E[x_0 | x] by differences.  Lu et al. 2022b, algorithm 2.

    tau = 1 is SDE-DPM-Solver++; the order of its law is at most 2.

    Args:
        order: 1 to 3: DDIM, 2M and 3M.
        tau: strength of the noise.
        variant: "standard", or "published-3m" for 3M as published code has it: it omits a factor 2 in the
            second difference, and is of order 2.
        start: "ramp" or "single-step".
        lower_order_final: whether the last steps fall to order 1.
    """

    order: int = 2
    tau: float = 0.0
    variant: str = "standard"
    start: str = "ramp"
    lower_order_final: bool = False


@dataclass(frozen=True)
class DPMSolverMultistep(_Taylor):
    """DPM-Solver in noise prediction with the history of DPM-Solver++ (2M, 3M).  Lu et al. 2022a, 2022b."""

    order: int = 2
    start: str = "ramp"
    lower_order_final: bool = False

    prediction = "noise"


def check_flag(name: str, value: Any) -> bool:
    """`value` if it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r} ({type(value).__name__})")
    return value


def _differences(past: Sequence[tuple[float, Form]]) -> tuple[Form | None, Form | None]:
    """First and second derivative of P at the newest of up to three predictions, where there are enough."""
    if len(past) < 2:
        return None, None
    (a, newest), (b, before) = past[:2]
    first = (newest - before) / (a - b)
    if len(past) < 3:
        return first, None
    c, oldest = past[2]
    second = (first - (before - oldest) / (b - c)) * (2 / (a - c))
    return first + second * ((a - b) / 2), second


def _combined(clock: str, past: Past, moments: Sequence[float]) -> Form:
    """The integral of the polynomial in the clock through the past, from moments about its newest place."""
    here = _clock(clock, past[0][0])
    weights = integrated_lagrange([_clock(clock, node) - here for node, _ in past], moments)
    total = Form({})
    for weight, (_, form) in zip(weights, past, strict=True):
        total = total + weight * form
    return total


def _clock(clock: str, node: Node) -> float:
    return {"log-snr": node.half_log_snr, "rho": node.rho, "t": node.t}[clock]


def _clock_at(clock: str, process: Process, half_log_snr: np.ndarray) -> np.ndarray:
    if clock == "log-snr":
        return half_log_snr
    if clock == "rho":
        return np.exp(-half_log_snr)
    times = process.time_at_log_snr(torch.from_numpy(2 * half_log_snr))
    assert isinstance(times, torch.Tensor)
    return times.numpy()


@lru_cache(maxsize=1)
def _rule() -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre points and weights on [0, 1]."""
    points, weights = np.polynomial.legendre.leggauss(16)
    return (points + 1) / 2, weights / 2


def _gauss_legendre(h: float, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Points and signed weights on [0, h], 16 in each of as many equal cells."""
    points, weights = _rule()
    places = (np.arange(cells)[:, None] + points) / cells
    return h * places.ravel(), np.tile(h * weights / cells, cells)


def exponential_moments(tau: float, h: float, count: int) -> list[float]:
    """c int_0^h e^(c (u - h)) u^j du for j = 0 .. count - 1, with c = 1 + tau^2."""
    c = 1 + tau**2
    return [c * h ** (j + 1) * factorial(j) * phi(j + 1, -c * h) for j in range(count)]


def integrated_lagrange(places: Sequence[float], moments: Sequence[float]) -> list[float]:
    """Weights on the values at `places` of the integral of their interpolating polynomial."""
    weights = []
    for i, place in enumerate(places):
        others = [p for j, p in enumerate(places) if j != i]
        basis = np.polynomial.polynomial.polyfromroots(others)
        scale = np.prod([place - p for p in others])
        weights.append(float(np.dot(basis, moments[: len(places)]) / scale))
    return weights
