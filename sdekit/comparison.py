"""Samplers against step counts: cost and error in one table, with the floor that exact samples score."""

import csv
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from sdekit import metrics as distances
from sdekit.data.mixtures import GaussianMixture
from sdekit.denoisers import Denoiser
from sdekit.errors import SdekitError, check_integer, check_number, check_seed
from sdekit.sampling import Sampler, sample
from sdekit.sampling.grids import resolve_grid

#: A distance of samples (n, d) from a law.
Metric = Callable[[Tensor, GaussianMixture], float]


def default_metrics(truth: GaussianMixture) -> dict[str, Metric]:
    """Exact W1 and W2 in 1-D; sliced W2 against as many exact samples in higher dimension."""
    if truth.dim == 1:
        return {
            "W1": lambda x, law: distances.wasserstein_1d(x, law, p=1),
            "W2": lambda x, law: distances.wasserstein_1d(x, law, p=2),
        }
    return {"sliced W2": _sliced}


def _sliced(x: Tensor, law: GaussianMixture) -> float:
    # The reference draw is the same for every row, so that rows differ by their samples alone.
    return distances.sliced_wasserstein(x.double(), law.sample(len(x), seed=2**31), p=2)


@dataclass(frozen=True)
class Table:
    """Rows of `compare`.

    Attributes:
        rows: one dict a run: sampler, steps, nfe, one entry a metric (the mean over seeds) and its "... se"
            (standard error over seeds, NaN for one seed), seconds, error (empty, or why the run failed).
        floors: by metric, what exact samples of the same number score: (mean, 95th percentile).
        n: samples a run.
    """

    rows: list[dict[str, Any]]
    floors: dict[str, tuple[float, float]]
    n: int
    metric_names: tuple[str, ...] = field(default=())

    def to_csv(self, path: str | Path) -> None:
        """Write the rows, one line each."""
        with Path(path).open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)

    def markdown(self) -> str:
        """The rows as a Markdown table, floors last."""
        head, *body = self._cells()
        lines = [head, ["---"] * len(head), *body]
        table = [f"| {' | '.join(line)} |" for line in lines]
        return "\n".join([*table, *(f"\n{note}" for note in self._notes())])

    def __str__(self) -> str:
        """The rows in aligned columns."""
        table = self._cells()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
            for line in table
        ]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], *self._notes()])

    def _cells(self) -> list[list[str]]:
        """Head, rows and floors as text."""
        table = [["sampler", "steps", "NFE", *self.metric_names, "seconds"]]
        names = short_names([row["sampler"] for row in self.rows])
        for row in self.rows:
            found = ["failed" if row["error"] else _cell(row, m) for m in self.metric_names]
            first = [names[row["sampler"]], str(row["steps"]), str(row["nfe"])]
            table.append([*first, *found, f"{row['seconds']:.2f}"])
        floors = [f"{self.floors[m][0]:.4f}" for m in self.metric_names]
        return [*table, [f"{self.n:,} exact samples", "", "", *floors, ""]]

    def _notes(self) -> list[str]:
        """Why rows failed, a line each."""
        names = short_names([row["sampler"] for row in self.rows])
        return [
            f"{names[row['sampler']]}, {row['steps']} steps failed: {' '.join(row['error'].split())}"
            for row in self.rows
            if row["error"]
        ]


def _cell(row: dict[str, Any], metric: str) -> str:
    error = row[f"{metric} se"]
    return f"{row[metric]:.4f}" + (f" ± {error:.4f}" if math.isfinite(error) else "")


def short_name(sampler: str) -> str:
    """A repr without the arguments that most rows leave alone: `DDIM(eta=0.0)`, `FlowODE(dopri5)`."""
    name, _, rest = sampler.partition("(")
    if name == "PredictorCorrector":
        return "PredictorCorrector(" + rest.partition("predictor=")[2].partition("(")[0] + ")"
    first = rest.rstrip(")").split(",")[0].partition("=")
    return f"{name}({first[2].strip(chr(39))})" if name != "DDIM" else f"{name}({''.join(first)})"


def short_names(samplers: Sequence[str]) -> dict[str, str]:
    """Short names by repr; samplers that would share one keep their whole repr."""
    short = {sampler: short_name(sampler) for sampler in samplers}
    taken = list(short.values())
    return {s: name if taken.count(name) == 1 else s for s, name in short.items()}


def compare(
    denoiser: Denoiser,
    samplers: Sequence[Sampler],
    steps: Sequence[int],
    truth: GaussianMixture,
    *,
    metrics: Mapping[str, Metric] | None = None,
    n: int = 10_000,
    seeds: Sequence[int] = (0,),
    t_end: float | None = None,
    grid: Any = None,
    floor_repeats: int = 20,
    progress: bool = False,
) -> Table:
    """Run every sampler at every step count and measure its error.

    Samples stop at `t_end` (1e-3 T if not given) and are held against the truth diffused to `t_end`, so the
    error is the sampler's and the model's alone. A solver that chooses its own steps runs once.

    Args:
        denoiser: exact or trained.
        samplers: instances.
        steps: step counts.
        truth: the law of the data.
        metrics: by name, functions (samples, law) -> float; W1 and W2 in 1-D, sliced W2 above by default.
        n: samples a run.
        seeds: one run each; the table has their mean and its standard error.
        t_end: where to stop.
        grid: as for `sample`; each sampler's own by default.
        floor_repeats: draws behind the floor.
        progress: show a bar.

    Returns:
        The table; a run that fails is a row with its error.
    """
    if not isinstance(denoiser, Denoiser):
        raise TypeError(f"denoiser must be a Denoiser, got {type(denoiser).__name__}")
    if not isinstance(truth, GaussianMixture):
        raise TypeError(f"truth must be a GaussianMixture, got {type(truth).__name__}")
    counts = _checked_counts(samplers, steps, seeds)
    n = check_integer("n", n, 2)
    if isinstance(grid, str):
        resolve_grid(grid)
    process = denoiser.process
    end = 1e-3 * process.horizon
    if t_end is not None:
        end = check_number("t_end", t_end, 0, process.t_max, open_high=True)
    law = truth.at(process, end)
    chosen = default_metrics(truth) if metrics is None else dict(metrics)
    runs = [
        (s, c) for s in samplers for c in (counts if s.nfe_per_step is not None else counts[-1:])
    ]
    rows = []
    for sampler, count in _shown(runs, progress):
        rows.append(_row(denoiser, sampler, count, law, chosen, n, seeds, end, grid))
    return Table(rows, _floors(law, chosen, n, floor_repeats), n, tuple(chosen))


def _checked_counts(
    samplers: Sequence[Sampler], steps: Sequence[int], seeds: Sequence[int]
) -> list[int]:
    """The step counts as ints, once samplers and seeds are known to be good as well."""
    for name, given in (("samplers", samplers), ("steps", steps), ("seeds", seeds)):
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise TypeError(f"{name} must be a sequence, got {given!r}")
    for i, s in enumerate(samplers):
        if not isinstance(s, Sampler):
            raise TypeError(f"samplers[{i}] must be a Sampler, got {s!r}")
    counts = [check_integer(f"steps[{i}]", count, 1) for i, count in enumerate(steps)]
    if not len(samplers) or not counts or not len(seeds):
        raise ValueError("compare needs at least one sampler, one step count and one seed")
    for seed in seeds:
        check_seed(seed)
    return counts


def _row(
    denoiser: Denoiser,
    sampler: Sampler,
    steps: int,
    law: GaussianMixture,
    chosen: Mapping[str, Metric],
    n: int,
    seeds: Sequence[int],
    t_end: float,
    grid: Any,
) -> dict[str, Any]:
    row: dict[str, Any] = {"sampler": repr(sampler), "steps": steps, "nfe": 0}
    values: dict[str, list[float]] = {name: [] for name in chosen}
    row["error"], seconds = "", 0.0
    for seed in seeds:
        began = time.perf_counter()
        try:
            out = sample(
                denoiser,
                (n, law.dim),
                sampler=sampler,
                steps=steps,
                grid=grid,
                t_end=t_end,
                seed=seed,
            )
        except (SdekitError, ValueError) as error:
            row["error"] = f"{type(error).__name__}: {error}"
            break
        seconds += time.perf_counter() - began
        row["nfe"] = out.nfe
        for name, metric in chosen.items():
            values[name].append(float(metric(out.x, law)))
    for name, found in values.items():
        count = len(found)
        mean = sum(found) / count if count else math.nan
        spread = sum((v - mean) ** 2 for v in found) / (count - 1) if count > 1 else math.nan
        row[name], row[f"{name} se"] = mean, math.sqrt(spread / count) if count > 1 else math.nan
    row["seconds"] = seconds / len(seeds)
    return row


def _floors(
    law: GaussianMixture, chosen: Mapping[str, Metric], n: int, repeats: int
) -> dict[str, tuple[float, float]]:
    floors = {}
    for name, metric in chosen.items():
        found = distances.floor(metric, law, n, repeats=repeats)
        floors[name] = (found.mean, found.quantile95)
    return floors


def _shown(runs: list[tuple[Sampler, int]], progress: bool) -> Any:
    if not progress:
        return runs
    from tqdm import tqdm

    return tqdm(runs, desc="comparing", unit="run")
