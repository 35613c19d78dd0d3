"""Score matching without a target: the divergence of the model at x_t stands for the noise that made x_t.

By parts, E[eps s(x_t)] = sigma E[div s(x_t)] (Hyvarinen 2005), so that with eps_hat = -sigma s

    E |eps - eps_hat|^2 = d + E[|eps_hat|^2 - 2 sigma div eps_hat].

The losses here are the right side over d: their mean is that of `DenoisingLoss()`, model by model, and so are
the minimiser, the least value and the gradient. Their variance is not: x0 and noise enter through x_t alone,
and a loss may be negative.

Derivatives are of the batch, one backward pass a direction: a model must treat its samples one by one (no
batch normalisation in training mode).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdekit.denoisers import Denoiser
from sdekit.errors import check_flag, check_integer
from sdekit.training.losses import DenoisingLoss, reading


@dataclass(frozen=True)
class ImplicitScoreMatching:
    """E[sigma^2 (|s|^2 + 2 div s)] / d + 1, with the exact divergence by d backward passes.

    Hyvarinen 2005, eq. 4, at x_t, weighted by 2 sigma^2 / d and shifted so that its mean is that of
    `DenoisingLoss()`.
    """

    #: The denoising loss with the same mean.
    denoising: ClassVar[DenoisingLoss] = DenoisingLoss()

    def __call__(
        self, model: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, cond: Tensor | None = None
    ) -> Tensor:
        """Loss of each sample, (n,); arguments as for `DenoisingLoss`."""
        d = x0[:1].numel()
        basis = torch.eye(d, dtype=x0.dtype, device=x0.device).view(d, 1, *x0.shape[1:])
        eps, sigma, slopes = _slopes(model, x0, t, noise, cond, basis)
        return 1 + (_dot(eps, eps) - 2 * sigma * slopes.sum(0)) / d


@dataclass(frozen=True)
class SlicedScoreMatching:
    """E[sigma^2 (|s|^2 + 2 v^T grad(v^T s))] / d + 1 for random signs v.  Song et al. 2019.

    Costs one backward pass a projection, whatever the dimension. The divergence is exact where the
    Jacobian of the score is diagonal, so for d = 1.

    Args:
        projections: v a sample, whose mean is taken.
        variance_reduced: |s|^2 as it is; else (v^T s)^2, which has the same mean.
    """

    projections: int = 1
    variance_reduced: bool = True

    #: The denoising loss with the same mean.
    denoising: ClassVar[DenoisingLoss] = DenoisingLoss()

    def __post_init__(self) -> None:
        check_integer("projections", self.projections, 1)
        check_flag("variance_reduced", self.variance_reduced)

    @property
    def probes(self) -> int:
        """Unit normals a sample that the loss is to be given: one a projection."""
        return self.projections

    def __call__(
        self,
        model: Denoiser,
        x0: Tensor,
        t: Tensor,
        noise: Tensor,
        cond: Tensor | None = None,
        *,
        probes: Tensor,
    ) -> Tensor:
        """Loss of each sample, (n,).

        Args:
            model: reads x_t; gradients flow through it.
            x0: clean data (n, *event).
            t: times (n,).
            noise: unit normals of the shape of x0.
            cond: passed to the network as the keyword `cond`.
            probes: unit normals (projections, n, *event), of which the signs are used.
        """
        expected = (self.projections, *x0.shape)
        if probes.shape != expected:
            raise ValueError(f"probes must have shape {expected}, got {tuple(probes.shape)}")
        signs = torch.ones_like(probes).copysign(probes)
        eps, sigma, slopes = _slopes(model, x0, t, noise, cond, signs)
        if self.variance_reduced:
            squares = _dot(eps, eps)
        else:
            squares = torch.stack([_dot(v, eps) for v in signs]).square().mean(0)
        return 1 + (squares - 2 * sigma * slopes.mean(0)) / x0[:1].numel()


def _slopes(
    model: Denoiser,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    cond: Tensor | None,
    directions: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """eps_hat (n, *event), sigma (n,), v^T grad(v^T eps_hat) (m, n) for v of (m, n | 1, *event)."""
    process, recorded = model.process, torch.is_grad_enabled()
    with torch.enable_grad():
        x_t = process.perturb(x0, t, noise).detach().requires_grad_()
        eps = reading(model, "noise", x_t, t, cond)
        slopes = [_dot(v, _gradient((v * eps).sum(), x_t, recorded)) for v in directions]
    sigma = torch.as_tensor(process.sigma(t)).to(x0)
    return (eps if recorded else eps.detach()), sigma, torch.stack(slopes)


def _gradient(value: Tensor, x: Tensor, recorded: bool) -> Tensor:
    """d value / dx, itself differentiable if gradients are recorded."""
    found = None
    if value.requires_grad:
        (found,) = torch.autograd.grad(
            value, x, create_graph=recorded, retain_graph=True, allow_unused=True
        )
    if found is None:
        raise ValueError(
            "model must depend differentiably on x, and its output does not: detached, computed without "
            "gradients, or constant"
        )
    return found


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Scalar product of each sample, (n,)."""
    return (a * b).reshape(len(b), -1).sum(1)
