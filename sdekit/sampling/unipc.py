"""UniPC: a multistep predictor, and a corrector that reuses the predictor's evaluation at the next step."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import expm1

import numpy as np

from sdekit.errors import check_choice, check_flag, check_integer
from sdekit.processes import Node, Process
from sdekit.sampling.exponential import exponential_step
from sdekit.sampling.grids import Beta, TimeGrid
from sdekit.sampling.multistep import STARTS
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
        start: "ramp" uses as many predictions as there are, which from the middle of a path holds p = 3 at
            order 3; "single-step" takes the first p - 2 steps by `ExponentialRK("3s")`, two calls more each.
        lower_order_final: whether the last steps use no more predictions than steps are left.
    """

    p: int = 2
    variant: str = "bh2"
    start: str = "ramp"
    lower_order_final: bool = False

    stochastic = False

    def __post_init__(self) -> None:
        if check_integer("p", self.p, 1) > 3:
            raise ValueError(f"p must be 1 to 3, got {self.p}")
        check_choice("variant", self.variant, ("bh1", "bh2"))
        check_choice("start", self.start, STARTS)
        check_flag("lower_order_final", self.lower_order_final)

    @property
    def order(self) -> int:  # type: ignore[override]
        """p + 1, of the corrected states."""
        return self.p + 1

    @property
    def grid(self) -> TimeGrid:
        """Beta(8.0)."""
        return Beta(8.0)

    def write(self, tape: Tape, process: Process, nodes: Sequence[Node], x: Form) -> Form:
        """Predict, evaluate, correct."""
        alone = max(0, self.p - 2) if self.start == "single-step" else 0
        past = [(nodes[0].half_log_snr, tape.data(x, nodes[0]))]
        for i, (s, t) in enumerate(pairwise(nodes)):
            if i < alone:
                x = tape.node(exponential_step(tape, process, x, s, t, "3s", "data"), t)
                data = None if t is nodes[-1] else tape.data(x, t)
            else:
                left = len(nodes) - 1 - i if self.lower_order_final else self.p
                x, data = self._step(tape, x, s, t, past[:left], last=t is nodes[-1])
            if data is not None:
                past = [(t.half_log_snr, data), *past[: self.p - 1]]
        return x

    def _step(
        self, tape: Tape, x: Form, s: Node, t: Node, past: list[tuple[float, Form]], *, last: bool
    ) -> tuple[Form, Form | None]:
        """The state at t, and the prediction there: the last state is not corrected and has none."""
        h, (here, newest) = t.half_log_snr - s.half_log_snr, past[0]
        base = t.sigma / s.sigma * x - t.alpha * expm1(-h) * newest
        ratios = [(place - here) / h for place, _ in past[1:]]
        slopes = [(data - newest) / r for r, (_, data) in zip(ratios, past[1:], strict=True)]
        predicted = base - t.alpha * self._sum(h, ratios, slopes)
        if last:
            return tape.node(predicted, t), None
        data = tape.data(predicted, t)
        corrected = base - t.alpha * self._sum(h, [*ratios, 1.0], [*slopes, data - newest])
        return tape.node(corrected, t), data

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
