"""Ancestral sampling with the variance that the model itself gives, coordinate by coordinate."""

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from sdekit.denoisers import Denoiser, conversion
from sdekit.errors import check_choice
from sdekit.learned_variance import StepModel
from sdekit.sampling.engine import Engine, Program
from sdekit.sampling.sampler import FINAL, Sampler


@dataclass(frozen=True)
class LearnedAncestral(Sampler):
    """Steps x_s ~ N(mean, variance), both the model's own.  Nichol & Dhariwal 2021, section 3.1.

    For models that know the spread of x_0: `LearnedVariance`, and `ExactDenoiser`, with which it is the
    chain of the optimal variance of each state (Bao et al. 2022). That chain is exact on Gaussian data whose
    coordinates are independent; on a mixture it is of order 2 where the posterior covariance is diagonal, as
    in 1-D, and of order 1 elsewhere. A variance that depends on the state is not affine, so this is not a
    plan. A grid that ends at sigma = 0 ends with E[x_0 | x], as plans do.
    """

    def program(self, denoiser: Denoiser, times: list[float], final: str) -> Program:
        """One draw an interval."""
        check_choice("final", final, FINAL)
        if not isinstance(denoiser, StepModel):
            raise TypeError(
                "LearnedAncestral needs a model with reverse(x, t, s), the mean and variance of a step, such "
                f"as LearnedVariance; {type(denoiser).__name__} has none: use Ancestral"
            )
        steps, ends_at_data = len(times) - 1, denoiser.process.sigma(times[-1]) == 0

        def program(engine: Engine, x: Tensor) -> Tensor:
            engine.reached(0, times[0], x)
            for k, (t, s) in enumerate(pairwise(times), 1):
                if k == steps and ends_at_data:
                    x = _data(engine, t, x)
                else:
                    mean, variance = engine.reverse(t, s, x)
                    silent = final == "mean" and k == steps
                    x = mean if silent else mean + variance.sqrt() * engine.normal(k - 1)
                engine.reached(k, s, x)
            return _data(engine, times[-1], x) if final == "data" and not ends_at_data else x

        return program


def _data(engine: Engine, t: float, x: Tensor) -> Tensor:
    """E[x_0 | x_t = x]."""
    a, b = conversion(engine.denoiser.process, engine.denoiser.prediction, "data", t)
    return a * x + b * engine.evaluate(t, x)
