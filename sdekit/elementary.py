"""Elementary functions of a Python float or a tensor: float in, float out; tensor in, tensor out.

Node arithmetic of a sampler runs on floats (a hundred times cheaper than on 0-d tensors), training on
tensors. At the singular ends the float versions return the limits that torch returns.
"""

import math

import torch
from torch import Tensor

Number = float | Tensor


def widest(device: torch.device) -> torch.dtype:
    """The widest floating-point numbers of a device: float64 everywhere but on MPS."""
    return torch.float32 if device.type == "mps" else torch.float64


def exp(x: Number) -> Number:
    """e^x."""
    return torch.exp(x) if isinstance(x, Tensor) else math.exp(x)


def expm1(x: Number) -> Number:
    """e^x - 1 without cancellation; infinite at +inf."""
    return torch.expm1(x) if isinstance(x, Tensor) else math.expm1(x)


def log(x: Number) -> Number:
    """Natural logarithm; log(0) = -inf and log(inf) = inf."""
    if isinstance(x, Tensor):
        return torch.log(x)
    return math.log(x) if x > 0 else -math.inf


def log1p(x: Number) -> Number:
    """log(1 + x) without cancellation; -inf at x = -1."""
    if isinstance(x, Tensor):
        return torch.log1p(x)
    return math.log1p(x) if x > -1 else -math.inf


def sqrt(x: Number) -> Number:
    """Square root."""
    return torch.sqrt(x) if isinstance(x, Tensor) else math.sqrt(x)


def cbrt(x: Number) -> Number:
    """Cube root of a non-negative number."""
    return x ** (1 / 3)


def sin(x: Number) -> Number:
    """Sine."""
    return torch.sin(x) if isinstance(x, Tensor) else math.sin(x)


def cos(x: Number) -> Number:
    """Cosine."""
    return torch.cos(x) if isinstance(x, Tensor) else math.cos(x)


def atan2(y: Number, x: Number) -> Number:
    """Angle of the point (x, y)."""
    if isinstance(y, Tensor) or isinstance(x, Tensor):
        return torch.atan2(torch.as_tensor(y), torch.as_tensor(x))
    return math.atan2(y, x)


def asinh(x: Number) -> Number:
    """Inverse hyperbolic sine."""
    return torch.asinh(x) if isinstance(x, Tensor) else math.asinh(x)


def sigmoid(x: Number) -> Number:
    """1 / (1 + e^-x)."""
    if isinstance(x, Tensor):
        # The last place of torch.sigmoid depends on the place in the batch.
        return 1 / (1 + torch.exp(-x))
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def softplus(x: Number) -> Number:
    """log(1 + e^x), exact for large |x|."""
    if isinstance(x, Tensor):
        return x.clamp(min=0) + torch.log1p(torch.exp(-x.abs()))
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def ratio(a: Number, b: Number) -> Number:
    """a / b, infinite (with the sign of a) where b is zero."""
    if isinstance(a, Tensor) or isinstance(b, Tensor) or b != 0:
        return a / b
    return math.copysign(math.inf, a)
