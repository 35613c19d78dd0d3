"""How exact are the densities, and what do they cost?

`OMP_NUM_THREADS=1 python benchmarks/exact_densities.py [--quick] [--peers] [--parts PART ...] [--out DIR]`

The data are the two-mode mixture 0.3 N(-1.4, 0.4^2) + 0.7 N(0.6, 0.4^2), whose law at every time is known.

- equation: the Fokker-Planck solver from exact cell averages, at 100 to 1,600 cells: L1 error at three times,
  time of a call, mass and smallest average; and the order in the cells, with an error in time far below it.
  As it comes it takes no steps in time for these processes, where their drift is moderate; so also with them.
- peers (`--peers`): other libraries on the same equation at several settings each (`density_peers.py`), error
  against time, and what the cheapest setting of each costs for a given error.
- sampler: KL, TV, W1 and W2 of Euler-Maruyama from the data, computed without drawing, against steps.
- likelihood: model calls and error of `sk.log_likelihood` beside torchdiffeq on the same right-hand side, and
  the time of the exact divergence by dimension.

One thread. Times are processor time, the least over repeats (others' work can only add). Each part writes a
CSV and a Markdown table, and most a picture, to the output directory, and prints the table.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from overhead import Record, write
from torch import Tensor

import sdekit as sk
from sdekit import plotting

TARGET = sk.data.two_mode()
LADDER, QUICK = (100, 200, 400, 800, 1600), (100, 200, 400)
#: Bounds on the error at which cost is compared.
BOUNDS = (1e-3, 1e-4, 1e-5, 1e-6, 5e-7, 1e-7, 5e-8)
OURS, STEPS = "sdekit", "sdekit by steps"
PARTS = ("equation", "sampler", "likelihood")
EM_STEPS = (10, 20, 50, 100, 200, 500, 1000)
DISTANCES = ("KL", "TV", "W1", "W2")
#: Where likelihoods are measured.
T_END = 1e-3


@dataclass(frozen=True)
class Problem:
    """A process, and the line on which its density is followed: in x, or in u = x / s(t) if scaled."""

    name: str
    process: sk.Process
    half_width: float
    scaled: bool = False
    scheme: str = "auto"
    times: tuple[float, ...] = (0.1, 0.5, 1.0)

    def edges(self, cells: int) -> np.ndarray:
        """Ends of this many cells."""
        return np.linspace(-self.half_width, self.half_width, cells + 1)

    def scale(self, t: float) -> float:
        """s(t), the standard deviation of data of variance 1; 1 in x."""
        process = self.process
        return math.hypot(process.alpha(t), process.sigma(t)) if self.scaled else 1.0

    def averages(self, t: float, edges: np.ndarray) -> np.ndarray:
        """Exact averages at t over the cells s(t) * edges, from the nearer tail."""
        law, x = TARGET.at(self.process, t), self.scale(t) * edges
        below, above = (f(torch.from_numpy(x)).numpy() for f in (law.cdf, law.survival))
        return np.where(below[1:] < 0.5, np.diff(below), -np.diff(above)) / np.diff(x)

    def values(self, t: float, x: np.ndarray) -> np.ndarray:
        """Exact density of x at t."""
        return TARGET.at(self.process, t).log_prob(torch.from_numpy(x)[:, None]).exp().numpy()

    def solve(
        self, start: np.ndarray, edges: np.ndarray, tol: float | None = None
    ) -> sk.pde.Solution:
        """Our solution at the times, from cell averages."""
        coordinates = "scaled" if self.scaled else "raw"
        options: Any = {"scheme": self.scheme, "coordinates": coordinates, "tol": tol}
        return sk.pde.solve_fokker_planck(self.process, start, edges, self.times, **options)

    def errors(self, rows: np.ndarray, truth: np.ndarray, h: float) -> list[float]:
        """L1 distances in x at the times, from values one `h` apart."""
        away = np.abs(rows - truth).sum(1)
        return [float(h * self.scale(t) * a) for t, a in zip(self.times, away, strict=True)]


HEAT, VP = Problem("heat", sk.Heat(), 12.0), Problem("VP", sk.VP(), 8.0)
PROBLEMS = (
    VP,
    HEAT,
    Problem("VE, scaled", sk.VE(), 8.0, scaled=True),
    replace(VP, name="VP by steps", scheme="fv4"),
    Problem("sub-VP by steps", sk.SubVP(), 8.0, scheme="fv4"),
)


# --------------------------------------------------------------------------------------- what all share


def least_seconds(call: Callable[[], Any], budget: float, least: int = 3) -> float:
    """Processor seconds of a call, the least over repeats for about `budget` seconds."""
    taken: list[float] = []
    while (sum(taken) < budget and len(taken) < 200) or (len(taken) < least and max(taken) < 2):
        start = time.process_time()
        call()
        taken.append(time.process_time() - start)
    return min(taken)


def table_of(records: Iterable[Record], formats: dict[str, str]) -> str:
    """The columns named, as Markdown; what is not there is left empty."""
    rows = [list(formats), ["---"] * len(formats)]
    rows += [
        [format(r[c], f) if r.get(c) is not None else "" for c, f in formats.items()]
        for r in records
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def figure_of(panels: int, width: float, **shared: Any) -> tuple[Any, list[Any]]:
    """A figure of log-log panels beside one another."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * panels, 4.0), layout="constrained", dpi=130)
    axes = list(figure.subplots(1, panels, squeeze=False, **shared).flat)
    for panel in axes:
        panel.set(xscale="log", yscale="log")
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes


def style(i: int) -> dict[str, Any]:
    """Colour, marker and dash of the i-th curve, told apart in grey too."""
    return {
        "color": plotting.COLOURS[i],
        "marker": plotting.MARKERS[i],
        "ls": plotting.DASHES[i],
        "ms": 5,
    }


def power(axes: Any, x: Sequence[float], y: float, order: float) -> None:
    """A line of slope -order from (x[0], y), with its name at the end."""
    end = y * (x[0] / x[1]) ** order
    axes.plot(x, [y, end], color="#666666", ls=":", lw=1)
    axes.text(x[1], end, f" order {order:g}", color="#555555", fontsize=8, va="center")


# --------------------------------------------------------------------------------------------- equation


def accuracy(problem: Problem, cells: int, tol: float | None, budget: float = 0.0) -> Record:
    """One call: its errors, its invariants, and its time if there is a budget for it."""
    edges = problem.edges(cells)
    start = problem.averages(0.0, edges)
    solution = problem.solve(start, edges, tol)
    truth = np.stack([problem.averages(t, edges) for t in problem.times])
    errors = problem.errors(solution.density, truth, edges[1] - edges[0])
    record: Record = {"process": problem.name, "scheme": solution.scheme, "cells": cells}
    record["tol"] = tol
    record |= {f"L1 at {t:g}": e for t, e in zip(problem.times, errors, strict=True)}
    record |= {"mass error": float(np.abs(solution.mass - 1).max())}
    record |= {"minimum": float(solution.minimum.min()), "steps": solution.steps}
    if budget:
        seconds = least_seconds(lambda: problem.solve(start, edges, tol), budget)
        record["ms"] = 1e3 * seconds
    return record


def with_orders(records: Sequence[Record]) -> list[Record]:
    """The order of the largest error against the record before, of the same process."""
    out = []
    for k, record in enumerate(records):
        before = records[k - 1] if k else record
        same = before["process"] == record["process"] and before["cells"] < record["cells"]
        gain = math.log(largest(before) / largest(record))
        order = gain / math.log(record["cells"] / before["cells"]) if same else None
        out.append(record | {"order": order})
    return out


def largest(record: Record) -> float:
    """The largest L1 error of the times."""
    return max(value for key, value in record.items() if key.startswith("L1"))


def equation(out: Path, *, quick: bool) -> None:
    """Errors and times at the default tolerance; orders with a tight one."""
    errors = {f"L1 at {t:g}": ".1e" for t in VP.times}
    ends = {"mass error": ".0e", "minimum": ".0e", "steps": "d"}
    head = {"process": "", "scheme": "", "cells": "d"}
    budget, ladder = (0.1, QUICK) if quick else (1.0, LADDER)
    found = [accuracy(p, n, None, budget) for p in PROBLEMS for n in ladder]
    write(out, "equation", found, table_of(found, head | errors | ends | {"ms": ".1f"}))
    tight = [accuracy(p, n, 1e-11) for p in PROBLEMS for n in (QUICK if quick else LADDER[:-1])]
    tight = with_orders(tight)
    write(out, "order", tight, table_of(tight, head | errors | {"order": ".2f"}))
    plotting.save(convergence(found, tight), out / "equation.png")


def convergence(found: Sequence[Record], tight: Sequence[Record]) -> Any:
    """The largest error against cells, a panel a process."""
    names = list(dict.fromkeys(r["process"] for r in found))
    figure, panels = figure_of(len(names), 3.2, sharey=True)
    for axes, name in zip(panels, names, strict=True):
        for i, (records, label) in enumerate(((found, "default tol"), (tight, "tol 1e-11"))):
            own = [r for r in records if r["process"] == name]
            cells, errors = [r["cells"] for r in own], [largest(r) for r in own]
            face = {"mfc": "white", "zorder": 1} if i else {}
            axes.plot(cells, errors, label=label, **style(i) | face | {"ms": 5 + 2 * i})
        ticks = sorted({r["cells"] for r in found})
        axes.set(xlabel="cells", title=name)
        axes.set_xticks(ticks, labels=[str(n) for n in ticks])
        axes.minorticks_off()
        first = largest(next(r for r in tight if r["process"] == name))
        power(axes, (ticks[0], ticks[0] * 4), 3 * first, 4)
    panels[0].set_ylabel("L1 error, the largest of three times")
    panels[0].legend(frameon=False, fontsize=8)
    return figure


# ------------------------------------------------------------------------------------------------ peers


def peers(out: Path, *, quick: bool) -> None:
    """Every library at every setting, then the cheapest of each within given errors."""
    from density_peers import ours, solvers

    found = []
    for problem in (VP, HEAT):
        every = [*ours(problem, quick=quick), *solvers(problem, quick=quick)]
        found += timed(problem, every, budget=0.05 if quick else 0.2, passes=1 if quick else 2)
    costs = {"process": "", "library": "", "setting": "", "cells": "d", "error": ".1e", "ms": ".1f"}
    write(out, "peers", found, table_of(found, costs | {"compile s": ".0f"}))
    compared = at_equal_error(found)
    columns = {"process": "", "error at most": ".0e", "ms": ".1f", "cells": "d", "by steps": ".1f"}
    columns |= {"best peer": "", "its setting": "", "its ms": ".1f", "ratio": ".1f"}
    columns |= {"best library alone": "", "its ms alone": ".1f", "ratio alone": ".1f"}
    write(out, "peers_at_equal_error", compared, table_of(compared, columns))
    plotting.save(work_precision(found), out / "peers.png")


def timed(problem: Problem, every: Sequence[Any], budget: float, passes: int) -> list[Record]:
    """A record a solver: its largest error of three times, and the least time over all passes."""
    runs, records = [], []
    for solver in every:
        start = time.process_time()
        run = solver.prepare()
        compiled, rows = time.process_time() - start, run()
        record: Record = {"process": problem.name, "library": solver.library}
        record |= {"setting": solver.setting, "cells": solver.points}
        record |= {"error": error_of(problem, solver, rows), "ms": math.inf}
        runs.append(run)
        records.append(record | {"compile s": compiled if compiled > 1 else None})
    for _ in range(passes):
        for run, record in zip(runs, records, strict=True):
            if not 5e3 < record["ms"] < math.inf:  # seconds need no second look
                record["ms"] = min(record["ms"], 1e3 * least_seconds(run, budget))
    return records


def error_of(problem: Problem, solver: Any, rows: np.ndarray) -> float:
    """The largest L1 error of the times, in the unknowns of the solver."""
    edges = problem.edges(solver.points)
    if solver.x is None:
        truth = [problem.averages(t, edges) for t in problem.times]
    else:
        truth = [problem.values(t, solver.x) for t in problem.times]
    error = max(problem.errors(rows, np.stack(truth), edges[1] - edges[0]))
    return error if math.isfinite(error) else math.inf


def at_equal_error(found: Sequence[Record]) -> list[Record]:
    """The cheapest of ours and of the others within each bound; "alone" leaves out what is assembled."""
    out = []
    for problem in dict.fromkeys(r["process"] for r in found):
        for bound in BOUNDS:
            within = [r for r in found if r["process"] == problem and r["error"] <= bound]
            own = cheapest(r for r in within if r["library"] == OURS)
            theirs = [r for r in within if r["library"] not in (OURS, STEPS)]
            if own is None or not theirs:
                continue
            record = {"process": problem, "error at most": bound, "ms": own["ms"]}
            record["cells"] = own["cells"]
            if stepped := cheapest(r for r in within if r["library"] == STEPS):
                record["by steps"] = stepped["ms"]
            if best := cheapest(theirs):
                record |= {"best peer": best["library"], "its ms": best["ms"]}
                record["its setting"] = f"{best['cells']} cells, {best['setting']}"
                record["ratio"] = best["ms"] / own["ms"]
            if alone := cheapest(r for r in theirs if "+" not in r["library"]):
                record |= {"best library alone": alone["library"], "its ms alone": alone["ms"]}
                record["ratio alone"] = alone["ms"] / own["ms"]
            out.append(record)
    return out


def cheapest(records: Iterable[Record]) -> Record | None:
    """The record of least time; None of none."""
    return min(records, key=lambda r: r["ms"], default=None)


def front(records: Sequence[Record]) -> list[Record]:
    """Those that nothing both cheaper and nearer beats, by time."""
    kept: list[Record] = []
    for record in sorted(records, key=lambda r: r["ms"]):
        if not kept or record["error"] < kept[-1]["error"]:
            kept.append(record)
    return kept


def work_precision(found: Sequence[Record]) -> Any:
    """Error against time: each library's best settings joined, its others faint."""
    names = list(dict.fromkeys(r["process"] for r in found))
    libraries = list(dict.fromkeys(r["library"] for r in found))
    figure, panels = figure_of(len(names), 5.0, sharex=True, sharey=True)
    for axes, name in zip(panels, names, strict=True):
        for i, library in enumerate(libraries):
            own = [r for r in found if r["process"] == name and r["library"] == library]
            own = [r for r in own if r["error"] < 1]
            drawn = {k: v for k, v in style(i).items() if k != "ls"}
            points = [r["ms"] for r in own], [r["error"] for r in own]
            axes.plot(*points, ls="", alpha=0.18, **drawn | {"ms": 3})
            best = front(own)
            points = [r["ms"] for r in best], [r["error"] for r in best]
            compiled = " (compiled)" if any(r["compile s"] for r in own) else ""
            axes.plot(
                *points, label=library + compiled, lw=2.2 if library == OURS else 1.2, **style(i)
            )
        axes.set(xlabel="processor time of a call, ms", title=name)
    panels[0].set_ylabel("L1 error, the largest of three times")
    panels[-1].legend(frameon=False, fontsize=8, loc="lower right")
    return figure


# ---------------------------------------------------------------------------------------------- sampler


def sampler(out: Path, *, quick: bool) -> None:
    """The exact law of Euler-Maruyama from the law of the data at T, against steps."""
    law_of(8)  # what the first call imports
    found = [law_of(n) for n in (EM_STEPS[:5] if quick else EM_STEPS)]
    columns = {"steps": "d"} | dict.fromkeys(DISTANCES, ".6g")
    columns |= {"law.error": ".0e", "doubled": ".0e", "mass error": ".0e", "s": ".2f"}
    write(out, "sampler", found, table_of(found, columns))
    plotting.save(distances(found), out / "sampler.png")


def law_of(steps: int) -> Record:
    """Distances of the law from the data's at its end, and how far they move on twice the nodes."""
    euler, model = sk.samplers.EulerMaruyama(), TARGET.denoiser(VP.process)
    start = time.process_time()
    law = sk.pde.sampler_density(model, euler, steps, start="exact")
    seconds = time.process_time() - start
    truth = TARGET.at(VP.process, law.t)
    finer = sk.pde.sampler_density(model, euler, steps, start="exact", points=2 * len(law.nodes))
    record: Record = {"steps": steps}
    record |= {name: getattr(law, name.lower())(truth) for name in DISTANCES}
    moved = [abs(getattr(finer, n.lower())(truth) / record[n] - 1) for n in DISTANCES]
    record |= {"law.error": law.error, "doubled": max(moved), "mass error": abs(law.mass - 1)}
    return record | {"s": seconds, "alarms": "; ".join(law.alarms)}


def distances(found: Sequence[Record]) -> Any:
    """KL, TV, W1 and W2 against steps."""
    figure, (axes,) = figure_of(1, 5.4)
    steps = [r["steps"] for r in found]
    for i, name in enumerate(DISTANCES):
        axes.plot(steps, [r[name] for r in found], label=name, **style(i))
    axes.set(xlabel="steps of Euler-Maruyama", ylabel="distance from the data's law")
    axes.set_xticks(steps, labels=[f"{n:,}" for n in steps])
    axes.minorticks_off()
    for name, order, shift in (("TV", 1, 2.0), ("KL", 2, 0.15)):
        power(axes, steps[-4:-2], shift * found[-4][name], order)
    axes.legend(frameon=False)
    return figure


# ------------------------------------------------------------------------------------------- likelihood


def likelihood(out: Path, *, quick: bool) -> None:
    """Calls and errors at equal tolerances beside torchdiffeq alone; what a divergence costs."""
    points = TARGET.at(VP.process, T_END).sample(64 if quick else 512, seed=0)
    found = [calls(points, 10.0**-k) for k in ((5, 7) if quick else (4, 5, 6, 7, 8, 9))]
    columns = {"rtol = atol": ".0e", "calls": "d", "error": ".1e"}
    columns |= {"torchdiffeq calls": "d", "torchdiffeq error": ".1e"}
    write(out, "likelihood", found, table_of(found, columns))
    costs = [divergence(d, 0.2 if quick else 1.0) for d in ((1, 16) if quick else (1, 2, 16, 64))]
    columns = {"d": "d", "model ms": ".2f", "exact ms": ".2f", "exact / model": ".1f"}
    columns |= {"hutchinson ms": ".2f", "hutchinson / model": ".1f"}
    write(out, "divergence", costs, table_of(costs, columns))


def calls(points: Tensor, tolerance: float) -> Record:
    """Model calls of both, and their largest errors of log p in nats."""
    model = TARGET.denoiser(VP.process)
    truth = TARGET.at(VP.process, T_END).log_prob(points)
    end = TARGET.at(VP.process, 1.0)
    own = sk.log_likelihood(model, points, rtol=tolerance, atol=tolerance, t_end=T_END, prior=end)
    value, nfe = by_torchdiffeq(model, points, end, tolerance)
    record: Record = {"rtol = atol": tolerance, "calls": own.nfe}
    record |= {"error": (own.value - truth).abs().max().item(), "torchdiffeq calls": nfe}
    return record | {"torchdiffeq error": (value - truth).abs().max().item()}


def by_torchdiffeq(
    model: sk.Denoiser, points: Tensor, end: sk.GaussianMixture, tolerance: float
) -> tuple[Tensor, int]:
    """log p at T_END by `odeint` as it comes, from the same velocity and its exact divergence; calls."""
    from torchdiffeq import odeint

    nfe = 0

    def field(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        nonlocal nfe
        nfe += 1
        with torch.enable_grad():
            x = state[0].detach().requires_grad_()
            # Its last step passes the end of the process, where nothing is defined.
            velocity = model.velocity(x, min(float(t), 1.0))
            (slope,) = torch.autograd.grad(velocity.sum(), x)
        return velocity.detach(), slope[:, 0]

    start = points, points.new_zeros(len(points))
    span = torch.tensor([T_END, 1.0], dtype=torch.float64)
    x, change = odeint(field, start, span, rtol=tolerance, atol=tolerance, method="dopri5")
    return end.log_prob(x[-1]) + change[-1], nfe


def divergence(d: int, budget: float) -> Record:
    """Milliseconds a model call, alone and with a divergence, of a network of three layers on 256 points."""
    torch.manual_seed(0)
    model = sk.NetworkDenoiser(sk.networks.MLP(d), VP.process)
    x = torch.randn(256, d)

    def bare() -> None:
        with torch.no_grad():
            for _ in range(8):
                model.predict(x, 0.5)

    record: Record = {"d": d, "model ms": 1e3 * least_seconds(bare, budget) / 8}
    for kind in ("exact", "hutchinson"):

        def solve(kind: str = kind) -> int:
            return sk.log_likelihood(model, x, divergence=kind, method="rk4", steps=2).nfe

        cost = 1e3 * least_seconds(solve, budget) / solve()
        record |= {f"{kind} ms": cost, f"{kind} / model": cost / record["model ms"]}
    return record


# ------------------------------------------------------------------------------------------------- main


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="less of all, under 20 seconds")
    parser.add_argument("--peers", action="store_true", help="other libraries beside ours")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("runs/exact_densities"))
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    torch.set_num_threads(1)
    options = arguments(given)
    if "equation" in options.parts:
        equation(options.out, quick=options.quick)
    if "sampler" in options.parts:
        sampler(options.out, quick=options.quick)
    if "likelihood" in options.parts:
        likelihood(options.out, quick=options.quick)
    if options.peers:
        peers(options.out, quick=options.quick)
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
