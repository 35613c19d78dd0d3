import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import normal
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm
from scipy.special import ndtr

from sdekit.data.targets import two_mode
from sdekit.pde import SDE, implicit_euler, solve_fokker_planck
from sdekit.pde.arguments import cell_averages
from sdekit.pde.equations import equation_of
from sdekit.pde.finite_volumes import FourthOrder, Upwinded
from sdekit.pde.scharfetter_gummel import face_weights
from sdekit.processes import VP, Heat, OrnsteinUhlenbeck

TARGET, TIMES = two_mode(), (0.1, 0.5, 1.0)


def grid(half_width, cells):
    return np.linspace(-half_width, half_width, cells + 1)


def l1(a, b, edges):
    return np.abs(a - b).sum(-1) * (edges[1] - edges[0])


def one_cell(edges, k):
    start = np.zeros(len(edges) - 1)
    start[k] = 1 / (edges[1] - edges[0])
    return start


def dense(system, t, n):
    """M(t) column by column."""
    return np.stack([system.rate(t, column) for column in np.eye(n)], axis=1)


#: Wiggles between sources and sinks at |a| h / D = 4.2 on cells of 0.08.
SWITCHING = SDE(lambda x, t: 4.2 * torch.sign(torch.sin(3 * x)) / 0.08, math.sqrt(2.0))


# ---------------------------------------------------------------------------- positivity and mass


@given(
    dt=st.floats(1e-6, 1e6),
    cell=st.integers(0, 59),
    speed=st.floats(0, 1e5),
    g=st.sampled_from([0.0, 1e-3, 1.0, 30.0]),
    seed=st.integers(0, 99),
)
@settings(derandomize=True, deadline=None, max_examples=80)
def test_a_step_of_any_length_keeps_sign_and_mass(dt, cell, speed, g, seed):
    edges = grid(3, 60)
    drift = speed * normal(59, seed=seed)
    system = Upwinded(equation_of(SDE(lambda x, t: drift, g), "raw"), edges)
    y = one_cell(edges, cell)
    for k in range(3):
        y, _ = implicit_euler.step(system, k * dt, (k + 1) * dt, y)
        assert y.min() >= 0
        assert abs(y.sum() * 0.1 - 1) <= 1e-13


def test_a_point_mass_on_a_steep_drift_and_a_scheme_that_cannot_do_it():
    edges = grid(8, 200)
    start, ends = one_cell(edges, 70), np.linspace(0, 0.03, 7)
    equation = equation_of(SWITCHING, "raw")
    positive, central = Upwinded(equation, edges), FourthOrder(equation, edges)
    y = z = start
    for a, b in pairwise(ends):
        y, _ = implicit_euler.step(positive, a, b, y)
        z = central.solve(b, b - a, z.copy())
        assert y.min() >= 0
    assert y.sum() * 0.08 == pytest.approx(1, abs=1e-14)
    assert z.sum() * 0.08 == pytest.approx(1, abs=1e-12)
    # Backward Euler does not help central fluxes: their matrix has no positive inverse.
    assert z.min() < -0.01 * z.max()


def test_the_limited_correction_is_the_correction_where_nothing_is_near_zero():
    rng = np.random.default_rng(0)
    y, change = 1 + rng.random(40), 1e-3 * rng.normal(size=40)
    change -= change.mean()
    np.testing.assert_allclose(implicit_euler._moved(y, change), y + change, rtol=0, atol=1e-12)
    emptied = y.copy()
    emptied[10] = 0.0
    moved = implicit_euler._moved(emptied, change)
    assert moved.min() >= 0
    assert moved.sum() == pytest.approx(emptied.sum(), rel=1e-14)
    # A cell that was given below zero gives nothing.
    emptied[10] = -9.0
    assert implicit_euler._moved(emptied, change)[10] >= -9.0


def test_the_stationary_gaussian_stays_to_round_off():
    # The weights are exact for the exponential of a quadratic at the cell centres.
    process, edges = OrnsteinUhlenbeck(theta=2.0, D=1.0, horizon=50.0), grid(4, 200)
    x = (edges[:-1] + edges[1:]) / 2
    p = np.exp(-2 * x**2)
    p /= p.sum() * 0.04
    solution = solve_fokker_planck(process, p, edges, [0.1, 1.0, 50.0], scheme="sg")
    errors = l1(solution.density, p, edges)
    # The last step is long: round-off times the size of its matrix, 4 D dt / h^2 = 6e4.
    assert (errors <= [1e-13, 1e-13, 6e4 * 2.2e-16]).all()
    assert solution.steps == 3
    central = solve_fokker_planck(process, p, edges, [50.0], scheme="fv4")
    assert l1(central.density, p, edges)[0] > 1e-6


# ---------------------------------------------------------------------------- accuracy


def test_order_in_time_with_fixed_steps():
    edges, t = grid(6, 120), 0.4
    system = Upwinded(equation_of(VP(), "raw"), edges)
    start = cell_averages(TARGET, edges)[0]

    def run(n):
        y, worst = start, 0.0
        for k in range(n):
            y, error = implicit_euler.step(system, t * k / n, t * (k + 1) / n, y)
            worst = max(worst, np.abs(error).sum())
        return y, worst

    truth = run(5120)[0]
    steps = (40, 80, 160, 320)
    errors = [np.abs(run(n)[0] - truth).sum() for n in steps]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert 1.85 <= slope <= 2.15


def test_fluxes_of_the_smallest_drifts_are_those_of_none():
    # w = a h / D underflows; 5e-324 is the smallest number.
    for drift in (5e-324, -5e-324, 1e-300, 0.0):
        left, right = face_weights(np.array([drift]), 1e-3, 0.1)
        np.testing.assert_allclose([left, right], 0.01, rtol=1e-15)
    left, right = face_weights(np.array([1e5, -1e5, 0.0]), 1e-300, 0.1)
    np.testing.assert_allclose(left, [1e5, 0, 1e-299], rtol=1e-15)
    np.testing.assert_allclose(right, [0, 1e5, 1e-299], rtol=1e-15)


@pytest.mark.parametrize(("process", "half_width"), [(VP(), 8), (Heat(), 12)], ids=repr)
def test_order_in_space(process, half_width):
    cells, errors = (100, 200, 400), []
    for n in cells:
        edges = grid(half_width, n)
        start = cell_averages(TARGET, edges)[0]
        solution = solve_fokker_planck(process, start, edges, TIMES, scheme="sg", tol=1e-6)
        truth = np.stack([cell_averages(TARGET.at(process, t), edges)[0] for t in TIMES])
        errors.append(l1(solution.density, truth, edges))
        assert (solution.minimum >= 0).all()
        assert np.abs(solution.mass - 1).max() <= 1e-12
    slopes = -np.polyfit(np.log(cells), np.log(errors), 1)[0]
    assert (slopes >= 1.95).all()
    assert (slopes <= 2.05).all()


def test_tolerance_controls_the_error_in_time():
    # The generator does not depend on time: its exponential is the truth of the semi-discrete equation.
    edges, n = grid(4, 100), 100
    well = SDE(lambda x, t: x - x**3, 1.0)
    start = np.diff(ndtr((edges + 1) / 0.3)) / 0.08
    system = Upwinded(equation_of(well, "raw"), edges)
    truth = expm(2.0 * dense(system, 0.0, n)) @ start
    runs = [
        solve_fokker_planck(well, start, edges, [2.0], scheme="sg", tol=10.0**-k)
        for k in (3, 4, 5, 6)
    ]
    errors = [l1(run.density[0], truth, edges) for run in runs]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] <= 1e-4
    # Second order: ten times the steps, a hundredth of the error; tol^(1/2) is a step.
    slope = np.polyfit([-3, -4, -5, -6], np.log10(errors), 1)[0]
    assert 0.85 <= slope <= 1.15


def test_product_and_matrix_are_the_same_operator():
    edges = grid(5, 12)
    system, y = Upwinded(equation_of(VP(), "raw"), edges), np.random.default_rng(0).normal(size=12)
    x = system.solve(0.3, 0.7, y.copy())
    np.testing.assert_allclose(x - 0.7 * system.rate(0.3, x), y, rtol=0, atol=1e-13)
    assert abs(system.rate(0.3, y).sum()) <= 1e-12
