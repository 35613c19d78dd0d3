"""Leapfrog: a two-step rule that can be run backwards exactly."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from sdekit.processes import Node, Process
from sdekit.sampling.grids import LogSNR, TimeGrid
from sdekit.sampling.sampler import PlanSampler
from sdekit.sampling.tape import Form, Tape


@dataclass(frozen=True)
class Leapfrog(PlanSampler):
    """Explicit midpoint rule over two steps, for d(x / sigma) = E[x_0 | x] d(alpha / sigma).

    x_{k+1} / sigma_{k+1} = x_{k-1} / sigma_{k-1} + (w_{k+1} - w_{k-1}) E[x_0 | x_k], w = alpha / sigma; the
    first step is DDIM's. The oldest state enters linearly, so `samplers.invert` recovers the start from the
    last two states to rounding: an exact encoder, as in Wang et al. 2024 (BELM, whose two-step rule differs
    in its weights). Two-step rules carry a parasitic mode; on coarse grids it shows.
    """

    order = 2
    stochastic = False

    @property
    def grid(self) -> TimeGrid:
        """Uniform in log-SNR."""
        return LogSNR()

    def write(self, tape: Tape, process: Process, nodes: Sequence[Node], x: Form) -> Form:
        """From the state before last, with the slope at the last."""
        before, earlier = x, nodes[0]
        for s, t in pairwise(nodes):
            w = 1 / t.rho - 1 / earlier.rho
            new = t.sigma * (before / earlier.sigma + w * tape.data(x, s))
            before, earlier, x = x, s, tape.node(new, t)
        return x
