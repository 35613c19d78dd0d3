"""How far a model is from being the score of a diffusion: three identities that need no samples of the data.

The score s = grad log p_t of any data carried by dx = f x dt + g dW
  - moves with the Fokker-Planck equation, d_t s = grad [(g^2 / 2) (div s + |s|^2) - f <x, s>]
    (Lai et al. 2023, "FP-Diffusion: improving score-based diffusion models by enforcing the underlying score
    Fokker-Planck equation"; affine drift, whose divergence has no gradient);
  - is a gradient: its Jacobian is symmetric;
  - makes (sigma^2 / alpha) d E[x_0 | x] / dx the posterior covariance: symmetric, positive semi-definite
    (Tweedie's formula of second order).

A trained network fulfils none of them exactly. They are diagnostics, not measures of quality: a score of
other data, or of no interest, may fulfil them all, and a smaller residual need not mean better samples.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap

from sdekit.denoisers import Denoiser
from sdekit.elementary import widest
from sdekit.errors import check_choice, check_finite, generator_of
from sdekit.processes import expand
from sdekit.training.losses import labels_of

Trace = Literal["auto", "exact", "probes"]
Field = Callable[[Tensor], Tensor]

#: Up to this dimension "auto" takes every coordinate direction.
EXACT = 64
#: (samples, directions) and (samples, directions, coordinates) worked on at once.
_ROWS, _NUMBERS = 4096, 1 << 16


@dataclass(frozen=True, eq=False)
class ScoreResidual:
    """What is left of the score's Fokker-Planck equation, d_t s - grad [...].

    Attributes:
        residual: (n, *event); with probes the mean of two independent unbiased estimates.
        squared_norm: |residual|^2 of each sample, (n,); with probes the product of the two estimates, which
            is unbiased and may be negative (the square of one estimate is too large by its variance).
        time_derivative: d_t s, (n, *event).
    """

    residual: Tensor
    squared_norm: Tensor
    time_derivative: Tensor

    def __repr__(self) -> str:
        return f"ScoreResidual({len(self.residual)} samples, relative={self.relative:.3g})"

    @property
    def relative(self) -> float:
        """rms |residual| / rms |d_t s| over the batch, which should share its time: r grows as sigma^-3."""
        ratio = self.squared_norm.sum().clamp(min=0) / self.time_derivative.square().sum()
        return ratio.sqrt().item()


def score_fpe_residual(
    denoiser: Denoiser, x: Tensor, t: float | Tensor, *, trace: str = "auto", seed: int | None = 0
) -> ScoreResidual:
    """The residual of the score Fokker-Planck equation at each sample.

    All derivatives are automatic, d_t s by forward mode through the model. Gradients reach the parameters, so
    the residual can serve as a penalty; call it under `torch.no_grad()` for the numbers alone.

    Args:
        denoiser: any model whose `score` is differentiable in x and t.
        x: (n, *event), floating point; best drawn from p_t.
        t: a time, or (n,) times, in [t_min, t_max].
        trace: "exact" takes the trace of div s over all d directions; "probes" estimates it by two Rademacher
            probes a sample; "auto" is exact up to d = 64.
        seed: of the probes.

    Raises:
        ValueError: a network that knows its time as a label has no derivative in t; an argument out of range.
    """
    x, t = _checked(denoiser, x, t)
    if labels_of(denoiser) is not None:
        raise ValueError(
            'denoiser has time="label": its score is a step function of t and has no time derivative; the'
            " residual needs a network of a continuous time"
        )
    groups = _directions(x, trace, seed)
    blocks = [_residual(denoiser, *block) for block in _blocks(x, t, groups)]
    return ScoreResidual(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))


def curl_ratio(
    denoiser: Denoiser, x: Tensor, t: float | Tensor, *, trace: str = "auto", seed: int | None = 0
) -> float:
    """E |J - J^T|^2 / (4 E |J|^2) of the Jacobian J of the score (Frobenius norms, means over the batch).

    0 for a gradient field, 1 for an antisymmetric J, 1/2 on average for independent entries of mean 0.

    Args:
        denoiser: any model whose `score` is differentiable in x.
        x: (n, *event), floating point; best drawn from p_t.
        t: a time, or (n,) times, in [t_min, t_max].
        trace: "exact" takes all d columns of J; "probes" estimates both norms without bias by |J e - J^T e|^2
            and (|J e|^2 + |J^T e|^2) / 2 with two Rademacher probes a sample; "auto" is exact up to d = 64.
        seed: of the probes.

    Returns:
        The ratio, in [0, 1]; NaN where J = 0.

    Raises:
        ValueError: an argument out of range.
    """
    x, t = _checked(denoiser, x, t)
    antisymmetric, total = 0.0, 0.0
    with torch.no_grad():
        for y, u, groups in _blocks(x, t, _directions(x, trace, seed)):
            score, directions = _field(denoiser.score, u), groups.flatten(0, 1)
            forward = _along(score, y, directions)
            backward = vmap(vjp(score, y)[1])(directions)[0]
            antisymmetric += (forward - backward).square().sum().item()
            total += 2 * (forward.square() + backward.square()).sum().item()
    return antisymmetric / total if total else math.nan


@dataclass(frozen=True, eq=False)
class TweedieCheck:
    """What a model says the covariance of x_0 given x_t is.

    Attributes:
        covariance: (sigma^2 / alpha) d E[x_0 | x_t] / dx_t as it comes, (n, d, d).
        eigenvalues: of its symmetric part, ascending, (n, d).
        asymmetry: |C - C^T| / (2 |C|) of each sample, Frobenius norms, in [0, 1]; (n,).
    """

    covariance: Tensor
    eigenvalues: Tensor
    asymmetry: Tensor

    def __repr__(self) -> str:
        return (
            f"TweedieCheck({len(self.covariance)} samples, smallest eigenvalue {self.smallest.min():.3g},"
            f" asymmetry up to {self.asymmetry.max():.3g})"
        )

    @property
    def smallest(self) -> Tensor:
        """Smallest eigenvalue of each sample, (n,); no covariance has a negative one."""
        return self.eigenvalues[:, 0]

    @property
    def negative(self) -> float:
        """Share of the samples with an eigenvalue below -1e-6 of the largest in size."""
        return (self.smallest < -1e-6 * self.eigenvalues.abs().amax(1)).double().mean().item()


def tweedie_check(denoiser: Denoiser, x: Tensor, t: float | Tensor) -> TweedieCheck:
    """The posterior covariance in a model's Jacobian: Cov[x_0 | x_t] = (sigma^2 / alpha) dD/dx.

    D(x) = E[x_0 | x_t = x]; the identity is Tweedie's formula of second order. The covariance of an exact
    mixture is `mixture.posterior(process, x, t).covariance`.

    Args:
        denoiser: any model whose `data` is differentiable in x.
        x: (n, *event), floating point, of d numbers an event; all d columns are computed.
        t: a time, or (n,) times, in [t_min, t_max].

    Raises:
        ValueError: an argument out of range.
    """
    x, t = _checked(denoiser, x, t)
    with torch.no_grad():
        blocks = [
            _jacobian(_field(denoiser.data, u), y, groups[0])
            for y, u, groups in _blocks(x, t, _directions(x, "exact", None))
        ]
        alpha, sigma = (
            torch.as_tensor(c).to(x) for c in (denoiser.process.alpha(t), denoiser.process.sigma(t))
        )
        covariance = (sigma * sigma / alpha)[:, None, None] * torch.cat(blocks)
        size, skew = (m.flatten(1).norm(dim=1) for m in (covariance, covariance - covariance.mT))
        eigenvalues = torch.linalg.eigvalsh((covariance + covariance.mT) / 2)
    return TweedieCheck(covariance, eigenvalues, skew / (2 * size))


def _residual(
    denoiser: Denoiser, x: Tensor, t: Tensor, groups: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Residual, its squared norm and d_t s; one estimate of div s for each group of directions."""
    f, g2 = (expand(c, x) for c in denoiser.process.rates(t))
    score = _field(denoiser.score, t)

    def local(y: Tensor) -> Tensor:
        s = score(y)
        return (g2 / 2 * s * s - f * y * s).sum()

    def divergence(y: Tensor, directions: Tensor) -> Tensor:
        return (g2 / 2 * (directions * _along(score, y, directions))).sum()

    moved = jvp(lambda u: denoiser.score(x, u), (t,), (torch.ones_like(t),))[1]
    known = moved - grad(local)(x)
    found = [known - grad(divergence)(x, directions) for directions in groups]
    squared = (found[0] * found[-1]).reshape(len(x), -1).sum(1)
    return (found[0] + found[-1]) / 2, squared, moved


def _jacobian(function: Field, x: Tensor, basis: Tensor) -> Tensor:
    """d function_i / dx_j of each sample, (n, d, d)."""
    return _along(function, x, basis).flatten(2).permute(1, 2, 0)


def _along(function: Field, x: Tensor, directions: Tensor) -> Tensor:
    """Derivatives of a function at x along directions (m, n, *event), in one vectorised pass."""
    return vmap(lambda e: jvp(function, (x,), (e,))[1])(directions)


def _field(reading: Callable[[Tensor, Tensor], Tensor], t: Tensor) -> Field:
    """A reading of the model at fixed times."""
    return lambda y: reading(y, t)


def _directions(x: Tensor, trace: str, seed: int | None) -> Tensor:
    """Directions in groups (groups, m, n, *event): one of all coordinates, or two of one probe."""
    d = x[:1].numel()
    check_choice("trace", trace, get_args(Trace))
    generator = generator_of(seed)
    if trace == "exact" or (trace == "auto" and d <= EXACT):
        basis = torch.eye(d, dtype=x.dtype, device=x.device).view(1, d, 1, *x.shape[1:])
        return basis.expand(1, d, *x.shape)
    signs = torch.randint(2, (2, 1, *x.shape), generator=generator)
    return (2 * signs - 1).to(x)


def _blocks(x: Tensor, t: Tensor, groups: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Samples, times and directions of as many samples as are worked on at once."""
    rows = max(1, min(_ROWS, _NUMBERS // x[:1].numel()) // groups.shape[1])
    return zip(x.split(rows), t.split(rows), groups.split(rows, dim=2), strict=True)


def _checked(denoiser: Denoiser, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
    """A batch of at least one sample, and a time for each, in float64 where the device has it."""
    if not isinstance(denoiser, Denoiser):
        raise TypeError(f"denoiser must be a Denoiser, got {type(denoiser).__name__}")
    check_finite("x", x)
    if x.ndim == 0 or not x.numel():
        raise ValueError(f"x must be a batch (n, *event) of n >= 1, got shape {tuple(x.shape)}")
    denoiser.process.check_readable(t)
    wide = widest(x.device)
    clock = torch.as_tensor(t, dtype=wide, device=x.device).detach()
    if clock.ndim and clock.shape != x.shape[:1]:
        raise ValueError(f"t must be a number or have shape ({len(x)},), got {tuple(clock.shape)}")
    clock = clock.expand(len(x)).contiguous()
    denoiser.process.check_readable(clock)
    x = x.detach().contiguous()
    _check_differentiable(denoiser, x[:2], clock[:2])
    return x, clock


def _check_differentiable(denoiser: Denoiser, x: Tensor, t: Tensor) -> None:
    """Raise if the output is cut off from x: its derivatives would be zeros, and look like results."""
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        out = denoiser.predict(x, t)
        cut = (
            not out.requires_grad or torch.autograd.grad(out.sum(), x, allow_unused=True)[0] is None
        )
    if cut:
        raise ValueError(
            "denoiser must depend differentiably on x, and its output does not: detached, computed without"
            " gradients, or constant"
        )
