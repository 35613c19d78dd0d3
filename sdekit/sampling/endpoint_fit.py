"""Plans fitted to the endpoints of a fine solve: what is varied, what is minimised, and how.

The endpoint errors of a plan are smooth functions of its times and weights, with exact derivatives
(`unrolled.py`): least squares by Levenberg-Marquardt, and BFGS where residuals stay large.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from sdekit.denoisers import Denoiser
from sdekit.sampling.sampler import PlanSampler
from sdekit.sampling.unrolled import Array, Unrolled, endpoint, endpoint_jacobian, unrolled

#: rho(z) and rho'(z) of z = (error / scale)^2.
LOSSES: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "linear": (lambda z: z, np.ones_like),
    "soft_l1": (lambda z: 2 * (np.sqrt(1 + z) - 1), lambda z: 1 / np.sqrt(1 + z)),
    "cauchy": (np.log1p, lambda z: 1 / (1 + z)),
}


class Family:
    """The plans of one sampler on all grids with N steps between two ends, by a vector of parameters.

    The first N - 1 are the logarithms of the gaps between times over the last gap. The others, less 1, are
    added to the table, each with the opposite on the row's newest prediction: sums stay. (From 1, since the
    first trust region of a search is as large as its first parameters.)
    """

    def __init__(
        self, sampler: PlanSampler, denoiser: Denoiser, ends: tuple[float, float], steps: int
    ) -> None:
        self.sampler, self.process, self.ends, self.steps = sampler, denoiser.process, ends, steps
        self.rows = self.columns = np.zeros(0, dtype=int)

    def with_weights(self, like: Unrolled) -> "Family":
        """The same with free weights on all predictions but the newest."""
        new = copy.copy(self)
        below = np.tril_indices(len(like.table), -1)
        new.rows, new.columns = (index[below[1] > 0] for index in below)
        return new

    def parameters(self, times: Sequence[float]) -> Array:
        """Of the sampler's own plan on a grid."""
        gaps = -np.diff(times)
        return self.extended(np.log(gaps[:-1] / gaps[-1]))

    def extended(self, gaps: Array) -> Array:
        """The parameters with these gaps and the sampler's own weights."""
        return np.append(gaps, np.ones(len(self.rows)))

    def times(self, parameters: Array) -> list[float]:
        """The grid; summed from the end, where gaps are small."""
        gaps = np.append(parameters[: self.steps - 1], 0.0)
        gaps = np.exp(gaps - gaps.max())
        gaps = gaps / gaps.sum() + 1e-9  # times stay apart, whatever an optimiser tries
        start, end = self.ends
        inner = end + (start - end) * np.cumsum(gaps[::-1])[-2::-1] / gaps.sum()
        return [start, *inner.tolist(), end]

    def at(self, parameters: Array) -> Unrolled:
        """The plan with these parameters."""
        form = unrolled(self.sampler.plan(self.process, self.times(parameters)))
        free = parameters[self.steps - 1 :] - 1
        np.add.at(form.table, (self.rows, self.columns), free)
        np.subtract.at(form.table, (self.rows, self.rows), free)
        return form

    def slopes(self, parameters: Array) -> tuple[Array, Array]:
        """Derivatives of its times and table: central differences in the gaps, the rest is linear."""
        size, times, tables = len(self.at(parameters).times), [], []
        for i in range(self.steps - 1):
            step = np.zeros_like(parameters)
            step[i] = 1e-5
            more, less = self.at(parameters + step), self.at(parameters - step)
            times.append((more.times - less.times) / 2e-5)
            tables.append((more.table - less.table) / 2e-5)
        for k, j in zip(self.rows, self.columns, strict=True):
            unit = np.zeros((size, size))
            unit[k, j], unit[k, k] = 1.0, -1.0
            times.append(np.zeros(size))
            tables.append(unit)
        return np.reshape(times, (-1, size)), np.reshape(tables, (-1, size, size))


@dataclass
class Training:
    """The trajectories that plans are fitted to, and what the fit has cost.

    Attributes:
        model: in float64.
        starts: starting states (n, *event).
        references: where they end.
        loss: in `LOSSES`.
        deadline: reading of `time.perf_counter` at which to stop, None for none.
        bar: of tqdm, None for none.
        evaluations: of all trajectories, so far.
    """

    model: Denoiser
    starts: Tensor
    references: Tensor
    loss: str
    deadline: float | None
    bar: Any = None
    evaluations: int = 0

    def errors(self, form: Unrolled) -> Array:
        """Endpoint errors of all coordinates of all trajectories, flat."""
        self.evaluations += 1
        if self.bar is not None:
            self.bar.update()
        found = endpoint(self.model, form, self.starts) - self.references
        return found.flatten().cpu().numpy()


class OutOfTime(Exception):
    """Raised inside an optimiser when the time is up."""


class Objective:
    """The endpoint errors of a family as both optimisers want them; keeps the best."""

    def __init__(self, training: Training, family: Family, scale: float) -> None:
        self.training, self.family, self.scale = training, family, scale
        self.best: tuple[float, Array] = (math.inf, np.zeros(0))

    def residuals(self, parameters: Array) -> Array:
        """The errors at these parameters."""
        deadline = self.training.deadline
        if deadline is not None and time.perf_counter() > deadline and self.best[1].size:
            raise OutOfTime
        errors = self.training.errors(self.family.at(parameters))
        if (cost := self.cost(errors)) < self.best[0]:
            self.best = (cost, parameters.copy())
        return errors

    def cost(self, errors: Array) -> float:
        """The loss; infinite where the endpoints are not finite."""
        if not np.isfinite(errors).all():
            return math.inf
        return float(LOSSES[self.training.loss][0](np.square(errors / self.scale)).sum())

    def jacobian(self, parameters: Array) -> Array:
        """Derivatives of the residuals, one column a parameter."""
        form, slopes = self.family.at(parameters), self.family.slopes(parameters)
        found = endpoint_jacobian(self.training.model, form, *slopes, self.training.starts)
        return found.flatten(1).cpu().numpy().T

    def log_cost(self, parameters: Array) -> tuple[float, Array]:
        """Logarithm of the loss, and its gradient."""
        errors = self.residuals(parameters)
        cost, slope = self.cost(errors), LOSSES[self.training.loss][1]
        weighted = 2 * errors / self.scale**2 * slope(np.square(errors / self.scale))
        return math.log(cost), self.jacobian(parameters).T @ weighted / cost

    def least_squares(self, parameters: Array, evaluations: int) -> None:
        """Levenberg-Marquardt in a trust region."""
        from scipy.optimize import least_squares

        sizes = np.linalg.norm(self.jacobian(parameters), axis=0)
        least_squares(
            self.residuals,
            parameters,
            self.jacobian,  # type: ignore[arg-type]
            loss=self.training.loss,
            f_scale=self.scale,
            # Not without bound where a parameter does nothing: at a best grid, all the times.
            x_scale=1 / np.maximum(sizes, 0.1 * sizes.max()),
            max_nfev=evaluations,
        )

    def descend(self, evaluations: int) -> None:
        """BFGS from the best so far and its Gauss-Newton matrix, until five steps bring nothing."""
        from scipy.optimize import minimize

        recent = [math.inf] * 5

        def stalled(intermediate_result: Any) -> None:
            recent.append(intermediate_result.fun)
            if recent.pop(0) - intermediate_result.fun < 1e-6:
                raise StopIteration

        cost, start = self.best
        curvature = self.jacobian(start)
        curvature = 2 * curvature.T @ curvature / (cost * self.scale**2)
        values, axes = np.linalg.eigh(curvature)
        inverse = axes / (values + 1e-3 * values[-1]) @ axes.T
        with np.errstate(all="ignore"):
            minimize(
                self.log_cost,
                start,
                jac=True,
                method="BFGS",
                options={"maxiter": evaluations, "hess_inv0": 0.5 * (inverse + inverse.T)},
                callback=stalled,
            )
