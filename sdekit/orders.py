"""Orders of convergence, measured: the slope of the error against the number of steps, with its interval.

A deterministic sampler is held against the probability flow itself, from fixed starts: in 1-D the map from
quantile to quantile, on one Gaussian the affine map, else a solve to 1e-12. A stochastic plan is held against
the law of Gaussian data, which its rows carry exactly; or, on one Brownian path, against itself with twice
the steps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sdekit.data.mixtures import GaussianMixture
from sdekit.data.targets import two_mode
from sdekit.errors import check_choice, check_integer, check_number
from sdekit.processes import VP, Process
from sdekit.sampling import PlanSampler, Sampler, sample
from sdekit.sampling.grids import TimeGrid, resolve_grid

#: What an order can be measured of.
KINDS = ("endpoint", "law", "strong")


@dataclass(frozen=True)
class Problem:
    """A law of the data, the process that diffuses it, and the time to stop at.

    Attributes:
        target: the law of the data.
        process: the forward process.
        t_end: in (0, t_max).
    """

    target: GaussianMixture = field(default_factory=two_mode)
    process: Process = field(default_factory=VP)
    t_end: float = 1e-2

    def __post_init__(self) -> None:
        if not isinstance(self.target, GaussianMixture):
            raise TypeError(f"target must be a GaussianMixture, got {type(self.target).__name__}")
        if not isinstance(self.process, Process):
            raise TypeError(f"process must be a Process, got {type(self.process).__name__}")
        high = self.process.t_max
        check_number("t_end", self.t_end, 0, high, open_low=True, open_high=True)

    def starts(self) -> Tensor:
        """Fixed states at t_max, float64 (n, d): six in 1-D, eight above."""
        if self.target.dim == 1:
            x = torch.tensor([[-1.5], [-0.7], [-0.2], [0.3], [1.1], [2.0]], dtype=torch.float64)
        else:
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(8, self.target.dim, generator=generator, dtype=torch.float64)
        return self.process.prior.std * x

    def endpoints(self, x: Tensor, t_start: float | None = None) -> Tensor:
        """Where the probability flow takes states (n, d) from `t_start` (t_max if not given) to t_end."""
        start = self.process.t_max if t_start is None else t_start
        if self.target.dim == 1:
            law = self.target.at(self.process, start)
            return self.target.at(self.process, self.t_end).quantile(law.cdf(x))
        return self._solved(x, start)

    def _solved(self, x: Tensor, start: float) -> Tensor:
        from scipy.integrate import solve_ivp

        exact = self.target.denoiser(self.process)

        def velocity(t: float, y: Any) -> Any:
            return exact.velocity(torch.as_tensor(y).view(x.shape), t).flatten().numpy()

        times = (start, self.t_end)
        found = solve_ivp(velocity, times, x.flatten().numpy(), "DOP853", rtol=1e-12, atol=1e-13)
        return torch.from_numpy(found.y[:, -1].copy()).view(x.shape)


@dataclass(frozen=True)
class MeasuredOrder:
    """Errors against step counts, and the line through their logarithms.

    Attributes:
        sampler: its repr.
        kind: "endpoint", "law" or "strong".
        steps: step counts.
        errors: one a step count: the largest over the starts, of the law's mean and variance (variance
            relative), or the root mean square over the paths.
    """

    sampler: str
    kind: str
    steps: tuple[int, ...]
    errors: tuple[float, ...]

    @property
    def octaves(self) -> list[float]:
        """The slope between neighbouring step counts."""
        pairs = pairwise(zip(self.steps, self.errors, strict=True))
        return [math.log(e / f) / math.log(m / n) for (n, e), (m, f) in pairs]

    @cached_property
    def slope(self) -> float:
        """Least-squares slope: the order, positive for a sampler that converges."""
        x, y = self._logarithms()
        return float(-(x @ y) / (x @ x))

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the slope, from the residuals; infinite for two step counts."""
        from scipy.stats import t

        x, y = self._logarithms()
        free = len(self.steps) - 2
        if free < 1:
            return -math.inf, math.inf
        spread = float(((y + self.slope * x) ** 2).sum() / free / (x @ x)) ** 0.5
        half = float(t.ppf(0.975, free)) * spread
        return self.slope - half, self.slope + half

    def _logarithms(self) -> tuple[Tensor, Tensor]:
        """Centred logarithms of steps and errors."""
        pairs = zip(self.steps, self.errors, strict=True)
        x, y = torch.tensor([(math.log(n), math.log(e)) for n, e in pairs], dtype=torch.float64).T
        return x - x.mean(), y - y.mean()

    def __str__(self) -> str:
        low, high = self.interval
        errors = ", ".join(f"{n}: {e:.3g}" for n, e in zip(self.steps, self.errors, strict=True))
        return (
            f"{self.sampler}: {self.kind} order {self.slope:.2f} [{low:.2f}, {high:.2f}] ({errors})"
        )


def measure_order(
    sampler: Sampler,
    problem: Problem | None = None,
    steps: Sequence[int] = (32, 64, 128, 256),
    *,
    kind: str | None = None,
    grid: str | TimeGrid | None = None,
    n: int = 10_000,
    seed: int = 0,
) -> MeasuredOrder:
    """Run a sampler with the exact score at several step counts and fit the slope of its error.

    Args:
        sampler: an instance.
        problem: the two-mode mixture under VP, or N(0.7, 0.25) for "law", if not given.
        steps: at least two increasing step counts; each the double of the one before for "strong".
        kind: "endpoint" (of the flow), "law" (plans, on one Gaussian) or "strong" (plans: the difference
            to twice the steps on the same Brownian path); by default "law" for stochastic samplers.
        grid: as for `sample`; the sampler's own by default.
        n: paths, for "strong".
        seed: of the paths.

    Raises:
        ValueError, TypeError: an argument, or a kind that this sampler or problem does not have.
    """
    if not isinstance(sampler, Sampler):
        raise TypeError(
            f"sampler must be a Sampler such as sk.samplers.DDIM(), got {type(sampler).__name__}"
        )
    if problem is not None and not isinstance(problem, Problem):
        raise TypeError(f"problem must be a Problem, got {type(problem).__name__}")
    if isinstance(steps, str) or not isinstance(steps, Sequence):
        raise TypeError(f"steps must be a sequence of step counts, got {steps!r}")
    usual = "law" if sampler.stochastic else "endpoint"
    kind = check_choice("kind", usual if kind is None else kind, KINDS)
    counts = [check_integer(f"steps[{i}]", count, 1) for i, count in enumerate(steps)]
    if len(counts) < 2 or any(b <= a for a, b in pairwise(counts)):
        raise ValueError(f"steps must be at least two increasing counts, got {tuple(counts)}")
    if problem is None:
        gaussian = GaussianMixture(None, [0.7], stds=0.5)
        problem = Problem(gaussian) if kind == "law" else Problem()
    chosen = sampler.grid if grid is None else resolve_grid(grid)
    if kind == "endpoint":
        errors = _endpoint_errors(sampler, problem, counts, chosen, seed)
    elif not isinstance(sampler, PlanSampler):
        raise ValueError(f"kind={kind!r} is measured on plans, which {sampler!r} is not")
    elif kind == "law":
        errors = _law_errors(sampler, problem, counts, chosen)
    else:
        errors = _strong_errors(sampler, problem, counts, chosen, n, seed)
    return MeasuredOrder(repr(sampler), kind, tuple(counts), tuple(errors))


def _endpoint_errors(
    sampler: Sampler, problem: Problem, counts: list[int], grid: TimeGrid, seed: int
) -> list[float]:
    if sampler.stochastic or sampler.nfe_per_step is None:
        why = "draws noise" if sampler.stochastic else "chooses its own steps"
        raise ValueError(
            f"kind='endpoint' is the error of a flow in fixed steps; {sampler!r} {why}"
        )
    x, denoiser, errors = problem.starts(), problem.target.denoiser(problem.process), []
    exact = problem.endpoints(x)
    for count in counts:
        times = grid.times(problem.process, count, problem.process.t_max, problem.t_end)
        out = sample(denoiser, x.shape, sampler=sampler, grid=times, x_init=x, seed=seed)
        errors.append((out.x - exact).abs().max().item())
    return errors


def _law_errors(
    sampler: PlanSampler, problem: Problem, counts: list[int], grid: TimeGrid
) -> list[float]:
    target, process = problem.target, problem.process
    if len(target.weights) != 1:
        raise ValueError(
            f"kind='law' needs one Gaussian, got a mixture of {len(target.weights)}; use kind='strong'"
        )
    variances, axes = torch.linalg.eigh(target.covariance)
    mean, law, errors = axes.T @ target.mean, target.at(process, problem.t_end), []
    exact_mean, exact = axes.T @ law.mean, torch.linalg.eigvalsh(law.covariance)
    for count in counts:
        plan = sampler.plan(process, grid.times(process, count, process.t_max, problem.t_end))
        found_mean, found = plan.gaussian_law(mean, variances, start="exact")
        off = [(found_mean - exact_mean).abs().max(), (found / exact - 1).abs().max()]
        errors.append(float(max(off)))
    return errors


def _strong_errors(
    sampler: PlanSampler, problem: Problem, counts: list[int], grid: TimeGrid, n: int, seed: int
) -> list[float]:
    if any(b != 2 * a for a, b in pairwise(counts)):
        raise ValueError(f"steps must double for kind='strong', got {tuple(counts)}")
    denoiser, path = problem.target.denoiser(problem.process), 2 * counts[-1]
    runs = [
        sample(
            denoiser,
            (n, problem.target.dim),
            sampler=sampler,
            steps=count,
            grid=grid,
            t_end=problem.t_end,
            path_steps=path,
            seed=seed,
            dtype=torch.float64,
        ).x
        for count in [*counts, path]
    ]
    return [(a - b).square().sum(1).mean().sqrt().item() for a, b in pairwise(runs)]
