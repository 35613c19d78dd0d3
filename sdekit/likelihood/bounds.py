"""The variational bound on the likelihood of the reverse SDE."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit.denoisers import Denoiser
from sdekit.elementary import sigmoid, softplus
from sdekit.errors import check_integer, check_seed
from sdekit.likelihood.arguments import (
    Prior,
    check_points,
    check_prior,
    prior_log_prob,
    unrecorded,
    widened,
)
from sdekit.processes import GaussianPrior, Process, expand
from sdekit.sampling.engine import require_finite
from sdekit.sampling.front_door import check_cond, fitting
from sdekit.sampling.noise import BlockNormals, derived_seed


@dataclass(frozen=True, eq=False)
class Elbo:
    """A lower bound on the log density of each of n points at time 0.

    Attributes:
        value: estimates of the bound, in nats, (n,) float64.
        stderr: their standard errors, (n,); somewhat too large, by what neighbouring times differ.
        nfe: model calls a point cost.
    """

    value: Tensor
    stderr: Tensor
    nfe: int

    def __repr__(self) -> str:
        mean = self.value.mean().item()
        return f"Elbo(n={len(self.value)}, mean={mean:.6g} nats, nfe={self.nfe})"


def elbo(
    denoiser: Denoiser,
    x: Tensor,
    *,
    samples: int = 64,
    prior: Prior | None = None,
    cond: Tensor | None = None,
    seed: int = 0,
    chunk: int | None = None,
) -> Elbo:
    """A lower bound on log p_0 of points under the reverse SDE.  Song et al. 2021b, theorem 3.

    The model is the prior, the reverse SDE down to t_min, and a last Gaussian step
    N(E[x_0 | x_t], (sigma / alpha)^2 I) there. In terms of the noise that the model predicts,

        -log p_0(x) <= E[-log prior(x_T)] - H(sigma_T) + (1/2) integral E|eps - eps_hat|^2 d log_snr
                       + (1/2) E|eps - eps_hat|^2 at t_min + (d/2) log(2 pi sigma^2 / alpha^2) at t_min

    with H(s) the entropy of N(0, s^2 I) (the bound of Kingma et al. 2021 is the same). It is tight, up to
    the last step (of the order of sigma(t_min)^2), where the score is that of some diffused law q whose
    end is the prior: it is then log q(x), point by point. Of other models it bounds the density of the
    reverse SDE; that of the probability flow, which `log_likelihood` gives, is another and may lie below.

    Args:
        denoiser: exact or trained.
        x: points (n, *event), float32 or float64, n >= 1.
        samples: times a point, even: uniform in log-SNR, one from each of `samples` equal parts. Each costs
            two model calls, at opposite noises.
        prior: anything with `.log_prob(x)` of float64 latents (n, *event); the process's own if not given.
        cond: one row a sample, passed to the network as the keyword `cond`.
        seed: of times and noises; a sample's are a function of it and of its place in x.
        chunk: samples worked on together; if not given at most 16,384, fewer where an event is large.

    Raises:
        ValueError, TypeError: an argument.
        NumericsError: the model gave NaN or infinity; the message says at which time.
    """
    check_points(denoiser, x)
    if check_integer("samples", samples, 2) % 2:
        raise ValueError(f"samples must be even, got {samples}")
    seed = check_integer("seed", check_seed(seed), 0)
    check_cond(cond, len(x))
    prior = check_prior(prior, denoiser)
    chunk = fitting(tuple(x.shape[1:])) if chunk is None else check_integer("chunk", chunk, 1)
    values, spreads = [], []
    with unrecorded(denoiser):
        for first in range(0, len(x), chunk):
            rows = x[first : first + chunk]
            given = {} if cond is None else {"cond": cond[first : first + chunk].to(x.device)}
            terms = _Terms(denoiser, prior, rows, given, seed, first, samples)
            parts = torch.stack([terms.part(j) for j in range(samples)])
            values.append(-(terms.constant() + parts.mean(0)))
            # Two neighbouring parts differ by their noise and by hardly more.
            spreads.append((parts[::2] - parts[1::2]).square().sum(0).sqrt() / samples)
    return Elbo(torch.cat(values), torch.cat(spreads), 2 * samples)


class _Terms:
    """The parts of the bound on -log p_0, for one chunk of samples."""

    def __init__(
        self,
        denoiser: Denoiser,
        prior: Prior,
        x: Tensor,
        conditions: dict[str, Tensor],
        seed: int,
        first: int,
        samples: int,
    ) -> None:
        self.denoiser, self.prior, self.dtype, self.samples = denoiser, prior, x.dtype, samples
        # Every row twice, for a noise and its opposite.
        self.conditions = {name: torch.cat([rows, rows]) for name, rows in conditions.items()}
        self.x = widened(x)
        self.d, process = x[0].numel(), denoiser.process
        #: At t_max and t_min.
        self.log_snr = float(process.log_snr(process.t_max)), float(process.log_snr(process.t_min))

        def normals(purpose: str, event: tuple[int, ...]) -> BlockNormals:
            last, own = first + len(x), derived_seed(seed, purpose)
            return BlockNormals(own, first, last, event, self.x.dtype, x.device, total=samples)

        self.noise = normals("noise of a bound", tuple(x.shape[1:]))
        self.place = normals("times of a bound", ())

    def constant(self) -> Tensor:
        """What needs no chance, (n,): entropies, a Gaussian prior, and the integral for unit normal data."""
        process, d = self.denoiser.process, self.d
        alpha, sigma = float(process.alpha(process.t_min)), float(process.sigma(process.t_min))
        alpha_end, sigma_end, std = self._end()
        squares = self.x.square().reshape(len(self.x), -1).sum(1)
        total = d * (math.log(sigma / alpha / sigma_end) - 0.5) + self._unit_normal(squares)
        if std is not None:
            total = total + (alpha_end**2 * squares + d * sigma_end**2) / (2 * std**2)
            total = total + d * math.log(std * math.sqrt(2 * math.pi))
        return total

    def _unit_normal(self, squares: Tensor) -> Tensor:
        """What the mean of the parts would add if the model were that of N(0, I), for |x|^2 of shape (n,).

        Then E|eps - eps_hat|^2 = p^2 d + p (1 - p) |x|^2 with p = alpha^2 / (alpha^2 + sigma^2), which is the
        sigmoid of the log-SNR and has the derivative p (1 - p).
        """
        (low, p), (high, q) = ((v, float(sigmoid(v))) for v in self.log_snr)
        flat = float(softplus(high)) - float(softplus(low)) - (q - p)
        return 0.5 * (self.d * (flat + q * q) + squares * (q - p + q * (1 - q)))

    def part(self, j: int) -> Tensor:
        """Estimates of the rest from the j-th part of the log-SNR, whose mean over j is the rest: (n,)."""
        process, (low, high) = self.denoiser.process, self.log_snr
        # The last step to time 0 has the weight that one unit of log-SNR at t_min would have.
        width = high - low + 1
        place = (j + torch.special.ndtr(self.place(j))) / self.samples
        t = _times(process, low + width * place, high)
        alpha, sigma = (expand(c, self.x) for c in (process.alpha(t), process.sigma(t)))
        eps = self.noise(j)
        errors = self._errors(alpha * self.x, sigma * eps, eps, t)
        # Less what the model of N(0, I) would have here: its mean is known, and is in the constant.
        p = alpha**2 / (alpha**2 + sigma**2)
        known = p * (p * eps.square() + (1 - p) * self.x.square())
        errors = errors - known.reshape(len(eps), -1).sum(1)
        return 0.5 * width * errors + self._prior(eps)

    def _errors(self, centre: Tensor, shift: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """|eps - eps_hat|^2, the mean over a noise and its opposite, (n,)."""
        both = torch.cat([centre + shift, centre - shift]).to(self.dtype)
        twice = torch.cat([t, t])
        found = self.denoiser.noise(both, twice, **self.conditions)
        require_finite(found, twice, 1, self.denoiser.process)
        away = found.to(self.x) - torch.cat([eps, -eps])
        return away.square().reshape(2, len(eps), -1).sum(2).mean(0)

    def _prior(self, eps: Tensor) -> Tensor | float:
        """E[-log prior(x_T)] where it has no closed form."""
        alpha, sigma, std = self._end()
        if std is not None:
            return 0.0
        ends = torch.cat([alpha * self.x + sigma * eps, alpha * self.x - sigma * eps])
        return -prior_log_prob(self.prior, ends).reshape(2, -1).mean(0)

    def _end(self) -> tuple[float, float, float | None]:
        """alpha and sigma at t_max, and the prior's standard deviation if it is N(0, std^2 I)."""
        process = self.denoiser.process
        std = self.prior.std if isinstance(self.prior, GaussianPrior) else None
        return float(process.alpha(process.t_max)), float(process.sigma(process.t_max)), std


def _times(process: Process, log_snr: Tensor, highest: float) -> Tensor:
    """The times of these log-SNR, t_min above the highest."""
    t = torch.as_tensor(process.time_at_log_snr(log_snr.clamp(max=highest)))
    return t.clamp(process.t_min, process.t_max)
