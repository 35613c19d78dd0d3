"""How far samples or densities are from the truth, and how far exact samples would be.

Distances between samples (Wasserstein in one dimension, sliced Wasserstein, energy distance) and
between densities on a grid (Kullback-Leibler, total variation). Every estimate from n samples has
a floor: exact samples of the same n do not score 0. `floor` measures it, and a distance
means something only beside it.

Samples are read as float64 on the CPU and results are Python floats.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol, TypeVar

import torch
from numpy.polynomial import legendre
from torch import Tensor

from sdekit.errors import check_finite, check_integer

__all__ = [
    "Floor",
    "Measured",
    "Samplable",
    "Truth1D",
    "energy_distance",
    "floor",
    "kl_divergence",
    "sliced_wasserstein",
    "total_variation",
    "wasserstein_1d",
]

# Panels of the unit interval are not halved below this width: beyond it 1 - u has no digits.
_NARROWEST = 2.0**-50
# Aim for the last coefficients of a quantile function's series, as a mean over (0, 1).
_TOLERANCE = 1e-13
# Densities are raised to this value before a logarithm is taken.
_TINY = 1e-300
# Negative values may carry this much mass (round-off, overshoot) before they count as a mistake.
_NEGATIVE_MASS = 1e-6
# A density on a grid integrates to 1 within this much, or the grid is not its own.
_MASS_ERROR = 1e-2
# Distances held at once by the energy distance: 32 MB of float64.
_BLOCK = 2**22

# Gauss-Legendre nodes on [-1, 1], weights that give the mean over it, and the matrix that takes
# values at the nodes to Legendre coefficients.
_NODES, _WEIGHTS = (torch.from_numpy(part) for part in legendre.leggauss(12))
_WEIGHTS = _WEIGHTS / 2
_TO_SERIES = _WEIGHTS[:, None] * torch.from_numpy(legendre.legvander(_NODES.numpy(), 11))
_TO_SERIES = _TO_SERIES * (2 * torch.arange(12) + 1)


class Samplable(Protocol):
    """A law that can be drawn from exactly."""

    def sample(self, n: int, *, seed: int) -> Tensor:
        """Draw n samples, shape (n, d)."""
        ...


class Truth1D(Protocol):
    """A law on the line, known through its distribution function and its quantiles."""

    def cdf(self, x: Tensor, /) -> Tensor:
        """P(X <= x), shape (n,) for x of shape (n,)."""
        ...

    def quantile(self, u: Tensor, /) -> Tensor:
        """The inverse of `cdf` on (0, 1), shape (n,) for u of shape (n,)."""
        ...


@dataclass(frozen=True)
class Measured:
    """A Monte Carlo estimate and the standard error of it."""

    value: float
    stderr: float


@dataclass(frozen=True)
class Floor:
    """What exact samples score: summary of a metric over independent exact draws of n samples."""

    mean: float
    std: float
    quantile95: float
    values: tuple[float, ...] = field(repr=False)

    @property
    def stderr(self) -> float:
        """Standard error of `mean`."""
        return self.std / math.sqrt(len(self.values))


_Law = TypeVar("_Law", bound=Samplable)


def wasserstein_1d(samples: Tensor, truth: Truth1D | Tensor, p: int = 1) -> float:
    """Wasserstein distance of samples on the line to a law, or to other samples.

    W_p = (int_0^1 |F_n^{-1}(u) - G^{-1}(u)|^p du)^{1/p} (Villani, Topics in Optimal Transportation,
    2003, theorem 2.18), with F_n^{-1} the step function of the sorted samples.

    Against a law, G^{-1} is replaced by piecewise polynomials of degree 11 on panels graded towards
    0 and 1 and halved until their last coefficients vanish, and these are integrated exactly
    between the steps i/n. By the triangle inequality W_p errs by no more than the L_p norm of that
    replacement: about 1e-13 of the law's spread for W_1 and W_2^2, if the law has a smooth density
    and tails no heavier than exponential (heavier tails lose what lies outside
    (2^-50, 1 - 2^-50)). Between samples the result is exact, for any two counts.

    Args:
        samples: shape (n,) or (n, 1), n >= 2, finite.
        truth: a law with `cdf` and `quantile`, or a tensor of samples, (m,) or (m, 1), m >= 2.
        p: 1 or 2.

    Raises:
        ValueError: for samples or quantiles that are not finite, samples too few or not on the
            line, p not 1 or 2.
        TypeError: for samples that are not a floating tensor or a truth that is neither.
    """
    _check_order(p)
    x = _line("samples", samples).sort().values
    if isinstance(truth, Tensor):
        y = _line("truth", truth).sort().values
        return float(_step_cost(x[:, None], y[:, None], p)) ** (1 / p)
    if not (callable(getattr(truth, "cdf", None)) and callable(getattr(truth, "quantile", None))):
        raise TypeError(
            f"truth must be a tensor of samples or have cdf and quantile, got {type(truth).__name__}"
        )
    return _law_cost(x, truth, p) ** (1 / p)


def sliced_wasserstein(
    x: Tensor, y: Tensor, p: int = 2, projections: int = 128, seed: int = 0
) -> float:
    """Sliced Wasserstein distance between two sets of samples.

    (mean over directions of W_p^p of the projections)^{1/p}, directions uniform on the sphere
    (Bonneel et al., Sliced and Radon Wasserstein Barycenters of Measures, 2015). It is at most W_p.

    Args:
        x: shape (n,) or (n, *event), n >= 2; an event is flattened.
        y: shape (m,) or (m, *event), m >= 2.
        p: 1 or 2.
        projections: number of random directions, at least 1.
        seed: of the directions; equal seeds give equal directions.

    Raises:
        ValueError: for samples that are not finite, too few or of two dimensions, p not 1 or 2,
            projections < 1.
        TypeError: for samples that are not floating tensors, or counts that are not integers.
    """
    _check_order(p)
    check_integer("projections", projections, 1)
    generator = torch.Generator().manual_seed(check_integer("seed", seed, 0))
    x, y = _pair(x, y, least=2)
    directions = torch.randn(x.shape[1], projections, generator=generator, dtype=torch.float64)
    directions /= directions.norm(dim=0)
    x, y = ((samples @ directions).sort(dim=0).values for samples in (x, y))
    return float(_step_cost(x, y, p).mean()) ** (1 / p)


def energy_distance(x: Tensor, y: Tensor) -> Measured:
    """Energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| of two sets of samples.

    Zero exactly when the laws are equal (Székely and Rizzo, Energy statistics, 2013). The value is
    the unbiased U-statistic, so it may be negative. Its variance is estimated from Hoeffding's
    decomposition (1948), first and second order: with interaction variances g of |X - Y|, d_x and
    d_y of |X - X'| and |Y - Y'|, and projections a(x) = E|x - Y|, b(x) = E|x - X'|,

        4/n Var(a - b)(X) + (same for Y) + 4 g/(n m) + 2 d_x/(n (n-1)) + 2 d_y/(m (m-1)),

    each from sums of squares as in an analysis of variance, without bias; the first-order part is
    then cut off at 0. For equal laws only the second order is left: the error is O(1/n), the value
    is a centered weighted chi-square rather than a normal, and the cut makes `stderr` too large,
    by a factor of about 1.4.

    Takes O(n log n) time on the line and O(n m d) above it, where distances are formed in blocks
    of 32 MB (or one row).

    Args:
        x: shape (n,) or (n, *event), n >= 4; an event is flattened.
        y: shape (m,) or (m, *event), m >= 4.

    Raises:
        ValueError: for samples that are not finite, too few or of two dimensions.
        TypeError: for samples that are not floating tensors.
    """
    x, y = _pair(x, y, least=4)
    n, m = len(x), len(y)
    from_x, from_y, squares = _distance_sums(x, y)
    from_x, from_y, between = from_x / m, from_y / n, from_x.mean() / m
    interaction = squares - n * m * between**2
    interaction -= m * (from_x - between).square().sum() + n * (from_y - between).square().sum()
    interaction = (interaction / ((n - 1) * (m - 1))).clamp(min=0)

    within_x, effect_x, inner_x = _within(x)
    within_y, effect_y, inner_y = _within(y)
    # The variance over i of an estimated projection holds the interactions averaged in it.
    first_x = (from_x - effect_x).var() - interaction / m - inner_x / (n - 2)
    first_y = (from_y - effect_y).var() - interaction / n - inner_y / (m - 2)
    second = 2 * interaction / (n * m) + inner_x / (n * (n - 1)) + inner_y / (m * (m - 1))
    variance = (4 * first_x / n + 4 * first_y / m).clamp(min=0) + 2 * second
    return Measured(float(2 * between - within_x - within_y), math.sqrt(float(variance)))


def kl_divergence(p: Tensor, q: Tensor, dx: float | Tensor) -> float:
    """Kullback-Leibler divergence KL(p | q) in nats, of densities on a grid.

    Summed as p log(p/q) - p + q, which is KL(p | q) for densities of mass 1, is never negative, is
    0 only for p = q, and feels an error of the masses in second order only. For smooth densities at
    uniform points that reach into both tails the error is round-off; for cell averages it is
    O(dx^2) and from below (averaging loses information).

    Values below 1e-300 are raised to 1e-300, so a q of 0 under a positive p gives a large number
    and not infinity: about 690 nats times the mass of p there.

    Args:
        p: shape (cells,), densities at uniform points or averages over cells.
        q: shape (cells,), the same for the other law.
        dx: the spacing, or the cells' increasing edges of shape (cells + 1,).

    Raises:
        ValueError: for values not finite, shapes that differ, a mass off 1 by more than 1e-2,
            negative values with more than 1e-6 of mass, a dx that is not positive.
        TypeError: for densities that are not floating tensors or a dx that is not a number.
    """
    p, q, widths = _densities(p, q, dx)
    p, q = p.clamp(min=_TINY), q.clamp(min=_TINY)
    excess = (q - p) / p
    # log(q/p) by log1p where the two are close, where the plain difference has no digits left.
    log_ratio = torch.where(excess.abs() < 0.5, torch.log1p(excess), q.log() - p.log())
    return float((((q - p) - p * log_ratio) * widths).sum())


def total_variation(p: Tensor, q: Tensor, dx: float | Tensor) -> float:
    """Total variation distance, half the integral of |p - q|, of densities on a grid.

    Values below 0 are set to 0. The error is at most dx^2/8 |p' - q'| at each crossing of p and q,
    to leading order, and from below for cell averages.

    Args:
        p: shape (cells,), densities at uniform points or averages over cells.
        q: shape (cells,), the same for the other law.
        dx: the spacing, or the cells' increasing edges of shape (cells + 1,).

    Returns:
        A number in [0, 1], up to the error of the masses.

    Raises:
        ValueError: as `kl_divergence`.
        TypeError: as `kl_divergence`.
    """
    p, q, widths = _densities(p, q, dx)
    return 0.5 * float(((p.clamp(min=0) - q.clamp(min=0)).abs() * widths).sum())


def floor(
    metric: Callable[[Tensor, _Law], float],
    truth: _Law,
    n: int,
    repeats: int = 40,
    seed: int = 0,
) -> Floor:
    """What `repeats` independent sets of n exact samples score against their own law.

    A sampler whose score is above `quantile95` differs from the truth, at that level; one below it
    cannot be told from the truth with n samples.

    Args:
        metric: called as `metric(samples, truth)` with samples of shape (n, d); returns a number.
        truth: a law with `sample(n, seed=...)`.
        n: samples in a set, at least 2; the number the sampler was given.
        repeats: sets, at least 2.
        seed: of all sets together; each set has its own, drawn from it.

    Raises:
        ValueError: for n < 2, repeats < 2, or a metric that is not finite.
        TypeError: for counts that are not integers or a metric that is not a number.
    """
    check_integer("n", n, 2)
    check_integer("repeats", repeats, 2)
    generator = torch.Generator().manual_seed(check_integer("seed", seed, 0))
    seeds = torch.randint(2**48, (repeats,), generator=generator).tolist()
    values = [_score(metric(truth.sample(n, seed=each), truth)) for each in seeds]
    scores = torch.tensor(values, dtype=torch.float64)
    high = float(scores.quantile(0.95))
    return Floor(float(scores.mean()), float(scores.std()), high, tuple(values))


def _law_cost(x: Tensor, truth: Truth1D, p: int) -> float:
    """W_p^p of sorted samples (n,) to a law."""
    n = len(x)
    try:
        left, right, series = _quantile_series(truth)
    except TypeError:  # unhashable: not kept
        left, right, series = _quantile_series.__wrapped__(truth)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    cuts = [steps, left]
    if p == 1:
        # Where x_i - G^{-1} changes sign within its cell, if it does.
        cuts.append(truth.cdf(x).double().clamp(min=steps[:-1], max=steps[1:]))
    edges = torch.cat(cuts).unique()
    width = edges.diff()
    middle = edges[:-1] + width / 2
    panel = torch.searchsorted(left, middle, right=True) - 1
    u = middle[:, None] + width[:, None] / 2 * _NODES
    z = (u - left[panel, None]) * (2 / (right - left))[panel, None] - 1
    gap = x[(middle * n).long().clamp(max=n - 1), None] - _legendre_sum(series[panel], z)
    cost = (gap @ _WEIGHTS).abs() if p == 1 else gap.square() @ _WEIGHTS
    return float(width @ cost)


@lru_cache(maxsize=8)  # a table asks for the same law's quantiles dozens of times
def _quantile_series(truth: Truth1D) -> tuple[Tensor, Tensor, Tensor]:
    """G^{-1} as Legendre series (panels, degree) on panels [left, right] that cover (0, 1).

    Panels shrink by halves towards both ends, and are halved where the series does not settle.
    """
    tail = torch.exp2(torch.arange(math.log2(_NARROWEST), 0, dtype=torch.float64))
    edges = torch.cat([tail.new_zeros(1), tail, 1 - tail[:-1].flip(0), tail.new_ones(1)])
    left, right = edges[:-1], edges[1:]
    done: list[tuple[Tensor, Tensor, Tensor]] = []
    allowed = 0.0
    while len(left):
        u = left[:, None] + (right - left)[:, None] * (1 + _NODES) / 2
        quantiles = truth.quantile(u.clamp(max=1 - 2.0**-53).reshape(-1))
        series = _exact("truth.quantile(u)", quantiles).reshape(u.shape) @ _TO_SERIES
        width = right - left
        # The scale is the first estimate of the mean distance to the law's local means.
        allowed = allowed or _TOLERANCE * float(width @ series[:, 1].abs())
        again = (width * series[:, -2:].abs().amax(1) > allowed) & (width > _NARROWEST)
        done.append((left[~again], right[~again], series[~again]))
        left, right = left[again], right[again]
        middle = (left + right) / 2
        left, right = torch.cat([left, middle]), torch.cat([middle, right])
    left, right, series = (torch.cat(parts) for parts in zip(*done, strict=True))
    order = left.argsort()
    return left[order], right[order], series[order]


def _legendre_sum(series: Tensor, z: Tensor) -> Tensor:
    """Legendre series (panels, degree) at z (panels, points) by the three-term recurrence."""
    before, now = torch.ones_like(z), z
    total = series[:, :1] + series[:, 1:2] * z
    for k in range(2, series.shape[1]):
        before, now = now, ((2 * k - 1) * z * now - (k - 1) * before) / k
        total = torch.addcmul(total, series[:, k : k + 1], now)
    return total


def _step_cost(x: Tensor, y: Tensor, p: int) -> Tensor:
    """W_p^p of sorted columns, (n, k) against (m, k), shape (k,)."""
    n, m = len(x), len(y)
    if n == m:
        return (x - y).abs().pow(p).mean(0)
    # Steps end at i/n and j/m; in units of 1/(n m) these are integers and the merge is exact.
    ends = torch.cat([torch.arange(n + 1) * m, torch.arange(m + 1) * n]).unique()
    starts, widths = ends[:-1], ends.diff().double() / (n * m)
    return widths @ (x[starts // m] - y[starts // n]).abs().pow(p)


def _distance_sums(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row sums (n,), column sums (m,) and the sum of squares of the distances |x_i - y_j|."""
    center = x.mean(0)
    x, y = x - center, y - center
    if x.shape[1] == 1:
        squares = len(y) * x.square().sum() + len(x) * y.square().sum() - 2 * x.sum() * y.sum()
        return _line_sums(x[:, 0], y[:, 0]), _line_sums(y[:, 0], x[:, 0]), squares
    rows, columns = x.new_empty(len(x)), x.new_zeros(len(y))
    squares = x.new_zeros(())
    # The matrix product is fast, but loses the small distances, which few dimensions have many of.
    mode = "use_mm_for_euclid_dist" if x.shape[1] > 8 else "donot_use_mm_for_euclid_dist"
    step = max(1, _BLOCK // len(y))
    for start in range(0, len(x), step):
        distances = torch.cdist(x[start : start + step], y, compute_mode=mode)
        rows[start : start + step] = distances.sum(1)
        columns += distances.sum(0)
        squares += distances.flatten().dot(distances.flatten())
    return rows, columns, squares


def _line_sums(x: Tensor, y: Tensor) -> Tensor:
    """Sum over j of |x_i - y_j| on the line, shape (n,), by sorting."""
    y = y.sort().values
    below = torch.searchsorted(y, x)
    prefix = torch.cat([y.new_zeros(1), y.cumsum(0)])
    return x * (2 * below - len(y)) + prefix[-1] - 2 * prefix[below]


def _within(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of |x_i - x_j| over pairs, its effects (n,), and the variance of its interactions.

    The analysis of variance of a half diallel: |x_i - x_j| = mean + e_i + e_j + interaction.
    """
    n = len(x)
    rows, _, squares = _distance_sums(x, x)
    mean = rows.mean() / (n - 1)
    effects = (rows / (n - 1) - mean) * (n - 1) / (n - 2)
    residual = squares / 2 - n * (n - 1) / 2 * mean**2 - (n - 2) * effects.square().sum()
    return mean, effects, (residual / (n * (n - 3) / 2)).clamp(min=0)


def _densities(p: Tensor, q: Tensor, dx: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Densities and cell widths as float64 (cells,), checked."""
    p, q = _exact("p", p), _exact("q", q)
    if p.ndim != 1 or p.shape != q.shape or len(p) == 0:
        shapes = f"{tuple(p.shape)} and {tuple(q.shape)}"
        raise ValueError(f"p and q must share one shape (cells,), got {shapes}")
    widths = _widths(dx, len(p))
    for name, density in (("p", p), ("q", q)):
        mass = float((density * widths).sum())
        if abs(mass - 1) > _MASS_ERROR:
            raise ValueError(
                f"{name} must integrate to 1 within {_MASS_ERROR} on the grid, got {mass:.6g}"
            )
        negative = -float((density.clamp(max=0) * widths).sum())
        if negative > _NEGATIVE_MASS:
            raise ValueError(
                f"{name} must not be negative, got values of negative mass {negative:.3g},"
                f" allowed {_NEGATIVE_MASS}"
            )
    return p, q, widths


def _widths(dx: float | Tensor, cells: int) -> Tensor:
    """Widths (cells,) from a spacing or from edges (cells + 1,)."""
    if isinstance(dx, Tensor) and dx.ndim > 0:
        edges = _exact("dx", dx)
        if edges.shape != (cells + 1,) or not bool((edges.diff() > 0).all()):
            raise ValueError(
                f"dx as edges must be increasing of shape ({cells + 1},),"
                f" got shape {tuple(edges.shape)}"
            )
        return edges.diff()
    if isinstance(dx, Tensor):
        dx = dx.item()
    if isinstance(dx, bool) or not isinstance(dx, int | float):
        raise TypeError(f"dx must be a number or a tensor of edges, got {type(dx).__name__}")
    if not (math.isfinite(dx) and dx > 0):
        raise ValueError(f"dx must be finite and positive, got {dx!r}")
    return torch.full((cells,), float(dx), dtype=torch.float64)


def _exact(name: str, values: Tensor) -> Tensor:
    """The values as float64 on the CPU, known to be finite."""
    return check_finite(name, values).detach().to("cpu", torch.float64)


def _batch(name: str, samples: Tensor, least: int) -> Tensor:
    """Samples as (n, d), events flattened, n >= least."""
    samples = _exact(name, samples)
    n = len(samples) if samples.ndim else 0
    if n < least or samples.numel() == 0:
        raise ValueError(
            f"{name} must hold at least {least} samples, got shape {tuple(samples.shape)}"
        )
    return samples.reshape(n, -1)


def _line(name: str, samples: Tensor) -> Tensor:
    """Samples on the line as (n,)."""
    batch = _batch(name, samples, 2)
    if batch.shape[1] != 1:
        raise ValueError(f"{name} must have shape (n,) or (n, 1), got shape {tuple(samples.shape)}")
    return batch[:, 0]


def _pair(x: Tensor, y: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Two sets of samples of one dimension, (n, d) and (m, d)."""
    a, b = _batch("x", x, least), _batch("y", y, least)
    if a.shape[1] != b.shape[1]:
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ValueError(f"x and y must have samples of one dimension, got shapes {shapes}")
    return a, b


def _check_order(p: int) -> None:
    if isinstance(p, bool) or not isinstance(p, int):
        raise TypeError(f"p must be the integer 1 or 2, got {p!r}")
    if p not in (1, 2):
        raise ValueError(f"p must be 1 or 2, got {p!r}")


def _score(value: float) -> float:
    """A metric's value as a finite float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"metric must return a number, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"metric must return a finite number, got {value!r}")
    return float(value)
