"""From levels to numbers of order one and back, as a value that can be written down beside a model."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit.errors import check_integer, check_number


@dataclass(frozen=True)
class Scaling:
    """x -> (x - mean) / std, channel by channel.

    Args:
        mean: one number a channel, or one for all of them.
        std: as many, positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        mean, std = _numbers("mean", self.mean), _numbers("std", self.std)
        for value in std:
            check_number("std", value, 0.0, open_low=True)
        if len(mean) != len(std):
            raise ValueError(f"mean and std must be as many, got {len(mean)} and {len(std)}")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)

    @classmethod
    def symmetric(cls, levels: int = 256) -> "Scaling":
        """Levels 0 .. levels - 1 to [-1, 1]."""
        half = (check_integer("levels", levels, 2) - 1) / 2
        return cls((half,), (half,))

    @classmethod
    def standardising(cls, images: Tensor) -> "Scaling":
        """The one that gives every channel of `images` (n, c, h, w) mean 0 and variance 1.

        Raises:
            ValueError: no images, or a channel with a single value.
        """
        _check_images(images)
        if not images.numel():
            raise ValueError(f"images must not be empty, got shape {tuple(images.shape)}")
        channels = images.transpose(0, 1).flatten(1)
        mean, std = zip(*(_moments(channel) for channel in channels), strict=True)
        if 0 in std:
            raise ValueError(f"images must vary in every channel; channel {std.index(0)} does not")
        return cls(mean, std)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments, fit for JSON: `Scaling(**config)` is this one, to the last bit."""
        return {"mean": list(self.mean), "std": list(self.std)}

    def forward(self, images: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """Levels or numbers (n, c, h, w) to numbers of order one; floating-point images keep their dtype."""
        mean, std = self._constants(images)
        dtype = images.dtype if images.is_floating_point() else dtype
        if not dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating-point type, got {dtype}")
        return (images.to(dtype) - mean.to(dtype)) / std.to(dtype)

    def backward(self, x: Tensor) -> Tensor:
        """The way back, x std + mean, floating point: (n, c, h, w)."""
        mean, std = self._constants(x)
        if not x.is_floating_point():
            raise TypeError(f"x must be floating point, got {x.dtype}")
        return x * std.to(x.dtype) + mean.to(x.dtype)

    def to_levels(self, x: Tensor, levels: int = 256) -> Tensor:
        """The way back to the nearest level in [0, levels), levels <= 256: (n, c, h, w) uint8.

        Raises:
            ValueError: x has NaN, for which there is no level.
        """
        if check_integer("levels", levels, 2) > 256:
            raise ValueError(f"levels must be at most 256, got {levels}")
        values = self.backward(x)
        if bool(values.isnan().any()):
            raise ValueError(f"x has {int(values.isnan().sum())} NaN values")
        return values.round().clamp(0, levels - 1).to(torch.uint8)

    def _constants(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """mean and std, float64, in a shape that meets the channels."""
        _check_images(images)
        if len(self.mean) not in (1, images.shape[1]):
            raise ValueError(
                f"images must have {len(self.mean)} channels (n, c, h, w), got {tuple(images.shape)}"
            )
        both = torch.tensor([self.mean, self.std], dtype=torch.float64, device=images.device)
        mean, std = both[:, :, None, None]
        return mean, std


def _moments(channel: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of a flat channel; one value has a standard deviation of exactly 0."""
    if bool(channel.min() == channel.max()):
        return float(channel[0]), 0.0
    values = channel.double()
    return values.mean().item(), values.std(correction=0).item()


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a sequence of numbers, got {values!r}")
    numbers = tuple(check_number(name, value) for value in values)
    if not numbers:
        raise ValueError(f"{name} must hold at least one number, got none")
    return numbers


def _check_images(images: Any) -> None:
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a torch.Tensor, got {type(images).__name__}")
    if images.ndim != 4:
        raise ValueError(f"images must be (n, c, h, w), got shape {tuple(images.shape)}")
    if images.is_complex() or images.dtype == torch.bool:
        raise TypeError(f"images must hold real numbers, got {images.dtype}")
