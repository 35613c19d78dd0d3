"""Single-step solvers of the probability flow: several model calls inside one step, no history."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log

from sdekit.errors import check_choice, check_integer
from sdekit.processes import Node, Process
from sdekit.sampling.exponential import EXPONENTIAL_TABLEAUS, PREDICTIONS, exponential_step
from sdekit.sampling.grids import Beta, Karras, TimeGrid
from sdekit.sampling.sampler import PlanSampler
from sdekit.sampling.tape import Form, Tape

#: (order, places, stage weights, output weights) of explicit Runge-Kutta methods (Butcher 2016).
TABLEAUS: dict[
    str, tuple[int, tuple[float, ...], tuple[tuple[float, ...], ...], tuple[float, ...]]
] = {
    "euler": (1, (0,), ((),), (1,)),
    "heun": (2, (0, 1), ((), (1,)), (1 / 2, 1 / 2)),
    "midpoint": (2, (0, 1 / 2), ((), (1 / 2,)), (0, 1)),
    "rk4": (
        4,
        (0, 1 / 2, 1 / 2, 1),
        ((), (1 / 2,), (0, 1 / 2), (0, 0, 1)),
        (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    ),
}


class _SingleStep(PlanSampler):
    """Partial: steps that know nothing of one another."""

    stochastic = False

    @property
    def grid(self) -> TimeGrid:
        """Beta(6.0)."""
        return Beta(6.0)

    def write(self, tape: Tape, process: Process, nodes: Sequence[Node], x: Form) -> Form:
        """Step by step."""
        for s, t in pairwise(nodes):
            x = tape.node(self._step(tape, process, x, s, t), t)
        return x

    @abstractmethod
    def _step(self, tape: Tape, process: Process, x: Form, s: Node, t: Node) -> Form:
        """The state at t from x at s."""


@dataclass(frozen=True)
class DPMSolver(_SingleStep):
    """DPM-Solver-2 and -3, single-step, in noise prediction.  Lu et al. 2022a, algorithms 1 and 2.

    Stages lie at r h with r = 1/2, or 1/3 and 2/3. `ExponentialRK` has the same methods in data prediction.
    """

    order: int = 2

    def __post_init__(self) -> None:
        if check_integer("order", self.order, 2) > 3:
            raise ValueError(f"order must be 2 or 3, got {self.order}")

    @property
    def nfe_per_step(self) -> int | None:  # type: ignore[override]
        """As many as the order."""
        return self.order

    def _step(self, tape: Tape, process: Process, x: Form, s: Node, t: Node) -> Form:
        return exponential_step(tape, process, x, s, t, f"{self.order}s", "noise")


@dataclass(frozen=True)
class ExponentialRK(_SingleStep):
    """Exponential Runge-Kutta methods in half-log-SNR.  Hochbruck & Ostermann 2010.

    Args:
        method: "2s" or "3s", in data prediction DPM-Solver++(2S) and (3S) (Lu et al. 2022b, algorithm 1) and
            in noise prediction DPM-Solver-2 and -3; "krogstad", of order 4 (Krogstad 2005, ETDRK4-B).
        prediction: "data", "noise", "v" or "flow"; the last two leave no linear part: the methods are the
            classical ones.
    """

    method: str = "krogstad"
    prediction: str = "data"

    def __post_init__(self) -> None:
        check_choice("method", self.method, tuple(EXPONENTIAL_TABLEAUS))
        check_choice("prediction", self.prediction, PREDICTIONS)

    @property
    def order(self) -> int:  # type: ignore[override]
        """2, 3 or 4."""
        return EXPONENTIAL_TABLEAUS[self.method][0]

    @property
    def nfe_per_step(self) -> int | None:  # type: ignore[override]
        """Stages of the method."""
        return len(EXPONENTIAL_TABLEAUS[self.method][1])

    def _step(self, tape: Tape, process: Process, x: Form, s: Node, t: Node) -> Form:
        return exponential_step(tape, process, x, s, t, self.method, self.prediction)


class _RungeKutta(_SingleStep):
    """Partial: a Runge-Kutta method on the flow of y = x / alpha in a clock."""

    method: str

    def __post_init__(self) -> None:
        check_choice("method", self.method, tuple(TABLEAUS))

    @property
    def order(self) -> int:  # type: ignore[override]
        """1, 2, 2 or 4."""
        return TABLEAUS[self.method][0]

    @property
    def nfe_per_step(self) -> int | None:  # type: ignore[override]
        """Stages of the method."""
        return len(TABLEAUS[self.method][1])

    def _step(self, tape: Tape, process: Process, x: Form, s: Node, t: Node) -> Form:
        _, places, stages, output = TABLEAUS[self.method]
        y, start, slopes = x / s.alpha, self._clock(s), list[Form]()
        step = self._clock(t) - start
        for place, row in zip(places, stages, strict=True):
            u = s if place == 0 else t if place == 1 else self._at(process, start + place * step)
            inner = y
            for weight, slope in zip(row, slopes, strict=True):
                inner = inner + step * weight * slope
            state = x if u is s else u.alpha * inner
            slopes.append((inner - tape.data(state, u)) * self._rate(u))
        for weight, slope in zip(output, slopes, strict=True):
            y = y + step * weight * slope
        return t.alpha * y

    @abstractmethod
    def _clock(self, node: Node) -> float:
        """The clock's reading at a node."""

    @abstractmethod
    def _at(self, process: Process, reading: float) -> Node:
        """The node at a reading."""

    @abstractmethod
    def _rate(self, node: Node) -> float:
        """d log rho / d clock."""


@dataclass(frozen=True)
class SigmaRungeKutta(_RungeKutta):
    """dy / d rho = (y - E[x_0 | x]) / rho in y = x / alpha, rho = sigma / alpha, by a Runge-Kutta method.

    Karras et al. 2022, eq. 4. "euler" is DDIM; "heun" is their algorithm 1; also "midpoint" and "rk4".
    """

    method: str = "rk4"

    @property
    def grid(self) -> TimeGrid:
        """Beta(4.0)."""
        return Beta(4.0)

    def _clock(self, node: Node) -> float:
        return node.rho

    def _at(self, process: Process, reading: float) -> Node:
        return process.node_at_log_snr(-2 * log(reading))

    def _rate(self, node: Node) -> float:
        return 1 / node.rho


@dataclass(frozen=True)
class LogSNRRungeKutta(_RungeKutta):
    """dy / d half_log_snr = E[x_0 | x] - y in y = x / alpha, by a Runge-Kutta method.

    The equation of Lu et al. 2022b (DPM-Solver++), its linear part left to the method: `ExponentialRK` solves
    that part exactly. "euler", "heun", "midpoint" or "rk4".
    """

    method: str = "rk4"

    @property
    def grid(self) -> TimeGrid:
        """Of Karras et al., with power 7."""
        return Karras()

    def _clock(self, node: Node) -> float:
        return node.half_log_snr

    def _at(self, process: Process, reading: float) -> Node:
        return process.node_at_log_snr(2 * reading)

    def _rate(self, node: Node) -> float:
        return -1.0
