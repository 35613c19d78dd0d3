"""`diagnose`: every check on one model, and what came of it in plain words."""

import math
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from sdekit.denoisers import Denoiser
from sdekit.diagnosis.behaviour import check_ends, check_mode
from sdekit.diagnosis.declared import DECLARED, check_prediction, check_time
from sdekit.diagnosis.findings import WRONG, Finding
from sdekit.diagnosis.levels import check_levels
from sdekit.diagnosis.probe import LEVELS, make_probe, undisturbed
from sdekit.diagnosis.readings import read
from sdekit.diagnosis.scale import check_scale, find_scale
from sdekit.errors import check_integer, check_seed
from sdekit.records import Records, number
from sdekit.training.batches import Data


@dataclass(frozen=True)
class Diagnosis(Records):
    """What is wrong with a model, worst first, and the rows that it was read from.

    Attributes:
        rows: one dict a measurement, with the keys

            - check: what it belongs to;
            - case: what was measured;
            - t, log_snr: the noise level (NaN where the value is over all levels, or of none);
            - value: "prediction" and "time": mean squared error of the signal as a share of the variance
              of x_t; "loss": mean squared error of the noise, per element; "outside": rms of the output over
              that of its target; "mode": relative change of the outputs; "scale": what `case` says;
            - against: what the value is held against: the least loss (exact, or the best linear denoiser's),
              the largest sane size or change, the model's own mean and scale.
        findings: what is wrong, by falling gravity; empty for a healthy model.
        exact: whether the law of the data was known.
        n: draws.
    """

    findings: tuple[Finding, ...]
    exact: bool
    n: int

    def __repr__(self) -> str:
        return f"Diagnosis({len(self.findings)} findings, {self.n} draws)"

    @property
    def healthy(self) -> bool:
        """Whether nothing wrong was found."""
        return not self.findings

    @property
    def verdict(self) -> str:
        """A paragraph in plain words."""
        if self.healthy:
            return f"Nothing wrong found. {self._summary()}"
        count = len(self.findings)
        head = (
            "One thing is wrong." if count == 1 else f"{count} things are wrong, the worst first."
        )
        if count == 1:
            return f"{head} {self.findings[0].text}"
        return " ".join([head, *(f"({i + 1}) {f.text}" for i, f in enumerate(self.findings))])

    def _summary(self) -> str:
        """How good a healthy model is."""
        (loss, floor), *_ = (
            (r["value"], r["against"])
            for r in self.rows
            if r["check"] == "time" and DECLARED in r["case"]
        )
        bound = "the least possible" if self.exact else "the best linear denoiser's"
        share = f"Its loss is {loss:.4g} of the variance of x_t, mean over the levels"
        levels = [r for r in self.rows if r["check"] == "loss" and r["against"] > 0]
        worst = max(levels, key=lambda r: r["value"] / r["against"])
        times, t = worst["value"] / worst["against"], worst["t"]
        return f"{share}; {bound} is {floor:.4g}. It is at most {times:.3g} times that, at t = {t:.3g}."

    def _cells(self) -> list[list[str]]:
        """Head and rows as text; of the prediction kinds the means over levels alone."""
        shown = [r for r in self.rows if r["check"] != "prediction" or not math.isfinite(r["t"])]
        keys = ("t", "log_snr", "value", "against")
        body = [
            [f"{r['check']}: {r['case']}", *(number(r[key], ".4g") for key in keys)] for r in shown
        ]
        return [["measured", *keys], *body]

    def _notes(self) -> list[str]:
        """The verdict."""
        return [self.verdict]


def diagnose(
    model: Denoiser, data: Data, *, cond: Tensor | None = None, n: int = 4_608, seed: int = 0
) -> Diagnosis:
    """Find out what is wrong with a model: how it is read, fed, trained and left.

    The checks, each on fresh x_t at nine noise levels or at the ends of the model's times:

        prediction  the loss of its outputs under each of the five kinds; which fits, and is it the declared
                    one?
        time        the loss under other conventions: t / T, labels of several chains, off by one and
                    reversed, 1 - t / T, log_snr, sigma (of a `NetworkDenoiser`; a call of all draws each)
        finite, outside  the outputs at t_min and t_max, and beyond: NaN, blow-ups, jumps
        mode        dropout or batch norm left in train mode; outputs that depend on chance or on the batch
        scale       mean and spread of the data, of what the model denoises towards, and of the prior
        loss        by noise level above the least possible

    With a `GaussianMixture` for data the least loss and the exact predictions are known. With samples the
    bound is the best linear denoiser of their mean and covariance, which a sensible model beats; a time that
    is one label of a thousand off costs about 5e-7 and is seen against an exact law alone.

    The model is left as it was: modes, buffers, gradients and torch's generators.

    Args:
        model: any `Denoiser`.
        data: samples (N, *event), which may be bytes, the `GaussianMixture` that they come from, or any
            endless source.
        cond: conditions of the samples, passed to the network as `cond`.
        n: draws of x_t for each time convention, at least 16 a level.
        seed: of the draws.

    Returns:
        The findings; `print` shows the table and the verdict.

    Raises:
        ValueError, TypeError: an argument.
    """
    if not isinstance(model, Denoiser):
        raise TypeError(f"model must be a Denoiser, got {type(model).__name__}")
    n, seed = check_integer("n", n, 16 * LEVELS), check_seed(seed) or 0
    probe = make_probe(model, data, cond, n, seed)
    with undisturbed(model):
        readings = read(probe)
        scale = find_scale(probe, readings)
        if scale.fits:
            readings = replace(readings, best=readings.declared)
        parts = [
            check_prediction(probe, readings),
            check_time(readings),
            check_ends(probe),
            check_scale(probe, scale),
            check_levels(probe, readings, n, seed),
        ]
    parts.insert(3, check_mode(probe))
    rows: list[dict[str, Any]] = [row for found, _ in parts for row in found]
    findings = [finding for _, found in parts for finding in found]
    return Diagnosis(rows, _ranked(findings), probe.target is not None, n)


def _ranked(findings: list[Finding]) -> tuple[Finding, ...]:
    """By falling gravity; a high loss is no finding of its own where its cause is known."""
    explained = any(f.gravity == WRONG for f in findings)
    kept = [f for f in findings if not (explained and f.check == "loss" and f.gravity < WRONG)]
    return tuple(sorted(kept, key=lambda f: -f.gravity))
