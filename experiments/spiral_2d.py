"""A spiral in the plane, learned by small networks: quality against training length, in two chains.

One run a network and chain; its average is sampled as training goes on. Samples are held against as many
exact ones by sliced W2, beside the floor, what exact samples score; and by the share that lies outside the
region that holds 99.9 % of the truth. The exact density also gives the excess loss.

    python experiments/spiral_2d.py [--quick] [--target swiss-roll] [--out runs/spiral_2d]

Writes runs.csv, lengths.csv, samples.png and quality.png; runs that are done are kept in runs/.
"""

import csv
import functools
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness.study import option, study
from harness.sweep import folder_name, grid, sweep
from torch import Tensor, nn

import sdekit as sk
from sdekit import plotting
from sdekit.data.toys import Curve, Spiral, SwissRoll
from sdekit.ddpm import linear_betas
from sdekit.errors import check_choice
from sdekit.storage import load_tensors, save_tensors
from sdekit.training import excess_loss

TARGETS: dict[str, Curve] = {"spiral": Spiral(), "swiss-roll": SwissRoll()}
#: Steps of a chain, and its last beta: each ends in noise.
CHAINS = {200: 0.2, 1000: 0.02}
#: Samples that are kept for the picture, of every length.
_KEPT = 2_000


@dataclass(frozen=True)
class Config:
    """What can be chosen."""

    target: str = option("spiral", "spiral or swiss-roll")
    steps: int = option(16_000, "optimiser steps; lengths halve from here down to 500")
    networks: str = option("2x128", "layers x width, such as 2x128,3x256")
    points: int = option(0, "training points; 0 for endless fresh ones")
    samples: int = option(10_000, "samples that quality is measured on")
    seeds: int = option(1, "runs of each network and chain")


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
    """Train, looking at the averaged model at every length."""
    target, chain = TARGETS[arm.target], chain_of(arm.chain)
    depth, width = (int(part) for part in arm.network.split("x"))
    torch.manual_seed(arm.seed)
    network = sk.networks.MLP(2, hidden=width, depth=depth, time_scale=1 / len(chain))
    model = sk.NetworkDenoiser(network, chain.process, "v", time="label")
    looks, samples, spent = [], {}, [0.0]

    def look(step: Any, average: nn.Module) -> None:
        length = step.index + 1
        if length not in lengths(arm.steps):
            return
        began = time.process_time()
        assert isinstance(average, sk.NetworkDenoiser)
        x = chain.sample(average, (arm.samples, 2), variance="beta", seed=arm.seed).x
        above, error = excess_loss(average, target.mixture, n=arm.samples)
        looks.append(
            {"length": length, **quality(x, arm.target), "excess": above, "± excess": error}
        )
        samples[f"{length}"] = x[:_KEPT]
        spent[0] += time.process_time() - began

    data = target.sample(arm.points, seed=1_000 + arm.seed) if arm.points else target
    began = time.process_time()
    keywords: Any = {"schedule": "constant", "lr": 2e-3, "seed": arm.seed, "progress": False}
    result = sk.train(model, data, steps=arm.steps, callback=look, **keywords)
    cost = time.process_time() - began - spent[0]
    result.model.save(folder / "model.safetensors")
    save_tensors(folder / "samples.safetensors", samples, {})
    last = {k: v for k, v in looks[-1].items() if not k.startswith(("length", "±"))}
    over = {"over floor": last["sliced W2"] / floor(arm.target, arm.samples).mean}
    return {**last, **over, "about": {"training seconds": cost}, "looks": looks}


# ------------------------------------------------------------------------------------ the pictures


@plotting.styled
def quality_picture(arms: list[Arm], summaries: list[dict[str, Any]]) -> Any:
    """Sliced W2 and the share outside against training length."""
    figure, (left, right) = plotting.figure_of(1, 2, (9.6, 4.4))
    bound = floor(arms[0].target, arms[0].samples)
    left.axhspan(0, bound.quantile95, color="#DDDDDD", label="95 % of exact samples")
    left.axhline(bound.mean, color="#999999", lw=1, label=f"floor, {bound.mean:.3g}")
    left.axhline(1.5 * bound.mean, color="#999999", lw=1, ls=":", label="1.5 floors")
    right.axhline(0.001, color="#999999", lw=1, label="exact")
    for k, (arm, summary) in enumerate(zip(arms, summaries, strict=True)):
        style: Any = {"color": plotting.COLOURS[k], "ls": plotting.DASHES[k], "ms": 4.5}
        style |= {"marker": plotting.MARKERS[k], "label": f"{arm.network}, chain of {arm.chain:,}"}
        x = [look["length"] for look in summary["looks"]]
        for axes, name in ((left, "sliced W2"), (right, "outside")):
            y = [max(look[name], 0.2 / arm.samples) for look in summary["looks"]]
            axes.loglog(x, y, **style)
    ticks = lengths(arms[0].steps)
    for axes in (left, right):
        axes.set(xlabel="optimiser steps", xticks=ticks)
        axes.set_xticklabels([f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
    left.set_ylabel("sliced W2 from exact samples")
    right.set_ylabel("share outside (exact: 0.001)")
    left.set_ylim(bottom=0.6 * bound.mean)
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8
    )
    figure.suptitle(f"{arms[0].target}: {arms[0].samples:,} samples against training length")
    return figure


@plotting.styled
def samples_picture(arms: list[Arm], out: Path) -> Any:
    """Samples at several lengths, a row a chain, beside data."""
    chosen = lengths(arms[0].steps)[::-2][:3][::-1]
    columns = len(chosen) + 1
    size = (2.5 * columns, 2.5 * len(arms) + 0.5)
    figure, panels = plotting.figure_of(len(arms), columns, size, sharex=True, sharey=True)
    figure.set_layout_engine("compressed")  # panels of a fixed shape
    data = reference(arms[0].target, arms[0].samples)[0][:_KEPT]
    reach = 1.15 * float(data.abs().max())
    for row, arm in enumerate(arms):
        kept, _ = load_tensors(out / "runs" / folder_name(arm) / "samples.safetensors")
        shown = {f"{n:,} optimiser steps": kept[f"{n}"] for n in chosen} | {"data": data}
        for column, (name, x) in enumerate(shown.items()):
            axes = panels[row * columns + column]
            colour = "#333333" if name == "data" else plotting.COLOURS[0]
            axes.plot(x[:, 0], x[:, 1], ".", ms=1.6, color=colour, alpha=0.6)
            axes.set(aspect="equal", xlim=(-reach, reach), ylim=(-reach, reach))
            if row == 0:
                axes.set_title(name, fontsize=9)
        panels[row * columns].set_ylabel(f"{arm.network}, chain of {arm.chain:,}\nx[1]")
    for axes in panels[-columns:]:
        axes.set_xlabel("x[0]")
    figure.suptitle(f"{arms[0].target}: samples by training length, and data")
    return figure


# --------------------------------------------------------------------------------------- the study


def arms_of(config: Config) -> list[Arm]:
    """Every network in every chain with every seed."""
    check_choice("target", config.target, tuple(TARGETS))
    networks = config.networks.split(",")
    rest = {"steps": config.steps, "points": config.points, "samples": config.samples}
    base = Arm(config.target, 0, "", **rest)
    return grid(base, network=networks, chain=list(CHAINS), seed=range(config.seeds))


def run(config: Config, out: Path) -> dict[str, Any]:
    arms = arms_of(config)
    table = sweep(trained, arms, out / "runs")
    table.to_csv(out / "runs.csv")
    bound = floor(config.target, config.samples)
    print(
        f"\n{config.target}\n{table}\nexact samples: sliced W2 {bound.mean:.4f} ± {bound.stderr:.4f}"
    )
    first = [arm for arm in arms if arm.seed == 0]
    texts = [(out / "runs" / folder_name(arm) / "summary.json").read_text() for arm in first]
    summaries = [json.loads(text) for text in texts]
    with (out / "lengths.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["network", "chain", *summaries[0]["looks"][0]])
        writer.writeheader()
        for arm, summary in zip(first, summaries, strict=True):
            named = {"network": arm.network, "chain": arm.chain}
            writer.writerows({**named, **look} for look in summary["looks"])
    plotting.save(quality_picture(first, summaries), out / "quality.png")
    plotting.save(samples_picture(first, out), out / "samples.png")
    return {"floor": {"mean": bound.mean, "95 %": bound.quantile95}, "table": table.rows}


if __name__ == "__main__":
    study(run, Config, quick={"steps": 1_000, "samples": 500})
