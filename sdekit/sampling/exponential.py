"""What exponential integrators share: the probability flow as a linear equation, and its exact solution.

Read as data or as noise, the flow is linear but for one reading P of the model, and it is the same
equation (Lu et al. 2022a, proposition 3.1; 2022b, proposition 4.1): in y = x / scale

    dy/dk = P - y        data: P = E[x_0 | x], scale = alpha, k = half_log_snr
                         noise: P = (x - alpha E[x_0 | x]) / sigma, scale = sigma, k = -half_log_snr

so that a step of length h has the exact solution y(h) = e^-h y(0) + int_0^h e^(u - h) P(u) du, in which only
P has to be guessed. The names are those of Hochbruck & Ostermann 2010 ("Exponential integrators").
"""

from dataclasses import dataclass
from math import exp, factorial

from sdekit.processes import Node, Process
from sdekit.sampling.tape import Form, Tape


@dataclass(frozen=True)
class Semilinear:
    """The probability flow as dy/dk = P - y, for P = "data" or "noise"."""

    prediction: str

    def time(self, node: Node) -> float:
        """k, which grows towards the data in data prediction and falls in noise prediction."""
        return node.half_log_snr if self.prediction == "data" else -node.half_log_snr

    def node(self, process: Process, k: float) -> Node:
        """The node at which k has this value."""
        return process.node_at_log_snr(2 * k if self.prediction == "data" else -2 * k)

    def scale(self, node: Node) -> float:
        """x = scale y."""
        return node.alpha if self.prediction == "data" else node.sigma

    def carry(self, s: Node, t: Node) -> float:
        """What is left at t of a unit of x_s: scale_t / scale_s e^-h, without the rounding of h."""
        return t.sigma / s.sigma if self.prediction == "data" else t.alpha / s.alpha

    def read(self, tape: Tape, x: Form, node: Node) -> Form:
        """P at x."""
        return tape.data(x, node) if self.prediction == "data" else tape.noise(x, node)


def phi(j: int, z: float) -> float:
    """phi_j(z) = int_0^1 e^((1 - u) z) u^(j - 1) / (j - 1)! du, and phi_0 = e^z."""
    if abs(z) < 2:
        # The recursion below cancels here.
        return sum(z**n / factorial(n + j) for n in range(30))
    value = exp(z)
    for i in range(j):
        value = (value - 1 / factorial(i)) / z
    return value


#: Weights on phi_1, phi_2, ... at the place of the stage.
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
        prediction: "data" or "noise".
    """
    flow = Semilinear(prediction)
    _, places, stages, output = EXPONENTIAL_TABLEAUS[method]
    start, h, readings = flow.time(s), flow.time(t) - flow.time(s), list[Form]()

    def moved(place: float, u: Node, row: tuple[_Phi, ...]) -> Form:
        form = flow.carry(s, u) * x
        for weights, reading in zip(row, readings, strict=False):
            weight = sum(w * phi(j, -place * h) for j, w in enumerate(weights, 1))
            form = form + flow.scale(u) * h * weight * reading
        return form

    for place, row in zip(places, stages, strict=True):
        u = s if place == 0 else t if place == 1 else flow.node(process, start + place * h)
        readings.append(flow.read(tape, moved(place, u, row) if place else x, u))
    return moved(1, t, output)
