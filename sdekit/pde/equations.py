"""What the solvers solve: p_t = -div(a p) + D laplacian p with a drift a(x, t) and a spread D(t).

Four things are such an equation: a process (a = f(t) x, D = g^2 / 2), an SDE given by two functions, the
reverse SDE of a model (Anderson 1982: in the time T - t, a = g^2 score - f x and D = g^2 / 2) and its
probability flow (Song et al. 2021, eq. 13: a = f x - g^2 score / 2 and D = 0). The solvers on the line and in
the plane see one protocol, in coordinates u = x / s(t): points are (n,) on the line and (n, 2) in the plane.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdekit.data.mixtures import ExactDenoiser, GaussianMixture
from sdekit.denoisers import Denoiser, device_of, evaluating
from sdekit.elementary import widest
from sdekit.errors import NumericsError, check_choice, check_number
from sdekit.pde.coordinates import RAW, Coordinates
from sdekit.pde.pace import Pace
from sdekit.pde.sde import SDE
from sdekit.processes import Process
from sdekit.sampling.flow_ode import ProbabilityFlow
from sdekit.sampling.reverse_sde import ReverseSDE
from sdekit.schedules import Tabulated

#: Points at which a drift or a model is evaluated at once.
_CHUNK = 16_384


class Terms(NamedTuple):
    """The equation at one time: a at the points asked for, D, and f where a = f x is known beforehand.

    The drift has the shape of the points, (n,) or (n, 2).
    """

    drift: np.ndarray
    spread: float
    slope: float | None = None


class Equation(ABC):
    """p_t = -div(a p) + D laplacian p, in a time that runs forwards or, where `backward`, from late to early.

    Args:
        given: what it is the equation of.
        coordinates: what the points are in.
        dim: 1 on the line, 2 in the plane.
    """

    #: The times at which it may be asked for its terms.
    span: tuple[float, float] = (-math.inf, math.inf)
    #: Where it starts unless told otherwise.
    start = 0.0
    backward = False
    #: Whether it runs either way.
    two_way = False
    #: What steps in time are best taken in.
    pace = Pace()

    def __init__(self, given: Any, coordinates: Coordinates, dim: int) -> None:
        self.given, self.coordinates, self.dim = given, coordinates, dim

    def __repr__(self) -> str:
        return repr(self.given)

    @abstractmethod
    def terms(self, u: np.ndarray, t: float) -> Terms:
        """a at the points u and D, per unit of time in the direction of the equation."""

    def head_for(self, start: float, last: float) -> None:
        """Turn to the side on which `last` lies, where there is a choice."""
        if self.two_way:
            self.backward = last < start

    def singular(self, t: float) -> str:
        """What is not finite at an end t of the times, if something is."""
        return ""

    def transition(self, start: float, t: float) -> tuple[float, float] | None:
        """(scale, std) with u_t ~ N(scale u_start, std^2), where it is so."""
        return None

    def law(self, t: float) -> GaussianMixture | None:
        """The law of x at t that an exact model stands for: near the density, whatever that began with."""
        return None

    def narrowest(self, t: float) -> float | None:
        """The smallest standard deviation of a component of that law, in u."""
        law = self.law(t)
        return None if law is None else law.narrowest / self.coordinates.scale(t)

    def jumps(self) -> list[float]:
        """Times at which the terms jump; they are continuous from the left."""
        return []

    def evaluating(self) -> AbstractContextManager[None]:
        """What a solve happens in."""
        return nullcontext()


class LinearEquation(Equation):
    """The forward equation of a process."""

    def __init__(self, process: Process, coordinates: Coordinates, dim: int) -> None:
        super().__init__(process, coordinates, dim)
        self.process, self.pace = process, Pace.of(process)
        self.span = (0.0, process.horizon)

    def terms(self, u: np.ndarray, t: float) -> Terms:
        """f u and g^2 / 2; the Ornstein-Uhlenbeck equation where coordinates are scaled."""
        f, g2 = _finite_rates(self.process, t)
        D = 0.5 * g2
        if self.coordinates.process is not None:
            D = D / self.coordinates.scale(t) ** 2
            f = -D
        return Terms(f * u, D, f)

    def singular(self, t: float) -> str:
        """The rates, where they are infinite."""
        f, g2 = self.process.rates(t)
        if math.isfinite(f) and math.isfinite(g2):
            return ""
        t_max = self.process.t_max
        return f"(f, g^2) of {self.process!r} is ({f:g}, {g2:g}); its t_max is {t_max:g}"

    def transition(self, start: float, t: float) -> tuple[float, float]:
        """The kernel of the process, in u."""
        if t == start:
            return 1.0, 0.0
        scale, std = self.process.transition(start, t)
        there = self.coordinates.scale(t)
        return float(scale) * self.coordinates.scale(start) / there, float(std) / there

    def jumps(self) -> list[float]:
        """The joints of a tabulated schedule."""
        return _joints(self.process)


class GeneralEquation(Equation):
    """The equation of an `SDE`."""

    def terms(self, u: np.ndarray, t: float) -> Terms:
        """The two functions at t, checked."""
        # A copy: a drift that works in place must not move the points.
        drift = torch.cat([self._drift(part, t) for part in torch.tensor(u).split(_CHUNK)])
        g = self.given.diffusion
        g = g(t) if callable(g) else g
        g = check_number("diffusion(t)", g.item() if isinstance(g, Tensor) else g, 0)
        return Terms(_finite("drift", drift.double().numpy(), t), 0.5 * g * g)

    def _drift(self, x: Tensor, t: float) -> Tensor:
        shape, drift = x.shape, self.given.drift(x, t)
        if not isinstance(drift, Tensor) or drift.shape != shape:
            tensor = isinstance(drift, Tensor)
            found = f"shape {tuple(drift.shape)}" if tensor else type(drift).__name__
            raise ValueError(
                f"drift must return a tensor of the shape of x, {tuple(shape)}, got {found}"
            )
        return drift.detach().cpu()


class ModelEquation(Equation):
    """What the two equations of a model share: its process, and how it is read."""

    def __init__(
        self, module: ReverseSDE | ProbabilityFlow, coordinates: Coordinates, dim: int
    ) -> None:
        super().__init__(module, coordinates, dim)
        self.denoiser, self.process = module.denoiser, module.denoiser.process
        self.span = (self.process.t_min, self.process.t_max)
        self.start, self.pace = self.process.t_max, Pace.of(self.process)
        # A ReverseSDE says how the model's states are shaped.
        self.event = getattr(module, "event", None) or (dim,)
        if math.prod(self.event) != dim:
            raise ValueError(
                f"event must hold one number a dimension of the density, {dim}, got {self.event}"
            )

    def __repr__(self) -> str:
        # A module's own lists its layers.
        return f"{type(self.given).__name__} of {self.process!r}"

    def read(self, reading: Callable[..., Tensor], x: np.ndarray, t: float) -> np.ndarray:
        """A reading of the model at positions (n,) or (n, 2), float64."""
        device = device_of(self.denoiser)
        dtype = widest(device)
        points = torch.tensor(x, device=device, dtype=dtype).reshape(-1, *self.event)
        with torch.no_grad():
            parts = [reading(part, t, **self.given.conditions) for part in points.split(_CHUNK)]
        values = torch.cat(parts).cpu().double().numpy()
        return _finite("the model", values.reshape(x.shape), t)

    def law(self, t: float) -> GaussianMixture | None:
        """That of the data at t, where the model is exact."""
        if not isinstance(self.denoiser, ExactDenoiser):
            return None
        return self.denoiser.mixture.at(self.process, t)

    def jumps(self) -> list[float]:
        """The joints of a tabulated schedule."""
        return _joints(self.process)

    def evaluating(self) -> AbstractContextManager[None]:
        """The model in evaluation mode."""
        return evaluating(self.denoiser)


class ReverseEquation(ModelEquation):
    """The density of the reverse SDE of a model, from late to early times."""

    backward = True

    def __init__(self, module: ReverseSDE, coordinates: Coordinates, dim: int) -> None:
        super().__init__(module, coordinates, dim)
        self.start = min(float(module.start), self.process.t_max)

    def terms(self, u: np.ndarray, t: float) -> Terms:
        """(g^2 score - f x) / s + (log s)' u, and g^2 / (2 s^2)."""
        f, g2 = _finite_rates(self.process, t)
        scale, growth = self.coordinates.scale(t), self.coordinates.growth(t)
        score = self.read(self.denoiser.score, scale * u, t)
        return Terms(g2 * score / scale + (growth - f) * u, 0.5 * g2 / scale**2)


class FlowEquation(ModelEquation):
    """The density that the probability flow of a model carries, in either direction: no diffusion."""

    two_way = True

    def terms(self, u: np.ndarray, t: float) -> Terms:
        """+-(velocity / s - (log s)' u), and 0."""
        scale, growth = self.coordinates.scale(t), self.coordinates.growth(t)
        velocity = self.read(self.denoiser.velocity, scale * u, t) / scale - growth * u
        return Terms(-velocity if self.backward else velocity, 0.0)


def equation_of(given: Any, coordinates: str = "raw", *, dim: int = 1) -> Equation:
    """The equation of a process, an SDE, or a model's reverse SDE or (on the line) flow.

    Args:
        given: one of these.
        coordinates: "raw", or "scaled" to those that follow its process.
        dim: 1 on the line, 2 in the plane.

    Raises:
        TypeError: something else.
        ValueError: scaled coordinates for an SDE that names no process; a model of another dimension.
    """
    scaled = check_choice("coordinates", coordinates, ("raw", "scaled")) == "scaled"

    def along(process: Process) -> Coordinates:
        return Coordinates(process) if scaled else RAW

    match given:
        case Process():
            return LinearEquation(given, along(given), dim)
        case SDE() if not scaled:
            return GeneralEquation(given, RAW, dim)
        case SDE():
            raise ValueError('coordinates="scaled" follow alpha and sigma of a process; use "raw"')
        case ReverseSDE():
            return ReverseEquation(given, along(given.denoiser.process), dim)
        # In the plane fluxes without diffusion would be of first order only.
        case ProbabilityFlow() if dim == 1:
            return FlowEquation(given, along(given.denoiser.process), dim)
    hint = "; wrap it in sk.ReverseSDE" if isinstance(given, Denoiser) else ""
    raise TypeError(
        "equation must be a Process, an SDE, a ReverseSDE or, on the line, a ProbabilityFlow,"
        f" got {type(given).__name__}{hint}"
    )


def _finite_rates(process: Process, t: float) -> tuple[float, float]:
    f, g2 = (float(rate) for rate in process.rates(t))
    if not (math.isfinite(f) and math.isfinite(g2)):
        raise NumericsError(f"the rates (f, g^2) of {process!r} at t = {t:g} are ({f:g}, {g2:g})")
    return f, g2


def _finite(name: str, values: np.ndarray, t: float) -> np.ndarray:
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise NumericsError(
            f"{name} has {bad} of {values.size} values NaN or infinite at t = {t:g}"
        )
    return values


def _joints(process: Process) -> list[float]:
    """The rates of a tabulated chain jump at i / N."""
    schedule = getattr(process, "schedule", None)
    n = len(schedule.betas) if isinstance(schedule, Tabulated) else 0
    return [i / n for i in range(1, n)]
