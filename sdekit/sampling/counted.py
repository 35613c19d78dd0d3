"""A denoiser whose every call goes through an engine, for solvers that call the model themselves."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sdekit.denoisers import Denoiser
from sdekit.elementary import Number
from sdekit.sampling.engine import Engine


class CountedDenoiser(Denoiser):
    """Reads like the engine's denoiser; its calls are counted and conditioned by the engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.process, self.prediction = engine.denoiser.process, engine.denoiser.prediction

    def predict(self, x: Tensor, t: Number, **conditions: Any) -> Tensor:
        """The engine's evaluation."""
        return self._engine.evaluate(float(t), x)


def report(
    engine: Engine,
    counted: CountedDenoiser,
    times: list[float],
    states: Tensor | Sequence[Tensor],
    final: str,
) -> Tensor:
    """The result of a solve, after its nodes are reported: with "data", E[x_0 | x] takes the last one.

    Args:
        engine: of the run.
        counted: its denoiser.
        times: the grid.
        states: at the grid's times if the engine is watched; the last is at the last time.
        final: "data" or another.
    """
    if engine.watched:
        for i, t in enumerate(times[:-1]):
            engine.reached(i, t, states[i])
    x = counted.data(states[-1], times[-1]) if final == "data" else states[-1]
    engine.reached(len(times) - 1, times[-1], x)
    return x.clone()  # a view would keep all states in memory
