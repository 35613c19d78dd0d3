"""A sweep: one function, many frozen configs, a folder each, and a table of what came out.

    configs = grid(Config, lr=[1e-3, 3e-3], loss=["simple", "min-snr"])
    table = sweep(run, configs, out / "sweep", seeds=range(3))

A run is done when its summary.json is there; a sweep started again runs only what is not.
"""

import hashlib
import itertools
import json
import math
import re
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch

from harness.study import recorded
from sdekit.comparison.runs import check_executor
from sdekit.comparison.tables import mean_and_error
from sdekit.errors import CheckpointError, check_choice, check_flag, check_seed
from sdekit.records import Records, number

#: Called with a config and an existing folder of its own; returns figures as JSON.
Run = Callable[[Any, Path], Mapping[str, Any]]

SUMMARY, FAILURE = "summary.json", "failure.txt"
#: In every summary, and not a figure of the run.
_COST = ("seconds", "cpu_seconds")


def grid(base: Any, **choices: Iterable[Any]) -> list[Any]:
    """The product of choices for fields of a config, the last choice varying fastest.

    Args:
        base: a frozen dataclass, or an instance of one that has the other fields.
        choices: by field, the values to take.

    Raises:
        ValueError: a choice that is no field, or has no values.
        TypeError: a base that is no dataclass, or a choice that is a bare string or no sequence.
    """
    if not is_dataclass(base):
        raise TypeError(f"base must be a dataclass or an instance of one, got {base!r}")
    known = tuple(item.name for item in fields(base))
    for name, values in choices.items():
        check_choice("choices", name, known)
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise TypeError(f"{name} must be a sequence of values, got {values!r}")
    listed = {name: list(values) for name, values in choices.items()}
    if empty := [name for name, values in listed.items() if not values]:
        raise ValueError(f"{empty[0]} must have at least one value")
    made = (dict(zip(listed, point, strict=True)) for point in itertools.product(*listed.values()))
    return [base(**point) if isinstance(base, type) else replace(base, **point) for point in made]


def sweep(
    run: Run,
    configs: Sequence[Any],
    out: str | Path,
    *,
    seeds: Iterable[int] | None = None,
    executor: Executor | None = None,
    higher: Collection[str] = (),
    progress: bool = True,
) -> "SweepTable":
    """Run every config that is not done yet, each in a folder of its own, and make a table of all.

    A run that raises leaves failure.txt in its folder, with the traceback, and a note under the table; the
    others go on, and a sweep started again tries it again. So does one that was killed.

    Args:
        run: see `Run`. Executors of processes need a function of a module, and configs that pickle.
        configs: frozen dataclasses of one class, no two alike. Fields that are not numbers, strings or flags
            are known by their repr, which must say what they are.
        out: folder of the sweep; folders in it are named after what a config has other than its defaults,
            and a digest of all of it. Neither depends on the other configs.
        seeds: values for the field `seed` of every config; as they are if not given.
        executor: any `concurrent.futures.Executor`, None for one after another, here. Worker processes
            compute on as many threads as this one. Networks take their weights from torch's global generator,
            which threads share: runs that make some are reproducible in processes or one after another.
        higher: figures of which more is better; of the others less is.
        progress: show a bar of runs.

    Raises:
        ValueError, TypeError: an argument, before anything runs.
        CheckpointError: a summary that is damaged, or of another config.
    """
    check_flag("progress", progress)
    if not callable(run):
        raise TypeError(f"run must be a function of (config, folder), got {run!r}")
    if isinstance(higher, str):
        raise TypeError(f"higher must be a collection of names, got {higher!r}")
    if executor is not None:
        check_executor(executor)
    jobs = [_Job(config, Path(out)) for config in _seeded(_checked(configs), seeds)]
    if len({job.folder for job in jobs}) < len(jobs):
        raise ValueError("configs must differ from each other, and seeds too")
    summaries = {job: summary for job in jobs if (summary := job.summary()) is not None}
    failures = dict[_Job, str]()
    open_jobs = [job for job in jobs if job not in summaries]
    with _bar(progress, len(jobs), len(summaries)) as bar:
        for job, summary, failure in _results(run, open_jobs, executor):
            if failure:
                failures[job] = failure
            else:
                summaries[job] = summary
            bar.update()
    return _table(jobs, summaries, failures, higher)


@dataclass(frozen=True)
class SweepTable(Records):
    """Rows of `sweep`, one for all seeds of a config.

    Attributes:
        rows: dicts with the fields of the config that differ between configs, and

            - runs: how many seeds are done;
            - error: empty, or why others failed;
            - for each number that runs returned its name (the mean over seeds) and "... se" (standard error
              over seeds, NaN for one);
            - seconds: wall time, mean over seeds.
        flags: the fields that differ.
        figures: names of the numbers.
        best: by figure, the index of its best row, where there is a choice.
    """

    flags: tuple[str, ...]
    figures: tuple[str, ...]
    best: dict[str, int]

    def _cells(self) -> list[list[str]]:
        """Head and rows as text; the best of a figure has a star."""
        table = [[*self.flags, "runs", *self.figures, "seconds"]]
        for i, row in enumerate(self.rows):
            found = [self._cell(i, name) for name in self.figures]
            flags = [_plain(row[name]) for name in self.flags]
            table.append([*flags, str(row["runs"]), *found, number(row["seconds"], ".1f")])
        return table

    def _cell(self, i: int, name: str) -> str:
        """A mean with its standard error, where it is known."""
        value, error = self.rows[i][name], self.rows[i][f"{name} se"]
        if not self.rows[i]["runs"]:
            return "failed  "
        if math.isnan(value):
            return ""
        text = f"{value:.4g}" + (f" ± {error:.1g}" if math.isfinite(error) else "")
        return f"{text} *" if self.best.get(name) == i else f"{text}  "

    def _notes(self) -> list[str]:
        """What the star means, and what failed."""
        notes = ["* the best of its column"] if self.best else []
        if any(math.isfinite(row[f"{name} se"]) for row in self.rows for name in self.figures):
            notes.append("± a standard error over runs that differ in their seed alone")
        return notes + [row["error"] for row in self.rows if row["error"]]


# ------------------------------------------------------------------------------ configs and folders


def describe(config: Any) -> dict[str, Any]:
    """The fields of a config as JSON: numbers, strings and flags as they are, the rest by repr."""
    found = {}
    for item in fields(config):
        value = getattr(config, item.name)
        plain = value is None or isinstance(value, bool | int | float | str)
        found[item.name] = value if plain else repr(value)
        if not plain and re.search(r" at 0x[0-9a-f]+>", found[item.name]):
            raise TypeError(
                f"{item.name} must have a repr that says what it is, got {found[item.name]}"
            )
    return found


def folder_name(config: Any) -> str:
    """What a config has other than its defaults, safe in a file system, and a digest of all of it."""
    described = describe(config)
    text = json.dumps([type(config).__qualname__, described], sort_keys=True)
    usual = {item.name: item.default for item in fields(config)}
    told = (f"{k}={v}" for k, v in described.items() if getattr(config, k) != usual[k])
    name = re.sub(r"[^A-Za-z0-9=,.+-]+", "_", ",".join(told)).strip("._-")
    return f"{name[:80] or 'default'}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@dataclass(frozen=True, eq=False)
class _Job:
    """One config and its folder."""

    config: Any
    out: Path

    @property
    def folder(self) -> Path:
        return self.out / folder_name(self.config)

    @property
    def key(self) -> str:
        """What it shares with its other seeds."""
        return json.dumps({k: v for k, v in describe(self.config).items() if k != "seed"})

    def summary(self) -> dict[str, Any] | None:
        """What a finished run wrote; None if it is not finished."""
        path = self.folder / SUMMARY
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text())
            same = found["config"] == describe(self.config)
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged ({error!r}); delete it") from None
        if not same:
            raise CheckpointError(f"{path} is of another config: {found['config']}")
        return found


def _checked(configs: Sequence[Any]) -> list[Any]:
    """The configs, if they are frozen dataclasses of one class."""
    found = list(configs) if isinstance(configs, Sequence) else []
    if not found:
        raise ValueError(f"configs must be a sequence of at least one config, got {configs!r}")
    for config in found:
        frozen = is_dataclass(config) and not isinstance(config, type)
        if not (frozen and type(config).__dataclass_params__.frozen):  # type: ignore[attr-defined]
            raise TypeError(f"configs must be instances of a frozen dataclass, got {config!r}")
        if type(config) is not type(found[0]):
            names = f"{type(found[0]).__name__} and {type(config).__name__}"
            raise TypeError(f"configs must be of one class, got {names}")
    return found


def _seeded(configs: list[Any], seeds: Iterable[int] | None) -> list[Any]:
    """Every config with every seed."""
    if seeds is None:
        return configs
    wanted = [check_seed(seed) for seed in seeds]
    if not wanted or None in wanted:
        raise ValueError(f"seeds must be one or more integers, got {wanted}")
    if "seed" not in {item.name for item in fields(configs[0])}:
        raise ValueError(f"seeds needs a field seed, which {type(configs[0]).__name__} has not")
    return [replace(config, seed=seed) for config in configs for seed in wanted]


# ------------------------------------------------------------------------------------------ running


def _results(
    run: Run, jobs: Sequence[_Job], executor: Executor | None
) -> Iterator[tuple[_Job, dict[str, Any], str]]:
    """Each job with its summary, or why it has none, as they are done."""
    if executor is None:
        yield from ((job, *_attempt(run, job)) for job in jobs)
        return
    threads = None if isinstance(executor, ThreadPoolExecutor) else torch.get_num_threads()
    futures = {executor.submit(_attempt, run, job, threads): job for job in jobs}
    try:
        for future in as_completed(futures):
            try:
                yield futures[future], *future.result()
            except Exception as error:  # the worker died, or what it was sent does not pickle
                yield futures[future], {}, f"{type(error).__name__}: {error}"
    finally:
        for future in futures:
            future.cancel()


def _attempt(run: Run, job: _Job, threads: int | None = None) -> tuple[dict[str, Any], str]:
    """The summary of one run, or why there is none."""
    if threads is not None:
        torch.set_num_threads(threads)
    failed = job.folder / FAILURE
    try:
        summary = recorded(run, job.config, job.folder, describe(job.config))
    except Exception as error:
        failed.write_text(traceback.format_exc())
        return {}, f"{type(error).__name__}: {error}"
    failed.unlink(missing_ok=True)
    return summary, ""


def _bar(progress: bool, total: int, done: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, initial=done, desc="runs", unit="run", disable=not progress)


# ---------------------------------------------------------------------------------------- the table


def _table(
    jobs: Sequence[_Job],
    summaries: Mapping[_Job, dict[str, Any]],
    failures: Mapping[_Job, str],
    higher: Collection[str],
) -> SweepTable:
    groups: dict[str, list[_Job]] = {}
    for job in jobs:
        groups.setdefault(job.key, []).append(job)
    described = [describe(group[0].config) for group in groups.values()]
    flags = tuple(
        name
        for name in described[0]
        if name != "seed" and len({json.dumps(d[name]) for d in described}) > 1
    )
    figures = tuple(dict.fromkeys(k for job in jobs for k in _numbers(summaries.get(job, {}))))
    rows = []
    for group, flagged in zip(groups.values(), described, strict=True):
        done = [summaries[job] for job in group if job in summaries]
        why = [f"{job.folder.name} failed: {failures[job]}" for job in group if job in failures]
        row = {name: flagged[name] for name in flags}
        row |= {"runs": len(done), "error": "; ".join(why)}
        for name in figures:
            values = [float(s[name]) for s in done if name in _numbers(s)]
            row[name], row[f"{name} se"] = mean_and_error(values)
        row["seconds"] = mean_and_error([s["seconds"] for s in done])[0]
        rows.append(row)
    best = {name: _best(rows, name, name in higher) for name in figures} if len(rows) > 1 else {}
    return SweepTable(rows, flags, figures, {name: i for name, i in best.items() if i is not None})


def _numbers(summary: Mapping[str, Any]) -> list[str]:
    """Names of the figures that are numbers; the others are read in the summary itself."""
    return [
        name
        for name, value in summary.items()
        if name not in _COST and isinstance(value, int | float) and not isinstance(value, bool)
    ]


def _best(rows: Sequence[Mapping[str, Any]], name: str, higher: bool) -> int | None:
    """The row with the best mean; None if all are the same, or there is none."""
    known = {i: row[name] for i, row in enumerate(rows) if math.isfinite(row[name])}
    if len(set(known.values())) < 2:
        return None
    return (max if higher else min)(known, key=known.__getitem__)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
