"""Energy distance: the discrepancy of h(x, y) = |x - y|."""

from functools import partial

import torch
from torch import Tensor

from sdekit.metrics.arguments import SampleSet, pair
from sdekit.metrics.two_sample import Measured, block_sums, discrepancy


def energy_distance(x: SampleSet, y: SampleSet) -> Measured:
    """Energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| of two sets of samples.

    Zero exactly when the laws are equal (Székely and Rizzo, Energy statistics, 2013). The value is
    the unbiased U-statistic, so it may be negative; its standard error follows from Hoeffding's
    decomposition (1948). For equal laws the error is O(1/n) and `stderr` too large by a factor of
    about 1.4 (see `discrepancy` in two_sample.py).

    Takes O(n log n) time on the line and O(n m d) above it, where distances are formed in blocks
    of 32 MB (or one row).

    Args:
        x: shape (n,) or (n, *event), n >= 4; an event is flattened. Or features.
        y: shape (m,) or (m, *event), m >= 4. Or features.

    Raises:
        ValueError: for samples that are not finite, too few or of two dimensions.
        TypeError: for samples that are not floating tensors.
    """
    x, y = pair(x, y, least=4)
    return discrepancy(x, y, _distance_sums, lambda points: points.new_zeros(len(points)))


def _distance_sums(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row sums (n,), column sums (m,) and the sum of squares of the distances |x_i - y_j|."""
    center = x.mean(0)
    x, y = x - center, y - center
    if x.shape[1] == 1:
        squares = len(y) * x.square().sum() + len(x) * y.square().sum() - 2 * x.sum() * y.sum()
        return _line_sums(x[:, 0], y[:, 0]), _line_sums(y[:, 0], x[:, 0]), squares
    # The matrix product is fast, but loses the small distances, which few dimensions have many of.
    mode = "use_mm_for_euclid_dist" if x.shape[1] > 8 else "donot_use_mm_for_euclid_dist"
    return block_sums(partial(torch.cdist, compute_mode=mode), x, y)


def _line_sums(x: Tensor, y: Tensor) -> Tensor:
    """Sum over j of |x_i - y_j| on the line, shape (n,), by sorting."""
    y = y.sort().values
    below = torch.searchsorted(y, x)
    prefix = torch.cat([y.new_zeros(1), y.cumsum(0)])
    return x * (2 * below - len(y)) + prefix[-1] - 2 * prefix[below]
