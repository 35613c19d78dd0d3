"""The swiss roll of Sohl-Dickstein et al. 2015: a chain of 40 steps with a network and a variance for each.

    python experiments/swiss_roll_2015.py [--quick] [--out runs/swiss_roll_2015] [--steps N] ...

The data is their curve without noise, s (cos s, sin s) / 10 for s uniform in [3/2 pi, 9/2 pi] (scikit-learn's
`make_swiss_roll` seen from its end, a tenth of its size); betas are sigmoid(l) from 1e-5 to 0.3 with l from
-18 to 10; the network has a trunk 2-64-64 and a head 64-64-4 for each step; the loss is the divergence of
each step, so that mean and variance are learned at once.

The curve is known, and so is the least divergence that any such chain can have at each step: the figures are
what training leaves above it, how far samples are from the curve, and what fixed variances would do.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness.study import option, study
from torch import Tensor

import sdekit as sk
from sdekit import plotting
from sdekit.data.toys import SwissRoll
from sdekit.ddpm import DDPM, sigmoid_betas
from sdekit.metrics import Floor, sliced_wasserstein
from sdekit.networks import PerStepMLP
from sdekit.training import PerStepKL, kl_minima, train

CHAIN = DDPM(sigmoid_betas(40, 1e-5, 0.3, -18.0, 10.0))
SAMPLERS = {
    "learned": sk.samplers.LearnedAncestral(),
    "beta": sk.samplers.Ancestral("beta"),
    "beta-tilde": sk.samplers.Ancestral(),
}


@dataclass(frozen=True)
class Config:
    """What may be told on the command line."""

    steps: int = option(8_000, "Optimiser steps.")
    batch: int = option(2_048, "Points a step.")
    lr: float = option(1e-2, "Peak learning rate.")
    samples: int = option(10_000, "Samples to judge.")
    draws: int = option(10_000, "Points a step of the chain at which the divergence is measured.")
    floor_draws: int = option(1_000, "Points a step at which the least divergence is measured.")
    repeats: int = option(8, "Pairs of exact sets for the floor of the distance between sets.")
    seed: int = option(0, "Of everything random.")


QUICK = {"steps": 150, "batch": 256, "samples": 1_000, "draws": 500, "floor_draws": 50}


class Roll:
    """Points of the curve."""

    def sample(
        self, n: int, *, generator: torch.Generator | None = None, seed: int | None = None
    ) -> Tensor:
        """`n` points, (n, 2) float32."""
        return SwissRoll(0.0, standardise=False).sample(n, generator=generator, seed=seed) / 10


def curve(points: int) -> Tensor:
    """Points along the curve at equal spaces of s, in the middle of their cells: (points, 2) float64."""
    s = math.pi * (1.5 + 3 * (torch.arange(points, dtype=torch.float64) + 0.5) / points)
    return s[:, None] * torch.stack([s.cos(), s.sin()], 1) / 10


def run(config: Config, out: Path) -> dict[str, Any]:
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        network = PerStepMLP(2, steps=len(CHAIN))
    model = sk.LearnedVariance(network, CHAIN.process, time="label")
    began = time.process_time()
    done = train(
        model,
        Roll(),
        loss=PerStepKL(),
        steps=config.steps,
        batch=config.batch,
        lr=config.lr,
        optimizer=partial(torch.optim.AdamW, betas=(0.9, 0.99)),
        seed=config.seed,
    )
    seconds = time.process_time() - began
    reached = divergences(done.model, config)
    # Atoms half of the noise of step 2 apart at most: at that spacing they are the curve.
    atoms = sk.GaussianMixture(None, curve(6_000), 0.0)
    least = kl_minima(atoms, CHAIN.process, len(CHAIN), n=config.floor_draws, seed=config.seed)[1:]
    draw_divergences(reached, least, out / "divergence.png")
    figures: dict[str, Any] = {
        "cpu_seconds_of_training": seconds,
        "mean_kl": reached.mean().item(),
        "least_mean_kl": least.mean().item(),
        "kl_by_step": reached.tolist(),
        "least_kl_by_step": least.tolist(),
    }
    print(f"mean divergence {reached.mean():.4f}, least {least.mean():.4f}")
    return figures | judged(done.model, config, out)


def divergences(model: sk.LearnedVariance, config: Config) -> Tensor:
    """Mean divergence of steps 2 to N on fresh points, in nats per dimension: float64 (N - 1,)."""
    x0 = Roll().sample(config.draws, seed=config.seed + 1)
    generator, found = torch.Generator().manual_seed(config.seed + 2), []
    for i in range(2, len(CHAIN) + 1):
        t = torch.full((len(x0),), i / len(CHAIN), dtype=torch.float64)
        noise = torch.randn(x0.shape, generator=generator)
        with torch.no_grad():
            found.append(PerStepKL()(model, x0, t, noise).double().mean())
    return torch.stack(found)


def judged(model: sk.LearnedVariance, config: Config, out: Path) -> dict[str, Any]:
    """Samples with the learned and with fixed variances: distances to the curve and to exact points."""
    exact = [Roll().sample(config.samples, seed=10 + k) for k in range(2 * config.repeats)]
    pairs = zip(exact[::2], exact[1::2], strict=True)
    floor = Floor.of([sliced_wasserstein(a, b) for a, b in pairs])
    found: dict[str, Any] = {"sliced_w2_floor": floor.mean, "sliced_w2_floor95": floor.quantile95}
    for name, sampler in SAMPLERS.items():
        shape = (config.samples, 2)
        runs = partial(sk.sample, model, shape, grid=CHAIN.times(), seed=config.seed)
        drawn = runs(sampler=sampler, trajectory=name == "learned")
        away = to_curve(drawn.x)
        found[name] = {
            "median_distance": away.median().item(),
            "distance95": away.quantile(0.95).item(),
            "sliced_w2": sliced_wasserstein(drawn.x, exact[0]),
        }
        print(f"{name}: {found[name]}")
        if drawn.trajectory is not None:
            draw_chain(drawn.trajectory, out / "chain.png")
    return found


def to_curve(x: Tensor) -> Tensor:
    """Distance of each point to the curve, (n,) float64."""
    points = curve(10_000)
    return torch.cat([torch.cdist(part, points).amin(1) for part in x.double().split(1_000)])


def styled_figure(draw: Callable[..., Any]) -> Callable[..., None]:
    """A drawing in the house style, saved to the path that comes last."""

    def saved(*arguments: Any) -> None:
        plotting.save(plotting.styled(draw)(*arguments[:-1]), arguments[-1])

    return saved


@styled_figure
def draw_chain(trajectory: Tensor) -> Any:
    """The data forward, and the samples backward; columns are times."""
    figure, panels = plotting.figure_of(2, 3, (8.4, 5.8), sharex=True, sharey=True)
    n, half = min(5_000, trajectory.shape[1]), len(CHAIN) // 2
    x0, noise = (
        Roll().sample(n, seed=5),
        torch.randn(n, 2, generator=torch.Generator().manual_seed(6)),
    )
    forward = [CHAIN.process.perturb(x0, t, noise) for t in (0.0, 0.5, 1.0)]
    backward = [trajectory[k] for k in (0, half, -1)]
    steps = (0, half, len(CHAIN))
    titles = [f"data at step {k}" for k in steps] + [f"samples at step {k}" for k in steps[::-1]]
    for axes, points, title in zip(panels, forward + backward, titles, strict=True):
        axes.plot(*points[:n].T, ".", ms=1.2, color=plotting.COLOURS[0], alpha=0.5)
        axes.set(xlim=(-2, 2), ylim=(-2, 2), title=title, aspect="equal")
    return figure


@styled_figure
def draw_divergences(reached: Tensor, least: Tensor) -> Any:
    """Divergence by step over the least there is."""
    figure, (axes,) = plotting.figure_of(1, 1, (6.4, 3.8))
    steps = range(2, len(CHAIN) + 1)
    axes.plot(steps, reached, "o-", ms=3, color=plotting.COLOURS[0], label="the network")
    axes.plot(steps, least, "--", color=plotting.COLOURS[1], label="least attainable")
    axes.set(xlabel="step", ylabel="divergence (nats per dimension)", yscale="log")
    axes.legend()
    return figure


if __name__ == "__main__":
    study(run, Config, QUICK)
