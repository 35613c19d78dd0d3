"""Exact log-likelihoods: log p_t carried along the probability flow from the data to the noise.

Along dx/dt = v(x, t) the density obeys d log p_t(x_t) / dt = -div v (Chen et al. 2018, eq. 8), so that

    log p_s(x) = log p_T(x_T) + integral_s^T div v(x_t, t) dt        (Song et al. 2021, eq. 39)

with s close to 0 and x_T, the latent, where the flow takes x. One reverse pass through the model gives both v
and its divergence. The solver's state is float64; the model is called in the dtype of x. The solver's time is
not t but a `NoiseClock`, which saves calls and for some processes digits.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdekit.data import ExactDenoiser
from sdekit.denoisers import Denoiser, checked_output, conversion
from sdekit.errors import (
    NumericsError,
    check_choice,
    check_flag,
    check_integer,
    check_number,
    check_seed,
)
from sdekit.likelihood.arguments import (
    Prior,
    check_points,
    check_prior,
    prior_log_prob,
    unrecorded,
    widened,
)
from sdekit.likelihood.divergence import Jacobian, Trace, check_divergence, make_trace
from sdekit.processes import Process
from sdekit.sampling.engine import require_finite
from sdekit.sampling.flow_ode import ADAPTIVE, FIXED, FlowODE
from sdekit.sampling.front_door import check_cond, fitting, progress_bar
from sdekit.sampling.noise_clock import NoiseClock

#: implicit_adams couples the batch like an adaptive method, without choosing its steps.
METHODS = (*ADAPTIVE, *(method for method in FIXED if method != "implicit_adams"))


@dataclass(frozen=True, eq=False)
class LogLikelihood:
    """Log density of each of n points under a model, and how far each number can be trusted.

    Attributes:
        value: log p at t_end, in nats, (n,) float64; the mean over probes.
        stderr: standard error of `value` over the probes, (n,): zero where the divergence is exact, NaN
            where there is one probe, which tells no spread.
        latent: where the flow takes the points at t_max, (n, *event), in their dtype.
        nfe: model calls a point cost, each with its reverse passes; the most of any chunk.
        t_end: the time near the data that `value` is the log density of.
        tolerance_error: |difference| of each value from a solve of ten times tighter tolerances (or twice
            the steps), (n,), whose calls are not in `nfe`; None if not asked for.
        prior_mismatch: where the denoiser is exact, log p_T - log prior at the latents, (n,):
            `value + prior_mismatch` has the true end. None for other denoisers.
    """

    value: Tensor
    stderr: Tensor
    latent: Tensor
    nfe: int
    t_end: float
    tolerance_error: Tensor | None = None
    prior_mismatch: Tensor | None = None

    def __repr__(self) -> str:
        return (
            f"LogLikelihood(n={len(self.value)}, mean={self.value.mean().item():.6g} nats at "
            f"t = {self.t_end:g}, nfe={self.nfe})"
        )


def log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    *,
    divergence: str = "exact",
    probes: int | None = None,
    method: str = "dopri5",
    rtol: float = 1e-7,
    atol: float = 1e-7,
    steps: int | None = None,
    t_end: float | None = None,
    prior: Prior | None = None,
    cond: Tensor | None = None,
    seed: int = 0,
    chunk: int | None = None,
    tolerance_error: bool = False,
    progress: bool = False,
) -> LogLikelihood:
    """Log density of points under the probability flow of a model.  Song et al. 2021, section 4.3.

    It is log p at `t_end`, not at 0: of data with noise sigma(t_end) added.

    An adaptive method chooses its steps by the larger of two root-mean-square errors over its batch, of the
    states and of the log densities: a value depends on its batch mates, by about the largest
    `tolerance_error`. `chunk=1`, or a fixed method, removes that.

    Args:
        denoiser: exact or trained; its output must depend differentiably on x, sample by sample.
        x: points (n, *event), float32 or float64, n >= 1.
        divergence: "exact", d vector-Jacobian products a call; "hutchinson", one a probe, with Rademacher
            probes; "hutch++", one a probe: a third for the sketch, a third for its image, a third for the
            rest (exact where `probes` >= 3 d). The memory is that of n d numbers and a reverse pass; products
            go through the model in blocks of 65,536 numbers.
        probes: vector-Jacobian products a call, at least 1 for "hutchinson" (if not given 1), at least 3 for
            "hutch++" (if not given 3).
        method: a Runge-Kutta method of `FlowODE`.
        rtol: relative tolerance of an adaptive method.
        atol: absolute tolerance.
        steps: of a fixed method, equal in the solver's clock.
        t_end: the time near the data, in [t_min, t_max); t_min of the process if not given.
        prior: anything with `.log_prob(x)` of float64 latents (n, *event); the process's own if not given.
        cond: one row a sample, passed to the network as the keyword `cond`.
        seed: of the probes; a sample's are a function of it and of its place in x.
        chunk: samples solved together; if not given at most 16,384, fewer where an event has over 64 numbers.
        tolerance_error: solve again, more tightly, and report the difference.
        progress: count the model calls on standard error.

    Raises:
        ValueError, TypeError: an argument; a model whose output does not depend differentiably on x.
        NumericsError: the model, or the solver, gave NaN or infinity; the message says at which time.
    """
    route = _route(denoiser, x, method, rtol, atol, steps, t_end)
    probes = check_divergence(divergence, probes)
    seed = check_integer("seed", check_seed(seed), 0)
    check_cond(cond, len(x))
    check_flag("tolerance_error", tolerance_error)
    check_flag("progress", progress)
    prior = check_prior(prior, denoiser)
    chunk = fitting(tuple(x.shape[1:])) if chunk is None else check_integer("chunk", chunk, 1)

    parts: list[_Solved] = []
    tighter: list[_Solved] = []
    with (
        unrecorded(denoiser),
        progress_bar("log-likelihood", "call") if progress else nullcontext() as bar,
    ):
        for first in range(0, len(x), chunk):
            rows = x[first : first + chunk].detach()
            given = {} if cond is None else {"cond": cond[first : first + chunk].to(x.device)}
            trace = make_trace(divergence, probes, seed, first, rows)
            parts.append(_solve(_Field(denoiser, trace, given, x.dtype, bar), rows, route, prior))
            if tolerance_error:
                again = _Field(denoiser, trace, given, x.dtype, bar)
                tighter.append(_solve(again, rows, route.tighter(), prior))
    return _joined(parts, tighter, denoiser, prior, route.t_end, x.dtype)


def encode(
    denoiser: Denoiser,
    x: Tensor,
    *,
    method: str = "dopri5",
    rtol: float = 1e-7,
    atol: float = 1e-7,
    steps: int | None = None,
    t_end: float | None = None,
    cond: Tensor | None = None,
) -> Tensor:
    """Where the probability flow takes points at `t_end`: their latents at t_max, in the shape of x.

    `decode` goes back. Arguments as for `log_likelihood`.
    """
    route = _route(denoiser, x, method, rtol, atol, steps, t_end)
    return _transport(denoiser, x, route, cond, backward=False)


def decode(
    denoiser: Denoiser,
    latent: Tensor,
    *,
    method: str = "dopri5",
    rtol: float = 1e-7,
    atol: float = 1e-7,
    steps: int | None = None,
    t_end: float | None = None,
    cond: Tensor | None = None,
) -> Tensor:
    """The points at `t_end` that the probability flow takes to these latents at t_max; see `encode`."""
    route = _route(denoiser, latent, method, rtol, atol, steps, t_end, "latent")
    return _transport(denoiser, latent, route, cond, backward=True)


# ---------------------------------------------------------------------------- the solve


@dataclass(frozen=True)
class _Route:
    """The method, and its times from the data to the noise."""

    solver: FlowODE
    process: Process
    t_end: float
    steps: int | None

    @property
    def nodes(self) -> list[float]:
        """Readings of the clock, from the data to the noise."""
        clock = NoiseClock(self.process)
        start, end = clock.reading(self.t_end), clock.reading(self.process.t_max)
        steps = self.steps or 1
        return [*(start + (end - start) * i / steps for i in range(steps)), end]

    def tighter(self) -> "_Route":
        if self.steps is not None:
            return replace(self, steps=2 * self.steps)
        rtol, atol = self.solver.rtol / 10, self.solver.atol / 10
        return replace(self, solver=replace(self.solver, rtol=rtol, atol=atol))


class _Solved(NamedTuple):
    """Of one chunk: log p at t_end and its spread, (n,), the latents in float64, and the calls."""

    value: Tensor
    stderr: Tensor
    latent: Tensor
    nfe: int


class _Field:
    """d/du of (x, log p_end - log p_t by probe) by the `NoiseClock` u, as torchdiffeq wants it."""

    def __init__(
        self,
        denoiser: Denoiser,
        trace: Trace,
        conditions: dict[str, Any],
        dtype: torch.dtype,
        bar: Any = None,
    ) -> None:
        self.denoiser, self.trace, self.conditions, self.dtype = denoiser, trace, conditions, dtype
        self.bar, self.nfe, self.clock = bar, 0, NoiseClock(denoiser.process)

    def __call__(self, u: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The velocity and, for every probe, its divergence."""
        process, kind = self.denoiser.process, self.denoiser.prediction
        (time, rate), wide = self.clock.time(float(u)), state[0]
        self.nfe += 1
        if self.bar is not None:
            self.bar.update()
        x = wide.to(self.dtype, copy=True).detach().requires_grad_()
        with torch.enable_grad():
            out = checked_output(self.denoiser.predict(x, time, **self.conditions), x)
        require_finite(out, time, self.nfe, process)
        a, b = (float(c) for c in conversion(process, kind, "data", time))
        trace = self.trace(Jacobian(out, x), a / b).to(wide)
        a, b = conversion(process, kind, "velocity", time)
        velocity = a * wide + b * out.detach().to(wide)
        return rate * velocity, rate * (a * x[0].numel() + b * trace)


def _solve(field: _Field, x: Tensor, route: _Route, prior: Prior) -> _Solved:
    """One chunk from the data to the noise."""
    wide = widened(x)
    state = (wide, wide.new_zeros(len(x), max(field.trace.columns, 1)))
    states, logs = route.solver.solve(field, state, route.nodes, field.clock.name)
    latent, change, probes = states[-1], logs[-1], field.trace.columns
    if not torch.isfinite(change).all() or not torch.isfinite(latent).all():
        raise NumericsError(
            f"the states overflowed between t = {route.t_end:g} and t = {route.process.t_max:g}, though "
            "every model call was finite"
        )
    value = prior_log_prob(prior, latent) + change.mean(1)
    if probes == 1:
        stderr = torch.full_like(value, math.nan)
    else:
        stderr = change.std(1) / math.sqrt(probes) if probes else torch.zeros_like(value)
    return _Solved(value, stderr, latent, field.nfe)


def _joined(
    parts: list[_Solved],
    tighter: list[_Solved],
    denoiser: Denoiser,
    prior: Prior,
    t_end: float,
    dtype: torch.dtype,
) -> LogLikelihood:
    value, stderr, latent = (torch.cat(column) for column in list(zip(*parts, strict=True))[:3])
    error = mismatch = None
    if tighter:
        error = (value - torch.cat([part.value for part in tighter])).abs()
    if isinstance(denoiser, ExactDenoiser):
        end = denoiser.mixture.at(denoiser.process, denoiser.process.t_max)
        mismatch = end.log_prob(latent) - prior_log_prob(prior, latent)
    nfe = max(part.nfe for part in parts)
    return LogLikelihood(value, stderr, latent.to(dtype), nfe, t_end, error, mismatch)


def _transport(
    denoiser: Denoiser, x: Tensor, route: _Route, cond: Tensor | None, *, backward: bool
) -> Tensor:
    """Along the flow without its density."""
    check_cond(cond, len(x))
    conditions = {} if cond is None else {"cond": cond.to(x.device)}
    clock = NoiseClock(denoiser.process)

    def velocity(u: Tensor, wide: Tensor) -> Tensor:
        t, rate = clock.time(float(u))
        return rate * denoiser.velocity(wide.to(x.dtype), t, **conditions).to(wide)

    nodes = route.nodes[::-1] if backward else route.nodes
    with unrecorded(denoiser):
        states = route.solver.solve(velocity, widened(x), nodes, clock.name)
    if not torch.isfinite(states[-1]).all():
        raise NumericsError("the states became NaN or infinite on the way")
    return states[-1].to(x.dtype, copy=True)


# ---------------------------------------------------------------------------- arguments


def _route(
    denoiser: Denoiser,
    x: Tensor,
    method: str,
    rtol: float,
    atol: float,
    steps: int | None,
    t_end: float | None,
    name: str = "x",
) -> _Route:
    """The solver and its times, after every check of what all three functions take."""
    check_points(denoiser, x, name)
    check_choice("method", method, METHODS)
    solver, process = FlowODE(method, rtol, atol), denoiser.process
    if method in ADAPTIVE and steps is not None:
        raise ValueError(f"steps is for fixed methods, and {method!r} chooses its own; got {steps}")
    if method in FIXED:
        steps = check_integer(f"steps of the fixed method {method!r}", steps, 1)
    end = process.t_min
    if t_end is not None:
        end = check_number("t_end", t_end, process.t_min, process.t_max, open_high=True)
    return _Route(solver, process, end, steps)
