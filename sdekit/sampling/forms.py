"""Plans in closed form, and the differences between two.

Unrolled, every state of a plan is a linear combination of the start, the E[x_0 | x] of each model call and
the normals. Two plans that make the same combinations are the same sampler, however their rows are written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sdekit.sampling.plan import Plan, Row


@dataclass(frozen=True)
class ClosedForm:
    """Every state of a plan in terms of what enters it.

    Attributes:
        states: (rows, 1 + nfe + normals) weights on the start, on E[x_0 | x] of each call, on each normal.
        calls: the rows at which the model is called, in order.
    """

    states: np.ndarray
    calls: tuple[int, ...]

    @property
    def start(self) -> np.ndarray:
        """Weights on the start, (rows,)."""
        return self.states[:, 0]

    @property
    def data(self) -> np.ndarray:
        """Weights on E[x_0 | x] of each call, (rows, nfe)."""
        return self.states[:, 1 : 1 + len(self.calls)]

    @property
    def normals(self) -> np.ndarray:
        """Weights on the normals, (rows, normals)."""
        return self.states[:, 1 + len(self.calls) :]


def closed_form(plan: Plan) -> ClosedForm:
    """Unroll the rows, in float64."""
    calls = tuple(k for k, row in enumerate(plan.rows) if row.read is not None)
    column = {k: 1 + i for i, k in enumerate(calls)}
    states = np.zeros((len(plan.rows), 1 + len(calls) + len(plan.normals)))
    states[0, 0] = 1.0
    for k, row in enumerate(plan.rows[1:], 1):
        states[k] = _made(row, plan, states, column)
    return ClosedForm(states, calls)


def _made(row: Row, plan: Plan, states: np.ndarray, column: dict[int, int]) -> np.ndarray:
    """What a row adds up, given the unrolled states and the column of each call."""
    made = np.zeros(states.shape[1])
    for j, c in row.x.items():
        made += c * states[j]
    for j, c in row.p.items():
        on_state, on_data = plan.rows[j].read or (0.0, 0.0)
        made += c * on_state * states[j]
        made[column[j]] += c * on_data
    for m, c in row.z.items():
        made[1 + len(column) + m] += c
    return made


@dataclass(frozen=True)
class Difference:
    """One state that the rule of the first plan does not make out of the second plan's earlier states.

    Attributes:
        call: the model call it is the input of, counted from 0; the number of calls for the result.
        times: its time in either plan.
        weights: by input ("start", "data 3", "normal 2"), the second plan's weight less the first's.
    """

    call: int
    times: tuple[float, float]
    weights: dict[str, float]

    def __str__(self) -> str:
        terms = ", ".join(f"{name} {delta:+.3g}" for name, delta in self.weights.items())
        at = f"t = {self.times[0]:.6g}"
        if self.times[0] != self.times[1]:
            at += f" against {self.times[1]:.6g}"
        return f"input of call {self.call}, {at}: {terms or 'another time'}"


def differences(plan: Plan, other: Plan, tol: float = 1e-10) -> list[Difference]:
    """Where `other` departs from the rule of `plan`, state by state.

    Each state at which `other` calls the model, and its result, is compared with what the row of `plan`
    would have made of the *other* plan's earlier states: an error shows in the row that makes it, not in all
    that follow. Normals are matched in the order in which they enter.

    Raises:
        ValueError: the plans make different numbers of calls or draw different numbers of normals.
    """
    for what, a, b in (
        ("calls", plan.nfe, other.nfe),
        ("normals", len(plan.normals), len(other.normals)),
    ):
        if a != b:
            raise ValueError(f"{plan.name} makes {a} {what} and {other.name} {b}: no row by row")
    mine, theirs = closed_form(plan), closed_form(other)
    column = {k: 1 + i for i, k in enumerate(mine.calls)}
    # Their states in the places of mine; a row of mine that is never evaluated follows from the others.
    shared = np.zeros_like(mine.states)
    place = dict(zip((*mine.calls, len(plan.rows) - 1), (*theirs.calls, -1), strict=True))
    found = []
    for k, row in enumerate(plan.rows):
        made = _made(row, plan, shared, column) if k else mine.states[0]
        if k not in place:
            shared[k] = made
            continue
        shared[k] = theirs.states[place[k]]
        times = row.t, other.rows[place[k]].t
        weights = _departures(shared[k] - made, len(mine.calls), tol)
        if weights or abs(times[0] - times[1]) > tol * max(1.0, abs(times[0])):
            found.append(Difference(list(place).index(k), times, weights))
    return found


def _departures(delta: np.ndarray, calls: int, tol: float) -> dict[str, float]:
    names = [
        "start",
        *(f"data {i}" for i in range(calls)),
        *(f"normal {m}" for m in range(len(delta) - 1 - calls)),
    ]
    return {name: float(d) for name, d in zip(names, delta, strict=True) if abs(d) > tol}
