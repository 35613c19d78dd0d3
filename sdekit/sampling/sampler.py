"""What a sampler is: hyper-parameters that make a program, usually by writing a plan.

To add one: subclass `PlanSampler`, write the paper's formula in `write`, state the facts (`order`,
`stochastic`, `nfe_per_step`), and add an instance to `sdekit.samplers.ALL`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import is_dataclass
from functools import lru_cache

from torch import Tensor

from sdekit.denoisers import Denoiser
from sdekit.errors import check_choice
from sdekit.processes import Node, Process
from sdekit.sampling.engine import CompiledPlan, Program
from sdekit.sampling.grids import Power, TimeGrid, check_times
from sdekit.sampling.plan import Plan
from sdekit.sampling.tape import Form, Tape

_UNIFORM = Power(1.0)
#: What `sample(final=)` may be.
FINAL = ("none", "mean", "data")


class Sampler(ABC):
    """A frozen dataclass of hyper-parameters; its repr is its name everywhere."""

    #: Order of convergence: of the endpoint for a deterministic sampler, of the law for a stochastic one.
    order: int = 1
    #: Whether it draws normals after the start.
    stochastic: bool = True
    #: Model calls per step, a costlier start apart; None where the solver decides.
    nfe_per_step: int | None = 1
    #: Whether its law stays off by something that more steps do not remove.
    biased: bool = False
    #: Whether a sample's result depends on its batch mates.
    coupled: bool = False

    @property
    def law_order(self) -> int:
        """The order to hold it to: `order`, or less where the noise of its history caps that of the law."""
        return self.order

    @property
    def grid(self) -> TimeGrid:
        """The grid it uses unless told otherwise: uniform in t."""
        return _UNIFORM

    @abstractmethod
    def program(self, denoiser: Denoiser, times: list[float], final: str) -> Program:
        """What to run on a chunk of samples, for a checked grid."""


class PlanSampler(Sampler):
    """A sampler that is affine in what it has seen: write the formula, the rest follows."""

    @abstractmethod
    def write(self, tape: Tape, process: Process, nodes: Sequence[Node], x: Form) -> Form:
        """Write the steps between nodes with finite log-SNR; return the state at the last."""

    def plan(
        self, process: Process, times: Tensor | Sequence[float], *, final: str = "none"
    ) -> Plan:
        """The table of this sampler on a grid.

        Args:
            process: forward process.
            times: N + 1 strictly decreasing times in [0, T]. Where they begin at alpha = 0, the first row is
                a DDIM step; where they end at sigma = 0, the last row is x = E[x_0 | x]; `write` sees
                neither.
            final: "none", "mean" (the last row adds no noise) or "data" (ends with E[x_0 | x], one more
                call).
        """
        check_choice("final", final, FINAL)
        if not isinstance(process, Process):
            raise TypeError(f"process must be a Process such as sk.VP(), got {process!r}")
        nodes = [process.node(t, i) for i, t in enumerate(check_times(times, process))]
        tape = Tape(process)
        x = tape.start(nodes[0])
        inner = nodes[:-1] if nodes[-1].sigma == 0 else nodes
        if inner[0].alpha == 0 and len(inner) > 1:
            s, t = inner[:2]
            x = tape.node(t.sigma / s.sigma * x + t.alpha * tape.data(x, s), t)
            inner = inner[1:]
        if len(inner) > 1:
            x = self.write(tape, process, inner, x)
            if not isinstance(x, Form):
                name = type(self).__name__
                raise TypeError(f"{name}.write must return the last state, a Form, got {x!r}")
        if nodes[-1].sigma == 0:
            tape.node(tape.data(x, inner[-1]), nodes[-1])
        elif final == "data":
            tape.node(tape.data(x, nodes[-1]), nodes[-1])
        return tape.plan(repr(self), drop_last_noise=final == "mean")

    def program(self, denoiser: Denoiser, times: list[float], final: str) -> Program:
        """The plan on the model's own output, compiled."""
        return _compiled(self, denoiser.process, tuple(times), final, denoiser.prediction)


def _compiled(
    sampler: PlanSampler, process: Process, times: tuple[float, ...], final: str, prediction: str
) -> CompiledPlan:
    """The compiled plan; kept where nothing can change, since writing it outweighs a small run."""
    make = _kept if frozen(sampler, process) else _kept.__wrapped__
    return make(sampler, process, times, final, prediction)


def frozen(*parts: object) -> bool:
    """Whether these are frozen dataclasses of hashable fields, so that what follows from them may be kept."""
    if not all(
        is_dataclass(part) and part.__dataclass_params__.frozen  # type: ignore[attr-defined]
        for part in parts
    ):
        return False
    try:
        hash(parts)
    except TypeError:
        return False
    return True


@lru_cache(maxsize=32)
def _kept(
    sampler: PlanSampler, process: Process, times: tuple[float, ...], final: str, prediction: str
) -> CompiledPlan:
    return CompiledPlan(sampler.plan(process, times, final=final), prediction)
