"""The exponential of the operator of fourth order against dense ones, closed forms and steps in time."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm

import sdekit as sk
from sdekit.pde import SDE, solve_fokker_planck
from sdekit.pde.arguments import cell_averages
from sdekit.pde.contour import Exponential, exponential
from sdekit.pde.equations import equation_of
from sdekit.pde.finite_volumes import FourthOrder
from sdekit.processes import ALL, EDM, VE, VP, Heat, OrnsteinUhlenbeck, SubVP

TARGET = sk.data.two_mode()


def grid(half_width, cells):
    return np.linspace(-half_width, half_width, cells + 1)


def volumes_on(edges):
    return FourthOrder(equation_of(VP(), "raw"), edges)


def dense(volumes, rate):
    """The matrix, column by column from the product of fluxes."""
    columns = np.eye(len(volumes.faces) + 1)
    return np.stack([volumes.product(rate * volumes.faces, 1.0, c) for c in columns], axis=1)


def bump(edges, mean, std):
    x = (edges[:-1] + edges[1:]) / 2
    y = np.exp(-0.5 * ((x - mean) / std) ** 2)
    return y / (y.sum() * (edges[1] - edges[0]))


def l1(a, b, edges):
    return np.abs(a - b).sum(-1) * (edges[1] - edges[0])


def l1_errors(solution, process):
    """L1 errors against the exact law, in x."""
    errors = []
    for t, s, row in zip(solution.times, solution.scale, solution.density, strict=True):
        x = s * solution.edges
        truth = cell_averages(TARGET.at(process, float(t)), x)[0]
        errors.append(l1(row, truth, x))
    return np.array(errors)


# ---------------------------------------------------------------------------- the contour


@pytest.mark.parametrize("rate", [-2.0, -1.0, 0.0, 0.3])
@pytest.mark.parametrize("tau", [1e-5, 0.01, 0.3, 4.0])
def test_it_is_the_exponential(rate, tau):
    edges = grid(6, 120)
    volumes, y = volumes_on(edges), bump(edges, -0.7, 0.4)
    found = Exponential(rate, tau, 32).of(volumes, y)
    assert l1(found, expm(tau * dense(volumes, rate)) @ y, edges) <= 1e-12
    assert (edges[1] - edges[0]) * math.fsum(found) == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("rate", [-1.0, 0.0])
def test_the_error_falls_geometrically_with_the_nodes(rate):
    edges, nodes = grid(6, 120), np.arange(6, 27, 2)
    volumes, y = volumes_on(edges), bump(edges, -0.7, 0.4)
    truth = expm(0.5 * dense(volumes, rate)) @ y
    errors = [l1(Exponential(rate, 0.5, int(n)).of(volumes, y), truth, edges) for n in nodes]
    # Log-linear, of slope log 2.85 a node.
    slope = -np.polyfit(nodes, np.log(errors), 1)[0]
    assert math.exp(slope) == pytest.approx(2.85, rel=0.05)


@pytest.mark.parametrize("steepness", [-2.0, -1.0, 0.1, 1.0, 2.0])
@pytest.mark.parametrize("nodes", [12, 20])
def test_the_error_of_any_density_in_the_weighted_norm(steepness, nodes):
    """The norm of the whole operator, from hardly any time to the stationary law."""
    edges = grid(1, 40)
    h, x = edges[1] - edges[0], (edges[:-1] + edges[1:]) / 2
    rate, volumes, eye = steepness / h, volumes_on(edges), np.eye(40)
    weight = np.exp(-rate * x**2 / 4)
    matrix = dense(volumes, rate)
    for tau in h**2 * 10.0 ** np.arange(-2, 4):
        found = np.stack([Exponential(rate, tau, nodes).of(volumes, c) for c in eye], axis=1)
        error = weight[:, None] * (found - expm(tau * matrix)) / weight
        assert np.linalg.norm(error, 2) <= 6 * 2.85**-nodes


@given(
    mean=st.floats(-5.5, 5.5),
    std=st.floats(0.02, 1.5),
    rate=st.floats(-3, 1),
    tau=st.floats(-4, 1),
    digits=st.integers(6, 11),
)
@settings(derandomize=True, deadline=None, max_examples=40)
def test_as_many_nodes_as_the_tolerance_asks_for(mean, std, rate, tau, digits):
    """Bumps anywhere, down to a single cell, and drifts up to |a| h / D = 1.8."""
    edges, tau = grid(6, 120), 10.0**tau
    volumes, y = volumes_on(edges), bump(edges, 0.1 * round(mean / 0.1) + 0.05, std)
    scale = math.exp(rate * tau)
    noise = math.sqrt(math.expm1(2 * rate * tau) / rate if rate else 2 * tau)
    found = exponential(y, edges, scale, noise, 10.0**-digits)
    assert (found.rate, found.tau) == pytest.approx((rate, tau), rel=1e-6, abs=1e-9)
    assert found.nodes % 2 == 0
    if found.nodes:
        truth = expm(tau * dense(volumes, found.rate)) @ y
        assert l1(found.of(volumes, y), truth, edges) <= 10.0**-digits


def test_far_out_mass_takes_more_nodes():
    edges = grid(8, 200)
    nodes = [
        exponential(bump(edges, m, 0.3), edges, 0.9, math.sqrt(0.19), 1e-9).nodes for m in (0, 7)
    ]
    assert nodes[0] < nodes[1] <= 48
    tight = exponential(bump(edges, 7, 0.3), edges, 0.9, math.sqrt(0.19), 1e-11)
    assert nodes[1] < tight.nodes


def test_round_off_far_out_is_not_overlooked():
    # In units of the stationary standard deviation the grid reaches to 28. A noise of 1e-17 out there would
    # come back as an error of 0.1 and more.
    edges = grid(8, 800)
    y = bump(edges, 0, 0.25)
    assert (
        exponential(y, edges, math.exp(-0.36), math.sqrt(-math.expm1(-0.72) / 12), 1e-9).nodes == 0
    )


@pytest.mark.parametrize("steepness", [1.9, 2.1])
def test_drift_against_diffusion_decides(steepness):
    edges = grid(3, 40)
    rate, y = -steepness / (3 * 0.15), bump(edges, 0, 0.5)
    noise = math.sqrt(math.expm1(2 * rate * 0.1) / rate)
    found = exponential(y, edges, math.exp(0.1 * rate), noise, 1e-6)
    assert bool(found.nodes) == (steepness < 2)


# ---------------------------------------------------------------------------- the clock


def law(process, s, t, coordinates):
    found = equation_of(process, coordinates).transition(s, t)
    assert found is not None
    return found


@pytest.mark.parametrize(("s", "t"), [(0.0, 1e-9), (0.0, 1.0), (0.3, 0.3 + 1e-9), (0.2, 0.9)])
def test_the_clock_keeps_its_digits(s, t):
    """In closed form: half the increment of B, half of that of log(1 + sigma^2), the time itself."""
    edges = grid(8, 200)
    y = bump(edges, 0, 0.5)

    def clock(process, coordinates="raw"):
        scale, std = law(process, s, t, coordinates)
        return exponential(y, edges, scale, std, 1e-9)

    assert clock(VP()).tau == pytest.approx(VP().schedule.delta_B(s, t) / 2, rel=1e-12)
    r = 2 * math.log(5000)
    gain = 1e-4 * math.exp(r * s) * math.expm1(r * (t - s)) / (1 + 1e-4 * math.expm1(r * s))
    assert clock(VE(), "scaled").tau == pytest.approx(math.log1p(gain) / 2, rel=1e-7)
    assert clock(Heat()).tau == pytest.approx(t - s, rel=1e-12)
    assert clock(Heat()).rate == 0.0
    if t - s > 1e-3:
        assert clock(VP()).rate == pytest.approx(-1, rel=1e-12)
        assert clock(SubVP(), "scaled").rate == pytest.approx(-1, rel=1e-12)


def test_nothing_to_do():
    edges = grid(8, 200)
    solution = solve_fokker_planck(VP(), TARGET, edges, [0.0], scheme="exponential")
    np.testing.assert_array_equal(solution.density[0], cell_averages(TARGET, edges)[0])
    late = solve_fokker_planck(VP(), TARGET, edges, [0.4, 0.7], start=0.4)
    np.testing.assert_array_equal(late.density[0], cell_averages(TARGET, edges)[0])
    assert late.steps == 0


@pytest.mark.parametrize("gap", [1e-15, 1e-13, 1e-9])
def test_a_very_short_time(gap):
    edges = grid(8, 400)
    for coordinates in ("raw", "scaled"):
        solution = solve_fokker_planck(
            VE(), TARGET, edges, [0.1 + gap], start=0.1, coordinates=coordinates
        )
        assert solution.scheme == "exponential"
        start = cell_averages(TARGET, solution.scale[0] * edges)[0]
        # D / std^2 times the time; the digits of the scale.
        assert l1(solution.density[0], start, solution.scale[0] * edges) <= 0.1 * gap + 1e-13


def test_a_very_long_time():
    process, edges = OrnsteinUhlenbeck(theta=1.0, D=math.sqrt(2), horizon=1e6), grid(8, 400)
    solution = solve_fokker_planck(process, TARGET, edges, [50.0, 340.0, 1e6])
    assert solution.scheme == "exponential"
    normal = cell_averages(sk.GaussianMixture(None, [0.0], stds=1.0), edges)[0]
    # The discrete stationary law, and a round-off of 1e-16 tau / h^2.
    assert (l1(solution.density, normal, edges) <= [1e-6, 1e-6, 1e-6 + 1e-16 * 1e6 / 1.6e-3]).all()
    assert np.abs(solution.mass - 1).max() <= 1e-11


# ---------------------------------------------------------------------------- the solver


def joints(process):
    return equation_of(process, "raw").jumps()


@pytest.mark.parametrize("process", [p for p in ALL if joints(p)], ids=repr)
def test_a_chain_agrees_with_steps_of_a_smooth_process(process):
    """At times of the same log-SNR: steps keep off every joint by 1e-12 of time, which adds up."""
    edges, times = grid(8, 120), [0.1, 0.5]
    smooth = [float(VP().time_at_log_snr(process.log_snr(t))) for t in times]
    one = solve_fokker_planck(process, TARGET, edges, times, scheme="exponential", tol=1e-12)
    other = solve_fokker_planck(VP(), TARGET, edges, smooth, scheme="fv4", tol=1e-13)
    assert (l1(one.density, other.density, edges) <= 1e-11).all()


@pytest.mark.parametrize("process", [p for p in ALL if not joints(p)], ids=repr)
def test_it_agrees_with_steps_in_units_of_the_scale(process):
    edges, times = grid(8, 120), np.array([0.1, 0.5, 1.0]) * process.t_max
    common = (process, TARGET.at(process, 0.0), edges, times)
    one = solve_fokker_planck(*common, coordinates="scaled", scheme="exponential", tol=1e-12)
    other = solve_fokker_planck(*common, coordinates="scaled", scheme="fv4", tol=1e-13)
    assert (one.scale * l1(one.density, other.density, edges) <= 1e-11).all()
    assert (one.steps, one.scheme, one.reason) == (0, "exponential", "")


@pytest.mark.parametrize(
    ("process", "half_width"),
    [
        (VP(), 8),
        (Heat(), 12),
        (VE(sigma_min=0.01, sigma_max=1.5), 12),
        (EDM(sigma_max=1.5), 12),
        (OrnsteinUhlenbeck(theta=0.7, D=1.2, horizon=2.0), 8),
    ],
    ids=repr,
)
def test_it_agrees_with_steps_in_x(process, half_width):
    """Steps read f and g, the exponential alpha and sigma."""
    edges, times = grid(half_width, 240), np.array([0.1, 0.5, 1.0]) * process.horizon
    one = solve_fokker_planck(process, TARGET, edges, times, tol=1e-12)
    other = solve_fokker_planck(process, TARGET, edges, times, scheme="fv4", tol=1e-12)
    assert one.scheme == "exponential"
    assert (l1(one.density, other.density, edges) <= 1e-11).all()


def test_sub_vp_in_x_between_late_times():
    # Its drift and diffusion are not in proportion; the kernel between two times is that of some that are.
    process, edges = SubVP(), grid(8, 800)
    solution = solve_fokker_planck(
        process, TARGET.at(process, 0.4), edges, [0.7, 1.0], start=0.4, scheme="exponential"
    )
    assert (l1_errors(solution, process) <= 5e-7).all()


@pytest.mark.parametrize(
    ("process", "half_width", "coordinates"),
    [(VP(), 8, "raw"), (Heat(), 12, "raw"), (VE(), 8, "scaled"), (SubVP(), 8, "scaled")],
    ids=repr,
)
def test_error_mass_and_minimum(process, half_width, coordinates):
    solution = solve_fokker_planck(
        process, TARGET, grid(half_width, 800), [0.1, 0.5, 1.0], coordinates=coordinates
    )
    assert solution.scheme == "exponential"
    assert (l1_errors(solution, process) <= 5e-7).all()
    assert np.abs(solution.mass - 1).max() <= 1e-14
    assert (solution.minimum >= -1e-12 * solution.density.max(axis=1)).all()


@pytest.mark.parametrize(
    ("process", "half_width", "coordinates"),
    [(VP(), 8, "raw"), (Heat(), 12, "raw"), (VE(), 8, "scaled"), (EDM(), 8, "scaled")],
    ids=repr,
)
def test_order_in_space(process, half_width, coordinates):
    cells, times = (100, 200, 400), np.array([0.1, 0.5, 1.0]) * process.horizon
    errors = []
    for n in cells:
        edges = grid(half_width, n)
        start = cell_averages(TARGET, edges)[0]
        solution = solve_fokker_planck(
            process, start, edges, times, coordinates=coordinates, tol=1e-11, scheme="exponential"
        )
        errors.append(l1_errors(solution, process))
    slopes = -np.polyfit(np.log(cells), np.log(errors), 1)[0]
    assert (slopes >= 3.8).all()
    assert (slopes <= 4.1).all()


def test_semigroup():
    edges = grid(8, 400)
    whole = solve_fokker_planck(VP(), TARGET, edges, [0.2, 0.6])
    half = solve_fokker_planck(VP(), whole.density[0], edges, [0.6], start=0.2)
    assert half.scheme == "exponential"
    assert l1(half.density[0], whole.density[1], edges) <= 1e-11


def test_each_output_is_of_the_start_alone():
    edges, times = grid(8, 200), np.linspace(0.1, 1, 7)
    together = solve_fokker_planck(VP(), TARGET, edges, times).density
    for t, row in zip(times, together, strict=True):
        alone = solve_fokker_planck(VP(), TARGET, edges, [t]).density[0]
        np.testing.assert_array_equal(row, alone)


def test_jumps_of_the_rates_are_in_the_clock():
    chain = VP.from_betas([0.02, 0.3, 0.05, 0.4, 0.1])
    edges, times = grid(8, 800), [0.1, 0.2, 0.2 + 1e-13, 0.5, 0.8, 1.0]
    solution = solve_fokker_planck(chain, TARGET, edges, times)
    assert solution.scheme == "exponential"
    assert (l1_errors(solution, chain) <= 2e-7).all()


# ---------------------------------------------------------------------------- where it will not do


def one_cell(cells, half_width):
    start = np.zeros(cells)
    start[cells // 2] = cells / (2 * half_width)
    return start


def test_a_start_that_is_not_resolved_is_left_to_the_positive_scheme():
    edges, start = grid(8, 101), one_cell(101, 8)
    options = {"density0": start, "edges": edges, "times": [2e-4, 0.5]}
    own = solve_fokker_planck(Heat(), **options, scheme="exponential")
    assert own.minimum[0] < -1e-3
    assert own.minimum[1] > 0
    solution = solve_fokker_planck(Heat(), **options)
    assert solution.scheme == "sg"
    assert solution.reason.startswith("exponential left a mass of")
    assert (solution.minimum >= 0).all()
    later = solve_fokker_planck(Heat(), start, edges, [0.5])
    assert (later.scheme, later.reason) == ("exponential", "")


def test_auto_takes_steps_where_the_drift_is_too_steep_and_says_so():
    edges = grid(8, 400)
    solution = solve_fokker_planck(SubVP(), TARGET, edges, [0.1, 1.0])
    assert solution.scheme == "fv4"
    assert solution.reason.startswith("the drift until t = 0.1 is too steep for the exponential")
    assert solution.steps > 0
    assert repr(solution).endswith(f"fv4: {solution.reason})")
    assert (l1_errors(solution, SubVP()) <= 1e-5).all()


MODEL = TARGET.denoiser(VP())
STEEP = OrnsteinUhlenbeck(theta=3.0, D=0.3, horizon=1.0)
BAD = [
    (SubVP(), [0.1], r'the drift until t = 0\.1 .*"fv4".*coordinates="scaled"'),
    (STEEP, [0.5], "too steep for the exponential"),
    (SDE(lambda x, t: -x, 1.0), [0.5], r"SDE.* is not a process; .*\"fv4\""),
    (sk.ProbabilityFlow(MODEL), [0.5], "ProbabilityFlow of VP.* is not a process"),
]


@pytest.mark.parametrize(("equation", "times", "message"), BAD)
def test_bad_input(equation, times, message):
    with pytest.raises(ValueError, match=message):
        solve_fokker_planck(equation, TARGET, grid(8, 400), times, scheme="exponential")


def test_bad_tolerance():
    with pytest.raises(ValueError, match=r"tol must be .* in \[1e-13, 0.1\]"):
        solve_fokker_planck(VP(), TARGET, grid(8, 200), [0.5], scheme="exponential", tol=1e-14)
