"""Denoising score matching: how times are drawn, how errors are weighted, and the least loss there is.

Every weighting is written on the error of the noise, E_t w(t) |eps - eps_hat|^2 (mean over the elements of a
sample), whatever the network predicts: an error of its own target is converted by the affine reading.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from sdekit.data.mixtures import GaussianMixture
from sdekit.denoisers import (
    Denoiser,
    NetworkDenoiser,
    checked_output,
    conversion,
    target_weights,
)
from sdekit.errors import check_choice, check_integer, check_number
from sdekit.processes import Process, expand
from sdekit.schedules import Tabulated

Weighting = Literal["simple", "likelihood", "min-snr"]
Times = Literal["uniform", "stratified"]


def draw_times(
    n: int,
    process: Process,
    generator: torch.Generator,
    times: str = "stratified",
    labels: int | None = None,
) -> Tensor:
    """`n` times uniform on [t_min, t_max], or on the steps of a chain, float64 (n,).

    "stratified" spaces them equally, (u + i / n) mod 1 with one u (Kingma et al. 2021, appendix I.1): the law
    of each is the same wherever it stands in the batch, and the batch has less variance. With `labels` = N
    the times are i T / N, i = 1 .. N, each as likely (Ho et al. 2020, algorithm 1): the times that a network
    of labels can tell apart.
    """
    check_choice("times", times, get_args(Times))
    if times == "uniform":
        u = torch.rand(n, generator=generator, dtype=torch.float64)
    else:
        offset = torch.rand((), generator=generator, dtype=torch.float64)
        u = (torch.arange(n, dtype=torch.float64) / n + offset) % 1
    if labels is not None:
        return ((u * labels).floor() + 1).clamp(max=labels) / labels * process.horizon
    return (process.t_min + (process.t_max - process.t_min) * u).clamp(max=process.t_max)


@dataclass(frozen=True)
class DenoisingLoss:
    """E w(t) |eps - eps_hat(x_t, t)|^2, the mean over elements.

    Args:
        weighting: "simple", w = 1 (Ho et al. 2020, eq. 14); "likelihood", w = g^2 / (2 sigma^2), whose
            integral bounds the likelihood (Song et al. 2021b, theorem 1); "min-snr", w = min(snr, cap) / snr
            (Hang et al. 2023).
        snr_cap: gamma of min-snr.
    """

    weighting: str = "simple"
    snr_cap: float = 5.0

    def __post_init__(self) -> None:
        check_choice("weighting", self.weighting, get_args(Weighting))
        check_number("snr_cap", self.snr_cap, 0, open_low=True)

    def __call__(
        self, model: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, cond: Tensor | None = None
    ) -> Tensor:
        """Loss of each sample, (n,).

        Args:
            model: reads x_t; gradients flow through it.
            x0: clean data (n, *event).
            t: times (n,).
            noise: unit normals of the shape of x0.
            cond: passed to the network as the keyword `cond`.
        """
        process = model.process
        x_t = process.perturb(x0, t, noise)
        rows = {} if cond is None else {"cond": cond}
        out = checked_output(model.predict(x_t, t, **rows), x0)
        u, w = target_weights(process, model.prediction, t)
        error = out - _combine(u, x0, w, noise)
        per_sample = error.square()
        per_sample = per_sample.flatten(1).mean(1) if error.ndim > 1 else per_sample
        if model.prediction != "noise":
            scale = torch.as_tensor(conversion(process, model.prediction, "noise", t)[1])
            per_sample = per_sample * scale.square().to(per_sample)
        if self.weighting != "simple":
            per_sample = per_sample * self.weights(process, t).to(per_sample)
        return per_sample

    def weights(self, process: Process, t: Tensor) -> Tensor:
        """w(t), (n,), float64."""
        t = t.double()
        if self.weighting == "likelihood":
            g2, sigma = (torch.as_tensor(c) for c in (process.rates(t)[1], process.sigma(t)))
            return 0.5 * g2 / sigma.square()
        if self.weighting == "min-snr":
            above = torch.as_tensor(process.log_snr(t)) - math.log(self.snr_cap)
            return torch.exp(-above.clamp(min=0))
        return torch.ones_like(t)


def labels_of(model: Denoiser) -> int | None:
    """N where the network knows its time as one of N labels, else None."""
    return model.labels if isinstance(model, NetworkDenoiser) and model.time == "label" else None


def _combine(u: float | Tensor, x0: Tensor, w: float | Tensor, noise: Tensor) -> Tensor:
    """u x0 + w noise; the common targets without arithmetic."""
    if isinstance(u, float) and isinstance(w, float) and (u, w) in ((0.0, 1.0), (1.0, 0.0)):
        return noise if w else x0
    return expand(u, x0) * x0 + expand(w, x0) * noise


def minimum_loss(
    target: GaussianMixture, process: Process, *, n: int = 200_000, seed: int = 0
) -> float:
    """The least simple loss any network can have on a mixture: E_t [1 - sigma^2 J(p_t) / d], t uniform.

    J = E |score|^2 is the Fisher information. In 1-D by quadrature (about 1e-9), else the mean over `n` exact
    draws (about 1 / sqrt(n)).
    """
    if target.dim == 1:
        return _minimum_by_quadrature(target, process)
    check_integer("n", n, 1)
    generator = torch.Generator().manual_seed(seed)
    t = draw_times(n, process, generator)
    x0 = target.sample(n, generator=generator)
    noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    exact = target.denoiser(process).noise(process.perturb(x0, t, noise), t)
    return 1 - exact.square().mean().item()


def excess_loss(
    model: Denoiser, target: GaussianMixture, *, n: int = 100_000, seed: int = 0
) -> tuple[float, float]:
    """Mean of |eps_hat - exact noise|^2 over the training law, and its standard error.

    That is the simple loss of the model minus the least there is, without the variance of the loss.
    """
    check_integer("n", n, 2)
    process, generator = model.process, torch.Generator().manual_seed(seed)
    t = draw_times(n, process, generator, labels=labels_of(model))
    x0 = target.sample(n, generator=generator)
    noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    parameter = next(model.parameters(), t) if isinstance(model, nn.Module) else t
    x_t, t = (v.to(parameter.device) for v in (process.perturb(x0, t, noise), t))
    exact = target.denoiser(process)
    with torch.no_grad():
        gaps = [
            (_noise(model, x, s) - _noise(exact, x, s)).square().mean(1)
            for x, s in zip(x_t.split(8192), t.split(8192), strict=True)
        ]
    gap = torch.cat(gaps)
    return gap.mean().item(), gap.std().item() / math.sqrt(n)


def _noise(model: Denoiser, x: Tensor, t: Tensor) -> Tensor:
    """`model.noise`, also at the last step of a chain that ends without signal."""
    a, b = conversion(model.process, model.prediction, "noise", t)
    return expand(a, x) * x + expand(b, x) * model.predict(x, t)


def _minimum_by_quadrature(target: GaussianMixture, process: Process) -> float:
    from numpy.polynomial.legendre import leggauss

    low, high = process.t_min, process.t_max
    # Panels that halve towards t_min, where the loss rises from 0 to 1 within decades of t.
    cuts = [low] + [low + (high - low) * 2.0**-k for k in range(16, -1, -1)]
    schedule = getattr(process, "schedule", None)
    if isinstance(schedule, Tabulated):  # the rate jumps at i / N
        n = len(schedule.betas)
        cuts = sorted({*cuts, *(i / n for i in range(1, n) if low < i / n < high)})
    order = max(2, min(24, 600 // len(cuts)))
    points, weights = (torch.from_numpy(v) for v in leggauss(order))
    total = 0.0
    for a, b in pairwise(cuts):
        for u, w in zip(points.tolist(), weights.tolist(), strict=True):
            t = a + (b - a) * (u + 1) / 2
            total += (
                0.5 * (b - a) * w * (1 - float(process.sigma(t)) ** 2 * _fisher(target, process, t))
            )
    return total / (high - low)


def _fisher(target: GaussianMixture, process: Process, t: float) -> float:
    """E |score|^2 at t in 1-D, by panels no wider than half of any component that has mass there."""
    from numpy.polynomial.legendre import leggauss

    law = target.at(process, t)
    z = torch.arange(-9, 9.5, 0.5, dtype=torch.float64)
    cuts = (law.means + law.variances.sqrt() * z).flatten().sort().values
    points, weights = (torch.from_numpy(v) for v in leggauss(8))
    half = 0.5 * cuts.diff()[:, None]
    x = (cuts[:-1, None] + half + half * points).reshape(-1, 1)
    values = law.log_prob(x).exp() * law.score(x)[:, 0].square()
    return float((values * (half * weights).flatten()).sum())
