"""Discrepancies 2 E h(X, Y) - E h(X, X') - E h(Y, Y') of two laws, without bias and with their errors."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

#: Values of h held at once: 32 MB of float64.
BLOCK = 2**22

#: Row sums (n,), column sums (m,) and the sum of squares of h(x_i, y_j), for x (n, d) and y (m, d).
Sums: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Measured:
    """A Monte Carlo estimate and the standard error of it."""

    value: float
    stderr: float


def discrepancy(x: Tensor, y: Tensor, sums: Sums, diagonal: Callable[[Tensor], Tensor]) -> Measured:
    """The U-statistic of 2 E h(X, Y) - E h(X, X') - E h(Y, Y'), so without bias and maybe negative.

    Its variance is estimated from Hoeffding's decomposition (1948), first and second order: with
    interaction variances g of h(X, Y), d_x and d_y of h(X, X') and h(Y, Y'), and projections
    a(x) = E h(x, Y), b(x) = E h(x, X'),

        4/n Var(a - b)(X) + (same for Y) + 4 g/(n m) + 2 d_x/(n (n-1)) + 2 d_y/(m (m-1)),

    each from sums of squares as in an analysis of variance, without bias; the first-order part is
    then cut off at 0. For equal laws only the second order is left: the error is O(1/n), the value
    is a centered weighted chi-square rather than a normal, and the cut makes `stderr` too large,
    by a factor of about 1.4.

    Args:
        x: shape (n, d), n >= 4.
        y: shape (m, d), m >= 4.
        sums: of h over all pairs of two sets.
        diagonal: h(x_i, x_i), shape (n,).
    """
    n, m = len(x), len(y)
    from_x, from_y, squares = sums(x, y)
    from_x, from_y, between = from_x / m, from_y / n, from_x.mean() / m
    interaction = squares - n * m * between**2
    interaction -= m * (from_x - between).square().sum() + n * (from_y - between).square().sum()
    interaction = (interaction / ((n - 1) * (m - 1))).clamp(min=0)

    within_x, effect_x, inner_x = _within(x, sums, diagonal)
    within_y, effect_y, inner_y = _within(y, sums, diagonal)
    # The variance over i of an estimated projection holds the interactions averaged in it.
    first_x = (from_x - effect_x).var() - interaction / m - inner_x / (n - 2)
    first_y = (from_y - effect_y).var() - interaction / n - inner_y / (m - 2)
    second = 2 * interaction / (n * m) + inner_x / (n * (n - 1)) + inner_y / (m * (m - 1))
    variance = (4 * first_x / n + 4 * first_y / m).clamp(min=0) + 2 * second
    return Measured(float(2 * between - within_x - within_y), math.sqrt(float(variance)))


def block_sums(
    h: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`Sums` of h, which gives a matrix (rows of x, m), formed in blocks of 32 MB (or one row)."""
    rows, columns, squares = x.new_empty(len(x)), x.new_zeros(len(y)), x.new_zeros(())
    step = max(1, BLOCK // len(y))
    for start in range(0, len(x), step):
        values = h(x[start : start + step], y)
        rows[start : start + step] = values.sum(1)
        columns += values.sum(0)
        squares += values.flatten().dot(values.flatten())
    return rows, columns, squares


def _within(
    x: Tensor, sums: Sums, diagonal: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of h(x_i, x_j) over pairs, its effects (n,), and the variance of its interactions.

    The analysis of variance of a half diallel: h(x_i, x_j) = mean + e_i + e_j + interaction.
    """
    n, own = len(x), diagonal(x)
    rows, _, squares = sums(x, x)
    rows, squares = rows - own, squares - own.square().sum()
    mean = rows.mean() / (n - 1)
    effects = (rows / (n - 1) - mean) * (n - 1) / (n - 2)
    residual = squares / 2 - n * (n - 1) / 2 * mean**2 - (n - 2) * effects.square().sum()
    return mean, effects, (residual / (n * (n - 3) / 2)).clamp(min=0)
