"""Deterministic plans as one table, and how their endpoints move with its numbers.

Without noise every state is a combination of the start and of the predictions made so far,

    x_k = c_k0 x_0 + sum_{j < k} c_k,j+1 D_j,      D_j = E[x_0 | x_j; t_j],

so a plan is its reading times t_k and one triangular table c. The derivative of the endpoint with respect to
anything that moves the times and the table is carried from row to row beside the states: exact, for the
cost of a few forward-mode products with the model's Jacobian.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import forward_ad

from sdekit.denoisers import Denoiser
from sdekit.sampling.plan import Plan

Array = NDArray[np.float64]

#: Numbers in the derivatives of one chunk of trajectories: a few hundred megabytes.
_NUMBERS = 1 << 24


@dataclass(frozen=True, eq=False)
class Unrolled:
    """The states that are read, and the result, in terms of the start and the predictions.

    Attributes:
        times: where each state lives, (rows,).
        table: weights of state k on x_0 and D_0 .. D_{k-1}; lower triangular, (rows, rows).
        nodes: index of the grid node whose state each is, None for an inner stage.
    """

    times: Array
    table: Array
    nodes: tuple[int | None, ...]


def unrolled(plan: Plan) -> Unrolled:
    """The states at which a plan without normals calls the model, and its result.

    Raises:
        ValueError: it draws normals.
    """
    if plan.stochastic:
        raise ValueError(f"the plan must draw no normals; {plan.name} does")
    form = plan.closed_form()
    kept = [*form.calls, len(plan.rows) - 1]
    rows = [plan.rows[k] for k in kept]
    times, table = np.array([r.t for r in rows]), form.states[kept, : 1 + len(form.calls)]
    # An unread state at a node (a corrected one) is what the next prediction starts from, not kept itself.
    place = {row.t: i for i, row in enumerate(rows)}
    named = {place[r.t]: r.node for r in plan.rows if r.node is not None}
    return Unrolled(times, table, tuple(named.get(i) for i in range(len(rows))))


def endpoint(denoiser: Denoiser, form: Unrolled, x: Tensor) -> Tensor:
    """The last state for starting states x (n, *event)."""
    table, history = torch.as_tensor(form.table).to(x), [x]
    for k in range(1, len(table)):
        history.append(denoiser.data(x, float(form.times[k - 1])))
        x = torch.einsum("j,j...->...", table[k, : k + 1], torch.stack(history))
    return x


def endpoint_jacobian(
    denoiser: Denoiser, form: Unrolled, times: Array, tables: Array, x: Tensor
) -> Tensor:
    """Derivatives of the last state with respect to p parameters, (p, n, *event).

    Args:
        denoiser: differentiable in x by forward mode; in t it need only be smooth.
        form: the plan.
        times: derivatives of its times, (p, rows).
        tables: derivatives of its table, (p, rows, rows).
        x: starting states (n, *event).
    """
    per_sample = len(times) * len(form.times) * math.prod(x.shape[1:])
    chunks = x.split(max(1, _NUMBERS // per_sample))
    return torch.cat([_jacobian(denoiser, form, times, tables, part) for part in chunks], 1)


def _jacobian(denoiser: Denoiser, form: Unrolled, times: Array, tables: Array, x: Tensor) -> Tensor:
    table, d_times, d_table = (torch.as_tensor(v).to(x) for v in (form.table, times, tables))
    history, moved = [x], [x.new_zeros(len(times), *x.shape)]  # the start stays
    change = moved[0]
    for k in range(1, len(table)):
        value, slope = _reading(denoiser, x, float(form.times[k - 1]), change, d_times[:, k - 1])
        history.append(value)
        moved.append(slope)
        known, weights = torch.stack(history), table[k, : k + 1]
        x = torch.einsum("j,j...->...", weights, known)
        change = torch.einsum("pj,j...->p...", d_table[:, k, : k + 1], known)
        for weight, slope in zip(weights, moved, strict=True):
            change += weight * slope
    return change


def _reading(
    denoiser: Denoiser, x: Tensor, t: float, change: Tensor, d_time: Tensor
) -> tuple[Tensor, Tensor]:
    """E[x_0 | x; t], and its derivatives where x and t move by `change` (p, n, *event) and `d_time` (p,)."""
    value, slope = denoiser.data(x, t), torch.zeros_like(change)
    if bool(change.any()):
        slope = _along(denoiser, x, t, change)
    if bool(d_time.any()):
        process = denoiser.process
        low, high = max(t * (1 - 1e-5), process.t_min), min(t * (1 + 1e-5), process.t_max)
        rate = (denoiser.data(x, high) - denoiser.data(x, low)) / (high - low)
        slope = slope + torch.einsum("p,...->p...", d_time, rate)
    return value, slope


def _along(denoiser: Denoiser, x: Tensor, t: float, change: Tensor) -> Tensor:
    """The model's Jacobian in x times each of `change`: by columns where those are fewer."""
    p, n, size = len(change), len(x), x[0].numel()
    if size >= p:
        return _forward_mode(denoiser, x, t, change)
    units = torch.eye(size).to(x).view(size, 1, *x.shape[1:]).expand(size, *x.shape)
    columns = _forward_mode(denoiser, x, t, units).reshape(size, n, size)
    product = torch.einsum("pni,ino->pno", change.reshape(p, n, size), columns)
    return product.reshape(change.shape)


def _forward_mode(denoiser: Denoiser, x: Tensor, t: float, directions: Tensor) -> Tensor:
    """Directional derivatives at x (n, *event) along each of (b, n, *event), in one call."""
    with forward_ad.dual_level():
        repeated = x.expand_as(directions).flatten(0, 1)
        dual = forward_ad.make_dual(repeated, directions.flatten(0, 1).contiguous())
        tangent = forward_ad.unpack_dual(denoiser.data(dual, t)).tangent
    if tangent is None:  # a model that does not depend on x
        return torch.zeros_like(directions)
    return tangent.view_as(directions)
