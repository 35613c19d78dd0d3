"""An SDE given by two functions, on the line or in the plane."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sdekit.errors import check_number


@dataclass(frozen=True, repr=False)
class SDE:
    """dx = drift(x, t) dt + diffusion dW, with the same diffusion in every direction.

    Args:
        drift: called with positions, a float64 tensor (n,) on the line or (n, 2) in the plane, and a time;
            returns a tensor of that shape.
        diffusion: g >= 0, a number or a function of time that returns one.
    """

    drift: Callable[[Tensor, float], Tensor]
    diffusion: float | Callable[[float], float]

    def __post_init__(self) -> None:
        if not callable(self.drift):
            raise TypeError(f"drift must be callable as drift(x, t), got {self.drift!r}")
        if not callable(self.diffusion):
            check_number("diffusion", self.diffusion, 0)

    def __repr__(self) -> str:
        return f"SDE({_name(self.drift)}, {_name(self.diffusion)})"


def _name(value: Any) -> str:
    return getattr(value, "__name__", repr(value))
