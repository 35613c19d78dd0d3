"""The picture of a diagnosis: readings by noise level, time conventions, and the loss with its bound."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sdekit.diagnosis import Diagnosis
from sdekit.diagnosis.declared import DECLARED
from sdekit.plotting import COLOURS, DASHES, MARKERS, figure_of, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BOUND: Any = {"color": "#CFCFCF", "lw": 6, "zorder": 1}
_SHARE = "error of the signal / variance of x_t"


@styled
def diagnosis_picture(found: Diagnosis, *, title: str = "") -> Figure:
    """Three panels: every prediction kind by noise level, every time convention, the loss of the noise.

    What the model is declared as is drawn thick and filled; broad and grey is the least possible, or what the
    best linear denoiser has.

    Raises:
        TypeError: no `Diagnosis`.
    """
    if not isinstance(found, Diagnosis):
        raise TypeError(f"found must be a Diagnosis, got {type(found).__name__}")
    figure, (kinds, times, loss) = figure_of(1, 3, (13.2, 4.0))
    bound = "least possible" if found.exact else "best linear denoiser"
    _kinds(kinds, [r for r in found.rows if r["check"] == "prediction"], bound)
    _times(times, [r for r in found.rows if r["check"] == "time"])
    _loss(loss, [r for r in found.rows if r["check"] == "loss"], bound)
    figure.suptitle(title)
    return figure


def _kinds(axes: Axes, rows: list[dict[str, Any]], bound: str) -> None:
    rows = [r for r in rows if math.isfinite(r["t"])]
    for i, case in enumerate(dict.fromkeys(r["case"] for r in rows)):
        own = [r for r in rows if r["case"] == case]
        x, y = [r["log_snr"] for r in own], [r["value"] for r in own]
        width = 2.6 if DECLARED in case else 1.2
        style: Any = {"color": COLOURS[i], "marker": MARKERS[i], "ls": DASHES[i], "lw": width}
        axes.plot(x, y, label=case, ms=4.5, **style)
    own = [r for r in rows if r["case"] == rows[0]["case"]]
    axes.plot([r["log_snr"] for r in own], [r["against"] for r in own], label=bound, **_BOUND)
    axes.set(xlabel="log-SNR (noise to data)", ylabel=_SHARE, yscale="log")
    axes.set_title("read as each kind, at the time that fits", fontsize=10)
    _in_decades(axes, [r["value"] for r in rows] + [r["against"] for r in rows])
    axes.legend(fontsize=8)


def _times(axes: Axes, rows: list[dict[str, Any]]) -> None:
    from matplotlib.ticker import NullFormatter

    shown = [r for r in rows if math.isfinite(r["value"])][::-1]
    values = [r["value"] for r in shown]
    for place, r in enumerate(shown):
        declared = DECLARED in r["case"]
        colour = COLOURS[1] if declared else COLOURS[0]
        face = colour if declared else "none"
        axes.plot(r["value"], place, "o", ms=7, mec=colour, mfc=face)
    if shown:
        axes.axvline(shown[0]["against"], **_BOUND)
    axes.set_yticks(range(len(shown)), [r["case"] for r in shown], fontsize=8)
    axes.set(xlabel=f"{_SHARE}, all levels", xscale="log")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title("given each time, of the kind that fits", fontsize=10)
    if shown:
        low, high = min(*values, shown[0]["against"]), max(*values, shown[0]["against"])
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        axes.set_xlim(10.0**first, 10.0 ** max(last, first + 1))


def _loss(axes: Axes, rows: list[dict[str, Any]], bound: str) -> None:
    x = [r["log_snr"] for r in rows]
    own: Any = {"color": COLOURS[0], "marker": "o", "ms": 4.5, "lw": 2.0}
    axes.plot(x, [r["value"] for r in rows], label="the model", **own)
    axes.plot(x, [r["against"] for r in rows], label=bound, **_BOUND)
    axes.set(
        xlabel="log-SNR (noise to data)", ylabel="error of the noise, per element", yscale="log"
    )
    axes.set_title("loss by noise level, as declared", fontsize=10)
    _in_decades(axes, [r["value"] for r in rows] + [r["against"] for r in rows])
    axes.legend(fontsize=8)


def _in_decades(axes: Axes, values: list[float]) -> None:
    """All positive values, six decades below the largest at most."""
    positive = [v for v in values if math.isfinite(v) and v > 0] or [1.0]
    high = 2 * max(positive)
    axes.set_ylim(max(min(positive) / 2, high * 1e-6), high)
