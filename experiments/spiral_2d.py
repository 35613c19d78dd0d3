"""A spiral in the plane, learned by small networks: quality against training length, in two chains.

A run a length, its rate falling to 0. Errors count as in the bound on KL, and times are drawn accordingly:
the arm is thin, and what is drawn at low noise decides. Samples are held against as many exact ones by sliced
W2, beside the floor, what exact samples score; and by the share that lies outside the region that holds
99.9 % of the truth. The exact density also gives the excess loss.

    python experiments/spiral_2d.py [--quick] [--target swiss-roll] [--out runs/spiral_2d]

Writes runs.csv, samples.png and quality.png; runs that are done are kept in runs/.
"""

import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness.study import option, study
from harness.sweep import folder_name, grid, sweep
from torch import Tensor

import sdekit as sk
from sdekit import plotting
from sdekit.data.toys import Curve, Spiral, SwissRoll
from sdekit.ddpm import linear_betas
from sdekit.errors import check_choice
from sdekit.storage import load_tensors, save_tensors
from sdekit.training import DenoisingLoss, excess_loss

TARGETS: dict[str, Curve] = {"spiral": Spiral(), "swiss-roll": SwissRoll()}
#: Steps of a chain, and its last beta: each ends in noise.
CHAINS = {200: 0.2, 1000: 0.02}
#: Samples that are kept for the picture, of every length.
_KEPT = 2_000


@dataclass(frozen=True)
class Config:
    """What can be chosen."""

    target: str = option("spiral", "spiral or swiss-roll")
    steps: int = option(4_000, "the longest training; lengths halve from here down to 500")
    networks: str = option("3x256", "layers x width, such as 2x128,3x256")
    points: int = option(0, "training points; 0 for endless fresh ones")
    samples: int = option(10_000, "samples that quality is measured on")
    seeds: int = option(1, "runs of each network, chain and length")


@dataclass(frozen=True)
class Arm:
    """One network, trained and sampled in a chain of so many steps."""

    target: str
    chain: int
    network: str
    steps: int
    points: int
    samples: int
    seed: int = 0


def lengths(steps: int) -> list[int]:
    """The training lengths that are looked at, shortest first."""
    found = [steps]
    while found[0] >= 1_000:
        found.insert(0, found[0] // 2)
    return found


def chain_of(steps: int) -> sk.DDPM:
    return sk.DDPM(linear_betas(steps, 1e-4, CHAINS[steps]))


# ----------------------------------------------------------------------------------------- quality


@functools.cache
def reference(target: str, n: int) -> tuple[Tensor, float]:
    """Exact samples that all are held against, and the log density that 0.1 % of the truth is below."""
    exact = TARGETS[target].sample(n, seed=2**31, dtype=torch.float64)
    return exact, float(TARGETS[target].log_prob(exact).quantile(0.001))


def sliced(x: Tensor, target: Curve) -> float:
    """Sliced W2 from as many exact samples."""
    name = next(k for k, v in TARGETS.items() if v is target)
    return sk.metrics.sliced_wasserstein(x.double(), reference(name, len(x))[0], p=2)


@functools.cache
def floor(target: str, n: int) -> sk.metrics.Floor:
    """What exact samples score."""
    return sk.metrics.floor(sliced, TARGETS[target], n, repeats=20)


def quality(x: Tensor, target: str) -> dict[str, float]:
    """How far samples (n, 2) are from the truth."""
    density = TARGETS[target].log_prob(x.double())
    outside = float((density < reference(target, len(x))[1]).double().mean())
    return {"sliced W2": sliced(x, TARGETS[target]), "outside": outside}


# ------------------------------------------------------------------------------------------- a run


def trained(arm: Arm, folder: Path) -> dict[str, Any]:
    """Train one network, draw from it, and hold that against the truth."""
    target, chain = TARGETS[arm.target], chain_of(arm.chain)
    depth, width = (int(part) for part in arm.network.split("x"))
    torch.manual_seed(arm.seed)
    network = sk.networks.MLP(2, hidden=width, depth=depth, time_scale=1 / len(chain))
    model = sk.NetworkDenoiser(network, chain.process, "v", time="label")
    data = target.sample(arm.points, seed=1_000 + arm.seed) if arm.points else target
    objective: Any = {"loss": DenoisingLoss("likelihood"), "times": "importance"}
    began = time.process_time()
    model = sk.train(model, data, steps=arm.steps, **objective, seed=arm.seed, progress=False).model
    about = {"training seconds": time.process_time() - began}
    model.save(folder / "model.safetensors")
    x = chain.sample(model, (arm.samples, 2), variance="beta", seed=arm.seed).x
    save_tensors(folder / "samples.safetensors", {"x": x[:_KEPT]}, {})
    found = quality(x, arm.target)
    over = {"over floor": found["sliced W2"] / floor(arm.target, arm.samples).mean}
    above, error = excess_loss(model, target.mixture, n=arm.samples)
    return {**found, **over, "excess": above, "about": {**about, "excess se": error}}


# ------------------------------------------------------------------------------------ the pictures


@plotting.styled
def quality_picture(rows: list[dict[str, Any]], config: Config) -> Any:
    """Sliced W2 and the share outside against training length; a curve a network and chain."""
    figure, (left, right) = plotting.figure_of(1, 2, (9.6, 4.4))
    bound = floor(config.target, config.samples)
    left.axhspan(0, bound.quantile95, color="#DDDDDD", label="95 % of exact samples")
    left.axhline(bound.mean, color="#999999", lw=1, label=f"floor, {bound.mean:.3g}")
    left.axhline(1.5 * bound.mean, color="#999999", lw=1, ls=":", label="1.5 floors")
    right.axhline(0.001, color="#999999", lw=1, label="exact")
    curves = dict.fromkeys((row["network"], row["chain"]) for row in rows)
    for k, curve in enumerate(curves):
        own = [row for row in rows if (row["network"], row["chain"]) == curve and row["runs"]]
        style: Any = {"color": plotting.COLOURS[k], "ls": plotting.DASHES[k], "ms": 4.5}
        style |= {"marker": plotting.MARKERS[k], "label": f"{curve[0]}, chain of {curve[1]:,}"}
        for axes, name in ((left, "sliced W2"), (right, "outside")):
            least = 0.2 / config.samples
            axes.loglog([r["steps"] for r in own], [max(r[name], least) for r in own], **style)
    ticks = lengths(config.steps)
    for axes, name in ((left, "sliced W2 from exact samples"), (right, "share outside")):
        axes.set(xlabel="optimiser steps", xticks=ticks, ylabel=name)
        axes.set_xticklabels([f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
    left.set_ylim(bottom=0.6 * bound.mean)
    handles = left.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=5, fontsize=8)
    figure.suptitle(f"{config.target}: {config.samples:,} samples against training length")
    return figure


@plotting.styled
def samples_picture(arms: list[Arm], config: Config, out: Path) -> Any:
    """Samples at several lengths, a row a network and chain, beside data."""
    chosen = lengths(config.steps)[-3:]
    shown = [arm for arm in arms if arm.steps in chosen and arm.seed == 0]
    rows, columns = len(shown) // len(chosen), len(chosen) + 1
    size = (2.5 * columns, 2.5 * rows + 0.5)
    figure, panels = plotting.figure_of(rows, columns, size, sharex=True, sharey=True)
    figure.set_layout_engine("compressed")  # panels of a fixed shape
    data = reference(config.target, config.samples)[0][:_KEPT]
    reach = 1.15 * float(data.abs().max())
    for i, axes in enumerate(panels):
        row, column = divmod(i, columns)
        arm = shown[row * len(chosen) + min(column, len(chosen) - 1)]
        name, colour, x = "data", "#333333", data
        if column < len(chosen):
            name, colour = f"{arm.steps:,} optimiser steps", plotting.COLOURS[0]
            x = load_tensors(out / "runs" / folder_name(arm) / "samples.safetensors")[0]["x"]
        axes.plot(x[:, 0], x[:, 1], ".", ms=1.6, color=colour, alpha=0.6)
        axes.set(aspect="equal", xlim=(-reach, reach), ylim=(-reach, reach))
        if row == 0:
            axes.set_title(name, fontsize=9)
        if row == rows - 1:
            axes.set_xlabel("x[0]")
        if column == 0:
            axes.set_ylabel(f"{arm.network}, chain of {arm.chain:,}\nx[1]")
    figure.suptitle(f"{config.target}: samples by training length, and data")
    return figure


# --------------------------------------------------------------------------------------- the study


def arms_of(config: Config) -> list[Arm]:
    """Every network in every chain at every length with every seed."""
    check_choice("target", config.target, tuple(TARGETS))
    base = Arm(config.target, 0, "", 0, config.points, config.samples)
    networks, seeds = config.networks.split(","), range(config.seeds)
    return grid(base, network=networks, chain=CHAINS, steps=lengths(config.steps), seed=seeds)


def run(config: Config, out: Path) -> dict[str, Any]:
    arms = arms_of(config)
    table = sweep(trained, arms, out / "runs")
    table.to_csv(out / "runs.csv")
    bound = floor(config.target, config.samples)
    print(
        f"\n{config.target}\n{table}\nexact samples: sliced W2 {bound.mean:.4f} ± {bound.stderr:.4f}"
    )
    rows = [
        {"network": config.networks, **row} for row in table.rows
    ]  # no column where there is one
    plotting.save(quality_picture(rows, config), out / "quality.png")
    plotting.save(samples_picture(arms, config, out), out / "samples.png")
    return {"floor": {"mean": bound.mean, "95 %": bound.quantile95}, "table": table.rows}


if __name__ == "__main__":
    study(run, Config, quick={"steps": 1_000, "samples": 500, "networks": "2x64"})
