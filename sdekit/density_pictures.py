"""Pictures of densities that a solver carried, with the exact ones: over (t, x), and frames of the plane.

Images are darker where there is more, on a square-root scale, so that a print in grey reads the same; exact
contours are broad and pale with a dark rim, those of the solution thin and dashed upon them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sdekit.data.mixtures import GaussianMixture
from sdekit.pde import PlaneSolution, Solution
from sdekit.plotting import COLOURS, DASHES, figure_of, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Contours, as shares of the largest density of the image.
_LEVELS = (0.02, 0.1, 0.3, 0.6)
#: What is below this share of the peak is out of view.
_SEEN = 1e-3
_SLICES = 4
_IMAGE: Any = {"cmap": "Blues", "rasterized": True}
_EXACT: Any = {"colors": "#F0E442", "linewidths": 2.2}
_SOLVED: Any = {"colors": "#000000", "linewidths": 0.8, "linestyles": "--"}


@styled
def density_picture(
    solutions: Mapping[str, tuple[Solution, Sequence[GaussianMixture] | None]], *, title: str = ""
) -> Figure:
    """Densities on a line, a row a solution: the image over (t, x), and slices at four telling times.

    A solution in scaled coordinates is drawn in x all the same: its cells widen with s(t).

    Args:
        solutions: by name, a solution at two times or more and the exact law at each of them, or None. The
            slices are spread so that the density changes as much from each to the next; triangles show where
            they are.
        title: above all.
    """
    _check_solutions(solutions)
    figure, panels = figure_of(len(solutions), 2, (9.4, 3.3 * len(solutions) + 0.5))
    for row, (name, (solution, laws)) in enumerate(solutions.items()):
        _row(panels[2 * row : 2 * row + 2], name, solution, laws)
    _contour_legend(figure, any(laws is not None for _, laws in solutions.values()))
    figure.suptitle(title)
    return figure


@styled
def plane_picture(
    solution: PlaneSolution, laws: Sequence[GaussianMixture] | None = None, *, title: str = ""
) -> Figure:
    """Densities in the plane, a panel a time, each relative to its peak.

    Args:
        solution: at the times to show, eight at most.
        laws: the exact law at each of them, or None.
        title: above all.
    """
    if not isinstance(solution, PlaneSolution):
        raise TypeError(f"solution must be a PlaneSolution, got {type(solution).__name__}")
    count = len(solution.times)
    if count > 8:
        raise ValueError(f"solution must have at most 8 times to show, got {count}")
    _check_laws(laws, count, 2)
    rows = 1 if count <= 4 else 2
    columns = -(-count // rows)
    views = [_in_view(solution.marginal(i), edges) for i, edges in enumerate(solution.edges)]
    wide, tall = (high - low for low, high in views)
    size = (2.6 * columns + 1.0, 2.6 * rows * min(max(tall / wide, 0.5), 2.0) + 1.2)
    figure, panels = figure_of(rows, columns, size, sharex=True, sharey=True)
    figure.set_layout_engine("compressed")  # panels of a fixed shape
    for i, axes in enumerate(panels[:count]):
        _frame(axes, solution, i, None if laws is None else laws[i])
        axes.set(aspect="equal", xlim=views[0], ylim=views[1])
        if i % columns == 0:
            axes.set_ylabel("x[1]")
        if i + columns >= count:
            axes.set_xlabel("x[0]")
            axes.tick_params(labelbottom=True)
    for axes in panels[count:]:
        axes.set_visible(False)
    figure.colorbar(panels[0].collections[0], ax=panels, label="density / its peak", shrink=0.85)
    _contour_legend(figure, laws is not None)
    figure.suptitle(title)
    return figure


def _check_solutions(solutions: Any) -> None:
    if not isinstance(solutions, Mapping):
        given = type(solutions).__name__
        raise TypeError(f"solutions must be a dict, name: (solution, laws or None), got {given}")
    for name, pair in solutions.items():
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], Solution)):
            given = type(pair).__name__
            raise TypeError(f"solutions[{name!r}] must be (a Solution, laws or None), got {given}")
        solution, laws = pair
        if len(solution.times) < 2:
            raise ValueError(f"solutions[{name!r}] must have at least 2 times, got 1")
        _check_laws(laws, len(solution.times), 1)


def _check_laws(laws: Sequence[GaussianMixture] | None, times: int, dim: int) -> None:
    if laws is None:
        return
    if len(laws) != times:
        raise ValueError(f"laws must be one a time: {times} times, got {len(laws)} laws")
    for law in laws:
        if not isinstance(law, GaussianMixture) or law.dim != dim:
            raise ValueError(f"laws must be mixtures with d = {dim}, got {law!r}")


def _row(
    panels: Sequence[Axes], name: str, solution: Solution, laws: Sequence[GaussianMixture] | None
) -> None:
    """One solution: its film, and slices at the times that triangles above the film mark."""
    film, slices = panels
    exact = None
    if laws is not None:
        exact = np.stack([_on_line(law, x) for law, x in zip(laws, solution.x, strict=True)])
    shown = _telling(solution.density * solution.scale[:, None])
    seen = _in_view(solution.density, solution.scale[:, None] * solution.edges)
    image = _film(film, solution, exact)
    film.set(xlabel="t", ylabel="x", ylim=seen)
    film.set_title(name, pad=11)
    film.figure.colorbar(image, ax=film, label="density")
    _slices(slices, solution, exact, shown)
    slices.set(xlabel="x", ylabel="density", xlim=seen)
    slices.set_title(f"{name}, at the triangles", pad=11)
    for k, i in enumerate(shown):
        above: Any = {"transform": film.get_xaxis_transform(), "clip_on": False, "ms": 5}
        film.plot(solution.times[i], 1.025, "v", color=COLOURS[k], **above)


def _film(axes: Axes, solution: Solution, exact: np.ndarray | None) -> Any:
    """The image over (t, x), with contours; earlier solved times to the left."""
    times, peak = solution.times, float(solution.density.max())
    ends = np.concatenate([times[:1], (times[1:] + times[:-1]) / 2, times[-1:]])
    corners = solution.coordinates.scales(ends) * solution.edges[:, None]
    image = axes.pcolormesh(
        np.broadcast_to(ends, corners.shape), corners, solution.density.T, **_image(peak)
    )
    levels = [share * peak for share in _LEVELS]
    x = solution.x.T
    t = np.broadcast_to(times, x.shape)
    if exact is not None:
        contours = axes.contour(t, x, exact.T, levels, **_EXACT)
        contours.set(path_effects=_rim())
    axes.contour(t, x, solution.density.T, levels, **_SOLVED)
    axes.set_xlim(times[0], times[-1])
    axes.grid(False)
    return image


def _frame(axes: Axes, solution: PlaneSolution, i: int, law: GaussianMixture | None) -> None:
    """The image at one time, relative to its peak, with contours."""
    density = solution.density[i] / solution.density[i].max()
    axes.pcolormesh(*solution.edges, density.T, **_image(1.0))
    if law is not None:
        exact = _in_plane(law, solution.centers)
        contours = axes.contour(*solution.centers, exact.T / exact.max(), _LEVELS, **_EXACT)
        contours.set(path_effects=_rim())
    axes.contour(*solution.centers, density.T, _LEVELS, **_SOLVED)
    axes.set_title(f"t = {solution.times[i]:.3g}")
    axes.grid(False)


def _slices(axes: Axes, solution: Solution, exact: np.ndarray | None, shown: Sequence[int]) -> None:
    """Densities at some times; the exact one is broad and grey, under the other."""
    for k, i in enumerate(shown):
        if exact is not None:
            label = "exact" if k == 0 else None
            axes.plot(solution.x[i], exact[i], color="#D4D4D4", lw=5, label=label)
        style: Any = {"color": COLOURS[k], "ls": DASHES[k], "lw": 1.6}
        label = f"t = {solution.times[i]:.3g}"
        axes.plot(solution.x[i], solution.density[i], label=label, **style)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)


def _telling(density: np.ndarray) -> list[int]:
    """Rows between which the density changes by equal amounts, first and last among them."""
    way = np.concatenate([[0.0], np.abs(np.diff(density, axis=0)).sum(1).cumsum()])
    wanted = np.linspace(0, way[-1], min(_SLICES, len(density)))
    return sorted({int(np.abs(way - place).argmin()) for place in wanted})


def _in_view(density: np.ndarray, edges: np.ndarray) -> tuple[float, float]:
    """The ends of the cells where there is something to see at any time, (times, cells)."""
    seen = density > _SEEN * density.max()
    edges = np.broadcast_to(edges, (len(density), edges.shape[-1]))
    return float(edges[:, :-1][seen].min()), float(edges[:, 1:][seen].max())


def _image(peak: float) -> Any:
    from matplotlib.colors import PowerNorm

    return {**_IMAGE, "norm": PowerNorm(0.5, 0, peak, clip=True)}


def _rim() -> list[Any]:
    """Tells a pale line from a pale ground."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=3.2, foreground="#555555")]


def _on_line(law: GaussianMixture, x: np.ndarray) -> np.ndarray:
    return law.log_prob(torch.from_numpy(x)[:, None]).exp().numpy()


def _in_plane(law: GaussianMixture, centers: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    first, second = (torch.from_numpy(x) for x in centers)
    density = law.log_prob(torch.cartesian_prod(first, second)).exp()
    return density.reshape(len(first), len(second)).numpy()


def _contour_legend(figure: Figure, exact: bool) -> None:
    from matplotlib.lines import Line2D

    shares = ", ".join(f"{share:.0%}".replace("%", "") for share in _LEVELS)
    solved: Any = {"color": _SOLVED["colors"], "lw": _SOLVED["linewidths"], "ls": "--"}
    handles = [Line2D([], [], label=f"contours of the solution: {shares} % of the peak", **solved)]
    if exact:
        broad: Any = {"color": _EXACT["colors"], "lw": 2.2, "path_effects": _rim()}
        handles.append(Line2D([], [], label="the same contours, exact", **broad))
    columns = 2 if figure.get_figwidth() > 6 else 1
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8)
