"""UniPC: a multistep predictor, and a corrector that reuses the predictor's evaluation at the next step."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import expm1

import numpy as np

from sdekit.errors import check_choice, check_integer
from sdekit.processes import Node, Process
from sdekit.sampling.grids import LogSNR, TimeGrid
from sdekit.sampling.sampler import PlanSampler
from sdekit.sampling.tape import Form, Tape


@dataclass(frozen=True)
class UniPC(PlanSampler):
    """UniPC-p in data prediction: predictor of order p, corrector of order p + 1.

    Zhao et al. 2023, algorithms 5 to 8.

    One model call a step: the prediction at the predicted state corrects that state and starts the next
    step. The last state is predicted only.

    Args:
        p: predictions the predictor uses, 1 to 3.
        variant: B(h) = h ("bh1") or e^h - 1 ("bh2").
    """

    p: int = 2
    variant: str = "bh2"

    def __post_init__(self) -> None:
        if check_integer("p", self.p, 1) > 3:
            raise ValueError(f"p must be 1 to 3, got {self.p}")
        check_choice("variant", self.variant, ("bh1", "bh2"))

    @property
    def order(self) -> int:  # type: ignore[override]
        """p + 1, of the corrected states."""
        return self.p + 1

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """Never."""
        return False

    @property
    def grid(self) -> TimeGrid:
        """Uniform in log-SNR."""
        return LogSNR()

    def write(self, tape: Tape, process: Process, nodes: Sequence[Node], x: Form) -> Form:
        """Predict, evaluate, correct."""
        past = [(nodes[0].half_log_snr, tape.data(x, nodes[0]))]
        for s, t in pairwise(nodes):
            h, (here, newest) = t.half_log_snr - s.half_log_snr, past[0]
            base = t.sigma / s.sigma * x - t.alpha * expm1(-h) * newest
            ratios = [(place - here) / h for place, _ in past[1:]]
            slopes = [(data - newest) / r for r, (_, data) in zip(ratios, past[1:], strict=True)]
            predicted = base - t.alpha * self._sum(h, ratios, slopes)
            if t is nodes[-1]:
                return tape.node(predicted, t)
            data = tape.data(predicted, t)
            x = base - t.alpha * self._sum(h, [*ratios, 1.0], [*slopes, data - newest])
            x = tape.node(x, t)
            past = [(t.half_log_snr, data), *past[: self.p - 1]]
        return x

    def _sum(self, h: float, ratios: list[float], slopes: list[Form]) -> Form:
        """B(h) sum_m a_m D_m / r_m with the weights of eq. 10: exact on polynomials of that degree."""
        total = Form({})
        if not ratios:
            return total
        b_of_h = -h if self.variant == "bh1" else expm1(-h)
        phi, wanted, fact = expm1(-h) / -h - 1, [], 1.0
        for i in range(1, len(ratios) + 1):
            fact *= i
            wanted.append(phi * fact / b_of_h)
            phi = phi / -h - 1 / (fact * (i + 1))
        if len(ratios) == 1:
            weights = [0.5]  # as the paper has it for two points: the order is the same
        else:
            powers = np.vander(ratios, len(ratios), increasing=True).T
            weights = np.linalg.solve(powers, wanted).tolist()
        for weight, slope in zip(weights, slopes, strict=True):
            total = total + b_of_h * weight * slope
        return total
