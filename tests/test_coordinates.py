import numpy as np
import pytest

from sdekit.data.mixtures import GaussianMixture
from sdekit.data.targets import two_mode
from sdekit.pde import solve_fokker_planck
from sdekit.pde.arguments import cell_averages
from sdekit.pde.coordinates import Coordinates
from sdekit.processes import ALL, EDM, VE, VP, Heat, OrnsteinUhlenbeck, SubVP

TARGET = two_mode()


def grid(half_width, cells):
    return np.linspace(-half_width, half_width, cells + 1)


def l1_errors(solution, process):
    """L1 errors against the exact law, in x."""
    errors = []
    for t, s, row in zip(solution.times, solution.scale, solution.density, strict=True):
        x = s * solution.edges
        truth = cell_averages(TARGET.at(process, float(t)), x)[0]
        errors.append(np.abs(row - truth).sum() * (x[1] - x[0]))
    return np.array(errors)


@pytest.mark.parametrize(
    ("process", "half_width"),
    [
        (VP(), 8),
        (SubVP(), 8),
        (Heat(), 12),
        (OrnsteinUhlenbeck(theta=0.7, D=1.2, horizon=2.0), 8),
        (VE(sigma_min=0.01, sigma_max=1.5), 12),
        (VE(sigma_min=0.1, sigma_max=1.5, start_at_sigma_min=True), 12),
        (EDM(sigma_max=1.5), 12),
    ],
    ids=repr,
)
def test_raw_coordinates_test_drift_and_diffusion_apart(process, half_width):
    times = np.array([0.1, 0.5, 1.0]) * process.horizon
    edges, start = grid(half_width, 1000), TARGET.at(process, 0.0)
    solution = solve_fokker_planck(process, start, edges, times, scheme="fv4")
    assert (l1_errors(solution, process) <= 5e-7).all()
    assert (solution.scale == 1).all()
    np.testing.assert_array_equal(solution.x, np.tile(solution.centers, (3, 1)))


@pytest.mark.parametrize("scheme", ["exponential", "fv4"])
@pytest.mark.parametrize("process", ALL, ids=repr)
def test_one_grid_for_all_times_of_every_process(process, scheme):
    times = np.array([0.1, 0.5, 1.0]) * process.t_max
    start = TARGET.at(process, 0.0)
    solution = solve_fokker_planck(
        process, start, grid(8, 800), times, coordinates="scaled", scheme=scheme
    )
    assert (l1_errors(solution, process) <= 5e-7).all()
    assert np.abs(solution.mass - 1).max() <= 1e-11
    assert (solution.minimum >= -1e-11 / solution.scale).all()
    expected = [np.hypot(process.alpha(t), process.sigma(t)) for t in times.tolist()]
    np.testing.assert_allclose(solution.scale, expected, rtol=1e-14)
    np.testing.assert_array_equal(solution.x, np.outer(solution.scale, solution.centers))


def test_scaled_coordinates_of_a_preserved_variance_are_raw():
    a, b = (
        solve_fokker_planck(VP(), TARGET, grid(8, 200), [0.1, 1.0], coordinates=name)
        for name in ("raw", "scaled")
    )
    np.testing.assert_allclose(a.density, b.density, rtol=0, atol=1e-12)


def test_averages_given_are_of_x_as_those_returned():
    process, edges = VE(), grid(8, 400)
    whole = solve_fokker_planck(process, TARGET, edges, [0.4, 0.8], coordinates="scaled", tol=1e-9)
    half = solve_fokker_planck(
        process, whole.density[0], edges, [0.8], start=0.4, coordinates="scaled", tol=1e-9
    )
    np.testing.assert_allclose(half.density[0], whole.density[1], rtol=0, atol=1e-8)
    law = TARGET.at(process, 0.4)
    again = solve_fokker_planck(
        process, law, edges, [0.8], start=0.4, coordinates="scaled", tol=1e-9
    )
    np.testing.assert_allclose(again.density[0], whole.density[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("process", [VP(), SubVP(), VE(), EDM(), Heat()], ids=repr)
def test_growth_is_the_slope_of_the_logarithm_of_the_scale(process):
    coordinates = Coordinates(process)
    for t in (0.2 * process.horizon, 0.7 * process.horizon):
        dt = 1e-5 * process.horizon
        slope = np.log(coordinates.scale(t + dt) / coordinates.scale(t - dt)) / (2 * dt)
        assert coordinates.growth(t) == pytest.approx(slope, rel=1e-7, abs=1e-9)


def test_resolution_is_cells_to_the_narrowest_standard_deviation():
    process, edges = VE(), grid(8, 800)
    law = GaussianMixture(None, [0.3], stds=0.4)
    solution = solve_fokker_planck(process, law, edges, [0.0, 0.7], coordinates="scaled")
    std = np.hypot(0.4, process.sigma(0.7)) / np.hypot(1.0, process.sigma(0.7))
    np.testing.assert_allclose(solution.resolution, np.array([20.0, 50 * std]), rtol=2e-3)


def test_a_grid_too_narrow_or_too_coarse_in_units_of_u():
    with pytest.raises(ValueError, match=r"outside \[-2, 2\]"):
        solve_fokker_planck(VE(), TARGET, grid(2, 100), [0.5], coordinates="scaled")
    wide = GaussianMixture(None, [0.0], stds=3.0)
    with pytest.raises(ValueError, match=r"hold the mass of density0"):
        solve_fokker_planck(VE(), wide, grid(8, 400), [0.5], coordinates="scaled")
    # 0.4 at the start, 0.4 / s and noise later: the narrowest is at the start.
    with pytest.raises(ValueError, match=r"0\.4 at t = 0: at least 120 cells, got 80"):
        solve_fokker_planck(VE(), TARGET, grid(8, 80), [0.5], coordinates="scaled")
