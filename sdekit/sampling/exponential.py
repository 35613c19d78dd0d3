"""What exponential integrators share: the probability flow as a linear equation, and its exact solution.

The flow is linear but for one reading P of the model, and in y = x / scale every reading has the same
equation, dy/dk = rate (P - y), or dy/dk = P where the rate is 0:

    data    P = E[x_0 | x]                      scale = alpha   k = half_log_snr         rate = 1 + tau^2
    noise   P = (x - alpha E[x_0 | x]) / sigma  scale = sigma   k = -half_log_snr        rate = 1
    v       P = (alpha noise - sigma data) / r  scale = r       k = atan(sigma / alpha)  rate = 0
    flow    P = noise - data                    scale = q       k = sigma / q            rate = 0

with r^2 = alpha^2 + sigma^2 and q = alpha + sigma (Lu et al. 2022a, proposition 3.1; 2022b, proposition 4.1;
Salimans & Ho 2022; for flow, Lipman et al. 2023 and Liu et al. 2023: divided by q any Gaussian path is the
straight one between data and noise). tau > 0 is the linear part of the SDE with tau times the noise of the
reverse SDE (Xue et al. 2023). A step from s to t, of length h = k_t - k_s, is exactly

    y_t = e^-(rate h) y_s + int K P dk,      K = rate e^(rate (k - k_t)), or 1 where the rate is 0,

in which only P has to be guessed.
"""

from dataclasses import dataclass
from math import atan2, exp, factorial, hypot, log, tan

import numpy as np

from sdekit.processes import Node, Process
from sdekit.sampling.tape import Form, Tape

PREDICTIONS = ("data", "noise", "v", "flow")


@dataclass(frozen=True)
class Semilinear:
    """The probability flow as a linear equation in one reading of the model."""

    prediction: str
    tau: float = 0.0

    @property
    def rate(self) -> float:
        """Of the decay of y in k."""
        return {"data": 1 + self.tau**2, "noise": 1.0}.get(self.prediction, 0.0)

    def time(self, node: Node) -> float:
        """k, which grows towards the data in data prediction only."""
        if self.prediction == "v":
            return atan2(node.sigma, node.alpha)
        if self.prediction == "flow":
            return node.sigma / (node.alpha + node.sigma)
        return node.half_log_snr if self.prediction == "data" else -node.half_log_snr

    def node(self, process: Process, k: float) -> Node:
        """The node at which k has this value."""
        if self.prediction == "v":
            half = -log(tan(k))
        elif self.prediction == "flow":
            half = log((1 - k) / k)
        else:
            half = k if self.prediction == "data" else -k
        return process.node_at_log_snr(2 * half)

    def scale(self, node: Node) -> float:
        """x = scale y."""
        if self.prediction == "v":
            return hypot(node.alpha, node.sigma)
        if self.prediction == "flow":
            return node.alpha + node.sigma
        return node.alpha if self.prediction == "data" else node.sigma

    def carry(self, s: Node, t: Node) -> float:
        """What is left at t of a unit of x_s; from ratios, which lose nothing to the rounding of h."""
        if not self.rate:
            return self.scale(t) / self.scale(s)
        if self.prediction == "noise":
            return t.alpha / s.alpha
        return t.sigma / s.sigma * (s.rho / t.rho) ** -(self.tau**2)

    def kernel(self, half_log_snr: np.ndarray, t: Node) -> np.ndarray:
        """K dk / d half_log_snr, on a step that ends at t."""
        if self.prediction == "v":
            return -0.5 / np.cosh(half_log_snr)
        if self.prediction == "flow":
            return -0.25 / np.cosh(half_log_snr / 2) ** 2
        sign = 1 if self.prediction == "data" else -1
        return sign * self.rate * np.exp(sign * self.rate * (half_log_snr - t.half_log_snr))

    def read(self, tape: Tape, x: Form, node: Node) -> Form:
        """P at x."""
        readings = {"data": tape.data, "noise": tape.noise, "v": tape.v, "flow": tape.flow}
        return readings[self.prediction](x, node)


def noise_clock(rho: float, tau: float) -> float:
    """rho^(-2 tau^2), whose Brownian motion is the noise of the linear part with this tau.

    Near tau = 0 its differences would be lost to rounding and at large tau it would overflow, so beyond 0.1
    and 3 the power stays: the increments are those of a clock nearby, of one path at any number of steps.
    """
    return rho ** (-2 * min(max(tau**2, 0.01), 10.0))


def phi(j: int, z: float) -> float:
    """phi_j(z) = int_0^1 e^((1 - u) z) u^(j - 1) / (j - 1)! du, and phi_0 = e^z."""
    if abs(z) < 2:
        # The recursion below cancels here.
        return sum(z**n / factorial(n + j) for n in range(30))
    value = exp(z)
    for i in range(j):
        value = (value - 1 / factorial(i)) / z
    return value


#: Weights on phi_1, phi_2, ... at the place of the stage, after Hochbruck & Ostermann 2010.
_Phi = tuple[float, ...]
#: (order, places, stage weights, output weights) of explicit exponential Runge-Kutta methods.
EXPONENTIAL_TABLEAUS: dict[
    str, tuple[int, tuple[float, ...], tuple[tuple[_Phi, ...], ...], tuple[_Phi, ...]]
] = {
    "2s": (2, (0, 1 / 2), ((), ((1 / 2,),)), ((), (1,))),
    "3s": (
        3,
        (0, 1 / 3, 2 / 3),
        ((), ((1 / 3,),), ((2 / 3, -4 / 3), (0, 4 / 3))),
        ((1, -3 / 2), (), (0, 3 / 2)),
    ),
    "krogstad": (
        4,
        (0, 1 / 2, 1 / 2, 1),
        ((), ((1 / 2,),), ((1 / 2, -1), (0, 1)), ((1, -2), (), (0, 2))),
        ((1, -3, 4), (0, 2, -4), (0, 2, -4), (0, -1, 4)),
    ),
}


def exponential_step(
    tape: Tape, process: Process, x: Form, s: Node, t: Node, method: str, prediction: str
) -> Form:
    """The state at t from x at s by one step of an explicit exponential Runge-Kutta method.

    Args:
        tape: where the stages are recorded.
        process: forward process.
        x: state at s.
        s: start.
        t: end.
        method: in EXPONENTIAL_TABLEAUS.
        prediction: "data", "noise", "v" or "flow".
    """
    flow = Semilinear(prediction)
    _, places, stages, output = EXPONENTIAL_TABLEAUS[method]
    start, h, readings = flow.time(s), flow.time(t) - flow.time(s), list[Form]()

    def moved(place: float, u: Node, row: tuple[_Phi, ...]) -> Form:
        form = flow.carry(s, u) * x
        for weights, reading in zip(row, readings, strict=False):
            weight = sum(w * phi(j, -flow.rate * place * h) for j, w in enumerate(weights, 1))
            form = form + flow.scale(u) * h * weight * reading
        return form

    for place, row in zip(places, stages, strict=True):
        u = s if place == 0 else t if place == 1 else flow.node(process, start + place * h)
        readings.append(flow.read(tape, moved(place, u, row) if place else x, u))
    return moved(1, t, output)
