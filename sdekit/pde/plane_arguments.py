"""What the solver in the plane asks: grids that hold the mass and resolve the density; and cell averages."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sdekit.data.mixtures import GaussianMixture
from sdekit.errors import check_number
from sdekit.pde.arguments import Vector, cell_averages, check_edges, check_mass, vector
from sdekit.pde.plane_equations import Edges, LinearEquation, PlaneEquation
from sdekit.processes import GaussianPrior, Process

_OUTSIDE = 1e-6  # the largest mass that may be beyond the ends of an axis, or pile up at them
_CELLS_PER_STD = 3
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(3)


def check_edge_pair(edges: Sequence[Vector]) -> Edges:
    """Uniform edges of the cells along the first axis and along the second, float64."""
    if not isinstance(edges, (tuple, list)) or len(edges) != 2:
        got = f"{len(edges)} of them" if isinstance(edges, (tuple, list)) else type(edges).__name__
        raise ValueError(f"edges must be a pair, (edges along x[0], edges along x[1]), got {got}")
    first, second = (_along(axis, check_edges, edge) for axis, edge in enumerate(edges))
    return first, second


def check_start(start: float | None, equation: PlaneEquation) -> float:
    """The time of density0, where the equation has terms."""
    return equation.start if start is None else check_number("start", start, *equation.span)


def check_times(times: Vector, start: float, equation: PlaneEquation) -> np.ndarray:
    """Times from `start` on in the direction of the equation, with finite terms at both ends, float64."""
    clock = vector("times", times)
    if not len(clock):
        raise ValueError("times must hold at least one time, got none")
    sign, verb = (-1, "decrease") if equation.backward else (1, "increase")
    if (back := np.flatnonzero(sign * np.diff(clock) <= 0)).size:
        i = back[0]
        raise ValueError(f"times must {verb}, got {clock[i]:g} and then {clock[i + 1]:g}")
    low, high = equation.span
    low, high = (low, start) if equation.backward else (start, high)
    if clock.min() < low or clock.max() > high:
        raise ValueError(
            f"times must lie in [{low:g}, {high:g}], {verb} from start = {start:g}, for {equation!r};"
            f" got [{clock.min():g}, {clock.max():g}]"
        )
    if isinstance(equation, LinearEquation):
        for t in (start, float(clock[-1])):
            _check_rates(equation.process, t)
    return clock


def plane_averages(density0: Any, edges: Edges) -> tuple[np.ndarray, GaussianMixture | None]:
    """Averages over the cells, (cells, cells), and the mixture they are of, where it is one."""
    if isinstance(density0, GaussianPrior):
        density0 = GaussianMixture(None, [[0.0, 0.0]], stds=density0.std)
    if not isinstance(density0, GaussianMixture):
        averages = _checked_averages(density0, tuple(len(edge) - 1 for edge in edges))
        area = math.prod(float(edge[1] - edge[0]) for edge in edges)
        if abs(mass := area * averages.sum() - 1) > _OUTSIDE:
            raise ValueError(
                f"density0 must have mass 1 to {_OUTSIDE:g}, got {mass + 1:.9g}: averages are densities, not"
                " probabilities of cells; divide by the mass, or widen edges"
            )
        return averages, None
    if density0.dim != 2:
        raise ValueError(f"density0 must have dimension 2, got a mixture with d = {density0.dim}")
    if density0.narrowest == 0:
        raise ValueError("density0 must have no atoms (components of standard deviation 0)")
    for axis, edge in enumerate(edges):
        _along(axis, cell_averages, _marginal(density0, axis), edge)
    return _mixture_averages(density0, edges), density0


def check_masses(
    equation: PlaneEquation, averages: np.ndarray, edges: Edges, start: float, clock: np.ndarray
) -> None:
    """Raise if a density that a process carries will reach beyond the grid."""
    if not isinstance(equation, LinearEquation):
        return
    for axis, edge in enumerate(edges):
        other = edges[1 - axis]
        marginal = averages.sum(1 - axis) * (other[1] - other[0])
        for t in clock[clock > start].tolist():
            scale, std = (float(v) for v in equation.process.transition(start, t))
            _along(axis, check_mass, marginal, edge, t, scale, std)


def check_widths(law: GaussianMixture | None, edges: Edges, t: float) -> None:
    """Raise if an axis has too few cells for the narrowest section of a component at t.

    A component with precision matrix P is, along a line parallel to axis i, a bell of standard deviation
    P_ii^(-1/2), whatever the line.
    """
    if law is None:
        return
    sections = law.covariances.inverse().diagonal(dim1=1, dim2=2).rsqrt().amin(0).tolist()
    for axis, (edge, width) in enumerate(zip(edges, sections, strict=True)):
        cells, needed = len(edge) - 1, _CELLS_PER_STD * (edge[-1] - edge[0]) / width
        if cells < needed * (1 - 1e-9):
            raise ValueError(
                f"edges[{axis}] must give {_CELLS_PER_STD} cells to the narrowest standard deviation along"
                f" it, {width:.3g} at t = {t:g}: at least {math.ceil(needed * (1 - 1e-9))} cells, got {cells}"
            )


def check_walls(averages: np.ndarray, edges: Edges, t: float) -> None:
    """Raise if mass has come to the ends of an axis, where it cannot go further."""
    area = math.prod(float(edge[1] - edge[0]) for edge in edges)
    for axis, cells in enumerate(averages.shape):
        marginal, ends = averages.sum(1 - axis) * area, max(1, cells // 100)
        near = marginal[:ends].sum() + marginal[-ends:].sum()
        if near > _OUTSIDE:
            raise ValueError(
                f"edges[{axis}] must hold the mass until t = {t:g}, where {near:.2g} of it has come to the"
                f" outermost {ends} of its {cells} cells at either end; at most {_OUTSIDE:g} may"
            )


def _check_rates(process: Process, t: float) -> None:
    f, g2 = process.rates(t)
    if not (math.isfinite(f) and math.isfinite(g2)):
        raise ValueError(
            f"times must avoid t = {t:g}, where (f, g^2) of {process!r} is ({f:g}, {g2:g}); its t_max is"
            f" {process.t_max:g}"
        )


def _along(axis: int, check: Any, *arguments: Any) -> Any:
    """A check of one axis, whose message then names the axis."""
    try:
        return check(*arguments)
    except (ValueError, TypeError) as error:
        raise type(error)(str(error).replace("edges", f"edges[{axis}]", 1)) from None


def _marginal(law: GaussianMixture, axis: int) -> GaussianMixture:
    stds = law.covariances[:, axis, axis].sqrt()
    return GaussianMixture(None, law.means[:, axis], stds, logits=law.log_weights)


def _checked_averages(density0: Any, shape: tuple[int, ...]) -> np.ndarray:
    if isinstance(density0, torch.Tensor):
        density0 = density0.detach().cpu().numpy()
    averages = np.array(density0)
    if averages.dtype.kind not in "iuf":
        raise TypeError(
            f"density0 must be a GaussianMixture in the plane or hold numbers, got {averages.dtype}"
        )
    if averages.shape != shape:
        raise ValueError(f"density0 must have one average a cell, {shape}, got {averages.shape}")
    if not np.isfinite(averages).all():
        raise ValueError(f"density0 must be finite, got {averages[~np.isfinite(averages)][0]}")
    if averages.min() < -_OUTSIDE * averages.max():
        raise ValueError(f"density0 must not be negative, got {averages.min():g}")
    return averages.astype(np.float64)


def _mixture_averages(law: GaussianMixture, edges: Edges) -> np.ndarray:
    """Exact where covariances are diagonal, by 3 x 3 Gauss-Legendre nodes a cell where they are full.

    The error of the nodes is 1e-8 of the peak with three cells to a standard deviation, and falls with the
    sixth power of the cells.
    """
    if law.axes is None:
        stds = law.variances.sqrt().expand(-1, 2).numpy()
        parts = (_bells(edge, law.means[:, i].numpy(), stds[:, i]) for i, edge in enumerate(edges))
        return np.einsum("k,ki,kj->ij", law.weights.numpy(), *parts)
    total = np.zeros([len(edge) - 1 for edge in edges])
    for a, u in zip(_NODES, _WEIGHTS / 2, strict=True):
        for b, v in zip(_NODES, _WEIGHTS / 2, strict=True):
            first, second = (
                torch.from_numpy((edge[1:] + edge[:-1] + c * np.diff(edge)) / 2)
                for edge, c in zip(edges, (a, b), strict=True)
            )
            density = law.log_prob(torch.cartesian_prod(first, second)).exp()
            total += u * v * density.numpy().reshape(total.shape)
    return total


def _bells(edges: np.ndarray, means: np.ndarray, stds: np.ndarray) -> np.ndarray:
    """Cell averages of each N(m, s^2), (k, cells), from the nearer tail."""
    from scipy.special import ndtr

    z = (edges - means[:, None]) / stds[:, None]
    return np.where(z[:, 1:] < 0, np.diff(ndtr(z)), -np.diff(ndtr(-z))) / np.diff(edges)
