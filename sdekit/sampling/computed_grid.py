"""A grid of given times, with a clock: what `optimise_grid` finds."""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from sdekit.errors import CheckpointError, check_number
from sdekit.processes import Process
from sdekit.sampling.grids import TimeGrid


@dataclass(frozen=True)
class ComputedGrid(TimeGrid):
    """Given times, the knots t_0 > ... > t_N; its clock is the position on the grid, linear in log-SNR in between.

    With N steps between its own ends it is these times exactly, with other steps or ends inside its own it is
    uniform in the clock.
    """

    knots: tuple[float, ...]

    def __post_init__(self) -> None:
        times = tuple(check_number(f"knots[{i}]", t, 0) for i, t in enumerate(self.knots))
        if len(times) < 2 or any(a <= b for a, b in pairwise(times)):
            raise ValueError(
                f"knots must be two or more strictly decreasing times, got {self.knots}"
            )
        object.__setattr__(self, "knots", times)

    @property
    def steps(self) -> int:
        """Intervals N."""
        return len(self.knots) - 1

    def times(self, process: Process, steps: int, t_start: float, t_end: float) -> list[float]:
        """Its own times where they fit, else N + 1 uniform in its clock."""
        if (steps, t_start, t_end) == (self.steps, self.knots[0], self.knots[-1]):
            return list(self.knots)
        return super().times(process, steps, t_start, t_end)

    def clock(self, process: Process, t: float) -> float:
        """Position on the grid, from 0 at its first time to N at its last."""
        if not self.knots[-1] <= t <= self.knots[0]:
            first, last = self.knots[0], self.knots[-1]
            raise ValueError(f"this grid runs from {first:g} to {last:g}, asked for t = {t:g}")
        places = [float(process.log_snr(u)) for u in self.knots]
        return float(np.interp(float(process.log_snr(t)), places, range(len(places))))

    def time(self, process: Process, reading: float) -> float:
        """The time at this position."""
        places = [float(process.log_snr(u)) for u in self.knots]
        return float(process.time_at_log_snr(float(np.interp(reading, range(len(places)), places))))

    def save(self, path: str | Path) -> None:
        """Write the times as JSON."""
        Path(path).write_text(json.dumps({"ComputedGrid": self.knots}) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "ComputedGrid":
        """The grid in a file written by `save`: the same floats.

        Raises:
            CheckpointError: the file is not one.
        """
        try:
            return cls(tuple(json.loads(Path(path).read_text())["ComputedGrid"]))
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{path} is not a grid written by ComputedGrid.save") from error
