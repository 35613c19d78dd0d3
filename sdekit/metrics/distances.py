"""Distances between neighbours, in blocks."""

from collections.abc import Iterator

import torch
from torch import Tensor

# Distances held at once: 32 MB of float64.
_BLOCK = 2**22


def distance_blocks(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of |x_i - y_j|, (n, m) in all, a block at a time.

    Each is formed from differences: equal points are at distance 0, and |x - y| is |y - x| to the bit.
    """
    step = max(1, _BLOCK // len(y))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        yield rows, torch.cdist(x[rows], y, compute_mode="donot_use_mm_for_euclid_dist")


def neighbour_radii(x: Tensor, k: int) -> Tensor:
    """Distance of each point to its k-th nearest other point of the set, shape (n,), for n > k."""
    # The smallest distance is a point's own, 0.
    return torch.cat([block.kthvalue(k + 1, dim=1).values for _, block in distance_blocks(x, x)])


def nearest(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of each x to its nearest y, and which one that is, both (n,)."""
    found = [block.min(1) for _, block in distance_blocks(x, y)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])
