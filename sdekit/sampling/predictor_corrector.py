"""Predictor-corrector sampling: after each step, Langevin steps at the new time."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import sqrt

import torch
from torch import Tensor

from sdekit.denoisers import Denoiser, conversion
from sdekit.errors import check_choice, check_integer, check_number
from sdekit.processes import Node, Process
from sdekit.sampling.engine import CompiledPlan, Engine, Program
from sdekit.sampling.one_step import EulerMaruyama
from sdekit.sampling.sampler import FINAL, PlanSampler
from sdekit.sampling.tape import Form, Tape


@dataclass(frozen=True)
class PredictorCorrector(PlanSampler):
    """Any one-step rule, then Langevin steps x + e score + sqrt(2 e) z.  Song et al. 2021, algorithms 2-5.

    The step is e = 2 r^2 v with v = alpha^2 data_std^2 + sigma^2: a number, so this is a plan. Where the law
    of x_t is a bell of variance v the correction leaves it at v / (1 - r^2): a fixed r has an irreducible
    relative bias of r^2 / (1 - r^2), 2.6 % at 0.16, however many steps are taken.

    `data_std` is the scale of the *finest* structure of the data. Where a bell of variance u is narrower than
    v the bias grows to q / (1 - q) with q = r^2 v / u, and from q = 1 on the correction diverges: the default
    1.0 is right for one broad bell, 0.1 for a curve of width 0.1.

    Args:
        predictor: a plan sampler, run one interval at a time.
        r: the "signal-to-noise ratio" of the corrector, in (0, 1).
        corrections: Langevin steps after each predictor step.
        data_std: standard deviation of the narrowest part of the data.
        norm: None for the step above. "sample" or "batch" give the published step
            e = 2 a (r |z| / |score|)^2, a = alpha_s^2 / alpha_t^2, from norms of each sample or from their
            batch averages. Neither is affine. The first has an infinite mean in 1-D and 2-D; the second
            makes a sample's result depend on its batch mates.
    """

    predictor: PlanSampler = field(default_factory=EulerMaruyama)
    r: float = 0.16
    corrections: int = 1
    data_std: float = 1.0
    norm: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.predictor, PlanSampler):
            raise TypeError(f"predictor must be a PlanSampler, got {type(self.predictor).__name__}")
        check_number("r", self.r, 0, 1, open_low=True, open_high=True)
        check_integer("corrections", self.corrections, 1)
        check_number("data_std", self.data_std, 0)
        if self.norm is not None:
            check_choice("norm", self.norm, ("sample", "batch"))

    @property
    def nfe_per_step(self) -> int | None:  # type: ignore[override]
        """The predictor's calls and one per correction."""
        calls = self.predictor.nfe_per_step
        return None if calls is None else calls + self.corrections

    def write(self, tape: Tape, process: Process, nodes: Sequence[Node], x: Form) -> Form:
        """Predict to t, then correct at t."""
        if self.norm is not None:
            raise ValueError(f"norm={self.norm!r} takes its step from norms: that is not a plan")
        for s, t in pairwise(nodes):
            x = self.predictor.write(tape, process, [s, t], x)
            e = 2 * self.r**2 * ((t.alpha * self.data_std) ** 2 + t.sigma**2)
            for _ in range(self.corrections):
                x = tape.node(x + e * tape.score(x, t) + sqrt(2 * e) * tape.normal(), t)
        return x

    def program(self, denoiser: Denoiser, times: list[float], final: str) -> Program:
        """The plan, or the loop with norms."""
        if self.norm is None:
            return super().program(denoiser, times, final)
        check_choice("final", final, FINAL)
        process, steps = denoiser.process, len(times) - 1
        moves = [
            CompiledPlan(self.predictor.plan(process, pair), denoiser.prediction)
            for pair in pairwise(times)
        ]

        def program(engine: Engine, x: Tensor) -> Tensor:
            if self.norm == "sample" and x[:1].numel() <= 2:
                warnings.warn(
                    'norm="sample" has a step of infinite mean in one and two dimensions',
                    stacklevel=4,
                )
            drawn = 0
            engine.reached(0, times[0], x)
            for k, move in enumerate(moves, 1):
                x = move(_Shifted(engine, drawn), x)
                drawn += len(move.plan.normals)
                corrections = 0 if process.sigma(times[k]) == 0 else self.corrections
                for j in range(corrections):
                    z = engine.normal(drawn)
                    drawn += 1
                    last = k == steps and j == corrections - 1
                    quiet = final == "mean" and last
                    x = self._correct(engine, x, z, times[k - 1], times[k], quiet=quiet)
                if k == steps and final == "data" and process.sigma(times[-1]) > 0:
                    a, b = conversion(process, denoiser.prediction, "data", times[-1])
                    x = a * x + b * engine.evaluate(times[-1], x)
                engine.reached(k, times[k], x)
            return x

        return program

    def _correct(
        self, engine: Engine, x: Tensor, z: Tensor, s: float, t: float, *, quiet: bool
    ) -> Tensor:
        """One Langevin step at t, after the predictor came from s."""
        denoiser = engine.denoiser
        a, b = conversion(denoiser.process, denoiser.prediction, "score", t)
        score = a * x + b * engine.evaluate(t, x)
        lengths = [v.flatten(1).norm(dim=1) for v in (z, score)]
        if self.norm == "batch":
            lengths = [length.mean().expand(len(x)) for length in lengths]
        scale = float(denoiser.process.transition(t, s)[0]) ** 2
        e = 2 * scale * (self.r * lengths[0] / lengths[1]) ** 2
        e = e.view(-1, *[1] * (x.ndim - 1))
        moved = x + e * score
        return moved if quiet else moved + torch.sqrt(2 * e) * z


class _Shifted(Engine):
    """An engine whose normals are numbered from an offset, for plans that are part of a longer run."""

    def __init__(self, engine: Engine, offset: int) -> None:
        self.denoiser, self.watched = engine.denoiser, False
        self.evaluate = engine.evaluate  # type: ignore[method-assign]
        self.normal = lambda m: engine.normal(offset + m)  # type: ignore[assignment]
