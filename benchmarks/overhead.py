"""What does the engine cost, in time and in memory?

`python benchmarks/overhead.py [--peers] [--out DIR]`

- time: microseconds a step of three runs of the same arithmetic on (n, 2) float32 states and a model of one
  operation, 100 steps: a loop by hand with `torch.randn` and precomputed weights, the compiled plan on an
  engine (block normals), and `sk.sample` from argument checks to result. The runs are interleaved on one
  thread; the least processor time over repeats is kept (others' work can only add), and ratios to the loop.
- memory: the highest resident memory of 1e6 samples above that after a small run, in states (n x 2 x 4
  bytes), each in a process of its own. The first line allocates four states and shows what the method reads.

With `--peers`, other libraries' samplers stand beside ours (see `peers.py`). Each part writes a CSV and a
Markdown table to the output directory, and prints the table. Memory is read from /proc, so on Linux only.
"""

import argparse
import csv
import gc
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sdekit as sk
from sdekit.sampling.engine import CompiledPlan, Engine
from sdekit.sampling.noise import BlockNormals

Record = dict[str, Any]
Run = Callable[[], Any]
STEPS, BATCHES, SECONDS = 100, (1, 64, 4096), 3.0
SAMPLERS = (sk.samplers.DDIM(), sk.samplers.DPMSolverPP(), sk.samplers.EulerMaruyama())
MANY, FEW, CONTROL = 1_000_000, 1_000, "four states"
CPU = torch.device("cpu")


class OneOperation(sk.Denoiser):
    """A model as cheap as a model can be."""

    process = sk.VP()

    def predict(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
        """0.3 x."""
        return x * 0.3


def write(out: Path, name: str, records: list[Record], table: str) -> None:
    """CSV, Markdown and the screen."""
    out.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(key for record in records for key in record))
    with (out / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(records)
    (out / f"{name}.md").write_text(table + "\n")
    print(f"\n{table}\n", flush=True)


# ------------------------------------------------------------------------------------------------- time


def by_hand(plan: sk.samplers.Plan, n: int) -> Run:
    """x = a x + b model(x) + c (the model at the state before) + d z, in place."""
    weights = []
    for k, row in enumerate(plan.rows[1:]):
        assert row.x.keys() == {k}
        assert row.p.keys() <= {k, k - 1}
        weights.append((row.x[k], row.p[k], row.p.get(k - 1, 0.0), row.z.get(k, 0.0)))
    generator = torch.Generator()

    def run() -> Tensor:
        generator.manual_seed(0)
        x = torch.randn(n, 2, generator=generator)
        before = x
        for a, b, c, d in weights:
            data = x * 0.3
            x.mul_(a).add_(data, alpha=b)
            if c:
                x.add_(before, alpha=c)
            if d:
                x.add_(torch.randn(n, 2, generator=generator), alpha=d)
            before = data
        return x

    return run


def compiled(plan: sk.samplers.Plan, model: sk.Denoiser, n: int) -> Run:
    """The rows on an engine, compiled beforehand."""
    program = CompiledPlan(plan, model.prediction)

    def run() -> Tensor:
        normals = BlockNormals(0, 0, n, (2,), torch.float32, CPU, len(plan.normals))
        return program(Engine(model, normals), normals.start())

    return run


def front_door(sampler: sk.samplers.Sampler, model: sk.Denoiser, n: int) -> Run:
    """One call of `sk.sample`."""
    return lambda: sk.sample(model, (n, 2), sampler=sampler, steps=STEPS, seed=0).x


def least(runs: list[Run]) -> list[float]:
    """Microseconds a step of each, interleaved."""
    for run in runs:
        run()
    seconds: list[list[float]] = [[] for _ in runs]
    gc.disable()  # as timeit does: a collection would fall on whichever run comes next
    stop = time.perf_counter() + SECONDS
    while time.perf_counter() < stop or len(seconds[0]) < 5:
        for run, kept in zip(runs, seconds, strict=True):
            start = time.thread_time()
            run()
            kept.append(time.thread_time() - start)
    gc.enable()
    return [min(kept) / STEPS * 1e6 for kept in seconds]


def times() -> list[Record]:
    """One record per sampler and batch size."""
    model, records = OneOperation(), []
    for sampler in SAMPLERS:
        plan = sampler.plan(model.process, sampler.grid.times(model.process, STEPS, 1.0, 1e-3))
        native = plan.native(model.prediction)
        for n in BATCHES:
            runs = [by_hand(native, n), compiled(plan, model, n), front_door(sampler, model, n)]
            hand, rows, front = least(runs)
            ratios = {"compiled / hand": rows / hand, "sample / hand": front / hand}
            records.append({"sampler": repr(sampler), "n": n, "hand us a step": hand} | ratios)
    return records


# ----------------------------------------------------------------------------------------------- memory


def memory_runs(n: int, *, peers: bool) -> Iterator[tuple[str, int | None, Run]]:
    """(name, registers of the plan, run) of what is weighed."""
    yield CONTROL, None, lambda: torch.zeros(4 * n, 2)
    model = OneOperation()
    for sampler in (*SAMPLERS[:2], sk.samplers.ExponentialAB(order=4), SAMPLERS[2]):
        plan = sampler.plan(model.process, sampler.grid.times(model.process, STEPS, 1.0, 1e-3))
        registers = plan.native(model.prediction).registers
        yield f"sdekit {sampler!r}", registers, front_door(sampler, model, n)
    if peers:
        from peer_libraries import installed
        from peers import their_runs

        for name, _, run in their_runs(STEPS, n, installed()[1]):
            yield name, None, run


def peak_states(name: str, *, peers: bool) -> float:
    """States held at most above what a small run leaves; for a process that does nothing else."""

    def run(n: int) -> None:
        next(made for found, _, made in memory_runs(n, peers=peers) if found == name)()

    run(FEW)
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
    before = _highest()
    run(MANY)
    return (_highest() - before) / (MANY * 2 * 4)


def _highest() -> int:
    """The highest resident memory of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def memory(*, peers: bool) -> list[Record]:
    """One record per sampler."""
    records = []
    for name, registers, _ in memory_runs(FEW, peers=peers):
        flags = ["--peers"] if peers else []
        command = [sys.executable, __file__, "--peak", name, *flags]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        states = float(printed.split()[-1])
        records.append({"run": name, "registers": registers, "peak states": states})
    return records


# ------------------------------------------------------------------------------------------------- main


def table_of(records: list[Record]) -> str:
    """The records as Markdown."""
    columns = list(records[0])
    cells = [columns, ["---"] * len(columns)]
    for record in records:
        values = (record[c] for c in columns)
        cells.append(
            [f"{v:.2f}" if isinstance(v, float) else "" if v is None else str(v) for v in values]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peers", action="store_true", help="other libraries beside ours")
    parser.add_argument("--out", type=Path, default=Path("runs/overhead"))
    parser.add_argument("--peak", metavar="RUN", help="print the peak states of this run alone")
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    given = arguments()
    if given.peak:
        print(peak_states(given.peak, peers=given.peers))
        return
    save = partial(write, given.out)
    records = times()
    save("time", records, table_of(records))
    if given.peers:
        from peer_libraries import installed
        from peers import overhead, overhead_table

        records = overhead(installed()[1], list(BATCHES), STEPS)
        save("time_beside_peers", records, overhead_table(records))
    records = memory(peers=given.peers)
    save("memory", records, table_of(records))


if __name__ == "__main__":
    main()
