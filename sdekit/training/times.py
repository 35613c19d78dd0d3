"""Laws of training times: how they are drawn, and for which objective.

An objective is an average over times, E w(t) |eps - eps_hat|^2: over times uniform on [t_min, t_max], over
the steps of a chain, or over log-normal noise levels. A law draws times for one of these. Where it draws some
more often than the objective has them, `importance` says by how much.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit.errors import check_choice, check_flag, check_integer, check_number
from sdekit.processes import Process
from sdekit.quadrature import gauss_legendre
from sdekit.schedules import Tabulated


class TimeLaw(ABC):
    """A law of training times. Write `quantile`, and `nodes` if its objective is not over uniform times.

    `draw` serves all laws and is not overridden.
    """

    #: One time from each of n equal parts of the probability, instead of independent times.
    stratified: bool

    @abstractmethod
    def quantile(self, u: Tensor, process: Process, labels: int | None = None) -> Tensor:
        """The time with probability u in [0, 1) below it, (n,) float64; with `labels` a step of a chain."""

    def importance(self, process: Process, t: Tensor, labels: int | None = None) -> Tensor | None:
        """Factor (n,) on the losses at times of this law that keeps the objective; None for 1.

        It is the density of the objective's times over the density of this law's.
        """
        return None

    def nodes(
        self, process: Process, labels: int | None = None, cuts: Sequence[float] = ()
    ) -> tuple[Tensor, Tensor]:
        """Times and weights for the mean of a smooth function over the *objective's* times, float64.

        Uniform times by Gauss-Legendre panels that halve towards t_min, where a loss changes within decades
        of t; the steps of a chain as they are. `cuts` are times where the function is not smooth.
        """
        if labels is not None:
            steps = torch.arange(1, labels + 1, dtype=torch.float64)
            return steps / labels * process.horizon, torch.full_like(steps, 1 / labels)
        low, high = process.t_min, process.t_max
        halving = [low, *(low + (high - low) * 2.0**-k for k in range(16, -1, -1))]
        inside = (t for t in (*cuts, *_jumps(process)) if low < t < high)
        t, weights = gauss_legendre(sorted({*halving, *inside}))
        return t, weights / (high - low)

    def draw(
        self,
        n: int,
        process: Process,
        generator: torch.Generator,
        labels: int | None = None,
        *,
        batches: int = 1,
    ) -> Tensor:
        """`n` times for each of some batches, one after another, float64 (batches * n,).

        Stratified times are spaced equally in probability, (u + i / n) mod 1 with one u a batch (Kingma et
        al. 2021, appendix I.1): the law of each is the same wherever it stands in the batch, whose mean has
        less variance. With `labels` = N they are steps i T / N, i = 1 .. N, of a chain.
        """
        each = 1 if self.stratified else n
        u = torch.rand(batches, each, generator=generator, dtype=torch.float64)
        if self.stratified:
            u = (u + torch.arange(n, dtype=torch.float64) / max(n, 1)) % 1
        return self.quantile(u.flatten(), process, labels)


@dataclass(frozen=True)
class UniformTimes(TimeLaw):
    """Uniform on [t_min, t_max], or on the steps of a chain (Ho et al. 2020, algorithm 1)."""

    stratified: bool = True

    def __post_init__(self) -> None:
        check_flag("stratified", self.stratified)

    def quantile(self, u: Tensor, process: Process, labels: int | None = None) -> Tensor:
        """t_min + u (t_max - t_min), or step floor(u N) + 1."""
        if labels is not None:
            return ((u * labels).floor() + 1).clamp(max=labels) / labels * process.horizon
        low, high = process.t_min, process.t_max
        return (low + (high - low) * u).clamp(max=high)


@dataclass(frozen=True)
class ImportanceTimes(TimeLaw):
    """Density in proportion to the likelihood weight g^2 / (2 sigma^2): uniform in log-SNR for any process.

    Song et al. 2021b (importance sampling of the likelihood weighting) and Kingma et al. 2021: g^2 / sigma^2
    is -d log_snr / dt, so the law and its inverse are in closed form. The objective is still that of uniform
    times, by `importance`. On a chain a step's probability is in proportion to its weight.
    """

    stratified: bool = True

    def __post_init__(self) -> None:
        check_flag("stratified", self.stratified)

    def quantile(self, u: Tensor, process: Process, labels: int | None = None) -> Tensor:
        """The time at which log_snr has fallen by the share u of its range."""
        if labels is not None:
            steps, odds = _chain(process, labels)
            place = torch.searchsorted(odds.cumsum(0), u, right=True)
            return steps[place.clamp(max=labels - 1)]
        high, low = _log_snr_ends(process)
        t = torch.as_tensor(process.time_at_log_snr(high + (low - high) * u))
        return t.clamp(process.t_min, process.t_max)

    def importance(self, process: Process, t: Tensor, labels: int | None = None) -> Tensor:
        """(log_snr(t_min) - log_snr(t_max)) / ((t_max - t_min) |d log_snr / dt|), (n,)."""
        if labels is not None:
            steps, odds = _chain(process, labels)
            place = (t.to(steps) * labels / process.horizon).round().long() - 1
            return (1 / (labels * odds[place])).to(t)
        high, low = _log_snr_ends(process)
        return (high - low) / (process.t_max - process.t_min) / log_snr_rate(process, t)


@dataclass(frozen=True)
class LogNormalTimes(TimeLaw):
    """log(sigma / alpha) normal, cut off outside [t_min, t_max].  Karras et al. 2022, table 1.

    These times *are* the objective: nothing turns them back into uniform ones.

    Args:
        mean: of log(sigma / alpha).
        std: of log(sigma / alpha), > 0.
        stratified: one time from each of n equal parts of the probability.
    """

    mean: float = -1.2
    std: float = 1.2
    stratified: bool = True

    def __post_init__(self) -> None:
        check_number("mean", self.mean)
        check_number("std", self.std, 0, open_low=True)
        check_flag("stratified", self.stratified)

    def quantile(self, u: Tensor, process: Process, labels: int | None = None) -> Tensor:
        """The quantile of the normal law given that it is within the ends."""
        low, high = self._ends(process, labels)
        return self._times(_truncated_normal(u, low, high), process)

    def nodes(
        self, process: Process, labels: int | None = None, cuts: Sequence[float] = ()
    ) -> tuple[Tensor, Tensor]:
        """Gauss-Legendre panels of half a standard deviation, up to 12 of them from the mean."""
        low, high = self._ends(process, labels)
        inside = (self._place(process, t) for t in (*cuts, *_jumps(process)))
        first, last = max(low, -12.0), min(high, 12.0)
        panels = torch.linspace(first, last, 2 + int(2 * (last - first)), dtype=torch.float64)
        z, weights = gauss_legendre(
            sorted({*panels.tolist(), *(c for c in inside if first < c < last)})
        )
        weights = weights * torch.exp(-0.5 * (z.square() - z.square().min()))
        return self._times(z, process), weights / weights.sum()

    def _place(self, process: Process, t: float) -> float:
        """log(sigma / alpha) in standard deviations from the mean."""
        return (-0.5 * float(process.log_snr(t)) - self.mean) / self.std

    def _ends(self, process: Process, labels: int | None) -> tuple[float, float]:
        """The places of t_min and t_max."""
        if labels is not None:
            raise ValueError(
                f"times must be uniform or importance on a chain of {labels} steps, got {self!r}: log-normal "
                'times are continuous; use a network of another time than "label"'
            )
        low, high = (self._place(process, t) for t in (process.t_min, process.t_max))
        if min(abs(low), abs(high)) > 8 and low * high > 0:
            raise ValueError(
                f"mean must put log(sigma / alpha) in the range of {process!r}, got {self!r}: t_min and "
                f"t_max are {low:.1f} and {high:.1f} standard deviations from it"
            )
        return low, high

    def _times(self, z: Tensor, process: Process) -> Tensor:
        t = torch.as_tensor(process.time_at_log_snr(-2 * (self.mean + self.std * z)))
        return t.clamp(process.t_min, process.t_max)


#: What may be given for a law by name.
NAMES: dict[str, TimeLaw] = {
    "uniform": UniformTimes(stratified=False),
    "stratified": UniformTimes(),
    "importance": ImportanceTimes(),
    "log-normal": LogNormalTimes(),
}


def resolve_times(times: Any) -> TimeLaw:
    """A law given as itself or by name: "uniform", "stratified", "importance" or "log-normal".

    "uniform" is independent, the others are stratified.
    """
    if isinstance(times, TimeLaw):
        return times
    if not isinstance(times, str):
        given = times.__name__ if isinstance(times, type) else type(times).__name__
        raise TypeError(f"times must be a law of times or its name, got {given}")
    return NAMES[check_choice("times", times, tuple(NAMES))]


def draw_times(
    n: int,
    process: Process,
    generator: torch.Generator,
    times: str | TimeLaw = "stratified",
    labels: int | None = None,
) -> Tensor:
    """`n` training times on [t_min, t_max], or on the steps of a chain of `labels`, float64 (n,)."""
    law = resolve_times(times)
    n = check_integer("n", n, 0)
    labels = None if labels is None else check_integer("labels", labels, 1)
    return law.draw(n, process, generator, labels)


def log_snr_rate(process: Process, t: Tensor) -> Tensor:
    """g^2 / sigma^2 = -d log_snr / dt, twice the likelihood weight; in the shape of t."""
    return torch.as_tensor(process.rates(t)[1]) / torch.as_tensor(process.sigma(t)).square()


def _log_snr_ends(process: Process) -> tuple[float, float]:
    return float(process.log_snr(process.t_min)), float(process.log_snr(process.t_max))


def _chain(process: Process, labels: int) -> tuple[Tensor, Tensor]:
    """The steps of a chain, and probabilities in proportion to their likelihood weights."""
    steps, _ = UniformTimes().nodes(process, labels)
    weights = log_snr_rate(process, steps)
    if not bool(torch.isfinite(weights).all()):
        raise ValueError(
            f'times "importance" need a finite likelihood weight at all {labels} steps: the last step of '
            f"{process!r} has no signal; use uniform times"
        )
    return steps, weights / weights.sum()


def _jumps(process: Process) -> list[float]:
    """Times at which the rates jump: those of a table of betas."""
    schedule = getattr(process, "schedule", None)
    n = len(schedule.betas) if isinstance(schedule, Tabulated) else 1
    return [i / n for i in range(1, n)]


def _truncated_normal(u: Tensor, low: float, high: float) -> Tensor:
    """Quantiles of a unit normal given that it is in [low, high], from the tail that has the digits."""
    ends = torch.tensor([low, high], dtype=torch.float64) / math.sqrt(2)
    below, above = 0.5 * torch.special.erfc(-ends), 0.5 * torch.special.erfc(ends)
    mass = above[0] - above[1] if low > 0 else below[1] - below[0]
    p, q = below[0] + u * mass, above[1] + (1 - u) * mass
    z = torch.where(p < q, torch.special.ndtri(p), -torch.special.ndtri(q))
    return z.clamp(low, high)
