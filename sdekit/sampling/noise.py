"""Normals that belong to a sample, not to a batch.

Sample i gets the same numbers alone, in any batch and in any chunk: normals come in blocks of 256 samples and
slabs of 32 rows, each block and slab from its own generator, sample by sample (small ones a few at a time).
torch fills in runs of 16, so a short block, filled to a multiple of 16, is a prefix of the full one.
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
        # Four rounds of a bijection keyed by the seed: no two (block, slab) of a run share a stream, and
        # runs of different seeds overlap no more than chance has it.
        key = random.Random(seed)
        self._rounds = [(key.getrandbits(32), key.getrandbits(32) | 1) for _ in range(4)]
        self._generator = torch.Generator()
        self._slab, self._rows = -1, torch.empty(0)
        self._buffers: _Buffers | None = None

    def start(self) -> Tensor:
        """The unit normals of the starting point, (n, *event)."""
        return self._draw(_START, _Buffers(self, 1))[0]

    def __call__(self, m: int) -> Tensor:
        """Unit normal number m, (n, *event); overwritten when another slab is asked for."""
        slab, row = divmod(m, SLAB)
        if slab != self._slab:
            if slab >= _START:
                raise ValueError(f"a run has at most {_START * SLAB} normals a sample, got {m}")
            self._buffers = self._buffers or _Buffers(self, SLAB)
            self._rows, self._slab = self._draw(slab, self._buffers), slab
        return self._rows[row]

    def _draw(self, slab: int, into: "_Buffers") -> Tensor:
        """(rows, n, *event): the blocks that overlap [first, last), cut to it."""
        block = self.first // BLOCK
        for i, (drawn, by_group, by_row) in enumerate(into.blocks):
            drawn.normal_(generator=self._generator.manual_seed(self._key(block + i, slab)))
            by_row.copy_(by_group)
        return into.rows.to(self.device)

    def _key(self, block: int, slab: int) -> int:
        key = ((block << 12) | slab) & _MASK
        for xor, odd in self._rounds:
            key = ((key ^ xor) * odd) & _MASK
            key ^= key >> 15
        return key


class _Buffers:
    """Memory for some rows of a run, used again for every slab."""

    def __init__(self, of: BlockNormals, rows: int) -> None:
        numbers = torch.Size(of.event).numel()
        # Small samples are laid out by the group, so that a row is made of runs of 17 to 32 numbers.
        group = 1 << max(0, 5 - (numbers - 1).bit_length())
        skipped = of.first % BLOCK
        groups = -(-(of.last - of.first + skipped) // group)
        by_row = torch.empty(rows, groups, group * numbers, dtype=of.dtype)
        samples = by_row.view(rows, groups * group, *(of.event or (1,)))[:, skipped:]
        self.rows = samples[:, : of.last - of.first].view(rows, -1, *of.event)
        #: A block at a time: where it is drawn, how it is read, where it goes.
        self.blocks: list[tuple[Tensor, Tensor, Tensor]] = []
        drawn = torch.empty(0)
        for part in by_row.split(BLOCK // group, 1):
            if not self.blocks:
                drawn = torch.empty(-(-part.numel() // 16) * 16, dtype=of.dtype)
            by_group = drawn[: part.numel()].view(-1, rows, group * numbers).transpose(0, 1)
            self.blocks.append((drawn[: -(-part.numel() // 16) * 16], by_group, part))
