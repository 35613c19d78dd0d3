"""Images with labels, whatever they come from, and subsets with as many of every class."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sdekit.errors import check_integer, check_seed, generator_of


class Labelled(NamedTuple):
    """Images, labels and the names of the classes; unpacks like a tuple.

    Attributes:
        images: (n, channels, height, width).
        labels: (n,) int64, or None where the data has none.
        classes: name of label k at place k; empty where they have none.
    """

    images: Tensor
    labels: Tensor | None
    classes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        shape, dtype = tuple(self.images.shape), str(self.images.dtype).removeprefix("torch.")
        return f"Labelled({shape} {dtype}, {len(self.classes)} named classes)"


def as_images(data: Tensor | Dataset[Any], labels: Tensor | None = None) -> Labelled:
    """A tensor of images or any map-style data set, as images (n, c, h, w) with labels.

    Args:
        data: a tensor (n, h, w) or (n, c, h, w); or a `Dataset` whose items are images or (image, label)
            pairs, an image being a tensor (h, w) or (c, h, w), or a Pillow image.
        labels: (n,) integers, for a tensor; a data set brings its own.

    Returns:
        The images in their own dtype (Pillow images as uint8): nothing is scaled.
    """
    if isinstance(data, Dataset):
        if labels is not None:
            raise ValueError("labels go with a tensor; a Dataset brings its own")
        return _stacked(data)
    if not isinstance(data, Tensor):
        raise TypeError(f"data must be a torch.Tensor or a Dataset, got {type(data).__name__}")
    if data.ndim not in (3, 4):
        raise ValueError(f"data must be (n, h, w) or (n, c, h, w), got shape {tuple(data.shape)}")
    images = data[:, None] if data.ndim == 3 else data
    return Labelled(images, None if labels is None else _checked_labels(labels, len(images)))


def balanced_subset(
    images: Tensor, labels: Tensor, per_class: int, *, seed: int
) -> tuple[Tensor, Tensor]:
    """`per_class` images of every class that `labels` has, drawn without replacement.

    Args:
        images: (n, *event).
        labels: (n,) integers.
        per_class: how many of each, at least 1.
        seed: of the draw.

    Returns:
        Images and labels in the order that they had.

    Raises:
        ValueError: a class has fewer than `per_class`.
    """
    check_integer("per_class", per_class, 1)
    if check_seed(seed) is None:
        raise TypeError("seed must be an integer, got None")
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a torch.Tensor, got {type(images).__name__}")
    labels, generator = _checked_labels(labels, len(images)), generator_of(seed)
    kept = []
    for label in labels.unique(sorted=True).tolist():
        members = (labels == label).nonzero()[:, 0]
        if len(members) < per_class:
            raise ValueError(
                f"per_class must be at most {len(members)}, as many as class {label} has; got {per_class}"
            )
        kept.append(members[torch.randperm(len(members), generator=generator)[:per_class]])
    rows = torch.cat(kept).sort().values if kept else labels.new_empty(0)
    return images[rows], labels[rows]


def _stacked(data: Dataset[Any]) -> Labelled:
    if not hasattr(data, "__len__"):
        raise TypeError(
            f"data must be a Dataset with a length, got the iterable {type(data).__name__}"
        )
    items = [data[i] for i in range(len(data))]  # type: ignore[arg-type]
    paired = [isinstance(item, (tuple, list)) and len(item) > 1 for item in items]
    if any(paired) and not all(paired):
        raise ValueError("data must have a label for all items or for none")
    images = [_image(item[0] if isinstance(item, (tuple, list)) else item) for item in items]
    for i, image in enumerate(images):
        if image.shape != images[0].shape:
            raise ValueError(
                f"data must hold images of one shape, got {tuple(images[0].shape)} and, at {i}, "
                f"{tuple(image.shape)}"
            )
    if not images:
        raise ValueError("data must hold at least one image, got an empty Dataset")
    if not paired[0]:
        return Labelled(torch.stack(images), None)
    labels = torch.tensor([int(item[1]) for item in items])
    names = getattr(data, "classes", ())
    return Labelled(torch.stack(images), labels, tuple(map(str, names)))


def _image(item: Any) -> Tensor:
    """One image as (c, h, w)."""
    if hasattr(item, "__array_interface__"):  # Pillow and numpy have the channels last
        import numpy as np

        array = torch.from_numpy(np.array(item))
        item = array.permute(2, 0, 1) if array.ndim == 3 else array
    if not isinstance(item, Tensor):
        raise TypeError(
            f"data must be a Dataset of tensors or images, got {type(item).__name__} items"
        )
    if item.ndim not in (2, 3):
        raise ValueError(
            f"data must hold images (h, w) or (c, h, w), got shape {tuple(item.shape)}"
        )
    return item[None] if item.ndim == 2 else item


def _checked_labels(labels: Any, n: int) -> Tensor:
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a torch.Tensor, got {type(labels).__name__}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    if labels.shape != (n,):
        raise ValueError(f"labels must have shape ({n},), one an image; got {tuple(labels.shape)}")
    return labels.long()
