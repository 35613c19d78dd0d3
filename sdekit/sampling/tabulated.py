"""A grid of given times: what an optimised grid is stored as."""

import json
import math
from dataclasses import asdict, dataclass
from itertools import pairwise

from sdekit.errors import check_number
from sdekit.processes import Process
from sdekit.sampling.grids import TimeGrid


@dataclass(frozen=True)
class Tabulated(TimeGrid):
    """Given times; for other numbers of steps or other ends, uniform in their interpolated index.

    Between two of the times the index is linear in the log-SNR. Nothing is extrapolated: the ends of a run
    lie within the table.

    Args:
        nodes: at least two strictly decreasing times.
    """

    nodes: tuple[float, ...]

    def __post_init__(self) -> None:
        nodes = tuple(check_number(f"nodes[{i}]", t, 0) for i, t in enumerate(self.nodes))
        if len(nodes) < 2 or any(s <= t for s, t in pairwise(nodes)):
            raise ValueError(f"nodes must be at least two strictly decreasing times, got {nodes}")
        object.__setattr__(self, "nodes", nodes)

    def clock(self, process: Process, t: float) -> float:
        """The interpolated index."""
        if not self.nodes[-1] <= t <= self.nodes[0]:
            raise ValueError(
                f"t must lie within the table, [{self.nodes[-1]:g}, {self.nodes[0]:g}], got {t}"
            )
        if t in self.nodes:
            return float(self.nodes.index(t))
        i = sum(node > t for node in self.nodes) - 1
        first, last = self._interval(process, i)
        return i + (float(process.log_snr(t)) - first) / (last - first)

    def time(self, process: Process, reading: float) -> float:
        """The time at an index."""
        i = math.floor(reading)
        if i == reading:
            return self.nodes[i]
        first, last = self._interval(process, i)
        return float(process.time_at_log_snr(first + (reading - i) * (last - first)))

    def to_json(self) -> str:
        """One line of JSON with the same floats."""
        return json.dumps({"grid": type(self).__name__, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> "Tabulated":
        """The grid that `to_json` wrote.

        Raises:
            ValueError: it is not one.
        """
        try:
            fields = json.loads(text)
            if fields.pop("grid") != cls.__name__:
                raise ValueError("of another class")
            return cls(**fields)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"text is not the JSON of a grid: {error}; got {text!r}") from None

    def _interval(self, process: Process, i: int) -> tuple[float, float]:
        """The log-SNR at the ends of an interval."""
        first, last = (float(process.log_snr(t)) for t in self.nodes[i : i + 2])
        return first, last
