"""DPM-Solver++(2S) and its ancestral form: two model calls inside a step, no history."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, expm1, log, sqrt

from sdekit.errors import check_number
from sdekit.processes import Node, Process
from sdekit.sampling.grids import LogSNR, TimeGrid
from sdekit.sampling.sampler import PlanSampler
from sdekit.sampling.tape import Form, Tape


@dataclass(frozen=True)
class DPMSolverPP2SAncestral(PlanSampler):
    """DPM-Solver++(2S), past the end of the step and back up by fresh noise, as in k-diffusion.

    The flow is followed in y = x / alpha to rho_down = sqrt(rho_t^2 - rho_up^2) by the midpoint rule in
    half_log_snr (Lu et al. 2022b, algorithm 1, r = 1/2), then noise of variance rho_up^2 is added, with
    rho_up^2 = eta^2 rho_t^2 (1 - rho_t^2 / rho_s^2). Flow and noise keep the marginals each, so the order is
    that of the flow. eta = 0 is DPM-Solver++(2S) itself.
    """

    eta: float = 1.0

    order = 2
    nfe_per_step = 2

    def __post_init__(self) -> None:
        check_number("eta", self.eta, 0, 1)

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """eta > 0."""
        return self.eta > 0

    @property
    def grid(self) -> TimeGrid:
        """Uniform in log-SNR."""
        return LogSNR()

    def write(self, tape: Tape, process: Process, nodes: Sequence[Node], x: Form) -> Form:
        """Half a step, the whole step with the prediction there, and the noise."""
        for s, t in pairwise(nodes):
            h = t.half_log_snr - s.half_log_snr
            up = self.eta * t.rho * sqrt(-expm1(-2 * h))
            # rho_t^2 - rho_up^2, where a long step leaves nothing of the difference
            down = t.rho * sqrt((1 - self.eta) * (1 + self.eta) + self.eta**2 * exp(-2 * h))
            h, y = log(s.rho / down), x / s.alpha
            # With eta = 1 the middle of the step is t itself.
            u = process.node_at_log_snr(min(2 * s.half_log_snr + h, 2 * t.half_log_snr))
            half = u.rho / s.rho * y - expm1(-h / 2) * tape.data(x, s)
            y = down / s.rho * y - expm1(-h) * tape.data(u.alpha * half, u)
            if self.eta:
                y = y + up * tape.normal((s.rho**-2, t.rho**-2))
            x = tape.node(t.alpha * y, t)
        return x
