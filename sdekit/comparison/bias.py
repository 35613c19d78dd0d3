"""`sampler_bias`: samplers against step counts by their exact laws, the noise-free twin of `compare`."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from sdekit import metrics as distances
from sdekit.comparison.front_door import Grid, check_pair, checked_end, grouped_runs
from sdekit.comparison.runs import Bench, Run, default_metrics
from sdekit.comparison.tables import Table, grid_name, mean_and_error, short_names
from sdekit.data.mixtures import GaussianMixture
from sdekit.denoisers import Denoiser
from sdekit.errors import check_choice, check_integer
from sdekit.pde import Density1D, has_exact_law, sampler_density
from sdekit.sampling import Sampler

#: Distances of a law from the truth, and what they are called in a picture.
DISTANCES = {
    "KL": "KL(sampler || exact law), nats",
    "TV": "total variation from the exact law",
    "W1": "W1 to the exact law",
    "W2": "W2 to the exact law",
}
_DRAWN = ("W1", "W2")  # what samples tell


@dataclass(frozen=True)
class BiasTable(Table):
    """Rows of `sampler_bias`, as those of `Table`; for KL (nats), TV, W1 and W2 the value and its "... se".

    Further keys: law, "exact" or "samples" (KL and TV are then NaN, and se a standard error over seeds; an
    exact value has none; KL and TV are NaN, too, where the map folds or the truth has atoms); resolution, the
    law's own `error`; alarms, its alarms in words; seconds, of the whole row.

    Attributes:
        noise: what as many exact samples score, by metric; empty if no row took samples.
    """

    noise: dict[str, float]

    def label(self, metric: str) -> str:
        """What an axis of this metric says."""
        return DISTANCES[metric]

    def power(self, metric: str) -> int:
        """KL is of second order in the difference of the laws."""
        return 2 if metric == "KL" else 1

    def _cells(self) -> list[list[str]]:
        """Head and rows as text, four digits."""
        head = ["sampler", "grid", "steps", "NFE", *DISTANCES, "seconds"]
        table, names = [head], short_names([row["sampler"] for row in self.rows])
        for row in self.rows:
            found = [_cell(row[m], row[f"{m} se"], failed=bool(row["error"])) for m in DISTANCES]
            place = [names[row["sampler"]], grid_name(row["grid"]), str(row["steps"])]
            table.append([*place, str(row["nfe"]), *found, f"{row['seconds']:.2f}"])
        return table

    def _notes(self) -> list[str]:
        """Why rows failed, which are of samples, and what is in doubt."""
        names, notes = short_names([row["sampler"] for row in self.rows]), super()._notes()
        drawn = dict.fromkeys(names[row["sampler"]] for row in self.rows if row["law"] == "samples")
        if drawn:
            noise = ", ".join(f"{m} {value:.1e}" for m, value in self.noise.items())
            notes.append(
                f"{', '.join(drawn)}: {self.n:,} samples a seed, ± a standard error over seeds, since no "
                f"exact law is to be had; as many exact samples score {noise}"
            )
        return notes + [
            f"{names[row['sampler']]}, {row['steps']} steps: {row['alarms']}"
            for row in self.rows
            if row["alarms"]
        ]


def sampler_bias(
    denoiser: Denoiser,
    samplers: Sequence[Sampler | tuple[Sampler, Grid]],
    steps: Sequence[int],
    truth: GaussianMixture,
    *,
    t_end: float | None = None,
    grid: Grid = None,
    start: str = "prior",
    points: int | None = None,
    n: int = 100_000,
    seeds: Sequence[int] = (0, 1, 2, 3),
    progress: bool = False,
) -> BiasTable:
    """How far the law of every sampler is from the truth, at every step count: nothing is drawn.

    The laws are those of `sdekit.pde.sampler_density`, held against the truth diffused to `t_end`. A sampler
    whose law is not to be had (a stochastic multistep) is measured on samples instead, and the table says so.

    Args:
        denoiser: exact or trained, on the line.
        samplers: instances, or pairs (instance, grid).
        steps: step counts.
        truth: the law of the data, on the line.
        t_end: where samplers stop, 1e-3 T if not given.
        grid: of the samplers that come without one; each sampler's own by default.
        start: "prior", or "exact" for the truth at the first time: then the sampler's error alone is left.
        points: nodes of a law; as many as it takes if not given.
        n: samples a run, where it takes samples.
        seeds: of these runs; the spread over them is the standard error.
        progress: show a bar.

    Returns:
        The table; a row that fails has its error. `sdekit.plotting.error_against_nfe` draws it.

    Raises:
        ValueError, TypeError: an argument, before a sampler runs.
    """
    check_pair(denoiser, truth)
    if truth.dim != 1:
        raise ValueError(f"truth must be on the line, got d = {truth.dim}; `compare` takes any d")
    check_choice("start", start, ("prior", "exact"))
    end, n = checked_end(t_end, denoiser.process), check_integer("n", n, 2)
    points = None if points is None else check_integer("points", points, 32)
    process = denoiser.process
    first = truth.at(process, process.t_max) if start == "exact" else None
    bench = Bench(denoiser, truth.at(process, end), default_metrics(truth), n, end, first)
    groups = grouped_runs(samplers, steps, seeds, grid, bench)
    with tqdm(total=len(groups), desc="laws", unit="row", disable=not progress) as bar:
        rows = []
        for group in groups:
            rows.append(_row(group, bench, points))
            bar.update()
    drawn = any(row["law"] == "samples" for row in rows)
    return BiasTable(rows, {}, n, tuple(DISTANCES), _noise(bench) if drawn else {})


def _row(group: Sequence[Run], bench: Bench, points: int | None) -> dict[str, Any]:
    """One sampler at one step count."""
    run, began = group[0], time.perf_counter()
    sampler, grid, steps, _ = run.key
    row: dict[str, Any] = {"sampler": sampler, "grid": grid, "stochastic": run.sampler.stochastic}
    row |= {
        "steps": steps,
        "nfe": 0,
        "error": "",
        "law": "exact",
        "resolution": math.nan,
        "alarms": "",
    }
    row |= {key: math.nan for name in DISTANCES for key in (name, f"{name} se")}
    try:
        if has_exact_law(run.sampler, bench.denoiser):
            row |= _exact(run, bench, points)
        else:
            row |= _drawn(group, bench)
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"
    row["seconds"] = time.perf_counter() - began
    return row


def _exact(run: Run, bench: Bench, points: int | None) -> dict[str, Any]:
    """The distances of the exact law."""
    own_times = isinstance(run.grid, tuple)
    law = sampler_density(
        bench.denoiser,
        run.sampler,
        run.steps,
        grid=run.grid,
        t_end=None if own_times else bench.t_end,
        start="prior" if bench.start is None else bench.start,
        points=points,
    )
    found = {"nfe": law.nfe, "resolution": law.error, "alarms": "; ".join(law.alarms)}
    return found | _distances(law, bench.law)


def _distances(law: Density1D, truth: GaussianMixture) -> dict[str, float]:
    found = {"W1": law.w1(truth), "W2": law.w2(truth)}
    if law.folded or truth.narrowest == 0:
        return found
    return {"KL": law.kl(truth), "TV": law.tv(truth), **found}


def _drawn(group: Sequence[Run], bench: Bench) -> dict[str, Any]:
    """The distances of samples, and their spread over seeds."""
    records = [bench.measure(run) for run in group]
    if error := next((r["error"] for r in records if r["error"]), ""):
        return {"error": error, "law": "samples"}
    row: dict[str, Any] = {"law": "samples", "nfe": max(r["nfe"] for r in records)}
    for name in _DRAWN:
        row[name], row[f"{name} se"] = mean_and_error([r["values"][name] for r in records])
    return row


def _noise(bench: Bench) -> dict[str, float]:
    """What exact samples of the same number score, on average over five draws."""
    return {
        m: distances.floor(bench.metrics[m], bench.law, bench.n, repeats=5).mean for m in _DRAWN
    }


def _cell(value: float, error: float, *, failed: bool) -> str:
    if failed:
        return "failed"
    if not math.isfinite(value):
        return ""
    return f"{value:.4g}" + (f" ± {error:.1g}" if math.isfinite(error) else "")
