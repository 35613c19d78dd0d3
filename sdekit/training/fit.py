"""The inner loop of training: one optimiser step a batch, yours to own."""

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sdekit.denoisers import Denoiser
from sdekit.elementary import widest
from sdekit.errors import NumericsError, check_choice, check_integer, check_number
from sdekit.training.draws import normals, step_generator
from sdekit.training.losses import DenoisingLoss, labels_of
from sdekit.training.times import TimeLaw, resolve_times
from sdekit.world import ALONE, World

Batch = Tensor | tuple[Tensor, Tensor]
PRECISIONS = ("float32", "bf16")


class Loss(Protocol):
    """What is minimised: the loss of each sample. `probes = k` asks for k more unit normals a sample."""

    def __call__(
        self, model: Any, x0: Tensor, t: Tensor, noise: Tensor, cond: Tensor | None = None
    ) -> Tensor:
        """Loss (n,) of x0 (n, *event) at times (n,) with noise of the shape of x0."""
        ...


@dataclass(frozen=True)
class Step:
    """One optimiser step: its index from 0, mean loss of the batch, and gradient norm before clipping."""

    index: int
    loss: float
    gradient_norm: float


def fit(
    model: Denoiser,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    loss: Loss | None = None,
    times: str | TimeLaw = "stratified",
    clip: float | None = None,
    accumulate: int = 1,
    precision: str = "float32",
    seed: int = 0,
    first: int = 0,
) -> Iterator[Step]:
    """Take one optimiser step a batch, yielding after each; log, average, stop as you like.

    In a process group (see `World`) a batch is this process's part of it, of the same size everywhere, and
    gradients are averaged by `DistributedDataParallel`.

    Args:
        model: a `Denoiser` that is a module.
        batches: x0 (n, *event), or (x0, cond) pairs.
        optimizer: over the model's parameters.
        loss: what to minimise; `DenoisingLoss()` if not given.
        times: law of the times on [t_min, t_max], or the steps of a network that knows labels; see
            `resolve_times`.
        clip: largest gradient norm.
        accumulate: parts that a batch goes through the network in; their mean gradient makes the step.
        precision: "float32" (the parameters' own, in fact) or "bf16": matrix products and convolutions in
            bfloat16, parameters and the rest as they are.
        seed: of times and noise.
        first: index of the first step, for a run that goes on.

    Raises:
        NumericsError: a loss or gradient that is not finite; the parameters are as before that step.
    """
    loss = DenoisingLoss() if loss is None else loss
    limit = math.inf if clip is None else check_number("clip", clip, 0, open_low=True)
    accumulate = check_integer("accumulate", accumulate, 1)
    law, world = resolve_times(times), World.current()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    objective, unsynced = _shared(Objective(model, loss, precision), world)
    for index, batch in enumerate(batches, first):
        rows = drawn(model, batch, loss, law, seed, index, world)
        parts = _parts(rows, accumulate)
        optimizer.zero_grad()
        values = []
        for part in parts:
            with nullcontext() if part is parts[-1] else unsynced():
                value = objective(*part) / len(parts)
                value.backward()
            values.append(value.detach())
        mean = world.total(sum(values[1:], values[0])) / world.size
        norm = nn.utils.clip_grad_norm_(parameters, limit)
        value, size = torch.stack([mean, norm.to(mean)]).tolist()
        if not (math.isfinite(value) and math.isfinite(size)):
            raise NumericsError(
                f"loss {value:g} and gradient norm {size:g} at step {index} are not finite"
            )
        optimizer.step()
        yield Step(index, value, size)


class Objective(nn.Module):
    """The mean loss of some rows, as a module: the forward pass that other tools wrap."""

    def __init__(self, model: Denoiser, loss: Loss, precision: str) -> None:
        super().__init__()
        self.model, self.loss = model, loss
        self.lower = check_choice("precision", precision, PRECISIONS) == "bf16"

    def forward(
        self,
        x0: Tensor,
        t: Tensor,
        noise: Tensor,
        importance: Tensor | None,
        cond: Tensor | None,
        probes: Tensor | None,
    ) -> Tensor:
        """Mean over rows of importance times loss."""
        told = {} if probes is None else {"probes": probes.transpose(0, 1)}
        kind = torch.autocast(x0.device.type, torch.bfloat16) if self.lower else nullcontext()
        with kind:
            each = self.loss(self.model, x0, t, noise, cond, **told)
        return each.mean() if importance is None else (importance.to(each) * each).mean()


def _shared(
    objective: Objective, world: World
) -> tuple[nn.Module, type[AbstractContextManager[None]] | Any]:
    """The objective with its gradients averaged over processes, and how to leave that out."""
    if world.size == 1:
        return objective, nullcontext
    shared = DistributedDataParallel(objective)
    return shared, shared.no_sync


Rows = tuple[Tensor | None, ...]


def drawn(
    model: Denoiser,
    batch: Batch,
    loss: Loss,
    law: TimeLaw,
    seed: int,
    step: int,
    world: World = ALONE,
) -> Rows:
    """The arguments of `Objective` for a batch: drawn for the whole of it, this process's rows kept."""
    x0, cond = batch if isinstance(batch, tuple) else (batch, None)
    n = len(x0) * world.size
    rows, event = world.share(n), x0.shape[1:]
    process, labels = model.process, labels_of(model)
    t = law.draw(n, process, step_generator(seed, step, "times"), labels)[rows.start : rows.stop]
    importance = law.importance(process, t, labels)

    def draws(draw: int) -> Tensor:
        numbers = normals(seed, step, n, rows, event, x0.dtype, draw=draw)
        return numbers.to(x0.device, non_blocking=True)

    probes = [draws(k) for k in range(1, getattr(loss, "probes", 0) + 1)]
    return (
        x0,
        t.to(x0.device, widest(x0.device)),
        draws(0),
        None if importance is None else importance.to(x0.device, widest(x0.device)),
        cond,
        torch.stack(probes, 1) if probes else None,
    )


def _parts(rows: Rows, accumulate: int) -> list[Any]:
    """Rows cut into equal parts."""
    if accumulate == 1:
        return [rows]
    n = len(rows[0])  # type: ignore[arg-type]
    if n % accumulate:
        raise ValueError(f"accumulate must divide the {n} rows of a batch, got {accumulate}")
    cut = [[None] * accumulate if r is None else r.split(n // accumulate) for r in rows]
    return list(zip(*cut, strict=True))
