"""A density on the line that is known without sampling, and its exact distances from another law.

It is the law of x(u), where u has a density rho on uniform nodes and x is a smooth map of u. With x = u that
is a density on a grid; with u the start of a deterministic sampler it is what the sampler makes of its prior,
carried along with no grid for x. Sums over the nodes are spectrally accurate for smooth densities that decay.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from sdekit.errors import NumericsError, check_finite

#: Densities below this part of the peak are round-off.
NOISE = 1e-15
#: Tails of less mass have no rank that tells their quantile: their absolute error is 1e-16.
_RANKED = 1e-13
#: Degree of the splines between nodes.
_DEGREE = 7


@runtime_checkable
class Law(Protocol):
    """A law on the line with a density, such as a 1-D `GaussianMixture` or a `Density1D`.

    x is (n,) float64 in every method.
    """

    def log_prob(self, x: Tensor, /) -> Tensor:
        """Log density in nats."""
        ...

    def cdf(self, x: Tensor, /) -> Tensor:
        """P(X <= x)."""
        ...

    def survival(self, x: Tensor, /) -> Tensor:
        """P(X > x), with the digits of the right tail."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class Density1D:
    """The law of x(u) for u of density rho: pdf, cdf, quantiles, and distances in nats or units of x.

    Attributes:
        nodes: u, uniform, (points,) float64.
        rho: density of u at the nodes.
        x: x(u) at the nodes.
        slope: dx/du at the nodes; positive, unless the map folds.
        t: process time of the law.
        nfe: model calls a sample costs.
        error: total variation between this law and the one on half the nodes: a bound, mostly generous, on
            what the nodes leave out (NaN where it was not asked for).
        alarms: what may be wrong with the numbers, in words; empty if nothing is.
    """

    nodes: np.ndarray
    rho: np.ndarray
    x: np.ndarray
    slope: np.ndarray
    t: float = math.nan
    nfe: int = 0
    error: float = math.nan
    alarms: tuple[str, ...] = ()

    def __repr__(self) -> str:
        alarms = "".join(f", {alarm}" for alarm in self.alarms)
        return f"Density1D(t={self.t:g}, {len(self.nodes)} points, error={self.error:.1e}{alarms})"

    # ---- the law itself --------------------------------------------------------------------------
    @property
    def mass(self) -> float:
        """The integral of the density: off 1 by what aliasing and the ends of the grid lose."""
        return float(self._h * self.rho.sum())

    @property
    def mean(self) -> float:
        """E[X]."""
        return float(self._h * (self.rho @ self.x))

    @property
    def variance(self) -> float:
        """Var(X)."""
        return float(self._h * (self.rho @ (self.x - self.mean) ** 2))

    @property
    def folded(self) -> bool:
        """Whether the map turns back or stands still: the density has infinite peaks, W1 and W2 are left."""
        return bool((self.slope <= 0).any())

    def pdf(self, x: Tensor) -> Tensor:
        """Density at x of any shape, float64."""
        return self._at(x, lambda u: self._rho(u).clip(0.0) * np.exp(-self._log_slope(u)), 0.0, 0.0)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density at x in nats; -inf where the density is below round-off."""
        return self.pdf(x).log()

    def cdf(self, x: Tensor) -> Tensor:
        """P(X <= x), elementwise."""
        return self._at(x, lambda u: self._below(u).clip(0.0, 1.0), 0.0, 1.0)

    def survival(self, x: Tensor) -> Tensor:
        """P(X > x), elementwise; absolute accuracy."""
        total = self._below(self.nodes[-1])
        return self._at(x, lambda u: (total - self._below(u)).clip(0.0, 1.0), 1.0, 0.0)

    def quantile(self, u: Tensor) -> Tensor:
        """The x with cdf(x) = u, elementwise for u in [0, 1]; 0 and 1 give the ends of the nodes."""
        levels = check_finite("u", torch.as_tensor(u, dtype=torch.float64)).detach().cpu().numpy()
        if levels.size and not (levels.min() >= 0 and levels.max() <= 1):
            raise ValueError(f"u must lie in [0, 1], got [{levels.min()}, {levels.max()}]")
        self._require_density("quantile")
        where = _inverse(self._below, self.nodes, self._below(self.nodes), levels.ravel())
        return torch.from_numpy(self._x(where).reshape(levels.shape))

    def thinned(self) -> "Density1D":
        """The same law with every other node."""
        parts = (part[::2] for part in (self.nodes, self.rho, self.x, self.slope))
        return Density1D(*parts, t=self.t, nfe=self.nfe)

    # ---- distances -------------------------------------------------------------------------------
    def kl(self, target: Law) -> float:
        """KL(self || target) in nats, the sum of rho log(rho / q) - rho + q >= 0: no error of first order."""
        self._require_density("kl")
        log_q, q = self._target_density(target)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            excess = self.rho / q - 1
            near = q * ((1 + excess) * np.log1p(excess) - excess)
            far = self.rho * (np.log(self.rho) - log_q) - self.rho + q
        terms = np.where(np.abs(excess) < 0.5, near, far)
        return float(self._h * np.where(self._present, terms, q).sum()) + self._outside(target)

    def tv(self, target: Law) -> float:
        """Total variation, half the integral of |p - q|, in [0, 1]."""
        self._require_density("tv")
        _, q = self._target_density(target)
        return 0.5 * (_absolute_integral(self.nodes, self.rho - q) + self._outside(target))

    def w1(self, target: Law) -> float:
        """Wasserstein-1 distance, in units of x."""
        if self.folded:
            return self._folded_wasserstein(target, 1)
        return _absolute_integral(self.nodes, self._displacement(target) * self.rho)

    def w2(self, target: Law) -> float:
        """Wasserstein-2 distance, in units of x."""
        if self.folded:
            return self._folded_wasserstein(target, 2)
        return math.sqrt(float(self._h * (self.rho @ self._displacement(target) ** 2)))

    # ---- private ---------------------------------------------------------------------------------
    @cached_property
    def _h(self) -> float:
        return float(self.nodes[-1] - self.nodes[0]) / (len(self.nodes) - 1)

    @cached_property
    def _present(self) -> np.ndarray:
        return self.rho > NOISE * self.rho.max()

    @cached_property
    def _rho(self) -> Any:
        return spline(self.nodes, self.rho)

    @cached_property
    def _below(self) -> Any:
        """P(U <= u)."""
        return self._rho.antiderivative()

    @cached_property
    def _x(self) -> Any:
        return spline(self.nodes, self.x)

    @cached_property
    def _log_slope(self) -> Any:
        """The logarithm keeps a steep or flat map rising between nodes."""
        return spline(self.nodes, np.log(self.slope))

    def _at(self, x: Tensor, function: Any, left: float, right: float) -> Tensor:
        """`function` of the u with x(u) = x; `left` and `right` of the nodes."""
        self._require_density("the density")
        points = torch.as_tensor(x, dtype=torch.float64).detach().cpu().numpy()
        flat = points.ravel()
        inside = (flat >= self.x[0]) & (flat <= self.x[-1])
        # NaN is neither left nor right of anything.
        out = np.where(flat < self.x[0], left, np.where(flat > self.x[-1], right, np.nan))
        out[inside] = function(_inverse(self._x, self.nodes, self.x, flat[inside]))
        return torch.from_numpy(out.reshape(points.shape))

    def _require_density(self, what: str) -> None:
        if self.folded:
            raise NumericsError(
                f"{what} needs a map that does not fold: here states cross or meet, so the density has "
                "infinite peaks; w1 and w2 are given"
            )

    def _target_density(self, target: Law) -> tuple[np.ndarray, np.ndarray]:
        """Log density and density of the target with respect to u."""
        log_q = check_law(target).log_prob(torch.from_numpy(self.x)).numpy() + np.log(self.slope)
        return log_q, np.exp(log_q)

    def _outside(self, target: Law) -> float:
        """The target's mass beyond the nodes."""
        left, right = torch.from_numpy(self.x[[0, -1]]).split(1)
        return float(target.cdf(left)) + float(target.survival(right))

    def _displacement(self, target: Law) -> np.ndarray:
        """x less the target's point of the same rank, at the nodes; 0 in tails whose rank is round-off."""
        below = self._below(self.nodes)
        above = below[-1] - below
        y = same_rank(check_law(target), below, above, self.x)
        return np.where(np.minimum(below, above) > _RANKED, self.x - y, 0.0)

    def _folded_wasserstein(self, target: Law, p: int) -> float:
        """The nodes as weighted points in order: the density has peaks, its integral has none."""
        order = np.argsort(self.x, kind="stable")
        weight = self._h * self.rho[order]
        below = np.cumsum(weight) - weight / 2
        above = weight.sum() - below
        y = same_rank(check_law(target), below, above, self.x[order])
        away = np.where(np.minimum(below, above) > _RANKED, np.abs(self.x[order] - y), 0.0)
        return float(weight @ away**p) ** (1 / p)


def check_law(target: Any) -> Law:
    """A law on the line, or a refusal."""
    dim = getattr(target, "dim", 1)
    if not isinstance(target, Law) or dim != 1:
        given = f"d = {dim}" if isinstance(target, Law) else type(target).__name__
        raise TypeError(
            "target must be a law on the line with log_prob, cdf and survival, such as a 1-D "
            f"GaussianMixture (target.at(process, t) is the law at time t), got {given}"
        )
    return target


def same_rank(
    target: Law, below: np.ndarray, above: np.ndarray, guess: np.ndarray, steps: int = 64
) -> np.ndarray:
    """The points of the target with the same mass below, or above where that is less, by bisection."""
    # Ranks that are round-off are not looked for: a heavy tail would send the ends to infinity.
    least, most = (max(float(rank), _RANKED) for rank in (below[0], above[-1]))
    low, high = (torch.tensor([end], dtype=torch.float64) for end in (guess.min(), guess.max()))
    span = (high - low).clamp(min=1e-9)  # all points may be one
    while float(target.cdf(low)) > least and span < 1e300:
        low, span = low - span, 2 * span
    while float(target.survival(high)) > most and span < 1e300:
        high, span = high + span, 2 * span
    lows, highs = low.repeat(len(guess)), high.repeat(len(guess))
    left, ranks = torch.from_numpy(below < above), torch.from_numpy(np.minimum(below, above))
    for _ in range(steps):
        middle = (lows + highs) / 2
        further = torch.empty_like(left)  # whether the point wanted is right of the middle
        further[left] = target.cdf(middle[left]) < ranks[left]
        further[~left] = target.survival(middle[~left]) > ranks[~left]
        lows, highs = torch.where(further, middle, lows), torch.where(further, highs, middle)
    return ((lows + highs) / 2).numpy()


def spline(nodes: np.ndarray, values: np.ndarray) -> Any:
    """The interpolating spline of degree 7."""
    from scipy.interpolate import make_interp_spline

    return make_interp_spline(nodes, values, k=_DEGREE)


def _absolute_integral(nodes: np.ndarray, values: np.ndarray) -> float:
    """The integral of |values|, cut where the sign changes: no kink is integrated over."""
    smooth = spline(nodes, values)
    area = smooth.antiderivative()
    some = np.flatnonzero(values)  # between neighbours of these the sign changes, if it does
    at, sign = nodes[some], np.sign(values[some])
    i = np.flatnonzero(sign[:-1] != sign[1:])
    low, high, sign = at[i], at[i + 1], sign[i]
    for _ in range(30):
        middle = (low + high) / 2
        before = sign * smooth(middle) > 0
        low, high = np.where(before, middle, low), np.where(before, high, middle)
    cuts = np.concatenate([nodes[:1], (low + high) / 2, nodes[-1:]])
    return float(np.abs(np.diff(area(cuts))).sum())


def _inverse(
    function: Any, nodes: np.ndarray, values: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
    """The u with function(u) = wanted for an increasing spline, by bisection between nodes."""
    i = np.searchsorted(values, wanted, side="right").clip(1, len(nodes) - 1)
    low, high = nodes[i - 1], nodes[i]
    for _ in range(50):
        middle = (low + high) / 2
        before = function(middle) < wanted
        low, high = np.where(before, middle, low), np.where(before, high, middle)
    return (low + high) / 2
