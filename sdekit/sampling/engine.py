"""The one loop: everything that samples calls the model, draws normals and reports nodes through an `Engine`.

A *program* is a function of (engine, starting state) that returns the final state. A plan compiles to a
program; samplers that are not affine (a step size from norms) and other libraries' solvers are programs
too. Counting, conditions, callbacks, progress, early stop and the watch for NaN are written here once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from sdekit.denoisers import Denoiser, checked_output
from sdekit.elementary import Number
from sdekit.errors import NumericsError
from sdekit.learned_variance import StepModel
from sdekit.processes import Process
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
        normal: Callable[[int], Tensor],
        conditions: dict[str, Any] | None = None,
        callback: Callback | None = None,
        *,
        check: bool = False,
    ) -> None:
        self.denoiser, self.normal = denoiser, normal
        self.watched = callback is not None
        self.nfe = 0
        #: What each sample cost, (n,), where they cost different amounts.
        self.nfe_per_sample: Tensor | None = None
        self._conditions, self._callback, self._check = conditions or {}, callback, check

    def evaluate(self, t: Number, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """The model's own output at x, the samples of these rows or all; counted, its shape checked."""
        self.nfe += 1
        conditions = self._conditions
        if rows is not None:
            conditions = {name: values[rows] for name, values in conditions.items()}
        predict = self.denoiser.predict
        out = predict(x, t, **conditions) if conditions else predict(x, t)
        if not isinstance(out, Tensor) or out.shape != x.shape:
            checked_output(out, x)
        if self._check:
            require_finite(out, t, self.nfe, self.denoiser.process)
        return out

    def reverse(self, t: float, s: float, x: Tensor) -> tuple[Tensor, Tensor]:
        """The model's own mean and variance of x_s given x_t = x; counted, their shapes checked."""
        self.nfe += 1
        model = cast(StepModel, self.denoiser)
        mean, variance = (
            checked_output(out, x) for out in model.reverse(x, t, s, **self._conditions)
        )
        if self._check:
            require_finite(mean + variance, t, self.nfe, self.denoiser.process)
        return mean, variance

    def reached(self, index: int, t: float, x: Tensor) -> None:
        """Report the state at a grid node."""
        if self._callback is not None and self._callback(index, t, x.clone()):
            raise Stop(x)


def require_finite(out: Tensor, t: Number, call: int, process: Process) -> None:
    """Raise NumericsError, with the time, if a model's output at t has NaN or infinity."""
    broken = (~torch.isfinite(out)).reshape(len(out), -1).any(1)
    if bad := int(broken.sum()):
        first = float(t[broken][0] if isinstance(t, Tensor) and t.ndim else t)
        raise NumericsError(
            f"the model returned NaN or infinity at call {call}, t = {first:.6g}, "
            f"log_snr = {process.log_snr(first):.4g}, for {bad} of {len(out)} samples"
        )


Program = Callable[[Engine, Tensor], Tensor]


def plan_of(program: Program) -> Plan | None:
    """The plan that a program runs, if it runs one."""
    return getattr(program, "plan", None)


class _Step(NamedTuple):
    """A row with its registers resolved to slots; a tuple, since the loop unpacks one a step."""

    t: float
    node: int | None
    target: int
    #: -1 for a row of noise only.
    first: int
    #: On the first register: in a run a 0-d tensor, since a product with one takes a third of the time of one
    #: with a float; None where it is 1 and the register is kept.
    weight: float | Tensor | None
    in_place: bool
    rest: tuple[tuple[int, float], ...]
    normals: tuple[tuple[int, float], ...]
    #: None where the model's output is kept as it is.
    read: tuple[float, float] | None
    #: -1 where the model is not called.
    prediction: int


class CompiledPlan:
    """A plan as a program on the model's own output.

    Registers become slots by liveness, and a dying state is updated in place (not where gradients flow).
    """

    def __init__(self, plan: Plan, prediction: str) -> None:
        self.plan = plan
        self._steps, self._slots = _resolve(plan.native(prediction))
        self._by_dtype: dict[torch.dtype, list[_Step]] = {}

    def __call__(self, engine: Engine, x: Tensor) -> Tensor:
        """Run the rows on a starting state, which is overwritten."""
        values: list[Any] = [x, *[None] * (self._slots - 1)]
        evaluate, normal, watched = engine.evaluate, engine.normal, engine.watched
        recorded = torch.is_grad_enabled()
        scale, add = (torch.mul, torch.add) if recorded else (Tensor.mul_, Tensor.add_)
        for step in self._steps_in(x.dtype):
            t, node, target, first, weight, in_place, rest, normals, read, prediction = step
            x = values[first] if first >= 0 else torch.zeros_like(x)
            if weight is not None:
                x = scale(x, weight) if in_place else x * weight
            for slot, c in rest:
                x = add(x, values[slot], alpha=c)
            for m, c in normals:
                x = add(x, normal(m), alpha=c)
            values[target] = x
            if watched and node is not None:
                engine.reached(node, t, x)
            if prediction >= 0:
                out = evaluate(t, x)
                if read is not None:
                    a, b = read
                    out = torch.add(x * a, out, alpha=b) if a else out * b
                elif out.data_ptr() == x.data_ptr():
                    out = out.clone()  # the model returned its input, which is about to change
                values[prediction] = out
        return x

    def _steps_in(self, dtype: torch.dtype) -> list[_Step]:
        """The steps for states of a dtype, kept."""
        if dtype not in self._by_dtype:
            weights = torch.tensor([step.weight or 0.0 for step in self._steps], dtype=dtype)
            self._by_dtype[dtype] = [
                step if step.weight is None else step._replace(weight=weight)
                for step, weight in zip(self._steps, weights.unbind(), strict=True)
            ]
        return self._by_dtype[dtype]


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
        terms = [(slot_of[r], c) for r, c in inputs]
        free += [slot_of.pop(r) for r in dying if r != reused]
        target = slot_of["x", k] = slot_of.pop(reused) if reused else take()
        prediction = -1
        if row.read is not None:
            prediction = slot_of["p", k] = take()
        first, weight = terms[0] if terms else (-1 if k else target, 1.0)
        in_place = reused is not None or not terms
        rest, normals = tuple(terms[1:]), tuple(row.z.items())
        kept = in_place and weight == 1.0
        steps.append(
            _Step(
                row.t,
                row.node,
                target,
                first,
                None if kept else weight,
                in_place,
                rest,
                normals,
                None if row.read == (0.0, 1.0) else row.read,
                prediction,
            )
        )
    return steps, slots
