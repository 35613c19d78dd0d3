"""Time grids: N steps are N intervals between N + 1 times, from t_start down to t_end.

Every grid in use is uniform in some clock of the process, so a grid *is* a clock and its inverse. The end
points are exact. A grid is a value: it prints as what makes it, compares and hashes by it, and is written to
and read from JSON.
"""

import json
import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from torch import Tensor

from sdekit.elementary import sigmoid, softplus
from sdekit.errors import check_choice, check_integer, check_number
from sdekit.processes import Process


class TimeGrid(ABC):
    """Uniform in a clock. Write `clock` and `time`, monotone and inverse to each other."""

    @abstractmethod
    def clock(self, process: Process, t: float) -> float:
        """The clock's reading at time t."""

    @abstractmethod
    def time(self, process: Process, reading: float) -> float:
        """The time at which the clock has this reading."""

    def at_log_snr(self, process: Process, values: Tensor) -> list[float]:
        """The clock's readings where log_snr has these values, (n,) in float64."""
        times = torch.as_tensor(process.time_at_log_snr(values))
        return [self.clock(process, t) for t in times.tolist()]

    def times(self, process: Process, steps: int, t_start: float, t_end: float) -> list[float]:
        """N + 1 strictly decreasing times, the first t_start, the last t_end.

        An end where the clock is infinite (alpha = 0 or sigma = 0) takes one step: the grid is uniform from
        t_max, or down to t_min, and the step between there and the end is the plan's own.
        """
        steps = check_integer("steps", steps, 1)
        t_start = check_number("t_start", t_start, 0, process.horizon, open_low=True)
        t_end = check_number("t_end", t_end, 0, t_start, open_high=True)
        finite = [math.isfinite(self.clock(process, t)) for t in (t_start, t_end)]
        start = t_start if finite[0] else process.t_max
        end = t_end if finite[1] else process.t_min
        count = steps - finite.count(False)
        if count < 1:  # no room between two infinite ends
            return [t_start, *[start] * (steps - 1), t_end]
        first, last = self.clock(process, start), self.clock(process, end)
        inner = [self.time(process, first + (last - first) * i / count) for i in range(1, count)]
        head, tail = ([] if ok else [t] for ok, t in zip(finite, (t_start, t_end), strict=True))
        return check_times([*head, start, *inner, end, *tail], process)

    def to_json(self) -> str:
        """The class's name and the fields, as one line of JSON; `from_json` reads it back.

        Raises:
            TypeError: a grid that is not one of this module's.
        """
        if type(self) not in _WRITTEN.values():
            raise TypeError(f"only grids of sdekit are written, got {self!r}")
        return json.dumps({"grid": type(self).__name__, **asdict(self)})  # type: ignore[call-overload]

    @staticmethod
    def from_json(text: str) -> "TimeGrid":
        """The grid that `to_json` wrote.

        Raises:
            ValueError: not JSON, an unknown grid, or a field that is missing, unknown or out of range.
        """
        try:
            fields = json.loads(text)
            if not isinstance(fields, dict) or "grid" not in fields:
                raise ValueError('needs an object with the entry "grid"')
            name = fields.pop("grid")
            check_choice("grid", name, tuple(_WRITTEN))
            return _WRITTEN[name](**fields)
        except (TypeError, ValueError) as error:
            raise ValueError(f"text is not the JSON of a grid: {error}; got {text!r}") from None


@dataclass(frozen=True)
class Power(TimeGrid):
    """t^(1/power) uniform: 1 is uniform in t, 2 the quadratic grid of DDIM, 3 the cubic one."""

    power: float = 1.0

    def __post_init__(self) -> None:
        check_number("power", self.power, 0, open_low=True)

    def clock(self, process: Process, t: float) -> float:
        """t^(1/power)."""
        return t ** (1 / self.power)

    def time(self, process: Process, reading: float) -> float:
        """reading^power."""
        return reading**self.power


@dataclass(frozen=True)
class Karras(TimeGrid):
    """(sigma / alpha)^(1/power) uniform.  Karras et al. 2022, eq. 5."""

    power: float = 7.0

    def __post_init__(self) -> None:
        check_number("power", self.power, 0, open_low=True)

    def clock(self, process: Process, t: float) -> float:
        """rho^(1/power)."""
        return _rho(process, t) ** (1 / self.power)

    def time(self, process: Process, reading: float) -> float:
        """The time with rho = reading^power."""
        return float(process.time_at_log_snr(-2 * self.power * math.log(reading)))


@dataclass(frozen=True)
class LogSNR(TimeGrid):
    """log(alpha / sigma) uniform.  Lu et al. 2022 (DPM-Solver)."""

    def clock(self, process: Process, t: float) -> float:
        """log_snr(t)."""
        return float(process.log_snr(t))

    def at_log_snr(self, process: Process, values: Tensor) -> list[float]:
        """The values themselves."""
        return values.tolist()

    def time(self, process: Process, reading: float) -> float:
        """Inverse of log_snr."""
        return float(process.time_at_log_snr(reading))


@dataclass(frozen=True)
class Angle(TimeGrid):
    """atan(sigma / (alpha data_std)) uniform: the best grid of a first-order flow step on N(0, data_std^2).

    Sabour et al. 2024 for the optimality; on such data DDIM shrinks the standard deviation by exactly
    cos(step)^N.
    """

    data_std: float = 1.0

    def __post_init__(self) -> None:
        check_number("data_std", self.data_std, 0, open_low=True)

    def clock(self, process: Process, t: float) -> float:
        """The angle."""
        return math.atan(_rho(process, t) / self.data_std)

    def time(self, process: Process, reading: float) -> float:
        """The time with rho = data_std tan(reading)."""
        return float(process.time_at_log_snr(-2 * math.log(self.data_std * math.tan(reading))))


@dataclass(frozen=True)
class FlowTime(TimeGrid):
    """sigma / (alpha + sigma) uniform: t of the straight path with the same signal-to-noise ratio.

    Lipman et al. 2023; Liu et al. 2023. On `Interpolant` it is t itself.
    """

    def clock(self, process: Process, t: float) -> float:
        """The time on the straight path."""
        return float(sigmoid(-0.5 * process.log_snr(t)))

    def at_log_snr(self, process: Process, values: Tensor) -> list[float]:
        """1 / (1 + alpha / sigma)."""
        return torch.as_tensor(sigmoid(-0.5 * values)).tolist()

    def time(self, process: Process, reading: float) -> float:
        """The time with sigma / alpha = reading / (1 - reading)."""
        return float(process.time_at_log_snr(2 * math.log((1 - reading) / reading)))


@dataclass(frozen=True)
class Cosine(TimeGrid):
    """t = T (1 - cos(angle)), angle uniform: half-cosine spacing, quadratic near the data only."""

    def clock(self, process: Process, t: float) -> float:
        """The angle, as 2 asin(sqrt(t / 2T)): acos(1 - t / T) loses the digits of a small t."""
        return 2 * math.asin(math.sqrt(0.5 * t / process.horizon))

    def time(self, process: Process, reading: float) -> float:
        """2 T sin^2(reading / 2)."""
        return 2 * process.horizon * math.sin(0.5 * reading) ** 2


@dataclass(frozen=True)
class Beta(TimeGrid):
    """B^(1/power) uniform, B = log(1 + (sigma / alpha)^2): with power 1 the quantiles of beta.

    B is the integral of beta of a VP process; for any other process it is that of the VP process with the
    same signal-to-noise ratio, so the grid is made of the log-SNR alone. Power 6 is near the cubic grid of a
    VP process with linear beta. Powers 4 to 8 are on average over processes and step counts the best of the
    grids here for exponential integrators: 8 in data, 4 in noise, 6 in v, 5 in flow prediction.
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        check_number("power", self.power, 0, open_low=True)

    def clock(self, process: Process, t: float) -> float:
        """B^(1/power)."""
        return float(softplus(-float(process.log_snr(t)))) ** (1 / self.power)

    def time(self, process: Process, reading: float) -> float:
        """The time with B = reading^power."""
        b = reading**self.power
        # log(e^B - 1), where e^B may overflow.
        return float(process.time_at_log_snr(-(b + math.log(-math.expm1(-b)))))


@dataclass(frozen=True)
class Tabulated(TimeGrid):
    """Given times; for other numbers of steps or other ends, uniform in their interpolated index.

    Between two of the times the index is linear in the log-SNR: twice as many steps halve every interval in
    log-SNR. Nothing is extrapolated: the ends of a run lie within the table.

    Args:
        nodes: at least two strictly decreasing times.
    """

    nodes: tuple[float, ...]

    def __post_init__(self) -> None:
        if isinstance(self.nodes, str) or not isinstance(self.nodes, Sequence | Tensor):
            raise TypeError(f"nodes must be a sequence of times, got {type(self.nodes).__name__}")
        given = self.nodes.tolist() if isinstance(self.nodes, Tensor) else self.nodes
        if not isinstance(given, Sequence) or len(given) < 2:
            raise ValueError(f"nodes must be a sequence of at least two times, got {given!r}")
        nodes = tuple(check_number(f"nodes[{i}]", t, 0) for i, t in enumerate(given))
        for i, (s, t) in enumerate(pairwise(nodes), 1):
            if not t < s:
                raise ValueError(
                    f"nodes must decrease strictly, got nodes[{i - 1}] = {s}, nodes[{i}] = {t}"
                )
        object.__setattr__(self, "nodes", nodes)

    def clock(self, process: Process, t: float) -> float:
        """The interpolated index."""
        if not self.nodes[-1] <= t <= self.nodes[0]:
            raise ValueError(
                f"t must lie within the table, [{self.nodes[-1]:g}, {self.nodes[0]:g}], got {t}"
            )
        i = bisect_left(self.nodes, -t, key=lambda node: -node)
        if self.nodes[i] == t:
            return float(i)
        first, last = self._interval(process, i - 1)
        return i - 1 + (float(process.log_snr(t)) - first) / (last - first)

    def time(self, process: Process, reading: float) -> float:
        """The time at an index."""
        i = math.floor(reading)
        if i == reading:
            return self.nodes[i]
        first, last = self._interval(process, i)
        return float(process.time_at_log_snr(first + (reading - i) * (last - first)))

    def _interval(self, process: Process, i: int) -> tuple[float, float]:
        """The log-SNR at the ends of an interval."""
        first, last = (float(process.log_snr(t)) for t in self.nodes[i : i + 2])
        if not math.isfinite(last - first):
            raise ValueError(
                f"steps must be those of the table: {self.nodes[i : i + 2]} cannot be divided in "
                f"log-SNR, which is infinite at one end for {process!r}"
            )
        return first, last


#: The grids that JSON can hold, by name.
_WRITTEN: dict[str, type[TimeGrid]] = {
    c.__name__: c for c in (Power, Karras, LogSNR, Angle, FlowTime, Cosine, Beta, Tabulated)
}

#: The grids that have names.
GRIDS: dict[str, TimeGrid] = {
    "uniform": Power(1.0),
    "quadratic": Power(2.0),
    "cubic": Power(3.0),
    "karras": Karras(),
    "log-snr": LogSNR(),
    "angle": Angle(),
    "flow-time": FlowTime(),
    "cosine": Cosine(),
    "beta": Beta(),
    "beta6": Beta(6.0),
}


def resolve_grid(grid: str | TimeGrid) -> TimeGrid:
    """A grid by name or as itself."""
    if isinstance(grid, TimeGrid):
        return grid
    if not isinstance(grid, str):
        raise TypeError(
            f"grid must be a name, a TimeGrid or a 1-D tensor, got {type(grid).__name__}"
        )
    return GRIDS[check_choice("grid", grid, tuple(GRIDS))]


def check_times(
    times: Tensor | Sequence[float], process: Process, name: str = "times"
) -> list[float]:
    """At least two strictly decreasing times in [0, T], as floats; errors call them `name`.

    Raises:
        ValueError: not one-dimensional, too short, NaN, duplicates, increasing, or outside [0, T].
    """
    vector = torch.as_tensor(times, dtype=torch.float64)
    if vector.ndim != 1 or len(vector) < 2:
        raise ValueError(
            f"{name} must be a 1-D sequence of at least two times, got shape {tuple(vector.shape)}"
        )
    values = vector.tolist()
    for i, t in enumerate(values):
        if not 0 <= t <= process.horizon:
            raise ValueError(f"{name} must lie in [0, {process.horizon:g}], got {name}[{i}] = {t}")
        if i and not t < values[i - 1]:
            raise ValueError(
                f"{name} must decrease strictly (from noise to data), got "
                f"{name}[{i - 1}] = {values[i - 1]}, {name}[{i}] = {t}"
            )
    return values


def usual_end(process: Process) -> float:
    """Where runs stop unless told otherwise: 1e-3 T."""
    return 1e-3 * process.horizon


def equally_spaced(times: Sequence[float]) -> bool:
    """Whether the steps in t are all the same, to 1e-9 of the first time."""
    unit = (times[0] - times[-1]) / (len(times) - 1)
    return all(abs(t - times[0] + unit * i) <= 1e-9 * times[0] for i, t in enumerate(times))


def _rho(process: Process, t: float) -> float:
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    return sigma / alpha if alpha else math.inf
