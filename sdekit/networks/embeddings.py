"""Features of the time that a network can use: sinusoids of fixed or random frequencies.

Sinusoids at geometric periods are the positional encoding of Vaswani et al. (2017, arXiv:1706.03762),
random ones the Fourier features of Tancik et al. (2020, arXiv:2006.10739).
"""

import math

import torch
from torch import Tensor, nn

from sdekit.errors import check_choice, check_integer, check_number, check_seed

KINDS = ("sinusoidal", "fourier")


class SinusoidalEmbedding(nn.Module):
    """Sines and cosines at `dim / 2` periods, geometric from `min_period` to `max_period`.

    The defaults suit a time in [0, 1]: a fast period would only add wiggles to a smooth function. For
    integer labels up to 1,000, `SinusoidalEmbedding(dim, 1e4, 2 * math.pi)` spans the usual range.

    Args:
        dim: number of features, even.
        max_period: the longest period, in units of t.
        min_period: the shortest, at most `max_period`.
    """

    frequencies: Tensor

    def __init__(self, dim: int, max_period: float = 10.0, min_period: float = 0.25) -> None:
        super().__init__()
        self.dim = _even(dim)
        self.max_period = check_number("max_period", max_period, 0.0, open_low=True)
        self.min_period = check_number(
            "min_period", min_period, 0.0, self.max_period, open_low=True
        )
        exponents = torch.linspace(
            math.log(self.min_period), math.log(self.max_period), dim // 2, dtype=torch.float64
        )
        frequencies = (2 * math.pi * torch.exp(-exponents)).to(torch.get_default_dtype())
        self.register_buffer("frequencies", frequencies)

    def forward(self, t: Tensor) -> Tensor:
        """Features (n, dim) of the times (n,)."""
        return _waves(t, self.frequencies)


class FourierEmbedding(nn.Module):
    """Sines and cosines at `dim / 2` normal frequencies of standard deviation `scale`.

    The frequencies come from a generator of their own and are part of the state dict.

    Args:
        dim: number of features, even.
        scale: standard deviation of the frequencies, in cycles per unit of t.
        seed: of the frequencies.
    """

    frequencies: Tensor

    def __init__(self, dim: int, scale: float = 0.5, seed: int = 0) -> None:
        super().__init__()
        self.dim = _even(dim)
        self.scale = check_number("scale", scale, 0.0, open_low=True)
        self.seed = check_seed(check_integer("seed", seed, 0))
        generator = torch.Generator().manual_seed(seed)
        draws = torch.randn(dim // 2, generator=generator, dtype=torch.float64)
        frequencies = (2 * math.pi * self.scale * draws).to(torch.get_default_dtype())
        self.register_buffer("frequencies", frequencies)

    def forward(self, t: Tensor) -> Tensor:
        """Features (n, dim) of the times (n,)."""
        return _waves(t, self.frequencies)


class TimeFeatures(nn.Module):
    """What the networks here see of the time: an embedding of t and of a stretched t, and both raw.

    The exact noise moves like sqrt(t) near t = 0, which no slow sinusoid resolves. The second copy
    reads u = asinh(t / 1e-3) / asinh(1e3): linear below 1e-3, logarithmic above, smooth, odd, and
    within [0, 1] with t, so that log-SNRs and labels pass as well, after `scale`.

    Args:
        kind: "sinusoidal" or "fourier".
        dim: features of each embedding, even.
        scale: multiplies t first; 1e-3 for labels up to 1,000, 0.05 for a log-SNR.
    """

    KNEE = 1e-3

    def __init__(self, kind: str = "sinusoidal", dim: int = 16, scale: float = 1.0) -> None:
        super().__init__()
        check_choice("embedding", kind, KINDS)
        dim = _even(dim, "embedding_dim")
        self.embedding = SinusoidalEmbedding(dim) if kind == "sinusoidal" else FourierEmbedding(dim)
        self.scale = check_number("time_scale", scale, 0.0, open_low=True)
        self.features = 2 * dim + 2

    def forward(self, t: Tensor) -> Tensor:
        """Features (n, `features`) of the times (n,)."""
        t = self.scale * t
        u = torch.asinh(t / self.KNEE) / math.asinh(1.0 / self.KNEE)
        return torch.cat([self.embedding(t), self.embedding(u), t[:, None], u[:, None]], dim=-1)


def check_times(t: Tensor, x: Tensor) -> Tensor:
    """`t` in x's dtype, if its shape is (n,) or (1,) for a batch x of n."""
    if t.ndim != 1 or t.shape[0] not in (1, x.shape[0]):
        raise ValueError(
            f"t must have shape (n,) or (1,) for a batch of n = {x.shape[0]}, got {tuple(t.shape)}"
        )
    return t.to(x.dtype)


def flat_events(x: Tensor, dim: int) -> Tensor:
    """x (n, *event) as (n, dim), if an event has that many numbers."""
    if x.ndim < 1 or math.prod(x.shape[1:]) != dim:
        raise ValueError(
            f"x must have shape (n, *event) with {dim} numbers in an event (dim), "
            f"got {tuple(x.shape)}"
        )
    return x.reshape(x.shape[0], dim)


def _even(dim: int, name: str = "dim") -> int:
    if check_integer(name, dim, 2) % 2:
        raise ValueError(f"{name} must be even (sines and cosines), got {dim}")
    return dim


def _waves(t: Tensor, frequencies: Tensor) -> Tensor:
    if t.ndim != 1:
        raise ValueError(f"t must have shape (n,), got {tuple(t.shape)}")
    angles = t[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
