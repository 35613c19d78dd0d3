"""Is the model declared rightly? Prediction kind and time convention, told from its outputs."""

from typing import Any

from sdekit.diagnosis.findings import WRONG, Finding, row
from sdekit.diagnosis.probe import Probe
from sdekit.diagnosis.readings import KINDS, Reading, Readings

#: Marks the case that the model is declared as.
DECLARED = " (declared)"
_IN_WORDS = {
    "unit": "t / T in [0, 1]",
    "reversed unit": "1 - t / T, which is 0 at the noise",
    "log_snr": "the log-SNR",
    "sigma": "sigma / alpha",
}


def check_prediction(
    probe: Probe, readings: Readings
) -> tuple[list[dict[str, Any]], list[Finding]]:
    """The loss under each prediction kind: a row a kind over all levels, then a row a kind and level."""
    declared, best = readings.declared, readings.best
    shown = [
        (f"{kind}{_mark(kind == declared.kind)}", readings.every[kind, best.time]) for kind in KINDS
    ]
    rows = [_over_levels("prediction", name, reading, readings) for name, reading in shown]
    for name, reading in shown:
        levels = zip(
            probe.times, reading.loss.mean(1).tolist(), readings.floor.tolist(), strict=True
        )
        for t, loss, floor in levels:
            log_snr = float(probe.process.log_snr(t))
            rows.append(row("prediction", name, loss, floor, t=t, log_snr=log_snr))
    if best.kind == declared.kind:
        return rows, []
    text = (
        f"The network predicts {best.kind!r}, but is declared as {declared.kind!r}: read as {best.kind!r} "
        f"{_comparison(readings)}. Declare prediction={best.kind!r}."
    )
    return rows, [Finding(WRONG, "prediction", text)]


def check_time(readings: Readings) -> tuple[list[dict[str, Any]], list[Finding]]:
    """The loss under each time convention, of the kind that fits best; NaN where the network refuses."""
    declared, best = readings.declared, readings.best
    rows = [
        _over_levels("time", f"{time}{_mark(time == declared.time)}", reading, readings)
        for (kind, time), reading in readings.every.items()
        if kind == best.kind
    ]
    rows += [row("time", f"{time}, refused", float("nan")) for time in readings.refused]
    if best.time == declared.time:
        return rows, []
    text = (
        f"The network expects {_in_words(best.time)} as its time, but is given {_in_words(declared.time)}: "
        f"with the other {_comparison(readings)}. {_remedy(best.time)}"
    )
    return rows, [Finding(WRONG, "time", text)]


def _over_levels(check: str, name: str, reading: Reading, readings: Readings) -> dict[str, Any]:
    return row(check, name, reading.loss.mean().item(), readings.floor.mean().item())


def _mark(declared: bool) -> str:
    return DECLARED if declared else ""


def _comparison(readings: Readings) -> str:
    """The losses of the best and the declared reading, and what they compare with."""
    best, declared = (r.loss.mean().item() for r in (readings.best, readings.declared))
    bound = (
        "the least possible" if readings.best.excess is not None else "the best linear denoiser's"
    )
    floor = readings.floor.mean().item()
    if readings.best.excess is not None and readings.declared.excess is not None:
        excess = readings.declared.excess.mean().item()
        if excess < 0.1 * floor:  # the losses look alike, what is above the least does not
            return f"the excess loss is {readings.best.excess.mean().item():.2g} instead of {excess:.2g}"
    return f"its loss is {best:.3g} instead of {declared:.3g} ({bound}: {floor:.3g})"


def _in_words(time: str) -> str:
    """A convention in a sentence."""
    return _IN_WORDS.get(time, f"the {time}" + (" steps" if time[-1].isdigit() else ""))


def _remedy(time: str) -> str:
    """How to declare a convention, or what to do about one that has no name."""
    if time in ("unit", "log_snr", "sigma"):
        return f"Declare time={time!r}."
    labels = time.removeprefix("label of ")
    if labels.isdigit():
        return f'Declare time="label", labels={labels}.'
    return "Wrap the network in a module that turns its time into that."
