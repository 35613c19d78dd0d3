"""SA-Solver: stochastic Adams predictor and corrector, with noise where it is wanted."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import comb, exp, expm1, log, sqrt

from sdekit.errors import check_integer, check_number
from sdekit.processes import Node, Process
from sdekit.sampling.exponential import noise_clock
from sdekit.sampling.grids import LogSNR, TimeGrid
from sdekit.sampling.multistep import Past, exponential_moments, integrated_lagrange, weighted
from sdekit.sampling.sampler import PlanSampler
from sdekit.sampling.tape import Form, Tape

#: Stretches (low, high, tau) of constant tau inside a step, in half_log_snr from its start.
Stretches = list[tuple[float, float, float]]


@dataclass(frozen=True)
class SASolver(PlanSampler):
    """SA-Solver in data prediction: Adams predictor (eq. 15) and corrector (eq. 18).  Xue et al. 2023.

    One model call a step: the prediction at the predicted state corrects that state, with the same noise, and
    starts the next step. The last state is predicted only.

    Args:
        predictor: predictions that the predictor uses, 1 to 4.
        corrector: predictions that the corrector uses, the newest among them, 2 to 4; 0 for none.
        tau: noise of the reverse process, 1 as in the reverse SDE, 0 for none.
        low, high: the range of rho = sigma / alpha that has noise, to infinity if None; a step that crosses
            an end is integrated in parts.
    """

    predictor: int = 3
    corrector: int = 4
    tau: float = 1.0
    low: float = 0.0
    high: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("predictor", 1), ("corrector", 0)):
            value = check_integer(name, getattr(self, name), least)
            if value > 4 or (name == "corrector" and value == 1):
                allowed = "1 to 4" if least else "0 or 2 to 4"
                raise ValueError(f"{name} must be {allowed}, got {value}")
        check_number("tau", self.tau, 0)
        check_number("low", self.low, 0)
        if self.high is not None:
            check_number("high", self.high, self.low)

    @property
    def order(self) -> int:  # type: ignore[override]
        """That of the deterministic scheme; of the law at most 2, since the history carries noise."""
        order = min(self.predictor + 1, self.corrector) if self.corrector else self.predictor
        return min(order, 2) if self.tau else order

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """tau > 0."""
        return self.tau > 0

    @property
    def grid(self) -> TimeGrid:
        """Uniform in log-SNR."""
        return LogSNR()

    def write(self, tape: Tape, process: Process, nodes: Sequence[Node], x: Form) -> Form:
        """Predict, evaluate, correct."""
        past: Past = [(nodes[0], tape.data(x, nodes[0]))]
        for s, t in pairwise(nodes):
            stretches = self._stretches(s, t)
            predicted = t.alpha * adams(past[: self.predictor], s, stretches)
            decay = sum(tau**2 * (b - a) for a, b, tau in stretches)
            form = t.sigma / s.sigma * exp(-decay) * x + predicted
            if decay:
                first, last = (noise_clock(rho, self.tau) for rho in self._noisy(s, t))
                z = tape.normal((first, last))
                form = form + t.sigma * sqrt(-expm1(-2 * decay)) * z
            x = tape.node(form, t)
            if t is nodes[-1]:
                break
            past = [(t, tape.data(x, t)), *past][: max(self.predictor, self.corrector)]
            if self.corrector:
                corrected = t.alpha * adams(past[: self.corrector], s, stretches)
                x = tape.node(x + corrected - predicted, t)
        return x

    def _stretches(self, s: Node, t: Node) -> Stretches:
        """The step cut where tau changes."""
        a, b, h = (log(s.rho / rho) for rho in (*self._noisy(s, t), t.rho))
        cuts = [(0.0, a, 0.0), (a, b, self.tau), (b, h, 0.0)]
        return [(low, high, tau) for low, high, tau in cuts if high > low]

    def _noisy(self, s: Node, t: Node) -> tuple[float, float]:
        """rho where the noise of the step begins and ends; the same twice if it has none."""
        first = s.rho if self.high is None else min(max(self.high, t.rho), s.rho)
        return first, min(max(self.low, t.rho), first)


def adams(past: Past, s: Node, stretches: Stretches) -> Form:
    """The integral over a step from s of the polynomial through `past`, weighted as in the exact solution."""
    moments = piecewise_moments(stretches, len(past))
    places = [node.half_log_snr - s.half_log_snr for node, _ in past]
    return weighted(integrated_lagrange(places, moments), past)


def piecewise_moments(stretches: Stretches, count: int) -> list[float]:
    """int_0^h c(u) exp(-int_u^h c) u^j du for j = 0 .. count - 1, c = 1 + tau^2 constant on stretches."""
    moments = [0.0] * count
    for a, b, tau in stretches:
        decay = exp(-(1 + tau**2) * (b - a))
        inner = exponential_moments(tau, b - a, count)
        for j in range(count):
            moved = sum(comb(j, i) * a ** (j - i) * inner[i] for i in range(j + 1))
            moments[j] = decay * moments[j] + moved
    return moments
