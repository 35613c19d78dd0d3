"""What moves a density in the plane: a process, an SDE given by two functions, or a model's reverse SDE."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdekit.data.mixtures import ExactDenoiser, GaussianMixture
from sdekit.denoisers import Denoiser, device_of
from sdekit.errors import NumericsError, check_number
from sdekit.pde.splitting import Terms
from sdekit.processes import Process
from sdekit.sampling.front_door import evaluating
from sdekit.sampling.reverse_sde import ReverseSDE

Edges = tuple[np.ndarray, np.ndarray]

#: Points at which a drift is evaluated at once.
_CHUNK = 16_384


@dataclass(frozen=True, repr=False)
class PlaneSDE:
    """dx = drift(x, t) dt + diffusion dW in the plane, with the same diffusion in every direction.

    Args:
        drift: called with positions (n, 2), a float64 tensor, and a time; returns a tensor of that shape.
        diffusion: g >= 0, a number or a function of time that returns one.
    """

    drift: Callable[[Tensor, float], Tensor]
    diffusion: float | Callable[[float], float]

    def __post_init__(self) -> None:
        if not callable(self.drift):
            raise TypeError(f"drift must be callable as drift(x, t), got {self.drift!r}")
        if not callable(self.diffusion):
            check_number("diffusion", self.diffusion, 0)

    def __repr__(self) -> str:
        drift, g = (getattr(v, "__name__", repr(v)) for v in (self.drift, self.diffusion))
        return f"PlaneSDE({drift}, {g})"


class PlaneEquation(ABC):
    """p_t = -div(a p) + D laplacian p, in a time that runs forwards or, where `backward`, backwards."""

    #: The times at which it may be asked for its terms.
    span: tuple[float, float] = (-math.inf, math.inf)
    #: Where it starts unless told otherwise.
    start = 0.0
    backward = False

    def __init__(self, given: Any, edges: Edges) -> None:
        self.given, self.edges = given, edges

    def __repr__(self) -> str:
        return repr(self.given)

    @abstractmethod
    def terms(self, t: float) -> Terms:
        """Drifts at the faces and D, per unit of time in the direction of the equation."""

    def law(self, law0: GaussianMixture | None, start: float, t: float) -> GaussianMixture | None:
        """The density at t of what has `law0` at `start`, where that is known."""
        return law0 if t == start else None

    def evaluating(self) -> AbstractContextManager[None]:
        """What a solve happens in."""
        return nullcontext()


class LinearEquation(PlaneEquation):
    """The forward equation of a process; every line along an axis has the drift f x."""

    def __init__(self, process: Process, edges: Edges) -> None:
        super().__init__(process, edges)
        self.process = process
        self.span = (0.0, process.horizon)
        self.faces = tuple(edge[None, 1:-1] for edge in edges)

    def terms(self, t: float) -> Terms:
        """f x, f y and g^2 / 2."""
        f, g2 = _finite_rates(self.process, t)
        first, second = self.faces
        return Terms((f * first, f * second), g2 / 2)

    def law(self, law0: GaussianMixture | None, start: float, t: float) -> GaussianMixture | None:
        """Every component scaled and blurred."""
        if law0 is None or t == start:
            return law0
        scale, std = (float(v) for v in self.process.transition(start, t))
        blurred = scale**2 * law0.covariances + std**2 * torch.eye(2, dtype=torch.float64)
        return GaussianMixture(
            None, scale * law0.means, covariances=blurred, logits=law0.log_weights
        )


class PointwiseEquation(PlaneEquation):
    """A drift that is known at points: it is asked for once a cell and carried to the faces.

    Cubic interpolation from the centres of four cells costs half of what evaluation at the faces of both axes
    does, and its error is of fourth order.
    """

    def __init__(self, given: Any, edges: Edges) -> None:
        super().__init__(given, edges)
        first, second = (torch.from_numpy((edge[1:] + edge[:-1]) / 2) for edge in edges)
        self.points = torch.cartesian_prod(first, second)

    @abstractmethod
    def drift(self, x: Tensor, t: float) -> Tensor:
        """a at points (n, 2)."""

    @abstractmethod
    def spread(self, t: float) -> float:
        """D."""

    def terms(self, t: float) -> Terms:
        """The drift on all cells, a chunk at a time."""
        with torch.no_grad():
            drift = torch.cat([self.drift(x, t) for x in self.points.split(_CHUNK)])
        values = drift.double().cpu().numpy()
        if bad := int((~np.isfinite(values)).sum()):
            raise NumericsError(
                f"the drift of {self!r} is NaN or infinite in {bad} of {values.size} numbers at t = {t:g}"
            )
        first, second = values.T.reshape(2, *(len(edge) - 1 for edge in self.edges))
        return Terms((_at_faces(first.T), _at_faces(second)), self.spread(t))


class GeneralEquation(PointwiseEquation):
    """The equation of a `PlaneSDE`."""

    def drift(self, x: Tensor, t: float) -> Tensor:
        """The function given, checked."""
        # A drift that works in place must not move the points.
        drift = self.given.drift(x.clone(), t)
        if not isinstance(drift, Tensor) or drift.shape != x.shape:
            found = (
                f"shape {tuple(drift.shape)}" if isinstance(drift, Tensor) else type(drift).__name__
            )
            raise ValueError(
                f"drift must return a tensor of the shape of x, {tuple(x.shape)}, got {found}"
            )
        return drift

    def spread(self, t: float) -> float:
        """g^2 / 2 of the number or function given."""
        g = self.given.diffusion
        value = g(t) if callable(g) else g
        if isinstance(value, (Tensor, np.generic)) and value.ndim == 0:
            value = value.item()
        return check_number("diffusion(t)", value, 0) ** 2 / 2


class ReverseEquation(PointwiseEquation):
    """The density of the reverse SDE of a model: a = g^2 score - f x, from late to early times."""

    backward = True

    def __init__(self, module: ReverseSDE, edges: Edges) -> None:
        super().__init__(module, edges)
        self.denoiser, self.process = module.denoiser, module.denoiser.process
        self.span = (self.process.t_min, self.process.t_max)
        self.start = min(float(module.start), self.process.t_max)
        self.event = (2,) if module.event is None else module.event
        if math.prod(self.event) != 2:
            raise ValueError(
                f"event must be of two numbers for a density in the plane, got {self.event}"
            )
        device = device_of(self.denoiser)
        self.points = self.points.to(device, torch.float32 if device.type == "mps" else None)

    def drift(self, x: Tensor, t: float) -> Tensor:
        """g^2 score - f x."""
        f, g2 = _finite_rates(self.process, t)
        score = self.denoiser.score(x.reshape(-1, *self.event), t, **self.given.conditions)
        return g2 * score.reshape(x.shape) - f * x

    def spread(self, t: float) -> float:
        """g^2 / 2."""
        return _finite_rates(self.process, t)[1] / 2

    def law(self, law0: GaussianMixture | None, start: float, t: float) -> GaussianMixture | None:
        """That of an exact model, which is close to the density even from another start."""
        if t != start and isinstance(self.denoiser, ExactDenoiser):
            return self.denoiser.mixture.at(self.process, t)
        return super().law(law0, start, t)

    def evaluating(self) -> AbstractContextManager[None]:
        """The model in evaluation mode."""
        return evaluating(self.denoiser)


def equation_of(given: Any, edges: Edges) -> PlaneEquation:
    """The equation of a process, an SDE, or a model's reverse SDE.

    Raises:
        TypeError: something else.
    """
    match given:
        case Process():
            return LinearEquation(given, edges)
        case PlaneSDE():
            return GeneralEquation(given, edges)
        case ReverseSDE():
            return ReverseEquation(given, edges)
    hint = "; wrap it in sk.ReverseSDE" if isinstance(given, Denoiser) else ""
    raise TypeError(
        f"equation must be a Process, a PlaneSDE or a ReverseSDE, got {type(given).__name__}{hint}"
    )


def _at_faces(values: np.ndarray) -> np.ndarray:
    """(lines, cells) at centres to (lines, cells - 1) at the interior faces, cubic but at the outermost."""
    faces = (values[:, :-1] + values[:, 1:]) / 2
    faces[:, 1:-1] = (9 * (values[:, 1:-2] + values[:, 2:-1]) - values[:, :-3] - values[:, 3:]) / 16
    return faces


def _finite_rates(process: Process, t: float) -> tuple[float, float]:
    f, g2 = (float(rate) for rate in process.rates(t))
    if not (math.isfinite(f) and math.isfinite(g2)):
        raise NumericsError(f"the rates (f, g^2) of {process!r} at t = {t:g} are ({f:g}, {g2:g})")
    return f, g2
