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
from sdekit.denoisers import Denoiser, device_of
from sdekit.errors import NumericsError, check_choice, check_integer, check_number, check_seed
from sdekit.processes import Process
from sdekit.sampling.computed_plan import ComputedPlan
from sdekit.sampling.endpoint_fit import LOSSES, Family, Objective, OutOfTime, Training
from sdekit.sampling.front_door import sample
from sdekit.sampling.grids import GRIDS, Tabulated, usual_end
from sdekit.sampling.multistep import ExponentialAB
from sdekit.sampling.sampler import PlanSampler, Sampler
from sdekit.sampling.unrolled import Array, unrolled


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
    task = _Task(denoiser, sampler, steps, event, t_end, truth, search, weights=False)
    return task.run(progress)


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
    task = _Task(denoiser, sampler, steps, event, t_end, truth, search, weights=True)
    return task.run(progress)


class _Task:
    """One call: its checked arguments, the trajectories, and the search."""

    def __init__(
        self,
        denoiser: Denoiser,
        sampler: PlanSampler,
        steps: int,
        event: Sequence[int] | None,
        t_end: float | None,
        truth: GaussianMixture | None,
        search: Search | None,
        *,
        weights: bool,
    ) -> None:
        if not isinstance(denoiser, Denoiser):
            raise TypeError(f"denoiser must be a Denoiser, got {type(denoiser).__name__}")
        _check_sampler(sampler)
        self.sampler, self.weights = sampler, weights
        self.steps = check_integer("steps", steps, 2)
        exact = denoiser.mixture if isinstance(denoiser, ExactDenoiser) else None
        event = _checked_event(event, exact)
        if truth is not None and not isinstance(truth, GaussianMixture):
            raise TypeError(f"truth must be a GaussianMixture, got {type(truth).__name__}")
        self.truth = exact if truth is None else truth
        if not isinstance(search := Search() if search is None else search, Search):
            raise TypeError(f"search must be a Search, got {search!r}")
        self.search, process = search, denoiser.process
        end = usual_end(process) if t_end is None else t_end
        end = check_number("t_end", end, process.t_min, process.t_max, open_high=True)
        self.ends = process.t_max, end
        if weights:
            _require_computable(sampler, process, self.ends, self.steps)
        self.began, self.model = time.perf_counter(), _double(denoiser)
        self._draw(event)

    def _draw(self, event: tuple[int, ...]) -> None:
        """Starting states and their references: for training, and held out."""
        search, parts = self.search, [self.search.trajectories, self.search.held_out]
        generator = torch.Generator().manual_seed(search.seed)
        draws = torch.randn((sum(parts), *event), generator=generator, dtype=torch.float64)
        starts = self.model.process.prior.std * draws.to(device_of(self.model))
        fine, coarse = (
            self._solve(ExponentialAB(order=4), starts, steps=count, t_end=self.ends[1])
            for count in (search.reference_steps, search.reference_steps // 2)
        )
        self.x, self.y = starts.split(parts), fine.split(parts)
        self.reference_error = EndpointError.of(coarse, fine).rms
        deadline = None if search.seconds is None else self.began + search.seconds
        self.training = Training(self.model, self.x[0], self.y[0], search.loss, deadline)

    def run(self, progress: bool) -> Optimised:
        """Search, then measure."""
        with torch.no_grad(), _bar(progress) as self.training.bar:
            family = Family(self.sampler, self.model, self.ends, self.steps)
            name, parameters = self._best_grid(family)
            sampler: PlanSampler = self.sampler
            if self.weights:
                family = family.with_weights(family.at(parameters))
                parameters = self._improved(family, family.extended(parameters))
                plan = family.at(parameters)
                sampler = ComputedPlan.from_unrolled(self.model.process, plan)
        grid = Tabulated(tuple(family.times(parameters)))
        return self._measured(sampler, grid, name)

    def _best_grid(self, family: Family) -> tuple[str, Array]:
        """The best named grid in training, and the parameters of the best grid found from the best two."""
        process, iterations = self.model.process, self.search.iterations
        starts: list[tuple[float, str, Array]] = []
        for name, grid in GRIDS.items():
            try:
                parameters = family.parameters(grid.times(process, self.steps, *self.ends))
            except ValueError:
                continue  # a grid may have no meaning for a process
            errors = self.training.errors(family.at(parameters))
            if np.isfinite(errors).all():
                starts.append((float(np.median(np.abs(errors))), name, parameters))
        if not starts:
            raise NumericsError(f"{self.sampler!r} is not finite on any of {', '.join(GRIDS)}")
        starts.sort(key=lambda start: start[0])
        scale = max(starts[0][0], 1e-12)
        tries = [Objective(self.training, family, scale) for _ in starts[:2]]
        with suppress(OutOfTime):
            for objective, (_, _, parameters) in zip(tries, starts, strict=False):
                objective.least_squares(parameters, max(2, iterations // 4))
            better = min(tries, key=lambda objective: objective.best[0])
            better.least_squares(better.best[1], iterations)
            if not self.weights:
                better.descend(iterations)
        return starts[0][1], min(tries, key=lambda objective: objective.best[0]).best[1]

    def _improved(self, family: Family, parameters: Array) -> Array:
        """Better parameters by Levenberg-Marquardt."""
        errors = self.training.errors(family.at(parameters))
        scale = max(float(np.median(np.abs(errors))), 1e-12)
        objective = Objective(self.training, family, scale)
        with suppress(OutOfTime):
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
            self.training.evaluations,
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


def _check_sampler(sampler: Any) -> None:
    if not isinstance(sampler, PlanSampler):
        raise TypeError(f"sampler must be a PlanSampler, one that is a plan, got {sampler!r}")
    if sampler.stochastic or isinstance(sampler, ComputedPlan):
        what = "has a grid of its own" if isinstance(sampler, ComputedPlan) else "draws normals"
        raise ValueError(f"sampler must be deterministic and run on any grid; {sampler!r} {what}")


def _checked_event(event: Sequence[int] | None, exact: GaussianMixture | None) -> tuple[int, ...]:
    """The shape of one sample; that of an exact denoiser's mixture if not given."""
    if event is None:
        if exact is None:
            raise ValueError("event must be given: the shape of one sample, without the batch")
        event = (exact.dim,)
    return tuple(check_integer(f"event[{i}]", size, 1) for i, size in enumerate(event))


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


def _bar(progress: bool) -> Any:
    if not progress:
        return nullcontext()
    from tqdm import tqdm

    return tqdm(desc="optimising", unit="run")
