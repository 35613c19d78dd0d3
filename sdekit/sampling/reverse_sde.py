"""The reverse SDE through torchsde: dx = [f x - g^2 score] dt + g dW, from noise to data."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdekit.denoisers import Denoiser
from sdekit.errors import check_choice, check_number
from sdekit.sampling.counted import CountedDenoiser, report
from sdekit.sampling.engine import Engine, Program
from sdekit.sampling.grids import equally_spaced
from sdekit.sampling.sampler import FINAL, Sampler

#: calculus, model calls a step and weak order, by method. The noise is additive, so both calculi agree.
METHODS = {
    "euler": ("ito", 1, 1),
    "milstein": ("ito", 1, 1),
    "srk": ("ito", 10, 2),
    "midpoint": ("stratonovich", 2, 2),
    "heun": ("stratonovich", 2, 2),
    "euler_heun": ("stratonovich", 1, 1),
    "log_ode": ("stratonovich", 2, 2),
    "reversible_heun": ("stratonovich", 1, 1),
}


class ReverseSDE(nn.Module):
    """The reverse SDE as torchsde wants it: `sdeint(reverse, x, reverse.clock(times), dt=...)`.

    torchsde's time must increase, so its clock is u = (start - t) / unit, by default T - t. Its states must
    be (n, d); give `event` where the model's are (n, *event). Always pass `dt` to `sdeint`. Keyword
    conditions are passed to the model in every call.  Anderson 1982.
    """

    noise_type = "diagonal"

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        event: tuple[int, ...] | None = None,
        start: float | None = None,
        unit: float = 1.0,
        sde_type: str = "ito",
        **conditions: Any,
    ) -> None:
        super().__init__()
        self.denoiser, self.event, self.conditions = denoiser, event, conditions
        self.start = denoiser.process.horizon if start is None else start
        self.unit = check_number("unit", unit, 0, open_low=True)
        self.sde_type = check_choice("sde_type", sde_type, ("ito", "stratonovich"))

    def clock(self, times: Tensor | Sequence[float]) -> Tensor:
        """Decreasing process times as torchsde's increasing ones, float64."""
        return (self.start - torch.as_tensor(times, dtype=torch.float64)) / self.unit

    def f(self, u: Tensor | float, y: Tensor) -> Tensor:
        """Drift in the clock u: -(f x - g^2 score) unit, (n, d)."""
        t = self._time(u)
        x = y if self.event is None else y.reshape(len(y), *self.event)
        f, g2 = (float(rate) for rate in self.denoiser.process.rates(t))
        score = self.denoiser.score(x, t, **self.conditions)
        return (self.unit * (g2 * score - f * x)).reshape(y.shape)

    def g(self, u: Tensor | float, y: Tensor) -> Tensor:
        """Diffusion in the clock u, the same in every coordinate, (n, d)."""
        g = float(self.denoiser.process.diffusion(self._time(u)))
        return torch.full_like(y, math.sqrt(self.unit) * g)

    def _time(self, u: Tensor | float) -> float:
        return self.denoiser.process.snap(self.start - self.unit * float(u), torch.float64)


@dataclass(frozen=True)
class TorchSDE(Sampler):
    """The reverse SDE by torchsde's fixed-step methods, on a uniform grid.  Li et al. 2020; Anderson 1982.

    Args:
        method: "euler", "milstein" (the same here: the noise is additive), "srk" (strong order 1.5, ten model
            calls a step), "midpoint", "log_ode" (midpoint here, for the same reason), "heun", "euler_heun"
            (Euler with g averaged over the step), or "reversible_heun", which is unstable with few steps and
            warns.
        dt: step in units of t; None takes one step an interval.

    The Brownian path comes from the block normals of the run, so a sample does not depend on its chunk.
    torchsde reports its nodes when it has finished.
    """

    method: str = "euler"
    dt: float | None = None

    def __post_init__(self) -> None:
        check_choice("method", self.method, tuple(METHODS))
        if self.dt is not None:
            check_number("dt", self.dt, 0, open_low=True)

    @property
    def order(self) -> int:  # type: ignore[override]
        """Weak order of the method."""
        return METHODS[self.method][2]

    @property
    def nfe_per_step(self) -> int | None:  # type: ignore[override]
        """Model calls per interval, where dt is not given; torchsde adds one call, to check shapes.

        And reversible_heun one more, to start.
        """
        return METHODS[self.method][1] if self.dt is None else None

    def program(self, denoiser: Denoiser, times: list[float], final: str) -> Program:
        """One solve in the clock that counts intervals, so that the steps end exactly on the nodes."""
        check_choice("final", final, FINAL)
        if final == "mean":
            raise ValueError('TorchSDE has no noise-free last step; use final="none" or "data"')
        steps, start = len(times) - 1, times[0]
        unit = (start - times[-1]) / steps
        if not equally_spaced(times):
            raise ValueError('TorchSDE takes equal steps in t: use grid="uniform"')
        if denoiser.process.alpha(start) == 0:
            raise ValueError(
                f"the reverse SDE is singular at t = {start:g}, where alpha = 0: lower t_start to t_max = "
                f"{denoiser.process.t_max:g}, or use FlowODE or a plan"
            )
        for t in (start, times[-1]):
            denoiser.process.check_readable(t)
        if self.method == "reversible_heun":
            warnings.warn(
                "reversible_heun is unstable where the drift is stiff, as it is near the data: compare with "
                "twice the steps, or use heun",
                stacklevel=3,
            )

        def program(engine: Engine, x: Tensor) -> Tensor:
            from torchsde import sdeint

            counted, event = CountedDenoiser(engine), tuple(x.shape[1:])
            calculus = METHODS[self.method][0]
            sde = ReverseSDE(counted, event=event, start=start, unit=unit, sde_type=calculus)
            flat = x.reshape(len(x), -1)
            ticks = range(steps + 1) if engine.watched else (0, steps)
            states = sdeint(
                sde,
                flat,
                torch.tensor(list(ticks), dtype=torch.float64, device=x.device),
                bm=_path(engine, flat),
                dt=1.0 if self.dt is None else self.dt / unit,
                method=self.method,
            )
            shaped = [state.reshape(x.shape) for state in states]
            return report(engine, counted, times, shaped, final)

        return program


def _path(engine: Engine, like: Tensor) -> Any:
    """A Brownian motion for a solver that asks for one interval after another."""
    from torchsde import BaseBrownian

    class Path(BaseBrownian):
        dtype, device, shape = like.dtype, like.device, like.shape  # type: ignore[assignment]
        levy_area_approximation = "davie"  # type: ignore[assignment]

        def __init__(self) -> None:
            self._drawn = 0
            self._last: tuple[float, float] = (math.nan, math.nan)
            self._values: tuple[Tensor, Tensor] | None = None

        def __repr__(self) -> str:
            return "Path()"

        def __call__(
            self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False
        ) -> Any:
            """W(tb) - W(ta), and with return_U also the integral of W - W(ta) over the interval.

            With return_A the area between coordinates of W comes along as 0: log_ode multiplies it by the
            derivatives of g in x, which are 0 here.
            """
            interval = float(ta), float(tb)
            if interval != self._last:
                h = interval[1] - interval[0]
                first, second = (
                    engine.normal(self._drawn + i).reshape(like.shape).clone() for i in (0, 1)
                )
                self._drawn += 2
                increment = math.sqrt(h) * first
                area = h * (0.5 * increment + math.sqrt(h / 12) * second)
                self._last, self._values = interval, (increment, area)
            assert self._values is not None
            if return_A:
                return self._values[0], torch.zeros_like(self._values[0])
            return self._values if return_U else self._values[0]

    return Path()
