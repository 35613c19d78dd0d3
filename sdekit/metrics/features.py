"""Features of images: what an extractor makes of them, computed once and kept."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from sdekit.errors import check_finite, check_integer
from sdekit.metrics.distances import neighbour_radii


@dataclass(frozen=True, eq=False, repr=False)
class FeatureSet:
    """Features of a set of images, and what metrics need of them, computed at first use.

    Every metric of two sets of samples takes it in place of a tensor.

    Args:
        values: shape (n, d), finite; kept as float64 on the CPU.
        name: of what made them; sets of two names are not compared.

    Raises:
        ValueError: for values that are not finite, or not of shape (n, d).
        TypeError: for values that are not a floating tensor.
    """

    values: Tensor
    name: str = "features"
    _radii: dict[int, Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        values = check_finite("values", self.values).detach().to("cpu", torch.float64)
        if values.ndim != 2 or values.numel() == 0:
            raise ValueError(f"values must have shape (n, d), got {tuple(values.shape)}")
        object.__setattr__(self, "values", values)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: Tensor | slice) -> "FeatureSet":
        """A subset of the rows."""
        return FeatureSet(self.values[rows], self.name)

    def __repr__(self) -> str:
        """Its name and shape."""
        n, d = self.values.shape
        return f"FeatureSet({self.name}, n={n}, d={d})"

    @cached_property
    def mean(self) -> Tensor:
        """Mean, shape (d,)."""
        return self.values.mean(0)

    @cached_property
    def covariance(self) -> Tensor:
        """Covariance with divisor n - 1, shape (d, d), for n >= 2."""
        centered = self.values - self.mean
        return centered.T @ centered / (len(self) - 1)

    def radii(self, k: int) -> Tensor:
        """Distance of each row to its k-th nearest neighbour in the set, shape (n,), for 1 <= k < n."""
        if check_integer("k", k, 1) >= len(self):
            raise ValueError(f"k must be below the {len(self)} rows of the set, got {k}")
        if k not in self._radii:
            self._radii[k] = neighbour_radii(self.values, k)
        return self._radii[k]


def extract_features(
    extractor: Callable[[Tensor], Tensor],
    images: Tensor,
    batch: int = 500,
    name: str | None = None,
) -> FeatureSet:
    """What an extractor makes of images, in batches, without gradients and in evaluation mode.

    A module sees its own device and dtype, and gets its training mode back.

    Args:
        extractor: images (b, *event) -> features (b, *any), one row an image; any callable.
        images: shape (n, *event), finite.
        batch: images at a time.
        name: of the features; the extractor's class or function name if not given.

    Raises:
        ValueError: for images or features that are not finite, no images, or features that are not
            one row an image.
        TypeError: for images or features that are not floating tensors.
    """
    if not callable(extractor):
        raise TypeError(f"extractor must be callable on images, got {type(extractor).__name__}")
    check_integer("batch", batch, 1)
    check_finite("images", images)
    if images.ndim < 2 or images.numel() == 0:
        raise ValueError(f"images must have shape (n, *event), got {tuple(images.shape)}")
    module = extractor if isinstance(extractor, nn.Module) else None
    like = next(module.parameters(), images) if module else images
    modes = [(part, part.training) for part in module.modules()] if module else []
    try:
        for part, _ in modes:
            part.training = False
        with torch.no_grad():
            rows = [_rows(extractor, part.to(like)) for part in images.split(batch)]
    finally:
        for part, mode in modes:
            part.training = mode
    usual = getattr(extractor, "__name__", type(extractor).__name__)
    return FeatureSet(torch.cat(rows), usual if name is None else name)


def _rows(extractor: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Features of one batch, (b, d)."""
    found = check_finite("extractor(images)", extractor(images))
    if found.ndim < 2 or len(found) != len(images):
        raise ValueError(
            f"extractor must give one row of features an image, ({len(images)}, d),"
            f" got shape {tuple(found.shape)}"
        )
    return found.flatten(1).to("cpu", torch.float64)
