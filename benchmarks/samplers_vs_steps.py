"""Every sampler against the number of model calls: how far its endpoints and its samples are from exact.

`python benchmarks/samplers_vs_steps.py [--quick] [--problems NAME ...] [--workers N] [--resume] [--out DIR]`

Four exact mixtures (`problems.py`), as VP and as EDM, at 5 to 500 model calls:

- endpoints: distance of deterministic samplers from the exact endpoints of the probability flow, per
  dimension, from fixed starts in float64: RMS and median over the starts. Nothing is drawn, so orders show.
- samples: distance of what each sampler draws from the exact law (W1 and W2 on the line, sliced W2 above):
  mean and standard error over seeds, beside what as many exact samples score.

The EDM runs cover the noise levels of the VP runs, sigma / alpha from 152 down to 0.010: it is the same flow
of x / alpha, its endpoints are those of the VP over alpha, and errors are in the units of the VP. Every
sampler uses its own grid. Where this is uniform in t, EDM runs use that of Karras et al. 2022: with sigma = t
a uniform grid of a hundred steps has one below sigma = 1.5.

Left out: `ParallelInTime()`, which gives what DDIM does, and `TorchSDE()`, which is Euler-Maruyama by another
library. Solvers that choose their steps run at several tolerances for the endpoints, and are left out of the
samples. A sampler whose step costs more than a budget begins at a larger one. `--resume` keeps the sample
runs that are done; endpoints are quick and run again.
"""

import argparse
import math
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from problems import PROBLEMS, PROCESS, T_END, T_START, Problem

import sdekit as sk
from sdekit import plotting
from sdekit.comparison import Table
from sdekit.sampling.grids import Power, TimeGrid

BUDGETS = (5, 10, 20, 50, 100, 200, 500)
QUICK = (10, 20, 50, 100)
START, END = (PROCESS.node(t) for t in (T_START, T_END))
#: By name, the process and where its runs end.
WORLDS: dict[str, tuple[sk.Process, float]] = {
    "VP": (PROCESS, T_END),
    "EDM": (sk.EDM(sigma_min=END.rho, sigma_max=START.rho), END.rho),
}
#: Solvers that choose their steps, and the digits to which about 500 calls take them.
ADAPTIVE = {sk.samplers.AdaptiveDPMSolver(): 6, sk.samplers.FlowODE(): 9}
SAMPLERS = tuple(
    s for s in sk.samplers.ALL
    if not isinstance(s, (sk.samplers.ParallelInTime, sk.samplers.TorchSDE, *map(type, ADAPTIVE)))
)  # fmt: skip
#: By problem: the starts of the endpoints, and the samples of a run.
SIZES = {
    "two-mode": (4096, 10_000),
    "ring": (4096, 5_000),
    "mixture-16d": (1024, 1_000),
    "mixture-64d": (256, 500),
}
SEEDS = (0, 1, 2)
#: Larger errors are left out of the pictures: all data have about unit variance.
SHOWN = 3.0
ORDER = list(SIZES).index
RMS, MEDIAN = "RMS endpoint error", "median endpoint error"
#: The README's picture: one curve a family of methods, and the samplers of order 1 to 4.
CHOSEN = (
    sk.samplers.DDIM(),
    sk.samplers.EDMHeun(),
    sk.samplers.DPMSolver(order=3),
    sk.samplers.DPMSolverPP(),
    sk.samplers.UniPC(),
    sk.samplers.ExponentialAB(order=4, prediction="v"),
    sk.samplers.ExponentialAB(order=4, prediction="flow", clock=sk.samplers.FlowTime()),
    sk.samplers.ExponentialRK(),
)
TITLES = {
    "two-mode": "2 modes on the line",
    "ring": "8 modes in the plane",
    "mixture-16d": "10 modes in 16-D",
    "mixture-64d": "10 modes in 64-D",
}


def grid_of(sampler: sk.samplers.Sampler, process: sk.Process) -> TimeGrid:
    """Its own; for EDM that of Karras et al. in place of one that is uniform in t."""
    uniform = isinstance(process, sk.EDM) and sampler.grid == Power(1.0)
    return sk.samplers.Karras() if uniform else sampler.grid


def times_of(sampler: sk.samplers.Sampler, world: str, steps: int) -> list[float]:
    """Its grid from the process's start to its end."""
    process, end = WORLDS[world]
    return grid_of(sampler, process).times(process, steps, process.t_max, end)


def steps_within(sampler: sk.samplers.Sampler, world: str, budget: int) -> int:
    """Steps that cost about as many model calls as the budget and no more; 0 if one step costs more."""
    if sampler.nfe_per_step is not None or not isinstance(sampler, sk.samplers.PlanSampler):
        return budget // (sampler.nfe_per_step or 1)
    steps = budget
    while steps:
        calls = sampler.plan(WORLDS[world][0], times_of(sampler, world, steps)).nfe
        if calls <= budget:
            break
        steps = min(steps - 1, math.ceil(steps * budget / calls))
    return steps


# -------------------------------------------------------------------------------------------- endpoints


@dataclass(frozen=True)
class EndpointRun:
    """A deterministic sampler from a problem's fixed starts; `label` names the curve it is on."""

    problem: str
    world: str
    sampler: sk.samplers.Sampler
    steps: int
    starts: int
    label: str

    def measure(self) -> dict[str, Any]:
        """One row: the error of the endpoints in the units of the VP, and its cost."""
        problem = named(self.problem)
        process, _ = WORLDS[self.world]
        # From the coordinates of the VP and back to them.
        into, back = (node.alpha if process is not PROCESS else 1.0 for node in (START, END))
        row: dict[str, Any] = {"sampler": self.label, "grid": "own", "stochastic": False}
        row |= {"steps": self.steps, "nfe": 0, "error": "", RMS: math.nan, MEDIAN: math.nan}
        starts = problem.starts[: self.starts] / into
        try:
            run = sk.sample(
                problem.target.denoiser(process),
                tuple(starts.shape),
                sampler=self.sampler,
                grid=times_of(self.sampler, self.world, self.steps),
                x_init=starts,
            )
        except sk.NumericsError as error:
            return row | {"error": str(error)}
        distance = (run.x * back - problem.endpoints[: self.starts]).norm(dim=1)
        each = distance / math.sqrt(problem.target.dim)
        row["nfe"] = run.nfe
        return row | {RMS: each.square().mean().sqrt().item(), MEDIAN: each.median().item()}


def named(problem: str) -> Problem:
    """The problem of this name."""
    return next(p for p in PROBLEMS if p.name == problem)


def endpoint_runs(
    problem: str, world: str, budgets: Sequence[int], starts: int
) -> Iterator[EndpointRun]:
    """Deterministic samplers at each budget, solvers that choose their steps at each tolerance."""
    for sampler in SAMPLERS:
        if not sampler.stochastic:
            counts = {steps_within(sampler, world, budget) for budget in budgets} - {0}
            for steps in sorted(counts):
                yield EndpointRun(problem, world, sampler, steps, starts, repr(sampler))
    for sampler, digits in ADAPTIVE.items():
        label = repr(sampler).partition(", rtol")[0] + ")"
        for k in range(1, (digits if max(budgets) > 100 else 3) + 1):
            set_to = replace(sampler, rtol=10.0**-k, atol=10.0**-k)
            yield EndpointRun(problem, world, set_to, 1, starts, label)


def endpoints(runs: Sequence[EndpointRun], executor: Executor | None, starts: int) -> Table:
    """The rows of these runs, in their order."""
    from tqdm import tqdm

    with tqdm(total=len(runs), desc="endpoints", unit="run") as bar:
        if executor is None:
            rows = []
            for run in runs:
                rows.append(run.measure())
                bar.update()
        else:
            futures = [executor.submit(run.measure) for run in runs]
            for _ in as_completed(futures):
                bar.update()
            rows = [future.result() for future in futures]
    return Table(rows, {}, starts, (RMS, MEDIAN))


# ---------------------------------------------------------------------------------------------- samples


def samples(
    problem: str,
    world: str,
    budgets: Sequence[int],
    n: int,
    seeds: Sequence[int],
    executor: Executor | None = None,
    resume: Path | None = None,
) -> Table:
    """All samplers with fixed steps at each budget, each on the times of its own grid."""
    process, end = WORLDS[world]
    target = named(problem).target
    entries = []
    for sampler in SAMPLERS:
        counts = {steps_within(sampler, world, budget) for budget in budgets} - {0}
        entries += [(sampler, times_of(sampler, world, steps)) for steps in sorted(counts)]
    return sk.compare(
        target.denoiser(process),
        entries,
        [1],  # the number of steps is that of the times
        target,
        n=n,
        seeds=seeds,
        t_end=end,
        progress=True,
        executor=executor,
        resume=resume,
    )


# --------------------------------------------------------------------------------------------- pictures


def by_budget(table: Table, metric: str) -> str:
    """A Markdown table: a row a sampler, its errors by model calls."""
    lines: dict[str, list[str]] = {}
    for row in table.rows:
        cell = f"{row[metric]:.1e} ({row['nfe']})" if not row["error"] else "failed"
        lines.setdefault(row["sampler"], []).append(cell)
    width = max(map(len, lines.values()))
    head = f"| sampler | {metric} (model calls) |" + " |" * (width - 1)
    body = [f"| {s} | " + " | ".join(c + [""] * (width - len(c))) + " |" for s, c in lines.items()]
    return "\n".join([head, "| --- " * (width + 1) + "|", *body])


def write(
    tables: dict[str, Table], metrics: Sequence[str], out: Path, name: str, title: str
) -> None:
    """CSV and Markdown a process, and a picture a metric."""
    for world, table in tables.items():
        table.to_csv(out / f"{name}-{world}.csv")
        text = "\n\n".join(by_budget(table, metric) for metric in metrics)
        (out / f"{name}-{world}.md").write_text(text + "\n")
    for metric in metrics:
        seen = {world: shown(table, metric) for world, table in tables.items()}
        figure = plotting.error_against_nfe(seen, metric, title=title)
        plotting.save(figure, out / f"{name}-{metric.replace(' ', '-')}.png")


def shown(table: Table, metric: str, samplers: Sequence[sk.samplers.Sampler] = ()) -> Table:
    """The rows that a picture has room for, of these samplers if some are given."""
    names = set(map(repr, samplers))
    rows = [r for r in table.rows if r[metric] < SHOWN and (not names or r["sampler"] in names)]
    return replace(table, rows=rows)


def readme_picture(found: dict[str, Table], out: Path) -> None:
    """The chosen samplers on the first and the last problem, as VP."""
    ends = {problem: found[problem] for problem in (min(found, key=ORDER), max(found, key=ORDER))}
    tables = {TITLES[problem]: shown(table, MEDIAN, CHOSEN) for problem, table in ends.items()}
    figure = plotting.error_against_nfe(tables, MEDIAN, width=4.6)
    plotting.save(figure, out / "error-against-nfe.png")


# ------------------------------------------------------------------------------------------------- main


def endpoint_view(
    problems: Sequence[str], executor: Executor | None, out: Path, *, quick: bool
) -> None:
    """Endpoints of every problem, and the README's picture of them."""
    found = {}
    for problem in problems:
        starts = 512 if quick else SIZES[problem][0]
        _ = named(problem).endpoints  # solved once and kept, before workers ask for them
        tables = {}
        for world in WORLDS:
            runs = list(endpoint_runs(problem, world, QUICK if quick else BUDGETS, starts))
            tables[world] = endpoints(runs, executor, starts)
        found[problem] = tables["VP"]
        write(tables, (RMS, MEDIAN), out, f"{problem}-endpoints", TITLES[problem])
    readme_picture(found, out)


def sample_view(
    problems: Sequence[str], executor: Executor | None, out: Path, *, quick: bool, resume: bool
) -> None:
    """Samples of every problem; each run is kept in a journal as it is done."""
    budgets, seeds = (QUICK, SEEDS[:2]) if quick else (BUDGETS, SEEDS)
    for problem in problems:
        n, tables = 1_000 if quick else SIZES[problem][1], {}
        for world in WORLDS:
            journal = out / f"{problem}-{world}.jsonl"
            if not resume:
                journal.unlink(missing_ok=True)
            tables[world] = samples(problem, world, budgets, n, seeds, executor, journal)
        metrics = tables["VP"].metric_names
        write(tables, metrics, out, f"{problem}-samples", TITLES[problem])


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="one problem, 10 to 100 calls, less of all"
    )
    parser.add_argument("--problems", nargs="+", choices=list(SIZES))
    views = ["endpoints", "samples"]
    parser.add_argument("--views", nargs="+", choices=views, default=views)
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--resume", action="store_true", help="keep the sample runs that --out has")
    parser.add_argument("--out", type=Path, default=Path("runs/samplers_vs_steps"))
    return parser.parse_args(given)


def pool(workers: int) -> Any:
    """Processes of one thread each; none for one worker."""
    if workers == 1:
        return nullcontext()
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, spawn, initializer=torch.set_num_threads, initargs=(1,))


def main(given: Sequence[str] | None = None) -> None:
    torch.set_num_threads(1)
    options = arguments(given)
    out, quick = options.out, options.quick
    out.mkdir(parents=True, exist_ok=True)
    problems = options.problems or (["two-mode"] if quick else list(SIZES))
    with pool(options.workers) as executor:
        if "endpoints" in options.views:
            endpoint_view(problems, executor, out, quick=quick)
        if "samples" in options.views:
            sample_view(problems, executor, out, quick=quick, resume=options.resume)
    print(f"written to {out}")


if __name__ == "__main__":
    main()
