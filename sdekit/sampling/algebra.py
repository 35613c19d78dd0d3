"""What a table of numbers can do besides running forwards: run backwards, and say which call matters."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sdekit.denoisers import Denoiser
from sdekit.sampling.plan import Plan, check_plan


def invert(plan: Plan, denoiser: Denoiser, tail: Sequence[Tensor]) -> Tensor:
    """The start of a deterministic plan from its last states, exact to rounding.

    Works where every row is linear in the oldest state it adds up and calls the model at younger states only
    (leapfrog, and other two-step reversible rules): the row is then solved for that state.

    Args:
        plan: for example `Leapfrog().plan(process, times)`.
        denoiser: the model the plan was run with.
        tail: the plan's last states, oldest first: as many as a row spans, two for leapfrog.

    Returns:
        The starting state.

    Raises:
        ValueError: the plan adds noise, the tail is too short, or a row cannot be solved for one state.
    """
    check_plan(plan)
    if plan.stochastic:
        raise ValueError(f"{plan.name} adds noise: only deterministic plans are inverted")
    last = len(plan.rows) - 1
    states = {last - i: x for i, x in enumerate(reversed(tail))}
    readings: dict[int, Tensor] = {}
    for k in range(last, 0, -1):
        row = plan.rows[k]
        unknown = [j for j in row.x if j not in states]
        hidden = [j for j in row.p if j not in states]
        if k not in states or hidden or len(unknown) > 1:
            raise ValueError(
                f"row {k} of {plan.name} is not linear in one unknown state, given a tail of {len(tail)}: "
                "it cannot be run backwards"
            )
        if not unknown:
            continue
        rest = states[k]
        for j, c in row.x.items():
            rest = rest if j in unknown else rest - c * states[j]
        for j, c in row.p.items():
            if j not in readings:
                readings[j] = _reading(plan, denoiser, j, states[j])
            rest = rest - c * readings[j]
        states[unknown[0]] = rest / row.x[unknown[0]]
    if 0 not in states:
        raise ValueError(f"no row of {plan.name} leads back to its start")
    return states[0]


def _reading(plan: Plan, denoiser: Denoiser, j: int, x: Tensor) -> Tensor:
    row = plan.rows[j]
    assert row.read is not None
    with torch.no_grad():
        return row.read[0] * x + row.read[1] * denoiser.data(x, row.t)


def sensitivity(plan: Plan, variances: Tensor | float) -> Tensor:
    """How much an error in each model call moves the output, for data N(mean, diag(variances)).

    Entry (k, i) is d output_i / d E[x_0 | x]_i of call k: the adjoint of the rows, where later calls answer
    to the states that the error has moved. It is exact on Gaussian data, whose denoiser is affine, and the
    linearisation around such data elsewhere.

    Args:
        plan: any.
        variances: a number or (d,), eigenvalues of the data covariance, >= 0.

    Returns:
        float64 (nfe, d).
    """
    check_plan(plan)
    spread = torch.as_tensor(variances, dtype=torch.float64).reshape(-1)
    if bool((spread < 0).any()):
        raise ValueError(f"variances must be >= 0, got {spread.tolist()}")
    on_state = [torch.zeros_like(spread) for _ in plan.rows]
    on_reading = [torch.zeros_like(spread) for _ in plan.rows]
    on_state[-1] += 1
    found = []
    for k in range(len(plan.rows) - 1, -1, -1):
        row = plan.rows[k]
        if row.read is not None:
            alpha, sigma = float(plan.process.alpha(row.t)), float(plan.process.sigma(row.t))
            gain = alpha * spread / (alpha**2 * spread + sigma**2)
            found.append(on_reading[k] * row.read[1])
            on_state[k] += on_reading[k] * (row.read[0] + row.read[1] * gain)
        for j, c in row.x.items():
            on_state[j] += c * on_state[k]
        for j, c in row.p.items():
            on_reading[j] += c * on_state[k]
    return torch.stack(found[::-1]) if found else torch.empty(0, len(spread), dtype=torch.float64)
