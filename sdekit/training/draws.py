"""Everything random of a step as a function of (seed, step): a resumed run draws what it would have drawn.

Times and noise belong to rows of the whole optimiser batch, so neither accumulation nor the number of
processes that share the batch changes what a row gets.
"""

from hashlib import blake2b
from typing import Any

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
            generator=step_generator(seed, step, f"noise {draw} {block}"),
            dtype=dtype,
        )
        for block in range(first, last + 1)
    ]
    every = blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1)
    return every[:, rows.start - first * BLOCK : rows.stop - first * BLOCK]


class Draws:
    """Times, their importance and unit normals of the batches of a run, as a function of the step.

    A small batch is drawn together with those of the next steps: a call costs more than its numbers.

    Args:
        process: of the model.
        labels: N where the times are the steps of a chain.
        law: of the times.
        seed: of everything.
        normals: how many a sample, in the shape of one.
        world: the processes that share a batch.
    """

    def __init__(
        self,
        process: Process,
        labels: int | None,
        law: TimeLaw,
        seed: int,
        *,
        normals: int = 1,
        world: World = ALONE,
    ) -> None:
        self.process, self.labels, self.law, self.seed = process, labels, law, seed
        self.normals, self.world = normals, world
        self._held: tuple[Any, ...] = ()
        self._drawn: list[tuple[Tensor, ...] | None] = []

    def __call__(self, step: int, x0: Tensor) -> list[Tensor | None]:
        """Times (n,), their importance or None, and normals, for the n rows x0 that this process has."""
        n = len(x0) * self.world.size
        steps = max(1, AHEAD // max(1, n * x0[:1].numel()))
        first, place = divmod(step, steps)
        held = (first, n, x0.shape, x0.dtype, x0.device)
        if held != self._held:
            self._held, self._drawn = held, self._draw(first, steps, n, x0)
        return [None if each is None else each[place] for each in self._drawn]

    def _draw(self, first: int, steps: int, n: int, x0: Tensor) -> list[tuple[Tensor, ...] | None]:
        """The tensors of every step, `steps` of them."""
        rows, event, device = self.world.share(n), x0.shape[1:], x0.device
        generator = step_generator(self.seed, first, "times")
        t = self.law.draw(n, self.process, generator, self.labels, batches=steps)
        importance = self.law.importance(self.process, t, self.labels)
        drawn = [
            None if v is None else v.view(steps, n)[:, rows.start : rows.stop].to(widest(device))
            for v in (t, importance)
        ]
        for k in range(self.normals):
            every = normals(self.seed, first, n, rows, event, x0.dtype, draw=k, steps=steps)
            drawn.append(every)
        return [None if v is None else v.to(device, non_blocking=True).unbind() for v in drawn]


def seed_layers(seed: int, step: int, world: World, device: torch.device) -> None:
    """Seed torch's generators that dropout draws from, the CPU's and the device's, for one process's step."""
    own = key(seed, step, "layers", world.rank)
    # `torch.manual_seed` does the same in a hundred times the time.
    torch.default_generator.manual_seed(own)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(own)
