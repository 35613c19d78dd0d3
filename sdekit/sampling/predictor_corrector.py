"""Predictor-corrector sampling: after each step, Langevin steps x + e score + sqrt(2 e) z at the new time.

With a step size e that is a number, predictor and corrector together are a plan. The published step size is a
ratio of norms, which depends on the sample: that corrector is a program of its own.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, pairwise
from math import sqrt
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from sdekit.denoisers import Denoiser, conversion
from sdekit.errors import check_choice, check_integer, check_number
from sdekit.processes import Node, Process, expand
from sdekit.sampling.engine import CompiledPlan, Engine, Program
from sdekit.sampling.grids import TimeGrid
from sdekit.sampling.one_step import EulerMaruyama
from sdekit.sampling.plan import Plan
from sdekit.sampling.sampler import FINAL, PlanSampler, Sampler
from sdekit.sampling.tape import Form, Tape


@dataclass(frozen=True)
class _Corrected(Sampler):
    """Partial: a predictor, and how strongly and how often each of its states is corrected."""

    predictor: PlanSampler = field(default_factory=EulerMaruyama)
    r: float = 0.16
    corrections: int = 1
    reference_steps: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.predictor, PlanSampler):
            raise TypeError(f"predictor must be a PlanSampler, got {type(self.predictor).__name__}")
        check_number("r", self.r, 0, 1, open_low=True, open_high=True)
        check_integer("corrections", self.corrections, 1)
        if self.reference_steps is not None:
            check_integer("reference_steps", self.reference_steps, 1)

    @property
    def nfe_per_step(self) -> int | None:  # type: ignore[override]
        """The predictor's calls and one per correction."""
        calls = self.predictor.nfe_per_step
        return None if calls is None else calls + self.corrections

    @property
    def grid(self) -> TimeGrid:
        """The predictor's."""
        return self.predictor.grid

    @property
    def biased(self) -> bool:  # type: ignore[override]
        """Unless r shrinks with the steps, and the predictor is not."""
        return self.reference_steps is None or self.predictor.biased

    def _squared_r(self, steps: int) -> float:
        """r^2, made smaller where there are more than the reference steps."""
        shrink = 1.0 if self.reference_steps is None else min(1.0, self.reference_steps / steps)
        return self.r**2 * shrink


@dataclass(frozen=True)
class PredictorCorrector(_Corrected, PlanSampler):  # type: ignore[misc]
    """Any plan, each of its states corrected with the step e = 2 r^2 v.  Song et al. 2021, algorithms 2-5.

    v = alpha^2 data_std^2 + sigma^2 is a number, so this is a plan. Where the law of x_t is a bell of
    variance u the corrections leave it at u / (1 - q), q = r^2 v / u: a bias that more steps do not remove,
    r^2 / (1 - r^2) or 2.6 % at r = 0.16 where `data_std` is that of the data.
    Either of two things does. `reference_steps` shrinks r with the steps; and with `data_std=0`, the default,
    the step e = 2 r^2 sigma^2 fades towards the data, and with it the bias.

    No law of x_t is anywhere narrower than sigma: the Hessian of -log p_t is at most I / sigma^2. So
    `data_std=0` is stable on any data. A positive value corrects more, most of all near the data: right is
    the scale of their *finest* structure (0.1 for a curve of width 0.1), and where a bell is so narrow that
    q > 1 the correction diverges.

    A multistep predictor builds on the predictions at the corrected states before. As with any noise between
    them, the law is then of first order, and a fixed r with a large `data_std` costs more than a one-step
    predictor would.

    Args:
        predictor: a plan sampler.
        r: the "signal-to-noise ratio" of the corrector, in (0, 1).
        corrections: Langevin steps after each predictor step.
        reference_steps: the number of steps M that r is meant for: N > M steps take r sqrt(M / N), and the
            law converges with first order. None keeps r.
        data_std: standard deviation of the narrowest part of the data, or 0.
    """

    data_std: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("data_std", self.data_std, 0)

    def write(self, tape: Tape, process: Process, nodes: Sequence[Node], x: Form) -> Form:
        """What the predictor writes, with the corrections after every state at a grid node."""
        squared_r = self._squared_r(len(nodes) - 1)

        def correct(x: Form, t: Node) -> Form:
            e = 2 * squared_r * ((t.alpha * self.data_std) ** 2 + t.sigma**2)
            for _ in range(self.corrections):
                x = tape.node(x + e * tape.score(x, t) + sqrt(2 * e) * tape.normal(), t)
            return x

        return self.predictor.write(cast(Tape, _Followed(tape, correct)), process, nodes, x)


class _Followed:
    """A tape on which something follows every state at a grid node."""

    def __init__(self, tape: Tape, follow: Callable[[Form, Node], Form]) -> None:
        self._tape, self._follow = tape, follow

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tape, name)

    def node(self, form: Form, node: Node) -> Form:
        """The state after what follows it; one between grid nodes is left alone."""
        x = self._tape.node(form, node)
        return x if node.index is None else self._follow(x, node)


@dataclass(frozen=True)
class NormCorrector(_Corrected):
    """The published corrector, e = 2 a (r |z| / |score|)^2, a = alpha_s^2 / alpha_t^2.  Song et al. 2021.

    The step depends on the sample, so this is not a plan. In high dimension |score|^2 is near the trace of
    the Fisher information and the bias is that of `PredictorCorrector` with the data's own `data_std`.

    Args:
        predictor: a plan sampler whose steps do not build on earlier ones: it is run an interval at a time.
        r: the "signal-to-noise ratio" of the corrector, in (0, 1).
        corrections: Langevin steps after each predictor step.
        reference_steps: as for `PredictorCorrector`.
        norm: "sample" takes the norms of each sample: a step of infinite mean in one and two dimensions.
            "batch" takes their averages over the batch, as published code does; a sample's result then
            depends on its batch mates.
    """

    norm: str = "sample"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("norm", self.norm, ("sample", "batch"))

    @property
    def coupled(self) -> bool:  # type: ignore[override]
        """Norms averaged over the batch."""
        return self.norm == "batch"

    def program(self, denoiser: Denoiser, times: list[float], final: str) -> Program:
        """Predict, correct, report; interval by interval."""
        check_choice("final", final, FINAL)
        legs = list(self._legs(denoiser, times))

        def program(engine: Engine, x: Tensor) -> Tensor:
            if self.norm == "sample" and x[:1].numel() <= 2:
                warnings.warn(
                    'norm="sample" has a step of infinite mean in one and two dimensions',
                    stacklevel=4,
                )
            engine.reached(0, times[0], x)
            for k, leg in enumerate(legs, 1):
                x, last = leg.move(engine, x), leg is legs[-1]
                for number in leg.normals:
                    silent = final == "mean" and last and number == leg.normals[-1]
                    x = self._correct(engine, x, leg, engine.normal(number), silent=silent)
                if final == "data" and last and leg.normals:
                    a, b = conversion(denoiser.process, denoiser.prediction, "data", leg.t)
                    x = a * x + b * engine.evaluate(leg.t, x)
                engine.reached(k, leg.t, x)
            return x

        return program

    def _legs(self, denoiser: Denoiser, times: list[float]) -> Iterator["_Leg"]:
        """The intervals; at sigma = 0 there is nothing to correct."""
        process, kind = denoiser.process, denoiser.prediction
        squared_r = self._squared_r(len(times) - 1)
        pieces = _pieces(self.predictor.plan(process, times), self.corrections)
        for (piece, normals), (s, t) in zip(pieces, pairwise(times), strict=True):
            move = CompiledPlan(piece, kind)
            if process.sigma(t) == 0:
                yield _Leg(move, t)
            else:
                a, b = conversion(process, kind, "score", t)
                strength = 2 * squared_r * float(process.transition(t, s)[0]) ** 2
                yield _Leg(move, t, normals, (float(a), float(b)), strength)

    def _correct(
        self, engine: Engine, x: Tensor, leg: "_Leg", z: Tensor, *, silent: bool
    ) -> Tensor:
        """One Langevin step; a silent one is as long, and adds no noise."""
        a, b = leg.score
        score = a * x + b * engine.evaluate(leg.t, x)
        lengths = [v.reshape(len(v), -1).norm(dim=1) for v in (z, score)]
        if self.norm == "batch":
            lengths = [length.mean().expand(len(x)) for length in lengths]
        e = cast(Tensor, expand(leg.strength * (lengths[0] / lengths[1]) ** 2, x))
        moved = x + e * score
        return moved if silent else moved + torch.sqrt(2 * e) * z


class _Leg(NamedTuple):
    """One interval of a run.

    Attributes:
        move: the predictor's step, to t.
        t: where it ends.
        normals: the numbers of the normals of the corrections there.
        score: (a, b) with score = a x + b output at t.
        strength: 2 a r^2, the corrector's step for norms that are equal.
    """

    move: CompiledPlan
    t: float
    normals: tuple[int, ...] = ()
    score: tuple[float, float] = (0.0, 0.0)
    strength: float = 0.0


def _pieces(plan: Plan, corrections: int) -> Iterator[tuple[Plan, tuple[int, ...]]]:
    """The plan cut at its grid nodes, and after each piece the numbers of so many normals more.

    Raises:
        ValueError: a row uses what an earlier piece has made, or the first node is reached twice.
    """
    numbers = count()
    cuts = [k for k, row in enumerate(plan.rows) if row.node is not None]
    if cuts[0]:
        raise ValueError(
            f"predictor {plan.name} comes back to its first time, so it cannot be run an interval at a time: "
            "take one that does not, or PredictorCorrector"
        )
    for a, b in pairwise(cuts):
        rows = [replace(plan.rows[a], x={}, p={}, z={}, node=None)]
        for row in plan.rows[a + 1 : b + 1]:
            if min((*row.x, *row.p), default=a) < a:
                raise ValueError(
                    f"predictor {plan.name} builds on steps before the last, which a corrector from norms "
                    "has left behind: take a one-step predictor, or PredictorCorrector"
                )
            x, p = ({j - a: c for j, c in weights.items()} for weights in (row.x, row.p))
            z = {next(numbers): c for c in row.z.values()}
            rows.append(replace(row, x=x, p=p, z=z, node=None))
        rows[-1] = replace(rows[-1], read=None)
        yield replace(plan, rows=tuple(rows)), tuple(next(numbers) for _ in range(corrections))
