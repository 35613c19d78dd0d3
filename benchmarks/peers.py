"""How near do other libraries' samplers come, what are they, and what do they cost, beside ours?

`python benchmarks/peers.py [--quick] [--problems NAME ...] [--starts N] [--parts PART ...] [--out DIR]`

- accuracy: distance from the exact endpoints of the probability flow at 10 to 200 model calls, same exact
  score, same starts, for every deterministic sampler with fixed steps, ours and theirs: RMS, median and 95th
  percentile over the starts.
- plans: the plan read out of each library's samplers, its measured order, and its exact error of the variance
  on N(0.7, 0.25) at 50 steps.
- overhead: microseconds a step beyond a model of one operation, in one interleaved run on one thread.

The libraries are optional: `pip install "sdekit[peers]"`, or with `--no-deps` and what little they import, as
torchvision need not load. One that does not import is said and left out. Each part writes a CSV and a
Markdown table to the output directory, and prints the table.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from overhead import OneOperation, Record, by_hand, compiled, front_door, least, write
from peer_libraries import Peer, azula_denoiser, installed, k_sampling
from peer_libraries import betas as discrete_betas
from problems import PROBLEMS, PROCESS, T_END, T_START, Problem
from torch import Tensor

import sdekit as sk
from sdekit.sampling.engine import CompiledPlan, Engine
from sdekit.testing import affine_deviation, plan_from_sampler
from sdekit.testing.extraction import BlackBox, Model

BUDGETS = (10, 20, 50, 100, 200)
#: Named grids that each of ours is tried on besides its own.
OUR_GRIDS: dict[str, sk.samplers.TimeGrid] = {
    **{name: sk.samplers.GRIDS[name] for name in ("log-snr", "karras", "quadratic", "cubic")},
    **{f"beta{power}": sk.samplers.Beta(float(power)) for power in (4, 6, 8)},
}
STRAIGHT = partial(sk.samplers.ExponentialAB, prediction="flow", clock=sk.samplers.FlowTime())
#: One sampler, on its own grid whatever the problem and the budget.
FIXED = STRAIGHT(4)
OURS = (
    *(sk.samplers.ExponentialAB(order) for order in (2, 3, 4)),
    *(sk.samplers.ExponentialAB(order, prediction="noise") for order in (2, 3, 4)),
    *(sk.samplers.ExponentialAB(order, prediction="v") for order in (2, 3, 4)),
    *(STRAIGHT(order) for order in (2, 3, 4)),
    *(sk.samplers.DPMSolverPP(order) for order in (2, 3)),
    *(sk.samplers.UniPC(p) for p in (1, 2, 3)),
)


# --------------------------------------------------------------------------------------------- accuracy


class Counted:
    """A model that counts its calls; without a denoiser, one that replies zero."""

    def __init__(self, denoiser: sk.Denoiser | None = None) -> None:
        self._denoiser, self.nfe = denoiser, 0

    def __call__(self, x: Tensor, t: Any) -> Tensor:
        """The reply."""
        self.nfe += 1
        return torch.zeros_like(x) if self._denoiser is None else self._denoiser.predict(x, t)


def our_peers() -> Iterator[Peer]:
    """Our samplers as black boxes, on their own grids and on each named one."""

    def box(sampler: sk.samplers.PlanSampler, grid: sk.samplers.TimeGrid, steps: int) -> BlackBox:
        return as_box(sampler.plan(PROCESS, grid.times(PROCESS, steps, T_START, T_END)))

    for sampler in OURS:
        for name, grid in {"own grid": sampler.grid, **OUR_GRIDS}.items():
            yield Peer("sdekit", f"{label(sampler)}, {name}", partial(box, sampler, grid))


def label(sampler: sk.samplers.PlanSampler) -> str:
    """Its repr without what is as by default."""
    given = {f.name: getattr(sampler, f.name) for f in fields(sampler)}  # type: ignore[arg-type]
    usual = type(sampler)()
    return "{}({})".format(
        type(sampler).__name__,
        ", ".join(f"{k}={v!r}" for k, v in given.items() if v != getattr(usual, k) or k == "order"),
    )


def as_box(plan: sk.samplers.Plan) -> BlackBox:
    """A plan without normals, compiled, as a black box."""
    program = CompiledPlan(plan, "data")

    def run(model: Model, x: Tensor) -> Tensor:
        engine = Engine(_Called(model), torch.zeros_like)  # type: ignore[arg-type]
        return program(engine, x.clone())

    return run


class _Called(sk.Denoiser):
    """A bare model(x, t) as a denoiser."""

    process = PROCESS

    def __init__(self, model: Model) -> None:
        self._model = model

    def predict(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
        """The model."""
        return self._model(x, t)


def within(peer: Peer, budget: int) -> int | None:
    """The most steps that cost at most `budget` model calls; None if not even one does."""
    steps = budget + 1
    while steps > 0:
        calls = math.inf
        if peer.steps is None or steps in peer.steps:
            counted = Counted()
            try:
                peer.box(steps)(counted, torch.zeros(1, 1, dtype=torch.float64))
                calls = counted.nfe
            except (IndexError, ValueError, ZeroDivisionError):
                pass  # too few steps for its history
        if calls <= budget:
            return steps
        likely = steps if math.isinf(calls) else math.ceil(steps * budget / calls) + 2
        steps = min(steps - 1, likely)
    return None


def accuracy(
    peers: list[Peer], problems: list[Problem], budgets: list[int], most: int | None = None
) -> list[Record]:
    """One record per problem, sampler and budget, from at most `most` starts."""
    records = []
    chosen = [(p, b, within(p, b)) for p in peers for b in budgets]
    for problem in problems:
        began = time.perf_counter()
        for peer, budget, steps in chosen:
            if steps is None:
                continue
            counted = Counted(problem.model)
            x = peer.box(steps)(counted, problem.starts[:most].clone())
            away = (x - problem.endpoints[:most]).norm(dim=1)
            where = {"problem": problem.name, "library": peer.library, "sampler": peer.name}
            cost = {"budget": budget, "nfe": counted.nfe, "starts": len(away)}
            records.append(where | cost | statistics_of(away))
        print(f"{problem.name}: {time.perf_counter() - began:.0f} s", flush=True)
    return records


def statistics_of(away: Tensor) -> Record:
    """RMS, median and 95th percentile; infinite if any is not a number."""
    away = torch.nan_to_num(away, nan=math.inf)
    return {
        "rms": away.square().mean().sqrt().item(),
        "median": away.median().item(),
        "p95": away.sort().values[int(0.95 * len(away))].item(),
    }


def accuracy_table(records: list[Record]) -> str:
    """Per problem and budget, by each statistic: the best peer, our best, and `FIXED` on its own grid."""
    lines = [
        f"| problem | calls | error | best peer | | ours | | ratio | {label(FIXED)} |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    cases: dict[tuple[str, int], list[Record]] = {}
    for r in records:
        cases.setdefault((r["problem"], r["budget"]), []).append(r)
    for (problem, budget), case in cases.items():
        ours = [r for r in case if r["library"] == "sdekit"]
        (fixed,) = (r for r in ours if r["sampler"] == f"{label(FIXED)}, own grid")
        for by in ("rms", "median", "p95"):
            theirs = min((r for r in case if r["library"] != "sdekit"), key=lambda r: r[by])
            mine = min(ours, key=lambda r: r[by])
            behind = [" **behind**" if r[by] > theirs[by] else "" for r in (mine, fixed)]
            lines.append(
                f"| {problem} | {budget} | {by} | {theirs[by]:.1e} | {theirs['library']} "
                f"{theirs['sampler']} | {mine[by]:.1e} | {mine['sampler']} "
                f"| {theirs[by] / mine[by]:.2g}{behind[0]} | {fixed[by]:.1e}{behind[1]} |"
            )
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------ plans


def plans(peers: list[Peer], two_mode: Problem) -> list[Record]:
    """One record per sampler: whether it is a plan, its order, its exact error on Gaussian data."""
    records = []
    for peer in on_one_grid(peers):
        known = {"library": peer.library, "sampler": peer.name, "random": peer.random}
        records.append(known | described(peer, two_mode))
        print(".", end="", flush=True)
    return records


def on_one_grid(peers: list[Peer]) -> list[Peer]:
    """Each sampler once, uniform in log-SNR where it can be: what it is does not depend on the grid."""
    ranks = ["uniform", "karras", "lu", "log-snr"]
    chosen: dict[tuple[str, str], Peer] = {}
    for peer in sorted(peers, key=lambda p: ranks.index(grid_of(p)) if grid_of(p) in ranks else -1):
        grid = grid_of(peer)
        name = peer.name.removesuffix(f", {grid}") if grid in ranks else peer.name
        chosen[peer.library, name] = peer
    return [peer for peer in peers if peer in chosen.values()]


def grid_of(peer: Peer) -> str:
    """The last part of the name."""
    return peer.name.rpartition(", ")[2]


def described(peer: Peer, two_mode: Problem) -> Record:
    """Read the plan with 50 steps, measure the order from 100 to 200 (50 to 100 in float32).

    The order is that of the result on the two-mode mixture, for random samplers that of the variance on
    N(0.7, 0.25) from 50 to 100 steps.
    """
    try:
        plan, *finer = (
            plan_from_sampler(peer.box(steps), PROCESS, tolerance=peer.digits)
            for steps in ((50, 100) if peer.random else (50,))
        )
    except ValueError as error:
        return {"plan": "no", "why": str(error)}
    bias = variance_error(plan)
    if finer:
        ends = [bias, variance_error(finer[0])]
    else:
        ends = [
            rms_of(peer.box(n), two_mode) for n in ((50, 100) if peer.digits > 1e-9 else (100, 200))
        ]
    return {
        "plan": "yes",
        "deviation": affine_deviation(peer.box(50), plan),
        "nfe": plan.nfe,
        "registers": plan.registers,
        "order": math.log2(abs(ends[0] / ends[1])),
        "variance error": bias,
    }


def variance_error(plan: sk.samplers.Plan) -> float:
    """Relative error of the output variance on N(0.7, 0.25), from the exact law at the start."""
    exact = PROCESS.alpha(T_END) ** 2 * 0.25 + PROCESS.sigma(T_END) ** 2
    return plan.gaussian_law(0.7, 0.25, start="exact")[1].item() / exact - 1


def rms_of(box: BlackBox, problem: Problem) -> float:
    """RMS error of a sampler that draws no normals."""
    x = box(problem.model.predict, problem.starts.clone())
    return (x - problem.endpoints).square().mean().sqrt().item()


def plans_table(records: list[Record]) -> str:
    """One line a sampler."""
    lines = [
        "| library | sampler | plan | deviation | calls | order | variance error |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in records:
        cells = [r["library"], r["sampler"], r["plan"]]
        if r["plan"] == "yes":
            cells += [f"{r['deviation']:.0e}", str(r["nfe"]), f"{r['order']:.2f}"]
            cells += [f"{r['variance error']:+.2%}"]
        else:
            cells += [r["why"], "", "", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------- overhead


def their_runs(steps: int, n: int, libraries: dict[str, str]) -> Iterator[tuple[str, str, Any]]:
    """(name, comparable sampler, run) of each library on (n, 2) float32 states and 0.3 x as the model.

    Each is used the way its documentation uses it, on precomputed noise levels, with one scheduler for all
    runs, and the model needs no conversion of times.
    """
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    if not libraries["k-diffusion"].startswith("left out"):
        ks = k_sampling()
        sigmas = ks.get_sigmas_exponential(steps + 1, 0.01, 150.0)[:-1]
        for name, same in (("euler", "DDIM"), ("dpmpp_2m", "DPM-Solver++(2M)")):
            run = partial(
                getattr(ks, f"sample_{name}"), lambda y, s: y * 0.3, x, sigmas, disable=True
            )
            yield f"k-diffusion {name}", same, run
    if not libraries["azula"].startswith("left out"):
        yield from azula_runs(steps, x)
    if not libraries["diffusers"].startswith("left out"):
        import diffusers

        settings = {"trained_betas": discrete_betas(), "prediction_type": "sample"}
        for name, same in (("DDIM", "DDIM"), ("DPMSolverMultistep", "DPM-Solver++(2M)")):
            scheduler = getattr(diffusers, f"{name}Scheduler")(**settings)
            yield f"diffusers {name}", same, partial(pipeline_loop, scheduler, steps, x)


def azula_runs(steps: int, x: Tensor) -> Iterator[tuple[str, str, Any]]:
    """azula with its own VP schedule."""
    from azula.denoise import DiracPosterior
    from azula.noise import VPSchedule
    from azula.sample import DDIMSampler, xEABSampler

    denoiser = azula_denoiser(lambda y, t: y * 0.3, sk.samplers.GRIDS["uniform"])
    denoiser.schedule = VPSchedule()
    denoiser.forward = lambda y, t: DiracPosterior(mean=y * 0.3)
    for sampler, same in ((DDIMSampler, "DDIM"), (xEABSampler, "DPM-Solver++(2M)")):
        yield (
            f"azula {sampler.__name__}",
            same,
            partial(sampler(denoiser, steps=steps, silent=True), x),
        )


def pipeline_loop(scheduler: Any, steps: int, x: Tensor) -> Tensor:
    """The loop of every diffusers pipeline, on a model that predicts the data."""
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t)
        x = scheduler.step(seen * 0.3, t, x).prev_sample
    return x


def overhead(libraries: dict[str, str], batches: list[int], steps: int = 100) -> list[Record]:
    """One record per batch size and run: microseconds a step, and those beyond the model."""
    model, records = OneOperation(), []
    ours = {"DDIM": sk.samplers.DDIM(), "DPM-Solver++(2M)": sk.samplers.DPMSolverPP()}
    for n in batches:
        runs: list[tuple[str, str, Callable[[], Tensor]]] = []
        for same, sampler in ours.items():
            times = sampler.grid.times(model.process, steps, 1.0, 1e-3)
            plan = sampler.plan(model.process, times)
            if same == "DDIM":
                runs.append(("loop by hand", same, by_hand(plan.native(model.prediction), n)))
            runs.append(("sdekit compiled plan", same, compiled(plan, model, n)))
            runs.append(("sdekit sample", same, front_door(sampler, model, n)))
        runs += list(their_runs(steps, n, libraries))
        x = torch.randn(n, 2)
        runs.append(("model", "", lambda x=x: [x * 0.3 for _ in range(steps)][-1]))
        *each, bare = least([run for _, _, run in runs])
        for (name, same, _), spent in zip(runs, each, strict=False):
            cost = {"us a step": spent, "us beyond the model": spent - bare}
            records.append({"batch": n, "sampler": same, "run": name} | cost)
    return records


def overhead_table(records: list[Record]) -> str:
    """One line a run, with its ratios to our plan and to `sdekit.sample` with the same sampler."""
    lines = [
        "| batch | sampler | run | us a step | beyond the model | over our plan | over our sample |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    beyond = {(r["batch"], r["sampler"], r["run"]): r["us beyond the model"] for r in records}
    for r in sorted(records, key=lambda r: (r["batch"], r["sampler"])):
        case, own = (r["batch"], r["sampler"]), r["us beyond the model"]
        ratios = (own / beyond[*case, f"sdekit {way}"] for way in ("compiled plan", "sample"))
        cells = [*map(str, case), r["run"], f"{r['us a step']:.1f}", f"{own:.1f}"]
        lines.append("| " + " | ".join([*cells, *(f"{ratio:.2f}" for ratio in ratios)]) + " |")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------- main


def stamped(records: list[Record], libraries: dict[str, str]) -> list[Record]:
    """The records with the version of each library."""
    known = libraries | {"sdekit": sk.__version__}
    return [{"library": r["library"], "version": known[r["library"]]} | r for r in records]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one problem, 10 to 50 calls")
    parser.add_argument("--problems", nargs="+", choices=[p.name for p in PROBLEMS])
    parser.add_argument("--starts", type=int, help="at most so many of each problem's starts")
    parts = ["accuracy", "plans", "overhead"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--out", type=Path, default=Path("runs/peers"))
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    given = arguments()
    peers, libraries = installed()
    print("\n".join(f"{name} {found}" for name, found in libraries.items()), flush=True)
    default = ["two-mode"] if given.quick else [p.name for p in PROBLEMS]
    problems = [p for p in PROBLEMS if p.name in (given.problems or default)]
    if "accuracy" in given.parts:
        fixed = [p for p in peers if not p.random and p.steps != ()]
        budgets = list(BUDGETS[:3] if given.quick else BUDGETS)
        records = accuracy([*our_peers(), *fixed], problems, budgets, given.starts)
        records = stamped(records, libraries)
        write(given.out, "accuracy", records, accuracy_table(records))
    if "plans" in given.parts:
        records = stamped(plans(peers, PROBLEMS[0]), libraries)
        write(given.out, "plans", records, plans_table(records))
    if "overhead" in given.parts:
        records = overhead(libraries, [1, 64] if given.quick else [1, 64, 4096])
        write(given.out, "overhead", records, overhead_table(records))


if __name__ == "__main__":
    main()
