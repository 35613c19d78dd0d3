"""Noise schedules of the variance-preserving processes: beta(t) on t in [0, 1] and its integral.

A schedule is four functions of time: the rate `beta(t)`, its integral `B(t)` (so that the signal is
alpha = exp(-B / 2)), the exact increment `delta_B(s, t) = B(t) - B(s)` that keeps all digits when s and t are
close, and the `inverse` of B. Each takes and gives floats or float64 tensors. Every formula is the one
that loses no digits at either end: B has full relative accuracy down to t = 1e-12.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sdekit.elementary import (
    Number,
    atan2,
    cbrt,
    exp,
    expm1,
    log1p,
    ratio,
    sigmoid,
    sin,
    sqrt,
)
from sdekit.errors import check_number


class Schedule(ABC):
    """beta(t) on [0, 1] with its integral. Write `beta` and `B`; exact increments and inverse may follow."""

    @abstractmethod
    def beta(self, t: Number) -> Number:
        """Rate of the noise, beta(t) = B'(t) >= 0."""

    @abstractmethod
    def B(self, t: Number) -> Number:
        """Integral of beta from 0 to t, plus -2 log alpha(0) where the path does not start at data."""

    def delta_B(self, s: Number, t: Number) -> Number:
        """B(t) - B(s), accurate for close times."""
        return self.B(t) - self.B(s)

    def inverse(self, b: Number) -> Number:
        """The time at which B reaches b: bisection, then Newton steps that make the error relative."""
        target = torch.as_tensor(b, dtype=torch.float64)
        low, high = torch.zeros_like(target), torch.ones_like(target)
        for _ in range(60):
            middle = (low + high) / 2
            below = torch.as_tensor(self.B(middle)) < target
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        t = high
        for _ in range(3):
            t = (t - (self.B(t) - target) / self.beta(t)).clamp(0, 1)
        return t if isinstance(b, Tensor) else float(t)


@dataclass(frozen=True)
class Linear(Schedule):
    """beta(t) = beta_min + (beta_max - beta_min) t.  Song et al. 2021, eq. 33."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        _check_betas(self.beta_min, self.beta_max)

    def beta(self, t: Number) -> Number:
        """Rate at t."""
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def B(self, t: Number) -> Number:
        """beta_min t + (beta_max - beta_min) t^2 / 2."""
        return t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)

    def delta_B(self, s: Number, t: Number) -> Number:
        """Trapezoid, exact for a linear rate."""
        return 0.5 * (t - s) * (self.beta(s) + self.beta(t))

    def inverse(self, b: Number) -> Number:
        """The root of the quadratic, in the form that does not cancel."""
        slope = self.beta_max - self.beta_min
        return 2 * b / (sqrt(self.beta_min**2 + 2 * slope * b) + self.beta_min)


@dataclass(frozen=True)
class Constant(Schedule):
    """beta(t) = rate."""

    rate: float = 10.0

    def __post_init__(self) -> None:
        check_number("rate", self.rate, 0, open_low=True)

    def beta(self, t: Number) -> Number:
        """The rate, in the shape of t."""
        return self.rate + 0 * t

    def B(self, t: Number) -> Number:
        """Rate times t."""
        return self.rate * t

    def delta_B(self, s: Number, t: Number) -> Number:
        """Rate times (t - s)."""
        return self.rate * (t - s)

    def inverse(self, b: Number) -> Number:
        """B / rate."""
        return b / self.rate


@dataclass(frozen=True)
class Quadratic(Schedule):
    """sqrt(beta(t)) linear in t ("quad" in the code of Song, Meng & Ermon 2021)."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        _check_betas(self.beta_min, self.beta_max)

    def _root(self, t: Number) -> Number:
        low, high = math.sqrt(self.beta_min), math.sqrt(self.beta_max)
        return low + (high - low) * t

    def beta(self, t: Number) -> Number:
        """Square of the linear root."""
        return self._root(t) ** 2

    def B(self, t: Number) -> Number:
        """Integral from 0, as an increment: the difference of cubes would cancel."""
        return self.delta_B(0.0, t)

    def delta_B(self, s: Number, t: Number) -> Number:
        """(t - s) (a^2 + a b + b^2) / 3 with a, b the roots at s and t."""
        a, b = self._root(s), self._root(t)
        return (t - s) * (a * a + a * b + b * b) / 3

    def inverse(self, b: Number) -> Number:
        """Root of the cubic, in the form that does not cancel."""
        low, high = self._root(0.0), self._root(1.0)
        root = cbrt(low**3 + 3 * (high - low) * b)
        return 3 * b / (root * root + root * low + low * low)


@dataclass(frozen=True)
class Sigmoid(Schedule):
    """beta(t) = beta_min + (beta_max - beta_min) sigmoid(start + (end - start) t)."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    start: float = -6.0
    end: float = 6.0

    def __post_init__(self) -> None:
        _check_betas(self.beta_min, self.beta_max)
        check_number("start", self.start)
        check_number("end", self.end)
        check_number("end - start", self.end - self.start, 0, 500, open_low=True)

    def _argument(self, t: Number) -> Number:
        return self.start + (self.end - self.start) * t

    def beta(self, t: Number) -> Number:
        """Rate at t."""
        return self.beta_min + (self.beta_max - self.beta_min) * sigmoid(self._argument(t))

    def B(self, t: Number) -> Number:
        """Integral from 0, as an increment: the difference of softplus would cancel."""
        return self.delta_B(0.0, t)

    def delta_B(self, s: Number, t: Number) -> Number:
        """Closed form through log1p(sigmoid(l_s) expm1(l_t - l_s)) = softplus(l_t) - softplus(l_s)."""
        slope = self.end - self.start
        softplus_gain = log1p(sigmoid(self._argument(s)) * expm1(slope * (t - s)))
        return self.beta_min * (t - s) + (self.beta_max - self.beta_min) / slope * softplus_gain


class _CosineOfAngle(Schedule):
    """alpha(t) = cos(theta(t)) / cos(phi), theta linear in t. Partial: gives all four functions."""

    @abstractmethod
    def _geometry(self) -> tuple[float, float, float, float]:
        """(theta(0) - phi, d theta/dt, pi/2 - theta(1), phi); both differences are given exactly."""

    def _angle(self, t: Number) -> tuple[Number, Number, Number, float]:
        """theta - phi, theta, cos(theta) through the complement (exact near pi/2), and phi."""
        start, rate, gap, phi = self._geometry()
        return start + rate * t, phi + start + rate * t, sin(gap + rate * (1 - t)), phi

    def beta(self, t: Number) -> Number:
        """2 theta' tan(theta); infinite where theta reaches pi/2."""
        _, theta, cosine, _ = self._angle(t)
        return 2 * self._geometry()[1] * ratio(sin(theta), cosine)

    def B(self, t: Number) -> Number:
        """log(1 + sigma^2 / alpha^2): relative accuracy at t = 0 and an exact infinity at alpha = 0."""
        above, theta, cosine, phi = self._angle(t)
        return log1p(ratio(sin(above) * sin(theta + phi), cosine * cosine))

    def delta_B(self, s: Number, t: Number) -> Number:
        """Through cos(theta_t) - cos(theta_s) = -2 sin(mean) sin(half difference)."""
        theta_s, theta_t, cosine_s = self._angle(s)[1], self._angle(t)[1], self._angle(s)[2]
        half = 0.5 * self._geometry()[1] * (t - s)
        near = -2 * log1p(-2 * sin(0.5 * (theta_s + theta_t)) * sin(half) / cosine_s)
        far = self.B(t) - self.B(s)  # exact towards alpha = 0, where the form above cancels
        if isinstance(near, Tensor):
            return torch.where(near < 1, near, torch.as_tensor(far))
        return near if near < 1 else far

    def inverse(self, b: Number) -> Number:
        """The angle above phi from its sine and cosine, so that small times keep their digits."""
        start, rate, _, phi = self._geometry()
        noise_squared = -(math.cos(phi) ** 2) * expm1(-b)
        cosine, sine = math.cos(phi) * exp(-0.5 * b), sqrt(math.sin(phi) ** 2 + noise_squared)
        sine_sum = sine * math.cos(phi) + cosine * math.sin(phi)
        above = atan2(
            noise_squared / sine_sum if phi else sine,
            cosine * math.cos(phi) + sine * math.sin(phi),
        )
        return (above - start) / rate


@dataclass(frozen=True)
class Cosine(_CosineOfAngle):
    """alpha(t) = cos(u) / cos(u_0), u = (t + s) / (1 + s) pi / 2.  Nichol & Dhariwal 2021, eq. 17.

    alpha(1) = 0 exactly: beta is infinite there, and t_max of a process stops before.
    """

    s: float = 0.008

    def __post_init__(self) -> None:
        check_number("s", self.s, 0)

    def _geometry(self) -> tuple[float, float, float, float]:
        rate = 0.5 * math.pi / (1 + self.s)
        return 0.0, rate, 0.0, rate * self.s


@dataclass(frozen=True)
class Angle(_CosineOfAngle):
    """alpha(t) = cos(theta), theta linear from acos(signal_max) to acos(signal_min).

    The continuous-time DDIM schedule of Beres 2022 (Keras DDIM example). With signal_max < 1 the path does
    not start at data: sigma(0) = 0.31 for 0.95.
    """

    signal_max: float = 0.95
    signal_min: float = 0.02

    def __post_init__(self) -> None:
        check_number("signal_max", self.signal_max, 0, 1, open_low=True)
        check_number("signal_min", self.signal_min, 0, self.signal_max, open_high=True)

    def _geometry(self) -> tuple[float, float, float, float]:
        start, end = math.acos(self.signal_max), math.acos(self.signal_min)
        return start, end - start, math.asin(self.signal_min), 0.0


@dataclass(frozen=True, repr=False)
class Tabulated(Schedule):
    """The discrete chain beta_1 .. beta_N as a rate: beta(t) = -N log(1 - beta_i) on (i/N, (i+1)/N], 0-based.

    B is piecewise linear through B(i/N) = -sum log(1 - beta_j), so the process has the alpha_bar of the chain
    at every grid point. `zero_terminal_snr` admits a last beta of exactly 1 (alpha_bar = 0 at t = 1).
    """

    betas: tuple[float, ...]
    zero_terminal_snr: bool = False

    def __init__(self, betas: Tensor | Iterable[float], zero_terminal_snr: bool = False) -> None:
        values = check_beta_table(betas, zero_terminal_snr)
        object.__setattr__(self, "betas", tuple(values.tolist()))
        object.__setattr__(self, "zero_terminal_snr", zero_terminal_snr)

    def __repr__(self) -> str:
        return f"Tabulated({len(self.betas)} betas, {self.betas[0]:g} to {self.betas[-1]:g})"

    @cached_property
    def _tables(self) -> tuple[Tensor, Tensor]:
        """Increments of B per cell, and B at the N + 1 grid points."""
        steps = -torch.log1p(-torch.tensor(self.betas, dtype=torch.float64))
        return steps, torch.cat([torch.zeros(1, dtype=torch.float64), steps.cumsum(0)])

    @cached_property
    def _lists(self) -> tuple[list[float], list[float]]:
        return self._tables[0].tolist(), self._tables[1].tolist()

    def _locate(self, t: Number) -> tuple[Number, Number, Number, Number]:
        """(cell, t N - cell, increment of the cell, B at its left end); the cell is open at its left."""
        n = len(self.betas)
        if isinstance(t, Tensor):
            position = t * n
            nearest = position.round()
            missed = (nearest - position).detach()  # a constant: position keeps its derivative in t
            position = torch.where(missed.abs() <= 4e-16 * nearest, position + missed, position)
            cell = (position.ceil() - 1).clamp(0, n - 1).long()
            steps, cumulative = (table.to(t.device) for table in self._tables)
            return cell, position - cell, steps[cell], cumulative[cell]
        position = t * n
        # i/N * N can miss i by an ulp; grid points must be hit exactly.
        if abs(position - round(position)) <= 4e-16 * round(position):
            position = float(round(position))
        cell = min(max(math.ceil(position) - 1, 0), n - 1)
        steps, cumulative = self._lists
        return cell, position - cell, steps[cell], cumulative[cell]

    def beta(self, t: Number) -> Number:
        """N times the increment of the cell that ends at or after t."""
        return len(self.betas) * self._locate(t)[2]

    def B(self, t: Number) -> Number:
        """Linear within a cell."""
        _, fraction, step, left = self._locate(t)
        return left + _times(fraction, step)

    def delta_B(self, s: Number, t: Number) -> Number:
        """Within one cell a product, across cells the sum of whole increments and two parts."""
        cell_s, part_s, step_s, left_s = self._locate(s)
        cell_t, part_t, step_t, left_t = self._locate(t)
        inside = _times(len(self.betas) * (t - s), step_t)
        across = _times(1 - part_s, step_s) + (left_t - (left_s + step_s)) + _times(part_t, step_t)
        if isinstance(s, Tensor) or isinstance(t, Tensor):
            return torch.where(torch.as_tensor(cell_s == cell_t), inside, across)
        return inside if cell_s == cell_t else across

    def inverse(self, b: Number) -> Number:
        """Linear interpolation in the table; past the last finite value, the last time it stands for."""
        steps, cumulative = self._tables
        target = torch.as_tensor(b, dtype=torch.float64).contiguous()
        cell = (torch.searchsorted(cumulative.to(target.device), target) - 1).clamp(
            0, len(steps) - 1
        )
        step, left = steps.to(target.device)[cell], cumulative.to(target.device)[cell]
        fraction = torch.where(
            torch.isinf(step), torch.isinf(target).double(), (target - left) / step
        )
        t = (cell + fraction.clamp(max=1.0)) / len(steps)
        return t if isinstance(b, Tensor) else float(t)


def _times(part: Number, step: Number) -> Number:
    """part * step, with 0 * inf = 0: an empty part of an infinite cell is nothing."""
    if isinstance(part, Tensor) or isinstance(step, Tensor):
        product = torch.as_tensor(part * step)
        return torch.where(torch.as_tensor(part) == 0, torch.zeros_like(product), product)
    return part * step if part else 0.0


def _check_betas(low: float, high: float) -> None:
    check_number("beta_min", low, 0, open_low=True)
    check_number("beta_max", high, 0, open_low=True)
    if low > high:
        raise ValueError(f"beta_min must be <= beta_max, got {low} > {high}")


def check_beta_table(betas: Tensor | Iterable[float], zero_terminal_snr: bool = False) -> Tensor:
    """The betas of a discrete chain as a float64 vector, each in (0, 1).

    Raises:
        ValueError: not one-dimensional, empty, NaN, <= 0, >= 1 (a last 1 needs `zero_terminal_snr`), or a
            table that looks like alpha_bar.
    """
    if not isinstance(betas, Tensor):
        if not isinstance(betas, Iterable):
            raise TypeError(f"betas must be a vector, got {betas!r} ({type(betas).__name__})")
        betas = torch.tensor(list(betas), dtype=torch.float64)
    values = betas.detach().to("cpu", torch.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"betas must be a non-empty vector, got shape {tuple(values.shape)}")
    if len(values) > 2 and values[0] > 0.9 and bool((values.diff() < 0).all()):
        raise ValueError(
            "betas decrease from near 1, as alpha_bar does; betas are 1 - alpha_bar[1:] / alpha_bar[:-1]"
        )
    allowed = values < 1
    if zero_terminal_snr and values[-1] == 1:
        allowed[-1] = True
    bad = ~((values > 0) & allowed)
    if bad.any():
        i = int(bad.nonzero()[0])
        hint = "; a last beta of 1 needs zero_terminal_snr=True" if values[i] == 1 else ""
        raise ValueError(f"betas must lie in (0, 1), got betas[{i}] = {float(values[i])}{hint}")
    return values


#: One instance of every schedule; tests and documentation iterate over it.
ALL: tuple[Schedule, ...] = (
    Linear(),
    Cosine(),
    Quadratic(),
    Sigmoid(),
    Constant(),
    Angle(),
    Tabulated([1e-4 + i * (0.02 - 1e-4) / 999 for i in range(1000)]),
)
