"""Restart: part of the flow is run several times, with fresh noise in between."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log, sqrt

from sdekit.errors import check_integer, check_number
from sdekit.processes import Node, Process
from sdekit.sampling.edm import EDMHeun
from sdekit.sampling.grids import TimeGrid
from sdekit.sampling.sampler import PlanSampler
from sdekit.sampling.tape import Form, Tape


@dataclass(frozen=True)
class Restart(PlanSampler):
    """The flow down to rho = low, then `repeats` times up to rho = high by noise and down again.

    Xu et al. 2023, algorithm 1, with rho = sigma / alpha. Noise of variance high^2 - low^2 contracts the
    error that has built up before. The way down uses the nodes of the grid between `high` and `low`, which
    become nodes themselves: with a fixed number of steps of its own the error of that way would stay as the
    grid is refined. An interval that reaches beyond the grid is cut there; outside of it there is no restart.

    N steps cost one more if `low` is not a node already, and `repeats` times those between `high` and `low`.

    Args:
        low, high: the interval of rho.
        repeats: restarts.
        solver: of the flow; its history, if it has one, begins anew after a restart.
    """

    low: float = 0.1
    high: float = 1.0
    repeats: int = 2
    solver: PlanSampler = field(default_factory=EDMHeun)

    nfe_per_step = None

    def __post_init__(self) -> None:
        check_number("low", self.low, 0, open_low=True)
        check_number("high", self.high, self.low, open_low=True)
        check_integer("repeats", self.repeats, 1)
        if not isinstance(self.solver, PlanSampler):
            raise TypeError(f"solver must be a PlanSampler, got {type(self.solver).__name__}")

    @property
    def order(self) -> int:  # type: ignore[override]
        """The solver's."""
        return self.solver.order

    @property
    def biased(self) -> bool:  # type: ignore[override]
        """As the solver."""
        return self.solver.biased

    @property
    def grid(self) -> TimeGrid:
        """The solver's."""
        return self.solver.grid

    def write(self, tape: Tape, process: Process, nodes: Sequence[Node], x: Form) -> Form:
        """Down to `low`, the restarts, and on to the end."""
        high, low = (_node_at(process, nodes, rho) for rho in (self.high, self.low))
        if not high.rho > low.rho:
            return self.solver.write(tape, process, nodes, x)
        above = [node for node in nodes if node.rho > low.rho]
        below = [node for node in nodes if node.rho < low.rho]
        x = self.solver.write(tape, process, [*above, low], x)
        inside = [high, *(node for node in above if node.rho < high.rho), low]
        noise = sqrt((high.rho - low.rho) * (high.rho + low.rho))
        for _ in range(self.repeats):
            y = x / low.alpha + noise * tape.normal()
            x = self.solver.write(tape, process, inside, tape.node(high.alpha * y, high))
        return self.solver.write(tape, process, [low, *below], x) if below else x


def _node_at(process: Process, nodes: Sequence[Node], rho: float) -> Node:
    """The node at this rho, none beyond the ends of the grid, that of the grid where there is one."""
    rho = min(max(rho, nodes[-1].rho), nodes[0].rho)
    nearest = min(nodes, key=lambda node: abs(log(node.rho / rho)))
    if abs(log(nearest.rho / rho)) < 1e-9:
        return nearest
    return process.node_at_log_snr(-2 * log(rho))
