"""The plan inside anyone's sampler: read out by feeding it basis vectors, held against it on random models.

A sampler that is affine in its start, in the model's replies and in its normals does the same to every
coordinate. So one run from the unit vector e_0, with further unit vectors as replies and as normals, spells
out every weight: each state at which the model is called, and the result, is a row of numbers in closed form.
The rows are then shortened to a few earlier states and replies. What is not affine cannot agree with such a
table on a nonlinear model, so the table is held against the sampler on some before it is returned.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from sdekit.denoisers import Prediction, conversion
from sdekit.errors import check_choice, check_number
from sdekit.processes import Process
from sdekit.sampling.grids import check_times
from sdekit.sampling.plan import Plan, Row
from sdekit.testing.black_box import BlackBox, Model, Run, basis_run, trial, trials

__all__ = ["BlackBox", "Model", "affine_deviation", "plan_from_sampler"]


def plan_from_sampler(
    sampler: BlackBox,
    process: Process,
    *,
    prediction: str = "data",
    times: Tensor | Sequence[float] | None = None,
    tolerance: float = 1e-10,
    name: str | None = None,
) -> Plan:
    """Read the plan out of any sampler.

    It is called as sampler(model, x) with a start x (1, d), float64, for several d, and returns the result.
    It calls model(x, t) with states and times of `process`: a library with other coordinates or labels is
    adapted by the caller, who converts on the way to the model, at the start and at the end. Its normals
    come from torch.randn, randn_like, normal or Tensor.normal_, whatever generator it passes; each draw has
    the shape of the state.

    Args:
        sampler: what to read.
        process: whose states and times the model is called with.
        prediction: what the model's reply means: "data", "noise", "score", "v" or "velocity".
        times: the grid it runs on: the rows at its times become nodes, and the result lives at its last.
            Without it the result is labelled t = 0. Needed where the start is moved before the first call.
        tolerance: largest deviation from the plan that counts as rounding, relative to the result; 1e-4
            suits a sampler that computes in float32.
        name: of the plan; the sampler's own if not given.

    Returns:
        A plan that reads data or noise, whichever takes fewer numbers. Normals are numbered as drawn; one
        that enters several rows is a row of its own. `affine_deviation` says how exact the plan is.

    Raises:
        TypeError: a call at integer times, or a result that is no tensor.
        ValueError: the sampler is not affine (with its deviation), decides by the data how often or where it
            calls the model, is not deterministic given its normals, or starts elsewhere than at its start.
    """
    if not callable(sampler):
        raise TypeError(f"sampler must be callable as sampler(model, x), got {sampler!r}")
    if not isinstance(process, Process):
        raise TypeError(f"process must be a Process such as sk.VP(), got {process!r}")
    check_choice("prediction", prediction, get_args(Prediction))
    check_number("tolerance", tolerance, 0, 1, open_low=True)
    grid = None if times is None else check_times(times, process)
    runs = trials(sampler, process)
    basis = basis_run(sampler, runs[0])
    if not (at_start := _calls_at_start(basis, grid, tolerance)):
        _require_start(basis, grid, tolerance)
    label = name or getattr(sampler, "__qualname__", type(sampler).__name__)
    for t in basis.times:
        conversion(process, prediction, "data", t)  # raises where the reply is no prediction
    deviation = math.inf
    # What passes for zero in a row is tightened until the plan agrees.
    for threshold in (0.1, 1e-3, 1e-5):
        plans = _plans(basis, prediction, grid, at_start, threshold * tolerance, label)
        for plan in sorted(plans, key=_numbers):
            found = max(_deviation(plan, prediction, run) for run in runs)
            if found <= tolerance:
                return plan
            deviation = min(deviation, found)
    raise ValueError(
        "the sampler is not affine in its start, the model's replies and its normals: on a nonlinear "
        f"model it deviates from its plan by {deviation:.2g} of the result (tolerance {tolerance:g})"
    )


def affine_deviation(
    sampler: BlackBox, plan: Plan, *, prediction: str = "data", seed: int = 3
) -> float:
    """Largest difference between a sampler and a plan on a nonlinear model, relative to the result.

    Args:
        sampler: as for `plan_from_sampler`.
        plan: read out or written; it calls the model in the same order, and its normals are the draws.
        prediction: what the model's reply means.
        seed: of the start, the model and the normals.

    Raises:
        ValueError: the two do not call the model at the same times or draw as many normals.
    """
    run = trial(sampler, plan.process, seed)
    asked = [row.t for row in plan.rows if row.read is not None]
    if len(asked) != run.nfe or not np.allclose(asked, run.times, rtol=0, atol=1e-6):
        raise ValueError(f"the sampler calls the model at t = {run.times}, the plan at {asked}")
    if len(run.normals) < len(plan.normals):
        raise ValueError(
            f"the sampler draws {len(run.normals)} normals, the plan {len(plan.normals)}"
        )
    return _deviation(plan, prediction, run)


def _calls_at_start(basis: Run, grid: list[float] | None, tolerance: float) -> bool:
    """Whether the first call is at the state that the sampler was given, and at its time."""
    if not basis.times:
        raise ValueError("the sampler never called the model")
    first = basis.states[0].flatten()
    there = abs(first[0] - 1) <= tolerance and first[1 + basis.nfe :].abs().sum() <= tolerance
    return bool(there) and not _leaves_first(basis, grid)


def _leaves_first(basis: Run, grid: list[float] | None) -> bool:
    """Whether the first call is at another time than the grid's first."""
    return grid is not None and abs(basis.times[0] - grid[0]) > 1e-6 * basis.process.horizon


def _require_start(basis: Run, grid: list[float] | None, tolerance: float) -> None:
    """What was done before the first call is known to be a move: noise, or a step to another time."""
    first = basis.states[0].flatten()
    noise = first[1 + basis.nfe :].abs().sum()
    if noise > tolerance and grid is None:
        raise ValueError("the sampler adds noise before its first model call: give `times`")
    if noise <= tolerance and not _leaves_first(basis, grid):
        raise ValueError(
            f"the sampler first calls the model at {first[0]:.6g} times its start, not at its start; convert "
            "between its coordinates and those of the process, or give `times` if it moves before it calls"
        )


@dataclass
class _Terms:
    """A row as weights on earlier states, on replies by call and on normals by draw."""

    x: dict[int, float]
    p: dict[int, float]
    z: dict[int, float]


def _plans(
    basis: Run,
    prediction: str,
    grid: list[float] | None,
    at_start: bool,
    threshold: float,
    name: str,
) -> Iterator[Plan]:
    """The plan in readings of data and of noise, each where it is defined at every call."""
    for reading in ("data", "noise"):
        try:
            reads = [conversion(basis.process, "data", reading, t) for t in basis.times]
            closed = _closed_form(basis, prediction, reading, at_start)
        except ValueError:
            continue
        if np.isfinite(closed).all():
            terms = list(_short_rows(closed, basis.nfe, threshold))
            rows = _assembled(basis, terms, [(float(a), float(b)) for a, b in reads], grid)
            named = _with_nodes(rows, grid, 1e-6 * basis.process.horizon)
            yield Plan(basis.process, named, (None,) * len(basis.normals), name)


def _closed_form(basis: Run, prediction: str, reading: str, at_start: bool) -> np.ndarray:
    """Each state and the result on [start | readings | normals]; row 0 is the start itself.

    A reply is a x_j + b R_j in the reading R_j at the state x_j, which is one of the rows.
    """
    rows = torch.cat([*basis.states, basis.result]).numpy().copy()
    for j, t in enumerate(basis.times):
        a, b = (float(c) for c in conversion(basis.process, reading, prediction, t))
        weight = rows[:, 1 + j].copy()
        rows[:, 1 + j] = weight * b
        rows += np.outer(weight * a, rows[j])
    return rows if at_start else np.vstack([np.eye(1, rows.shape[1]), rows])


def _short_rows(closed: np.ndarray, nfe: int, threshold: float) -> Iterator[_Terms]:
    """Every row after the first, by as few terms as do."""
    unused = np.zeros(closed.shape[1], bool)
    unused[1 + nfe :] = True
    calls_at_start = nfe + 2 - len(closed)  # 1 if the model is called at the start
    for k in range(1, len(closed)):
        terms = _short(closed, k, k - 1 + calls_at_start, nfe, unused, threshold)
        unused[[1 + nfe + m for m in terms.z]] = False
        yield terms


def _short(
    closed: np.ndarray, k: int, calls: int, nfe: int, unused: np.ndarray, threshold: float
) -> _Terms:
    """Row k on m late states, the last w of the `calls` readings so far and unused normals.

    The smallest m + w that is exact; failing that (m + w > 12), its closed form.
    """
    for states, w in _windows(k, calls):
        free = unused.copy()
        free[1 + calls - w : 1 + calls] = True
        weights, *_ = np.linalg.lstsq(closed[states][:, ~free].T, closed[k, ~free], rcond=None)
        rest = closed[k] - weights @ closed[states]
        limit = threshold * np.abs(closed[k]).max()
        if np.abs(rest[~free]).max(initial=0.0) <= limit:
            break
    else:
        states, weights, rest = [0], closed[k, :1], closed[k].copy()
        rest[0], limit = 0.0, threshold * np.abs(closed[k]).max()
    kept = [j for j in np.flatnonzero(np.abs(rest) > limit)[::-1].tolist() if j]
    return _Terms(
        {j: float(c) for j, c in zip(states, weights, strict=True) if abs(c) > threshold},
        {j - 1: float(rest[j]) for j in kept if j <= nfe},
        {j - 1 - nfe: float(rest[j]) for j in kept if j > nfe},
    )


def _windows(k: int, calls: int) -> Iterator[tuple[list[int], int]]:
    """States and w, by their number: one of the last five states, the last m of them, none."""
    for total in range(1, 13):
        if total - 1 <= calls:
            yield from (([j], total - 1) for j in range(k - 1, max(k - 6, -1), -1))
        for m in (*range(2, min(total, k, 5) + 1), 0):
            if total - m <= calls:
                yield list(range(k - 1, k - m - 1, -1)), total - m


def _assembled(
    basis: Run, terms: list[_Terms], reads: list[tuple[float, float]], grid: list[float] | None
) -> list[Row]:
    """Rows numbered as in a plan. A normal that enters several becomes a row that the others add."""
    # The call at each row; none at the result.
    calls: list[int | None] = [*range(basis.nfe), None]
    if len(terms) > basis.nfe:
        calls.insert(0, None)  # nor at the start
    times = [0.0 if call is None else basis.times[call] for call in calls]
    if grid:
        times[0], times[-1] = (grid[0] if calls[0] is None else times[0]), grid[-1]
    entered = Counter(m for row in terms for m in row.z)
    rows: list[Row] = []
    state, asked, kept = dict[int, int](), dict[int | None, int](), dict[int, int]()
    start = _Terms({}, {}, {})
    for k, (row, t, call) in enumerate(zip([start, *terms], times, calls, strict=True)):
        shared = {m for m in row.z if entered[m] > 1}
        for m in sorted(shared - kept.keys()):
            kept[m] = len(rows)
            rows.append(Row(t, {}, {}, {m: 1.0}))
        x = {state[j]: c for j, c in row.x.items()} | {kept[m]: row.z[m] for m in shared}
        p = {asked[j]: c for j, c in row.p.items()}
        z = {m: c for m, c in row.z.items() if m not in shared}
        state[k] = asked[call] = len(rows)
        rows.append(Row(t, x, p, z, None if call is None else reads[call]))
    return rows


def _with_nodes(rows: list[Row], grid: list[float] | None, near: float) -> tuple[Row, ...]:
    """The start and the result are nodes, and the last row that reads the model at a time of the grid."""
    rows = list(rows)
    for i, t in enumerate(grid[1:-1] if grid else [], 1):
        at = [k for k, row in enumerate(rows[1:-1], 1) if abs(row.t - t) <= near and row.read]
        if at:
            rows[at[-1]] = replace(rows[at[-1]], node=i)
    rows[0] = replace(rows[0], node=0)
    rows[-1] = replace(rows[-1], node=len(grid) - 1 if grid else 1)
    return tuple(rows)


def _numbers(plan: Plan) -> int:
    """How many weights a plan has."""
    return sum(len(row.x) + len(row.p) + len(row.z) for row in plan.rows)


def _deviation(plan: Plan, prediction: str, run: Run) -> float:
    """Largest difference between a run's result and the plan on the same replies and normals."""
    states: list[Tensor] = []
    replies: dict[int, Tensor] = {}
    for k, row in enumerate(plan.native(prediction).rows):
        x = run.start if k == 0 else torch.zeros_like(run.start)
        for weights, values in ((row.x, states), (row.p, replies), (row.z, run.normals)):
            x = x + _combined(weights, values)
        states.append(x)
        if row.read is not None:
            a, b = row.read
            replies[k] = a * x + b * run.reply(len(replies), x)
    error = (states[-1] - run.result).abs().max() / run.result.abs().max()
    return float(error)


def _combined(weights: Mapping[int, float], values: Any) -> Tensor | float:
    return sum((c * values[j] for j, c in weights.items()), 0.0)
