import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from sdekit import VP, plotting
from sdekit.checks import fokker_planck_check
from sdekit.comparison import Table
from sdekit.data import GaussianMixture, spiral, two_mode
from sdekit.sampling import ALL, DDIM, FlowODE

LINE, PLANE = two_mode(), spiral()


def table(error="", scale=1.0):
    rows = []
    for k, sampler in enumerate(ALL):
        for steps in (5, 20, 100):
            value = scale * (k + 1) / steps
            row = {"sampler": repr(sampler), "steps": steps, "nfe": steps}
            rows.append({**row, "W1": value, "error": error})
    return Table(rows, {"W1": (0.01, 0.02)}, 10_000, ("W1",))


def slices():
    return {r.name: (r.solution, r.laws) for r in fokker_planck_check(200, (0.1, 0.5)).runs}


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
    "slices": lambda: plotting.density_slices(slices(), title="x"),
}  # fmt: skip
#: Panels whose axes mean nothing: pictures of images.
BARE = {"images", "colour images"}
WITH_LEGEND = {"loss", "histograms", "slices", "error of one table", "error of two tables"}


@pytest.mark.parametrize("name", FIGURES)
def test_every_picture_is_written_labelled_and_whole(name, tmp_path):
    figure = FIGURES[name]()
    path = plotting.save(figure, tmp_path / "new" / "folder" / "p.png")
    assert path == tmp_path / "new" / "folder" / "p.png"
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    picture = imread(path)
    assert min(picture.shape[:2]) > 250
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


def test_errors_are_lines_through_the_rows_over_the_floor():
    figure = plotting.error_against_nfe({"exact": table(), "trained": table(scale=2)}, "W1")
    left, right = figure.axes
    for axes, scale in ((left, 1.0), (right, 2.0)):
        lines = axes.get_lines()
        assert len(lines) == len(ALL)
        for k, line in enumerate(lines):
            np.testing.assert_array_equal(line.get_xdata(), [5, 20, 100])
            expected = [scale * (k + 1) / steps for steps in (5, 20, 100)]
            np.testing.assert_allclose(line.get_ydata(), expected)
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        assert axes.get_ylim()[0] < 0.01 < 16 / 5 < axes.get_ylim()[1]
    styles = {(ln.get_color(), ln.get_marker()) for ln in left.get_lines()}
    assert len(styles) == len(ALL)
    assert len(figure.legends[0].get_texts()) == len(ALL)


def test_samplers_with_one_short_name_are_told_apart_in_the_legend():
    rows = [
        {"sampler": repr(s), "steps": 5, "nfe": 5, "W1": 0.1, "error": ""}
        for s in (FlowODE(), FlowODE(rtol=1e-9), DDIM())
    ]
    figure = plotting.error_against_nfe({"a": Table(rows, {"W1": (0.01, 0.02)}, 9, ("W1",))}, "W1")
    texts = [t.get_text() for t in figure.legends[0].get_texts()]
    assert texts == [repr(FlowODE()), repr(FlowODE(rtol=1e-9)), "DDIM(eta=0.0)"]


def test_failed_rows_are_left_out_of_the_lines():
    good = table()
    good.rows[1]["error"], good.rows[1]["W1"] = "NumericsError: lost", float("nan")
    line = plotting.error_against_nfe({"a": good}, "W1").axes[0].get_lines()[0]
    assert list(line.get_xdata()) == [5, 100]


def test_slices_show_the_solution_over_the_exact_law():
    found = slices()
    figure = plotting.density_slices(found)
    for axes, (solution, laws) in zip(figure.axes, found.values(), strict=True):
        lines = axes.get_lines()
        assert len(lines) == 4
        for i, law in enumerate(laws):
            np.testing.assert_array_equal(lines[2 * i + 1].get_ydata(), solution.density[i])
            x = torch.from_numpy(solution.centers)[:, None]
            np.testing.assert_allclose(lines[2 * i].get_ydata(), law.log_prob(x).exp())
    assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()] == [
        "exact", "PDE, t = 0.1", "PDE, t = 0.5",
    ]  # fmt: skip


def test_drawing_leaves_the_settings_of_matplotlib_alone():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    FIGURES["loss"]()
    assert dict(mpl.rcParams) == before


def test_matplotlib_is_imported_when_drawing_and_pyplot_never(tmp_path):
    code = f"""
import sys, torch, sdekit.plotting as p
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
