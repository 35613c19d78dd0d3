"""The demonstration: three problems from data to pictures, with the truth beside every number.

Each problem trains a network by denoising score matching (noise prediction, VP with linear beta), samples
with five samplers, and writes its pictures and tables; `index.md` shows them all, `summary.json` has the
numbers.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdekit import plotting, samplers
from sdekit.checks import fokker_planck_check, fokker_planck_film
from sdekit.comparison import Table, compare
from sdekit.data import GaussianMixture, images, spiral, two_mode
from sdekit.denoisers import Denoiser, NetworkDenoiser
from sdekit.density_pictures import density_picture
from sdekit.networks import MLP, UNet
from sdekit.processes import VP
from sdekit.sampling import PredictorCorrector, Sampler, sample
from sdekit.training import TrainResult, excess_loss, minimum_loss, train


@dataclass(frozen=True)
class Budget:
    """How much work the demo does.

    Attributes:
        steps_1d, steps_2d, steps_images: optimiser steps.
        counts: step counts of the tables.
        n: samples a row of the tables.
        seeds: runs behind the headline W1.
    """

    steps_1d: int = 5_000
    steps_2d: int = 5_000
    steps_images: int = 1_600
    counts: tuple[int, ...] = (5, 10, 20, 50, 100)
    n: int = 10_000
    seeds: int = 5


QUICK = Budget(120, 120, 30, (5, 10), 1_000, 2)


@dataclass
class Report:
    """What has been written so far: sections of index.md and numbers of summary.json."""

    out: Path
    summary: dict[str, Any] = field(default_factory=dict)
    sections: list[str] = field(default_factory=list)

    def picture(self, name: str, figure: Any, caption: str) -> None:
        """Save a figure and show it in the page."""
        plotting.save(figure, self.out / name)
        self.sections.append(f"![{caption}]({name})\n\n*{caption}*")

    def text(self, markdown: str) -> None:
        """A paragraph, heading or table."""
        self.sections.append(markdown)

    def write(self) -> None:
        """index.md and summary.json, as they stand."""
        (self.out / "index.md").write_text("\n\n".join(self.sections) + "\n")
        text = json.dumps(_plain(self.summary), indent=2, allow_nan=False)
        (self.out / "summary.json").write_text(text + "\n")


def _plain(value: Any) -> Any:
    """The same with None for numbers that JSON has not."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def run_demo(
    out: str | Path,
    *,
    seed: int = 0,
    device: str = "cpu",
    budget: Budget | None = None,
    say: Callable[[str], None] = print,
) -> Report:
    """Run all three problems and the PDE check; pictures, tables, index.md and summary.json go to `out`.

    A second run in the same folder goes on from its checkpoints.
    """
    budget, began = budget or Budget(), time.perf_counter()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    report = Report(out)
    report.text("# sdekit: from data to exact errors")
    for title, problem in (
        ("Fokker-Planck and heat equation", _densities),
        ("One dimension: a mixture of two modes", _two_mode),
        ("Two dimensions: a spiral", _spiral),
        ("Images: handwritten digits, 8 x 8", _digits),
    ):
        say(f"== {title}")
        report.text(f"## {title}")
        problem(report, seed, device, budget, say)
        report.write()
    report.summary["seconds"] = round(time.perf_counter() - began, 1)
    report.write()
    say(f"wrote {out / 'index.md'} in {report.summary['seconds']:.0f} s")
    return report


def demo_samplers(finest: float) -> tuple[Sampler, ...]:
    """The five samplers of the demo; `finest` is the scale of the data's finest structure."""
    return (
        samplers.EulerMaruyama(),
        PredictorCorrector(data_std=finest),
        samplers.Ancestral(),
        samplers.DDIM(),
        samplers.FlowODE(),
    )


def _two_mode(
    report: Report, seed: int, device: str, budget: Budget, say: Callable[[str], None]
) -> None:
    target = two_mode()
    model, facts = _trained(report, target, "two-mode", budget.steps_1d, seed, device)
    used = demo_samplers(target.narrowest)
    _tables(report, target, model, "two-mode", "W1", used, budget, seed)
    law, name = target.at(model.process, 1e-3), "two-mode-samples.png"
    drawn = _drawn(model, used, budget, seed, (1,))
    figure = plotting.histograms(drawn, law, title=f"{budget.n:,} samples of the trained network")
    report.picture(name, figure, "Samples of the trained network over the exact density.")
    headline = compare(
        model,
        [samplers.EulerMaruyama()],
        [budget.counts[-1]],
        target,
        n=budget.n,
        seeds=range(seed, seed + budget.seeds),
    )
    floor, row = headline.floors["W1"][0], headline.rows[0]
    facts["W1 above floor"] = row["W1"] - floor
    report.text(
        f"Euler-Maruyama, {budget.counts[-1]} steps, mean of {budget.seeds} seeds: W1 = {row['W1']:.4f} "
        f"± {row['W1 se']:.4f}; {budget.n:,} exact samples score {floor:.4f} on average, so the network and "
        f"the sampler cost {row['W1'] - floor:.4f}."
    )
    say(f"   W1 above the floor of exact samples: {row['W1'] - floor:.4f}")


def _spiral(
    report: Report, seed: int, device: str, budget: Budget, say: Callable[[str], None]
) -> None:
    target = spiral()
    model, _ = _trained(report, target, "spiral", budget.steps_2d, seed, device)
    used = demo_samplers(target.narrowest)
    _tables(report, target, model, "spiral", "sliced W2", used, budget, seed)
    drawn = _drawn(model, used, budget, seed, (2,))
    cells = min(90, math.isqrt(budget.n))
    figure = plotting.densities_2d(
        drawn, target.at(model.process, 1e-3), title="Spiral", cells=cells
    )
    report.picture("spiral-samples.png", figure, "Samples of the trained network as densities.")
    say("   pictures written")


def _digits(
    report: Report, seed: int, device: str, budget: Budget, say: Callable[[str], None]
) -> None:
    real, labels = images.digits(), images.digit_labels()
    torch.manual_seed(seed)
    network = UNet(channels=1, num_classes=10).to(device)
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    result = train(
        NetworkDenoiser(network, VP()),
        real,
        cond=labels,
        steps=budget.steps_images,
        out=report.out / "digits",
        batch=64,
        lr=2e-3,
        warmup=50,
        half_life=140,
        seed=seed,
        resume=True,
    )
    classes = torch.arange(40) % 10
    generated = {}
    for sampler in demo_samplers(finest=0.1):
        out = sample(
            result.model,
            (40, *real.shape[1:]),
            sampler=sampler,
            steps=budget.counts[-1],
            final="data",
            cond=classes,
            seed=seed,
            progress=True,
        )
        generated[f"{type(sampler).__name__}, {out.nfe} calls"] = out.x.cpu().clamp(-1, 1)
    parameters = sum(p.numel() for p in network.parameters())
    report.summary["digits"] = {
        "parameters": parameters,
        "training_seconds": round(result.seconds, 1),
        "final_loss": result.losses[-200:].mean().item(),
    }
    report.text(f"A U-Net of {parameters:,} parameters, {result.seconds:.0f} s of training.")
    figure = plotting.loss_curve(result.losses, title="Digits")
    report.picture("digits-loss.png", figure, "Loss of the digits.")
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))
    rows = [order[labels[order] == c][:4] for c in range(10)]
    groups = {"real": real[torch.stack(rows, 1).flatten()], **generated}
    figure = plotting.image_grids(groups, columns=10, title="Handwritten digits, 8 x 8, by class")
    report.picture("digits-samples.png", figure, "Real digits beside generated ones.")
    say(f"   {parameters:,} parameters, {result.seconds:.0f} s of training")


def _densities(
    report: Report, seed: int, device: str, budget: Budget, say: Callable[[str], None]
) -> None:
    check = fokker_planck_check(cells=800 if budget.n >= 10_000 else 200)
    report.summary["fokker_planck"] = check.rows
    report.text(check.markdown())
    figure = density_picture(
        {run.name: (run.solution, run.laws) for run in fokker_planck_film()},
        title="Forward density: PDE and exact mixture",
    )
    report.picture(
        "fokker-planck.png",
        figure,
        "The density from the PDE, with contours and slices of the exact mixture.",
    )
    say(str(check))


def _trained(
    report: Report, target: GaussianMixture, name: str, steps: int, seed: int, device: str
) -> tuple[Denoiser, dict[str, Any]]:
    """A trained network, its loss curve against the least loss, and its excess."""
    torch.manual_seed(seed)
    model = NetworkDenoiser(MLP(target.dim).to(device), VP())
    result: TrainResult = train(
        model, target, steps=steps, out=report.out / name, seed=seed, resume=True
    )
    least = minimum_loss(target, model.process)
    excess, error = excess_loss(result.model, target)
    facts = {
        "training_seconds": round(result.seconds, 1),
        "least_loss": least,
        "excess_loss": excess,
        "excess_loss_se": error,
    }
    report.summary[name] = facts
    report.text(
        f"The least attainable loss is {least:.5f}; after {result.seconds:.0f} s of training the network's "
        f"excess over it, the mean of |network - exact noise|², is {excess:.2e} ± {error:.0e}."
    )
    figure = plotting.loss_curve(result.losses, least, title=f"Training: {name}")
    report.picture(f"{name}-loss.png", figure, "Batch loss against the exact attainable minimum.")
    return result.model, facts


def _tables(
    report: Report,
    target: GaussianMixture,
    model: Denoiser,
    name: str,
    metric: str,
    used: tuple[Sampler, ...],
    budget: Budget,
    seed: int,
) -> None:
    """Error against NFE for the exact score and for the network: CSV, tables, picture."""
    tables: dict[str, Table] = {}
    for label, denoiser in (
        ("exact score", target.denoiser(model.process)),
        ("trained network", model),
    ):
        tables[label] = compare(
            denoiser,
            used,
            budget.counts,
            target,
            n=budget.n,
            seeds=(seed,),
            floor_repeats=10,
            progress=True,
        )
        tables[label].to_csv(report.out / f"{name}-{label.replace(' ', '-')}.csv")
    figure = plotting.error_against_nfe(tables, metric, title=f"Error against model calls: {name}")
    report.picture(f"{name}-error.png", figure, f"{metric} to the exact law against model calls.")
    for label, table in tables.items():
        report.text(
            f"<details><summary>Table: {label}</summary>\n\n{table.markdown()}\n\n</details>"
        )
        report.summary[name][label] = table.rows


def _drawn(
    model: Denoiser,
    used: tuple[Sampler, ...],
    budget: Budget,
    seed: int,
    event: tuple[int, ...],
) -> dict[str, Tensor]:
    """Samples of the network by name of the sampler and cost."""
    drawn = {}
    steps = budget.counts[-2]
    for sampler in used:
        out = sample(model, (budget.n, *event), sampler=sampler, steps=steps, seed=seed)
        drawn[f"{type(sampler).__name__}, {out.nfe} calls"] = out.x.cpu()
    return drawn
