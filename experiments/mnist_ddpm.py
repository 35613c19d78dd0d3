"""A DDPM on Fashion-MNIST or MNIST: loss by epoch beside a published curve, pictures, distances with floors.

    python experiments/mnist_ddpm.py [--quick] [--data mnist] [--schedule cosine] [--out runs/mnist_ddpm]

A run that was stopped goes on with --resume, bit for bit. Of one that is finished, --resume draws new
pictures, as in `--resume --sampler ancestral --calls 1000`; `sdekit sample` reads its checkpoints too.

What to see: loss.png, the mean loss of every epoch beside the 35 epochs of the DSPA appendix (I. Dinov,
MNIST in R torch, the same chain), 0.311 after 5 and 0.112 after 35, and beside the least loss of a model that
is linear in x, which follows from the covariance of the data; levels.png, the same on test images by noise
level. samples.png, generated images beside real ones.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness.images import SYMMETRIC, Judge, Pictures, load, sampler_named, steps_of
from harness.study import option, study
from torch import Tensor

import sdekit as sk
from sdekit import plotting
from sdekit.data.images import Augmented, Scaling
from sdekit.ddpm import cosine_betas, linear_betas, quadratic_betas
from sdekit.errors import check_choice
from sdekit.training import DenoisingLoss, Plateau, TrainResult

#: Mean loss of each epoch as the DSPA appendix prints it, for MNIST in [0, 1].
PUBLISHED = (
    0.6414872, 0.3970883, 0.3658508, 0.3412773, 0.3187902, 0.2975965, 0.2760923, 0.2564409, 0.2407181,
    0.228597, 0.2178866, 0.2069024, 0.1947486, 0.1814034, 0.1720325, 0.165519, 0.1594901, 0.1541408,
    0.1497078, 0.1448885, 0.1412742, 0.138038, 0.1358833, 0.1329042, 0.1312926, 0.1288575, 0.1274151,
    0.1246548, 0.1230804, 0.120948, 0.1190694, 0.1166119, 0.1146551, 0.113805, 0.1124808,
)  # fmt: skip

CHAINS = {
    "linear": linear_betas,  # 1e-4 to 0.02
    "quadratic": quadratic_betas,
    "cosine": cosine_betas,
}
RANGES = {"symmetric": SYMMETRIC, "unit": Scaling((0.0,), (255.0,))}


@dataclass(frozen=True)
class Config:
    """What is trained, and what is drawn from it."""

    data: str = option("fashion", "fashion, mnist or digits (those of scikit-learn, enlarged).")
    size: int = option(28, "Side of the images in pixels, 28 or 32.")
    levels: str = option("symmetric", "Grey from -1 to 1, or unit: from 0 to 1.")
    augment: bool = option(False, "Turn images by up to 5 degrees and move them by a pixel.")
    chain: int = option(1_000, "Steps T of the chain.")
    schedule: str = option("linear", "Its betas: linear, quadratic or cosine.")
    prediction: str = option("v", "What the network predicts: v, noise or data.")
    norm: str = option("l2", "Of the error of the noise: l2 or l1.")
    times: str = option(
        "stratified", "Law of the training times; log-normal draws fewer extreme ones."
    )
    epochs: float = option(10.0, "Passes over the data.")
    steps: int = option(0, "Optimiser steps instead of epochs, if not 0.")
    batch: int = option(32, "Images a step.")
    accumulate: int = option(1, "Parts that a batch goes through the network in.")
    lr: float = option(2e-3, "Peak learning rate.")
    rate: str = option("cosine", "How it falls: cosine, constant or plateau (halved).")
    clip: float = option(1.0, "Largest gradient norm.")
    half_life: float = option(700.0, "Of the averaged weights, in steps.")
    precision: str = option("bf16", "Of the network in training, bf16 or float32.")
    sampler: str = option("dpm-solver-pp", "A name of `sdekit samplers`.")
    calls: int = option(20, "Its network calls.")
    images: int = option(1_000, "How many are generated.")
    judge: int = option(
        20_000, "Images that the judging classifier is trained on, at most half of them."
    )
    seed: int = option(0, "Of everything.")
    threads: int = option(1, "Threads of torch.")
    resume: bool = option(False, "Go on with the run in --out.")


QUICK = {"steps": 12, "images": 100, "calls": 8, "judge": 1_000}


def run(config: Config, out: Path) -> dict[str, Any]:
    torch.set_num_threads(config.threads)
    scaling = RANGES[check_choice("levels", config.levels, tuple(RANGES))]
    sampler, data = sampler_named(config.sampler), load(config.data, config.size)
    result = trained(config, data, scaling, out)
    assert result.checkpoint is not None
    model = sk.NetworkDenoiser.load(result.checkpoint)
    epochs = by_epoch(result.losses, config.batch, len(data.train.images))
    print("mean loss by epoch:", *(f"{loss:.4f}" for loss in epochs))
    chain = torch.arange(1, config.chain + 1, dtype=torch.float64) / config.chain
    linear = float(linear_losses(model.process, scaling, data, chain).mean())
    print(f"least of a linear model: {linear:.4f}")
    plotting.save(loss_curve(epochs, linear, config, data.name), out / "loss.png")
    levels = by_level(model, scaling, data, min(500, config.images))
    plotting.save(level_curve(levels, data.name), out / "levels.png")

    shape = (config.images, 1, config.size, config.size)
    steps = steps_of(sampler, config.calls)
    x = sk.sample(
        model, shape, sampler=sampler, steps=steps, seed=config.seed, chunk=100, progress=True
    )
    images = scaling.to_levels(x.x)
    grids = {"generated": images[:64], f"{data.name}, test part": data.test.images[:64]}
    shown = {name: SYMMETRIC.forward(grid) for name, grid in grids.items()}
    plotting.save(plotting.image_grids(shown), out / "samples.png")
    losses = {"loss by epoch": epochs, "linear loss": linear, "loss by level": levels}
    return {"data": data.name, **losses, "calls": x.nfe, **judged(config, data, images)}


def trained(config: Config, data: Pictures, scaling: Scaling, out: Path) -> TrainResult:
    """The run in `out`, new or resumed."""
    torch.manual_seed(config.seed)
    make = CHAINS[check_choice("schedule", config.schedule, tuple(CHAINS))]
    network = sk.networks.UNet(widths=(32, 64, 128), patch=2, time_scale=0.05)
    # Told the log-SNR, the network knows the times between the steps of the chain as well.
    model = sk.NetworkDenoiser(
        network, sk.VP.from_betas(make(config.chain)), config.prediction, time="log_snr"
    )
    images = data.train.images
    epoch = -(-len(images) // config.batch)
    steps = config.steps or max(1, math.ceil(config.epochs * len(images) / config.batch))
    data_options: dict[str, Any] = {"data": images, "scaling": scaling}
    if config.augment:
        data_options = {"data": Augmented(scaling.forward(images), rotation=5.0, crop=1)}
    return sk.train(
        model,
        **data_options,
        steps=steps,
        out=out,
        loss=DenoisingLoss(norm=config.norm),
        times=config.times,
        seed=config.seed,
        batch=config.batch,
        accumulate=config.accumulate,
        lr=config.lr,
        schedule=Plateau(window=epoch, patience=1) if config.rate == "plateau" else config.rate,
        clip=config.clip,
        half_life=config.half_life,
        precision=config.precision,
        checkpoint_every=500,
        resume=config.resume,
    )


def by_epoch(losses: Tensor, batch: int, images: int) -> list[float]:
    """Mean loss of the steps of every epoch; the last may be a part of one."""
    epoch = (torch.arange(len(losses)) * batch) // images
    return [float(losses[epoch == k].mean()) for k in epoch.unique().tolist()]


@plotting.styled
def loss_curve(epochs: list[float], linear: float, config: Config, name: str) -> Any:
    """Mean loss by epoch, the least of any linear model, and the published curve."""
    figure, (axes,) = plotting.figure_of(1, 1, (6.4, 3.8))
    own = f"{name}, {config.size} x {config.size}, {config.levels} range, {config.norm}"
    published = "published: MNIST, unit range, l2 (DSPA appendix)"
    for k, (losses, label) in enumerate(((epochs, own), (PUBLISHED, published))):
        style: Any = {"color": plotting.COLOURS[k], "ls": plotting.DASHES[k], "label": label}
        axes.plot(range(1, len(losses) + 1), losses, marker=plotting.MARKERS[k], ms=4, **style)
    label = f"best linear model of {name}, l2"
    axes.axhline(linear, color=plotting.COLOURS[2], ls="-.", label=label)
    axes.set(xlabel="epoch", ylabel="mean loss of the epoch", ylim=(0, None))
    axes.legend()
    return figure


def linear_losses(process: sk.Process, scaling: Scaling, data: Pictures, times: Tensor) -> Tensor:
    """Least loss of the noise at these times of any model linear in x, from the covariance of the data."""
    spread = scaling.forward(data.train.images).flatten(1).T.double().cov()
    eigenvalues = torch.linalg.eigvalsh(spread).clamp(min=0)
    noise_to_signal = torch.exp(-torch.as_tensor(process.log_snr(times)))
    return (1 / (1 + noise_to_signal[:, None] / eigenvalues)).mean(1)


def by_level(
    model: sk.Denoiser, scaling: Scaling, data: Pictures, n: int = 500
) -> list[dict[str, float]]:
    """Loss of the noise on n test images at 16 noise levels, and the least of any model linear in x."""
    x0 = scaling.forward(data.test.images[:n])
    times = torch.linspace(0, 1, 18, dtype=torch.float64)[1:-1].square()
    least = linear_losses(model.process, scaling, data, times).tolist()
    generator, rows = torch.Generator().manual_seed(0), []
    for t, linear in zip(times.tolist(), least, strict=True):
        noise = torch.randn(x0.shape, generator=generator)
        with torch.no_grad():
            found = model.noise(model.process.perturb(x0, t, noise), t)
        losses = (found - noise).square().flatten(1).mean(1)
        rows.append(
            {
                "log SNR": float(model.process.log_snr(t)),
                "network": float(losses.mean()),
                "network se": float(losses.std()) / math.sqrt(len(losses)),
                "linear": linear,
            }
        )
    return rows


@plotting.styled
def level_curve(rows: list[dict[str, float]], name: str) -> Any:
    """Both losses by log SNR."""
    figure, (axes,) = plotting.figure_of(1, 1, (6.4, 3.8))
    labels = {"network": "network, test images", "linear": "best linear model (one Gaussian)"}
    for k, (kind, label) in enumerate(labels.items()):
        values = [row[kind] for row in rows]
        style: Any = {"color": plotting.COLOURS[k], "ls": plotting.DASHES[k], "label": label}
        axes.plot([row["log SNR"] for row in rows], values, marker=plotting.MARKERS[k], **style)
    axes.set(xlabel="log SNR", ylabel="loss of the noise", yscale="log", title=name)
    axes.legend()
    return figure


def judged(config: Config, data: Pictures, images: Tensor) -> dict[str, Any]:
    """Distances of the generated images from test images beside those of real ones, printed and returned."""
    judge = Judge.of(data, config.judge, seed=config.seed)
    real = data.train.images[-len(images) :]
    found, known = judge.scores(images), judge.scores(real)
    floor = judge.floor(len(images))
    print(f"a LeNet that is right on {judge.classifier.accuracy:.1%} of held-out images sees")
    for name, row in (("generated", found), ("real", known)):
        print(
            f"{name:<10} FD-LeNet {row['FD']:.3f} +- {row['FD se']:.3f}, KID {row['KID']:.4f} +- "
            f"{row['KID se']:.4f}, sure of {row['sure']:.0%}, classes off by {row['off balance']:.0%}"
        )
    print(f"floor      FD-LeNet {floor.mean:.3f}, 95 % below {floor.quantile95:.3f}")
    accuracy = {"LeNet accuracy": judge.classifier.accuracy}
    floors = {"FD floor": floor.mean, "FD floor 95 %": floor.quantile95}
    return {"generated": found, "real": known, **floors, **accuracy}


if __name__ == "__main__":
    study(run, Config, QUICK)
