"""Everything random of a step as a function of (seed, step): a resumed run draws what it would have drawn.

Times and noise belong to rows of the whole optimiser batch, so neither accumulation nor the number of
processes that share the batch changes what a row gets.
"""

from hashlib import blake2b

import torch
from torch import Tensor

from sdekit.world import World

#: Rows whose normals come from one generator; a process with some of them draws these and no others.
BLOCK = 256


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
) -> Tensor:
    """Unit normals (len(rows), *event) of some rows of a step's `n`; `draw` tells several of them apart."""
    first, last = rows.start // BLOCK, (rows.stop - 1) // BLOCK
    blocks = [
        torch.randn(
            min(BLOCK, n - block * BLOCK),
            *event,
            generator=step_generator(seed, step, f"noise {draw} {block}"),
            dtype=dtype,
        )
        for block in range(first, last + 1)
    ]
    every = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
    return every[rows.start - first * BLOCK : rows.stop - first * BLOCK]


def seed_layers(seed: int, step: int, world: World, device: torch.device) -> None:
    """Seed torch's generators that dropout draws from, the CPU's and the device's, for one process's step."""
    own = key(seed, step, "layers", world.rank)
    # `torch.manual_seed` does the same in a hundred times the time.
    torch.default_generator.manual_seed(own)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(own)
