"""The loss on held-out data: always the same rows, times and noise, so that a change is the model's."""

from typing import Any

import torch
from torch import Tensor

from sdekit.elementary import widest
from sdekit.errors import check_finite
from sdekit.training.batches import Batches, Data, as_data, check_rows_cond
from sdekit.training.draws import key, step_generator
from sdekit.training.fit import Loss, Objective, draws_of
from sdekit.training.times import TimeLaw
from sdekit.world import World

#: Rows drawn from endless data.
ROWS = 8_192


class Evaluation:
    """The mean loss of a module on held-out samples, shared by the processes there are.

    Args:
        data: samples (N, *event), or endless data, of which a fixed sample is taken; with conditions a pair
            of samples and conditions.
        loss: what is averaged.
        times: the law of the times.
        batch: rows that go through the network together.
        seed: of times and noise.
        like: what the module is trained on; held-out samples are scaled alike, and must have its shape, and
            conditions where it has them.

    Raises:
        ValueError, TypeError: data that the module would stumble over many steps later.
    """

    def __init__(
        self,
        data: Data | tuple[Data, Tensor],
        loss: Loss,
        times: TimeLaw,
        *,
        batch: int,
        seed: int,
        like: Batches,
    ) -> None:
        samples, self.cond = _paired(data)
        rows, scaling = as_data(samples), like.scaling
        if self.cond is not None:
            check_rows_cond("validation conditions", self.cond, rows)
        _check_alike(self.cond, like.cond)
        if not isinstance(rows, Tensor):
            rows = rows.sample(ROWS, generator=step_generator(seed, 0, "validation"))
        rows = rows if scaling is None else scaling.forward(rows)
        if not len(check_finite("validation", rows)):
            raise ValueError(f"validation must hold samples (N, *event), got {tuple(rows.shape)}")
        if rows.shape[1:] != like.event:
            raise ValueError(
                "validation must hold samples of the shape of data, "
                f"{like.event}, got {tuple(rows.shape[1:])}"
            )
        self.rows, self.loss, self.times = rows, loss, times
        self.batch, self.seed = batch, key(seed, "validation")

    def __call__(self, module: Any) -> float:
        """The mean loss, in eval mode; a loss that differentiates the network can be evaluated too."""
        like, world, was = next(module.parameters()), World.current(), module.training
        objective = Objective(module, self.loss, "float32").eval()
        arguments = draws_of(module, self.loss, self.times, self.seed)
        total = torch.zeros((), dtype=widest(like.device), device=like.device)
        for j in range(world.rank, -(-len(self.rows) // self.batch), world.size):
            rows = slice(j * self.batch, (j + 1) * self.batch)
            x0 = self.rows[rows].to(like)
            batch = x0 if self.cond is None else (x0, self.cond[rows].to(like.device))
            mean = objective(*arguments(j, batch))
            total += mean.detach() * len(x0)
        module.train(was)
        return float(world.total(total)) / len(self.rows)


def _paired(data: Any) -> tuple[Any, Any]:
    """Samples and conditions; without conditions None."""
    if not isinstance(data, tuple):
        return data, None
    if len(data) != 2:
        raise ValueError(f"validation must be data or a pair (data, cond), got {len(data)} parts")
    return data


def _check_alike(held: Tensor | None, trained: Tensor | None) -> None:
    """Raise unless both have conditions, of one shape, or neither has."""
    shapes = [None if cond is None else tuple(cond.shape[1:]) for cond in (held, trained)]
    if shapes[0] != shapes[1]:
        told = ["none" if shape is None else f"rows of shape {shape}" for shape in shapes]
        raise ValueError(
            f"validation must have conditions as the data has: {told[1]} there, {told[0]} in validation"
        )
