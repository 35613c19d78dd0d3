import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from sdekit import VP, plotting
from sdekit.comparison import Table, short_names
from sdekit.data import GaussianMixture, spiral, two_mode
from sdekit.sampling import ALL, DDIM, GRIDS, FlowODE, Power, UniPC

LINE, PLANE = two_mode(), spiral()


def table(error="", scale=1.0):
    rows = []
    for k, sampler in enumerate(ALL):
        for steps in (5, 20, 100):
            value = scale * (k + 1) / steps
            row = {
                "sampler": repr(sampler),
                "grid": repr(sampler.grid),
                "steps": steps,
                "nfe": steps,
            }
            row["stochastic"] = sampler.stochastic
            rows.append({**row, "W1": value, "error": error})
    return Table(rows, {"W1": (0.01, 0.02)}, 10_000, ("W1",))


def losses(steps=2_000):
    noise = torch.randn(steps, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return 0.24 + torch.exp(-torch.arange(steps) / 40.0) + 0.02 * noise


IMAGES = torch.linspace(-1, 1, 70 * 64).reshape(70, 1, 8, 8)
FIGURES = {
    "loss": lambda: plotting.loss_curve(losses(), 0.24, title="Loss"),
    "loss of few steps": lambda: plotting.loss_curve(losses(1)),
    "loss, constant": lambda: plotting.loss_curve(torch.ones(50)),
    "histograms": lambda: plotting.histograms(
        {"a": LINE.sample(500, seed=0), "b": torch.zeros(10, 1)}, LINE, title="x"
    ),
    "densities": lambda: plotting.densities_2d(
        {str(k): PLANE.sample(500, seed=k) for k in range(5)}, PLANE, title="x"
    ),
    "one density": lambda: plotting.densities_2d({"float32": PLANE.sample(9, seed=0).float()}, PLANE),
    "scatter of numbers": lambda: plotting.scatter(LINE.sample(64, seed=0), title="x"),
    "scatter of points": lambda: plotting.scatter(PLANE.sample(3_000, seed=0)),
    "scatter of one point": lambda: plotting.scatter(torch.zeros(1, 1)),
    "images": lambda: plotting.image_grids({"real": IMAGES, "made": IMAGES[:9]}, columns=10, title="x"),
    "colour images": lambda: plotting.image_grids({"a": IMAGES[:60].reshape(20, 3, 8, 8)}),
    "error of one table": lambda: plotting.error_against_nfe({"exact": table()}, "W1", title="x"),
    "error of two tables": lambda: plotting.error_against_nfe({"a": table(), "b": table(scale=3.0)}, "W1"),
    "error where all failed": lambda: plotting.error_against_nfe({"a": table("ValueError: no")}, "W1"),
}  # fmt: skip
#: Panels whose axes mean nothing: pictures of images.
BARE = {"images", "colour images"}
WITH_LEGEND = {"loss", "histograms"}


@pytest.mark.parametrize("name", FIGURES)
def test_every_picture_is_written_labelled_and_whole(name, tmp_path):
    figure = FIGURES[name]()
    path = plotting.save(figure, tmp_path / "new" / "folder" / "p.png")
    assert path == tmp_path / "new" / "folder" / "p.png"
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    picture = imread(path)
    assert min(picture.shape[:2]) > 200
    assert picture[..., :3].std() > 0.02  # something is drawn
    # A picture whose legend or title is cut off has ink in its outermost pixels.
    for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
        assert edge[..., :3].min() == 1.0
    shown = [axes for axes in figure.axes if axes.get_visible()]
    if name not in BARE:
        assert any(axes.get_xlabel() for axes in shown)
        assert any(axes.get_ylabel() for axes in shown)
    if name in WITH_LEGEND:
        assert figure.legends or any(axes.get_legend() for axes in shown)


def test_the_suffix_chooses_the_format(tmp_path):
    figure = plotting.scatter(LINE.sample(64, seed=0))
    assert plotting.save(figure, tmp_path / "p.svg").read_text().startswith("<?xml")
    assert plotting.save(figure, str(tmp_path / "p.pdf")).read_bytes().startswith(b"%PDF")


def test_loss_curve_shows_the_losses_their_running_mean_and_the_minimum():
    values = losses(400)
    axes = plotting.loss_curve(values, 0.24).axes[0]
    batch, running, least = axes.get_lines()
    np.testing.assert_array_equal(batch.get_xdata(), np.arange(1, 401))
    np.testing.assert_array_equal(batch.get_ydata(), values)
    np.testing.assert_array_equal(running.get_xdata(), np.arange(20, 401))
    means = np.convolve(values, np.ones(20) / 20, "valid")
    np.testing.assert_allclose(running.get_ydata(), means, rtol=1e-12)
    assert set(least.get_ydata()) == {0.24}
    low, high = axes.get_ylim()
    assert low < 0.24 < high
    assert [t.get_text() for t in axes.get_legend().get_texts()] == [
        "batch loss", "mean of 20 steps", "least attainable, 0.2400",
    ]  # fmt: skip


def test_histograms_are_densities_of_all_samples_also_those_outside():
    x = torch.cat([LINE.sample(600, seed=0), torch.full((200, 1), 1e3)])
    axes = plotting.histograms({"a": x}, LINE).axes[0]
    area = sum(bar.get_width() * bar.get_height() for bar in axes.patches)
    assert area == pytest.approx(0.75, abs=1e-9)
    grid, density = axes.get_lines()[0].get_data()
    a, b = (w * np.exp(-((grid - m) ** 2) / 0.32) / 0.4 for w, m in ((0.3, -1.4), (0.7, 0.6)))
    np.testing.assert_allclose(density, (a + b) / np.sqrt(2 * np.pi), atol=1e-12)


def test_densities_lie_where_the_samples_do_on_one_scale():
    law = GaussianMixture(None, [[2.0, -1.0]], stds=0.5)
    figure = plotting.densities_2d({"a": torch.tensor([[2.9, -1.9]]).repeat(40, 1)}, law, cells=30)
    exact, drawn = (axes.images[0] for axes in figure.axes)
    assert exact.get_extent() == pytest.approx((0.5, 3.5, -2.5, 0.5))
    np.testing.assert_allclose(exact.get_array().sum() * 0.1**2, 1, atol=0.01)
    assert exact.get_clim() == drawn.get_clim()
    row, column = np.unravel_index(drawn.get_array().argmax(), (30, 30))
    assert (row, column) in ((5, 23), (6, 24))  # the point lies on the corner of four cells
    assert drawn.get_array().sum() * 0.1**2 == pytest.approx(1)
    assert drawn.origin == "lower"


def test_images_are_tiled_in_reading_order_on_a_blank_ground():
    images = torch.arange(5.0).reshape(5, 1, 1, 1).expand(5, 1, 2, 2) / 10
    tiled = plotting.image_grids({"a": images}, columns=3).axes[0].images[0].get_array()
    assert tiled.shape == (8, 12)
    inside = [[tiled[4 * r + 1, 4 * c + 1] for c in range(3)] for r in range(2)]
    np.testing.assert_allclose(inside, [[0, 0.1, 0.2], [0.3, 0.4, -1]], atol=1e-7)
    assert (tiled[0] == -1).all()
    assert (tiled[:, 0] == -1).all()
    assert (tiled[4 * 1 + 1 : 4 * 1 + 3, 1:3] == tiled[5, 1]).all()


def curves(axes):
    """The lines that are a sampler's: name to line."""
    return {ln.get_label(): ln for ln in axes.get_lines() if not ln.get_label().startswith("_")}


def named(axes):
    """The names beside the axes, from below."""
    texts = [t for t in axes.texts if t.get_position()[0] == 1.06]
    return [t.get_text() for t in sorted(texts, key=lambda t: t.get_position()[1])]


def test_errors_are_lines_through_the_rows_over_the_floor():
    figure = plotting.error_against_nfe({"exact": table(), "trained": table(scale=2)}, "W1")
    names = short_names([repr(s) for s in ALL])
    for i, axes in enumerate(figure.axes):
        scale, stochastic = (1.0, 2.0)[i % 2], i >= 2
        family = {names[repr(s)]: k for k, s in enumerate(ALL) if s.stochastic == stochastic}
        label, kind = ("exact", "trained")[i % 2], ("deterministic", "stochastic")[stochastic]
        assert axes.get_title() == f"{label}, {kind} samplers"
        assert curves(axes).keys() == family.keys()
        for name, line in curves(axes).items():
            np.testing.assert_array_equal(line.get_xdata(), [5, 20, 100])
            expected = [scale * (family[name] + 1) / steps for steps in (5, 20, 100)]
            np.testing.assert_allclose(line.get_ydata(), expected)
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        assert axes.get_ylim()[0] < 0.01 < 2 * len(ALL) / 5 < axes.get_ylim()[1]
        band = axes.patches[0].get_extents().transformed(axes.transData.inverted())
        assert band.y1 == pytest.approx(0.02)
        styles = {(ln.get_color(), ln.get_marker()) for ln in curves(axes).values()}
        assert len(styles) >= min(len(family), 12)
        # Errors above the floor name their curves in their order, of the dozen that are best.
        best = sorted(family, key=family.__getitem__)[:12]
        above = [n for n in best if scale * (family[n] + 1) / 100 > 0.02]
        assert [n for n in named(axes) if n in above] == above


def test_one_table_is_a_panel_a_family():
    figure = plotting.error_against_nfe({"exact": table()}, "W1")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["exact, deterministic samplers", "exact, stochastic samplers"]
    deterministic = table()
    deterministic = replace(
        deterministic, rows=[r for r in deterministic.rows if not r["stochastic"]]
    )
    assert len(plotting.error_against_nfe({"exact": deterministic}, "W1").axes) == 1


def test_the_fan_has_the_slopes_of_orders_one_to_three():
    for axes in plotting.error_against_nfe({"a": table(), "b": table()}, "W1").axes:
        rays = [
            ln for ln in axes.get_lines() if ln.get_linestyle() == ":" and len(ln.get_xdata()) == 2
        ]
        rays = [ln for ln in rays if ln.get_label().startswith("_")]
        slopes = [np.diff(np.log(ln.get_ydata())) / np.diff(np.log(ln.get_xdata())) for ln in rays]
        np.testing.assert_allclose(np.ravel(slopes), [-1, -2, -3], rtol=1e-9)
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        for ray in rays:
            assert left < min(ray.get_xdata()) < max(ray.get_xdata()) < right
            assert low < min(ray.get_ydata()) < max(ray.get_ydata()) < high


def test_tables_without_floors_have_more_decades_and_order_four_and_no_band():
    rows = rows_of([1e-3, 1e-9, 1e-2])
    figure = plotting.error_against_nfe({"a": Table(rows, {}, 9, ("W1",))}, "W1")
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    assert low < 1e-9 < 1e-2 < high
    assert axes.get_ylabel() == "W1"
    assert not axes.patches
    assert not [t for t in axes.texts if "exact draws" in t.get_text()]
    rays = [ln for ln in axes.get_lines() if ln.get_linestyle() == ":" and len(ln.get_xdata()) == 2]
    slopes = [np.diff(np.log(ln.get_ydata())) / np.diff(np.log(ln.get_xdata())) for ln in rays]
    np.testing.assert_allclose(np.ravel(slopes), [-1, -2, -3, -4], rtol=1e-9)


def test_standard_errors_are_bars_where_they_are_known():
    rows = [
        row | {"W1 se": se}
        for row, se in zip(rows_of([0.1, 0.2, 0.3]), (0.02, 0.5, np.nan), strict=True)
    ]
    for row, calls in zip(rows, (5, 10, 20), strict=True):
        row |= {"sampler": "S()", "nfe": calls}
    (bars,) = one_table(rows).axes[0].collections[:1]
    ends = [segment.tolist() for segment in bars.get_segments()]
    np.testing.assert_allclose(ends[0], [[5, 0.08], [5, 0.12]])
    np.testing.assert_allclose(ends[1], [[10, 2e-4], [10, 0.7]])  # zero has no place on a log axis
    assert len(ends) == 2


def rows_of(errors, sampler="S({})"):
    return [
        {"sampler": sampler.format(k), "grid": "Power(power=1.0)", "stochastic": False, "nfe": 5,
         "steps": 5, "W1": e, "error": ""}
        for k, e in enumerate(errors)
    ]  # fmt: skip


def one_table(rows):
    return plotting.error_against_nfe({"a": Table(rows, {"W1": (0.01, 0.02)}, 9, ("W1",))}, "W1")


def test_of_many_curves_the_best_dozen_are_named_apart_and_the_rest_is_grey():
    errors = [0.05 * (k + 1) for k in range(30)]
    axes = one_table(rows_of(errors)).axes[0]
    assert named(axes) == [f"S({k})" for k in range(12)]
    grey = [name for name, ln in curves(axes).items() if ln.get_color() == "#BBBBBB"]
    assert grey == [f"S({k})" for k in range(12, 30)]
    places = sorted(t.get_position()[1] for t in axes.texts if t.get_position()[0] == 1.06)
    assert np.diff(places).min() >= 0.06 - 1e-12
    assert 0 <= places[0] < places[-1] <= 1


def test_names_at_one_height_are_spread_inside_the_panel():
    for wanted in ([0.5] * 9, [0.0] * 12, [1.0] * 12, [-3.0, 0.2, 9.0]):
        places = plotting._spread(wanted, 0.06)
        assert np.diff(places).min() >= 0.06 - 1e-12
        assert places[0] >= 0
        assert places[-1] <= 1
    assert plotting._spread([0.1, 0.5, 0.9], 0.06) == [0.1, 0.5, 0.9]


def test_an_error_beyond_all_measure_leaves_the_others_readable():
    axes = one_table(rows_of([0.1, 0.2, 1e30])).axes[0]
    low, high = axes.get_ylim()
    assert high / low == pytest.approx(1e4)
    assert low < 0.01 < 0.2 < high
    assert named(axes) == ["S(0)", "S(1)", "S(2)"]


def test_samplers_with_one_short_name_and_grids_of_one_sampler_are_told_apart():
    rows = [
        {"sampler": repr(s), "grid": repr(g), "stochastic": False, "nfe": 5, "W1": 0.1 * (k + 1), "error": ""}
        for k, (s, g) in enumerate([
            (FlowODE(), FlowODE().grid), (FlowODE(rtol=1e-9), FlowODE().grid),
            (DDIM(), GRIDS["karras"]), (DDIM(), Power(2.5)), (UniPC(), UniPC().grid),
        ])
    ]  # fmt: skip
    assert named(one_table(rows).axes[0]) == [
        "FlowODE(dopri5, rtol=1e-05)", "FlowODE(dopri5, rtol=1e-09)", "DDIM(eta=0.0), karras",
        "DDIM(eta=0.0), Power(power=2.5)", "UniPC(2)",
    ]  # fmt: skip


def test_grids_of_times_are_points_of_one_curve():
    rows = rows_of([0.2, 0.1, 0.05], "DDIM(eta=0.0)")
    for row, nfe, digest in zip(rows, (20, 10, 40), "abc", strict=True):
        row["nfe"], row["grid"] = nfe, f"times:{digest}"
    (line,) = curves(one_table(rows).axes[0]).values()
    assert list(line.get_xdata()) == [10, 20, 40]
    assert list(line.get_ydata()) == [0.1, 0.2, 0.05]


def test_failed_rows_are_left_out_of_the_lines():
    good, first = table(), short_names([repr(s) for s in ALL])[repr(ALL[0])]
    good.rows[1]["error"], good.rows[1]["W1"] = "NumericsError: lost", float("nan")
    good.rows[-1]["W1"] = float("nan")  # a metric without a value
    figure = plotting.error_against_nfe({"a": good}, "W1")
    line = next(curves(axes)[first] for axes in figure.axes if first in curves(axes))
    assert list(line.get_xdata()) == [5, 100]


def test_drawing_leaves_the_settings_of_matplotlib_alone():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    FIGURES["loss"]()
    assert dict(mpl.rcParams) == before


def test_matplotlib_is_imported_when_drawing_and_pyplot_never(tmp_path):
    code = f"""
import sys, torch, sdekit.plotting as p, sdekit.density_pictures
assert not [m for m in sys.modules if m.split(".")[0] == "matplotlib"]
p.save(p.scatter(torch.zeros(3, 2)), {str(tmp_path / "p.png")!r})
p.save(p.loss_curve(torch.rand(50)), {str(tmp_path / "p.png")!r})
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_law_of_any_place_and_scale_is_in_view():
    process = VP()
    law = GaussianMixture([0.5, 0.5], [90.0, 110.0], stds=2.0).at(process, 1e-3)
    axes = plotting.histograms({"a": law.sample(300, seed=0)}, law).axes[0]
    assert sum(b.get_width() * b.get_height() for b in axes.patches) == pytest.approx(1, abs=1e-9)
