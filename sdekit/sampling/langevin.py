"""Annealed Langevin dynamics: no reverse process, only a corrector at every noise level."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt

from sdekit.errors import check_integer, check_number
from sdekit.processes import Node, Process
from sdekit.sampling.grids import LogSNR, TimeGrid
from sdekit.sampling.sampler import PlanSampler
from sdekit.sampling.tape import Form, Tape


@dataclass(frozen=True)
class AnnealedLangevin(PlanSampler):
    """Langevin steps x + e score + sqrt(2 e) z with e = step sigma^2 at each time, x / alpha kept in between.

    Song & Ermon 2019, algorithm 1 (their step is 2 e), for any process. Two errors, on data of variance v:

    - The stationary variance at a level is V / (1 - q / 2) and not V, with V = alpha^2 v + sigma^2 and
      q = step sigma^2 / V: a bias that neither more levels nor more moves remove, small where sigma^2 << V.
    - Levels are left before the law has settled. Once rho^2 is below about v h / (moves step), where h is
      the spacing of log rho, it no longer follows, and that much variance stays. This falls as 1 / N.

    Args:
        step: e / sigma^2, in (0, 1].
        moves: Langevin steps at each time.
    """

    step: float = 0.1
    moves: int = 10

    biased = True

    def __post_init__(self) -> None:
        check_number("step", self.step, 0, 1, open_low=True)
        check_integer("moves", self.moves, 1)

    @property
    def nfe_per_step(self) -> int | None:  # type: ignore[override]
        """As many as moves."""
        return self.moves

    @property
    def grid(self) -> TimeGrid:
        """Uniform in log-SNR: noise levels in geometric progression where alpha = 1."""
        return LogSNR()

    def write(self, tape: Tape, process: Process, nodes: Sequence[Node], x: Form) -> Form:
        """To the next level at the same x / alpha, then the moves."""
        for s, t in pairwise(nodes):
            e = self.step * t.sigma**2
            x = t.alpha / s.alpha * x
            for _ in range(self.moves):
                x = tape.node(x + e * tape.score(x, t) + sqrt(2 * e) * tape.normal(), t)
        return x
