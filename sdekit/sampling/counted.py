"""A denoiser whose every call goes through an engine, for solvers that call the model themselves."""

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
