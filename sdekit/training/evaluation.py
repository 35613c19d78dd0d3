"""The loss on held-out data: always the same rows, times and noise, so that a change is the model's."""

from typing import Any

import torch
from torch import Tensor

from sdekit.data.images import Scaling
from sdekit.errors import check_finite
from sdekit.training.batches import Data, as_data
from sdekit.training.draws import key, step_generator
from sdekit.training.fit import Loss, Objective, drawn
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
        scaling: applied to the data, as in training.
    """

    def __init__(
        self,
        data: Data | tuple[Data, Tensor],
        loss: Loss,
        times: TimeLaw,
        *,
        batch: int,
        seed: int,
        scaling: Scaling | None,
    ) -> None:
        samples, self.cond = data if isinstance(data, tuple) else (data, None)
        rows = as_data(samples)
        if not isinstance(rows, Tensor):
            rows = rows.sample(ROWS, generator=step_generator(seed, 0, "validation"))
        rows = rows if scaling is None else scaling.forward(rows)
        if not len(check_finite("validation", rows)):
            raise ValueError(f"validation must hold samples (N, *event), got {tuple(rows.shape)}")
        self.rows, self.loss, self.times = rows, loss, times
        self.batch, self.seed = batch, key(seed, "validation")

    def __call__(self, module: Any) -> float:
        """The mean loss, in eval mode; a loss that differentiates the network can be evaluated too."""
        like, world, was = next(module.parameters()), World.current(), module.training
        objective = Objective(module, self.loss, "float32").eval()
        total = torch.zeros((), dtype=torch.float64, device=like.device)
        for j in range(world.rank, -(-len(self.rows) // self.batch), world.size):
            rows = slice(j * self.batch, (j + 1) * self.batch)
            x0 = self.rows[rows].to(like)
            batch = x0 if self.cond is None else (x0, self.cond[rows].to(like.device))
            mean = objective(*drawn(module, batch, self.loss, self.times, self.seed, j))
            total += mean.detach() * len(x0)
        module.train(was)
        return float(world.total(total)) / len(self.rows)
