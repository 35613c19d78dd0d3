"""The table of `compare`, and names short enough for a table."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sdekit.records import Records, number
from sdekit.sampling.grids import GRIDS


@dataclass(frozen=True)
class Table(Records):
    """Rows of `compare`.

    Attributes:
        rows: one dict a sampler, grid and step count, with the keys

            - sampler, grid: as their repr; times given as numbers are "times:" and a digest of them;
            - stochastic: whether the sampler draws normals after the start;
            - steps: intervals of the grid;
            - nfe: model calls a sample cost, counted at the model (the most of any seed);
            - error: empty, or why a run failed (every number of the row is then NaN);
            - for each metric its name (the mean over seeds), "... se" (standard error over seeds, NaN for
              one seed) and "... floor" (what as many exact samples score on average);
            - seconds: wall time of a run, of which "model seconds" inside the model (means over seeds);
            - overhead us: the rest, in microseconds a step of all n samples, the least of any seed: writing
              a plan and a busy machine are no part of it (NaN where the solver chooses its steps).
        floors: by metric, what exact samples of the same number score: (mean, 95th percentile).
        n: samples a run.
        metric_names: of the metrics.
    """

    floors: dict[str, tuple[float, float]]
    n: int
    metric_names: tuple[str, ...]

    def label(self, metric: str) -> str:
        """What an axis of this metric says."""
        return f"{metric} to the exact law" if self.floors else metric

    def power(self, metric: str) -> int:
        """A sampler of order p has a metric that falls as steps^(-power p)."""
        return 1

    def _cells(self) -> list[list[str]]:
        """Head, rows and floors as text."""
        head = ["sampler", "grid", "steps", "NFE", *self.metric_names, "seconds", "us/step"]
        table, names = [head], short_names([row["sampler"] for row in self.rows])
        for row in self.rows:
            found = [
                "failed" if row["error"] else with_error(row[m], row[f"{m} se"])
                for m in self.metric_names
            ]
            place = [names[row["sampler"]], grid_name(row["grid"]), str(row["steps"])]
            times = [number(row["seconds"], ".2f"), number(row["overhead us"], ".0f")]
            table.append([*place, str(row["nfe"]), *found, *times])
        floors = [f"{self.floors[m][0]:.4f}" for m in self.metric_names]
        return [*table, [f"{self.n:,} exact samples", "", "", "", *floors, "", ""]]

    def _notes(self) -> list[str]:
        """Why rows failed."""
        names = short_names([row["sampler"] for row in self.rows])
        return [
            f"{names[row['sampler']]}, {row['steps']} steps failed: {' '.join(row['error'].split())}"
            for row in self.rows
            if row["error"]
        ]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error; NaN where there is nothing to take it of."""
    count = len(values)
    mean = sum(values) / count if count else math.nan
    if count < 2:
        return mean, math.nan
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (count - 1) / count)


def with_error(value: float, error: float) -> str:
    """`0.0123 ± 0.0004`, or the value alone where its error is not known."""
    return f"{value:z.4f}" + (f" ± {error:.4f}" if math.isfinite(error) else "")


def grid_name(grid: str) -> str:
    """The name of a grid that has one, by its repr; else the repr, its times as a digest."""
    if grid.startswith("Tabulated("):
        return f"Tabulated({hashlib.sha256(grid.encode()).hexdigest()[:8]})"
    return next((name for name, known in GRIDS.items() if repr(known) == grid), grid)


def short_name(sampler: str) -> str:
    """A repr cut to its first argument: `DDIM(eta=0.0)`, `FlowODE(dopri5)`."""
    name, arguments = _arguments(sampler)
    return f"{name}({', '.join(_shown(name, arguments, list(arguments)[:1]))})"


def short_names(samplers: Iterable[str]) -> dict[str, str]:
    """Short names by repr; samplers of one class show as many arguments as tell them apart."""
    parsed = {sampler: _arguments(sampler) for sampler in samplers}
    short = {}
    for sampler, (name, arguments) in parsed.items():
        alike = [given for other, given in parsed.values() if other == name]
        shown = list(arguments)[:1]
        for key, value in arguments.items():
            if key not in shown and any(given.get(key) != value for given in alike):
                shown.append(key)
            alike = [given for given in alike if given.get(key) == value]
        short[sampler] = f"{name}({', '.join(_shown(name, arguments, shown))})"
    return short


def _arguments(sampler: str) -> tuple[str, dict[str, str]]:
    """Class and arguments of a repr, split where no parenthesis is open."""
    name, _, rest = sampler.removesuffix(")").partition("(")
    parts, depth = [""], 0
    for char in rest:
        depth += (char in "([") - (char in ")]")
        if char == "," and not depth:
            parts.append("")
        else:
            parts[-1] += char
    named = [part.strip().partition("=") for part in parts if part.strip()]
    return name, {k if eq else str(i): v if eq else k for i, (k, eq, v) in enumerate(named)}


def _shown(name: str, arguments: Mapping[str, str], keys: Sequence[str]) -> list[str]:
    """Arguments as text: the first by value alone, of a sampler within a sampler its class."""
    shown = []
    for i, key in enumerate(keys):
        value = arguments[key].partition("(")[0].strip("'")
        word = value[:1].isalpha()  # which says by itself what it is
        shown.append(value if word or (i == 0 and name != "DDIM") else f"{key}={value}")
    return shown
