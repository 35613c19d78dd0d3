"""Nats to bits per dimension, and the noise that makes levels continuous."""

import math
import warnings

import torch
from torch import Tensor

from sdekit.errors import check_flag, check_integer, check_number, generator_of


def bits_per_dim(
    logp: Tensor | float,
    dims: int,
    *,
    dequantised: bool,
    levels: int | None = 256,
    scale: float = 1.0,
) -> Tensor:
    """Bits per dimension of log densities in nats: -logp / (d log 2) + log2(levels) - log2(scale).

    The density is that of x = scale u + b, with u = (level + noise) / levels in [0, 1) from `dequantise`:
    the offset is 8 - log2(scale) for 256 levels, 8 for x in [0, 1], 7 for x in [-1, 1]. The mean over data is
    then an upper bound on the bits that the model spends on the levels themselves (Theis et al. 2016,
    section 3.1), and at least 0.

    Args:
        logp: log densities, of any shape.
        dims: numbers in an event, d.
        dequantised: that uniform noise as wide as a level was added to the points. Without it they lie on a
            lattice, where a density can be as high as one likes, and the result as negative: an error.
        levels: how many values a number had; None if the data were never quantised: the result is then in
            bits of differential entropy, which may be negative.
        scale: x per unit of u; 1 if x is u.

    Raises:
        ValueError: `levels` without `dequantised`, or an argument out of its range.

    Warns:
        UserWarning: the mean is negative though there are levels; most likely `scale` is not that of x.
    """
    try:
        logp = torch.as_tensor(logp, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        given = type(logp).__name__
        raise TypeError(
            f"logp must be a tensor of log densities, such as log_likelihood(...).value, got {given}"
        ) from None
    if torch.isnan(logp).any():
        raise ValueError("logp must not have NaN")
    dims = check_integer("dims", dims, 1)
    scale = check_number("scale", scale, 0, open_low=True)
    count = 1 if levels is None else check_integer("levels", levels, 2)
    if not check_flag("dequantised", dequantised) and levels is not None:
        raise ValueError(
            f"the bits of {levels} levels are bounded by a density only after uniform noise of one level's "
            "width: use sk.dequantise and dequantised=True, or levels=None for continuous data"
        )
    bits = -logp / (dims * math.log(2)) + math.log2(count) - math.log2(scale)
    if levels is not None and bits.numel() and bits.mean() < 0:
        warnings.warn(
            f"the mean is {bits.mean().item():.3g} bits per dimension, which no model of {levels} levels "
            f"reaches: were the points dequantised, and is scale = {scale:g} that of x?",
            stacklevel=2,
        )
    return bits


def dequantise(
    images: Tensor, *, levels: int = 256, seed: int | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """(level + U[0, 1)) / levels: points in [0, 1) with a density, as a function of the seed.

    Args:
        images: integers in [0, levels), of any shape.
        levels: how many values there are.
        seed: of the noise; None draws a fresh one.
        dtype: of the result; torch's default if not given. No point is rounded out of its level.
    """
    levels = check_integer("levels", levels, 2)
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a torch.Tensor, got {type(images).__name__}")
    if images.is_floating_point() or images.is_complex() or images.dtype == torch.bool:
        raise TypeError(f"images must hold integer levels, got {images.dtype}")
    if images.numel() and not 0 <= int(images.min()) <= int(images.max()) < levels:
        raise ValueError(
            f"images must hold levels in [0, {levels - 1}], got [{int(images.min())}, {int(images.max())}]"
        )
    dtype = torch.get_default_dtype() if dtype is None else dtype
    noise = torch.rand(images.shape, generator=generator_of(seed), dtype=torch.float64)
    wide = images.cpu().double()
    end = ((wide + 1) / levels).to(dtype)
    below = torch.nextafter(end, torch.zeros_like(end))
    return torch.minimum(((wide + noise) / levels).to(dtype), below).to(images.device)
