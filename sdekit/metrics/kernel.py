"""Kernel distance (KID): the discrepancy of minus a cubic polynomial kernel."""

import math
from functools import partial

import torch
from torch import Tensor

from sdekit.errors import check_integer
from sdekit.metrics.arguments import SampleSet, pair
from sdekit.metrics.two_sample import Measured, block_sums, discrepancy


def kid(x: SampleSet, y: SampleSet, subsets: int | None = None, seed: int = 0) -> Measured:
    """Squared maximum mean discrepancy of two sets under k(x, y) = (x·y/d + 1)^3, without bias.

    The kernel inception distance of Bińkowski et al. (Demystifying MMD GANs, 2018), on features of
    any kind: E k(X, X') + E k(Y, Y') - 2 E k(X, Y) by its U-statistic, so it may be negative, and
    values at different n can be compared. It sees the first three moments of the features.

    Without `subsets` the value is the U-statistic of all samples, which has the least variance, with
    a standard error from Hoeffding's decomposition (see `energy_distance`). With `subsets` it is the
    mean over that many disjoint parts of the shuffled sets, `stderr` their spread over
    sqrt(subsets): cheaper, honest for any law, and noisier. Parts that overlap, as published KIDs
    have them, would understate it.

    Args:
        x: shape (n, *event), n >= 4, or features. An event is flattened.
        y: shape (m, *event), m >= 4, or features.
        subsets: None, or parts that each set is cut into, at least 2, of at least 4 samples each.
        seed: of the shuffle; without subsets nothing is drawn.

    Raises:
        ValueError: for samples that are not finite, too few or of two dimensions.
        TypeError: for samples that are not floating tensors, or counts that are not integers.
    """
    x, y = pair(x, y, least=4)
    if subsets is None:
        return _complete(x, y)
    count = check_integer("subsets", subsets, 2)
    if min(len(x), len(y)) < 4 * count:
        raise ValueError(
            f"subsets must leave 4 samples a part: at most {min(len(x), len(y)) // 4}"
            f" for {len(x)} and {len(y)} samples, got {count}"
        )
    generator = torch.Generator().manual_seed(check_integer("seed", seed, 0))
    parts = (a[torch.randperm(len(a), generator=generator)].tensor_split(count) for a in (x, y))
    values = [_complete(a, b).value for a, b in zip(*parts, strict=True)]
    spread = torch.tensor(values, dtype=torch.float64)
    return Measured(float(spread.mean()), float(spread.std()) / math.sqrt(count))


def _complete(x: Tensor, y: Tensor) -> Measured:
    """The U-statistic of all pairs."""
    return discrepancy(x, y, partial(block_sums, _minus_kernel), _minus_diagonal)


def _minus_kernel(x: Tensor, y: Tensor) -> Tensor:
    return -((x @ y.T / x.shape[1] + 1) ** 3)


def _minus_diagonal(x: Tensor) -> Tensor:
    return -((x.square().mean(1) + 1) ** 3)
