"""The clock in which the probability flow is solved."""

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
    """

    process: Process

    @property
    def fades(self) -> bool:
        """Whether alpha falls to less than half."""
        return float(self.process.alpha(self.process.t_max)) < 0.5

    @property
    def name(self) -> str:
        """What u is."""
        return f"{'arctan' if self.fades else 'asinh'}(sigma / alpha)"

    def reading(self, t: float) -> float:
        """u at a time in [t_min, t_max]."""
        rho = math.exp(-0.5 * float(self.process.log_snr(t)))
        return math.atan(rho) if self.fades else math.asinh(rho)

    def time(self, u: float) -> tuple[float, float]:
        """t in [t_min, t_max] and dt / du; d rho / dt = rho g^2 / (2 sigma^2)."""
        process = self.process
        rho = math.tan(u) if self.fades else math.sinh(u)
        slope = 1 + rho * rho if self.fades else math.hypot(1, rho)
        t = float(process.time_at_log_snr(-2 * math.log(rho)))
        t = min(max(t, process.t_min), process.t_max)
        g2, sigma = float(process.rates(t)[1]), float(process.sigma(t))
        return t, 2 * slope * sigma * sigma / (rho * g2)
