"""The probability flow through torchdiffeq: dx/dt = f x - g^2 score / 2, from noise to data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdekit.denoisers import Denoiser
from sdekit.errors import NumericsError, check_choice, check_number
from sdekit.sampling.counted import CountedDenoiser, report
from sdekit.sampling.engine import Engine, Program
from sdekit.sampling.grids import equally_spaced
from sdekit.sampling.noise_clock import NoiseClock
from sdekit.sampling.sampler import FINAL, Sampler

#: (order, model calls a step) of the solvers that take the steps they are given.
FIXED: dict[str, tuple[int, int | None]] = {
    "euler": (1, 1),
    "midpoint": (2, 2),
    "heun2": (2, 2),
    "heun3": (3, 3),
    "rk4": (4, 4),
    "implicit_adams": (4, None),
}
#: Order of the solvers that choose their own steps from rtol and atol.
ADAPTIVE = {"dopri5": 5, "dopri8": 8, "bosh3": 3, "fehlberg2": 2, "adaptive_heun": 2}
#: torchdiffeq's other names, and why they are no methods here.
REFUSED = {
    "explicit_adams": "it is unstable: on VE and EDM its error grows with the number of steps",
    "fixed_adams": "it is an older name of 'implicit_adams'",
    "scipy_solver": (
        "its explicit methods are 'dopri5', 'bosh3' and 'dopri8' again, and its implicit ones difference "
        "the Jacobian of the whole batch"
    ),
}


class ProbabilityFlow(nn.Module):
    """The flow's velocity as torchdiffeq wants it.

    `odeint(flow, x, times, method="dopri5", options=flow.options(times))`: without the options an adaptive
    method probes far outside the range of times. Fixed-step methods need none.

    The ODE has the marginals of the SDE (Song et al. 2021, eq. 13). Times may run either way inside
    [t_min, t_max]; states are (n, *event). Keyword conditions are passed to the model in every call.
    """

    def __init__(self, denoiser: Denoiser, **conditions: Any) -> None:
        super().__init__()
        self.denoiser, self.conditions = denoiser, conditions

    def forward(self, t: Tensor | float, x: Tensor) -> Tensor:
        """dx/dt at time t, in the shape of x."""
        # torchdiffeq hands times over in the dtype of x: an end may come back half an ulp outside
        t = self.denoiser.process.snap(float(t), x.dtype)
        return self.denoiser.velocity(x, t, **self.conditions)

    @staticmethod
    def options(times: Tensor) -> dict[str, Any]:
        """What keeps an adaptive method inside the range of times: its first step and its end."""
        span = abs(float(times[0]) - float(times[-1]))
        return {"step_t": times[-1:], "first_step": 1e-2 * span}


@dataclass(frozen=True)
class FlowODE(Sampler):
    """The probability flow by any of torchdiffeq's Runge-Kutta methods.  Song et al. 2021, section 4.3.

    The adaptive methods (dopri5, dopri8, bosh3, fehlberg2, adaptive_heun) step in a clock of sigma / alpha
    (`NoiseClock`), in which the rates of tabulated betas do not jump, and choose their steps from rtol and
    atol by an error norm over the whole batch: a sample's result depends on its batch mates within the
    tolerance. `sample(chunk=1)`, a fixed method (euler, midpoint, heun2, heun3, rk4: one step an interval of
    the grid) or `AdaptiveDPMSolver` removes that. implicit_adams takes the steps of a uniform grid, with an
    iteration that stops by rtol and atol over the whole batch.
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5

    stochastic = False

    def __post_init__(self) -> None:
        if reason := REFUSED.get(str(self.method)):
            raise ValueError(f"method {self.method!r} is not offered: {reason}")
        check_choice("method", self.method, (*ADAPTIVE, *FIXED))
        check_number("rtol", self.rtol, 0, open_low=True)
        check_number("atol", self.atol, 0, open_low=True)

    @property
    def order(self) -> int:  # type: ignore[override]
        """Order of the method."""
        return ADAPTIVE.get(self.method) or FIXED[self.method][0]

    @property
    def coupled(self) -> bool:  # type: ignore[override]
        """Adaptive methods choose one step for the whole batch, implicit_adams one count of iterations."""
        return self.nfe_per_step is None

    @property
    def nfe_per_step(self) -> int | None:  # type: ignore[override]
        """Model calls per interval; None where the solver decides."""
        return FIXED[self.method][1] if self.method in FIXED else None

    def program(self, denoiser: Denoiser, times: list[float], final: str) -> Program:
        """One solve over the grid."""
        check_choice("final", final, FINAL)
        denoiser.process.check_readable(times[0])
        denoiser.process.check_readable(times[-1])
        if self.method == "implicit_adams" and not equally_spaced(times):
            # Its weights are those of equal steps: on other grids it is of second order only.
            raise ValueError('implicit_adams takes equal steps in t: use grid="uniform"')

        def program(engine: Engine, x: Tensor) -> Tensor:
            counted = CountedDenoiser(engine)
            if self.method in FIXED:
                states = self.solve(ProbabilityFlow(counted), x, times)
            else:
                states = self._adapted(
                    counted, x, times if engine.watched else [times[0], times[-1]]
                )
            return report(engine, counted, times, states, final)

        return program

    def _adapted(self, denoiser: Denoiser, x: Tensor, times: list[float]) -> Any:
        """The states at these times by steps of its own, in the clock that makes the flow smooth."""
        flow = ProbabilityFlow(denoiser)
        clock = NoiseClock(denoiser.process, times[-1], times[0])

        def field(u: Tensor, x: Tensor) -> Tensor:
            t, rate = clock.time(float(u))
            return rate * flow(t, x)

        return self.solve(field, x, [clock.reading(t) for t in times], clock.name)

    def solve(
        self,
        field: Callable[[Tensor, Any], Any],
        state: Any,
        nodes: Sequence[float],
        clock: str = "t",
    ) -> Any:
        """The states at the nodes (the first is `state`) of d state / dt = field(t, state).

        Args:
            field: of a 0-d time and a state.
            state: a tensor, or a tuple of tensors, whose largest error then decides.
            nodes: at least two times, either way; a fixed method takes one step between neighbours.
            clock: what the times are called in an error.

        Raises:
            NumericsError: the solver gave up.
        """
        from torchdiffeq import odeint

        first = state[0] if isinstance(state, tuple) else state
        times = torch.tensor(nodes, dtype=torch.float64, device=first.device)
        options = ProbabilityFlow.options(times) if self.method in ADAPTIVE else {}
        try:
            return odeint(
                field,
                state,
                times,
                rtol=self.rtol,
                atol=self.atol,
                method=self.method,
                options=options,
            )
        except AssertionError as error:
            raise NumericsError(
                f"{self!r} gave up between {clock} = {nodes[0]:g} and {clock} = {nodes[-1]:g}: {error}. The "
                "step became too small for the tolerance, or the model returned NaN"
            ) from error
