"""What do computed grids and computed plans gain over the best grid that has a name?

Held-out RMS and median endpoint errors of ExponentialAB on every named grid, on an optimised grid, and of an
optimised plan, at equal numbers of model calls: exact models of two laws, and a network trained here. The
starting states are the same everywhere and none of them was optimised over.

    python experiments/computed_samplers.py [--quick] [--out runs/computed_samplers]
"""

import argparse
import csv
import math
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from torch import Tensor

import sdekit as sk
from sdekit import samplers as ss

PROCESS = sk.VP(0.1, 20.0)
END = 1e-3
Row = dict[str, Any]


def ring() -> sk.GaussianMixture:
    """Eight narrow bells of unequal weight around a circle."""
    angle = 2 * math.pi * torch.arange(8, dtype=torch.float64) / 8
    means = 1.4 * torch.stack([angle.cos(), angle.sin()], 1)
    return sk.GaussianMixture(range(1, 9), means, 0.07)


def trained(target: sk.GaussianMixture, steps: int) -> sk.Denoiser:
    """A small network, in float64 so that the reference and the samplers see the same function."""
    torch.manual_seed(0)
    model = sk.NetworkDenoiser(sk.networks.MLP(target.dim, hidden=64), PROCESS)
    return sk.train(model, target, steps=steps, seed=0, progress=False).model.double()


def solve(model: sk.Denoiser, x: Tensor, sampler: ss.Sampler, grid: Any, steps: int) -> Tensor:
    own_ends = None if isinstance(grid, ss.Tabulated) else END
    times = list(grid.nodes) if isinstance(grid, ss.Tabulated) else grid
    shape = tuple(x.shape)
    run = sk.sample(
        model, shape, sampler=sampler, grid=times, steps=steps, t_end=own_ends, x_init=x
    )
    return run.x


def rows_of(
    problem: str,
    model: sk.Denoiser,
    target: sk.GaussianMixture,
    calls: list[int],
    orders: list[int],
    n: int,
) -> list[Row]:
    """One row a (calls, order, grid or plan)."""
    generator = torch.Generator().manual_seed(12345)
    x = torch.randn(n, target.dim, generator=generator, dtype=torch.float64)
    exact = solve(model, x, ss.ExponentialAB(4), "log-snr", 1000)
    search = ss.Search(reference_steps=1000)
    rows = []
    for steps in calls:
        for order in orders:
            sampler = ss.ExponentialAB(order)
            entries: list[tuple[str, ss.Sampler, Any, float]] = []
            entries += [(name, sampler, name, 0.0) for name in ss.GRIDS]
            for kind, find in (("grid", ss.optimise_grid), ("plan", ss.optimise_plan)):
                began = time.process_time()
                found = find(model, sampler, steps, event=(target.dim,), search=search)
                taken = time.process_time() - began
                entries.append((f"computed {kind}", found.sampler, found.grid, taken))
            for name, used, grid, seconds in entries:
                error = (solve(model, x, used, grid, steps) - exact).norm(dim=1)
                row: Row = {"problem": problem, "calls": steps, "order": order, "grid": name}
                row |= {"rms": error.square().mean().sqrt().item(), "median": error.median().item()}
                rows.append(row | {"cpu seconds": seconds})
    return rows


def best(rows: list[Row], problem: str, calls: int, kind: str, metric: str) -> Row:
    """The best row of a kind: "named", "computed grid" or "computed plan"; over orders and named grids."""
    chosen = [
        r
        for r in rows
        if (r["problem"], r["calls"]) == (problem, calls)
        and (r["grid"] == kind or (kind == "named" and not r["grid"].startswith("computed")))
    ]
    return min(chosen, key=lambda r: r[metric])


KINDS = ("named", "computed grid", "computed plan")


def printed(rows: list[Row]) -> None:
    for metric in ("rms", "median"):
        print(f"\nheld-out {metric} endpoint error, best over orders (order, grid; CPU seconds)")
        for problem in dict.fromkeys(r["problem"] for r in rows):
            for calls in dict.fromkeys(r["calls"] for r in rows if r["problem"] == problem):
                cells = []
                for kind in KINDS:
                    r = best(rows, problem, calls, kind, metric)
                    what = f"{r['order']}, {r['grid']}" if kind == "named" else f"{r['order']}"
                    cost = f"; {r['cpu seconds']:.1f} s" if r["cpu seconds"] else ""
                    cells.append(f"{kind} {r[metric]:.2e} ({what}{cost})")
                print(f"{problem:<20}{calls:>4} calls   " + "   ".join(cells))


def drawn(rows: list[Row], path: Path) -> None:
    """Median error by model calls, one panel a problem."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    problems = list(dict.fromkeys(r["problem"] for r in rows))
    figure, axes = plt.subplots(
        1, len(problems), figsize=(4.2 * len(problems), 3.8), sharey=True, squeeze=False
    )
    for panel, problem in zip(axes[0], problems, strict=True):
        calls = list(dict.fromkeys(r["calls"] for r in rows if r["problem"] == problem))
        for kind, marker, dash in zip(KINDS, "os^", ("--", "-", "-"), strict=True):
            errors = [best(rows, problem, c, kind, "median")["median"] for c in calls]
            panel.loglog(
                calls,
                errors,
                marker=marker,
                ls=dash,
                label=kind.replace("named", "best named grid"),
            )
        panel.set(title=problem, xlabel="model calls", xticks=calls, xticklabels=calls)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    axes[0, 0].set_ylabel("held-out median endpoint error")
    axes[0, 0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="one problem, fewer calls, orders and starts"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/computed_samplers"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    quick, two_mode, eight = options.quick, sk.data.two_mode(), ring()
    calls, orders, n = ([5], [3], 512) if quick else ([5, 10, 20], [2, 3, 4], 4096)
    problems: list[tuple[str, sk.Denoiser, sk.GaussianMixture]] = [
        ("two modes, exact", two_mode.denoiser(PROCESS), two_mode)
    ]
    if not quick:
        problems += [
            ("ring of 8, exact", eight.denoiser(PROCESS), eight),
            ("two modes, trained", trained(two_mode, 3000), two_mode),
        ]
    rows: list[Row] = []
    for name, model, target in problems:
        few = [c for c in calls if c < 20] if "trained" in name else calls
        some = [3] if "trained" in name else orders
        rows += rows_of(name, model, target, few, some, n)
    printed(rows)
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "errors.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    drawn(rows, options.out / "errors.png")
    print(f"\nwritten to {options.out}")


if __name__ == "__main__":
    main()
