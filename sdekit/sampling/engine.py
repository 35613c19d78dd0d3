"""The one loop: everything that samples calls the model, draws normals and reports nodes through an `Engine`.

A *program* is a function of (engine, starting state) that returns the final state. A plan compiles to a
program; samplers that are not affine (a step size from norms) and other libraries' solvers are programs
too. Counting, conditions, callbacks, progress, early stop and the watch for NaN are written here once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit.denoisers import Denoiser, checked_output
from sdekit.errors import NumericsError
from sdekit.sampling.noise import BlockNormals
from sdekit.sampling.plan import Plan, Register

#: Called with (node index, time, state) at every grid node; a true return value stops the run there.
Callback = Callable[[int, float, Tensor], Any]


class Stop(Exception):
    """Raised at a node to end a run early; carries the state."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x


class Engine:
    """What a program talks to, for one chunk of samples."""

    def __init__(
        self,
        denoiser: Denoiser,
        normal: BlockNormals,
        conditions: dict[str, Any] | None = None,
        callback: Callback | None = None,
        *,
        check: bool = False,
    ) -> None:
        self.denoiser, self.normal = denoiser, normal
        self.watched = callback is not None
        self.nfe = 0
        self._conditions, self._callback, self._check = conditions or {}, callback, check

    def evaluate(self, t: float, x: Tensor) -> Tensor:
        """The model's own output at x; counted, and checked for its shape."""
        self.nfe += 1
        out = checked_output(self.denoiser.predict(x, t, **self._conditions), x)
        if self._check:
            self._require_finite(out, t)
        return out

    def reached(self, index: int, t: float, x: Tensor) -> None:
        """Report the state at a grid node."""
        if self._callback is not None and self._callback(index, t, x.clone()):
            raise Stop(x)

    def _require_finite(self, out: Tensor, t: float) -> None:
        bad = int((~torch.isfinite(out)).flatten(1).any(1).sum())
        if bad:
            log_snr = self.denoiser.process.log_snr(t)
            raise NumericsError(
                f"the model returned NaN or infinity at call {self.nfe}, t = {float(t):.6g}, "
                f"log_snr = {float(log_snr):.4g}, for {bad} of {len(out)} samples"
            )


Program = Callable[[Engine, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class _Step:
    """A row with its registers resolved to slots."""

    t: float
    node: int | None
    target: int
    in_place: bool
    terms: tuple[tuple[int, float], ...]
    normals: tuple[tuple[int, float], ...]
    read: tuple[float, float] | None
    prediction: int


class CompiledPlan:
    """A plan as a program on the model's own output.

    Registers become slots by liveness, and a dying state is updated in place (not where gradients flow).
    """

    def __init__(self, plan: Plan, denoiser: Denoiser) -> None:
        self.plan = plan
        self._steps, self._slots = _resolve(plan.native(denoiser))

    def __call__(self, engine: Engine, x: Tensor) -> Tensor:
        """Run the rows on a starting state, which is overwritten."""
        combine = _combine if torch.is_grad_enabled() else _combine_in_place
        values: list[Any] = [None] * self._slots
        evaluate, normal, watched = engine.evaluate, engine.normal, engine.watched
        start = self._steps[0]
        for step in self._steps:
            if step.terms:
                x = combine(values, step, normal)
            elif step is not start:
                x = _noise_only(step, x, normal)
            values[step.target] = x
            if watched and step.node is not None:
                engine.reached(step.node, step.t, x)
            if step.read is not None:
                values[step.prediction] = _reading(step.read, x, evaluate(step.t, x))
        return x


def _combine_in_place(values: list[Any], step: _Step, normal: Callable[[int], Tensor]) -> Tensor:
    slot, weight = step.terms[0]
    x = values[slot]
    if not step.in_place:
        x = x * weight
    elif weight != 1.0:
        x.mul_(weight)
    for slot, weight in step.terms[1:]:
        x.add_(values[slot], alpha=weight)
    for m, weight in step.normals:
        x.add_(normal(m), alpha=weight)
    return x


def _combine(values: list[Any], step: _Step, normal: Callable[[int], Tensor]) -> Tensor:
    slot, weight = step.terms[0]
    x = values[slot] * weight
    for slot, weight in step.terms[1:]:
        x = torch.add(x, values[slot], alpha=weight)
    for m, weight in step.normals:
        x = torch.add(x, normal(m), alpha=weight)
    return x


def _noise_only(step: _Step, like: Tensor, normal: Callable[[int], Tensor]) -> Tensor:
    x = torch.zeros_like(like)
    for m, weight in step.normals:
        x.add_(normal(m), alpha=weight)
    return x


def _reading(read: tuple[float, float], x: Tensor, out: Tensor) -> Tensor:
    a, b = read
    if a != 0.0:
        return torch.add(x * a, out, alpha=b)
    if b != 1.0:
        return out * b
    # A model that returns its input must not have its prediction change with the state.
    return out.clone() if out.data_ptr() == x.data_ptr() else out


def _resolve(plan: Plan) -> tuple[list[_Step], int]:
    """Rows to slots. A slot is freed after the last row that uses it."""
    slot_of: dict[Register, int] = {}
    free: list[int] = []
    slots = 0
    steps: list[_Step] = []

    def take() -> int:
        nonlocal slots
        if free:
            return free.pop()
        slots += 1
        return slots - 1

    for k, row in enumerate(plan.rows):
        inputs = list(row.inputs())
        dying = [r for r in slot_of if plan.last_use.get(r, -1) <= k]
        reused = next((r for r, _ in inputs if r[0] == "x" and r in dying), None)
        inputs.sort(key=lambda term: term[0] != reused)
        terms = tuple((slot_of[r], c) for r, c in inputs)
        free += [slot_of.pop(r) for r in dying if r != reused]
        target = slot_of.pop(reused) if reused else take()
        slot_of["x", k] = target
        prediction = -1
        if row.read is not None:
            prediction = slot_of["p", k] = take()
        read, normals = row.read, tuple(row.z.items())
        in_place = reused is not None
        steps.append(_Step(row.t, row.node, target, in_place, terms, normals, read, prediction))
    return steps, slots
