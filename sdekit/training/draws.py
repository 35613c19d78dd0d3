"""Everything random of a step as a function of (seed, step): a resumed run draws what it would have drawn.

Times and noise belong to rows of the whole optimiser batch, so neither accumulation nor the number of
processes that share the batch changes what a row gets. A batch of another shape has streams of its own.
"""

from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

import torch
from torch import Tensor

from sdekit.elementary import widest
from sdekit.processes import Process
from sdekit.training.times import TimeLaw
from sdekit.world import ALONE, World

#: Rows whose normals come from one generator; a process with some of them draws these and no others.
BLOCK = 256
#: Numbers that are drawn at once, where one step takes fewer.
AHEAD = 1 << 14


def key(*parts: object) -> int:
    """A seed made of the parts: all bits of it depend on all of them."""
    text = " ".join(map(str, parts)).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little") >> 1


def step_generator(seed: int, step: int, purpose: str) -> torch.Generator:
    """The generator of one purpose at one step."""
    return torch.Generator().manual_seed(key(seed, step, purpose))


def _shape(n: int, event: torch.Size) -> str:
    """How streams tell batches apart; numbers are vectors of one."""
    return f"{n} x {tuple(event) or (1,)}"


def normals(
    seed: int,
    step: int,
    n: int,
    rows: range,
    event: torch.Size,
    dtype: torch.dtype,
    *,
    draw: int = 0,
    steps: int = 1,
) -> Tensor:
    """Unit normals (steps, len(rows), *event) of some rows of `n`; `draw` tells several of them apart."""
    first, last = rows.start // BLOCK, (rows.stop - 1) // BLOCK
    blocks = [
        torch.randn(
            steps,
            min(BLOCK, n - block * BLOCK),
            *event,
            generator=step_generator(seed, step, f"noise {draw} {block} of {_shape(n, event)}"),
            dtype=dtype,
        )
        for block in range(first, last + 1)
    ]
    every = blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1)
    return every[:, rows.start - first * BLOCK : rows.stop - first * BLOCK]


class Drawn(NamedTuple):
    """What is drawn for n rows."""

    #: (n,), float64 where the device has it.
    times: Tensor
    #: Factors (n,) of the losses, None for 1.
    importance: Tensor | None
    #: Unit normals in the shape of the rows, as many as were asked for.
    noises: tuple[Tensor, ...]


class Draws:
    """Times, their importance and unit normals of the batches of a run, as a function of the step.

    A small batch is drawn together with those of the next steps: a call costs more than its numbers.

    Args:
        process: of the model.
        labels: N where the times are the steps of a chain.
        law: of the times.
        seed: of everything.
        noises: normals a row.
        world: the processes that share a batch.
    """

    def __init__(
        self,
        process: Process,
        labels: int | None,
        law: TimeLaw,
        seed: int,
        *,
        noises: int = 1,
        world: World = ALONE,
    ) -> None:
        self.process, self.labels, self.law, self.seed = process, labels, law, seed
        self.noises, self.world = noises, world
        # Two, so that a short last batch of an epoch does not drop those of the others.
        self._ahead = lru_cache(maxsize=2)(self._drawn_ahead)

    def __call__(self, step: int, x0: Tensor) -> Drawn:
        """Those of a step for the rows x0 that this process has of the batch."""
        n = len(x0) * self.world.size
        steps = max(1, AHEAD // max(1, n * x0[:1].numel()))
        chunk, place = divmod(step, steps)
        return self._ahead(chunk, steps, n, x0.shape[1:], x0.dtype, x0.device)[place]

    def _drawn_ahead(
        self,
        chunk: int,
        steps: int,
        n: int,
        event: torch.Size,
        dtype: torch.dtype,
        device: torch.device,
    ) -> list[Drawn]:
        """Those of the steps chunk * steps and on."""
        rows = self.world.share(n)
        generator = step_generator(self.seed, chunk, f"times of {_shape(n, event)}")
        t = self.law.draw(n, self.process, generator, self.labels, batches=steps)
        importance = self.law.importance(self.process, t, self.labels)

        def of_steps(values: Tensor) -> tuple[Tensor, ...]:
            mine = values.view(steps, n)[:, rows.start : rows.stop]
            return mine.to(device, widest(device), non_blocking=True).unbind()

        noises = [
            normals(self.seed, chunk, n, rows, event, dtype, draw=k, steps=steps)
            .to(device, non_blocking=True)
            .unbind()
            for k in range(self.noises)
        ]
        factors = [None] * steps if importance is None else of_steps(importance)
        return [
            Drawn(*each)
            for each in zip(of_steps(t), factors, zip(*noises, strict=True), strict=True)
        ]


def seed_layers(seed: int, step: int, world: World, device: torch.device) -> None:
    """Seed torch's generators that dropout draws from, the CPU's and the device's, for one process's step."""
    own = key(seed, step, "layers", world.rank)
    # `torch.manual_seed` does the same in a hundred times the time.
    torch.default_generator.manual_seed(own)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(own)
