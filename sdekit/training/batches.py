"""Batches as a function of the step, so that a resumed run sees what it would have seen."""

import warnings
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sdekit.data.images import Scaling
from sdekit.errors import check_finite, check_number
from sdekit.training.draws import step_generator
from sdekit.world import World


@runtime_checkable
class Source(Protocol):
    """Endless data, such as a `GaussianMixture`: fresh samples every step."""

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        """`n` independent points, (n, *event)."""
        ...


Data = Tensor | Dataset | Source


class Batches:
    """Batch k of the data as a function of k: endless samples, or walks through shuffled epochs.

    A process of several gets its rows of every batch. Data in memory is indexed a batch at a time.
    """

    def __init__(
        self,
        data: Data,
        *,
        batch: int,
        seed: int,
        like: Tensor,
        cond: Tensor | None = None,
        dropout: float = 0.0,
        null: Tensor | int | None = None,
        scaling: Scaling | None = None,
    ) -> None:
        self.batch, self.seed, self.like, self.scaling = batch, seed, like, scaling
        self.rows = World.current().share(batch)
        self.data = as_data(data)
        self.cond = cond = torch.as_tensor(cond) if hasattr(cond, "__array__") else cond
        some = _some(self.data, seed)
        # Levels are finite: one row tells what scaling makes of them, without a copy of all in floats.
        levels = isinstance(some, Tensor) and some.ndim and not some.is_floating_point()
        if levels and scaling is None:
            raise TypeError(
                f"data must be floating point, got {some.dtype}; scale it to float, or give scaling="
            )
        some = self._scaled(some[:1] if levels else some)
        check_finite("data", some)
        if some.ndim == 0 or not len(some):
            raise ValueError(f"data must hold samples (N, *event), got {tuple(some.shape)}")
        _warn_of_scale(some, scaling)
        if cond is not None:
            check_rows_cond("cond", cond, self.data)
        self.dropout, self.null = _check_dropout(dropout, null, cond)
        #: Shape of one sample.
        self.event = tuple(some.shape[1:])
        self._epochs: dict[int, Tensor] = {}

    def __call__(self, step: int) -> Tensor | tuple[Tensor, Tensor]:
        """x0 of the step, (rows, *event) in the model's dtype and device, and cond if there is one."""
        if not isinstance(self.data, Tensor):
            drawn = self.data.sample(self.batch, generator=step_generator(self.seed, step, "data"))
            return self._ready(drawn[self.rows.start : self.rows.stop])
        places = self._places(step)
        x0 = self._ready(self.data.index_select(0, places.to(self.data.device)))
        return x0 if self.cond is None else (x0, self._conditions(step, places))

    def _ready(self, x0: Tensor) -> Tensor:
        return self._scaled(x0).to(self.like, non_blocking=True)

    def _scaled(self, x0: Tensor) -> Tensor:
        return x0 if self.scaling is None else self.scaling.forward(x0)

    def _conditions(self, step: int, places: Tensor) -> Tensor:
        """The conditions of a step's rows, some of them replaced by "none"."""
        assert self.cond is not None
        cond = self.cond[places]
        if self.dropout:
            u = torch.rand(self.batch, generator=step_generator(self.seed, step, "condition"))
            dropped = u[self.rows.start : self.rows.stop] < self.dropout
            cond = cond.clone()
            cond[dropped] = self.null.to(cond)  # type: ignore[union-attr]
        return cond.to(self.like.device)

    def _places(self, step: int) -> Tensor:
        """This process's part of places step * batch .. of an endless sequence of shuffled epochs."""
        n, first = len(self.data), step * self.batch  # type: ignore[arg-type]
        last = first + self.batch
        epochs = range(first // n, (last - 1) // n + 1)
        self._epochs = {
            e: self._epochs[e]
            if e in self._epochs
            else torch.randperm(n, generator=step_generator(self.seed, e, "epoch"))
            for e in epochs
        }
        whole = torch.cat([self._epochs[e] for e in epochs]) if len(epochs) > 1 else None
        order = self._epochs[epochs[0]] if whole is None else whole
        start = first - epochs[0] * n
        return order[start + self.rows.start : start + self.rows.stop]


def _warn_of_scale(some: Tensor, scaling: Scaling | None) -> None:
    """Warn of data that look scaled twice, or not at all."""
    some = some[:1_000]
    if len(some) > 1 and scaling is not None and some.std() < 0.05:
        warnings.warn(
            f"data have a standard deviation of {some.std():.2g} after scaling=; were they scaled before?",
            stacklevel=4,
        )
    whole = len(some) > 1 and bool((some == some.round()).all())
    if whole and some.min() >= 0 and 15 < some.max() <= 255:
        warnings.warn(
            f"data are whole numbers from 0 to {some.max():g}, as levels of grey; scale them to about "
            "[-1, 1], or give scaling=",
            stacklevel=4,
        )


def as_data(data: Any) -> Tensor | Source:
    """A tensor of samples, from a data set or an array too, or endless data as it is."""
    if isinstance(data, Dataset):
        return _stacked(data)
    if not isinstance(data, Tensor) and hasattr(data, "__array__"):
        return torch.as_tensor(data)
    if not isinstance(data, (Tensor, Source)):
        raise TypeError(
            f"data must be a tensor, a Dataset or have .sample(n, generator=), got {type(data).__name__}"
        )
    return data


def _some(data: Tensor | Source, seed: int) -> Tensor:
    """The data, or a sample of endless data."""
    if isinstance(data, Tensor):
        return data
    return data.sample(1, generator=step_generator(seed, 0, "data"))


def _stacked(data: Dataset) -> Tensor:
    """The samples of a map-style dataset; of (sample, label) items the sample."""
    if not hasattr(data, "__len__"):
        raise TypeError(
            f"data must be a Dataset with a length, got the iterable {type(data).__name__}"
        )
    items = [data[i] for i in range(len(data))]  # type: ignore[arg-type]
    samples = [item[0] if isinstance(item, (tuple, list)) else item for item in items]
    for sample in samples:
        if not (isinstance(sample, Tensor) or hasattr(sample, "__array__")):
            raise TypeError(
                f"data must be a Dataset of tensors or arrays, got {type(sample).__name__} items"
            )
    return torch.stack([torch.as_tensor(s) for s in samples]) if samples else torch.empty(0)


def check_rows_cond(name: str, cond: Any, data: Tensor | Source) -> None:
    """Raise unless `cond` has a row for each row of the data."""
    if not isinstance(cond, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(cond).__name__}")
    if not isinstance(data, Tensor):
        raise ValueError(f"{name} needs data with as many rows; endless data has none")
    if cond.ndim == 0 or len(cond) != len(data):
        raise ValueError(
            f"{name} must have one row a sample of data, {len(data)}, got shape {tuple(cond.shape)}"
        )
    if cond.is_floating_point():
        check_finite(name, cond)


def _check_dropout(
    dropout: float, null: Tensor | int | None, cond: Tensor | None
) -> tuple[float, Tensor | None]:
    """The probability, and what replaces a condition, as a tensor that fits one row."""
    dropout = check_number("cond_dropout", dropout, 0, 1, open_high=True)
    if not dropout:
        if null is not None:
            raise ValueError("cond_null is what cond_dropout= puts in; give both or neither")
        return 0.0, None
    if cond is None or null is None:
        raise ValueError(
            "cond_dropout needs cond=, and cond_null=, what stands for no condition: a label such as the "
            "number of classes, or a vector"
        )
    row = torch.as_tensor(null)
    if row.shape not in (cond.shape[1:], ()):
        raise ValueError(
            f"cond_null must have the shape of a row of cond, {tuple(cond.shape[1:])}, got {tuple(row.shape)}"
        )
    if not (cond.is_floating_point() or torch.equal(row.to(cond.dtype).double(), row.double())):
        raise ValueError(
            f"cond_null must be a value of the dtype of cond, {cond.dtype}, got {null}"
        )
    return dropout, row
