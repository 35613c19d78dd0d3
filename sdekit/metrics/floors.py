"""What exact samples score: the floor that a metric's value is held against."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from sdekit.errors import check_integer
from sdekit.metrics.arguments import batch, pair
from sdekit.metrics.features import FeatureSet


class Samplable(Protocol):
    """A law that can be drawn from exactly."""

    def sample(self, n: int, *, seed: int) -> Tensor:
        """Draw n samples, shape (n, d)."""
        ...


class HasValue(Protocol):
    """A result with a number, such as `Measured` or `Frechet`."""

    @property
    def value(self) -> float:
        """The number."""
        ...


@dataclass(frozen=True)
class Floor:
    """What exact samples score: summary of a metric over independent exact draws of n samples."""

    mean: float
    std: float
    quantile95: float
    values: tuple[float, ...] = field(repr=False)

    @classmethod
    def of(cls, values: Sequence[float]) -> "Floor":
        """The summary of these values, two or more."""
        scores = torch.tensor(values, dtype=torch.float64)
        high = float(scores.quantile(0.95))
        return cls(float(scores.mean()), float(scores.std()), high, tuple(values))

    @property
    def stderr(self) -> float:
        """Standard error of `mean`."""
        return self.std / math.sqrt(len(self.values))


_Law = TypeVar("_Law", bound=Samplable)
_Set = TypeVar("_Set", Tensor, FeatureSet)


def floor(
    metric: Callable[[Tensor, _Law], float | HasValue],
    truth: _Law,
    n: int,
    repeats: int = 40,
    seed: int = 0,
) -> Floor:
    """What `repeats` independent sets of n exact samples score against their own law.

    A sampler whose score is above `quantile95` differs from the truth, at that level; one below it
    cannot be told from the truth with n samples.

    Args:
        metric: called as `metric(samples, truth)` with samples of shape (n, d); returns a number, or
            a result that has a `value`.
        truth: a law with `sample(n, seed=...)`.
        n: samples in a set, at least 2; the number the sampler was given.
        repeats: sets, at least 2.
        seed: of all sets together; each set has its own, drawn from it.

    Raises:
        ValueError: for n < 2, repeats < 2, or a metric that is not finite.
        TypeError: for counts that are not integers or a metric that is not a number.
    """
    check_integer("n", n, 2)
    check_integer("repeats", repeats, 2)
    generator = torch.Generator().manual_seed(check_integer("seed", seed, 0))
    seeds = torch.randint(2**48, (repeats,), generator=generator).tolist()
    return Floor.of([_score(metric(truth.sample(n, seed=each), truth)) for each in seeds])


def data_floor(
    metric: Callable[[_Set, _Set], float | HasValue],
    data: _Set,
    other: _Set | None = None,
    n: int | None = None,
    repeats: int = 40,
    seed: int = 0,
) -> Floor:
    """What n samples of a data set score against n others of it, or of a second set of the same law.

    The floor for data whose law is not known: what a perfect generator would score. Parts are those
    of `data_splits`. Repeats share the data, so the spread is that of the splits: with n near half of
    the data it comes out too small, and `stderr` tells how well the mean over splits is known, not
    how the data came about.

    Args:
        metric: called as `metric(part, other_part)`; returns a number or a result with a `value`.
        data: samples (N, *event), or features.
        other: what to draw the second part from, such as the training set when `data` is the test
            set; None splits `data`.
        n: samples in each part, at least 2, the number the sampler was given; at most N // 2, or with
            `other` the smaller count; that much if not given.
        repeats: splits, at least 2.
        seed: of all splits together.

    Raises:
        ValueError: for data that is not finite or too small, n out of range, repeats < 2, or a metric
            that is not finite.
        TypeError: for data that are not floating tensors or features, counts that are not integers,
            or a metric that is not a number.
    """
    check_integer("repeats", repeats, 2)
    parts = data_splits(data, other, n, repeats, seed)
    return Floor.of([_score(metric(part, second)) for part, second in parts])


def data_splits(
    data: _Set,
    other: _Set | None = None,
    n: int | None = None,
    repeats: int = 40,
    seed: int = 0,
) -> Iterator[tuple[_Set, _Set]]:
    """Pairs of n samples and n others, drawn at random without overlap; arguments as `data_floor`.

    Raises:
        ValueError: as `data_floor`, for data, n, repeats < 1 and seed.
        TypeError: as `data_floor`.
    """
    check_integer("repeats", repeats, 1)
    generator = torch.Generator().manual_seed(check_integer("seed", seed, 0))
    if other is None:
        most = len(batch("data", data, 4)) // 2
    else:
        most = min(map(len, pair(data, other, 2, ("data", "other"))))
    size = most if n is None else check_integer("n", n, 2)
    if size > most:
        raise ValueError(f"n must be at most {most} for parts that do not overlap, got {size}")

    def split() -> tuple[_Set, _Set]:
        rows = torch.randperm(len(data), generator=generator)
        if other is None:
            return _rows(data, rows[:size]), _rows(data, rows[size : 2 * size])
        second = torch.randperm(len(other), generator=generator)
        return _rows(data, rows[:size]), _rows(other, second[:size])

    return (split() for _ in range(repeats))


def _rows(data: _Set, rows: Tensor) -> _Set:
    """Some of the samples, where they are."""
    return data[rows.to(data.device)] if isinstance(data, Tensor) else data[rows]


def _score(result: Any) -> float:
    """A metric's value as a finite float."""
    value = getattr(result, "value", result)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"metric must return a number, got {type(result).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"metric must return a finite number, got {value!r}")
    return float(value)
