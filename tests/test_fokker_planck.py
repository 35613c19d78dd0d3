import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from sdekit.data.mixtures import GaussianMixture
from sdekit.errors import NumericsError
from sdekit.pde import SDE, esdirk, heat_equation, solve_fokker_planck
from sdekit.pde.arguments import cell_averages
from sdekit.pde.equations import equation_of
from sdekit.pde.finite_volumes import FourthOrder
from sdekit.processes import (
    ALL,
    VE,
    VP,
    Heat,
    Interpolant,
    OrnsteinUhlenbeck,
    Process,
    SubVP,
)

WEIGHTS, MEANS, STD = (0.3, 0.7), (-1.4, 0.6), 0.4
TARGET = GaussianMixture(
    *torch.tensor([WEIGHTS, MEANS], dtype=torch.float64),
    stds=torch.tensor(STD, dtype=torch.float64),
)
TIMES = (0.1, 0.5, 1.0)


def grid(half_width, cells):
    return np.linspace(-half_width, half_width, cells + 1)


def gaussians(edges, means, variance):
    """Cell averages of the mixture with the weights above, from the nearer tail of each component."""
    total = 0.0
    for weight, mean in zip(WEIGHTS, means, strict=True):
        z = (edges - mean) / math.sqrt(variance)
        total = total + weight * np.where(z[1:] < 0, np.diff(ndtr(z)), -np.diff(ndtr(-z)))
    return total / np.diff(edges)


def exact(process, t, edges):
    """The law of x_t written out: alpha and sigma^2 of each process by hand."""
    B = 0.1 * t + 9.95 * t * t
    alpha, noise = {
        VP: (math.exp(-B / 2), -math.expm1(-B)),
        SubVP: (math.exp(-B / 2), math.expm1(-B) ** 2),
        Heat: (1.0, 2 * t),
    }[type(process)]
    return gaussians(edges, [alpha * m for m in MEANS], alpha**2 * STD**2 + noise)


def l1(a, b, edges):
    return np.abs(a - b).sum(-1) * (edges[1] - edges[0])


# ---------------------------------------------------------------------------- the time stepper


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def test_tableau_fulfils_every_order_condition_exactly():
    c = esdirk.C
    a = [row + (esdirk.F(0),) * (6 - len(row)) for row in esdirk.A]
    assert tuple(sum(row) for row in a) == c
    ac, ac2 = [dot(row, c) for row in a], [dot(row, [x * x for x in c]) for row in a]
    aac = [dot(row, ac) for row in a]
    third = [([1] * 6, 1), (c, 2), ([x * x for x in c], 3), (ac, 6)]
    fourth = [([x**3 for x in c], 4), ([x * y for x, y in zip(c, ac, strict=True)], 8)]
    fourth += [(ac2, 12), (aac, 24)]
    assert [dot(a[-1], v) * n for v, n in third + fourth] == [1] * 8
    assert [dot(esdirk.B_EMBEDDED, v) * n for v, n in third] == [1] * 4
    assert all(dot(esdirk.B_EMBEDDED, v) * n != 1 for v, n in fourth)


@dataclass
class Spiral:
    """y' = R(t) diag(-1, -3) R(-t) y + J y, with R(t) = exp(J t): y(t) = R(t) (e^-t a, e^-3t b)."""

    def matrix(self, t):
        c, s = math.cos(t), math.sin(t)
        turn = np.array([[c, -s], [s, c]])
        return turn @ np.diag([-1.0, -3.0]) @ turn.T + np.array([[0.0, -1.0], [1.0, 0.0]])

    def rate(self, t, y):
        return self.matrix(t) @ y

    def solve(self, t, weight, y):
        return np.linalg.solve(np.eye(2) - weight * self.matrix(t), y)

    def exact(self, t):
        c, s = math.cos(t), math.sin(t)
        return np.array([[c, -s], [s, c]]) @ np.exp([-t, -3 * t])


@pytest.mark.parametrize(("embedded", "order"), [(False, 4), (True, 3)])
def test_order_in_time_with_fixed_steps(embedded, order):
    spiral, steps, errors = Spiral(), (20, 40, 80, 160), []
    for n in steps:
        y, ts = spiral.exact(0.0), np.linspace(0, 2, n + 1)
        for s, t in pairwise(ts.tolist()):
            y, difference = esdirk.step(spiral, s, t, y)
            y = y - difference if embedded else y
        errors.append(np.abs(y - spiral.exact(2.0)).max())
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert order - 0.15 <= slope <= order + 0.4


def test_a_stiff_mode_dies_in_one_step():
    class Stiff:
        def rate(self, t, y):
            return -1e6 * y

        def solve(self, t, weight, y):
            return y / (1 + 1e6 * weight)

    y, _ = esdirk.step(Stiff(), 0.0, 1.0, np.ones(1))
    assert abs(y[0]) < 1e-4


# ---------------------------------------------------------------------------- accuracy


@pytest.mark.parametrize(("process", "half_width"), [(VP(), 8), (SubVP(), 8), (Heat(), 12)])
def test_cell_averages_of_a_mixture(process, half_width):
    edges = grid(half_width, 800)
    solution = solve_fokker_planck(process, TARGET, edges, TIMES, scheme="fv4", tol=1e-7)
    truth = np.stack([exact(process, t, edges) for t in TIMES])
    assert solution.density.shape == (3, 800)
    assert solution.density.dtype == np.float64
    assert (l1(solution.density, truth, edges) <= 5e-7).all()
    assert np.abs(solution.mass - 1).max() <= 1e-11
    assert (solution.minimum >= -1e-12 * solution.density.max(axis=1)).all()
    assert solution.steps <= 60


@pytest.mark.parametrize("process", ALL, ids=repr)
def test_every_process_until_signal_equals_noise(process):
    edges, t = grid(8, 1200), float(process.time_at_log_snr(0.0))
    start = TARGET.at(process, 0.0)
    solution = solve_fokker_planck(process, start, edges, [t / 3, t], scheme="fv4")
    for row, time in zip(solution.density, (t / 3, t), strict=True):
        alpha, sigma = process.alpha(time), process.sigma(time)
        truth = gaussians(edges, [alpha * m for m in MEANS], alpha**2 * STD**2 + sigma**2)
        assert l1(row, truth, edges) <= 5e-7
    assert np.abs(solution.mass - 1).max() <= 1e-11


@pytest.mark.parametrize(("process", "half_width"), [(VP(), 8), (Heat(), 12)])
def test_order_in_space(process, half_width):
    errors = []
    for cells in (100, 200, 400):
        edges = grid(half_width, cells)
        start = exact(process, 0.0, edges)
        solution = solve_fokker_planck(process, start, edges, TIMES, scheme="fv4", tol=1e-11)
        truth = np.stack([exact(process, t, edges) for t in TIMES])
        errors.append(l1(solution.density, truth, edges))
    slopes = -np.polyfit(np.log([100, 200, 400]), np.log(errors), 1)[0]
    assert (slopes >= 3.8).all()
    assert (slopes <= 4.1).all()


@given(
    weight=st.floats(0.1, 0.9),
    means=st.tuples(st.floats(-1.5, 1.5), st.floats(-1.5, 1.5)),
    stds=st.tuples(st.floats(0.35, 0.6), st.floats(0.35, 0.6)),
    theta=st.floats(0, 1.5),
    D=st.floats(0.8, 2),
)
@settings(derandomize=True, deadline=None, max_examples=8)
def test_any_mixture_under_any_linear_drift(weight, means, stds, theta, D):
    process, edges = OrnsteinUhlenbeck(theta=theta, D=D, horizon=1.0), grid(12, 960)
    mixture = GaussianMixture([weight, 1 - weight], means, stds=stds)
    solution = solve_fokker_planck(process, mixture, edges, TIMES, scheme="fv4", tol=1e-8)
    truth = np.stack([cell_averages(mixture.at(process, t), edges)[0] for t in TIMES])
    # The narrowest are 12 cells wide: (20 / 12)^4 times the 5e-7 of 20 cells.
    assert (l1(solution.density, truth, edges) <= 4e-6).all()
    assert np.abs(solution.mass - 1).max() <= 1e-11


def test_rates_that_jump_are_met_exactly():
    # A chain of five constant rates, with times at, near and between the jumps.
    chain = VP.from_betas([0.02, 0.3, 0.05, 0.4, 0.1])
    edges, times = grid(8, 800), [0.1, 0.2, 0.2 + 1e-13, 0.5, 0.8, 1.0]
    solution = solve_fokker_planck(chain, TARGET, edges, times, scheme="fv4")
    kept = np.cumprod([0.98, 0.7, 0.95, 0.6, 0.9])
    alphas = np.sqrt([0.98**0.5, kept[0], kept[0], kept[1] * 0.95**0.5, kept[3], kept[4]])
    for row, alpha in zip(solution.density, alphas, strict=True):
        truth = gaussians(edges, [alpha * m for m in MEANS], alpha**2 * STD**2 + 1 - alpha**2)
        assert l1(row, truth, edges) <= 5e-7
    again = solve_fokker_planck(
        chain, solution.density[1], edges, times[3:], start=0.2, scheme="fv4"
    )
    assert l1(again.density, solution.density[3:], edges).max() <= 5e-7


def test_tolerance_controls_the_error_in_time():
    edges = grid(8, 400)
    runs = [
        solve_fokker_planck(VP(), TARGET, edges, [0.3], scheme="fv4", tol=10.0**-k)
        for k in (12, 8, 6, 4)
    ]
    errors = [l1(run.density, runs[0].density, edges)[0] for run in runs[1:]]
    assert errors[0] < errors[1] < errors[2]
    # The error of the order-3 solution is controlled, that of order 4 is carried on.
    assert errors[0] <= 1e-7
    assert runs[0].steps > runs[1].steps > runs[2].steps > runs[3].steps


def test_product_and_matrix_are_the_same_operator():
    rng = np.random.default_rng(0)
    volumes, y, t = FourthOrder(equation_of(VP(), "raw"), grid(5, 12)), rng.normal(size=12), 0.3
    x = volumes.solve(t, 0.7, y.copy())
    np.testing.assert_allclose(x - 0.7 * volumes.rate(t, x), y, rtol=0, atol=1e-13)
    assert abs(volumes.rate(t, y).sum()) <= 1e-12


# ---------------------------------------------------------------------------- laws of the equation


def test_semigroup():
    edges = grid(8, 400)
    whole = solve_fokker_planck(VP(), TARGET, edges, [0.2, 0.6], scheme="fv4")
    half = solve_fokker_planck(VP(), whole.density[0], edges, [0.6], start=0.2, scheme="fv4")
    single = l1(whole.density[1], exact(VP(), 0.6, edges), edges)
    assert l1(half.density[0], whole.density[1], edges) <= 2 * single


def test_heat_maximum_principle_and_entropy():
    solution = heat_equation(TARGET, grid(12, 600), np.linspace(0.02, 1, 25))
    assert (np.diff(solution.density.max(axis=1)) <= 0).all()
    assert (np.diff(solution.minimum) >= -1e-12).all()
    p = solution.density.clip(1e-300)
    entropy = -(p * np.log(p)).sum(axis=1) * np.diff(solution.edges)[0]
    assert (np.diff(entropy) > 0).all()


@pytest.mark.parametrize("process", [VP(), Heat()], ids=repr)
def test_de_bruijn_identity(process):
    # dH/dt = f + (g^2 / 2) J with the Fisher information J. Entropy and J of cell averages are of second
    # order in the cells: h^2 = 4e-4 times a quarter.
    edges, t, dt = grid(12, 1200), 0.3, 1e-3
    before, now, after = solve_fokker_planck(
        process, TARGET, edges, [t - dt, t, t + dt], tol=1e-11
    ).density.clip(1e-300)
    h = edges[1] - edges[0]
    slope = h * ((before * np.log(before)).sum() - (after * np.log(after)).sum()) / (2 * dt)
    inside = now > 1e-25
    fisher = h * (np.gradient(now, h)[inside] ** 2 / now[inside]).sum()
    f, g2 = process.rates(t)
    assert slope == pytest.approx(f + g2 / 2 * fisher, abs=1e-4)


@pytest.mark.parametrize("process", [VP(), Heat(), OrnsteinUhlenbeck(horizon=1.0)], ids=repr)
def test_moments(process):
    edges = grid(12, 400)
    solution = solve_fokker_planck(process, TARGET, edges, TIMES, scheme="fv4", tol=1e-11)
    h, x = edges[1] - edges[0], solution.centers
    mean = solution.density @ x * h
    # The second moment of cell averages exceeds that of the density by h^2 / 12.
    second = solution.density @ x**2 * h - h**2 / 12
    alpha = np.array([process.alpha(t) for t in TIMES])
    noise = np.array([process.sigma(t) ** 2 for t in TIMES])
    mean0 = np.dot(WEIGHTS, MEANS)
    second0 = np.dot(WEIGHTS, np.square(MEANS)) + STD**2
    np.testing.assert_allclose(mean, alpha * mean0, rtol=0, atol=1e-10)
    np.testing.assert_allclose(second, alpha**2 * second0 + noise, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("process", "std"), [(VP(), 1.0), (OrnsteinUhlenbeck(theta=2.0, D=1.0, horizon=1.0), 0.5)]
)
def test_the_stationary_law_stays(process, std):
    edges = grid(8 * std, 800)
    normal = GaussianMixture([1.0], [0.0], stds=std)
    solution = solve_fokker_planck(process, normal, edges, TIMES, scheme="fv4")
    z = edges / std
    start = np.where(z[1:] <= 0, np.diff(ndtr(z)), -np.diff(ndtr(-z))) / np.diff(edges)
    assert (l1(solution.density, start, edges) <= 5e-8).all()


@pytest.mark.parametrize("process", [VP(), Heat()], ids=repr)
def test_two_solutions_approach_each_other(process):
    edges, times = grid(12, 600), np.linspace(0.02, 1, 25)
    other = GaussianMixture([0.5, 0.5], [-0.5, 2.0], stds=[0.3, 0.6])
    a, b = (solve_fokker_planck(process, d, edges, times).density for d in (TARGET, other))
    assert (np.diff(l1(a, b, edges)) <= 1e-12).all()


# ---------------------------------------------------------------------------- the front door


def test_inputs_of_any_kind_give_the_same_solution():
    edges = grid(8, 200)
    reference = solve_fokker_planck(VP(), TARGET, edges, [0.0, 0.5])
    averages = exact(VP(), 0.0, edges)
    np.testing.assert_allclose(reference.density[0], averages, rtol=1e-12)
    np.testing.assert_allclose(reference.centers, (np.arange(200) + 0.5) * 0.08 - 8, atol=1e-13)
    np.testing.assert_array_equal(reference.times, [0.0, 0.5])

    class OnlyCdf:
        def cdf(self, x):
            return TARGET.cdf(x)

    for density0 in (averages, torch.from_numpy(averages), averages.tolist(), OnlyCdf()):
        times = torch.tensor([0.0, 0.5], dtype=torch.float64)
        again = solve_fokker_planck(VP(), density0, torch.from_numpy(edges), times)
        np.testing.assert_allclose(again.density, reference.density, rtol=0, atol=1e-13)
        assert again.steps == reference.steps


def test_heat_equation_is_the_heat_process():
    edges = grid(14, 500)
    solution = heat_equation(TARGET, edges, [0.5, 1.5], tol=1e-8)
    same = solve_fokker_planck(Heat(horizon=1.5), TARGET, edges, [0.5, 1.5], tol=1e-8)
    np.testing.assert_array_equal(solution.density, same.density)


def test_an_edge_of_the_solution_does_not_alias_the_input():
    edges = grid(8, 200)
    solution = solve_fokker_planck(VP(), TARGET, edges, [0.1])
    edges += 1
    assert solution.edges[0] == -8


def test_sharp_averages_where_diffusion_dominates():
    # One full cell is, to the grid, a point mass: its discrete spectrum is flat. Under heat it becomes
    # the samples of N(0, 1), with fourth-order error although the start is not smooth.
    errors = []
    for cells in (101, 201):
        edges = grid(8, cells)
        start = np.zeros(cells)
        start[cells // 2] = cells / 16
        solution = solve_fokker_planck(Heat(), start, edges, [0.5], scheme="fv4", tol=1e-9)
        x = solution.centers
        normal = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
        errors.append(l1(solution.density[0], normal, edges))
    assert errors[1] <= 2e-5
    assert math.log(errors[0] / errors[1]) / math.log(201 / 101) >= 3.85
    assert solution.mass[0] == pytest.approx(1, abs=1e-12)


def one_cell(cells=100, half_width=8.0):
    start = np.zeros(cells)
    start[cells // 4] = cells / (2 * half_width)
    return start


@pytest.mark.parametrize(
    ("process", "steep"),
    [(OrnsteinUhlenbeck(theta=3.0, D=0.3, horizon=1.0), "42.7"), (SubVP(), "inf")],
    ids=repr,
)
def test_auto_takes_the_positive_scheme_for_sharp_averages_on_a_steep_drift(process, steep):
    solution = solve_fokker_planck(process, one_cell(), EDGES, [0.1, 1.0])
    assert solution.scheme == "sg"
    assert solution.reason == f"density0 is not smooth and |a| h / D = {steep} at t = 0"
    assert repr(solution).endswith(f"sg: {solution.reason})")
    assert (solution.minimum >= 0).all()
    assert np.abs(solution.mass - 1).max() <= 1e-12
    central = solve_fokker_planck(process, one_cell(), EDGES, [0.1, 1.0], scheme="fv4")
    assert central.minimum[0] < -0.01


def test_auto_looks_again_at_what_it_got():
    # The start is smooth; it is swept into a peak about 0 that is narrower than a cell.
    equation = SDE(lambda x, t: -20 * torch.tanh(30 * x), 0.3)
    start = GaussianMixture([1.0], [1.0], stds=0.5)
    solution = solve_fokker_planck(equation, start, grid(4, 200), [1.0])
    assert solution.scheme == "sg"
    assert solution.reason.startswith("fv4 left a mass of")
    assert solution.minimum[0] >= 0
    central = solve_fokker_planck(equation, start, grid(4, 200), [1.0], scheme="fv4")
    assert central.minimum[0] < -1e-4
    assert central.reason == ""


NARROW_LATER = OrnsteinUhlenbeck(theta=4.0, D=0.05, horizon=1.0)
EDGES = grid(8, 100)
WIDE = GaussianMixture([1.0], [0.0], stds=1.0)

BAD = [
    ({"times": []}, ValueError, "times must hold at least one"),
    ({"times": [0.5, 0.5]}, ValueError, "times must increase, got 0.5 and then 0.5"),
    ({"times": [0.5, 0.2]}, ValueError, "times must increase"),
    ({"times": [0.5, 1.1]}, ValueError, r"times must lie in .*\[0, 1\].*got \[0.5, 1.1\]"),
    ({"times": [0.1], "start": 0.2}, ValueError, r"times must lie in .*\[0.2, 1\]"),
    ({"times": [-0.1]}, ValueError, "times must lie in"),
    ({"times": [math.nan]}, ValueError, "times must be finite"),
    ({"times": 0.5}, ValueError, "times must be one-dimensional"),
    ({"times": [True]}, TypeError, "times must hold numbers"),
    ({"times": ["now"]}, TypeError, "times must hold numbers"),
    ({"equation": Interpolant()}, ValueError, r"times must avoid t = 1.*t_max"),
    ({"equation": 3}, TypeError, "equation must be a Process, .* got int"),
    ({"start": 2.0}, ValueError, "start must be"),
    ({"start": True}, TypeError, "start must be a number"),
    ({"tol": 0.0}, ValueError, "tol must be"),
    ({"tol": 1.0}, ValueError, "tol must be"),
    ({"tol": True}, TypeError, "tol must be a number"),
    ({"edges": grid(8, 7)}, ValueError, "at least 8 cells, got 8 edges"),
    ({"edges": EDGES[::-1]}, ValueError, "edges must increase"),
    ({"edges": EDGES + 1e-3 * EDGES**2}, ValueError, "edges must be uniform"),
    ({"edges": EDGES[None]}, ValueError, "edges must be one-dimensional"),
    ({"edges": np.append(EDGES, np.inf)}, ValueError, "edges must be finite"),
    ({"edges": grid(3, 100)}, ValueError, r"0\.0027 of it is outside \[-3, 3\]; at most 1e-06"),
    ({"equation": VE()}, ValueError, r"mass until t = 1, where 0\.87.*outside.*deviation 50"),
    ({"density0": TARGET}, ValueError, "0.4 at t = 0: at least 120 cells, got 100"),
    ({"equation": NARROW_LATER, "start": 0.1}, ValueError, "standard deviation, .* at t = 1"),
    ({"density0": GaussianMixture([1.0], [0.05], stds=0.0)}, ValueError, "no atoms"),
    ({"density0": GaussianMixture([1.0], [[0.0, 0.0]], stds=1.0)}, ValueError, "one-dimensional"),
    ({"density0": np.ones(99)}, ValueError, "each of the 100 cells, got 99"),
    ({"density0": np.ones((100, 1))}, ValueError, "density0 must be one-dimensional"),
    ({"density0": np.full(100, 0.01)}, ValueError, "mass 1 to 1e-06, got 0.16: .*probabilities"),
    ({"density0": np.full(100, np.nan)}, ValueError, "density0 must be finite"),
    ({"density0": np.r_[-one_cell(50, 4), 2 * one_cell(50, 4)]}, ValueError, "not be negative"),
    ({"density0": "mixture"}, TypeError, "density0 must hold numbers"),
    ({"scheme": "fv5"}, ValueError, "one of 'auto', 'exponential', 'fv4', 'sg'; got 'fv5'"),
    ({"scheme": "sg", "tol": 1e-9}, ValueError, r"tol must be .* in \[1e-08, 0.1\]"),
    ({"coordinates": "log"}, ValueError, "coordinates must be one of 'raw', 'scaled'"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input(change, error, message):
    arguments = {"equation": VP(), "density0": WIDE, "edges": EDGES, "times": [1.0]} | change
    with pytest.raises(error, match=message):
        solve_fokker_planck(**arguments)


def test_a_grid_of_the_needed_size_is_accepted():
    solve_fokker_planck(VP(), TARGET, grid(8, 120), [0.1])


def test_rates_that_blow_up_on_the_way_are_reported():
    class Gap(Process):
        def _alpha(self, t):
            return 1.0 + 0 * t

        def _sigma(self, t):
            return t

        def _rates(self, t):
            return 0.0 * t, math.nan if 0.3 < t < 0.6 else 2 * t

    with pytest.raises(NumericsError, match=r"at t = 0\.[345].* are \(0, nan\)"):
        solve_fokker_planck(Gap(), WIDE, EDGES, [1.0], scheme="fv4")
