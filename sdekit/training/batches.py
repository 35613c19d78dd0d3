"""Batches as a function of the step, so that a resumed run sees what it would have seen."""

import random
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sdekit.errors import check_finite


@runtime_checkable
class Source(Protocol):
    """Endless data, such as a `GaussianMixture`: fresh samples every step."""

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        """`n` independent points, (n, *event)."""
        ...


Data = Tensor | Dataset | Source


def step_generator(seed: int, step: int, purpose: str) -> torch.Generator:
    """The generator of one purpose at one step: a function of its arguments alone."""
    key = random.Random(f"{seed} {step} {purpose}").getrandbits(63)
    return torch.Generator().manual_seed(key)


class Batches:
    """Batch k of the data as a function of k: endless samples, or walks through shuffled epochs."""

    def __init__(
        self, data: Data, cond: Tensor | None, batch: int, seed: int, like: Tensor
    ) -> None:
        self.batch, self.seed, self.like = batch, seed, like
        if isinstance(data, Dataset):
            data = _stacked(data)
        if not isinstance(data, Tensor) and hasattr(data, "__array__"):
            data = torch.as_tensor(data)
        if not isinstance(data, (Tensor, Source)):
            raise TypeError(
                f"data must be a tensor, a Dataset or have .sample(n, generator=), got {type(data).__name__}"
            )
        self.data, self.cond = data, cond
        endless = not isinstance(data, Tensor)
        some = data.sample(1, generator=step_generator(seed, 0, "data")) if endless else data
        check_finite("data", some)
        if some.ndim == 0 or not len(some):
            raise ValueError(f"data must hold samples (N, *event), got {tuple(some.shape)}")
        if cond is not None:
            _check_cond(cond, data)
        #: Shape of one sample.
        self.event = tuple(some.shape[1:])
        self._epochs: dict[int, Tensor] = {}

    def __call__(self, step: int) -> Tensor | tuple[Tensor, Tensor]:
        """x0 of the step, (batch, *event) in the model's dtype and device, and cond if there is one."""
        if not isinstance(self.data, Tensor):
            x0 = self.data.sample(self.batch, generator=step_generator(self.seed, step, "data"))
            return x0.to(self.like)
        rows = self._rows(step)
        x0 = self.data[rows].to(self.like)
        return x0 if self.cond is None else (x0, self.cond[rows].to(self.like.device))

    def _rows(self, step: int) -> Tensor:
        """Places step * batch .. of an endless sequence of shuffled epochs."""
        n, first = len(self.data), step * self.batch  # type: ignore[arg-type]
        last = first + self.batch
        epochs = range(first // n, (last - 1) // n + 1)
        self._epochs = {
            e: self._epochs[e]
            if e in self._epochs
            else torch.randperm(n, generator=step_generator(self.seed, e, "epoch"))
            for e in epochs
        }
        rows = torch.cat([self._epochs[e] for e in epochs])
        return rows[first - epochs[0] * n : last - epochs[0] * n]


def _stacked(data: Dataset) -> Tensor:
    """The samples of a map-style dataset; of (sample, label) items the sample."""
    if not hasattr(data, "__len__"):
        raise TypeError(
            f"data must be a Dataset with a length, got the iterable {type(data).__name__}"
        )
    items = [data[i] for i in range(len(data))]  # type: ignore[arg-type]
    samples = [item[0] if isinstance(item, (tuple, list)) else item for item in items]
    for sample in samples:
        if not isinstance(sample, Tensor):
            raise TypeError(f"data must be a Dataset of tensors, got {type(sample).__name__} items")
    return torch.stack(samples) if samples else torch.empty(0)


def _check_cond(cond: Any, data: Tensor | Source) -> None:
    if not isinstance(cond, Tensor):
        raise TypeError(f"cond must be a torch.Tensor, got {type(cond).__name__}")
    if not isinstance(data, Tensor):
        raise ValueError("cond needs data with as many rows; endless data has none")
    if cond.ndim == 0 or len(cond) != len(data):
        raise ValueError(
            f"cond must have one row a sample of data, {len(data)}, got shape {tuple(cond.shape)}"
        )
    if cond.is_floating_point():
        check_finite("cond", cond)
