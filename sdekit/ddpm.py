"""The discrete chain as Ho et al. write it, and its bridge to the VP process and back.

x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) z (Ho et al. 2020, eq. 2). Indices are 0-based: `betas[i]` leads
to the state at t = (i + 1) / N, whose alpha_bar is `alphas_bar[i]` and whose network label is i.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from sdekit.denoisers import Denoiser
from sdekit.errors import check_integer, check_number
from sdekit.processes import VP
from sdekit.sampling import Ancestral, Samples, sample
from sdekit.schedules import check_beta_table


def linear_betas(n: int = 1000, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """Equally spaced betas.  Ho et al. 2020, section 4 (1e-4 to 0.02, N = 1000)."""
    n = check_integer("n", n, 1)
    return torch.linspace(first, last, n, dtype=torch.float64)


def quadratic_betas(n: int = 1000, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """Equally spaced square roots of betas ("quad" in the code of Song, Meng & Ermon 2021)."""
    return linear_betas(n, math.sqrt(first), math.sqrt(last)).square()


def sigmoid_betas(
    n: int = 40, first: float = 1e-5, last: float = 0.3, start: float = -18.0, end: float = 10.0
) -> Tensor:
    """first + (last - first) sigmoid(l) with l from start to end (the 2015 swiss roll: N = 40)."""
    return first + (last - first) * torch.sigmoid(linear_betas(n, start, end))


def cosine_betas(n: int = 1000, s: float = 0.008, largest: float = 0.999) -> Tensor:
    """1 - alpha_bar(t_{i+1}) / alpha_bar(t_i), clipped.  Nichol & Dhariwal 2021, eq. 17."""
    n = check_integer("n", n, 1)
    check_number("s", s, 0)
    u = (torch.linspace(0, 1, n + 1, dtype=torch.float64) + s) / (1 + s) * (math.pi / 2)
    alphas_bar = torch.cos(u).square()
    return (1 - alphas_bar[1:] / alphas_bar[:-1]).clamp(max=largest)


def betas_from_alphas_bar(alphas_bar: Tensor | Iterable[float]) -> Tensor:
    """The betas whose chain has these alpha_bar: strictly decreasing, in (0, 1); a last 0 is kept.

    Raises:
        ValueError: not a decreasing sequence in (0, 1).
    """
    values = torch.as_tensor(
        alphas_bar if isinstance(alphas_bar, Tensor) else list(alphas_bar), dtype=torch.float64
    )
    if values.ndim != 1 or not len(values):
        raise ValueError(f"alphas_bar must be a non-empty vector, got {tuple(values.shape)}")
    full = torch.cat([torch.ones(1, dtype=torch.float64), values])
    if not bool((full.diff() < 0).all()) or values[-1] < 0:
        raise ValueError("alphas_bar must decrease strictly from below 1 and stay >= 0")
    return 1 - full[1:] / full[:-1]


def rescale_zero_terminal_snr(betas: Tensor | Iterable[float]) -> Tensor:
    """Betas with the same alpha_bar_1 and alpha_bar_N = 0 (a last beta of 1).  Lin et al. 2023, algorithm 1.

    The model of such a chain must predict data or v: noise says nothing about the data at the last step.
    """
    root = torch.cumprod(1 - check_beta_table(betas), 0).sqrt()
    if len(root) == 1:
        raise ValueError("betas must have two steps or more: alpha_bar_1 is kept, alpha_bar_N is 0")
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return betas_from_alphas_bar(root.square())


class DDPM:
    """The chain of N betas.

    Args:
        betas: (N,), each in (0, 1); they need not increase.
        zero_terminal_snr: admit a last beta of exactly 1.

    Attributes:
        betas, alphas_bar: float64 (N,).
        process: the VP process whose law at t = (i + 1) / N is exactly the chain's after step i.
    """

    def __init__(self, betas: Tensor | Iterable[float], *, zero_terminal_snr: bool = False) -> None:
        self.betas = check_beta_table(betas, zero_terminal_snr)
        self.process = VP.from_betas(self.betas, zero_terminal_snr=zero_terminal_snr)
        #: log alpha_bar is summed, never multiplied up: 1 - alpha_bar keeps its digits at i = 0.
        self.log_alphas_bar = torch.log1p(-self.betas).cumsum(0)
        self.alphas_bar = self.log_alphas_bar.exp()

    def __len__(self) -> int:
        return len(self.betas)

    def __repr__(self) -> str:
        return f"DDPM({len(self)} betas, {self.betas[0]:g} to {self.betas[-1]:g})"

    def times(self) -> list[float]:
        """The N + 1 times of the chain, from 1 down to 0."""
        return [i / len(self) for i in range(len(self), -1, -1)]

    def q_sample(self, x0: Tensor, i: int | Tensor, noise: Tensor) -> Tensor:
        """x after step i: sqrt(alpha_bar_i) x0 + sqrt(1 - alpha_bar_i) noise.  Ho et al. 2020, eq. 4.

        Args:
            x0: (n, *event).
            i: 0 .. N - 1, a number or integers (n,).
            noise: unit normals of the shape of x0.
        """
        _check_pair("noise", noise, x0)
        logs = self._at(self.log_alphas_bar, i, x0)
        return (0.5 * logs).exp().to(x0) * x0 + (-torch.expm1(logs)).sqrt().to(x0) * noise

    def posterior(self, x0: Tensor, xt: Tensor, i: int | Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (beta-tilde) of q(x_{i-1} | x_i, x_0).  Ho et al. 2020, eq. 7."""
        _check_pair("xt", xt, x0)
        log_bar = self._at(self.log_alphas_bar, i, x0)
        previous = torch.cat([torch.zeros(1, dtype=torch.float64), self.log_alphas_bar[:-1]])
        log_previous, beta = self._at(previous, i, x0), self._at(self.betas, i, x0)
        noise, noise_before = -torch.expm1(log_bar), -torch.expm1(log_previous)
        on_x0 = (0.5 * log_previous).exp() * beta / noise
        on_xt = (1 - beta).sqrt() * noise_before / noise
        return on_x0.to(x0) * x0 + on_xt.to(xt) * xt, (beta * noise_before / noise).to(xt)

    def sample(
        self,
        denoiser: Denoiser,
        shape: Sequence[int],
        *,
        variance: str = "beta_tilde",
        **keywords: Any,
    ) -> Samples:
        """Ancestral sampling through every step of the chain, x_N to x_0.  Ho et al. 2020, algorithm 2.

        Args:
            denoiser: a model on `self.process`.
            shape: (n, *event).
            variance: "beta_tilde" (the posterior's) or "beta".
            keywords: as for `sdekit.sample` (seed, chunk, progress, ...).
        """
        if not isinstance(denoiser, Denoiser):
            raise TypeError(f"denoiser must be a Denoiser, got {type(denoiser).__name__}")
        if denoiser.process != self.process:
            raise ValueError(f"denoiser must be on {self.process!r}, it is on {denoiser.process!r}")
        return sample(denoiser, shape, sampler=Ancestral(variance), grid=self.times(), **keywords)

    def _at(self, table: Tensor, i: int | Tensor, x: Tensor) -> Tensor:
        """Entries of a table shaped to multiply x."""
        if isinstance(i, Tensor):
            if i.is_floating_point() or i.dtype == torch.bool:
                raise TypeError(f"i must be integer indices, got {i.dtype}")
            if i.ndim and i.shape != x.shape[:1]:
                raise ValueError(f"i must have shape ({len(x)},), got {tuple(i.shape)}")
            low, high = (int(i.min()), int(i.max())) if i.numel() else (0, 0)
        else:
            low = high = check_integer("i", i, 0)
        if low < 0 or high >= len(self):
            raise ValueError(f"i must lie in 0 .. {len(self) - 1}, got {low} .. {high}")
        entries = table.to(x.device)[i]
        return entries.view(-1, *[1] * (x.ndim - 1)) if entries.ndim else entries


def _check_pair(name: str, x: Tensor, x0: Tensor) -> None:
    if not x0.is_floating_point():
        raise TypeError(f"x0 must be floating point, got {x0.dtype}; scale it to float")
    if x.shape != x0.shape:
        raise ValueError(
            f"{name} must have the shape of x0, {tuple(x0.shape)}, got {tuple(x.shape)}"
        )
