"""DPM-Solver with steps of its own choice for every sample."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit.denoisers import Denoiser, conversion
from sdekit.errors import NumericsError, check_choice, check_integer, check_number
from sdekit.processes import expand
from sdekit.sampling.counted import CountedDenoiser, report
from sdekit.sampling.engine import Engine, Program
from sdekit.sampling.grids import LogSNR, TimeGrid
from sdekit.sampling.sampler import FINAL, Sampler

#: Where in a step the model is called, by order.
PLACES = {2: (0.0, 1 / 2), 3: (0.0, 1 / 3, 2 / 3)}
#: First and longest step in half log-SNR. The paper has no longest: where the difference of the two orders
#: happens to vanish, a long step was seen to miss by 900 tolerances on the line.
FIRST, LONGEST = 0.05, 1.0
#: The next step is 0.9 of what the error allows, within these factors.
SAFETY, SHRINK, GROW = 0.9, 0.2, 5.0
#: The shortest step, relative to the clock's reading.
SHORTEST = 1e-12


@dataclass(frozen=True)
class AdaptiveDPMSolver(Sampler):
    """DPM-Solver-12 and -23: a step of order 2 or 3 whose error is its difference from one of order 1 or 2.

    Lu et al. 2022a, the adaptive step size solver of their appendix. Every sample has its own clock, step
    size, acceptance and count of calls, so it is the same alone and in any batch. A model call serves each
    sample at the place in its step where it is, after a rejection without repeating the first; samples that
    have arrived leave the batch. The error of a step is a root mean square over the event,
    in units of max(atol, rtol max(|x_s|, |x_t|)).

    The grid gives the first and the last time; states at the times between are read off the steps to second
    order, without further calls, and reported when all have arrived. `Samples.nfe_per_sample` has what each
    sample cost: at equal error two thirds of what dopri5 takes on two modes of width 0.02, twice as
    much on modes of width 0.4.

    Args:
        order: 2 (DPM-Solver-12) or 3 (DPM-Solver-23).
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step.
        max_nfe: model calls after which a run is given up.
    """

    order: int = 3
    rtol: float = 1e-5
    atol: float = 1e-5
    max_nfe: int = 10_000

    stochastic = False
    nfe_per_step = None

    def __post_init__(self) -> None:
        if check_integer("order", self.order, 2) > 3:
            raise ValueError(f"order must be 2 or 3, got {self.order}")
        check_number("rtol", self.rtol, 0, open_low=True)
        check_number("atol", self.atol, 0, open_low=True)
        check_integer("max_nfe", self.max_nfe, 1)

    @property
    def grid(self) -> TimeGrid:
        """Uniform in log-SNR, the solver's clock; it sets where states are reported, not the steps."""
        return LogSNR()

    def program(self, denoiser: Denoiser, times: list[float], final: str) -> Program:
        """Advance every sample until all have arrived."""
        check_choice("final", final, FINAL)
        for t in (times[0], times[-1]):
            denoiser.process.check_readable(t)
        if denoiser.process.alpha(times[0]) == 0:
            raise ValueError(
                f"log_snr is infinite at t = {times[0]:g}, where alpha = 0: lower t_start to t_max = "
                f"{denoiser.process.t_max:g}, or use a plan"
            )

        def program(engine: Engine, x: Tensor) -> Tensor:
            run = _Run(self, engine, x, times)
            while len(run.index):
                run.advance()
            engine.nfe_per_sample = run.nfe + (final == "data")
            return report(engine, CountedDenoiser(engine), times, run.states, final)

        return program


class _Run:
    """The samples under way; row k of a tensor is of the sample `index[k]` of the chunk.

    A sample is in a step of length h from s, in half log-SNR. Of the model calls of that step it has made
    `stage`; `readings` are the noise predictions they gave.
    """

    def __init__(
        self, solver: AdaptiveDPMSolver, engine: Engine, x: Tensor, times: list[float]
    ) -> None:
        self.solver, self.engine, self.times = solver, engine, times
        self.process = engine.denoiser.process
        clock = x.new_tensor([0.5 * self.process.log_snr(t) for t in times], dtype=torch.float64)
        self.nodes, self.end = clock[1:-1, None], clock[-1]
        self.places = clock.new_tensor(PLACES[solver.order])

        #: The states at the grid's times, or at the last alone if nobody watches.
        self.states = x.expand(len(times) if engine.watched else 1, *x.shape).clone()
        self.nfe = torch.zeros(len(x), dtype=torch.int64)
        self.index = torch.arange(len(x), device=x.device)
        self.x, self.readings = x, x.new_zeros(len(self.places), *x.shape)
        self.s = clock[0].repeat(len(x))
        self.h = torch.clamp(self.end - self.s, max=FIRST)
        self.alpha = self._curves(self.s)[1]
        self.stage = torch.zeros_like(self.index)

    def advance(self) -> None:
        """One model call for every sample, and the end of the steps that this completes."""
        if self.engine.nfe >= self.solver.max_nfe:
            self._require(self.s == self.end, f"not done after max_nfe = {self.engine.nfe} calls")
        rows = torch.arange(len(self.index), device=self.index.device)
        state, t = self._inside(rows, self.places[self.stage])
        a, b = conversion(self.process, self.engine.denoiser.prediction, "noise", t)
        some = None if len(rows) == len(self.nfe) else self.index
        out = self.engine.evaluate(t, state, some)
        self.readings[self.stage, rows] = expand(a, state) * state + expand(b, state) * out
        self.stage += 1
        complete = (self.stage == len(self.places)).nonzero()[:, 0]
        if len(complete):
            self._finish(complete)

    def _inside(self, rows: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """State and time at a place in the step, from the readings of the step so far."""
        x, z, newest = self.x[rows], place * self.h[rows], self.stage[rows] - 1
        t, alpha, sigma = self._curves(self.s[rows] + z)
        noise, last = self.readings[0, rows], self.readings[newest.clamp(min=0), rows]
        # the slope of the noise prediction, where a second reading gives one
        slope = place / self.places[newest] * (torch.expm1(z) / z - 1)
        slope = torch.where((newest > 0) & (z > 0), slope, 0.0)
        state = expand(alpha / self.alpha[rows], x) * x
        state = state - expand(sigma * torch.expm1(z), x) * noise
        return state - expand(sigma * slope, x) * (last - noise), t

    def _finish(self, rows: Tensor) -> None:
        """Accept or reject the steps of these samples, and choose their next."""
        s, h, x = self.s[rows], self.h[rows], self.x[rows]
        end = torch.where(h >= self.end - s, self.end, s + h)
        alpha, lower, higher = self._solutions(rows, end)
        unit = torch.maximum(x.abs(), lower.abs()).mul(self.solver.rtol).clamp(self.solver.atol)
        gap = ((higher - lower) / unit).double().reshape(len(rows), -1)
        error = gap.square().mean(1).sqrt()
        finite = error.isfinite() & higher.reshape(len(rows), -1).isfinite().all(1)
        self._require(finite, "the model returned NaN or infinity, or the states overflowed", rows)

        good = error <= 1
        done = rows[good]
        if self.engine.watched:
            self._read_off(done, end[good])
        self.x[done], self.s[done], self.alpha[done] = higher[good], end[good], alpha[good]
        self.stage[rows] = (~good).long()  # the first reading of a rejected step holds
        factor = (SAFETY * error ** (-1 / self.solver.order)).clamp(SHRINK, GROW)
        self.h[rows] = torch.minimum((factor * h).clamp(max=LONGEST), self.end - self.s[rows])
        wide = good | (self.h[rows] > SHORTEST * (1 + s.abs()))
        self._require(wide, "the step became too small for the tolerance", rows)
        self._leave(self.s == self.end)

    def _solutions(self, rows: Tensor, end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """alpha at the end of the step, and the solutions there of the lower and the higher order."""
        _, alpha, sigma = self._curves(end)
        x, h, noise = self.x[rows], self.h[rows], self.readings[0, rows]
        grown = torch.expm1(h)
        base = expand(alpha / self.alpha[rows], x) * x - expand(sigma * grown, x) * noise
        bend = expand(sigma * grown, x) * (self.readings[1, rows] - noise)
        if self.solver.order == 2:
            return alpha, base, base - bend
        curved = expand(sigma * (grown / h - 1), x) * (self.readings[2, rows] - noise)
        return alpha, base - 1.5 * bend, base - 1.5 * curved

    def _read_off(self, rows: Tensor, end: Tensor) -> None:
        """The states at the grid's times that these accepted steps pass."""
        passed = (self.nodes > self.s[rows]) & (self.nodes <= end)
        node, k = passed.nonzero(as_tuple=True)
        if len(node):
            rows = rows[k]
            place = (self.nodes[node, 0] - self.s[rows]) / self.h[rows]
            self.states[node + 1, self.index[rows]] = self._inside(rows, place)[0]

    def _leave(self, arrived: Tensor) -> None:
        """Samples that have arrived leave the batch."""
        if arrived.any():
            self.states[-1, self.index[arrived]] = self.x[arrived]
            self.nfe[self.index[arrived].cpu()] = self.engine.nfe
            for name in ("index", "x", "s", "h", "alpha", "stage"):
                setattr(self, name, getattr(self, name)[~arrived])
            self.readings = self.readings[:, ~arrived]

    def _curves(self, clock: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """t, alpha and sigma at readings of the clock; t between the ends in spite of rounding."""
        t = torch.as_tensor(self.process.time_at_log_snr(2 * clock))
        t = t.clamp(self.times[-1], self.times[0])
        return t, torch.as_tensor(self.process.alpha(t)), torch.as_tensor(self.process.sigma(t))

    def _require(self, fine: Tensor, what: str, rows: Tensor | None = None) -> None:
        """Raise unless all is fine with these samples, or with all under way."""
        bad = (~fine).nonzero()[:, 0]
        if len(bad):
            s = (self.s if rows is None else self.s[rows])[bad[0]]
            raise NumericsError(
                f"{self.solver!r} in a step from t = {self._curves(s)[0].item():.6g}, log_snr = "
                f"{2 * s.item():.4g}: {what}, for {len(bad)} of {len(self.nfe)} samples"
            )
