"""What metrics take: samples or features, as float64 on the CPU, finite and of one dimension."""

from typing import TypeAlias

import torch
from torch import Tensor

from sdekit.errors import check_finite
from sdekit.metrics.features import FeatureSet

#: SampleSet (n,) or (n, *event), or their features.
SampleSet: TypeAlias = Tensor | FeatureSet


def exact(name: str, values: Tensor) -> Tensor:
    """The values as float64 on the CPU, known to be finite."""
    return check_finite(name, values).detach().to("cpu", torch.float64)


def batch(name: str, samples: SampleSet, least: int) -> Tensor:
    """Samples as (n, d), events flattened, n >= least."""
    values = exact(name, samples.values if isinstance(samples, FeatureSet) else samples)
    n = len(values) if values.ndim else 0
    if n < least or values.numel() == 0:
        raise ValueError(
            f"{name} must hold at least {least} samples, got shape {tuple(values.shape)}"
        )
    return values.reshape(n, -1)


def line(name: str, samples: Tensor) -> Tensor:
    """Samples on the line as (n,)."""
    flat = batch(name, samples, 2)
    if flat.shape[1] != 1:
        raise ValueError(f"{name} must have shape (n,) or (n, 1), got shape {tuple(samples.shape)}")
    return flat[:, 0]


def pair(
    x: SampleSet, y: SampleSet, least: int, names: tuple[str, str] = ("x", "y")
) -> tuple[Tensor, Tensor]:
    """Two sets of samples of one dimension and one origin, (n, d) and (m, d)."""
    a, b = batch(names[0], x, least), batch(names[1], y, least)
    both = " and ".join(names)
    if a.shape[1] != b.shape[1]:
        shapes = " and ".join(
            str(tuple((s.values if isinstance(s, FeatureSet) else s).shape)) for s in (x, y)
        )
        raise ValueError(f"{both} must have samples of one dimension, got shapes {shapes}")
    if isinstance(x, FeatureSet) and isinstance(y, FeatureSet) and x.name != y.name:
        raise ValueError(f"{both} must come from one extractor, got {x.name!r} and {y.name!r}")
    return a, b


def feature_pair(x: SampleSet, y: SampleSet, least: int) -> tuple[FeatureSet, FeatureSet]:
    """Two sets as `pair`, with what was computed of them before."""
    a, b = pair(x, y, least)
    return (
        x if isinstance(x, FeatureSet) else FeatureSet(a),
        y if isinstance(y, FeatureSet) else FeatureSet(b),
    )


def check_order(p: int) -> None:
    """Only W_1 and W_2."""
    if isinstance(p, bool) or not isinstance(p, int):
        raise TypeError(f"p must be the integer 1 or 2, got {p!r}")
    if p not in (1, 2):
        raise ValueError(f"p must be 1 or 2, got {p!r}")
