import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import bad_input
from matplotlib.image import imread

import sdekit as sk
from sdekit import plotting
from sdekit.checks import fokker_planck_film
from sdekit.data import two_mode
from sdekit.density_pictures import density_picture, plane_picture
from sdekit.pde import solve_fokker_planck, solve_fokker_planck_2d

TIMES, EDGES = np.linspace(0, 1, 41), np.linspace(-6, 6, 121)
LAWS = [two_mode().at(sk.VP(), t) for t in TIMES]
LINE = solve_fokker_planck(sk.VP(), two_mode(), EDGES, TIMES)
TILTED = sk.GaussianMixture(
    None, [[-1.0, 0.0], [1.0, 0.5]], covariances=torch.tensor([[[0.5, 0.3], [0.3, 0.5]]] * 2)
)
PLANE_TIMES = [0.0, 0.05, 0.1, 0.2, 0.5]
PLANE_LAWS = [TILTED.at(sk.VP(), t) for t in PLANE_TIMES]
PLANE = solve_fokker_planck_2d(
    sk.VP(), TILTED, (np.linspace(-6, 6, 101), np.linspace(-6, 6, 121)), PLANE_TIMES, tol=1e-4
)


def frames(count):
    """The first of the solution in the plane."""
    return replace(PLANE, density=PLANE.density[:count], times=PLANE.times[:count])


FIGURES = {
    "a line": lambda: density_picture({"VP": (LINE, LAWS)}, title="x"),
    "lines without laws": lambda: density_picture({"a": (LINE, None), "b": (LINE, None)}),
    "the plane": lambda: plane_picture(PLANE, PLANE_LAWS, title="x"),
    "one frame": lambda: plane_picture(frames(1), PLANE_LAWS[:1], title="x"),
    "frames without laws": lambda: plane_picture(frames(3)),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_picture_is_written_labelled_and_whole(name, tmp_path):
    figure = FIGURES[name]()
    picture = imread(plotting.save(figure, tmp_path / "p.png"))
    assert picture[..., :3].std() > 0.02
    # A picture whose legend or title is cut off has ink in its outermost pixels.
    for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
        assert edge[..., :3].min() == 1.0
    assert figure.legends
    labels = {axes.get_ylabel() for axes in figure.axes}
    assert labels & {"density", "density / its peak"}
    assert labels & {"x", "x[1]"}


def drawn(axes):
    """The image, and the sets of contours in the order in which they were drawn."""
    image, *contours = axes.collections
    return image, contours


def vertices(contour):
    return np.concatenate([path.vertices for path in contour.get_paths()])


def test_the_image_is_the_solution_and_the_contours_are_where_the_exact_density_has_their_level():
    film, slices = density_picture({"VP": (LINE, LAWS)}).axes[:2]
    image, (exact, solved) = drawn(film)
    np.testing.assert_array_equal(image.get_array(), LINE.density.T)
    peak = LINE.density.max()
    np.testing.assert_allclose(exact.levels, np.array([0.02, 0.1, 0.3, 0.6]) * peak)
    np.testing.assert_array_equal(exact.levels, solved.levels)
    for level, path in zip(exact.levels, exact.get_paths(), strict=True):
        on_frames = path.vertices[np.isin(path.vertices[:, 0], TIMES)]
        assert len(on_frames) > 10
        for t, x in on_frames:
            p = float(two_mode().at(sk.VP(), t).log_prob(torch.tensor([[x]]).double()).exp())
            # Linear interpolation between centres 0.1 apart: h^2 / 8 times the second derivative.
            assert abs(p - level) <= 0.1**2 / 8 * 0.7 / 0.16 * 1.1
    assert film.get_xlim() == (0, 1)
    assert film.get_ylim() == slices.get_xlim()


def test_slices_are_the_solution_over_the_exact_law_at_times_of_equal_change():
    film, slices = density_picture({"VP": (LINE, LAWS)}).axes[:2]
    lines = slices.get_lines()
    marks = [float(line.get_xdata()[0]) for line in film.get_lines()]
    rows = [int(np.flatnonzero(t == TIMES)[0]) for t in marks]
    assert len(lines) == 8
    assert (rows[0], rows[-1]) == (0, 40)
    assert rows == sorted(rows)
    for k, i in enumerate(rows):
        np.testing.assert_array_equal(lines[2 * k + 1].get_ydata(), LINE.density[i])
        x = torch.from_numpy(LINE.centers)[:, None]
        np.testing.assert_allclose(lines[2 * k].get_ydata(), LAWS[i].log_prob(x).exp())
    way = np.abs(np.diff(LINE.density, axis=0)).sum(1)
    parts = [way[a:b].sum() for a, b in pairwise(rows)]
    # As equal as frames 0.025 apart allow.
    assert max(parts) - min(parts) <= 2 * way.max()
    texts = [text.get_text() for text in slices.get_legend().get_texts()]
    assert texts == ["exact", *(f"t = {TIMES[i]:.3g}" for i in rows)]


def test_a_density_that_runs_backwards_is_drawn_from_left_to_right():
    times = TIMES[::-1]
    film = density_picture({"reverse": (in_order(LINE, times), LAWS[::-1])}).axes[0]
    assert film.get_xlim() == (1, 0)
    image, (exact, solved) = drawn(film)
    np.testing.assert_array_equal(image.get_array(), LINE.density[::-1].T)
    forward = drawn(density_picture({"VP": (LINE, LAWS)}).axes[0])[1]
    for a, b in zip((exact, solved), forward, strict=True):
        a, b = (np.unique(vertices(c).round(9), axis=0) for c in (a, b))
        np.testing.assert_allclose(a, b)


def test_a_solution_in_scaled_coordinates_is_drawn_in_x():
    process, edges = sk.VE(sigma_max=3.0), np.linspace(-6, 6, 241)
    laws = [two_mode().at(process, t) for t in TIMES]
    solution = solve_fokker_planck(process, two_mode(), edges, TIMES, coordinates="scaled")
    assert solution.scale[-1] == pytest.approx(math.hypot(1, 3), rel=1e-5)  # sigma(0) = 0
    film, slices = density_picture({"VE": (solution, laws)}).axes[:2]
    image, (exact, solved) = drawn(film)
    corners = image.get_coordinates()  # (cells + 1, times + 1, (t, x))
    ends = np.array([0, *(TIMES[1:] + TIMES[:-1]) / 2, 1])
    scale = np.array([math.hypot(1, process.sigma(t)) for t in ends])
    np.testing.assert_allclose(corners[..., 0], np.broadcast_to(ends, corners.shape[:2]))
    np.testing.assert_allclose(corners[..., 1], edges[:, None] * scale)
    for contours in (exact, solved):
        for level, path in zip(contours.levels, contours.get_paths(), strict=True):
            on_frames = path.vertices[np.isin(path.vertices[:, 0], TIMES)]
            assert len(on_frames) > 10
            for t, x in on_frames:
                p = float(two_mode().at(process, t).log_prob(torch.tensor([[x]]).double()).exp())
                # Linear interpolation between centres 0.05 s apart; s^2 times the curvature falls with t.
                assert abs(p - level) <= 0.05**2 / 8 * 0.7 / 0.16 * 1.1
    marks = [float(line.get_xdata()[0]) for line in film.get_lines()]
    for k, t in enumerate(marks):
        below, above = slices.get_lines()[2 * k : 2 * k + 2]
        i = int(np.flatnonzero(t == TIMES)[0])
        np.testing.assert_allclose(above.get_xdata(), solution.x[i])
        np.testing.assert_array_equal(above.get_ydata(), solution.density[i])
        x = torch.from_numpy(solution.x[i])[:, None]
        np.testing.assert_allclose(below.get_ydata(), laws[i].log_prob(x).exp())
    # What is seen at the end, three times as wide as at the start.
    low, high = film.get_ylim()
    assert 9 < high < 14
    assert low == pytest.approx(-high, rel=0.1)


def in_order(solution, times):
    """The same rows in the order of these times."""
    order = np.searchsorted(solution.times, times)
    return replace(solution, density=solution.density[order], times=times)


def test_frames_of_the_plane_are_relative_to_their_peaks_with_the_first_coordinate_across():
    figure = plane_picture(PLANE, PLANE_LAWS)
    shown = [axes for axes in figure.axes if axes.get_visible()][:5]
    assert [axes.get_title() for axes in shown] == [f"t = {t:g}" for t in PLANE_TIMES]
    for axes, density, law in zip(shown, PLANE.density, PLANE_LAWS, strict=True):
        image, (exact, solved) = drawn(axes)
        np.testing.assert_allclose(image.get_array(), density.T / density.max())
        assert image.get_clim() == (0, 1)
        points = torch.from_numpy(vertices(exact)).double()
        centers = torch.cartesian_prod(*(torch.from_numpy(c) for c in PLANE.centers))
        relative = (law.log_prob(points) - law.log_prob(centers).max()).exp()
        nearest = (relative[:, None] - torch.tensor([0.02, 0.1, 0.3, 0.6])).abs().amin(1)
        assert nearest.max() <= 0.02  # linear interpolation, 4 cells to the narrowest section
        assert len(vertices(solved)) == pytest.approx(len(vertices(exact)), rel=0.1)
        assert axes.get_aspect() == 1


def test_the_film_is_the_check_at_many_times():
    runs = fokker_planck_film(200, 11)
    assert [run.name for run in runs] == ["VP", "heat equation"]
    for run in runs:
        np.testing.assert_allclose(run.solution.times, np.linspace(0, 1, 11), atol=1e-15)
        assert max(run.l1_errors()) <= 2e-4


ONE = in_order(LINE, TIMES[:1])
test_bad_input = bad_input(
    [
        ("one time", lambda: density_picture({"a": (ONE, None)}), ValueError, ["'a'", "2 times"]),
        ("no names", lambda: density_picture(LINE), TypeError, ["solutions", "dict", "Solution"]),  # type: ignore[arg-type]
        ("no pair", lambda: density_picture({"a": LINE}), TypeError, ["'a'", "laws or None"]),  # type: ignore[dict-item]
        ("a plane", lambda: density_picture({"a": (PLANE, None)}), TypeError, ["a Solution"]),  # type: ignore[dict-item]
        ("a line", lambda: plane_picture(LINE), TypeError, ["PlaneSolution", "got Solution"]),  # type: ignore[arg-type]
        (
            "laws missing",
            lambda: density_picture({"a": (LINE, LAWS[:3])}),
            ValueError,
            ["laws", "41 times", "3 laws"],
        ),
        (
            "laws of another kind",
            lambda: density_picture({"a": (LINE, [TILTED] * 41)}),
            ValueError,
            ["laws must be mixtures with d = 1", "d=2"],
        ),
        (
            "plane laws",
            lambda: plane_picture(PLANE, PLANE_LAWS[1:]),
            ValueError,
            ["5 times", "4 laws"],
        ),
        (
            "too many frames",
            lambda: plane_picture(
                sk.pde.PlaneSolution(
                    np.repeat(PLANE.density[:1], 9, 0), PLANE.edges, np.arange(9.0), 1, np.zeros(9)
                )
            ),
            ValueError,
            ["at most 8 times", "got 9"],
        ),
    ]
)
