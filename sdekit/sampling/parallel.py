"""Parallel in time: all steps of a plan at once, swept until they agree."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdekit.denoisers import Denoiser, conversion
from sdekit.errors import check_integer, check_number
from sdekit.sampling.engine import Engine, Program
from sdekit.sampling.grids import TimeGrid
from sdekit.sampling.one_step import DDIM
from sdekit.sampling.plan import Plan
from sdekit.sampling.sampler import PlanSampler, Sampler


@dataclass(frozen=True)
class ParallelInTime(Sampler):
    """Picard sweeps over any plan: one batched model call updates every step.  Shih et al. 2023 (ParaDiGMS).

    Unrolled, the states of a plan are fixed combinations of the start, the normals and the model's replies.
    A sweep calls the model at all states of the last sweep at once and combines anew. After as many sweeps
    as the plan has calls the result is the plan's own; long before, it is within rounding of it: a hundred
    steps take about ten sweeps. Each sample stops when a sweep moves none of its states by more than
    `tolerance` (in units of sqrt(alpha^2 + sigma^2)), whatever its batch mates do.

    `nfe` counts every call of the model on a sample: sweeps times the calls of the plan. Memory is that of
    all the plan's states and normals.

    Args:
        sampler: a plan sampler.
        tolerance: > 0.
        sweeps: at most so many; no limit but the plan's calls if None.
    """

    sampler: PlanSampler = field(default_factory=DDIM)
    tolerance: float = 1e-4
    sweeps: int | None = None

    nfe_per_step = None

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, PlanSampler):
            raise TypeError(f"sampler must be a PlanSampler, got {self.sampler!r}")
        check_number("tolerance", self.tolerance, 0, open_low=True)
        if self.sweeps is not None:
            check_integer("sweeps", self.sweeps, 1)

    @property
    def order(self) -> int:  # type: ignore[override]
        """That of the sampler, down to the tolerance."""
        return self.sampler.order

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """As the sampler."""
        return self.sampler.stochastic

    @property
    def biased(self) -> bool:  # type: ignore[override]
        """As the sampler."""
        return self.sampler.biased

    @property
    def grid(self) -> TimeGrid:
        """That of the sampler."""
        return self.sampler.grid

    def program(self, denoiser: Denoiser, times: list[float], final: str) -> Program:
        """Sweeps over the sampler's plan; nodes are reported when the last sample has settled."""
        plan = self.sampler.plan(denoiser.process, times, final=final)
        most = plan.nfe if self.sweeps is None else min(self.sweeps, plan.nfe)
        return _Sweeps(plan, denoiser, self.tolerance, most)


class _Sweeps:
    """The program: states of samples still moving, all rows of the plan at once."""

    def __init__(self, plan: Plan, denoiser: Denoiser, tolerance: float, most: int) -> None:
        form = plan.closed_form()
        self.plan, self.most = plan, most
        self.calls = list(form.calls)
        process, prediction = denoiser.process, denoiser.prediction
        self.times = torch.tensor([plan.rows[k].t for k in self.calls], dtype=torch.float64)
        reads = [conversion(process, prediction, "data", plan.rows[k].t) for k in self.calls]
        self.on_state, self.on_output = torch.tensor(reads, dtype=torch.float64).T
        scales = [process.node(row.t) for row in plan.rows]
        self.bound = tolerance * torch.tensor([(n.alpha**2 + n.sigma**2) ** 0.5 for n in scales])
        self.start, self.data, self.normals = (
            torch.from_numpy(part.copy()) for part in (form.start, form.data, form.normals)
        )

    def __call__(self, engine: Engine, x: Tensor) -> Tensor:
        """Sweep until every sample has settled."""
        fixed = self._fixed(engine, x)
        states = x.expand_as(fixed).clone()
        moving = torch.arange(len(x), device=x.device)
        for _ in range(self.most):
            replies = self._replies(engine, states[self.calls][:, moving], moving)
            new = fixed[:, moving] + _combine(self.data, replies)
            moved = (new - states[:, moving]).abs().reshape(*new.shape[:2], -1).amax(2)
            states[:, moving] = new
            bound = self.bound.to(x)[:, None]
            moving = moving[(moved > bound).any(0)]
            if not len(moving):
                break
        for row, state in zip(self.plan.rows, states, strict=True):
            if row.node is not None and engine.watched:
                engine.reached(row.node, row.t, state)
        return states[-1].clone()

    def _fixed(self, engine: Engine, x: Tensor) -> Tensor:
        """The part of every state that no reply enters, (rows, n, *event)."""
        fixed = _combine(self.start[:, None], x[None])
        for m in range(self.normals.shape[1]):
            fixed += _combine(self.normals[:, m : m + 1], engine.normal(m)[None])
        return fixed

    def _replies(self, engine: Engine, x: Tensor, samples: Tensor) -> Tensor:
        """E[x_0 | x] at every call, (calls, n, *event), in one call of the model."""
        calls, n = x.shape[:2]
        t = self.times.to(x).repeat_interleave(n)
        out = engine.evaluate(t, x.flatten(0, 1), samples.repeat(calls)).view_as(x)
        engine.nfe += calls - 1
        a, b = (w.to(x).view(-1, *[1] * (x.ndim - 1)) for w in (self.on_state, self.on_output))
        return a * x + b * out


def _combine(weights: Tensor, values: Tensor) -> Tensor:
    """Linear combinations over the first axis: (r, k) and (k, n, *event) give (r, n, *event)."""
    return (weights.to(values) @ values.reshape(len(values), -1)).view(-1, *values.shape[1:])
