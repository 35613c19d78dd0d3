"""Forward processes: x_t | x_0 ~ N(alpha(t) x_0, sigma(t)^2 I), with the SDE that has these marginals.

A process *is* its two curves. `alpha` and `sigma` are written once per process in a form that loses no
digits; the SDE dx = f(t) x dt + g(t) dW, the transitions, the log-signal-to-noise clock and its inverse
are derived from them in the base class, and given in closed form where there is one
(Song et al. 2021, "Score-based generative modeling through SDEs", eqs. 29-33; Karras et al. 2022, table 1).

`alpha`, `sigma`, `log_snr`, `perturb`, `transition` live on the closed interval [0, T]. `drift` and
`diffusion`, like every reading of a model, live on [t_min, t_max], away from the singular ends.

A new process: subclass `Process`, write `_alpha(t)` and `_sigma(t)` for floats and float64 tensors with the
functions of `sdekit.elementary`, set `horizon`, and add an instance to `ALL`.
"""

import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp

from sdekit.elementary import (
    Number,
    asinh,
    exp,
    expm1,
    log,
    log1p,
    ratio,
    sigmoid,
    softplus,
    sqrt,
)
from sdekit.errors import check_integer, check_number, generator_of
from sdekit.schedules import Angle, Cosine, Linear, Schedule, Tabulated


def expand(value: Number, x: Tensor) -> Number:
    """A float as it is; a 0-d or an (n,) tensor like x and shaped to multiply a batch x (n, *event).

    Raises:
        ValueError: a time of another shape; torch would broadcast (n, 1) against (n,) to (n, n).
    """
    if not isinstance(value, Tensor):
        return value
    if value.ndim == 0:
        return value.to(x)
    if x.ndim == 0 or value.shape != x.shape[:1]:
        raise ValueError(
            f"t must be a number or have shape (n,) = {tuple(x.shape[:1])}, got {tuple(value.shape)}"
        )
    return value.to(x).view(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True)
class GaussianPrior:
    """N(0, std^2 I), where sampling starts."""

    std: float

    def sample(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """A draw of the given shape; a fresh unseeded generator if none is given."""
        return self.std * torch.randn(shape, generator=generator_of(None, generator), dtype=dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of each row of x (n, *event), in nats: shape (n,)."""
        flat = x.flatten(1) if x.ndim > 1 else x[:, None]
        constant = flat.shape[1] * math.log(self.std * math.sqrt(2 * math.pi))
        return -0.5 * (flat / self.std).square().sum(1) - constant


@dataclass(frozen=True)
class Node:
    """A process at one time, as plain floats: what a sampler's formula is written in."""

    t: float
    alpha: float
    sigma: float
    index: int | None = None

    @property
    def half_log_snr(self) -> float:
        """log(alpha / sigma), the lambda of the solver literature."""
        return math.log(self.alpha / self.sigma)

    @property
    def rho(self) -> float:
        """sigma / alpha, the sigma of Karras et al. 2022."""
        return self.sigma / self.alpha


class Process(ABC):
    """The two curves and everything that follows from them. Times are floats, 0-d or (n,) tensors.

    Float in gives float out; tensor in gives a tensor of the same dtype, computed in float64 where the
    device has it.
    """

    @property
    def horizon(self) -> float:
        """Final time T."""
        return 1.0

    @property
    def t_min(self) -> float:
        """Smallest time at which a model is read: 1e-5 T."""
        return 1e-5 * self.horizon

    @cached_property
    def t_max(self) -> float:
        """T, or where log_snr = -20 if alpha(T) = 0 (to rounding: cos(pi / 2) is 6e-17)."""
        if self._alpha(self.horizon) > 1e-12:
            return self.horizon
        return float(self._time_at_log_snr(-20.0))

    @property
    def prior(self) -> GaussianPrior:
        """N(0, sigma(T)^2 I) unless the process has a better one."""
        return GaussianPrior(float(self._sigma(self.horizon)))

    # ---- what a process writes -------------------------------------------------------------------
    @abstractmethod
    def _alpha(self, t: Number) -> Number:
        """Signal rate on [0, T]."""

    @abstractmethod
    def _sigma(self, t: Number) -> Number:
        """Noise rate on [0, T], without cancellation at small t."""

    # ---- what follows; override where there is a closed form -------------------------------------
    def _curves(self, t: Number) -> tuple[Number, Number]:
        """Signal and noise rate, for less than one after the other where they share work."""
        return self._alpha(t), self._sigma(t)

    def _rates(self, t: Number) -> tuple[Number, Number]:
        """f = d log alpha / dt and g^2 = d sigma^2 / dt - 2 f sigma^2, by automatic differentiation.

        Forward mode, which nests: what is read off the rates can be differentiated in t again.
        """
        time = torch.as_tensor(t, dtype=torch.float64).clone()
        (alpha, d_alpha), (sigma, d_sigma) = (
            _with_slope(curve, time) for curve in (self._alpha, self._sigma)
        )
        f = d_alpha / alpha
        g2 = 2 * sigma * (d_sigma - f * sigma)
        return (f, g2) if isinstance(t, Tensor) else (float(f), float(g2))

    def _slopes(self, t: Number) -> tuple[Number, Number]:
        """d alpha / dt and d sigma / dt, from the rates."""
        (f, g2), sigma = self._rates(t), self._sigma(t)
        return f * self._alpha(t), f * sigma + 0.5 * ratio(g2, sigma)

    def _delta_log_snr(self, s: Number, t: Number) -> Number:
        """log_snr(t) - log_snr(s) for s < t."""
        return self._log_snr(t) - self._log_snr(s)

    def _scale(self, s: Number, t: Number) -> Number:
        """alpha(t) / alpha(s) for s < t."""
        return self._alpha(t) / self._alpha(s)

    def _log_snr(self, t: Number) -> Number:
        return 2 * (log(self._alpha(t)) - log(self._sigma(t)))

    def _time_at_log_snr(self, value: Number) -> Number:
        """Bisection in log t."""
        target = torch.as_tensor(value, dtype=torch.float64)
        low = torch.full_like(target, math.log(1e-30 * self.horizon))
        high = torch.full_like(target, math.log(self.horizon))
        for _ in range(100):
            middle = (low + high) / 2
            noisier = torch.as_tensor(self._log_snr(torch.exp(middle))) < target
            low, high = torch.where(noisier, low, middle), torch.where(noisier, middle, high)
        t = torch.exp(high)
        return t if isinstance(value, Tensor) else float(t)

    # ---- the public face -------------------------------------------------------------------------
    def alpha(self, t: Number) -> Number:
        """Signal rate; t in [0, T]."""
        return self._evaluate(self._alpha, t)

    def sigma(self, t: Number) -> Number:
        """Noise rate (a standard deviation); t in [0, T]."""
        return self._evaluate(self._sigma, t)

    def curves(self, t: Number) -> tuple[Number, Number]:
        """(alpha, sigma), for less than one after the other; t in [0, T]."""
        return self._evaluate_pair(self._curves, t)

    def log_snr(self, t: Number) -> Number:
        """log(alpha^2 / sigma^2), decreasing; +inf where sigma = 0, -inf where alpha = 0; t in [0, T]."""
        return self._evaluate(self._log_snr, t)

    def time_at_log_snr(self, value: Number) -> Number:
        """The time in [0, T] at which log_snr has the given value, which it must take there."""
        low, high = self._log_snr_range
        t = self._evaluate(self._time_at_log_snr, value, low, high, "log_snr")
        return t.clamp(0, self.horizon) if isinstance(t, Tensor) else min(max(t, 0.0), self.horizon)

    @cached_property
    def _log_snr_range(self) -> tuple[float, float]:
        """log_snr at T and at 0, each further out by what rounding may add to a finite value."""
        low, high = float(self._log_snr(self.horizon)), float(self._log_snr(0.0))
        return low - 1e-12 * (1 + abs(low)), high + 1e-12 * (1 + abs(high))

    def rates(self, t: Number) -> tuple[Number, Number]:
        """(f, g^2) of dx = f(t) x dt + g(t) dW on the closed [0, T]; may be infinite at a singular end."""
        return self._evaluate_pair(self._rates, t)

    def slopes(self, t: Number) -> tuple[Number, Number]:
        """(d alpha / dt, d sigma / dt) on the closed [0, T]; infinite or NaN at a singular end."""
        return self._evaluate_pair(self._slopes, t)

    def drift(self, x: Tensor, t: Number) -> Tensor:
        """f(t) x of the forward SDE (Song et al. 2021, eq. 5); t in [t_min, t_max]."""
        f = self._evaluate(lambda u: self._rates(u)[0], t, self.t_min, self.t_max)
        return expand(f, x) * x

    def diffusion(self, t: Number) -> Number:
        """g(t) of the forward SDE: the coefficient, not its square; t in [t_min, t_max]."""
        return self._evaluate(lambda u: sqrt(self._rates(u)[1]), t, self.t_min, self.t_max)

    def perturb(self, x0: Tensor, t: Number, noise: Tensor) -> Tensor:
        """alpha(t) x0 + sigma(t) noise for x0 and unit noise of shape (n, *event)."""
        if not x0.is_floating_point():
            raise TypeError(f"x0 must be floating point, got {x0.dtype}; scale it to float")
        if noise.shape != x0.shape:
            raise ValueError(
                f"noise must have the shape of x0, {tuple(x0.shape)}, got {tuple(noise.shape)}"
            )
        alpha, sigma = (expand(c, x0) for c in self.curves(t))
        return alpha * x0 + sigma * noise

    def transition(self, t_from: Number, t_to: Number) -> tuple[Number, Number]:
        """(scale, std) of x_to | x_from ~ N(scale x_from, std^2 I), forward: t_from <= t_to, in [0, T].

        std^2 = -sigma_to^2 expm1(log_snr_to - log_snr_from), from an increment that keeps its digits.
        """
        self._check_order(t_from, t_to)

        def std(s: Number, t: Number) -> Number:
            return self._sigma(t) * sqrt(-expm1(self._delta_log_snr(s, t)))

        scale = self._evaluate2(_unless_equal(self._scale, 1.0), t_from, t_to)
        return scale, self._evaluate2(_unless_equal(std, 0.0), t_from, t_to)

    def bridge(self, t_from: Number, t_to: Number) -> tuple[Number, Number, Number]:
        """(keep, pull, std) of x_to | x_from, x_0 ~ N(keep x_from + pull x_0, std^2 I), backward.

        t_to <= t_from in [0, T], sigma(t_from) > 0. Ho et al. 2020, eq. 7, for any process and any two times.
        """
        scale, std = self.transition(t_to, t_from)
        noise = self.sigma(t_from)
        shrink = self.sigma(t_to) / noise
        return scale * shrink * shrink, self.alpha(t_to) * (std / noise) ** 2, std * shrink

    def delta_log_snr(self, s: Number, t: Number) -> Number:
        """log_snr(t) - log_snr(s), with all digits when s and t are close; both in [0, T]."""
        forward = _unless_equal(self._delta_log_snr, 0.0)

        def signed(s: Number, t: Number) -> Number:
            if isinstance(s, Tensor) and isinstance(t, Tensor):
                change = torch.as_tensor(forward(torch.minimum(s, t), torch.maximum(s, t)))
                return torch.where(s > t, -change, change)
            return forward(s, t) if s <= t else -forward(t, s)

        return self._evaluate2(signed, s, t)

    def node(self, t: float, index: int | None = None) -> Node:
        """The process at one time, in floats."""
        t = float(t)
        return Node(t, float(self.alpha(t)), float(self.sigma(t)), index)

    def node_at_log_snr(self, value: float) -> Node:
        """The process at the time where log_snr has this value, in floats."""
        return self.node(float(self.time_at_log_snr(value)))

    def check_readable(self, t: Number) -> None:
        """Raise unless t lies in [t_min, t_max], or is T where alpha(T) = 0."""
        if self.t_max < self.horizon and not isinstance(t, Tensor) and t == self.horizon:
            return
        _check_time(t, self.t_min, self.t_max, "t", self)

    def snap(self, t: float, dtype: torch.dtype) -> float:
        """t, or the end of [t_min, t_max] that it missed by rounding in `dtype`."""
        nearest = min(max(t, self.t_min), self.t_max)
        return nearest if abs(t - nearest) <= torch.finfo(dtype).eps * 4 * self.horizon else t

    # ---- private ---------------------------------------------------------------------------------
    def _check_order(self, s: Number, t: Number) -> None:
        first, last = (torch.as_tensor(u, dtype=torch.float64, device="cpu") for u in (s, t))
        if not bool((first <= last).all()):
            raise ValueError(f"transition goes forward: t_from must be <= t_to, got {s} and {t}")

    def _evaluate(
        self,
        function: Callable[[Any], Any],
        t: Number,
        low: float = 0.0,
        high: float | None = None,
        name: str = "t",
    ) -> Any:
        """`function` at a checked time, in float64, returned in the kind and dtype of t."""
        _check_time(t, low, self.horizon if high is None else high, name, self)
        if not isinstance(t, Tensor):
            return float(function(float(t)))
        return torch.as_tensor(function(_widen(t))).to(t.dtype).expand(t.shape)

    def _evaluate_pair(
        self, function: Callable[[Any], tuple[Number, Number]], t: Number
    ) -> tuple[Any, Any]:
        """`_evaluate` on [0, T] for two values at once."""
        _check_time(t, 0.0, self.horizon, "t", self)
        if not isinstance(t, Tensor):
            first, second = function(float(t))
            return float(first), float(second)
        first, second = (torch.as_tensor(v).to(t.dtype) for v in function(_widen(t)))
        if first.shape == t.shape == second.shape:
            return first, second
        return first.expand(t.shape), second.expand(t.shape)

    def _evaluate2(self, function: Callable[[Any, Any], Any], s: Number, t: Number) -> Any:
        for time in (s, t):
            _check_time(time, 0.0, self.horizon, "t", self)
        if not (isinstance(s, Tensor) or isinstance(t, Tensor)):
            return float(function(float(s), float(t)))
        given = s if isinstance(s, Tensor) else torch.as_tensor(t)
        wide = _widen(given)  # a float beside a tensor must not pass through the default dtype
        start, end = (_widen(u) if isinstance(u, Tensor) else wide.new_tensor(u) for u in (s, t))
        start, end = torch.broadcast_tensors(start, end)
        return torch.as_tensor(function(start, end)).to(given.dtype).expand(end.shape)


def _widen(t: Tensor) -> Tensor:
    return t if t.device.type == "mps" else t.double()


def _unless_equal(function: Callable[[Any, Any], Number], limit: float) -> Callable[..., Number]:
    """`function(s, t)`, and its limit where s = t: a singular end gives 0 / 0 there."""

    def guarded(s: Number, t: Number) -> Number:
        if isinstance(s, Tensor):
            return torch.where(s == t, limit, torch.as_tensor(function(s, t)))
        return limit if s == t else function(s, t)

    return guarded


def _with_slope(curve: Callable[[Any], Number], t: Tensor) -> tuple[Tensor, Tensor]:
    """A curve and its derivative at t."""

    def value(u: Tensor) -> Tensor:
        return torch.as_tensor(curve(u), dtype=u.dtype).expand(u.shape)

    found = jvp(value, (t,), (torch.ones_like(t),))
    return found[0], found[1]


def _check_time(t: Any, low: float, high: float, name: str, process: Process) -> None:
    if isinstance(t, Tensor):
        if not t.is_floating_point():
            hint = "; divide a step index by N" if name == "t" else ""
            raise TypeError(f"{name} must be floating point, got a {t.dtype} tensor{hint}")
        if t.ndim > 1:
            raise ValueError(f"{name} must be a number or have shape (n,), got {tuple(t.shape)}")
        if t.is_meta or not t.numel():
            return
        first, last = (end.item() for end in t.aminmax())
        # A float32 time may round past a float64 end by half an ulp of that end.
        eps = torch.finfo(t.dtype).eps if t.dtype != torch.float64 else 0.0
        inside = first >= low - _slack(eps, low) and last <= high + _slack(eps, high)
        given: object = f"[{first:g}, {last:g}]"
    else:
        if isinstance(t, bool) or not isinstance(t, numbers.Real):
            raise TypeError(f"{name} must be a number or a tensor, got {t!r} ({type(t).__name__})")
        inside, given = low <= float(t) <= high, t
    if not inside:
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}] for {process!r}, got {given}")


def _slack(eps: float, end: float) -> float:
    return eps * abs(end) if math.isfinite(end) else 0.0


# ---------------------------------------------------------------------------- variance preserving


@dataclass(frozen=True, init=False)
class _Scheduled(Process):
    """Partial: a process whose signal is exp(-B / 2) for a schedule, and its noise `_noise(B)`."""

    schedule: Schedule

    def __init__(
        self,
        beta_min: float | None = None,
        beta_max: float | None = None,
        *,
        schedule: Schedule | None = None,
    ) -> None:
        if schedule is not None and not isinstance(schedule, Schedule):
            given = type(schedule).__name__
            if isinstance(schedule, type):
                given = f"the class {schedule.__name__}; give an instance"
            raise TypeError(f"schedule must be a Schedule, got {given}")
        if schedule is not None and (beta_min is not None or beta_max is not None):
            raise ValueError("give beta_min and beta_max (a linear schedule) or schedule, not both")
        if schedule is None:
            schedule = Linear(
                0.1 if beta_min is None else beta_min, 20.0 if beta_max is None else beta_max
            )
        object.__setattr__(self, "schedule", schedule)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.schedule!r})"

    @abstractmethod
    def _noise(self, B: Number) -> Number:
        """The noise rate where the integral of beta is B."""

    def _curves(self, t: Number) -> tuple[Number, Number]:
        B = self.schedule.B(t)
        return exp(-0.5 * B), self._noise(B)

    def _alpha(self, t: Number) -> Number:
        return exp(-0.5 * self.schedule.B(t))

    def _sigma(self, t: Number) -> Number:
        return self._noise(self.schedule.B(t))

    def _scale(self, s: Number, t: Number) -> Number:
        return exp(-0.5 * self.schedule.delta_B(s, t))

    @property
    def prior(self) -> GaussianPrior:
        """N(0, I)."""
        return GaussianPrior(1.0)


@dataclass(frozen=True, init=False, repr=False)
class VP(_Scheduled):
    """Variance preserving: alpha^2 + sigma^2 = 1.  Song et al. 2021, eq. 11.

    `VP(beta_min, beta_max)` has a linear beta; `VP(schedule=...)` any schedule; `VP.from_betas(betas)` is a
    discrete chain as a process.
    """

    @classmethod
    def from_betas(
        cls, betas: Tensor | Iterable[float], *, zero_terminal_snr: bool = False
    ) -> "VP":
        """The VP process with the alpha_bar of the chain beta_1 .. beta_N at every t = i / N."""
        return cls(schedule=Tabulated(betas, zero_terminal_snr))

    def to_betas(self, n: int) -> Tensor:
        """The N betas whose chain has the law of this process at t = i / N: 1 - exp(-increment of B)."""
        n = check_integer("n", n, 1)
        times = [i / n for i in range(n + 1)]
        increments = [float(self.schedule.delta_B(s, t)) for s, t in pairwise(times)]
        return -torch.expm1(-torch.tensor(increments, dtype=torch.float64))

    def _noise(self, B: Number) -> Number:
        return sqrt(-expm1(-B))

    def _rates(self, t: Number) -> tuple[Number, Number]:
        beta = self.schedule.beta(t)
        return -0.5 * beta, beta

    def _slopes(self, t: Number) -> tuple[Number, Number]:
        beta, B = self.schedule.beta(t), self.schedule.B(t)
        return -0.5 * beta * exp(-0.5 * B), ratio(0.5 * beta * exp(-B), self._sigma(t))

    def _delta_log_snr(self, s: Number, t: Number) -> Number:
        increment = self.schedule.delta_B(s, t)
        return -increment - _log_gain(increment, self.schedule.B(s))

    def _time_at_log_snr(self, value: Number) -> Number:
        return self.schedule.inverse(softplus(-value))


@dataclass(frozen=True, init=False, repr=False)
class SubVP(_Scheduled):
    """Sub-VP: sigma is the *variance* of the VP process with the same beta.  Song et al. 2021, eq. 12."""

    def _noise(self, B: Number) -> Number:
        return -expm1(-B)

    def _rates(self, t: Number) -> tuple[Number, Number]:
        beta = self.schedule.beta(t)
        return -0.5 * beta, beta * -expm1(-2 * self.schedule.B(t))

    def _slopes(self, t: Number) -> tuple[Number, Number]:
        beta, B = self.schedule.beta(t), self.schedule.B(t)
        return -0.5 * beta * exp(-0.5 * B), beta * exp(-B)

    def _delta_log_snr(self, s: Number, t: Number) -> Number:
        increment = self.schedule.delta_B(s, t)
        return -increment - 2 * _log_gain(increment, self.schedule.B(s))

    def _time_at_log_snr(self, value: Number) -> Number:
        # sigma / alpha = 2 sinh(B / 2)
        return self.schedule.inverse(2 * asinh(0.5 * exp(-0.5 * value)))


# ---------------------------------------------------------------------------- variance exploding


@dataclass(frozen=True)
class VE(Process):
    """Variance exploding: g^2 = d/dt sigma_min^2 (sigma_max / sigma_min)^(2t).  Song et al. 2021, eq. 30.

    The variance of this SDE started at data is sigma_min^2 (r^(2t) - 1), which is the default. Published code
    uses sigma_min^2 r^(2t), with a kernel that jumps at t = 0: `start_at_sigma_min=True`.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    start_at_sigma_min: bool = False

    def __post_init__(self) -> None:
        check_number("sigma_max", self.sigma_max, 0, open_low=True)
        check_number("sigma_min", self.sigma_min, 0, self.sigma_max, open_low=True, open_high=True)

    @property
    def _rate(self) -> float:
        return 2 * math.log1p((self.sigma_max - self.sigma_min) / self.sigma_min)

    def _alpha(self, t: Number) -> Number:
        return 1.0 + 0 * t

    def _sigma(self, t: Number) -> Number:
        if self.start_at_sigma_min:
            return self.sigma_min * exp(0.5 * self._rate * t)
        return self.sigma_min * sqrt(expm1(self._rate * t))

    def _rates(self, t: Number) -> tuple[Number, Number]:
        return 0.0 * t, self.sigma_min**2 * self._rate * exp(self._rate * t)

    def _delta_log_snr(self, s: Number, t: Number) -> Number:
        increment = self._rate * (t - s)
        if self.start_at_sigma_min:
            return -increment
        return -increment - _log_gain(increment, self._rate * s)

    def _time_at_log_snr(self, value: Number) -> Number:
        if self.start_at_sigma_min:
            return (-value - 2 * math.log(self.sigma_min)) / self._rate
        return log1p(exp(-value) / self.sigma_min**2) / self._rate


@dataclass(frozen=True)
class EDM(Process):
    """sigma = t: noise level as time, t in [0, sigma_max].  Karras et al. 2022, table 1."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        check_number("sigma_max", self.sigma_max, 0, open_low=True)
        check_number("sigma_min", self.sigma_min, 0, self.sigma_max, open_low=True, open_high=True)

    @property
    def horizon(self) -> float:
        """sigma_max."""
        return float(self.sigma_max)

    @property
    def t_min(self) -> float:
        """sigma_min."""
        return float(self.sigma_min)

    def _alpha(self, t: Number) -> Number:
        return 1.0 + 0 * t

    def _sigma(self, t: Number) -> Number:
        return t

    def _rates(self, t: Number) -> tuple[Number, Number]:
        return 0.0 * t, 2 * t

    def _slopes(self, t: Number) -> tuple[Number, Number]:
        return 0.0 * t, 1.0 + 0 * t

    def _delta_log_snr(self, s: Number, t: Number) -> Number:
        return -2 * log1p(ratio(t - s, s))

    def _time_at_log_snr(self, value: Number) -> Number:
        return exp(-0.5 * value)


# ---------------------------------------------------------------------------- constant coefficients


@dataclass(frozen=True, init=False)
class _ConstantRates(Process):
    """Partial: dx = -theta x dt + D dW with constant theta >= 0 and D, up to a finite horizon."""

    @abstractmethod
    def _constants(self) -> tuple[float, float]:
        """(theta, D^2)."""

    def _alpha(self, t: Number) -> Number:
        return exp(-self._constants()[0] * t)

    def _scale(self, s: Number, t: Number) -> Number:
        return exp(-self._constants()[0] * (t - s))

    def _sigma(self, t: Number) -> Number:
        theta, d2 = self._constants()
        return sqrt(d2 * (-expm1(-2 * theta * t) / (2 * theta) if theta else t))

    def _rates(self, t: Number) -> tuple[Number, Number]:
        theta, d2 = self._constants()
        return -theta + 0 * t, d2 + 0 * t

    def _slopes(self, t: Number) -> tuple[Number, Number]:
        theta, d2 = self._constants()
        decay = exp(-theta * t)
        return -theta * decay, ratio(0.5 * d2 * decay * decay, self._sigma(t))

    def _delta_log_snr(self, s: Number, t: Number) -> Number:
        rate = 2 * self._constants()[0]
        if not rate:
            return -log1p(ratio(t - s, s))
        return -rate * (t - s) - _log_gain(rate * (t - s), rate * s)

    def _time_at_log_snr(self, value: Number) -> Number:
        theta, d2 = self._constants()
        rho_squared = exp(-value) / d2
        return log1p(2 * theta * rho_squared) / (2 * theta) if theta else rho_squared


@dataclass(frozen=True)
class Heat(_ConstantRates):
    """The heat equation, p_t = Laplacian p: dx = sqrt(2) dW, variance 2t, t in [0, horizon]."""

    horizon: float = 1.0  # type: ignore[assignment]

    def __post_init__(self) -> None:
        check_number("horizon", self.horizon, 0, open_low=True)

    def _constants(self) -> tuple[float, float]:
        return 0.0, 2.0


@dataclass(frozen=True)
class OrnsteinUhlenbeck(_ConstantRates):
    """dx = -theta x dt + D dW, t in [0, horizon]; stationary law N(0, D^2 / (2 theta))."""

    theta: float = 1.0
    D: float = math.sqrt(2)
    horizon: float = 5.0  # type: ignore[assignment]

    def __post_init__(self) -> None:
        check_number("theta", self.theta, 0)
        check_number("D", self.D, 0, open_low=True)
        check_number("horizon", self.horizon, 0, open_low=True)

    @property
    def prior(self) -> GaussianPrior:
        """The stationary law; without one (theta = 0) N(0, D^2 T)."""
        if not self.theta:
            return GaussianPrior(float(self._sigma(self.horizon)))
        return GaussianPrior(self.D / math.sqrt(2 * self.theta))

    def _constants(self) -> tuple[float, float]:
        return self.theta, self.D**2


# ---------------------------------------------------------------------------- interpolation


@dataclass(frozen=True)
class Interpolant(Process):
    """alpha = 1 - t, sigma = t: rectified flow (Liu et al. 2023) and flow matching (Lipman et al. 2023).

    f and g^2 diverge at t = 1, the slopes do not: the probability flow is regular there.
    """

    def _alpha(self, t: Number) -> Number:
        return 1.0 - t

    def _sigma(self, t: Number) -> Number:
        return t

    def _rates(self, t: Number) -> tuple[Number, Number]:
        return ratio(-1.0 + 0 * t, 1.0 - t), ratio(2 * t, 1.0 - t)

    def _slopes(self, t: Number) -> tuple[Number, Number]:
        return -1.0 + 0 * t, 1.0 + 0 * t

    def _delta_log_snr(self, s: Number, t: Number) -> Number:
        return -2 * (log1p(ratio(t - s, 1.0 - t)) + log1p(ratio(t - s, s)))

    def _time_at_log_snr(self, value: Number) -> Number:
        return sigmoid(-0.5 * value)


def _log_gain(increment: Number, start: Number) -> Number:
    """log((1 - e^-(start + increment)) / (1 - e^-start)): accurate for small increments, never overflows."""
    return log1p(ratio(-expm1(-increment) * exp(-start), -expm1(-start)))


#: One instance of every process; tests, checks and documentation iterate over it.
ALL: tuple[Process, ...] = (
    VP(),
    VP(schedule=Cosine()),
    VP(schedule=Angle()),
    VP.from_betas([1e-4 + i * (0.02 - 1e-4) / 999 for i in range(1000)]),
    SubVP(),
    VE(),
    VE(start_at_sigma_min=True),
    EDM(),
    Heat(),
    OrnsteinUhlenbeck(),
    Interpolant(),
)
