"""The inner loop of training: one optimiser step a batch, yours to own."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sdekit.denoisers import Denoiser
from sdekit.errors import NumericsError, check_choice, check_integer, check_number
from sdekit.training.draws import Draws
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
        batches: x0 (n, *event), or (x0, cond) pairs, such as those of a `DataLoader`.
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
        ValueError, TypeError: an argument, or a batch that is none.
        NumericsError: a loss or gradient that is not finite; the parameters are as before that step.
    """
    loss = DenoisingLoss() if loss is None else loss
    check_loss(loss)
    check_model(model)
    _check_optimizer(optimizer, model)
    limit = math.inf if clip is None else check_number("clip", clip, 0, open_low=True)
    accumulate = check_integer("accumulate", accumulate, 1)
    law, world = resolve_times(times), World.current()
    rows = draws_of(model, loss, law, seed, world)
    objective, unsynced = _shared(Objective(model, loss, precision), world)
    for index, batch in enumerate(batches, first):
        parts = _parts(rows(index, batch), accumulate)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for parameter in parameters:  # what `zero_grad` does, in a sixth of its time
            parameter.grad = None
        values = []
        for part in parts:
            with nullcontext() if part is parts[-1] else unsynced():
                value = objective(*part)
                value = value if accumulate == 1 else value / accumulate
                value.backward()
            values.append(value.detach())
        mean = world.total(sum(values[1:], values[0])) / world.size
        gradients = [p.grad for p in parameters if p.grad is not None]
        value, size = torch.stack([mean, _norm(gradients).to(mean.device)]).tolist()
        if not (math.isfinite(value) and math.isfinite(size)):
            raise NumericsError(
                f"loss {value:g} and gradient norm {size:g} at step {index} are not finite"
            )
        if size > limit:
            torch._foreach_mul_(gradients, limit / (size + 1e-6))  # pyright: ignore[reportPrivateImportUsage]
        del gradients  # or two sets would be held in the next step
        optimizer.step()
        yield Step(index, value, size)


def check_model(model: Any) -> None:
    """Raise for a model that cannot be trained."""
    if not (isinstance(model, Denoiser) and isinstance(model, nn.Module)):
        raise TypeError(f"model must be a Denoiser and a torch module, got {type(model).__name__}")


def check_loss(loss: Any) -> None:
    """Raise unless it is an instance of a loss."""
    if not callable(loss) or isinstance(loss, type | nn.Module):
        given = loss.__name__ if isinstance(loss, type) else type(loss).__name__
        raise TypeError(
            f'loss must be an instance of a loss, such as DenoisingLoss("likelihood"), got {given}'
        )


def _check_optimizer(optimizer: Any, model: Any) -> None:
    """Raise for one that would leave the model as it is."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be an Optimizer of torch, got {type(optimizer).__name__}")
    own = {id(p) for p in model.parameters()}
    if own.isdisjoint(id(p) for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("optimizer must be over parameters of the model, and has none of them")


def _norm(gradients: list[Tensor]) -> Tensor:
    """Their norm as one vector; `clip_grad_norm_` has the same, and scales without asking whether it must."""
    if not gradients:
        return torch.zeros(())
    norms = torch._foreach_norm(gradients)  # pyright: ignore[reportPrivateImportUsage]
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))


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


def draws_of(
    model: Denoiser, loss: Loss, law: TimeLaw, seed: int, world: World = ALONE
) -> Callable[[int, Batch], Rows]:
    """The arguments of `Objective` for a step's batch: drawn for all of it, this process's rows kept."""
    noises = 1 + getattr(loss, "probes", 0)
    draws = Draws(model.process, labels_of(model), law, seed, noises=noises, world=world)

    def rows(step: int, batch: Batch) -> Rows:
        x0, cond = _pair(batch)
        t, importance, (noise, *probes) = draws(step, x0)
        return x0, t, noise, importance, cond, torch.stack(probes, 1) if probes else None

    return rows


def _pair(batch: Any) -> tuple[Tensor, Tensor | None]:
    """x0 and cond of a batch."""
    parts = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
    if len(parts) not in (1, 2) or not all(isinstance(part, Tensor) for part in parts):
        given = ", ".join(type(part).__name__ for part in parts)
        raise TypeError(f"batches must give tensors x0 or pairs (x0, cond) of them, got ({given})")
    x0, cond = parts[0], parts[1] if len(parts) == 2 else None
    if not x0.is_floating_point():
        raise TypeError(
            f"batches must be floating point, got {x0.dtype}; scale them to about [-1, 1]"
        )
    return x0, cond


def _parts(rows: Rows, accumulate: int) -> list[Any]:
    """Rows cut into equal parts."""
    if accumulate == 1:
        return [rows]
    n = len(rows[0])  # type: ignore[arg-type]
    if n % accumulate:
        raise ValueError(f"accumulate must divide the {n} rows of a batch, got {accumulate}")
    cut = [[None] * accumulate if r is None else r.split(n // accumulate) for r in rows]
    return list(zip(*cut, strict=True))
