"""Single-step solvers of the probability flow: several model calls inside one step, no history."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import expm1, log

from sdekit.errors import check_choice, check_integer
from sdekit.processes import Node, Process
from sdekit.sampling.grids import LogSNR, TimeGrid
from sdekit.sampling.sampler import PlanSampler
from sdekit.sampling.tape import Form, Tape

#: Nodes, stage weights and output weights of explicit Runge-Kutta methods (Butcher 2016).
TABLEAUS: dict[str, tuple[tuple[float, ...], tuple[tuple[float, ...], ...], tuple[float, ...]]] = {
    "euler": ((0,), ((),), (1,)),
    "heun": ((0, 1), ((), (1,)), (1 / 2, 1 / 2)),
    "midpoint": ((0, 1 / 2), ((), (1 / 2,)), (0, 1)),
    "rk4": (
        (0, 1 / 2, 1 / 2, 1),
        ((), (1 / 2,), (0, 1 / 2), (0, 0, 1)),
        (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    ),
}


@dataclass(frozen=True)
class DPMSolver(PlanSampler):
    """DPM-Solver-2 and -3, single-step, in noise prediction.  Lu et al. 2022a, algorithms 1 and 2."""

    order: int = 2

    stochastic = False

    def __post_init__(self) -> None:
        if check_integer("order", self.order, 2) > 3:
            raise ValueError(f"order must be 2 or 3, got {self.order}")

    @property
    def nfe_per_step(self) -> int | None:  # type: ignore[override]
        """As many as the order."""
        return self.order

    @property
    def grid(self) -> TimeGrid:
        """Uniform in log-SNR."""
        return LogSNR()

    def write(self, tape: Tape, process: Process, nodes: Sequence[Node], x: Form) -> Form:
        """Stages at r h with r = 1/2, or 1/3 and 2/3."""
        for s, t in pairwise(nodes):
            h, noise = t.half_log_snr - s.half_log_snr, tape.noise(x, s)
            r = 1 / 2 if self.order == 2 else 1 / 3
            u = process.node_at_log_snr(2 * (s.half_log_snr + r * h))
            first = u.alpha / s.alpha * x - u.sigma * expm1(r * h) * noise
            change = tape.noise(first, u) - noise
            if self.order == 3:
                q = 2 / 3
                v = process.node_at_log_snr(2 * (s.half_log_snr + q * h))
                second = v.alpha / s.alpha * x - v.sigma * expm1(q * h) * noise
                second = second - v.sigma * (q / r) * (expm1(q * h) / (q * h) - 1) * change
                change, r = tape.noise(second, v) - noise, q
                bent = t.sigma / r * (expm1(h) / h - 1) * change
            else:
                bent = t.sigma / (2 * r) * expm1(h) * change
            x = tape.node(t.alpha / s.alpha * x - t.sigma * expm1(h) * noise - bent, t)
        return x


@dataclass(frozen=True)
class SigmaRungeKutta(PlanSampler):
    """dy / d rho = (y - E[x_0 | x]) / rho in y = x / alpha, rho = sigma / alpha, by a Runge-Kutta method.

    Karras et al. 2022, eq. 4. "euler" is DDIM; "heun" is their algorithm 1; also "midpoint" and "rk4".
    """

    method: str = "rk4"

    stochastic = False

    def __post_init__(self) -> None:
        check_choice("method", self.method, tuple(TABLEAUS))

    @property
    def order(self) -> int:  # type: ignore[override]
        """1, 2, 2 or 4."""
        return {"euler": 1, "heun": 2, "midpoint": 2, "rk4": 4}[self.method]

    @property
    def nfe_per_step(self) -> int | None:  # type: ignore[override]
        """Stages of the method."""
        return len(TABLEAUS[self.method][0])

    @property
    def grid(self) -> TimeGrid:
        """Uniform in log-SNR."""
        return LogSNR()

    def write(self, tape: Tape, process: Process, nodes: Sequence[Node], x: Form) -> Form:
        """The tableau."""
        places, stages, output = TABLEAUS[self.method]
        for s, t in pairwise(nodes):
            y, step, slopes = x / s.alpha, t.rho - s.rho, list[Form]()
            for place, row in zip(places, stages, strict=True):
                u = (
                    s
                    if place == 0
                    else t
                    if place == 1
                    else process.node_at_log_snr(-2 * log(s.rho + place * step))
                )
                inner = y
                for weight, slope in zip(row, slopes, strict=True):
                    inner = inner + step * weight * slope
                state = x if u is s else u.alpha * inner
                slopes.append((inner - tape.data(state, u)) / u.rho)
            for weight, slope in zip(output, slopes, strict=True):
                y = y + step * weight * slope
            x = tape.node(t.alpha * y, t)
        return x
