"""Grids and plans found by least squares: the endpoints of N steps against those of a fine solve.

The model is run along a few hundred trajectories. Their endpoint errors are smooth functions of the grid
times and of the plan's weights, with exact derivatives (`unrolled.py`), so Levenberg-Marquardt finds in
seconds what Sabour et al. 2024 ("Align your steps") and Shaul et al. 2024 ("Bespoke non-stationary
solvers") look for by stochastic gradients. What it gained is measured on trajectories it has not seen.
"""

import copy
import math
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sdekit import metrics
from sdekit.data.mixtures import ExactDenoiser, GaussianMixture
from sdekit.denoisers import Denoiser
from sdekit.errors import NumericsError, check_choice, check_integer, check_number, check_seed
from sdekit.processes import Process
from sdekit.sampling.computed_plan import ComputedPlan
from sdekit.sampling.front_door import sample
from sdekit.sampling.grids import GRIDS, Tabulated
from sdekit.sampling.multistep import ExponentialAB
from sdekit.sampling.sampler import PlanSampler, Sampler
from sdekit.sampling.unrolled import (
    Array,
    Unrolled,
    endpoint,
    endpoint_jacobian,
    unrolled,
)

#: rho(z) and rho'(z) of z = (error / scale)^2.
LOSSES: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "linear": (lambda z: z, np.ones_like),
    "soft_l1": (lambda z: 2 * (np.sqrt(1 + z) - 1), lambda z: 1 / np.sqrt(1 + z)),
    "cauchy": (np.log1p, lambda z: 1 / (1 + z)),
}


@dataclass(frozen=True)
class Search:
    """How a grid or a plan is looked for.

    Args:
        loss: "linear" is least squares. Where data have several modes a few trajectories that end in another
            one outweigh all others: "soft_l1" and, more strongly, "cauchy" bound what one of them counts.
        trajectories: optimised over.
        held_out: others, on which the result is measured.
        reference_steps: of the fourth-order solve that all are held against.
        iterations: evaluations at most of each optimiser over times; four times as many over weights.
        seconds: when to stop with the best so far (a run that is stopped is not reproducible).
        seed: of the starting states.
    """

    loss: str = "soft_l1"
    trajectories: int = 512
    held_out: int = 1024
    reference_steps: int = 500
    iterations: int = 24
    seconds: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("loss", self.loss, tuple(LOSSES))
        for name in ("trajectories", "held_out", "iterations"):
            check_integer(name, getattr(self, name), 2)
        check_integer("reference_steps", self.reference_steps, 20)
        if self.seconds is not None:
            check_number("seconds", self.seconds, 0, open_low=True)
        check_seed(check_integer("seed", self.seed, 0))


@dataclass(frozen=True)
class EndpointError:
    """|x_N - reference| over a set of trajectories."""

    median: float
    rms: float

    @classmethod
    def of(cls, x: Tensor, reference: Tensor) -> "EndpointError":
        """From states (n, *event)."""
        lengths = (x - reference).flatten(1).norm(dim=1)
        return cls(lengths.median().item(), lengths.square().mean().sqrt().item())


@dataclass(frozen=True, repr=False)
class Optimised:
    """A grid, the sampler to run on it, and what was gained over the best grid that has a name.

    `sample(model, shape, sampler=found.sampler, grid=found.grid)` uses it, with `t_end` where that was given.

    Attributes:
        sampler: the one given, or the `ComputedPlan`.
        grid: the times.
        start: "sampler on grid" that it was held against: the named grid that was best in training.
        training: errors before and after, on the trajectories optimised over.
        held_out: errors before and after, on others.
        reference_error: RMS change of the reference when its steps are halved; its own error is smaller.
        distances: by name, the distance of the held-out endpoints from the exact law before and after, and of
            the references; empty where no law was given.
        evaluations: of all training trajectories.
        seconds: that it took.
    """

    sampler: Sampler
    grid: Tabulated
    start: str
    training: tuple[EndpointError, EndpointError]
    held_out: tuple[EndpointError, EndpointError]
    reference_error: float
    distances: dict[str, tuple[float, float, float]] = field(hash=False)
    evaluations: int
    seconds: float

    @property
    def steps(self) -> int:
        """Intervals of the grid."""
        return len(self.grid.nodes) - 1

    @property
    def gain(self) -> float:
        """Held-out median error before over after."""
        return _quotient(self.held_out[0].median, self.held_out[1].median)

    @property
    def overfit(self) -> float:
        """Held-out RMS error over that in training: near 1 unless single trajectories were fitted."""
        return _quotient(self.held_out[1].rms, self.training[1].rms)

    def doubts(self) -> list[str]:
        """What speaks against using it; `optimise_grid` and `optimise_plan` warn of them."""
        (before, after), found = self.held_out, []
        if after.median >= before.median:
            found.append(
                f"nothing gained: the held-out median error went from {before.median:.3g} to "
                f"{after.median:.3g}; more trajectories may help"
            )
        if self.reference_error > 0.1 * after.rms:
            found.append(
                f"the reference changes by {self.reference_error:.2g} when its steps are halved, not "
                f"small beside the error {after.rms:.2g}: raise Search.reference_steps"
            )
        return found

    def __repr__(self) -> str:
        return f"Optimised({self.sampler!r}, {self.steps} steps, gain {self.gain:.3g})"

    def __str__(self) -> str:
        lines = [
            f"{self.sampler!r}, {self.steps} steps",
            f"{'':<22}{'before':>12}{'after':>12}",
        ]
        for name, pair in (("training", self.training), ("held out", self.held_out)):
            for kind in ("median", "rms"):
                before, after = (getattr(error, kind) for error in pair)
                lines.append(f"{name + ' ' + kind:<22}{before:>12.3e}{after:>12.3e}")
        for name, (before, after, fine) in self.distances.items():
            lines.append(f"{name:<22}{before:>12.3e}{after:>12.3e}   fine solve {fine:.3e}")
        lines.append(
            f"before is {self.start}; {self.evaluations} evaluations, {self.seconds:.1f} s; "
            f"held out / training {self.overfit:.3g}"
        )
        return "\n".join(lines)


def optimise_grid(
    denoiser: Denoiser,
    sampler: PlanSampler,
    steps: int,
    *,
    event: Sequence[int] | None = None,
    t_end: float | None = None,
    truth: GaussianMixture | None = None,
    search: Search | None = None,
    progress: bool = False,
) -> Optimised:
    """The times at which a deterministic sampler errs least at its end point.

    The two best of the named grids are improved by Levenberg-Marquardt, the better one of them to the end and
    then by BFGS, which does not mind large residuals. Everything runs in float64, on a copy of a model that
    has parameters.

    Args:
        denoiser: exact or trained; differentiable by forward mode.
        sampler: a deterministic plan sampler.
        steps: intervals N.
        event: shape of an event; (d,) of the mixture if not given, for an exact denoiser.
        t_end: where to stop, 1e-3 T if not given; the start is t_max.
        truth: law of the data, for `Optimised.distances`; an exact denoiser's own if not given.
        search: how to look.
        progress: show a bar.

    Raises:
        TypeError, ValueError: an argument, before the model is called.
        NumericsError: no named grid gave finite endpoints.

    Warns:
        UserWarning: nothing was gained on held-out trajectories, or the reference is too coarse.
    """
    task = _Task.checked(denoiser, sampler, steps, event, t_end, truth, search, weights=False)
    return task.run(weights=False, progress=progress)


def optimise_plan(
    denoiser: Denoiser,
    sampler: PlanSampler,
    steps: int,
    *,
    event: Sequence[int] | None = None,
    t_end: float | None = None,
    truth: GaussianMixture | None = None,
    search: Search | None = None,
    progress: bool = False,
) -> Optimised:
    """The times and weights that err least at the end point: a `ComputedPlan` as cheap as the sampler.

    From the sampler's plan on its best grid, times and weights move together. Each row keeps the two sums
    that make it exact on constant predictions, so k - 1 of its k weights are free: 45 numbers and 9 times for
    ten calls. More numbers need more trajectories: see `Optimised.overfit`.

    So the sampler's own rows must be exact where E[x_0 | x] is constant. Those of `LogSNRRungeKutta` are not,
    nor those in prediction "v", nor those of `VelocityAB` unless alpha and sigma are polynomials in t.

    Arguments and warnings are those of `optimise_grid`, and errors, but for a ValueError more: a sampler
    whose rows are not exact on constant predictions.
    """
    task = _Task.checked(denoiser, sampler, steps, event, t_end, truth, search, weights=True)
    return task.run(weights=True, progress=progress)


# ------------------------------------------------------------------------------------ the plans


class _Family:
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

    def with_weights(self, like: Unrolled) -> "_Family":
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


# ----------------------------------------------------------------------------- the optimisation


class _OutOfTime(Exception):
    """Raised inside an optimiser when the time is up."""


class _Objective:
    """Endpoint errors over the training trajectories, as both optimisers want them; keeps the best."""

    def __init__(self, task: "_Task", family: _Family, scale: float, bar: Any) -> None:
        self.task, self.family, self.scale = task, family, scale
        self.best: tuple[float, Array] = (math.inf, np.zeros(0))
        self._bar = bar

    def residuals(self, parameters: Array) -> Array:
        """Errors of all coordinates of all trajectories, flat."""
        task = self.task
        if task.deadline is not None and time.perf_counter() > task.deadline and self.best[1].size:
            raise _OutOfTime
        task.evaluations += 1
        if self._bar is not None:
            self._bar.update()
        found = endpoint(task.model, self.family.at(parameters), task.x[0]) - task.y[0]
        errors = found.flatten().cpu().numpy()
        if (cost := self.cost(errors)) < self.best[0]:
            self.best = (cost, parameters.copy())
        return errors

    def cost(self, errors: Array) -> float:
        """The loss; infinite where the endpoints are not finite."""
        if not np.isfinite(errors).all():
            return math.inf
        return float(LOSSES[self.task.search.loss][0](np.square(errors / self.scale)).sum())

    def jacobian(self, parameters: Array) -> Array:
        """Derivatives of the residuals, one column a parameter."""
        family, task = self.family, self.task
        slopes = family.slopes(parameters)
        found = endpoint_jacobian(task.model, family.at(parameters), *slopes, task.x[0])
        return found.flatten(1).cpu().numpy().T

    def log_cost(self, parameters: Array) -> tuple[float, Array]:
        """Logarithm of the loss, and its gradient."""
        errors = self.residuals(parameters)
        cost, slope = self.cost(errors), LOSSES[self.task.search.loss][1]
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
            loss=self.task.search.loss,
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


class _Task:
    """One call: the checked arguments, the trajectories, and the search."""

    def __init__(
        self,
        denoiser: Denoiser,
        sampler: PlanSampler,
        steps: int,
        event: tuple[int, ...],
        ends: tuple[float, float],
        truth: GaussianMixture | None,
        search: Search,
    ) -> None:
        self.began = time.perf_counter()
        self.deadline = None if search.seconds is None else self.began + search.seconds
        self.model, self.sampler, self.steps = _double(denoiser), sampler, steps
        self.ends, self.truth, self.search = ends, truth, search
        self.evaluations = 0
        generator = torch.Generator().manual_seed(search.seed)
        shape = (search.trajectories + search.held_out, *event)
        draws = torch.randn(shape, generator=generator, dtype=torch.float64)
        starts = self.model.process.prior.std * draws.to(_device(denoiser))
        fine, coarse = (
            self._solve(ExponentialAB(order=4), starts, steps=count, t_end=ends[1])
            for count in (search.reference_steps, search.reference_steps // 2)
        )
        #: Starting states and their references: for training, and held out.
        self.x, self.y = (
            part.split([search.trajectories, search.held_out]) for part in (starts, fine)
        )
        self.reference_error = EndpointError.of(coarse, fine).rms

    @classmethod
    def checked(
        cls,
        denoiser: Denoiser,
        sampler: PlanSampler,
        steps: int,
        event: Sequence[int] | None,
        t_end: float | None,
        truth: GaussianMixture | None,
        search: Search | None,
        *,
        weights: bool,
    ) -> "_Task":
        """From the arguments of a call, each of them checked."""
        if not isinstance(denoiser, Denoiser):
            raise TypeError(f"denoiser must be a Denoiser, got {denoiser!r}")
        if not isinstance(sampler, PlanSampler):
            raise TypeError(f"sampler must be a PlanSampler, one that is a plan, got {sampler!r}")
        if sampler.stochastic or isinstance(sampler, ComputedPlan):
            what = "has a grid of its own" if isinstance(sampler, ComputedPlan) else "draws normals"
            raise ValueError(
                f"sampler must be deterministic and run on any grid; {sampler!r} {what}"
            )
        steps = check_integer("steps", steps, 2)
        exact = denoiser if isinstance(denoiser, ExactDenoiser) else None
        if event is None and exact is None:
            raise ValueError("event must be given: the shape of one sample, without the batch")
        sizes = (exact.mixture.dim,) if event is None and exact else tuple(event or ())
        sizes = tuple(check_integer(f"event[{i}]", size, 1) for i, size in enumerate(sizes))
        if truth is not None and not isinstance(truth, GaussianMixture):
            raise TypeError(f"truth must be a GaussianMixture, got {type(truth).__name__}")
        if not isinstance(search := Search() if search is None else search, Search):
            raise TypeError(f"search must be a Search, got {search!r}")
        process = denoiser.process
        end = 1e-3 * process.horizon if t_end is None else t_end
        end = check_number("t_end", end, process.t_min, process.t_max, open_high=True)
        if weights:
            _require_computable(sampler, process, (process.t_max, end), steps)
        law = exact.mixture if truth is None and exact else truth
        return cls(denoiser, sampler, steps, sizes, (process.t_max, end), law, search)

    def run(self, *, weights: bool, progress: bool) -> Optimised:
        """Search, then measure."""
        with torch.no_grad(), _bar(progress) as bar:
            family = _Family(self.sampler, self.model, self.ends, self.steps)
            name, parameters = self._best_grid(family, bar, polish=not weights)
            form = family.at(parameters)
            sampler: PlanSampler = self.sampler
            if weights:
                family = family.with_weights(form)
                parameters = self._improved(family, family.extended(parameters), bar)
                form = family.at(parameters)
                sampler = ComputedPlan.from_unrolled(self.model.process, form)
        grid = Tabulated(tuple(family.times(parameters)))
        return self._measured(sampler, grid, name)

    def _best_grid(self, family: _Family, bar: Any, *, polish: bool) -> tuple[str, Array]:
        """The best named grid in training, and the parameters of the best grid found from the best two."""
        process, iterations = self.model.process, self.search.iterations
        starts: list[tuple[float, str, Array]] = []
        for name, grid in GRIDS.items():
            try:
                parameters = family.parameters(grid.times(process, self.steps, *self.ends))
            except ValueError:
                continue  # a grid may have no meaning for a process
            errors = _Objective(self, family, 1.0, bar).residuals(parameters)
            if np.isfinite(errors).all():
                starts.append((float(np.median(np.abs(errors))), name, parameters))
        if not starts:
            raise NumericsError(f"{self.sampler!r} is not finite on any of {', '.join(GRIDS)}")
        starts.sort(key=lambda start: start[0])
        scale = max(starts[0][0], 1e-12)
        tries = [_Objective(self, family, scale, bar) for _ in starts[:2]]
        with suppress(_OutOfTime):
            for objective, (_, _, parameters) in zip(tries, starts, strict=False):
                objective.least_squares(parameters, max(2, iterations // 4))
            better = min(tries, key=lambda objective: objective.best[0])
            better.least_squares(better.best[1], iterations)
            if polish:
                better.descend(iterations)
        return starts[0][1], min(tries, key=lambda objective: objective.best[0]).best[1]

    def _improved(self, family: _Family, parameters: Array, bar: Any) -> Array:
        """Better parameters by Levenberg-Marquardt."""
        objective = _Objective(self, family, 1.0, bar)
        errors = objective.residuals(parameters)
        objective = _Objective(self, family, max(float(np.median(np.abs(errors))), 1e-12), bar)
        with suppress(_OutOfTime):
            objective.least_squares(parameters, 4 * self.search.iterations)
        return objective.best[1]

    def _measured(self, sampler: PlanSampler, grid: Tabulated, name: str) -> Optimised:
        """The result, through `sample`, like any use of it; warns where there is nothing to gain."""
        before = GRIDS[name].times(self.model.process, self.steps, *self.ends)
        both = ((self.sampler, before), (sampler, list(grid.nodes)))
        ends = [[self._solve(s, x, grid=times) for s, times in both] for x in self.x]
        training, held_out = (
            tuple(EndpointError.of(x, y) for x in found)
            for found, y in zip(ends, self.y, strict=True)
        )
        result = Optimised(
            sampler,
            grid,
            f"{self.sampler!r} on {name}",
            (training[0], training[1]),
            (held_out[0], held_out[1]),
            self.reference_error,
            self._distances([*ends[1], self.y[1]]),
            self.evaluations,
            time.perf_counter() - self.began,
        )
        for warning in result.doubts():
            warnings.warn(warning, stacklevel=4)
        return result

    def _solve(self, sampler: Sampler, x: Tensor, **keywords: Any) -> Tensor:
        return sample(self.model, tuple(x.shape), sampler=sampler, x_init=x, seed=0, **keywords).x

    def _distances(self, samples: list[Tensor]) -> dict[str, tuple[float, float, float]]:
        """Of endpoints before, after and of the references from the exact law."""
        if self.truth is None:
            return {}
        law = self.truth.at(self.model.process, self.ends[1])
        kinds: dict[str, Callable[[Tensor], float]]
        if law.dim == 1:
            kinds = {
                "W1": lambda x: metrics.wasserstein_1d(x, law, p=1),
                "W2": lambda x: metrics.wasserstein_1d(x, law, p=2),
            }
        else:
            draws = law.sample(self.search.held_out, seed=self.search.seed + 1)
            kinds = {"energy distance": lambda x: metrics.energy_distance(x, draws).value}
        found = {name: [kind(x.flatten(1).cpu()) for x in samples] for name, kind in kinds.items()}
        return {name: (values[0], values[1], values[2]) for name, values in found.items()}


def _require_computable(
    sampler: PlanSampler, process: Process, ends: tuple[float, float], steps: int
) -> None:
    """A computed plan can start from this sampler: on the uniform grid it is one."""
    form = unrolled(sampler.plan(process, GRIDS["uniform"].times(process, steps, *ends)))
    try:
        ComputedPlan.from_unrolled(process, form)
    except ValueError as error:
        raise ValueError(
            f"sampler must be one whose weights a ComputedPlan can hold, {sampler!r} is not: {error}"
        ) from None


def _quotient(a: float, b: float) -> float:
    return a / b if b else math.inf


def _double(denoiser: Denoiser) -> Denoiser:
    """A copy in float64 and evaluation mode of a model that has parameters."""
    new = copy.deepcopy(denoiser)
    if isinstance(new, nn.Module):
        new.double().eval()
    return new


def _device(denoiser: Denoiser) -> torch.device:
    parameters = denoiser.parameters() if isinstance(denoiser, nn.Module) else iter(())
    return next(parameters, torch.empty(0)).device


def _bar(progress: bool) -> Any:
    if not progress:
        return nullcontext()
    from tqdm import tqdm

    return tqdm(desc="optimising", unit="run")
