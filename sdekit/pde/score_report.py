"""How a model fails to be a score, noise level by noise level, beside what its loss says."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit.data.mixtures import GaussianMixture
from sdekit.denoisers import Denoiser, device_of
from sdekit.elementary import widest
from sdekit.errors import check_integer, check_number, generator_of
from sdekit.pde.residuals import EXACT, curl_ratio, score_fpe_residual, tweedie_check
from sdekit.records import Records, number
from sdekit.sampling.grids import LogSNR, usual_end
from sdekit.training.losses import labels_of

_FORMS = {
    "t": ".4g",
    "log_snr": ".2f",
    "residual": ".1e",
    "curl": ".1e",
    "negative": ".1%",
    "minimum": ".4f",
    "excess": ".1e",
    "excess se": ".0e",
}


@dataclass(frozen=True)
class ScoreReport(Records):
    """A row a noise level, from noise to data.

    Attributes:
        rows: one dict a level, with the keys

            - t, log_snr: the level;
            - residual: rms of the score's Fokker-Planck residual over rms of d_t s; 0 for a score (NaN for
              a network of labels, which has no derivative in t);
            - curl: part of the score's Jacobian that no gradient has, in [0, 1];
            - negative: share of the samples whose posterior covariance, read off the Jacobian, has a negative
              eigenvalue (NaN above d = 64);
            - minimum: mean squared error of the exact noise prediction on these samples, per element: what no
              network can go below;
            - excess, "excess se": mean squared distance of the model's noise from the exact one, per element,
              and its standard error; 0 for the exact model.
        n: samples a level.
    """

    n: int

    def __repr__(self) -> str:
        return f"ScoreReport({len(self.rows)} levels, {self.n} samples each)"

    def _cells(self) -> list[list[str]]:
        """Head and rows as text."""
        body = [[number(row[key], form) for key, form in _FORMS.items()] for row in self.rows]
        return [list(_FORMS), *body]


def score_report(
    denoiser: Denoiser,
    target: GaussianMixture,
    *,
    levels: int | Sequence[float] = 8,
    n: int = 1000,
    seed: int = 0,
) -> ScoreReport:
    """Is it a score, and the right one? Residual, curl, covariance and excess loss at each noise level.

    The first three need no data to compare with: a model may pass them all and still be the score of
    something else, which the excess shows. A small residual is a diagnostic and need not mean better
    samples. Where the law hardly moves (VP near T) d_t s vanishes, and the relative residual is large for any
    trained network.

    Args:
        denoiser: exact or trained, of states (n, d).
        target: the mixture it is meant for.
        levels: how many, equally spaced in log-SNR from t_max to where sampling usually ends, 1e-3 T; or the
            times themselves. A network of labels is read at the nearest steps of its chain.
        n: samples x_t a level, the same x_0 and noises at every level.
        seed: of the samples and of the probes above d = 64.

    Raises:
        ValueError: levels outside [t_min, t_max]; another argument out of its range.
        TypeError: no denoiser, no mixture.
    """
    if not isinstance(denoiser, Denoiser):
        raise TypeError(f"denoiser must be a Denoiser, got {type(denoiser).__name__}")
    if not isinstance(target, GaussianMixture):
        raise TypeError(f"target must be a GaussianMixture, got {type(target).__name__}")
    n, generator = check_integer("n", n, 2), generator_of(seed)
    times = _times(denoiser, levels)
    x0 = target.sample(n, generator=generator)
    noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    return ScoreReport([_row(denoiser, target, x0, noise, t, seed) for t in times], n)


def _row(
    denoiser: Denoiser, target: GaussianMixture, x0: Tensor, noise: Tensor, t: float, seed: int
) -> dict[str, Any]:
    process, device = denoiser.process, device_of(denoiser)
    x = process.perturb(x0, t, noise)
    exact = target.denoiser(process).noise(x, t)
    there = x.to(device, widest(device))
    with torch.no_grad():
        found = denoiser.noise(there, t).to(exact)
        gap = (found - exact).square().mean(1)
        residual = negative = math.nan
        if labels_of(denoiser) is None:
            residual = score_fpe_residual(denoiser, there, t, seed=seed).relative
        if target.dim <= EXACT:
            negative = tweedie_check(denoiser, there, t).negative
    return {
        "t": t,
        "log_snr": process.log_snr(t),
        "residual": residual,
        "curl": curl_ratio(denoiser, there, t, seed=seed),
        "negative": negative,
        "minimum": (noise - exact).square().mean().item(),
        "excess": gap.mean().item(),
        "excess se": gap.std().item() / math.sqrt(len(gap)),
    }


def _times(denoiser: Denoiser, levels: int | Sequence[float]) -> list[float]:
    """The levels as times, those of a network of labels at steps of its chain."""
    process, labels = denoiser.process, labels_of(denoiser)
    if isinstance(levels, Iterable):
        times = [check_number("levels", t, process.t_min, process.t_max) for t in levels]
        if not times:
            raise ValueError("levels must hold at least one time, got none")
    else:
        steps = check_integer("levels", levels, 2) - 1
        times = LogSNR().times(
            process, steps, process.t_max, max(usual_end(process), process.t_min)
        )
    if labels is None:
        return times
    steps = (max(round(t / process.horizon * labels), 1) for t in times)
    return list(dict.fromkeys(min(k / labels * process.horizon, process.t_max) for k in steps))
