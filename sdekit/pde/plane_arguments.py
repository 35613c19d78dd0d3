"""What the solver in the plane asks: grids that hold the mass and resolve the density; and cell averages."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sdekit.data.mixtures import GaussianMixture
from sdekit.pde.arguments import (
    Vector,
    array,
    cell_averages,
    check_averages,
    check_edges,
    check_mass,
    check_walls,
    check_width,
)
from sdekit.pde.equations import Equation
from sdekit.processes import GaussianPrior
from sdekit.quadrature import rule

#: Ends of the cells along x[0] and along x[1].
Edges = tuple[np.ndarray, np.ndarray]

_NODES, _WEIGHTS = (part.numpy() for part in rule(3))


def check_edge_pair(edges: Sequence[Vector]) -> Edges:
    """Uniform edges of the cells along the first axis and along the second, float64."""
    if not isinstance(edges, (tuple, list)) or len(edges) != 2:
        got = f"{len(edges)} of them" if isinstance(edges, (tuple, list)) else type(edges).__name__
        raise ValueError(f"edges must be a pair, (edges along x[0], edges along x[1]), got {got}")
    first, second = (_along(axis, check_edges, edge) for axis, edge in enumerate(edges))
    return first, second


def plane_averages(density0: Any, edges: Edges) -> tuple[np.ndarray, GaussianMixture | None]:
    """Averages over the cells, (cells, cells), and the mixture they are of, where it is one."""
    if isinstance(density0, GaussianPrior):
        density0 = GaussianMixture(None, [[0.0, 0.0]], stds=density0.std)
    if not isinstance(density0, GaussianMixture):
        averages, cells = array("density0", density0, 2), tuple(len(edge) - 1 for edge in edges)
        if averages.shape != cells:
            raise ValueError(
                f"density0 must have one average a cell, {cells}, got {averages.shape}"
            )
        check_averages(averages, math.prod(float(edge[1] - edge[0]) for edge in edges))
        return averages, None
    if density0.dim != 2:
        raise ValueError(f"density0 must have dimension 2, got a mixture with d = {density0.dim}")
    if density0.narrowest == 0:
        raise ValueError("density0 must have no atoms (components of standard deviation 0)")
    for axis, edge in enumerate(edges):
        _along(axis, cell_averages, _marginal(density0, axis), edge)
    return _mixture_averages(density0, edges), density0


def check_grid(
    equation: Equation,
    averages: np.ndarray,
    law: GaussianMixture | None,
    edges: Edges,
    start: float,
    times: Sequence[float],
) -> None:
    """Raise if what is known of the density at `start` or one of `times` is too wide or narrow for the grid.

    Args:
        equation: carries a known kernel, stands for a known law, or neither.
        averages: at `start`.
        law: which they are of, where that is known.
        edges: of the cells.
        start: time of `averages`.
        times: see above.
    """
    for t in (start, *times):
        kernel = (1.0, 0.0) if t == start else equation.transition(start, t)
        if kernel is None:
            check_widths(equation.law(t), edges, t)
            continue
        for axis, marginal in enumerate(_marginals(averages, edges)):
            _along(axis, check_mass, marginal, edges[axis], t, *kernel)
        check_widths(None if law is None else _blurred(law, *kernel), edges, t)


def check_widths(law: GaussianMixture | None, edges: Edges, t: float) -> None:
    """Raise if an axis has too few cells for the narrowest section of a component at t.

    A component with precision matrix P is, along a line parallel to axis i, a bell of standard deviation
    P_ii^(-1/2), whatever the line.
    """
    if law is None:
        return
    sections = law.covariances.inverse().diagonal(dim1=1, dim2=2).rsqrt().amin(0).tolist()
    for axis, width in enumerate(sections):
        _along(axis, check_width, width, edges[axis], t)


def check_ends(averages: np.ndarray, edges: Edges, t: float) -> None:
    """Raise if mass has come to the ends of an axis, where it cannot go further."""
    for axis, marginal in enumerate(_marginals(averages, edges)):
        _along(axis, check_walls, marginal[None], edges[axis], np.array([t]))


def _marginals(averages: np.ndarray, edges: Edges) -> list[np.ndarray]:
    """Averages of the density of each coordinate over its cells."""
    return [averages.sum(1 - axis) * (edges[1 - axis][1] - edges[1 - axis][0]) for axis in (0, 1)]


def _blurred(law: GaussianMixture, scale: float, std: float) -> GaussianMixture:
    """The law of scale x + std z."""
    if (scale, std) == (1.0, 0.0):
        return law
    covariances = scale**2 * law.covariances + std**2 * torch.eye(2, dtype=torch.float64)
    return GaussianMixture(None, scale * law.means, covariances=covariances, logits=law.log_weights)


def _along(axis: int, check: Any, *arguments: Any) -> Any:
    """A check of one axis, whose message then names the axis."""
    try:
        return check(*arguments)
    except (ValueError, TypeError) as error:
        raise type(error)(str(error).replace("edges", f"edges[{axis}]", 1)) from None


def _marginal(law: GaussianMixture, axis: int) -> GaussianMixture:
    stds = law.covariances[:, axis, axis].sqrt()
    return GaussianMixture(None, law.means[:, axis], stds, logits=law.log_weights)


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
