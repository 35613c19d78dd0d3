"""Four problems with known endpoints, for benchmarks of deterministic samplers.

Each is an exact mixture, a process, fixed starts x ~ N(0, I) at t = 1 and where the probability flow takes
them at t = 1e-3: by the quantile map on the line, elsewhere by an eighth-order Runge-Kutta solve with the
exact score at a tolerance of 1e-12. Solved endpoints are kept under `runs/` (they take minutes).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

import sdekit as sk

PROCESS = sk.VP(beta_min=0.1, beta_max=20.0)
T_START, T_END = 1.0, 1e-3
CACHE = Path(__file__).resolve().parent.parent / "runs" / "problems"
F64 = torch.float64


def ring() -> sk.GaussianMixture:
    """Eight narrow bells around a circle of radius 1.4, their weights proportional to 1, ..., 8."""
    angle = 2 * math.pi * torch.arange(8, dtype=F64) / 8
    means = 1.4 * torch.stack([angle.cos(), angle.sin()], 1)
    return sk.GaussianMixture(torch.arange(1, 9, dtype=F64), means, 0.07)


def anisotropic(dim: int, components: int = 10, seed: int = 0) -> sk.GaussianMixture:
    """A random mixture: unit-variance means, stds spread over [0.1, 0.6] along random axes."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(components, dim, generator=generator, dtype=F64)
    stds = 0.1 + 0.5 * torch.rand(components, dim, generator=generator, dtype=F64)
    axes = torch.linalg.qr(torch.randn(components, dim, dim, generator=generator, dtype=F64)).Q
    weights = 0.5 + torch.rand(components, generator=generator, dtype=F64)
    covariances = axes @ torch.diag_embed(stds.square()) @ axes.mT
    return sk.GaussianMixture(weights, means, covariances=covariances)


@dataclass(frozen=True)
class Problem:
    """A target, how many starts, and their endpoints."""

    name: str
    make: Callable[[], sk.GaussianMixture]
    n: int = 4096

    @cached_property
    def target(self) -> sk.GaussianMixture:
        """The data."""
        return self.make()

    @cached_property
    def model(self) -> sk.Denoiser:
        """Its exact denoiser."""
        return self.target.denoiser(PROCESS)

    @cached_property
    def starts(self) -> Tensor:
        """The fixed starts at t = 1, (n, d) float64; fewer are the first of more."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.n, self.target.dim, generator=generator, dtype=F64)

    @cached_property
    def endpoints(self) -> Tensor:
        """Where the flow takes the starts at t = 1e-3, (n, d)."""
        if self.target.dim == 1:
            start, end = (self.target.at(PROCESS, t) for t in (T_START, T_END))
            return end.quantile(start.cdf(self.starts))
        path = CACHE / f"{self.name}-{self.n}.pt"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(solve(self.model, self.starts), path)
        return torch.load(path, weights_only=True)


def solve(model: sk.Denoiser, starts: Tensor, tolerance: float = 1e-12) -> Tensor:
    """The flow of PROCESS from t = 1 to 1e-3 by DOP853 in the half log-SNR, in which it is smooth.

    For a variance-preserving process dx / d lambda = alpha (E[x_0 | x] - alpha x).
    """
    from scipy.integrate import solve_ivp

    def slope(half_log_snr: float, flat: Tensor) -> Tensor:
        t = float(PROCESS.time_at_log_snr(2 * half_log_snr))
        alpha, x = PROCESS.alpha(t), torch.from_numpy(flat).view(starts.shape)
        return (alpha * (model.data(x, t) - alpha * x)).flatten().numpy()

    span = [PROCESS.log_snr(t) / 2 for t in (T_START, T_END)]
    run = solve_ivp(
        slope, span, starts.flatten().numpy(), "DOP853", [span[1]], rtol=tolerance, atol=tolerance
    )
    if not run.success:
        raise RuntimeError(f"the reference solve failed: {run.message}")
    return torch.from_numpy(run.y[:, -1].copy()).view(starts.shape)


PROBLEMS = (
    Problem("two-mode", sk.data.two_mode),
    Problem("ring", ring),
    Problem("mixture-16d", lambda: anisotropic(16)),
    Problem("mixture-64d", lambda: anisotropic(64), n=512),
)
