"""A DDPM of 3,000 images, 32 x 32: the distance of its samples from data by number of network calls.

    python experiments/image_ddpm_lab.py [--quick] [--sampler uni-pc] [--out runs/image_ddpm_lab]

The published lab of this protocol (3,000 images of MNIST, T = 1,000, 100 epochs) drew 1,000 images by 999
steps in 27 minutes on a GPU. Here the 1,000 steps are one row of a table, beside samplers of 10, 20 and 50
network calls of the same model.

What to see: calls.png, FD-LeNet with its standard error against network calls: solvers of second order reach
the quality of the 1,000 steps with 20 calls; the band is what real images score. samples.png, 64 images each.
copies.md, precision, recall, and whether the 3,000 training images are copied.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness.images import SYMMETRIC, Judge, Pictures, load, sampler_named, steps_of
from harness.study import option, study
from torch import Tensor

import sdekit as sk
from sdekit import plotting
from sdekit.comparison.tables import short_names
from sdekit.data.images import balanced_subset
from sdekit.ddpm import linear_betas
from sdekit.metrics import Floor
from sdekit.records import Records
from sdekit.training import DenoisingLoss, LogNormalTimes

#: What the table holds, each at these network calls.
SAMPLERS = (
    sk.samplers.Ancestral(),
    sk.samplers.DDIM(),
    sk.samplers.DPMSolverPP(),
    sk.samplers.UniPC(),
    sk.samplers.ERSDE(),
)
CALLS = (10, 20, 50)


@dataclass(frozen=True)
class Config:
    """What is trained and compared."""

    data: str = option("fashion", "fashion, mnist or digits (those of scikit-learn, enlarged).")
    per_class: int = option(300, "Training images of each class, or as many as there are.")
    epochs: float = option(100.0, "Passes over them.")
    steps: int = option(0, "Optimiser steps instead of epochs, if not 0.")
    batch: int = option(32, "Images a step.")
    lr: float = option(2e-3, "Peak learning rate; it falls to 0 along a cosine.")
    dropout: float = option(0.1, "In the residual blocks.")
    half_life: float = option(400.0, "Of the averaged weights, in steps.")
    precision: str = option("bf16", "Of the network in training, bf16 or float32.")
    sampler: str = option("dpm-solver-pp", "A name of `sdekit samplers`.")
    calls: int = option(20, "Its network calls.")
    ancestral: int = option(1_000, "Steps of the ancestral sampling it is held against.")
    table: bool = option(True, "Compare five samplers at 10, 20 and 50 network calls as well.")
    images: int = option(1_000, "How many each of them generates.")
    judge: int = option(
        20_000, "Images the judging classifier is trained on, at most half of them."
    )
    seed: int = option(0, "Of everything.")
    resume: bool = option(False, "Go on with the training run in --out.")


QUICK = {
    "steps": 12, "calls": 8, "ancestral": 16, "table": False, "images": 100, "judge": 1_000,
}  # fmt: skip


class Table(Records):
    """Samplers with what they cost, distances of their images from data, and what a classifier sees."""

    def _cells(self) -> list[list[str]]:
        """Head and rows."""
        head = [
            "model",
            "sampler",
            "calls",
            "CPU s / 1,000",
            "FD-LeNet",
            "KID",
            "sure",
            "off balance",
        ]
        names = short_names(dict.fromkeys(row["sampler"] for row in self.rows))
        body = [
            [
                row["model"],
                names[row["sampler"]],
                f"{row['calls']:,}",
                f"{row['CPU s / 1,000']:.0f}",
                f"{row['FD']:.3f} +- {row['FD se']:.3f}",
                f"{row['KID']:.4f} +- {row['KID se']:.4f}",
                f"{row['sure']:.0%}",
                f"{row['off balance']:.0%}",
            ]
            for row in self.rows
        ]
        return [head, *body]


def run(config: Config, out: Path) -> dict[str, Any]:
    sampler, data = sampler_named(config.sampler), load(config.data, 32)
    few = subset(data, config)
    print(f"{len(few):,} images of {data.name} to train on")
    judge = Judge.of(data, config.judge, seed=config.seed)
    draw = Draw(config, judge)
    draw("untrained", network(config).eval(), sampler, config.calls)
    model = trained(config, few, out)
    draw("trained", model, sk.samplers.Ancestral(), config.ancestral, grid="uniform", t_end=0.0)
    draw("trained", model, sampler, config.calls)
    if config.table:
        others = [(other, calls) for other in SAMPLERS for calls in CALLS]
        for other, calls in others:
            if (other, calls) != (sampler, config.calls):
                draw("trained", model, other, calls)
    return reported(config, draw, data, few, out)


class Draw:
    """Draws images, measures them, and keeps both."""

    def __init__(self, config: Config, judge: Judge) -> None:
        self.config, self.judge = config, judge
        self.rows: list[dict[str, Any]] = []
        self.levels: list[Tensor] = []

    def __call__(
        self, name: str, model: sk.Denoiser, sampler: sk.samplers.Sampler, calls: int, **where: Any
    ) -> None:
        """Images of a sampler that may call the network so often."""
        steps = steps_of(sampler, calls)
        shape, began = (self.config.images, 1, 32, 32), time.process_time()
        out = sk.sample(
            model,
            shape,
            sampler=sampler,
            steps=steps,
            seed=self.config.seed,
            chunk=100,
            progress=True,
            **where,
        )
        cost = 1_000 * (time.process_time() - began) / self.config.images
        levels = SYMMETRIC.to_levels(out.x)
        row = {"model": name, "sampler": repr(sampler), "calls": out.nfe, "CPU s / 1,000": cost}
        self.rows.append({**row, **self.judge.scores(levels)})
        self.levels.append(levels)


def subset(data: Pictures, config: Config) -> Tensor:
    """As many training images of every class, levels."""
    images, labels = data.train.images, data.train.labels
    assert labels is not None
    fewest = int(torch.bincount(labels).min())
    return balanced_subset(images, labels, min(config.per_class, fewest), seed=config.seed)[0]


def network(config: Config) -> sk.NetworkDenoiser:
    """An untrained model on the chain; told the log-SNR, it knows the times between the steps as well."""
    torch.manual_seed(config.seed)
    unet = sk.networks.UNet(widths=(32, 64, 128), patch=2, time_scale=0.05, dropout=config.dropout)
    process = sk.VP.from_betas(linear_betas(1_000))
    return sk.NetworkDenoiser(unet, process, "v", time="log_snr")


def trained(config: Config, images: Tensor, out: Path) -> sk.NetworkDenoiser:
    """The averaged model of the run in `out`, new or resumed."""
    result = sk.train(
        network(config),
        images,
        scaling=SYMMETRIC,
        steps=config.steps or math.ceil(config.epochs * len(images) / config.batch),
        out=out,
        # About the law of Karras et al. (2022), moved from data of spread 0.5 to these, of spread 0.7.
        loss=DenoisingLoss("target"),
        times=LogNormalTimes(mean=-0.9, std=1.3),
        seed=config.seed,
        batch=config.batch,
        lr=config.lr,
        half_life=config.half_life,
        precision=config.precision,
        checkpoint_every=500,
        resume=config.resume,
    )
    print(f"trained in {result.seconds:.0f} s")
    return result.model


def reported(config: Config, draw: Draw, data: Pictures, few: Tensor, out: Path) -> dict[str, Any]:
    """Tables and pictures; the figures."""
    table, floor = Table(draw.rows), draw.judge.floor(config.images)
    print(table)
    table.to_csv(out / "calls.csv")
    (out / "calls.md").write_text(table.markdown() + "\n")
    _, chain, short = draw.rows[:3]
    gap = short["FD"] - chain["FD"]
    error = math.hypot(short["FD se"], chain["FD se"])
    print(f"real images score {floor.mean:.3f}, 95 % below {floor.quantile95:.3f}")
    print(f"{short['calls']} calls against {chain['calls']:,}: {gap:+.3f} +- {error:.3f}")
    names = (f"ancestral, {chain['calls']:,} calls", f"{config.sampler}, {short['calls']} calls")
    sets = {name: SYMMETRIC.forward(draw.levels[k]) for k, name in enumerate(names, 1)}
    real = SYMMETRIC.forward(data.test.images)
    grids = {
        name: images[:64] for name, images in {**sets, f"{data.name}, test part": real}.items()
    }
    plotting.save(plotting.image_grids(grids), out / "samples.png")
    plotting.save(calls_curve(draw.rows[1:], floor, data.name), out / "calls.png")
    judge = draw.judge.classifier
    copies = sk.compare_sets(sets, SYMMETRIC.forward(few), real[: len(few)], judge.network)
    (out / "copies.md").write_text(copies.markdown() + "\n")
    return {
        "data": data.name,
        "rows": draw.rows,
        "FD floor": floor.mean,
        "FD floor 95 %": floor.quantile95,
        "gap": gap,
        "gap se": error,
        "copies": copies.rows,
        "LeNet accuracy": judge.accuracy,
    }


@plotting.styled
def calls_curve(rows: list[dict[str, Any]], floor: Floor, title: str) -> Any:
    """FD with its standard error against network calls, a line a sampler."""
    figure, (axes,) = plotting.figure_of(1, 1, (6.8, 4.2))
    axes.axhspan(0, floor.quantile95, color="#DDDDDD", zorder=0, label="real images")
    names = short_names(dict.fromkeys(row["sampler"] for row in rows))
    for k, (sampler, name) in enumerate(names.items()):
        own = sorted((r["calls"], r["FD"], r["FD se"]) for r in rows if r["sampler"] == sampler)
        calls, values, errors = zip(*own, strict=True)
        style: Any = {"color": plotting.COLOURS[k], "marker": plotting.MARKERS[k], "capsize": 2}
        axes.errorbar(calls, values, errors, ls=plotting.DASHES[k], label=name, **style)
    axes.set(xscale="log", xlabel="network calls", ylabel="FD-LeNet", title=title, ylim=(0, None))
    ticks = sorted({row["calls"] for row in rows})
    axes.set_xticks(ticks, [f"{calls:,}" for calls in ticks])
    axes.minorticks_off()
    axes.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    study(run, Config, QUICK)
