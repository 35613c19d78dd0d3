"""`compare`: samplers against step counts, cost and error in one table, with the floor of exact samples."""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from torch import Tensor

from sdekit import metrics as distances
from sdekit.comparison.journal import Journal
from sdekit.comparison.runs import (
    Bench,
    Key,
    Metric,
    Run,
    check_executor,
    default_metrics,
    measured,
)
from sdekit.comparison.tables import Table, mean_and_error
from sdekit.data.mixtures import GaussianMixture
from sdekit.denoisers import Denoiser, evaluating
from sdekit.errors import check_integer, check_number, check_seed
from sdekit.processes import Process
from sdekit.sampling import Sampler, TimeGrid
from sdekit.sampling.grids import check_times, resolve_grid, usual_end

#: What `sample(grid=)` may be.
Grid = str | TimeGrid | Tensor | Sequence[float] | None


def compare(
    denoiser: Denoiser,
    samplers: Sequence[Sampler | tuple[Sampler, Grid]],
    steps: Sequence[int],
    truth: GaussianMixture,
    *,
    metrics: Mapping[str, Metric] | None = None,
    n: int = 10_000,
    seeds: Sequence[int] = (0,),
    t_end: float | None = None,
    grid: Grid = None,
    floor_repeats: int = 20,
    progress: bool = False,
    executor: Executor | None = None,
    resume: str | Path | None = None,
) -> Table:
    """Run every sampler at every step count and measure its error.

    Samples stop at `t_end` (1e-3 T if not given) and are held against the truth diffused to `t_end`, so the
    error is the sampler's and the model's alone. A solver that chooses its own steps runs once, at the last
    step count; so does a grid of explicit times.

    Args:
        denoiser: exact or trained.
        samplers: instances, or pairs (instance, grid): one grid for all misranks samplers that were made for
            another.
        steps: step counts.
        truth: the law of the data.
        metrics: by name, functions (samples, law) -> float; W1 and W2 in 1-D, sliced W2 above by default.
        n: samples a run.
        seeds: one run each; the table has their mean and its standard error.
        t_end: where to stop.
        grid: of the samplers that come without one, as for `sample`; each sampler's own by default.
        floor_repeats: draws behind the floor.
        progress: show a bar.
        executor: runs the rows: a pool of threads, of processes (spawned, not forked), a Dask client's
            `get_executor()`, an `MPIPoolExecutor`. Numbers are those of a run without, if the workers use as
            many threads; times are those of machines that share the work.
        resume: a file that gets each run as it is done; the runs it has already are not done again. It may
            be given to a call with more samplers, step counts or seeds, and is refused where the model,
            the truth, the metrics, n or t_end are others.

    Returns:
        The table; a run that fails is a row with its error.

    Raises:
        ValueError, TypeError: an argument, before a sampler runs.
        CheckpointError: the file to resume from is damaged or of other arguments.
    """
    check_pair(denoiser, truth)
    end, n = checked_end(t_end, denoiser.process), check_integer("n", n, 2)
    chosen = default_metrics(truth) if metrics is None else checked_metrics(metrics)
    bench = Bench(denoiser, truth.at(denoiser.process, end), chosen, n, end)
    groups = grouped_runs(samplers, steps, seeds, grid, bench)
    if executor is not None:
        check_executor(executor)
    if resume is not None and not isinstance(resume, (str, Path)):
        raise TypeError(f"resume must be a path, got {resume!r}")
    floors = _floors(bench, floor_repeats)
    runs = {run.key: run for group in groups for run in group}
    with evaluating(denoiser):
        found = _records(bench, runs, executor, resume, progress)
    rows = [_row(group, [found[run.key] for run in group], floors) for group in groups]
    return Table(rows, floors, n, tuple(chosen))


def check_pair(denoiser: Denoiser, truth: GaussianMixture) -> None:
    """A model, and the law it is held against."""
    if not isinstance(denoiser, Denoiser):
        raise TypeError(f"denoiser must be a Denoiser, got {type(denoiser).__name__}")
    if not isinstance(truth, GaussianMixture):
        raise TypeError(f"truth must be a GaussianMixture, got {type(truth).__name__}")


def checked_metrics(metrics: Any) -> dict[str, Metric]:
    """Functions by name."""
    if not isinstance(metrics, Mapping):
        raise TypeError(f"metrics must be functions by name, got {metrics!r}")
    for name, metric in metrics.items():
        if not callable(metric):
            raise TypeError(
                f"metrics[{name!r}] must be callable as metric(samples, law), got {metric!r}"
            )
    return dict(metrics)


def checked_end(t_end: float | None, process: Process) -> float:
    """Where samples stop, 1e-3 T if not given."""
    if t_end is None:
        return usual_end(process)
    return check_number("t_end", t_end, 0, process.t_max, open_high=True)


def checked_seeds(seeds: Sequence[int]) -> list[int]:
    """The seeds as ints."""
    if isinstance(seeds, str) or not isinstance(seeds, Sequence):
        raise TypeError(f"seeds must be a sequence, got {seeds!r}")
    return [
        check_integer("seed", seed, 0) if seed is None else check_seed(seed) or 0 for seed in seeds
    ]


def grouped_runs(
    samplers: Sequence[Any],
    steps: Sequence[int],
    seeds: Sequence[int],
    grid: Grid,
    bench: Bench,
) -> list[list[Run]]:
    """The runs of each row, one a seed."""
    for name, given in (("samplers", samplers), ("steps", steps)):
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise TypeError(f"{name} must be a sequence, got {given!r}")
    numbers = checked_seeds(seeds)
    if not len(samplers) or not len(steps) or not numbers:
        raise ValueError("give at least one sampler, one step count and one seed")
    counts = [check_integer(f"steps[{i}]", count, 1) for i, count in enumerate(steps)]
    groups = []
    for i, given in enumerate(samplers):
        sampler, own = given if isinstance(given, tuple) and len(given) == 2 else (given, grid)
        if not isinstance(sampler, Sampler):
            raise TypeError(f"samplers[{i}] must be a Sampler or (Sampler, grid), got {given!r}")
        places = _grid("grid" if own is grid else f"samplers[{i}][1]", own, sampler, bench)
        allowed = counts if sampler.nfe_per_step is not None else counts[-1:]
        if isinstance(places, tuple):
            allowed = [len(places) - 1]
        groups += [[Run(sampler, places, c, seed) for seed in numbers] for c in allowed]
    return groups


def _grid(name: str, given: Grid, sampler: Sampler, bench: Bench) -> TimeGrid | tuple[float, ...]:
    """A grid as itself, or as its times if these were given."""
    if given is None:
        return sampler.grid
    if isinstance(given, (str, TimeGrid)):
        return resolve_grid(given)
    if not isinstance(given, (Tensor, Sequence)):
        kind = type(given).__name__
        raise TypeError(f"{name} must be a name, a TimeGrid, times or None, got {kind}")
    process = bench.denoiser.process
    times = check_times(given, process, name)
    if abs(times[-1] - bench.t_end) > 1e-12 * process.horizon:
        raise ValueError(
            f"{name} must end at t_end = {bench.t_end:g}, where samples are measured, got {times[-1]:g}"
        )
    return tuple(times)


def _records(
    bench: Bench,
    runs: Mapping[Key, Run],
    executor: Executor | None,
    resume: str | Path | None,
    progress: bool,
) -> dict[Key, dict[str, Any]]:
    """Every run's record: those of the file, and those that were still to be done."""
    from tqdm import tqdm

    journal = None if resume is None else Journal(resume, bench)
    kept = {} if journal is None else journal.records
    found = {key: kept[key] for key in runs if key in kept}
    left = [run for key, run in runs.items() if key not in found]
    with tqdm(
        total=len(runs), initial=len(found), desc="comparing", unit="run", disable=not progress
    ) as bar:
        for run, record in measured(bench, left, executor):
            found[run.key] = record
            if journal is not None:
                journal.add(run.key, record)
            bar.update()
    return found


def _row(
    group: Sequence[Run],
    records: Sequence[dict[str, Any]],
    floors: Mapping[str, tuple[float, float]],
) -> dict[str, Any]:
    """One row of the table, from its runs."""
    run = group[0]
    sampler, grid, steps, _ = run.key
    error = next((r["error"] for r in records if r["error"]), "")
    row: dict[str, Any] = {
        "sampler": sampler,
        "grid": grid,
        "stochastic": run.sampler.stochastic,
        "steps": steps,
        "nfe": max(r["nfe"] for r in records),
        "error": error,
    }
    for name, (floor, _) in floors.items():
        values = [] if error else [r["values"][name] for r in records]
        row[name], row[f"{name} se"] = mean_and_error(values)
        row[f"{name} floor"] = floor
    for key in ("seconds", "model seconds"):
        row[key] = mean_and_error([r[key] for r in records])[0]
    known = run.sampler.nfe_per_step is not None and not error
    least = min(r["seconds"] - r["model seconds"] for r in records)
    row["overhead us"] = 1e6 * least / steps if known else math.nan
    return row


def _floors(bench: Bench, repeats: int) -> dict[str, tuple[float, float]]:
    floors = {}
    for name, metric in bench.metrics.items():
        found = distances.floor(metric, bench.law, bench.n, repeats=repeats)
        floors[name] = (found.mean, found.quantile95)
    return floors
