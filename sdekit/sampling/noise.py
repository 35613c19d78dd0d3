"""Normals that belong to a sample, not to a batch.

Sample i gets the same numbers alone, in any batch and in any chunk: normals come in blocks of 256 samples and
slabs of up to 32 rows, each block and slab from its own generator, sample by sample (small ones a few at a
time).
torch fills in runs of 16, so a short block, filled to a multiple of 16, is a prefix of the full one.
Numbers are drawn on the CPU, so they do not depend on the device either.
"""

import hashlib
import math
import struct
import threading

import torch
from torch import Tensor

BLOCK, SLAB = 256, 32
_START = (1 << 12) - 1  # the slab of the starting point
_MASK = (1 << 32) - 1


class BlockNormals:
    """The unit normals of samples `first` to `last` - 1 of a run; `normals(m)` is number m, (n, *event).

    A run that knows its `total` of normals gets slabs of equal size, so that it draws hardly more; the
    numbers then depend on that total.
    """

    def __init__(
        self,
        seed: int,
        first: int,
        last: int,
        event: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        total: int | None = None,
    ) -> None:
        self.first, self.last, self.event = first, last, event
        self.slab = SLAB if not total else -(-total // -(-total // SLAB))
        self.dtype, self.device = dtype, device
        # Four rounds of a bijection keyed by the seed: no two (block, slab) of a run share a stream, and
        # runs of different seeds overlap no more than chance has it.
        key = struct.unpack("<8I", hashlib.blake2b(seed.to_bytes(8), digest_size=32).digest())
        self._rounds = [(xor, odd | 1) for xor, odd in zip(key[:4], key[4:], strict=True)]
        self._slab, self._rows = -1, tuple[Tensor, ...]()
        self._buffers: _SlabBuffers | None = None

    def start(self) -> Tensor:
        """The unit normals of the starting point, (n, *event)."""
        numbers, skipped = math.prod(self.event), self.first % BLOCK
        end = (self.last - self.first + skipped) * numbers
        drawn = torch.empty(_padded(end), dtype=self.dtype)
        for i, part in enumerate(drawn.split(BLOCK * numbers)):
            self._fill(part, i, _START)
        return drawn[skipped * numbers : end].view(-1, *self.event).to(self.device)

    def __call__(self, m: int) -> Tensor:
        """Unit normal number m, (n, *event); overwritten when another slab is asked for."""
        slab, row = divmod(m, self.slab)
        if slab != self._slab:
            if slab >= _START:
                raise ValueError(
                    f"a run has at most {_START * self.slab} normals a sample, got {m}"
                )
            self._rows, self._slab = self._draw(slab), slab
        return self._rows[row]

    def _draw(self, slab: int) -> tuple[Tensor, ...]:
        """The rows of a slab, (n, *event) each."""
        into = self._buffers = self._buffers or _SlabBuffers(self)
        for i, (drawn, by_group, by_row) in enumerate(into.blocks):
            self._fill(drawn, i, slab)
            by_row.copy_(by_group)
        return into.rows if self.device.type == "cpu" else into.normals.to(self.device).unbind()

    def _fill(self, part: Tensor, i: int, slab: int) -> None:
        """Draw the run's i-th block, or its beginning."""
        key = self._key(self.first // BLOCK + i, slab)
        part.normal_(generator=_local.generator.manual_seed(key))

    def _key(self, block: int, slab: int) -> int:
        key = ((block << 12) | slab) & _MASK
        for xor, odd in self._rounds:
            key = ((key ^ xor) * odd) & _MASK
            key ^= key >> 15
        return key


def derived_seed(seed: int, purpose: str) -> int:
    """A seed for another purpose, whose numbers have nothing to do with those of a run with `seed`."""
    digest = hashlib.blake2b(purpose.encode() + seed.to_bytes(8), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


class _Local(threading.local):
    """A generator for each thread, seeded before every draw: to make one takes as long as two steps."""

    def __init__(self) -> None:
        self.generator = torch.Generator()


_local = _Local()


class _SlabBuffers:
    """Memory for a slab of a run, used again for the next."""

    def __init__(self, of: BlockNormals) -> None:
        numbers, skipped = math.prod(of.event), of.first % BLOCK
        # Small samples are laid out by the group, so that a row is made of runs of 17 to 32 numbers.
        group = 1 << max(0, 5 - (numbers - 1).bit_length())
        groups = -(-(of.last - of.first + skipped) // group)
        width, per_block = group * numbers, BLOCK // group
        slab = of.slab
        by_row = torch.empty(slab, groups, width, dtype=of.dtype)
        samples = by_row.view(slab, groups * group, *(of.event or (1,)))
        samples = samples[:, skipped : skipped + of.last - of.first]
        self.normals = samples.view(slab, -1, *of.event)
        self.rows = self.normals.unbind()

        one = torch.empty(_padded(min(per_block, groups) * slab * width), dtype=of.dtype)
        #: A block at a time: where it is drawn, how it is read, where it goes.
        self.blocks: list[tuple[Tensor, Tensor, Tensor]] = []
        for part in by_row.split(per_block, 1):
            by_group = one[: part.numel()].view(-1, slab, width).transpose(0, 1)
            self.blocks.append((one[: _padded(part.numel())], by_group, part))


def _padded(count: int) -> int:
    """The next multiple of the 16 numbers that torch fills at a time."""
    return -(-count // 16) * 16
