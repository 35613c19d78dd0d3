"""Latent diffusion in small: a score model in the latent space of an autoencoder, beside one of the pixels.

A variational autoencoder with a weak Kullback-Leibler term makes an image a few numbers with noise of their
own (Kingma & Welling 2014); a score model of these, standardised, draws new ones, which are decoded (Rombach
et al. 2022). Both score models know the class. Distances are of LeNet's features and stand beside what unseen
images score; what the decoder makes of unseen images is the best that any model of the latents can do.

    python experiments/latent_digits.py [--quick] [--data fashion] [--out runs/latent_digits]
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness.study import option, study
from torch import Tensor, nn
from torch.nn import functional as F

import sdekit as sk
from sdekit import plotting, samplers
from sdekit.data.images import Scaling, digit_labels, digits, fashion_mnist
from sdekit.errors import check_choice

PROCESS = sk.VP()
CLASSES = 10
#: The set that is made of unseen images, and the one that has no classes.
UNSEEN, UNLABELLED = "unseen, reconstructed", "one Gaussian of latents"


@dataclass(frozen=True)
class Config:
    """Data, sizes and counts."""

    data: str = option(
        "digits", 'images: "digits" (8 x 8) or "fashion" (Fashion-MNIST, if present)'
    )
    unseen: int = option(700, "images kept from the training of all models")
    samples: int = option(500, "samples of every model, and of the unseen images for the floor")
    most: int = option(10_000, "most images that are trained on")
    latent: int = option(12, "numbers in a latent")
    kl_weight: float = option(0.05, "nats of the Kullback-Leibler term a unit of squared error")
    hidden: int = option(256, "width of every network")
    encoder_steps: int = option(3_000, "optimiser steps of the autoencoder")
    score_steps: int = option(4_000, "optimiser steps of each score model")
    sample_steps: int = option(50, "steps of the sampler")
    repeats: int = option(20, "draws of the floor")
    seed: int = option(0, "of everything")


# ------------------------------------------------------------------- the autoencoder


class Autoencoder(nn.Module):
    """Images (n, *event) to means and log standard deviations of latents (n, latent), and latents back."""

    def __init__(self, event: tuple[int, ...], latent: int, hidden: int) -> None:
        super().__init__()
        self.event, pixels = event, math.prod(event)
        self.encoder = nn.Sequential(nn.Flatten(), *_layers(pixels, hidden, 2 * latent))
        self.decoder = nn.Sequential(*_layers(latent, hidden, pixels), nn.Tanh())

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of the latent of each image."""
        mean, log_std = self.encoder(images).chunk(2, dim=1)
        return mean, log_std

    def decode(self, latents: Tensor) -> Tensor:
        """Images in [-1, 1] of latents (n, latent)."""
        return self.decoder(latents).reshape(-1, *self.event)

    def loss(self, images: Tensor, kl_weight: float, generator: torch.Generator) -> Tensor:
        """Squared error of an image plus kl_weight KL(N(mean, std^2) || N(0, I)), mean over the batch."""
        mean, log_std = self.encode(images)
        z = mean + log_std.exp() * torch.randn(mean.shape, generator=generator)
        error = (self.decode(z) - images).square().flatten(1).sum(1)
        kl = 0.5 * (mean.square() + (2 * log_std).exp() - 1).sum(1) - log_std.sum(1)
        return (error + kl_weight * kl).mean()


def _layers(ins: int, hidden: int, outs: int) -> list[nn.Module]:
    wide = [nn.Linear(ins, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()]
    return [*wide, nn.Linear(hidden, outs)]


def fitted_autoencoder(images: Tensor, config: Config) -> Autoencoder:
    """Adam at 2e-3 falling to 0 along a cosine, batches of 128."""
    torch.manual_seed(config.seed)
    model = Autoencoder(tuple(images.shape[1:]), config.latent, config.hidden)
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.encoder_steps)
    for _ in range(config.encoder_steps):
        rows = torch.randint(len(images), (128,), generator=generator)
        optimizer.zero_grad()
        model.loss(images[rows], config.kl_weight, generator).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@dataclass(frozen=True, eq=False)
class Latents:
    """Draws of the latents of images, each coordinate moved and scaled to mean 0 and variance 1."""

    rows: Tensor
    shift: Tensor
    scale: Tensor

    @classmethod
    def of(cls, model: Autoencoder, images: Tensor, draws: int, seed: int) -> "Latents":
        """`draws` latents of every image, image after image."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            mean, log_std = (part.repeat(draws, 1) for part in model.encode(images))
        z = mean + log_std.exp() * torch.randn(mean.shape, generator=generator)
        shift, scale = z.mean(0), z.std(0)
        return cls((z - shift) / scale, shift, scale)

    def back(self, rows: Tensor) -> Tensor:
        """Standardised latents as the decoder takes them."""
        return self.shift + self.scale * rows


# ------------------------------------------------------------------- the score models


def score_model(data: Tensor, labels: Tensor, config: Config) -> sk.Denoiser:
    """A class-conditional score model of rows (n, d)."""
    torch.manual_seed(config.seed)
    network = sk.networks.MLP(data.shape[1], hidden=config.hidden, depth=4, cond_dim=CLASSES)
    model = sk.NetworkDenoiser(network, PROCESS, prediction="v")
    done = sk.train(
        model, data, cond=_one_hot(labels), steps=config.score_steps, batch=256, lr=2e-3,
        seed=config.seed, progress=False,
    )  # fmt: skip
    return done.model


def drawn(model: sk.Denoiser, dim: int, labels: Tensor, config: Config) -> Tensor:
    """A row (n, dim) for every label."""
    sampler, shape = samplers.DPMSolverPP(), (len(labels), dim)
    run = sk.sample(
        model, shape, sampler=sampler, steps=config.sample_steps, final="data",
        cond=_one_hot(labels), seed=config.seed,
    )  # fmt: skip
    return run.x


def _one_hot(labels: Tensor) -> Tensor:
    return F.one_hot(labels, CLASSES).float()


# ------------------------------------------------------------------- the study


def images_of(config: Config) -> tuple[Tensor, Tensor]:
    """Images (n, 1, side, side) in [-1, 1] in random order, and labels."""
    if check_choice("data", config.data, ("digits", "fashion")) == "digits":
        images, labels = digits(), digit_labels()
    else:
        found = fashion_mnist()
        assert found.labels is not None
        images, labels = Scaling.symmetric(256).forward(found.images), found.labels
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(config.seed))
    order = order[: config.unseen + config.most]
    return images[order], labels[order]


def generated(
    train: Tensor, labels: Tensor, test: Tensor, wanted: Tensor, config: Config
) -> dict[str, Tensor]:
    """Sets of images of the classes `wanted`, by what made them; the first from the unseen images."""
    model = fitted_autoencoder(train, config)
    draws = 8
    latents = Latents.of(model, train, draws, config.seed)
    diffusion = score_model(latents.rows, labels.repeat(draws), config)
    moments = torch.cov(latents.rows.double().T)[None]
    bell = sk.GaussianMixture(None, torch.zeros(1, config.latent), covariances=moments)
    pixels = score_model(train.flatten(1), labels, config)
    with torch.no_grad():
        found = {
            UNSEEN: model.encode(test)[0],
            "latent diffusion": latents.back(drawn(diffusion, config.latent, wanted, config)),
            UNLABELLED: latents.back(
                bell.sample(len(wanted), seed=config.seed, dtype=torch.float32)
            ),
        }
        sets = {name: model.decode(z) for name, z in found.items()}
    pixel = drawn(pixels, math.prod(train.shape[1:]), wanted, config).reshape(-1, *train.shape[1:])
    return {**sets, "pixel diffusion": pixel.clamp(-1, 1)}


def read_as(network: sk.metrics.LeNet, images: Tensor, labels: Tensor) -> float:
    """Share of the images that LeNet takes for what they should be."""
    with torch.no_grad():
        return float((network.logits(images).argmax(1) == labels).double().mean())


def against_unseen(
    network: sk.metrics.LeNet, models: dict[str, Tensor], train: Tensor, test: Tensor, repeats: int
) -> dict[str, dict[str, float]]:
    """FD-LeNet and KID to images that no model saw, the floor being training images."""
    known, unseen = (sk.metrics.extract_features(network, part) for part in (train, test))
    n = len(next(iter(models.values())))
    features = {name: sk.metrics.extract_features(network, found) for name, found in models.items()}
    found, metrics = {}, dict[str, Any](FD=sk.metrics.frechet_distance, KID=sk.metrics.kid)
    for label, metric in metrics.items():
        scores = {name: metric(rows, unseen[:n]).value for name, rows in features.items()}
        floor = sk.metrics.data_floor(metric, known, unseen, n=n, repeats=repeats)
        found[label] = {**scores, "training images": floor.mean}
    return found


def copying(sets: dict[str, Tensor], train: Tensor) -> sk.metrics.Memorisation:
    """Are decoded samples nearer to training images than decoded unseen images are? On pixels.

    The decoder smooths, which brings any image nearer to its neighbours: unseen images go through it too.
    """
    parts = (part.flatten(1) for part in (sets["latent diffusion"], train, sets[UNSEEN]))
    return sk.metrics.memorisation(*parts)


def pictures(
    sets: dict[str, Tensor], train: Tensor, test: Tensor, wanted: Tensor, near: Tensor, out: Path
) -> None:
    """Reconstructions; samples, a column a class; latent diffusion beside the nearest training images."""
    pair = {"unseen": test[:80], "reconstructed": sets[UNSEEN][:80]}
    plotting.save(plotting.image_grids(pair, columns=10), out / "reconstructions.png")
    # A stable sort by class, then as many of each, gives a column to every class.
    rows = torch.stack(
        [torch.nonzero(wanted == c).flatten()[:8] for c in range(CLASSES)], 1
    ).flatten()
    shown = {name: images[rows] for name, images in sets.items() if name != UNSEEN}
    figure = plotting.image_grids(shown, columns=CLASSES, title="Samples, a column a class")
    plotting.save(figure, out / "samples.png")
    samples = sets["latent diffusion"]
    beside = {"latent diffusion": samples[rows], "nearest training images": train[near[rows]]}
    plotting.save(plotting.image_grids(beside, columns=CLASSES), out / "nearest.png")


def run(config: Config, out: Path) -> dict[str, Any]:
    images, labels = images_of(config)
    (test, train), (answers, known) = (
        part.split((config.unseen, len(images) - config.unseen)) for part in (images, labels)
    )
    lenet = sk.metrics.train_lenet(images, labels, seed=config.seed)
    print(f"LeNet is right on {lenet.accuracy:.1%} of {lenet.held_out} held-out images")
    wanted, some = torch.arange(config.samples) % CLASSES, test[: config.samples]
    sets = generated(train, known, some, wanted, config)
    table = sk.compare_sets(sets, train, test, lenet.network, repeats=config.repeats)
    print(f"\n{table}")
    models = {name: found for name, found in sets.items() if name != UNSEEN}
    fresh = against_unseen(lenet.network, models, train, test, config.repeats)
    for label, scores in fresh.items():
        print(f"{label} to unseen images:", ", ".join(f"{k} {v:.4f}" for k, v in scores.items()))
    near = copying(sets, train)
    print(f"latent diffusion, nearer to training images than {UNSEEN}: z = {near.z:+.1f}")
    truth = {UNSEEN: answers[: config.samples]}
    read = {"unseen": read_as(lenet.network, test, answers)} | {
        name: read_as(lenet.network, found, truth.get(name, wanted))
        for name, found in sets.items()
        if name != UNLABELLED
    }
    for name, share in read.items():
        print(f"LeNet reads the right class in {share:.1%} of {name}")
    table.to_csv(out / "features.csv")
    (out / "features.md").write_text(table.markdown() + "\n")
    pictures(sets, train, test, wanted, near.nearest, out)
    return {
        "lenet": lenet.accuracy,
        "read as wanted": read,
        "sets": table.rows,
        "floors": {column: floor.mean for column, floor in table.floors.items()},
        "against unseen": fresh,
        "copying": {"ratio": near.ratio, "z": near.z},
    }


if __name__ == "__main__":
    quick = {"encoder_steps": 400, "score_steps": 400, "hidden": 128, "samples": 200, "repeats": 2}
    study(run, Config, quick)
