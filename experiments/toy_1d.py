"""Two laws on the line, learned by a small network and sampled by a chain of 200 steps: how wrong is it?

The two-mode mixture and the ramp (the smaller of two uniforms) are learned from endless fresh samples, and
from 10,000 points that are all there is. The law of the ancestral sampler is computed, not drawn, so its W1
and KL(truth || law), in nats, have no Monte Carlo noise; neither has the excess loss. Kernel density
estimates of the same 10,000 points are the rivals, each with its rule for the bandwidth.

    python experiments/toy_1d.py [--quick] [--out runs/toy_1d]

Writes tables, densities.png, excess.png and pictures of the losses; runs that are done are kept in runs/.
"""

import functools
import json
import math
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness.study import option, study
from harness.sweep import SweepTable, folder_name, grid, sweep
from torch import Tensor

import sdekit as sk
from sdekit import plotting, samplers
from sdekit.comparison.tables import mean_and_error
from sdekit.data.toys import Line, Ramp, TwoMode
from sdekit.ddpm import linear_betas
from sdekit.errors import check_choice
from sdekit.pde import Density1D, sampler_density
from sdekit.quadrature import even_panels
from sdekit.training import DenoisingLoss

CHAIN = sk.DDPM(linear_betas(200, 1e-4, 0.2))
TARGETS: dict[str, Line] = {"two-mode": TwoMode(), "ramp": Ramp()}
ENDLESS, FEW = "network, endless data", "network, same points"
#: Errors count as in the bound on KL, which is made at low noise, and times are drawn accordingly.
LIKELIHOOD = "network, same points, likelihood"
RULES = {f"kernels, {rule}": rule for rule in ("Scott", "Silverman", "leave-one-out")}
#: Where densities are written down for the pictures.
SHOWN = torch.linspace(-3.5, 3.5, 701, dtype=torch.float64)


@dataclass(frozen=True)
class Config:
    """What can be chosen."""

    targets: str = option("two-mode,ramp", "what is learned")
    steps: int = option(6_000, "optimiser steps of 512 points")
    long_steps: int = option(10_000, "steps of 2,048 points, with the likelihood weighting")
    points: int = option(10_000, "points of the finite training sets")
    seeds: int = option(3, "networks, and training sets")
    draws: int = option(50_000, "samples drawn from the first network, five times")
    prediction: str = option("v", "what the networks predict: noise, v or data")
    hidden: int = option(128, "width of their three layers")


@dataclass(frozen=True)
class Arm:
    """One estimate of one law: a network, of endless data or of some points, or kernels by some rule."""

    target: str
    method: str
    points: int
    steps: int
    prediction: str
    hidden: int
    seed: int = 0


# --------------------------------------------------------------------------------------- the truth


def diffusible(target: Line) -> sk.GaussianMixture:
    """The law as a mixture, whose score is known at every step of the chain.

    The ramp is one of atoms: 10 Gauss-Legendre nodes in each panel of 0.02, twice the noise of the first
    step, give its noise to 1e-9 wherever there are points, four standard deviations beyond the jump included.
    """
    if isinstance(target, TwoMode):
        return target.mixture
    low, high = target.quantile(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
    x, weight = even_panels(low, high, 0.02, 10)
    return sk.GaussianMixture(weight * target.log_prob(x[:, None]).exp(), x, 0.0)


@functools.cache
def levels(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Places x, their weights p(x) dx and the exact noise at the steps 1 .. N of the chain, (N, 1001) each.

    Sums over these uniform places are integrals to round-off: the laws are smooth and end in bells.
    """
    mixture, found = diffusible(TARGETS[name]), []
    exact = mixture.denoiser(CHAIN.process)
    for t in reversed(CHAIN.times()[:-1]):
        law = mixture.at(CHAIN.process, t)
        reach = 8 * float(law.variances.max().sqrt())
        low, high = float(law.means.min()) - reach, float(law.means.max()) + reach
        x = torch.linspace(low, high, 1001, dtype=torch.float64)[:, None]
        weight = law.log_prob(x).exp() * (high - low) / 1000
        found.append((x[:, 0], weight, exact.noise(x, t)[:, 0]))
    x, weight, noise = (torch.stack(part) for part in zip(*found, strict=True))
    return x, weight, noise


def least_loss(name: str) -> float:
    """The least mean of |noise - network|^2 over the steps: 1 - E |exact noise|^2."""
    _, weight, noise = levels(name)
    return 1 - float((weight * noise.square()).sum(1).mean())


def excess(model: sk.Denoiser, name: str) -> Tensor:
    """E |network - exact noise|^2 at the steps 1 .. N of the chain, (N,): the loss above the least."""
    x, weight, noise = levels(name)
    times = list(reversed(CHAIN.times()[:-1]))
    with torch.no_grad():
        given = [model.noise(row[:, None], t)[:, 0] for row, t in zip(x, times, strict=True)]
    return (weight * (torch.stack(given) - noise).square()).sum(1)


def distances(law: Density1D, target: Line, log_prob: Any = None) -> dict[str, float]:
    """W1, and KL(truth || law): the nats that a point costs under the law beyond the entropy.

    `log_prob` is the law's where it is known below round-off of the density's peak.
    """
    low, high = target.quantile(torch.tensor([1e-9, 1 - 1e-9], dtype=torch.float64)).tolist()
    x, weight = even_panels(low, high, 0.02)
    log_p, log_q = target.log_prob(x[:, None]), (log_prob or law.log_prob)(x)
    return {"W1": law.w1(target), "KL": float((weight * log_p.exp() * (log_p - log_q)).sum())}


# ----------------------------------------------------------------------------------- the estimates


class Bounded(sk.Denoiser):
    """A model whose estimate of the data stays within 3 of them, as samplers of images clip theirs.

    A network is anything at x that it never saw: without this one start in a million can end at 1,000. Smooth
    and rising, unlike a clip, so that the last step leaves a density, and exact where the data have any.
    """

    prediction = "data"

    def __init__(self, model: sk.Denoiser, points: Tensor) -> None:
        self.model, self.process = model, model.process
        self.low, self.high = points.min().item() - 2, points.max().item() + 2

    def predict(self, x: Tensor, t: float | Tensor, **conditions: Any) -> Tensor:
        """The model's estimate of the data, an overshoot v as v / (1 + v)."""
        data = self.model.data(x, t, **conditions)
        above, below = (data - self.high).clamp(min=0), (self.low - data).clamp(min=0)
        return data.clamp(self.low, self.high) + above / (1 + above) - below / (1 + below)


def estimate(arm: Arm, folder: Path) -> dict[str, Any]:
    """Make one estimate, and hold its law against the truth."""
    target = TARGETS[arm.target]
    points = target.sample(arm.points, seed=1_000 + arm.seed)
    if arm.method in RULES:
        return by_kernels(points[:, 0].double(), RULES[arm.method], target)
    model = sk.NetworkDenoiser(_network(arm), CHAIN.process, arm.prediction, time="label")
    began, data = time.process_time(), target if arm.method == ENDLESS else points
    keywords: Any = {"steps": arm.steps, "seed": arm.seed, "progress": False}
    if arm.method == LIKELIHOOD:
        keywords |= {"loss": DenoisingLoss("likelihood"), "times": "importance", "batch": 2_048}
    result = sk.train(model, data, **keywords)
    about = {"training seconds": time.process_time() - began}
    model = result.model
    model.save(folder / "model.safetensors")
    by_level = excess(model, arm.target)
    law, fitted = laws(Bounded(model.double(), points), target, points)
    found = {"excess": float(by_level.mean()), **distances(law, target)}
    found |= {f"{k} (fitted)": v for k, v in distances(fitted, target).items()}
    curves = {"losses": result.losses.tolist(), "excess by step": by_level.tolist()}
    return {**found, "about": about, **curves, "density": law.pdf(SHOWN).tolist()}


def _network(arm: Arm) -> sk.networks.MLP:
    torch.manual_seed(arm.seed)
    return sk.networks.MLP(1, hidden=arm.hidden, time_scale=1 / len(CHAIN))


def by_kernels(points: Tensor, rule: str, target: Line) -> dict[str, Any]:
    """The kernel density estimate: a mixture with a bell at every point (n,)."""
    width = bandwidth(points, rule)
    kernels = sk.GaussianMixture(None, points, width)
    x = np.linspace(float(points.min()) - 9 * width, float(points.max()) + 9 * width, 4096)
    density = kernels.log_prob(torch.from_numpy(x)[:, None]).exp().numpy()
    law = Density1D(x, density, x, np.ones_like(x))
    found = distances(law, target, lambda x: kernels.log_prob(x[:, None]))
    return {**found, "about": {"bandwidth": width}, "density": law.pdf(SHOWN).tolist()}


def laws(model: sk.Denoiser, target: Line, points: Tensor) -> tuple[Density1D, Density1D]:
    """The ancestral sampler's law through all of the chain, with the variances beta and with fitted ones.

    These are the average posterior variances of the model at 2,000 points of the data (Bao et al. 2022).
    The last step is to the model's mean of the data: that of the exact score lies strictly inside the
    ramp, so its law misses the ends, and KL(truth || law) is infinite there.
    """
    times, beta = CHAIN.times(), samplers.Ancestral("beta")
    fitted = samplers.Ancestral("optimal").fitted(model, times, data=points[:2_000].double())
    first, second = (sampler_density(model, s, grid=times, points=1024) for s in (beta, fitted))
    for law in (first, second):
        if law.alarms:
            warnings.warn(f"the law is in doubt: {', '.join(law.alarms)}", stacklevel=2)
    return first, second


def bandwidth(points: Tensor, rule: str) -> float:
    """Standard deviation of the kernels: Scott 1992, Silverman 1986, or the largest leave-one-out likelihood.

    The likelihood is that of the first 2,000 points given all others, over widths 8 % apart.
    """
    n, spread = len(points), float(points.std())
    if rule == "Scott":
        return spread * n**-0.2
    if rule == "Silverman":
        return spread * (0.75 * n) ** -0.2
    some = points[:2_000]

    def left_out(width: float) -> float:
        all_of_them = sk.GaussianMixture(None, points, width).log_prob(some[:, None]).exp()
        own = 1 / (n * width * math.sqrt(2 * math.pi))
        return float((all_of_them - own).log().mean())

    return max((spread * n**-0.2 * 1.08**-k for k in range(26)), key=left_out)


def drawn(model: sk.Denoiser, target: Line, n: int) -> dict[str, float]:
    """W1 of samples, a mean over five seeds, and of as many exact ones."""
    shape, w1 = (n, 1), sk.metrics.wasserstein_1d
    runs = [CHAIN.sample(model, shape, variance="beta", seed=k).x for k in range(5)]
    mean, error = mean_and_error([w1(x, target) for x in runs])
    floor = sk.metrics.floor(w1, target, n, repeats=20)
    return {"W1": mean, "W1 se": error, "floor": floor.mean, "floor se": floor.stderr}


# ------------------------------------------------------------------------------------ the pictures


@plotting.styled
def densities(summaries: dict[str, dict[str, dict[str, Any]]]) -> Any:
    """Densities above, their differences from the truth below; a column a target."""
    figure, panels = plotting.figure_of(
        2, len(summaries), (5.4 * len(summaries), 6.2), sharex="col"
    )
    count = len(summaries)
    for j, (name, estimates) in enumerate(summaries.items()):
        truth = TARGETS[name].log_prob(SHOWN[:, None]).exp()
        above, below = panels[j], panels[count + j]
        above.fill_between(SHOWN, truth, color="#DDDDDD", label="exact")
        for k, (label, summary) in enumerate(estimates.items()):
            style: Any = {"color": plotting.COLOURS[k], "ls": plotting.DASHES[k], "lw": 1.4}
            density = torch.tensor(summary["density"], dtype=torch.float64)
            above.plot(SHOWN, density, label=label, **style)
            below.plot(SHOWN, density - truth, **style)
        above.set(title=name, ylim=(0, 1.35 * float(truth.max())))
        seen = SHOWN[truth > 1e-4]
        margin = 0.12 * float(seen[-1] - seen[0])
        below.set(xlabel="x", xlim=(float(seen[0]) - margin, float(seen[-1]) + margin))
        if name == "ramp":  # the estimates are smooth and the truth jumps
            below.set_ylim(-0.12, 0.12)
    panels[0].set_ylabel("density")
    panels[count].set_ylabel("density - exact density")
    panels[0].legend(fontsize=8, loc="upper left")
    figure.suptitle("Laws of the ancestral sampler, and kernel density estimates")
    return figure


@plotting.styled
def excesses(summaries: dict[str, dict[str, dict[str, Any]]]) -> Any:
    """Excess loss by step of the chain, a panel a target."""
    count = len(summaries)
    figure, panels = plotting.figure_of(1, count, (5.0 * count, 3.6), sharey=True)
    steps = range(1, len(CHAIN) + 1)
    for axes, (name, estimates) in zip(panels, summaries.items(), strict=True):
        _, weight, noise = levels(name)
        least = 1 - (weight * noise.square()).sum(1)
        axes.semilogy(steps, least, color="#999999", lw=3, label="least loss")
        for k, (label, summary) in enumerate(estimates.items()):
            if "excess by step" in summary:
                style: Any = {"color": plotting.COLOURS[k], "ls": plotting.DASHES[k], "lw": 1.4}
                axes.semilogy(steps, summary["excess by step"], label=f"excess, {label}", **style)
        axes.set(title=name, xlabel="step of the chain (data to noise)", ylim=(1e-7, 2))
    panels[0].set_ylabel("mean square of the noise's error")
    panels[0].legend(fontsize=8)
    return figure


# ---------------------------------------------------------------------------------------- the study


def arms_of(config: Config, name: str) -> list[Arm]:
    """Networks on endless and on few points, and kernels; each with every seed."""

    def arms(methods: list[str], steps: int) -> list[Arm]:
        base = Arm(name, "", config.points, steps, config.prediction, config.hidden)
        return grid(base, method=methods, seed=range(config.seeds))

    trained = [*arms([ENDLESS, FEW], config.steps), *arms([LIKELIHOOD], config.long_steps)]
    return [*trained, *arms(list(RULES), 0)]


def studied(config: Config, name: str, out: Path) -> tuple[SweepTable, dict[str, dict[str, Any]]]:
    """The table of one target, and by method what the runs with seed 0 wrote."""
    target, arms = TARGETS[name], arms_of(config, name)
    table = sweep(estimate, arms, out / "runs")
    table.to_csv(out / f"{name}.csv")
    print(f"\n{name}, least loss {least_loss(name):.5f}\n{table}")
    exact = diffusible(target).denoiser(CHAIN.process)
    points = target.sample(config.points, seed=1_000)
    for kind, law in zip(("beta", "fitted"), laws(exact, target, points), strict=True):
        told = ", ".join(f"{k} {v:.2g}" for k, v in distances(law, target).items())
        print(f"the exact score in the same chain, variances {kind}: {told}")
    first = {arm.method: out / "runs" / folder_name(arm) for arm in arms if arm.seed == 0}
    return table, {k: json.loads((v / "summary.json").read_text()) for k, v in first.items()}


def checked_by_drawing(config: Config, name: str, out: Path) -> dict[str, float]:
    """Samples of the first network on endless data."""
    folder = out / "runs" / folder_name(arms_of(config, name)[0])
    model = sk.NetworkDenoiser.load(folder / "model.safetensors")
    points = TARGETS[name].sample(config.points, seed=1_000)
    found = drawn(Bounded(model, points), TARGETS[name], config.draws)
    print(
        f"{config.draws:,} samples of the first network, five times: W1 {found['W1']:.4f} ± "
        f"{found['W1 se']:.4f}; as many exact ones {found['floor']:.4f} ± {found['floor se']:.4f}"
    )
    return found


def run(config: Config, out: Path) -> dict[str, Any]:
    found, summaries = {}, {}
    check_choice("prediction", config.prediction, ("noise", "v", "data"))
    names = [check_choice("targets", name, tuple(TARGETS)) for name in config.targets.split(",")]
    for name in names:
        table, read = studied(config, name, out)
        found[name] = {"least loss": least_loss(name), "table": table.rows}
        losses = torch.tensor(read[ENDLESS]["losses"])
        title = f"{name}, {config.hidden} x 3, prediction {config.prediction}"
        figure = plotting.loss_curve(losses, least_loss(name), title=title)
        plotting.save(figure, out / f"loss_{name}.png")
        summaries[name] = {k: v for k, v in read.items() if "Silverman" not in k}
    plotting.save(densities(summaries), out / "densities.png")
    plotting.save(excesses(summaries), out / "excess.png")
    found[names[0]]["drawn"] = checked_by_drawing(config, names[0], out)
    return found


if __name__ == "__main__":
    hurried = {
        "targets": "two-mode",
        "steps": 100,
        "long_steps": 100,
        "seeds": 1,
        "draws": 500,
        "points": 1_000,
    }
    study(run, Config, quick=hurried)
