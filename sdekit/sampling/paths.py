"""One Brownian path under runs of different step counts.

A plan's normal that names a stretch of a clock is the increment of a Brownian motion in that clock over it,
divided by the root of its length. The increments of a fine plan, added up, are those of a coarse one:
both runs then see the same path, for strong errors and for comparisons whose noise cancels.
"""

from bisect import bisect_left
from math import isclose, sqrt

import torch
from torch import Tensor

from sdekit.sampling.noise import BlockNormals
from sdekit.sampling.plan import Plan

#: A coarse normal as a sum of fine ones: (number, weight).
Parts = tuple[tuple[int, float], ...]


def shared_parts(coarse: Plan, fine: Plan) -> list[Parts]:
    """How each normal of `coarse` is made of the normals of `fine`; independent ones are numbered after.

    Raises:
        ValueError: an interval of the coarse plan is not made of whole, disjoint intervals of the fine one.
    """
    ordered = sorted(
        (min(i), max(i), number) for number, i in enumerate(fine.normals) if i is not None
    )
    parts, independent = list[Parts](), len(fine.normals)
    for interval in coarse.normals:
        if interval is None or isclose(*interval, rel_tol=1e-9):  # a sliver has no fine increments
            parts.append(((independent, 1.0),))
            independent += 1
        else:
            parts.append(_inside(min(interval), max(interval), ordered, fine.name))
    return parts


def _inside(low: float, high: float, ordered: list[tuple[float, float, int]], name: str) -> Parts:
    """The fine intervals that fill [low, high], weighted by the roots of their shares."""
    at = bisect_left(ordered, (low - 1e-9 * abs(low),))
    place, found = low, list[tuple[int, float]]()
    while at < len(ordered) and not isclose(place, high, rel_tol=1e-9):
        start, end, number = ordered[at]
        if not isclose(start, place, rel_tol=1e-9, abs_tol=1e-300) or start == end:
            break
        found.append((number, sqrt((end - start) / (high - low))))
        place, at = end, at + 1
    if not isclose(place, high, rel_tol=1e-9):
        raise ValueError(
            f"the noise over [{low:g}, {high:g}] of its clock is not a sum of increments of {name} on the "
            "finer grid: the finer grid must hold every time of the coarser one"
        )
    return tuple(found)


class PathNormals:
    """Unit normals of a coarse plan from those of a fine one; `normals(m)` is number m, (n, *event)."""

    def __init__(self, source: BlockNormals, parts: list[Parts]) -> None:
        self.source, self._parts = source, parts

    def start(self) -> Tensor:
        """The unit normals of the starting point, (n, *event)."""
        return self.source.start()

    def __call__(self, m: int) -> Tensor:
        """Unit normal number m, (n, *event)."""
        first, *rest = self._parts[m]
        total = self.source(first[0]) * first[1]
        for number, weight in rest:
            total.add_(self.source(number), alpha=weight)
        return total


#: The normals of a chunk.
Normals = BlockNormals | PathNormals


class NoiseSource:
    """Where the chunks of a run get their normals: numbered by its plan, or summed from a finer plan's."""

    def __init__(self, plan: Plan | None, finer: Plan | None = None) -> None:
        self._total = None if plan is None else len(plan.normals)
        self._parts: list[Parts] | None = None
        if plan is not None and finer is not None:
            self._parts = shared_parts(plan, finer)
            numbers = [number for part in self._parts for number, _ in part]
            self._total = max(numbers, default=-1) + 1

    def normals(
        self,
        seed: int,
        first: int,
        last: int,
        event: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
    ) -> Normals:
        """The normals of samples `first` to `last` - 1."""
        source = BlockNormals(seed, first, last, event, dtype, device, self._total)
        return source if self._parts is None else PathNormals(source, self._parts)
