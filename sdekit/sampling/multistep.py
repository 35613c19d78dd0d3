"""Multistep samplers: each step reuses the predictions of the steps before.

All are quadratures of the exact solution of the probability flow (`exponential.py`) over a step from s to t.
With h = half_log_snr_t - half_log_snr_s, E[x_0 | x] written D and c = 1 + tau^2 it is in data prediction
(Lu et al. 2022b, eq. 8; Xue et al. 2023, eq. 15)

    x_t = sigma_t / sigma_s e^(-tau^2 h) x_s + alpha_t c int_0^h e^(c (u - h)) D(u) du
          + sigma_t sqrt(1 - e^(-2 tau^2 h)) z

**The start.** A first step from one prediction has a local error of second order: at the noisy end, where
predictions hardly change, it is a small share (order 4 of the two-mode mixture shows it below 1e-7), but from
the middle of a path it holds any multistep sampler at order 2. `start="ramp"` accepts that: the first steps
use as many predictions as there are. `start="single-step"` takes the first order - 2 steps by a
Runge-Kutta method of order - 1 stages and order, the least that keeps the order from any start, for
(order - 2)^2 calls more a run. At equal cost the ramp is the better from t_max up to 50 calls, the
single-step start from mid-path from about 15 calls on.

**The end.** `lower_order_final` takes the last steps with no more predictions than steps are left, for any
number of steps: the last uses one. It is off, since that loses accuracy from about 20 calls on more often
than it gains, and helps at five.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import expm1, factorial, log, sqrt

import numpy as np
import torch

from sdekit.errors import check_choice, check_flag, check_integer, check_number
from sdekit.processes import Node, Process
from sdekit.quadrature import even_panels
from sdekit.sampling.exponential import (
    PREDICTIONS,
    Semilinear,
    exponential_step,
    noise_clock,
    phi,
)
from sdekit.sampling.grids import Beta, LogSNR, Power, TimeGrid
from sdekit.sampling.sampler import PlanSampler
from sdekit.sampling.tape import Form, Tape

#: Predictions so far, newest first, with the nodes they were read at.
Past = list[tuple[Node, Form]]
STARTS = ("ramp", "single-step")


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
        """Beta(4.0)."""
        return Beta(4.0)

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
        check_choice("prediction", self.prediction, PREDICTIONS)
        check_number("tau", self.tau, 0)
        if self.tau and self.prediction != "data":
            raise ValueError(f"tau must be 0 unless prediction is 'data', got {self.tau}")
        if self.tau and self.start != "ramp":
            raise ValueError(
                f'start must be "ramp" with tau > 0, where no start raises the order of the law, '
                f"got {self.start!r}"
            )

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """tau > 0."""
        return self.tau > 0

    @property
    def law_order(self) -> int:
        """At most 2 with tau > 0."""
        return min(self.order, 2) if self.tau else self.order

    @property
    def grid(self) -> TimeGrid:
        """Beta: 8.0 for data, 4.0 for noise, 6.0 for v, 5.0 for flow; with tau > 0 uniform in log-SNR."""
        if self.tau:
            return LogSNR()
        return Beta({"data": 8.0, "noise": 4.0, "v": 6.0, "flow": 5.0}[self.prediction])

    @property
    def _flow(self) -> Semilinear:
        return Semilinear(self.prediction, self.tau)

    def _read(self, tape: Tape, x: Form, node: Node) -> Form:
        return self._flow.read(tape, x, node)

    def _step(self, tape: Tape, process: Process, x: Form, past: Past, t: Node) -> Form:
        """Carry the state, add the integral, add the noise."""
        flow, s = self._flow, past[0][0]
        form = flow.carry(s, t) * x + flow.scale(t) * self._integral(process, past, t)
        if self.tau:
            z = tape.normal((noise_clock(s.rho, self.tau), noise_clock(t.rho, self.tau)))
            form = form + t.sigma * sqrt(-expm1(-2 * self.tau**2 * log(s.rho / t.rho))) * z
        return form

    @abstractmethod
    def _integral(self, process: Process, past: Past, t: Node) -> Form:
        """int K P dk over the step to t from the predictions so far."""


class _AdamsBashforth(_Exponential):
    """Partial: P is the polynomial in a clock through the past predictions, integrated exactly."""

    clock: TimeGrid = LogSNR()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.clock, TimeGrid):
            raise TypeError(f"clock must be a TimeGrid such as LogSNR(), got {self.clock!r}")

    def _integral(self, process: Process, past: Past, t: Node) -> Form:
        s, flow = past[0][0], self._flow
        # Sixteen Gauss-Legendre points to a unit of rate k leave nothing but rounding, in any clock.
        width = 1 / (1 + self.tau**2)
        rule = even_panels(s.half_log_snr, t.half_log_snr, width, 16)
        half_log_snr, weights = (v.numpy() for v in rule)
        weights = weights * flow.kernel(half_log_snr, t)
        here = self.clock.clock(process, s.t)
        readings = self.clock.at_log_snr(process, torch.from_numpy(2 * half_log_snr))
        places = [self.clock.clock(process, node.t) - here for node, _ in past]
        offsets = np.array(readings) - here
        moments = [float(weights @ offsets**j) for j in range(len(past))]
        return weighted(integrated_lagrange(places, moments), past)


@dataclass(frozen=True)
class ExponentialAB(_AdamsBashforth):
    """Exponential Adams-Bashforth: the last predictions as a polynomial in a clock, integrated exactly.

    The general form of a family (Zhang & Chen 2023; Lu et al. 2022b): data prediction in log-SNR is the
    predictor of SA-Solver (Xue et al. 2023, eq. 15), noise prediction in t or in sigma / alpha is `DEIS`, and
    order 1 in data, noise or flow prediction is DDIM. Weights are integrals against the kernel of the exact
    solution to rounding, for any clock and on any grid.

    Order 4 in flow prediction and the clock FlowTime() is Adams-Bashforth on the straight path between data
    and noise, for any process. With the exact score nothing comes nearer at ten calls, on a two-mode mixture,
    a ring of eight modes and a mixture in 16 dimensions; with more, v prediction in LogSNR() often does
    (docs/benchmarks.md). Its ramp leaves an error of second order, 1e-7 on the two-mode mixture. With that
    clock a grid must not crowd at the noisy end, as log-SNR and that of Karras et al. do.

    Args:
        order: predictions used, 1 to 4.
        tau: strength of the noise, data prediction only; 0 is deterministic, 1 has the noise of the reverse
            SDE. The history then carries noise, and the order of the law is at most 2.
        prediction: what is interpolated, "data", "noise", "v" or "flow" (noise - data).
        clock: what it is a polynomial of: any grid, for a grid is a clock. LogSNR(), Power(1.0) for t,
            Karras(1.0) for sigma / alpha, FlowTime() for sigma / (alpha + sigma), ...
        start: "ramp" or "single-step".
        lower_order_final: whether the last steps fall to order 1.
    """

    order: int = 3
    tau: float = 0.0
    prediction: str = "data"
    clock: TimeGrid = field(default_factory=LogSNR)
    start: str = "ramp"
    lower_order_final: bool = False


@dataclass(frozen=True)
class DEIS(_AdamsBashforth):
    """Diffusion exponential integrator sampler: `ExponentialAB` in noise prediction.  Zhang & Chen 2023.

    The clock Power(1.0) gives tAB-DEIS, Karras(1.0) rhoAB-DEIS, of degree order - 1; the latter is also the
    linear multistep method (LMS) of published code on the derivative (x - E[x_0 | x]) / sigma. Published
    weights of tAB are sums with a relative error of 1e-4; these are integrals to rounding.
    """

    order: int = 3
    clock: TimeGrid = field(default_factory=Power)
    start: str = "ramp"
    lower_order_final: bool = False

    prediction = "noise"


@dataclass(frozen=True)
class VelocityAB(Multistep):
    """Adams-Bashforth on dx/dt of the probability flow, as a polynomial in t.  Song et al. 2021, eq. 13.

    Its clock is the process's own t: on the straight paths of `Interpolant` dx/dt = noise - data, and order 1
    is the Euler step of flow matching. Another parametrisation in time of the same path gives another method;
    `ExponentialAB(prediction="flow", clock=FlowTime())` is the one that does not depend on it, and the same
    on `Interpolant`.
    """

    order: int = 3
    start: str = "ramp"
    lower_order_final: bool = False

    def _read(self, tape: Tape, x: Form, node: Node) -> Form:
        return tape.velocity(x, node)

    def _step(self, tape: Tape, process: Process, x: Form, past: Past, t: Node) -> Form:
        s = past[0][0]
        moments = [(t.t - s.t) ** (j + 1) / (j + 1) for j in range(len(past))]
        return x + weighted(integrated_lagrange([node.t - s.t for node, _ in past], moments), past)


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

    def _integral(self, process: Process, past: Past, t: Node) -> Form:
        time = self._flow.time
        h = time(t) - time(past[0][0])
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


def weighted(weights: Sequence[float], past: Past) -> Form:
    """The sum of the past predictions with these weights."""
    total = Form({})
    for weight, (_, form) in zip(weights, past, strict=True):
        total = total + weight * form
    return total


def exponential_moments(tau: float, h: float, count: int) -> list[float]:
    """c int_0^h e^(c (u - h)) u^j du for j = 0 .. count - 1, with c = 1 + tau^2."""
    c = 1 + tau**2
    return [c * h ** (j + 1) * factorial(j) * phi(j + 1, -c * h) for j in range(count)]


def integrated_lagrange(places: Sequence[float], moments: Sequence[float]) -> list[float]:
    """Weights on the values at `places` of the integral of their interpolating polynomial."""
    weights = []
    for i, place in enumerate(places):
        basis, scale = (
            [1.0],
            1.0,
        )  # coefficients of prod (u - p) from the constant up, and its value at place
        for p in (*places[:i], *places[i + 1 :]):
            basis = [a - p * b for a, b in zip([0.0, *basis], [*basis, 0.0], strict=True)]
            scale *= place - p
        weights.append(sum(c * m for c, m in zip(basis, moments, strict=False)) / scale)
    return weights
