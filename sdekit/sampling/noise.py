"""Normals that belong to a sample, not to a batch.

Sample i gets the same numbers alone, in any batch and in any chunk: normals come in blocks of 256 samples and
slabs of 32 rows, each block and slab from its own generator, sample by sample. `torch.randn` fills in runs of
16, and 32 rows of a sample are a multiple of 16, so a short block is a prefix of the full one.
Numbers are drawn on the CPU, so they do not depend on the device either.
"""

import random

import torch
from torch import Tensor

BLOCK, SLAB = 256, 32
_START = (1 << 12) - 1  # the slab of the starting point
_MASK = (1 << 32) - 1


class BlockNormals:
    """The unit normals of samples `first` to `last` - 1 of a run; `normals(m)` is number m, (n, *event)."""

    def __init__(
        self,
        seed: int,
        first: int,
        last: int,
        event: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.first, self.last, self.event = first, last, event
        self.dtype, self.device = dtype, device
        self._numbers = torch.Size(event).numel()
        # Four rounds of a bijection keyed by the seed: no two (block, slab) of a run share a stream, and
        # runs of different seeds overlap no more than chance has it.
        key = random.Random(seed)
        self._rounds = [(key.getrandbits(32), key.getrandbits(32) | 1) for _ in range(4)]
        self._generator = torch.Generator()
        self._slab, self._buffer = -1, torch.empty(0)

    def start(self) -> Tensor:
        """The unit normals of the starting point, (n, *event)."""
        return self._draw(_START, 1)[0]

    def __call__(self, m: int) -> Tensor:
        """Unit normal number m, (n, *event); valid until a later slab is asked for."""
        slab, row = divmod(m, SLAB)
        if slab != self._slab:
            if slab >= _START:
                raise ValueError(f"a run has at most {_START * SLAB} normals a sample, got {m}")
            self._buffer, self._slab = self._draw(slab, SLAB), slab
        return self._buffer[row]

    def _draw(self, slab: int, rows: int) -> Tensor:
        """(rows, n, *event): the blocks that overlap [first, last), side by side."""
        width = rows * self._numbers
        padded = -(-width // 16) * 16
        out = torch.empty(rows, self.last - self.first, self._numbers, dtype=self.dtype)
        for block in range(self.first // BLOCK, -(-self.last // BLOCK)):
            low = block * BLOCK
            count = min(self.last - low, BLOCK)
            generator = self._generator.manual_seed(self._key(block, slab))
            drawn = torch.randn(count, padded, generator=generator, dtype=self.dtype)
            kept = drawn[max(self.first - low, 0) :, :width].unflatten(1, (rows, self._numbers))
            start = max(low - self.first, 0)
            out[:, start : start + len(kept)] = kept.transpose(0, 1)
        return out.unflatten(2, self.event or (1,)).reshape(rows, -1, *self.event).to(self.device)

    def _key(self, block: int, slab: int) -> int:
        key = ((block << 12) | slab) & _MASK
        for xor, odd in self._rounds:
            key = ((key ^ xor) * odd) & _MASK
            key ^= key >> 15
        return key
