"""Losses of a model that knows the variance of its steps: the terms of the variational bound of a chain.

For a chain x_0, .., x_N of equal steps in t the negative log-likelihood is at most

    KL(q(x_N | x_0) || prior) + sum_{i > 1} KL(q(x_{i-1} | x_i, x_0) || p(x_{i-1} | x_i)) - log p(x_0 | x_1)

on average over the chain (Sohl-Dickstein et al. 2015, eq. 14; Ho et al. 2020, eq. 5). q are the bridges of
the process, normal and known; p is the model's `reverse`. The first term has nothing to train.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from sdekit.data.mixtures import GaussianMixture
from sdekit.denoisers import Denoiser
from sdekit.errors import check_integer, check_number, generator_of
from sdekit.learned_variance import Bridge, LearnedVariance, StepModel
from sdekit.processes import Process, expand
from sdekit.training.losses import DenoisingLoss, labels_of


@dataclass(frozen=True)
class PerStepKL:
    """KL(q(x_s | x_t, x_0) || p(x_s | x_t)), nats per dimension, s the step before t.  Ho et al. 2020, eq. 5.

    At the first step, where sigma(s) = 0 and q is a point, it is the negative log-likelihood
    -log p(x_0 | x_1) instead: N times the mean over the steps is then the bound per dimension, but for the
    term of the prior.

    Args:
        steps: N of the chain; if not given that of a model that knows its time as labels. Times are those of
            the steps, i T / N; others count for the nearest.
    """

    steps: int | None = None

    def __post_init__(self) -> None:
        if self.steps is not None:
            check_integer("steps", self.steps, 1)

    def __call__(
        self, model: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, cond: Tensor | None = None
    ) -> Tensor:
        """Loss of each sample, (n,).

        Args:
            model: a `LearnedVariance`, or another with `reverse`; gradients flow through it.
            x0: clean data (n, *event).
            t: times (n,).
            noise: unit normals of the shape of x0.
            cond: passed to the network as the keyword `cond`.
        """
        if not isinstance(model, StepModel):
            raise TypeError(
                "model must give the mean and variance of a step, reverse(x, t, s), such as LearnedVariance; "
                f"{type(model).__name__} has none"
            )
        process, rows = model.process, {} if cond is None else {"cond": cond}
        s = step_before(t, chain_length(model, self.steps), process)
        x_t, bridge = process.perturb(x0, t, noise), process.bridge(t, s)
        if isinstance(model, LearnedVariance):  # which then need not find the bridge again
            law = model.step(*model.halves(x_t, t, **rows), x_t, t, s, bridge)
        else:
            law = model.reverse(x_t, t, s, **rows)
        return _divergence(bridge, x0, x_t, law)

    def minimum(
        self,
        target: GaussianMixture,
        process: Process,
        labels: int | None = None,
        *,
        n: int = 10_000,
        seed: int = 0,
    ) -> float:
        """The least mean over the steps that any model can have, from `kl_minima`.

        Args:
            target: law of the data.
            process: forward process.
            labels: N where `steps` is not given.
            n: draws a step, for mixtures in d > 1.
            seed: of the draws.
        """
        count = _one_length(self.steps, labels)
        return kl_minima(target, process, count, n=n, seed=seed).mean().item()


@dataclass(frozen=True)
class Hybrid:
    """The simple loss plus weight N KL, which moves the variance only.  Nichol & Dhariwal 2021, eq. 16.

    N times the KL of one step is the bound, on average over the steps; the mean is a constant to it. For a
    `LearnedVariance`, at one model call a sample.

    Args:
        weight: of the bound, in nats per dimension.
        steps: N of the chain, as for `PerStepKL`.
    """

    weight: float = 1e-3
    steps: int | None = None

    def __post_init__(self) -> None:
        check_number("weight", self.weight, 0)
        if self.steps is not None:
            check_integer("steps", self.steps, 1)

    def __call__(
        self, model: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, cond: Tensor | None = None
    ) -> Tensor:
        """Loss of each sample, (n,); arguments as for `PerStepKL`."""
        if not isinstance(model, LearnedVariance):
            raise TypeError(f"model must be a LearnedVariance, got {type(model).__name__}")
        process, count = model.process, chain_length(model, self.steps)
        s, x_t = step_before(t, count, process), process.perturb(x0, t, noise)
        bridge = process.bridge(t, s)
        out, reading = model.halves(x_t, t, **({} if cond is None else {"cond": cond}))
        simple = DenoisingLoss().of_output(model, out, x0, t, noise)
        law = model.step(out.detach(), reading, x_t, t, s, bridge)
        return simple + self.weight * count * _divergence(bridge, x0, x_t, law)


def kl_minima(
    target: GaussianMixture, process: Process, steps: int, *, n: int = 10_000, seed: int = 0
) -> Tensor:
    """The least loss at each step that steps normal and independent by coordinate can have, float64 (steps,).

    E mean_j log(v_j / beta-tilde) / 2 with the exact variance v_j of x_s given x_t; at the first step, entry
    0, E mean_j log(2 pi e v_j) / 2. One component in closed form, in 1-D by quadrature, else the mean over
    `n` exact draws of x_t a step (about 1 / sqrt(n)).

    Args:
        target: law of the data.
        process: forward process.
        steps: N of the chain; entry i - 1 is the step from i T / N to (i - 1) T / N.
        n: draws a step.
        seed: of the draws.
    """
    steps, n = check_integer("steps", steps, 1), check_integer("n", n, 1)
    generator = generator_of(seed)
    exact, minima = target.denoiser(process), list[Tensor]()
    for i in range(1, steps + 1):
        t, s = (k / steps * process.horizon for k in (i, i - 1))
        x, weights = _nodes(target.at(process, t), n, generator)
        base, first, _ = _reference(process.bridge(t, s))
        logs = (exact.reverse(x, t, s)[1] / base).log().mean(1)
        minima.append(0.5 * (weights @ logs + first))
    return torch.stack(minima)


def step_before(t: Tensor, steps: int, process: Process) -> Tensor:
    """The time of the step before that nearest to t, of a chain of so many: float64 (n,)."""
    index = (t.double() * (steps / process.horizon)).round().clamp(min=1)
    return (index - 1) / steps * process.horizon


def chain_length(model: Denoiser | StepModel, steps: int | None) -> int:
    """N: as told, or that of a model that knows labels; both must agree."""
    return _one_length(steps, labels_of(cast(Denoiser, model)))


def _one_length(steps: int | None, labels: int | None) -> int:
    if steps is None and labels is None:
        raise ValueError(
            'steps is missing: the model does not know its time as one of N labels (time="label"), so give '
            "the number of steps of its chain, as PerStepKL(steps=1000)"
        )
    if steps is not None and labels is not None and steps != labels:
        raise ValueError(f"steps must be that of the model's labels, {labels}, got {steps}")
    return cast(int, labels if steps is None else steps)


def _divergence(bridge: Bridge, x0: Tensor, x_t: Tensor, law: tuple[Tensor, Tensor]) -> Tensor:
    """Mean over the elements of KL(bridge || law), or of -log law where the bridge is a point: (n,)."""
    mean, variance = law
    keep, pull, _ = (expand(c, x0) for c in bridge)
    base, first, square = (expand(c, x0) for c in _reference(bridge))
    gap = keep * x_t + pull * x0 - mean
    terms = 0.5 * ((variance / base).log() + (gap.square() + square) / variance - 1 + first)
    return terms.flatten(1).mean(1) if terms.ndim > 1 else terms


def _reference(bridge: Bridge) -> tuple[Any, Any, Any]:
    """(beta-tilde, 0, beta-tilde) of the bridge; (1 / 2 pi, 1, 0) where it is a point."""
    square = torch.as_tensor(bridge[2], dtype=torch.float64).square()
    point = square == 0
    return torch.where(point, 1 / (2 * math.pi), square), point.double(), square


def _nodes(law: GaussianMixture, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points (m, d) and weights (m,) of expectations; those of variances need one point for one Gaussian."""
    if len(law.means) == 1:
        return law.means, torch.ones(1, dtype=torch.float64)
    if law.dim == 1:
        return law.quadrature()
    return law.sample(n, generator=generator), torch.full((n,), 1 / n, dtype=torch.float64)
