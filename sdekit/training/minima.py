"""Exact minima of losses."""

import math
from itertools import pairwise

import torch
from torch import nn

from sdekit.data.mixtures import GaussianMixture
from sdekit.denoisers import Denoiser
from sdekit.errors import check_integer
from sdekit.processes import Process
from sdekit.schedules import Tabulated
from sdekit.training.losses import labels_of, reading
from sdekit.training.times import draw_times


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
            (reading(model, "noise", x, s) - reading(exact, "noise", x, s)).square().mean(1)
            for x, s in zip(x_t.split(8192), t.split(8192), strict=True)
        ]
    gap = torch.cat(gaps)
    return gap.mean().item(), gap.std().item() / math.sqrt(n)


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
