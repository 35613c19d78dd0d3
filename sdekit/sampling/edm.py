"""The sampler of Karras et al. 2022: Heun in sigma, with optional churn."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log, sqrt

from sdekit.errors import check_number
from sdekit.processes import Node, Process
from sdekit.sampling.grids import Karras, TimeGrid
from sdekit.sampling.sampler import PlanSampler
from sdekit.sampling.tape import Form, Tape


@dataclass(frozen=True)
class EDMHeun(PlanSampler):
    """Algorithm 2 of Karras et al. 2022, in y = x / alpha and rho = sigma / alpha, for any process.

    Args:
        churn: S_churn; with 0 no normal is drawn. A step first raises rho by the factor 1 + min(churn / N,
            sqrt(2) - 1), never past its value at T.
        low, high: S_tmin and S_tmax, the range of rho that is churned; no upper end if None.
        noise: S_noise, the standard deviation of the churn's noise; other than 1 it biases the law at any N.
    """

    churn: float = 0.0
    low: float = 0.0
    high: float | None = None
    noise: float = 1.0

    order = 2
    nfe_per_step = 2

    def __post_init__(self) -> None:
        check_number("churn", self.churn, 0)
        check_number("low", self.low, 0)
        if self.high is not None:
            check_number("high", self.high, self.low)
        check_number("noise", self.noise, 0)

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """churn > 0."""
        return self.churn > 0

    @property
    def biased(self) -> bool:  # type: ignore[override]
        """With churn whose noise is not 1."""
        return self.churn > 0 and self.noise != 1

    @property
    def grid(self) -> TimeGrid:
        """The paper's, with power 7."""
        return Karras()

    def write(self, tape: Tape, process: Process, nodes: Sequence[Node], x: Form) -> Form:
        """Churn, an Euler step, and the trapezoidal rule."""
        factor = 1 + min(self.churn / (len(nodes) - 1), sqrt(2) - 1)
        for s, t in pairwise(nodes):
            y, hat = x / s.alpha, self._churned(process, s, factor)
            if hat is not s:
                y = y + self.noise * sqrt(hat.rho**2 - s.rho**2) * tape.normal()
                x = tape.node(hat.alpha * y, hat)
                y = x / hat.alpha
            slope = (y - tape.data(x, hat)) / hat.rho
            guess = y + (t.rho - hat.rho) * slope
            end = (guess - tape.data(t.alpha * guess, t)) / t.rho
            x = tape.node(t.alpha * (y + (t.rho - hat.rho) * 0.5 * (slope + end)), t)
        return x

    def _churned(self, process: Process, s: Node, factor: float) -> Node:
        """The node with rho raised by `factor`, or s itself where nothing is churned."""
        top = process.node(process.t_max).rho
        rho = min(s.rho * factor, top)
        outside = s.rho < self.low or (self.high is not None and s.rho > self.high)
        if outside or rho <= s.rho * (1 + 1e-12):
            return s
        return process.node_at_log_snr(-2 * log(rho))
