"""The least value that a loss can have on a mixture.

Given x_t, the posterior of x_0 is a mixture. The least loss is its spread (the variance, or the mean distance
from the median of each element), averaged over x_t and over the objective's times.
"""

import math
from typing import Any

import torch
from torch import Tensor

from sdekit.data.mixtures import GaussianMixture
from sdekit.errors import check_integer, generator_of
from sdekit.processes import Process
from sdekit.quadrature import integrate
from sdekit.training.losses import DenoisingLoss
from sdekit.training.posterior import in_blocks, marginals
from sdekit.training.times import TimeLaw, resolve_times

#: Numbers (points, components, coordinates) worked on at once.
_BLOCK = 1 << 20
#: Of a panel of x, in units of what an affine prediction would leave.
_TOLERANCE = 1e-11


def minimum_loss(
    target: GaussianMixture,
    process: Process,
    *,
    loss: Any = None,
    times: str | TimeLaw = "stratified",
    labels: int | None = None,
    prediction: str = "noise",
    n: int = 200_000,
    seed: int = 0,
) -> float:
    """The least value of a loss that any network can reach on a mixture, the mean over elements.

    Closed form in x for a Gaussian of any dimension, quadrature (about 1e-9) for a mixture on the line,
    else exact spreads at draws of x_t, whose standard error `minimum_with_error` gives. Over the times
    always quadrature, or the mean over the steps of a chain.

    Args:
        target: law of the data.
        process: forward process.
        loss: `DenoisingLoss()` if not given; any `DenoisingLoss`, or a loss with the same mean as one.
        times: law of times or its name; it names the objective, which is the same for "uniform",
            "stratified" and "importance".
        labels: N where the network knows its time as one of N labels: the mean over the steps of a chain.
        prediction: what the model predicts; of consequence for the weighting "target" alone.
        n: draws of x_t in all, at least 2 a time, where there is no other way.
        seed: of the draws.

    Raises:
        ValueError, TypeError: an argument.
    """
    options = {"times": times, "labels": labels, "prediction": prediction, "n": n, "seed": seed}
    return minimum_with_error(target, process, loss=loss, **options)[0]


def minimum_with_error(
    target: GaussianMixture,
    process: Process,
    *,
    loss: Any = None,
    times: str | TimeLaw = "stratified",
    labels: int | None = None,
    prediction: str = "noise",
    n: int = 200_000,
    seed: int = 0,
) -> tuple[float, float]:
    """`minimum_loss` and its standard error, which is 0 where nothing is drawn."""
    check_target(target)
    chosen, law = denoising(loss), resolve_times(times)
    labels = None if labels is None else check_integer("labels", labels, 1)
    n, generator = check_integer("n", n, 1), generator_of(seed)
    t, weights = law.nodes(process, labels, kinks(chosen, process))
    found, variances = least(target, process, chosen, t, prediction, per_time(n, t), generator)
    return (weights @ found).item(), (weights.square() @ variances).sqrt().item()


def denoising(loss: Any) -> DenoisingLoss:
    """The denoising loss that has the same mean as `loss`; the simple one for None."""
    found = DenoisingLoss() if loss is None else getattr(loss, "denoising", loss)
    if not isinstance(found, DenoisingLoss):
        raise TypeError(
            f"loss must be a DenoisingLoss, or have one of the same mean as .denoising, got {loss!r}"
        )
    return found


def check_target(target: Any) -> None:
    """Raise unless the law of the data is a mixture: of samples nobody knows the least loss."""
    if not isinstance(target, GaussianMixture):
        raise TypeError(f"target must be a GaussianMixture, got {type(target).__name__}")


def kinks(loss: DenoisingLoss, process: Process) -> list[float]:
    """Times at which the loss's weight is not smooth."""
    low, high = (float(process.log_snr(t)) for t in (process.t_max, process.t_min))
    return [float(process.time_at_log_snr(v)) for v in loss.breaks() if low < v < high]


def per_time(n: int, t: Tensor) -> int:
    """Draws at each of the times for about n in all: two or more, so that they have a standard error."""
    return max(2, math.ceil(n / len(t)))


def least(
    target: GaussianMixture,
    process: Process,
    loss: DenoisingLoss,
    t: Tensor,
    prediction: str,
    draws: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """The least loss at each time, weight included, and the variance of the estimate; both (m,)."""

    def spreads(s: Tensor, x_t: Tensor) -> Tensor:
        return marginals(target, process, s, x_t).spread(loss.norm).mean(1)

    if len(target.means) == 1:  # the posterior is as wide at every x
        found = in_blocks(target, spreads, t, target.means.expand(len(t), -1))
    elif target.dim == 1:
        found = _by_quadrature(target, process, loss.norm, t)
    else:
        x_t, each = draw_states(target, process, t, draws, generator)
        found = in_blocks(target, spreads, each, x_t).view(len(t), draws)
    variances = torch.zeros_like(t) if found.ndim == 1 else found.var(1) / draws
    found = found if found.ndim == 1 else found.mean(1)
    factor = torch.as_tensor(loss.factor(process, t, "data", prediction))
    factor = factor if loss.norm == "l2" else factor.sqrt()
    return factor * found, factor.square() * variances


def draw_states(
    target: GaussianMixture,
    process: Process,
    t: Tensor,
    draws: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """x_t (len(t) draws, d), `draws` of them at each time, and their times."""
    each = t.repeat_interleave(draws)
    x0 = target.sample(len(each), generator=generator)
    noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    return process.perturb(x0, each, noise), each


def _by_quadrature(target: GaussianMixture, process: Process, norm: str, t: Tensor) -> Tensor:
    """E over x_t of the spread of x_0 on the line at each time, (m,).

    Panels are no wider than any component that has mass there.
    """
    z, parts = torch.arange(-9, 10, dtype=torch.float64), []
    for s in t.split(max(1, _BLOCK // (8 * len(z) * len(target.means) ** 2))):
        law = [target.at(process, u) for u in s.tolist()]
        cuts = torch.stack([(p.means + p.variances.sqrt() * z).flatten() for p in law])

        def weighted(row: Tensor, x: Tensor, s: Tensor = s) -> Tensor:
            posterior = marginals(target, process, s[row], x[:, None])
            return posterior.log_prob.exp() * posterior.spread(norm)[:, 0]

        scale = _linear(target, process, s) if norm == "l2" else _linear(target, process, s).sqrt()
        parts.append(integrate(weighted, cuts.sort(1).values, _TOLERANCE * scale))
    return torch.cat(parts)


def _linear(target: GaussianMixture, process: Process, t: Tensor) -> Tensor:
    """Mean square error of the best affine prediction of x_0 on the line: no best prediction has more."""
    alpha, sigma = torch.as_tensor(process.alpha(t)), torch.as_tensor(process.sigma(t))
    variance = target.covariance.item()
    return variance * sigma.square() / (alpha.square() * variance + sigma.square())
