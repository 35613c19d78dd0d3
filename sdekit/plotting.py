"""Pictures: each function returns a Figure, `save` writes it. Those of densities: `sdekit.density_pictures`.

Colours are the Okabe-Ito set, told apart by most eyes; every curve also has its own marker or dash, so that
the pictures survive a grey print.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sdekit.comparison.tables import Table, grid_name, short_names
from sdekit.data.mixtures import GaussianMixture
from sdekit.errors import check_choice

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), "-", "--")
#: Curves that are named in a panel.
_NAMED = 12
_STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "figure.dpi": 130,
}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """The house style, for the time of one drawing."""

    @functools.wraps(draw)
    def styled(*arguments: Any, **keywords: Any) -> Figure:
        import matplotlib as mpl

        with mpl.rc_context(_STYLE):
            return draw(*arguments, **keywords)

    return styled


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG (or by the path's suffix), making the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


@styled
def loss_curve(losses: Tensor, minimum: float | None = None, *, title: str = "") -> Figure:
    """Batch loss by step, its running mean, and the least attainable loss where it is known."""
    figure, (axes,) = figure_of(1, 1, (6.4, 3.8))
    losses = losses.double()
    width = max(2, min(len(losses) // 20, 200)) if len(losses) > 1 else 1
    sums = torch.cat([torch.zeros(1, dtype=torch.float64), losses.cumsum(0)])
    running = (sums[width:] - sums[:-width]) / width
    steps = torch.arange(width, len(losses) + 1)
    axes.plot(torch.arange(1, len(losses) + 1), losses, color="#BBBBBB", lw=0.5, label="batch loss")
    axes.plot(steps, running, color=COLOURS[0], lw=1.8, label=f"mean of {width} steps")
    low = running.min().item()
    if minimum is not None:
        label = f"least attainable, {minimum:.4f}"
        axes.axhline(minimum, color=COLOURS[1], ls="--", lw=1.5, label=label)
        low = min(low, minimum)
    top = max(losses[len(losses) // 50 :].max().item(), running.max().item())
    axes.set(xlabel="step", ylabel="loss (mean over elements)", title=title)
    top = max(top, low + 1e-3 * abs(low) + 1e-12)  # a constant loss has no span
    axes.set_ylim(low - 0.25 * (top - low), min(top, low + 12 * (running[-1].item() - low + 0.02)))
    axes.legend(loc="upper right", frameon=True, framealpha=0.85, edgecolor="none")
    return figure


@styled
def histograms(
    samples: Mapping[str, Tensor], law: GaussianMixture, *, title: str = "", bins: int = 80
) -> Figure:
    """1-D samples as histograms over the exact density, a panel each."""
    figure, panels = figure_of(1, len(samples), (2.6 * len(samples), 2.9), sharex=True, sharey=True)
    spread = 4 * float(law.covariance.sqrt())
    x = torch.linspace(-spread, spread, 600, dtype=torch.float64) + law.mean
    density = law.log_prob(x[:, None]).exp()
    for i, (axes, (name, values)) in enumerate(zip(panels, samples.items(), strict=True)):
        low, high = float(x[0]), float(x[-1])
        points = values.flatten().double()
        # Not density=True: samples outside must not make those inside look like more.
        weight = bins / (len(points) * (high - low))
        axes.hist(
            points.numpy(),
            bins=bins,
            range=(low, high),
            weights=torch.full_like(points, weight).numpy(),
            color="#A6CEE3",
            label="samples",
        )
        axes.plot(x, density, color=COLOURS[1], lw=1.5, label="exact density")
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("x")
        if i == 0:
            axes.set_ylabel("density")
            axes.legend(fontsize=8, loc="upper left")
    figure.suptitle(title)
    return figure


@styled
def densities_2d(
    samples: Mapping[str, Tensor], law: GaussianMixture, *, title: str = "", cells: int = 90
) -> Figure:
    """The exact density, then 2-D samples as densities on the same colour scale."""
    count = len(samples) + 1
    rows = 1 if count <= 4 else 2
    columns = -(-count // rows)
    figure, panels = figure_of(
        rows, columns, (2.7 * columns, 2.75 * rows + 0.3), sharex=True, sharey=True
    )
    half = 3 * math.sqrt(law.covariance.diagonal().max().item())
    (left, right), (bottom, top) = ((m - half, m + half) for m in law.mean.tolist())
    place = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells * 2 * half
    yy, xx = torch.meshgrid(bottom + place, left + place, indexing="ij")
    exact = law.log_prob(torch.stack([xx, yy], -1).reshape(-1, 2)).exp().reshape(cells, cells)
    images = {"exact density": exact}
    for name, values in samples.items():
        counts, _ = torch.histogramdd(
            values.double().flip(1), [cells, cells], range=[bottom, top, left, right]
        )
        images[name] = counts / len(values) / (2 * half / cells) ** 2
    for i, (axes, (name, image)) in enumerate(zip(panels, images.items(), strict=False)):
        axes.imshow(
            image.numpy(),
            origin="lower",
            extent=(left, right, bottom, top),
            cmap="Blues",
            vmin=0,
            vmax=float(exact.max()),
        )
        axes.set_title(name, fontsize=9)
        axes.grid(False)
        if i % columns == 0:
            axes.set_ylabel("x[1]")
        if i + columns >= count:
            axes.set_xlabel("x[0]")
            axes.tick_params(labelbottom=True)
    for axes in panels[count:]:
        axes.set_visible(False)
    figure.suptitle(title)
    return figure


@styled
def scatter(samples: Tensor, *, title: str = "") -> Figure:
    """Samples alone: a histogram of (n, 1), dots of (n, 2)."""
    figure, (axes,) = figure_of(1, 1, (4.6, 4.0))
    if samples.shape[1] == 1:
        axes.hist(
            samples[:, 0], bins=min(80, 5 + len(samples) // 20), density=True, color="#A6CEE3"
        )
        axes.set(xlabel="x", ylabel="density", title=title)
    else:
        size = 6 if len(samples) <= 500 else 2
        axes.plot(samples[:, 0], samples[:, 1], ".", ms=size, color=COLOURS[0], alpha=0.5)
        axes.set(xlabel="x[0]", ylabel="x[1]", title=title, aspect="equal")
    return figure


@styled
def image_grids(groups: Mapping[str, Tensor], *, columns: int = 8, title: str = "") -> Figure:
    """Grids of images (n, channels, height, width) in [-1, 1], one panel a group."""
    height = max(-(-len(images) // columns) for images in groups.values()) / columns
    wide = min(len(groups), 3)
    tall = -(-len(groups) // wide)
    lines = 1 + max(name.count("\n") for name in groups)
    room = (3.3 * height + 0.14 + 0.2 * lines) * tall + (0.35 if title else 0.0)
    figure, panels = figure_of(tall, wide, (3.4 * wide, room))
    for axes in panels[len(groups) :]:
        axes.set_visible(False)
    for axes, (name, images) in zip(panels, groups.items(), strict=False):
        axes.imshow(
            _tiled(images, columns).numpy(), cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest"
        )
        axes.set_title(name, fontsize=10)
        axes.set_axis_off()
    figure.suptitle(title)
    return figure


def _tiled(images: Tensor, columns: int) -> Tensor:
    """One picture of all images, with a pixel of background between them."""
    rows = -(-len(images) // columns)
    blank = images.new_full((rows * columns - len(images), *images.shape[1:]), -1.0)
    padded = torch.nn.functional.pad(torch.cat([images, blank]), (1, 1, 1, 1), value=-1.0)
    _, channels, height, width = padded.shape
    grid = padded.reshape(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    picture = grid.reshape(rows * height, columns * width, channels)
    return picture[..., 0] if channels == 1 else (picture + 1) / 2


@dataclass(frozen=True)
class _Curve:
    """A sampler on a grid: one line in every panel of its family."""

    sampler: str
    grid: str
    stochastic: bool

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> _Curve:
        """The one that a row is on; times given as numbers are one grid, whatever they are."""
        return cls(row["sampler"], row["grid"].partition(":")[0], row["stochastic"])

    def points(self, table: Table, metric: str) -> list[tuple[float, float]]:
        """(model calls, error) of its rows that have a value, by cost."""
        own = (r for r in table.rows if _Curve.of(r) == self and math.isfinite(r[metric]))
        return sorted((r["nfe"], r[metric]) for r in own)

    def bars(self, table: Table, metric: str) -> tuple[list[float], list[float], list[float]]:
        """Model calls, lows and highs: a standard error to either side, where it is known."""
        own = (r for r in table.rows if _Curve.of(r) == self)
        known = ((r["nfe"], r[metric], r.get(f"{metric} se", math.nan)) for r in own)
        found = [(x, max(y - e, 1e-3 * y), y + e) for x, y, e in known if math.isfinite(e)]
        return tuple([bar[k] for bar in found] for k in range(3))  # type: ignore[return-value]


class _End(NamedTuple):
    """Where a curve ends, and how it is drawn."""

    x: float
    y: float
    name: str
    colour: str
    marker: str


@styled
def error_against_nfe(
    tables: Mapping[str, Table], metric: str, *, title: str = "", width: float = 5.6
) -> Figure:
    """Error against model calls, log-log, a panel a table and family (with noise on the way, or without).

    Curves are named at their ends, in the order of their last errors; past a dozen in a panel, the best are
    and the others are grey. The band is what exact samples score, bars are standard errors over seeds, the
    dotted fan shows slopes of order 1, 2 and 3; errors beyond four decades are out of view. Tables without
    floors (of errors in which nothing is random) show sixteen decades, and order 4. Panels are `width` inches
    wide.
    """
    _check_tables(tables, metric)
    rows = [r for t in tables.values() for r in t.rows]
    curves = list(dict.fromkeys(map(_Curve.of, rows)))
    families = sorted({c.stochastic for c in curves})
    shape = (len(families), len(tables)) if len(tables) > 1 else (1, len(families))
    size = (width * shape[1], 3.4 * shape[0] + 0.5)
    figure, panels = figure_of(*shape, size, sharex=True, sharey=True)
    limits = _decades(tables.values(), metric)
    parts = [(family, *item) for family in families for item in tables.items()]
    for i, (axes, (family, label, table)) in enumerate(zip(panels, parts, strict=True)):
        axes.set(xscale="log", yscale="log", ylim=limits)
        _draw_curves(axes, table, metric, [c for c in curves if c.stochastic == family], curves)
        kind = "stochastic" if family else "deterministic"
        name = f"{label}, {kind} samplers" if len(families) > 1 else label
        axes.set_title(name, fontsize=10)
        if i % shape[1] == 0:
            axes.set_ylabel(table.label(metric))
        if i >= len(panels) - shape[1]:
            axes.set_xlabel("model calls (NFE)")
    first = next(iter(tables.values()))
    for axes in panels:
        orders = range(1, 4 if first.floors else 5)
        _order_fan(axes, orders, first.power(metric), high_right=bool(first.floors))
    if first.floors:
        note = f"band: 95 % of exact draws of {first.n:,}; line: mean"
        panels[0].text(0.02, 0.02, note, transform=panels[0].transAxes, fontsize=7.5)
    figure.suptitle(title)
    return figure


def _check_tables(tables: Any, metric: str) -> None:
    if not isinstance(tables, Mapping):
        raise TypeError(f"tables must be tables by name, got {type(tables).__name__}")
    for table in tables.values():
        check_choice("metric", metric, table.metric_names)


def _decades(tables: Iterable[Table], metric: str) -> tuple[float, float]:
    """The range of errors shown: all of them and the floors; four decades at most, sixteen without."""
    floors = [t.floors[metric][0] for t in tables if t.floors]
    found = floors + [r[metric] for t in tables for r in t.rows if not r["error"]]
    positive = [v for v in found if math.isfinite(v) and v > 0] or [1.0]
    low = min(positive) / 2.2
    return low, min(max(positive) * 1.6, low * (1e4 if floors else 1e16))


def _draw_curves(
    axes: Axes, table: Table, metric: str, family: list[_Curve], every: list[_Curve]
) -> None:
    """The floor and the lines of one panel with their names, the best of them if they are many."""
    from matplotlib.ticker import LogLocator, NullLocator

    mean, high = table.floors.get(metric, (0.0, 0.0))
    if table.floors:
        axes.axhspan(axes.get_ylim()[0], high, color="#DDDDDD", zorder=0)
        axes.axhline(mean, color="#A0A0A0", lw=0.8, zorder=0)
    last = {c: points[-1][1] for c in family if (points := c.points(table, metric))}
    named = set(sorted(last, key=last.__getitem__)[:_NAMED])
    names, ends = _curve_names(every), list[_End]()
    for j, curve in enumerate(family):
        points = curve.points(table, metric)
        colour = COLOURS[j % len(COLOURS)] if curve in named else "#BBBBBB"
        marker = MARKERS[(j + j // len(MARKERS)) % len(MARKERS)]
        width, dash = 1.3 if curve in named else 0.7, DASHES[j % len(DASHES)]
        style: Any = {"ls": dash, "ms": 4.5, "lw": width, "color": colour, "marker": marker}
        axes.plot([x for x, _ in points], [y for _, y in points], label=names[curve], **style)
        axes.vlines(*curve.bars(table, metric), color=colour, lw=width)
        if curve in named:
            ends.append(_End(*points[-1], names[curve], colour, marker))
    _name_ends(axes, ends, high)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())


def _curve_names(curves: Sequence[_Curve]) -> dict[_Curve, str]:
    """Short names; with the grid where a sampler is there on several."""
    names = short_names(dict.fromkeys(c.sampler for c in curves))
    count = Counter(c.sampler for c in curves)
    return {
        c: names[c.sampler] + (f", {grid_name(c.grid)}" if count[c.sampler] > 1 else "")
        for c in curves
    }


def _name_ends(axes: Axes, ends: list[_End], floor: float) -> None:
    """Names beside the axes, each with its marker and a hair line to the end of its curve."""
    low, high = (math.log(v) for v in axes.get_ylim())
    hair = {"arrowstyle": "-", "lw": 0.5, "alpha": 0.7, "shrinkA": 0, "shrinkB": 0}
    # Ends on the floor are no order: there the leftmost goes on top, so that the hair lines do not cross.
    ends = sorted(ends, key=lambda end: (max(end.y, floor), -end.x, end.y))
    heights = [min(max(math.log(max(end.y, 1e-300)), low), high) for end in ends]
    places = _spread([(height - low) / (high - low) for height in heights], 0.06)
    for end, height, place in zip(ends, heights, places, strict=True):
        axes.annotate(
            "",
            (end.x, math.exp(height)),
            (1.03, place),
            textcoords="axes fraction",
            annotation_clip=False,
            arrowprops={**hair, "color": end.colour},
        )
        beside: Any = {"transform": axes.transAxes, "clip_on": False}
        axes.scatter([1.04], [place], s=18, color=end.colour, marker=end.marker, **beside)
        axes.text(1.06, place, end.name, va="center", fontsize=8, **beside)


def _spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Increasing places in [0, 1], near the wanted ones and at least `gap` apart (if they fit)."""
    places: list[float] = []
    for place in wanted:
        places.append(max(place, 0.0, places[-1] + gap if places else 0.0))
    top = 1.0
    for i in reversed(range(len(places))):
        places[i] = min(places[i], top)
        top = places[i] - gap
    return places


def _order_fan(axes: Axes, orders: Sequence[int], power: int, *, high_right: bool) -> None:
    """Slopes of these orders, in the upper right corner or the lower left, of the metric."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    along, down = (0.66, 0.04) if high_right else (0.12, 0.64)
    x, y = left * (right / left) ** along, high * (low / high) ** down
    drop = (high / low) ** (0.51 if high_right else 0.34)
    reach = min(drop ** (1 / (power * orders[-1])), (right / left) ** 0.29)
    for order in orders:
        end = y * reach ** (-power * order)
        axes.plot([x, x * reach], [y, end], color="#666666", ls=":", lw=1, scalex=False, zorder=1)
        axes.text(
            x * reach, end, f" {order}", color="#555555", fontsize=7.5, va="center", clip_on=True
        )
    axes.text(x, y, "order ", color="#555555", fontsize=7.5, ha="right", va="center")


def figure_of(
    rows: int, columns: int, size: tuple[float, float], **shared: Any
) -> tuple[Figure, list[Axes]]:
    """A figure that belongs to no window, with its panels in reading order."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, **shared)
    return figure, list(panels.flat)
