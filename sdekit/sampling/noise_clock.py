"""The clock in which adaptive solvers follow the probability flow."""

import math
from dataclasses import dataclass

from sdekit.processes import Process


@dataclass(frozen=True)
class NoiseClock:
    """A clock u of rho = sigma / alpha alone: arctan rho where the signal fades, else asinh rho.

    In it the flow is smooth at the data, where the velocity in t is singular, and for a process of tabulated
    betas, whose rates jump at i / N: a Runge-Kutta step across such a jump is off by the jump times the step,
    which an embedded error hardly sees. The two are the arc length of (alpha, sigma) in units of its own
    length, for variance-preserving and for variance-exploding processes.

    Attributes:
        process: the forward process.
        low: the least time it shows; t_min of the process if not given.
        high: the greatest; t_max if not given. There alpha may be 0.
    """

    process: Process
    low: float | None = None
    high: float | None = None

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest time."""
        low = self.process.t_min if self.low is None else self.low
        return low, self.process.t_max if self.high is None else self.high

    @property
    def fades(self) -> bool:
        """Whether alpha falls to less than half."""
        return float(self.process.alpha(self.process.t_max)) < 0.5

    @property
    def name(self) -> str:
        """What u is."""
        return f"{'arctan' if self.fades else 'asinh'}(sigma / alpha)"

    def reading(self, t: float) -> float:
        """u at a time of the process."""
        alpha, sigma = float(self.process.alpha(t)), float(self.process.sigma(t))
        return math.atan2(sigma, alpha) if self.fades else math.asinh(sigma / alpha)

    def time(self, u: float) -> tuple[float, float]:
        """t, between the ends, and dt / du."""
        process, (low, high) = self.process, self.ends
        rho = math.tan(u) if self.fades else math.sinh(u)
        log_snr = (
            -2 * math.log(rho) if rho > 0 else -math.inf
        )  # rounding may step over arctan = pi / 2
        # It may also step over the ends, beyond which the process has no time to give.
        least, most = float(process.log_snr(high)), float(process.log_snr(low))
        t = float(process.time_at_log_snr(min(max(log_snr, least), most)))
        t = min(max(t, low), high)
        return t, self._rate(t)

    def _rate(self, t: float) -> float:
        """dt / du."""
        process = self.process
        near = process.t_max
        if t > near and not all(map(math.isfinite, process.slopes(t))):
            # At T, where alpha = 0, the slopes of some schedules are 0 times infinity; u has a slope there.
            return 2 * (t - near) / (self.reading(t) - self.reading(near)) - self._rate(near)
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        growth, spread = (float(slope) for slope in process.slopes(t))
        length = math.hypot(alpha, sigma)
        return length * (length if self.fades else alpha) / (alpha * spread - sigma * growth)
