"""How much more loss a model has than the least there is: in all, and noise level by noise level.

The excess is computed as such, not as a difference of losses: it is the mean over x_t of what the model's
output costs beyond the best output there, so it has none of the variance of the loss.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit.data.mixtures import GaussianMixture
from sdekit.denoisers import Denoiser, conversion, device_of, evaluating
from sdekit.elementary import widest
from sdekit.errors import check_integer, generator_of
from sdekit.processes import Process
from sdekit.records import Records, number
from sdekit.training.losses import DenoisingLoss, labels_of, reading
from sdekit.training.minima import check_target, denoising, draw_states, kinks, least, per_time
from sdekit.training.posterior import in_blocks, marginals
from sdekit.training.times import TimeLaw, draw_times, resolve_times

#: Samples that the model sees at once.
_ROWS = 8192
_FORMS = {
    "log_snr low": ".2f",
    "log_snr high": ".2f",
    "t low": ".4g",
    "t high": ".4g",
    "share": ".1%",
    "loss": ".4g",
    "minimum": ".4g",
    "excess": ".2e",
    "excess se": ".0e",
}


@dataclass(frozen=True)
class LevelExcess(Records):
    """A row a range of noise levels, from noise to data.

    Attributes:
        rows: one dict a range, with the keys

            - "log_snr low", "log_snr high", "t low", "t high": the range;
            - share: of the objective's times that are in it;
            - loss, minimum: mean weighted loss of the model there, and the least there is;
            - excess, "excess se": their difference, and its standard error.
        n: draws of x_t in all.
    """

    n: int

    def __repr__(self) -> str:
        return f"LevelExcess({len(self.rows)} levels, {self.n} draws)"

    @property
    def total(self) -> tuple[float, float]:
        """Excess over all times and its standard error: the mean of the rows by their shares."""
        parts = [(row["share"], row["excess"], row["excess se"]) for row in self.rows]
        excess = math.fsum(share * value for share, value, _ in parts)
        return excess, math.hypot(*(share * error for share, _, error in parts))

    def _cells(self) -> list[list[str]]:
        """Head and rows as text."""
        body = [[number(row[key], form) for key, form in _FORMS.items()] for row in self.rows]
        return [list(_FORMS), *body]

    def _notes(self) -> list[str]:
        """The total, in words."""
        excess, error = self.total
        return [f"excess over all times {excess:.3e} ± {error:.0e}"]


def excess_loss(
    model: Denoiser,
    target: GaussianMixture,
    *,
    loss: Any = None,
    times: str | TimeLaw = "stratified",
    n: int = 100_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Loss of a model minus the least there is, and its standard error.

    For squares E w(t) |eps_hat - exact noise|^2 over the training law.

    Args:
        model: exact or trained, of states (n, d).
        target: the mixture it is meant for.
        loss: `DenoisingLoss()` if not given; any `DenoisingLoss`, or a loss with the same mean as one.
        times: law of times or its name; a network of labels has those of its chain.
        n: draws, at least 2.
        seed: of the draws.

    Raises:
        ValueError, TypeError: an argument.
    """
    check_target(target)
    chosen, law = denoising(loss), resolve_times(times)
    check_integer("n", n, 2)
    process, generator, labels = model.process, generator_of(seed), labels_of(model)
    t = draw_times(n, process, generator, law, labels)
    x_t, _ = draw_states(target, process, t, 1, generator)
    with evaluating(model):
        gap = _gap(model, target, chosen, x_t, t)
    weight = law.importance(process, t, labels)
    gap = gap if weight is None else gap * weight
    return gap.mean().item(), gap.std().item() / math.sqrt(n)


def excess_by_level(
    model: Denoiser,
    target: GaussianMixture,
    *,
    levels: int = 10,
    loss: Any = None,
    times: str | TimeLaw = "stratified",
    n: int = 100_000,
    seed: int = 0,
) -> LevelExcess:
    """`excess_loss` by noise level: ranges of equal width in log-SNR, from t_max to t_min.

    Every time of a quadrature over the objective's times has its own draws, so only x_t is left to chance.

    Args:
        model: exact or trained, of states (n, d).
        target: the mixture it is meant for.
        levels: ranges; those without a step of a network of labels are left out.
        loss: as for `excess_loss`.
        times: as for `excess_loss`.
        n: draws of x_t in all, at least 2 a time.
        seed: of the draws.

    Raises:
        ValueError, TypeError: an argument.
    """
    check_target(target)
    chosen, law, levels = denoising(loss), resolve_times(times), check_integer("levels", levels, 1)
    process, generator, labels = model.process, generator_of(seed), labels_of(model)
    edges = _edges(process, labels, levels)
    t, weights = law.nodes(process, labels, [*edges[1:-1], *kinks(chosen, process)])
    draws = per_time(check_integer("n", n, 2), t)
    x_t, each = draw_states(target, process, t, draws, generator)
    with evaluating(model):
        gap = _gap(model, target, chosen, x_t, each).view(len(t), draws)
    minimum, _ = least(target, process, chosen, t, model.prediction, draws, generator)
    place = torch.bucketize(t, torch.tensor(edges[1:-1], dtype=torch.float64))
    rows = []
    for k in reversed(range(levels)):
        inside, share = place == k, weights[place == k].sum()
        if share > 0:
            w = weights[inside] / share
            excess, error = (
                w @ gap[inside].mean(1),
                (w.square() @ gap[inside].var(1) / draws).sqrt(),
            )
            ends, low = (edges[k], edges[k + 1]), w @ minimum[inside]
            rows.append(_row(process, ends, share, low, excess, error))
    return LevelExcess(rows, len(each))


def _row(
    process: Process,
    ends: tuple[float, float],
    share: Tensor,
    minimum: Tensor,
    excess: Tensor,
    error: Tensor,
) -> dict[str, float]:
    return {
        "log_snr low": float(process.log_snr(ends[1])),
        "log_snr high": float(process.log_snr(ends[0])),
        "t low": ends[0],
        "t high": ends[1],
        "share": share.item(),
        "loss": (minimum + excess).item(),
        "minimum": minimum.item(),
        "excess": excess.item(),
        "excess se": error.item(),
    }


def _edges(process: Process, labels: int | None, levels: int) -> list[float]:
    """levels + 1 times, equally spaced in log-SNR; of a chain from its first step on."""
    low, high = process.t_min, process.t_max
    low = low if labels is None else max(low, min(process.horizon / labels, high))
    first, last = float(process.log_snr(low)), float(process.log_snr(high))
    values = (first + (last - first) * k / levels for k in range(1, levels))
    return [low, *(float(process.time_at_log_snr(v)) for v in values), high]


def _gap(
    model: Denoiser, target: GaussianMixture, loss: DenoisingLoss, x_t: Tensor, t: Tensor
) -> Tensor:
    """What the model's output costs at x_t beyond the best output, weight included: (n,)."""
    process, kind, device = model.process, model.prediction, device_of(model)
    with torch.no_grad():
        there = [v.to(device, widest(device)) for v in (x_t, t)]
        blocks = zip(*(v.split(_ROWS) for v in there), strict=True)
        out = torch.cat([reading(model, kind, x, s).to(x_t) for x, s in blocks])
    factor = loss.factor(process, t, kind, kind)
    if loss.norm == "l2":
        best = reading(target.denoiser(process), kind, x_t, t)
        return loss.counted(loss.sizes(out, best), factor)

    def over_median(x: Tensor, s: Tensor, found: Tensor) -> Tensor:
        law = marginals(target, process, s, x).affine(x, *conversion(process, "data", kind, s))
        return law.error(found, loss.norm) - law.spread(loss.norm)

    return loss.counted(in_blocks(target, over_median, x_t, t, out), factor)
