"""Is it trained? The loss of the noise by noise level, above the least there is or the best linear one's."""

import math
from typing import Any

from sdekit.diagnosis.findings import HARMFUL, WRONG, Finding, row
from sdekit.diagnosis.probe import LEVELS, Probe
from sdekit.diagnosis.readings import Readings
from sdekit.training.excess import excess_by_level

#: Excess, as a share of the variance of x_t, from which samples suffer visibly.
_TOO_MUCH = 0.02


def check_levels(
    probe: Probe, readings: Readings, n: int, seed: int
) -> tuple[list[dict[str, Any]], list[Finding]]:
    """The mean squared error of the noise at each level beside its bound, and where it is worst."""
    known = probe.target is not None
    rows = _against_law(probe, n, seed) if known else _against_line(probe, readings)
    worst = max(rows, key=lambda r: -math.inf if math.isnan(r["share"]) else r["share"])
    bound = "least possible" if known else "best linear denoiser's"
    found = _untrained(readings)
    if not found and worst["share"] - 4 * worst["share se"] > _TOO_MUCH:
        text = (
            f"The loss is too high: near t = {worst['t']:.3g} (log-SNR {worst['log_snr']:.1f}) the error of "
            f"the noise is {worst['value']:.3g}, the {bound} {worst['against']:.3g}. {_advice(readings)}"
        )
        found = [Finding(HARMFUL, "loss", text)]
    named = [{k: v for k, v in r.items() if not k.startswith("share")} for r in rows]
    return named, found


def _untrained(readings: Readings) -> list[Finding]:
    """A network whose output does not depend on x_t, where it should."""
    declared, floor = readings.declared, readings.floor.mean().item()
    if not declared.constant or declared.loss.mean().item() <= 1.05 * floor:
        return []
    text = (
        "The output does not depend on x_t: the network looks untrained, as one whose last layer is zero, or "
        "its weights were not loaded."
    )
    return [Finding(WRONG, "loss", text)]


def _advice(readings: Readings) -> str:
    if not readings.declared.useful:
        return "It says little more than an output of zero would: train it, or load its weights."
    return "Train longer, or with more weight on these times."


def _against_law(probe: Probe, n: int, seed: int) -> list[dict[str, Any]]:
    """A row a range of levels, against the least loss there is."""
    assert probe.target is not None
    table = excess_by_level(probe.model, probe.target, levels=LEVELS, n=n, seed=seed)
    rows = []
    for r in table.rows:
        log_snr = (r["log_snr low"] + r["log_snr high"]) / 2
        t = float(probe.process.time_at_log_snr(log_snr))
        share = float(probe.process.sigma(t)) ** 2 / probe.power(t)
        line = row("loss", "noise", r["loss"], r["minimum"], t=t, log_snr=log_snr)
        rows.append(line | {"share": share * r["excess"], "share se": share * r["excess se"]})
    return rows


def _against_line(probe: Probe, readings: Readings) -> list[dict[str, Any]]:
    """A row a level, against the best linear denoiser."""
    rows, loss = [], readings.declared.loss
    for j, t in enumerate(probe.times):
        share = float(probe.process.sigma(t)) ** 2 / probe.power(t)
        mean, line = loss[j].mean().item(), probe.linear(t)
        error = loss[j].std().item() / math.sqrt(loss.shape[1])
        log_snr = float(probe.process.log_snr(t))
        told = row("loss", "noise", mean / share, line / share, t=t, log_snr=log_snr)
        rows.append(told | {"share": mean - line, "share se": error})
    return rows
