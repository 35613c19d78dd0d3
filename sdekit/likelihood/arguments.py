"""What the likelihoods have in common: the points, the prior, and a model at rest."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from sdekit.denoisers import Denoiser, evaluating
from sdekit.errors import check_finite


class Prior(Protocol):
    """The law of the latent, such as a `GaussianMixture`."""

    def log_prob(self, x: Tensor, /) -> Tensor:
        """Log density of each row of x (n, *event), in nats: (n,)."""
        ...


def check_points(denoiser: Denoiser, x: Tensor, name: str = "x") -> None:
    """Raise unless this is a denoiser and x a finite float32 or float64 batch (n, *event), n >= 1."""
    if not isinstance(denoiser, Denoiser):
        raise TypeError(
            "denoiser must be a Denoiser such as sk.NetworkDenoiser(network, process), got"
            f" {type(denoiser).__name__}"
        )
    check_finite(name, x)
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name} must be float32 or float64, got {x.dtype}")
    if not (x.ndim and x.numel()):
        raise ValueError(f"{name} must be a batch (n, *event) of n >= 1, got {tuple(x.shape)}")


def check_prior(prior: Any, denoiser: Denoiser) -> Prior:
    """The prior, or that of the process if none is given."""
    if prior is None:
        return denoiser.process.prior
    if not callable(getattr(prior, "log_prob", None)):
        raise TypeError(f"prior must have .log_prob(x), got {type(prior).__name__}")
    return prior


def prior_log_prob(prior: Prior, latent: Tensor) -> Tensor:
    """Log density of the prior at latents (n, *event), its shape checked: (n,)."""
    values = prior.log_prob(latent)
    if not isinstance(values, Tensor) or values.shape != latent.shape[:1]:
        given = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"prior.log_prob must return shape (n,) = ({len(latent)},), got {given}; wrap a torch "
            "distribution in torch.distributions.Independent"
        )
    return values.to(latent)


def widened(x: Tensor) -> Tensor:
    """A copy in float64, where the device has it."""
    return x.detach().to(x.dtype if x.device.type == "mps" else torch.float64, copy=True)


@contextmanager
def unrecorded(denoiser: Denoiser) -> Iterator[None]:
    """Evaluation mode, and no gradients but those asked for inside, also under `torch.inference_mode`."""
    with torch.inference_mode(False), torch.no_grad(), evaluating(denoiser):
        yield
