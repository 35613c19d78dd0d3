import itertools
import math

import numpy as np
import pytest
import torch
from helpers import bad_input
from scipy.sparse import lil_matrix
from scipy.sparse.linalg import expm_multiply

import sdekit as sk
from sdekit.pde import SDE, solve_fokker_planck, solve_fokker_planck_2d
from sdekit.pde.equations import equation_of
from sdekit.pde.plane import _at_faces, face_terms
from sdekit.pde.plane_arguments import plane_averages
from sdekit.pde.scharfetter_gummel import generator
from sdekit.pde.splitting import step, tr_bdf2

TILTED = sk.GaussianMixture(
    [0.4, 0.6],
    [[-1.1, -0.6], [0.9, 0.5]],
    covariances=[[[0.45, 0.2], [0.2, 0.5]], [[0.5, -0.15], [-0.15, 0.35]]],
)
STRAIGHT = sk.GaussianMixture([0.4, 0.6], [[-1.1, -0.6], [0.9, 0.5]], stds=[[0.6, 0.7], [0.7, 0.5]])


def grid(half_width, first, second=None):
    cells = (first, first if second is None else second)
    return tuple(np.linspace(-half_width, half_width, n + 1) for n in cells)


def averages(law, edges):
    """Cell averages by 6 x 6 Gauss-Legendre nodes a cell."""
    nodes, weights = np.polynomial.legendre.leggauss(6)
    total = 0.0
    for a, u in zip(nodes, weights, strict=True):
        for b, v in zip(nodes, weights, strict=True):
            x, y = (
                (e[1:] + e[:-1]) / 2 + c * np.diff(e) / 2
                for e, c in zip(edges, (a, b), strict=True)
            )
            points = np.stack(np.meshgrid(x, y, indexing="ij"), -1).reshape(-1, 2)
            values = law.log_prob(torch.from_numpy(points)).exp().numpy()
            total = total + u * v / 4 * values.reshape(len(x), len(y))
    return total


def l1(a, b, edges):
    return np.abs(a - b).sum((-2, -1)) * np.diff(edges[0])[0] * np.diff(edges[1])[0]


def slope(cells, errors):
    return -np.polyfit(np.log(cells), np.log(errors), 1)[0]


def gaussian(mean, covariance):
    return sk.GaussianMixture(None, [list(mean)], covariances=np.array([covariance]))


# ---------------------------------------------------------------------------- truth at any time


@pytest.mark.parametrize(
    ("process", "half_width", "times"),
    [
        (sk.VP(), 6, (0.1, 0.4, 1.0)),
        # The fluxes are upwind until D is a few |a| h: the error at t = 0.1 is that of a first order.
        (sk.SubVP(), 6, (0.6, 1.0)),
        (sk.Heat(), 7, (0.05, 0.3)),
        (sk.OrnsteinUhlenbeck(horizon=1.0), 7, (0.1, 1.0)),
    ],
    ids=repr,
)
def test_a_mixture_with_full_covariances_to_second_order(process, half_width, times):
    cells, errors = np.array([12, 16, 21]) * half_width, []
    for n in cells:
        edges = grid(half_width, n)
        solution = solve_fokker_planck_2d(process, TILTED, edges, times, tol=1e-5)
        truth = np.stack([averages(TILTED.at(process, t), edges) for t in times])
        errors.append(l1(solution.density, truth, edges))
        assert solution.density.shape == (len(times), n, n)
        assert np.abs(solution.mass - 1).max() <= 1e-8  # the quadrature of density0
        assert solution.mass == pytest.approx(solution.mass[0], abs=1e-12)
        assert (solution.minimum >= 0).all()
        assert (np.diff(solution.time_error) > 0).all()
    assert errors[-1].max() <= 3e-3
    slopes = slope(cells, np.array(errors))
    assert ((slopes > 1.9) & (slopes < 2.1)).all()


def reverse(n, tol, t_end=0.05):
    process, edges = sk.VP(), grid(6, n)
    solution = solve_fokker_planck_2d(
        sk.ReverseSDE(TILTED.denoiser(process)),
        TILTED.at(process, 1.0),
        edges,
        [0.3, t_end],
        tol=tol,
    )
    return solution, averages(TILTED.at(process, t_end), edges)


def test_the_reverse_sde_of_an_exact_score_returns_to_the_data_to_second_order():
    cells, errors = (70, 84, 102), []
    for n in cells:
        solution, truth = reverse(n, 1e-5)
        errors.append(l1(solution.density[-1], truth, solution.edges))
        assert solution.mass == pytest.approx(1, abs=1e-8)
        assert (solution.minimum >= -1e-12 * solution.density.max()).all()
    assert errors[-1] <= 3e-3
    assert 1.9 < slope(cells, errors) < 2.1


def test_starts_at_the_prior_and_at_the_law_approach_each_other():
    process, edges = sk.VP(beta_max=5.0), grid(6, 60)
    module, times = sk.ReverseSDE(TILTED.denoiser(process)), [0.9, 0.6, 0.3, 0.2]
    true, prior = (
        solve_fokker_planck_2d(module, law, edges, times)
        for law in (TILTED.at(process, 1.0), process.prior)
    )
    apart = l1(true.density, prior.density, edges)
    assert (np.diff(apart) < 0).all()
    start = l1(
        *(
            averages(law, edges)
            for law in (TILTED.at(process, 1.0), gaussian([0.0, 0.0], np.eye(2)))
        ),
        edges,
    )
    assert 0 < apart[-1] < apart[0] < start


def turning(theta=1.0, omega=2.0):
    """dx = (-theta + omega J) x dt + g dW: the two axes do not commute."""
    matrix = torch.tensor([[-theta, -omega], [omega, -theta]], dtype=torch.float64)
    return SDE(lambda x, t: x @ matrix.T, 1.2)


def test_a_turning_drift_against_its_gaussian_law():
    mean, covariance, t = np.array([1.0, 0.5]), np.array([[0.5, 0.2], [0.2, 0.3]]), 0.7
    c, s = math.cos(2 * t), math.sin(2 * t)
    turn = math.exp(-t) * np.array([[c, -s], [s, c]])
    added = 1.44 * -math.expm1(-2 * t) / 2 * np.eye(2)
    law = gaussian(turn @ mean, turn @ covariance @ turn.T + added)
    cells, errors = (64, 80, 104), []
    for n in cells:
        edges = grid(5, n)
        solution = solve_fokker_planck_2d(
            turning(), gaussian(mean, covariance), edges, [t], tol=1e-6
        )
        errors.append(l1(solution.density[0], averages(law, edges), edges))
    # The fluxes add a share (a h / D)^2 / 12 of diffusion: 0.9 % where |a| = 2.5.
    assert errors[-1] <= 5e-3
    assert 1.9 < slope(cells, errors) < 2.1


def test_a_coupled_double_well_settles_on_its_boltzmann_law():
    def potential(x, y):
        return (x * x - 1) ** 2 / 4 + (y - x) ** 2 / 2 + y**4 / 8

    def drift(x, t):
        a, b = x.T
        return torch.stack([-(a**3 - a) + (b - a), -(b - a) - b**3 / 2], 1)

    cells, errors = (50, 70, 100), []
    for n in cells:
        edges = grid(3.5, n)
        solution = solve_fokker_planck_2d(
            SDE(drift, lambda t: 1.0),
            gaussian([0.0, 0.0], 0.3 * np.eye(2)),
            edges,
            [40.0],
            tol=1e-4,
        )
        x, y = np.meshgrid(*solution.centers, indexing="ij")
        law = np.exp(-2 * potential(x, y))
        law /= law.sum() * np.diff(edges[0])[0] ** 2
        errors.append(l1(solution.density[0], law, edges))
    assert errors[-1] <= 1e-3
    assert slope(cells, errors) > 1.8


# ---------------------------------------------------------------------------- the discretisation


def bernoulli(w):
    return w / math.expm1(w) if w else 1.0


def assembled(drift, D, edges):
    """The two-dimensional Scharfetter-Gummel operator, entry by entry."""
    (x, y), h = ((e[1:] + e[:-1]) / 2 for e in edges), [np.diff(e)[0] for e in edges]
    M = lil_matrix((len(x) * len(y),) * 2)
    for i in range(len(x)):
        for j in range(len(y)):
            for axis, (k, m) in enumerate(((i + 1, j), (i, j + 1))):
                if k == len(x) or m == len(y):
                    continue
                face = np.array([(x[i] + x[k]) / 2, (y[j] + y[m]) / 2])
                w = drift(face)[axis] * h[axis] / D
                a, b = i * len(y) + j, k * len(y) + m
                out, back = (D / h[axis] ** 2 * bernoulli(v) for v in (-w, w))
                M[a, a] -= out
                M[b, a] += out
                M[b, b] -= back
                M[a, b] += back
    return M.tocsr()


def test_against_the_exponential_of_the_assembled_operator():
    edges = grid(5, 30, 36)
    start = averages(gaussian([0.8, -0.4], [[0.5, 0.1], [0.1, 0.4]]), edges)
    M = assembled(lambda p: np.array([-p[0] - 2 * p[1], 2 * p[0] - p[1]]), 0.72, edges)
    exact = expm_multiply(0.7 * M, start.ravel()).reshape(start.shape)
    for tol in (1e-4, 1e-6):
        solution = solve_fokker_planck_2d(turning(), start, edges, [0.7], tol=tol)
        error = l1(solution.density[0], exact, edges)
        assert error <= 1.1 * solution.time_error[0]
        assert solution.time_error[0] <= tol * solution.steps / 2


def test_steps_are_of_second_order_also_where_terms_depend_on_time():
    process, edges = sk.VP(), grid(6, 40)
    equation = equation_of(sk.ReverseSDE(TILTED.denoiser(process)), dim=2)
    at_faces = face_terms(equation, edges)
    widths = tuple(np.diff(e)[0] for e in edges)
    start = averages(TILTED.at(process, 0.6), edges)

    def run(n):
        p, times = start, np.linspace(0.6, 0.2, n + 1)
        terms = [at_faces(-t) for t in times]  # a clock that increases
        for a, b in itertools.pairwise(terms):
            p = step(a, b, widths, 0.4 / n, p)
        return p

    counts, fine = (12, 18, 27), run(216)
    errors = [l1(run(n), fine, edges) for n in counts]
    assert 1.9 < slope(counts, errors) < 2.1


def test_tolerance_controls_the_error_in_time():
    runs = [reverse(70, tol)[0] for tol in (1e-6, 1e-4, 1e-3, 1e-2)]
    errors = [l1(run.density[-1], runs[0].density[-1], runs[0].edges) for run in runs[1:]]
    assert errors[0] < errors[1] < errors[2]
    assert runs[0].steps > runs[1].steps > runs[2].steps > runs[3].steps
    assert all(e <= run.time_error[-1] for e, run in zip(errors, runs[1:], strict=True))


def test_lines_that_share_their_bands_are_solved_as_lines_of_their_own():
    rng = np.random.default_rng(0)
    drift, p = rng.normal(size=(1, 11)), rng.random((5, 12))
    shared, own = generator(drift, 0.3, 0.1), generator(np.repeat(drift, 5, 0), 0.3, 0.1)
    np.testing.assert_allclose(shared.solve(0.2, p), own.solve(0.2, p), rtol=0, atol=1e-15)
    x = own.solve(0.2, p)
    np.testing.assert_allclose(x - 0.2 * own.product(x), p, rtol=0, atol=1e-13)
    np.testing.assert_allclose(tr_bdf2(shared, 0.2, p), tr_bdf2(own, 0.2, p), rtol=0, atol=1e-15)


def test_a_stiff_mode_dies_in_one_step():
    M = generator(np.zeros((1, 15)), 1e8, 0.1)
    p = np.zeros((1, 16))
    p[0, 3] = 16.0
    np.testing.assert_allclose(tr_bdf2(M, 1.0, p), 1.0, atol=1e-4)


def test_cubics_are_carried_to_the_faces_exactly():
    x = np.linspace(-1, 1, 12)
    faces = (x[1:] + x[:-1]) / 2
    cubic = np.polynomial.Polynomial([0.3, -1.0, 0.5, 2.0])
    np.testing.assert_allclose(_at_faces(cubic(x)[None])[0, 1:-1], cubic(faces)[1:-1], atol=1e-14)
    np.testing.assert_allclose(_at_faces(x[None])[0], faces, atol=1e-15)


@pytest.mark.parametrize(("law", "relative"), [(STRAIGHT, 1e-13), (TILTED, 1e-8)])
def test_averages_of_a_mixture(law, relative):
    edges = grid(6, 72, 80)
    found, _ = plane_averages(law, edges)
    np.testing.assert_allclose(found, averages(law, edges), rtol=0, atol=relative * found.max())


# ---------------------------------------------------------------------------- laws of the equation


def test_a_product_stays_the_product_of_its_marginals_and_they_solve_the_line():
    x, y = (
        sk.GaussianMixture([0.3, 0.7], [-1.4, 0.6], stds=0.6),
        sk.GaussianMixture(None, [0.5], stds=0.8),
    )
    weights, means = [0.3, 0.7], [[-1.4, 0.5], [0.6, 0.5]]
    product = sk.GaussianMixture(weights, means, stds=[[0.6, 0.8], [0.6, 0.8]])
    edges, times = grid(6, 120, 100), [0.1, 0.5]
    solution = solve_fokker_planck_2d(sk.VP(), product, edges, times)
    for i in range(2):
        outer = np.outer(solution.marginal(0)[i], solution.marginal(1)[i]) / solution.mass[i]
        np.testing.assert_allclose(solution.density[i], outer, rtol=0, atol=1e-14)
    for axis, law in enumerate((x, y)):
        line = solve_fokker_planck(sk.VP(), law, edges[axis], times).density
        h = np.diff(edges[axis])[0]
        # Scharfetter-Gummel on h = 0.1 and 0.12 against fourth order.
        assert (np.abs(solution.marginal(axis) - line).sum(1) * h <= 0.15 * h**2).all()


def test_turned_and_exchanged_problems_have_turned_and_exchanged_solutions():
    edges, times = grid(6, 72), [0.5, 0.2]
    process = sk.VP(beta_max=5.0)

    def solve(matrix):
        law = sk.GaussianMixture(
            TILTED.weights,
            TILTED.means @ matrix.T,
            covariances=matrix @ TILTED.covariances @ matrix.T,
        )
        module = sk.ReverseSDE(law.denoiser(process))
        return solve_fokker_planck_2d(module, law.at(process, 1.0), edges, times)

    one = torch.eye(2, dtype=torch.float64)
    plain, opposite, exchanged, turned = (
        solve(m) for m in (one, -one, one.flip(0), torch.tensor([[0.0, -1.0], [1.0, 0.0]]).double())
    )
    np.testing.assert_allclose(opposite.density, plain.density[:, ::-1, ::-1], rtol=0, atol=1e-12)
    # The axes take turns in another order: equal up to the error of the steps.
    for density in (
        exchanged.density.transpose(0, 2, 1),
        turned.density[:, ::-1].transpose(0, 2, 1),
    ):
        apart = l1(density, plain.density, edges)
        assert (apart <= 2 * plain.time_error).all()
        assert (apart > 0).all()


def test_heat_maximum_principle():
    solution = solve_fokker_planck_2d(sk.Heat(), STRAIGHT, grid(9, 120), np.linspace(0.02, 1, 15))
    assert (np.diff(solution.density.max(axis=(1, 2))) < 0).all()
    assert (solution.minimum > 0).all()
    p = solution.density
    entropy = -(p * np.log(p)).sum(axis=(1, 2))
    assert (np.diff(entropy) > 0).all()


def test_the_stationary_law_stays():
    edges = grid(6, 60)
    x, y = np.meshgrid(*((e[1:] + e[:-1]) / 2 for e in edges), indexing="ij")
    normal = np.exp(-(x**2 + y**2) / 2) / (2 * math.pi)
    solution = solve_fokker_planck_2d(sk.VP(), normal, edges, [0.5, 1.0])
    assert (l1(solution.density, normal, edges) <= 1e-12).all()


def test_two_solutions_approach_each_other():
    edges, times = grid(6, 84), np.linspace(0.05, 1, 12)
    a, b = (
        solve_fokker_planck_2d(sk.VP(), law, edges, times).density
        for law in (TILTED, gaussian([0.7, -0.8], [[0.4, 0.0], [0.0, 0.5]]))
    )
    assert (np.diff(l1(a, b, edges)) < 0).all()


def test_semigroup():
    edges = grid(6, 84)
    whole = solve_fokker_planck_2d(sk.VP(), TILTED, edges, [0.2, 0.6])
    half = solve_fokker_planck_2d(sk.VP(), whole.density[0], edges, [0.6], start=0.2)
    apart = l1(half.density[0], whole.density[1], edges)
    assert apart <= whole.time_error[1] - whole.time_error[0] + half.time_error[0]


@pytest.mark.parametrize("equation", [sk.Heat(), SDE(lambda x, t: -40 * x.sign(), 1.0)])
def test_one_full_cell_spreads_without_falling_below_zero(equation):
    edges = grid(6, 60)
    start = np.zeros((60, 60))
    start[20, 33] = 25.0
    solution = solve_fokker_planck_2d(equation, start, edges, [0.01, 0.3])
    assert (solution.minimum >= -1e-12 * solution.density.max(axis=(1, 2))).all()
    assert np.abs(solution.mass - 1).max() <= 1e-12


def test_rates_that_jump():
    # On a grid, too, the density of a VP process depends on alpha alone: the same way at another pace.
    chain, smooth, edges = sk.VP.from_betas([0.02, 0.3, 0.05, 0.4, 0.1]), sk.VP(), grid(6, 84)
    kept = np.cumprod([0.98, 0.7, 0.95, 0.6, 0.9])
    times = [smooth.time_at_log_snr(math.log(a / (1 - a))) for a in (kept[1] * 0.95**0.5, kept[4])]
    one = solve_fokker_planck_2d(chain, TILTED, edges, [0.5, 1.0])
    other = solve_fokker_planck_2d(smooth, TILTED, edges, times)
    apart = l1(one.density, other.density, edges)
    assert (apart <= one.time_error + other.time_error).all()
    assert (apart <= 1e-4).all()


@pytest.mark.parametrize("t", [0.05, 0.123])
def test_steps_across_many_small_jumps_are_as_good_as_without(t):
    # The chain of a smooth process; midway in a cell, too, its alpha is known.
    chain, smooth, edges = sk.VP.from_betas(sk.VP().to_betas(100)), sk.VP(), grid(6, 84)
    one = solve_fokker_planck_2d(chain, TILTED, edges, [t])
    pace = smooth.time_at_log_snr(chain.log_snr(t))
    other = solve_fokker_planck_2d(smooth, TILTED, edges, [pace])
    assert l1(one.density, other.density, edges)[0] <= one.time_error[0] + other.time_error[0]
    assert one.steps <= other.steps


def test_a_chain_goes_back_across_its_jumps():
    chain, smooth, edges = sk.VP.from_betas(sk.VP().to_betas(50)), sk.VP(), grid(6, 64)

    def back(process, start, t):
        module = sk.ReverseSDE(TILTED.denoiser(process))
        law = TILTED.at(process, start)
        return solve_fokker_planck_2d(module, law, edges, [t], start=start)

    start, t = (smooth.time_at_log_snr(chain.log_snr(u)) for u in (0.613, 0.207))
    one, other = back(chain, 0.613, 0.207), back(smooth, start, t)
    assert l1(one.density, other.density, edges)[0] <= one.time_error[0] + other.time_error[0]


# ---------------------------------------------------------------------------- models and inputs


class LinearScore(torch.nn.Module):
    """The noise of data N(0, 0.5 I) under VP, as a network that wants a condition and has a dropout."""

    def __init__(self):
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(()))
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x, t, scale):
        alpha, sigma = sk.VP().alpha(t), sk.VP().sigma(t)
        gain = scale * self.one * sigma / (0.5 * alpha**2 + sigma**2)
        return self.dropout(x * gain.view(-1, *[1] * (x.ndim - 1)))


@pytest.mark.parametrize("event", [None, (2,), (1, 2)])
def test_a_network_is_read_in_evaluation_mode_with_its_conditions(event):
    process, data = sk.VP(), gaussian([0.0, 0.0], 0.5 * np.eye(2))
    model = sk.NetworkDenoiser(LinearScore(), process, "noise")
    model.train()
    model.network.eval()  # no warning: the dropout itself is at rest
    edges = grid(6, 64)
    start = data.at(process, 0.6)
    found = solve_fokker_planck_2d(
        sk.ReverseSDE(model, event=event, scale=1.0), start, edges, [0.2], start=0.6
    )
    exact = solve_fokker_planck_2d(
        sk.ReverseSDE(data.denoiser(process)), start, edges, [0.2], start=0.6
    )
    assert l1(found.density, exact.density, edges)[0] <= 1e-5  # single precision
    assert model.training


def test_inputs_of_any_kind_give_the_same_solution():
    edges = grid(6, 84)
    reference = solve_fokker_planck_2d(sk.VP(), TILTED, edges, [0.0, 0.3])
    np.testing.assert_array_equal(reference.density[0], plane_averages(TILTED, edges)[0])
    assert reference.time_error[0] == 0
    for density0 in (reference.density[0], torch.from_numpy(reference.density[0])):
        tensors = [torch.from_numpy(e) for e in edges]
        again = solve_fokker_planck_2d(
            sk.VP(), density0, tensors, torch.tensor([0.0, 0.3], dtype=torch.float64)
        )
        np.testing.assert_array_equal(again.density, reference.density)
    prior = solve_fokker_planck_2d(sk.Heat(), sk.VP().prior, grid(8, 60), [0.1])
    exact = averages(gaussian([0.0, 0.0], 1.2 * np.eye(2)), grid(8, 60))
    assert l1(prior.density[0], exact, grid(8, 60)) <= 2e-3


def test_the_solution_describes_itself():
    edges = grid(6, 84, 100)
    solution = solve_fokker_planck_2d(sk.VP(), TILTED, edges, [0.2, 0.3])
    assert repr(solution) == f"PlaneSolution(2 times, 84 x 100 cells, {solution.steps} steps)"
    assert [c.shape for c in solution.centers] == [(84,), (100,)]
    np.testing.assert_allclose(solution.centers[1], (np.arange(100) + 0.5) * 0.12 - 6, atol=1e-13)
    assert solution.marginal(0).shape == (2, 84)
    assert solution.marginal(1).shape == (2, 100)
    for axis, edge in enumerate(edges):
        mass = solution.marginal(axis) @ np.diff(edge)
        np.testing.assert_allclose(mass, solution.mass, rtol=1e-13)
        mean = solution.marginal(axis) @ (solution.centers[axis] * np.diff(edge))
        expected = [float(TILTED.at(sk.VP(), t).mean[axis]) for t in (0.2, 0.3)]
        np.testing.assert_allclose(mean, expected, atol=1e-4)
    with pytest.raises(ValueError, match="axis must be 0 or 1, got 2"):
        solution.marginal(2)


EDGES, FLAT = grid(6, 84), np.full((84, 84), 1 / 144)
EXACT = sk.ReverseSDE(TILTED.denoiser(sk.VP()))
NARROW = sk.GaussianMixture(None, [[0.0, 0.0]], covariances=[[[0.5, 0.49], [0.49, 0.5]]])


def call(**change):
    arguments = {"equation": sk.VP(), "density0": TILTED, "edges": EDGES, "times": [0.1]}
    return lambda: solve_fokker_planck_2d(**(arguments | change))


def test_a_fine_grid_is_asked_for_in_chunks():
    """150 x 150 points are more than one chunk: the drifts are those of all points at once."""
    points, sizes = np.random.default_rng(0).normal(size=(22_500, 2)), []

    def drift(x, t):
        sizes.append(len(x))
        return x.flip(1) * t

    for given, expected in (
        (SDE(drift, 1.0), 0.3 * points[:, ::-1]),
        (EXACT, reverse_drift(points, 0.3)),
    ):
        found = equation_of(given, dim=2).terms(points, 0.3).drift
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert sum(sizes) == 22_500
    assert max(sizes) == 16_384


def reverse_drift(x, t):
    (f, g2), mixture = sk.VP().rates(t), TILTED
    return g2 * mixture.denoiser(sk.VP()).score(torch.from_numpy(x), t).numpy() - f * x


test_bad_input = bad_input(
    [
        ("equation", call(equation=3), TypeError, ["equation must be", "got int"]),
        ("model", call(equation=TILTED.denoiser(sk.VP())), TypeError, ["wrap it in sk.ReverseSDE"]),
        ("drift", lambda: SDE(3, 1.0), TypeError, ["drift must be callable", "3"]),
        ("diffusion", lambda: SDE(lambda x, t: x, -1.0), ValueError, ["diffusion", "-1"]),
        ("diffusion bool", lambda: SDE(lambda x, t: x, True), TypeError, ["diffusion"]),
        (
            "g(t)",
            call(equation=SDE(lambda x, t: -x, lambda t: -t - 1)),
            ValueError,
            ["diffusion(t)"],
        ),
        (
            "a flow",
            call(equation=sk.ProbabilityFlow(TILTED.denoiser(sk.VP()))),
            TypeError,
            ["on the line, a ProbabilityFlow, got ProbabilityFlow"],
        ),
        (
            "drift shape",
            call(equation=SDE(lambda x, t: x[:, :1], 1.0)),
            ValueError,
            ["drift", "(7056, 2)", "(7056, 1)"],
        ),
        (
            "drift type",
            call(equation=SDE(lambda x, t: 0.0, 1.0)),
            ValueError,
            ["drift", "got float"],
        ),
        (
            "drift infinite on the way",
            call(equation=SDE(lambda x, t: -x / (t - 0.03), 1.0)),
            sk.NumericsError,
            ["step"],
        ),
        (
            "drift nan",
            call(equation=SDE(lambda x, t: x / 0, 1.0)),
            sk.NumericsError,
            ["infinite", "t = 0"],
        ),
        (
            "event",
            call(equation=sk.ReverseSDE(TILTED.denoiser(sk.VP()), event=(3,))),
            ValueError,
            ["event", "(3,)"],
        ),
        ("one vector", call(edges=EDGES[0]), ValueError, ["edges must be a pair", "ndarray"]),
        ("three", call(edges=(*EDGES, EDGES[0])), ValueError, ["edges must be a pair", "3"]),
        (
            "few cells",
            call(edges=(EDGES[0], EDGES[1][:5])),
            ValueError,
            ["edges[1] must bound at least 8 cells"],
        ),
        (
            "decreasing",
            call(edges=(EDGES[0][::-1], EDGES[1])),
            ValueError,
            ["edges[0] must increase"],
        ),
        ("strings", call(edges=(EDGES[0], ["a"] * 20)), TypeError, ["edges[1] must hold numbers"]),
        (
            "outside",
            call(edges=(EDGES[0], EDGES[1] / 3)),
            ValueError,
            ["edges[1] must hold the mass of density0"],
        ),
        (
            "outside later",
            call(equation=sk.Heat(horizon=9.0), times=[9.0]),
            ValueError,
            ["edges[0] must hold the mass until t = 9"],
        ),
        (
            "walls",
            call(equation=SDE(lambda x, t: 0 * x + 4, 1.0), times=[2.0]),
            ValueError,
            ["edges[0] must hold the mass until t = 2", "outermost"],
        ),
        (
            "coarse",
            call(density0=NARROW),
            ValueError,
            ["edges[0] must give 3 cells", "0.141", "at least 256 cells, got 84"],
        ),
        (
            "coarse later",
            call(equation=sk.OrnsteinUhlenbeck(theta=4.0, D=0.05, horizon=1.0), times=[1.0]),
            ValueError,
            ["3 cells", "t = 1"],
        ),
        (
            "coarse end",
            call(
                equation=sk.ReverseSDE(NARROW.denoiser(sk.VP())),
                density0=sk.VP().prior,
                times=[0.01],
            ),
            ValueError,
            ["3 cells", "t = 0.01"],
        ),
        (
            "atoms",
            call(density0=sk.GaussianMixture(None, [[0.0, 0.0]], stds=0.0)),
            ValueError,
            ["no atoms"],
        ),
        (
            "a line",
            call(
                density0=sk.GaussianMixture(
                    None, [[0.0, 0.0]], covariances=[[[1.0, 1.0], [1.0, 1.0]]]
                )
            ),
            ValueError,
            ["no atoms"],
        ),
        (
            "dimension",
            call(density0=sk.GaussianMixture(None, [0.0], stds=1.0)),
            ValueError,
            ["dimension 2", "d = 1"],
        ),
        ("shape", call(density0=FLAT[:, 1:]), ValueError, ["(84, 84), got (84, 83)"]),
        ("mass", call(density0=2 * FLAT), ValueError, ["mass 1", "got 2"]),
        (
            "negative",
            call(density0=np.where(np.eye(84), -FLAT, FLAT)),
            ValueError,
            ["density0 must not be negative"],
        ),
        ("nan", call(density0=FLAT * np.nan), ValueError, ["density0 must be finite"]),
        ("text", call(density0="mixture"), TypeError, ["density0 must hold numbers"]),
        ("no times", call(times=[]), ValueError, ["at least one time"]),
        (
            "twice",
            call(times=[0.1, 0.1]),
            ValueError,
            ["times must increase, got 0.1 and then 0.1"],
        ),
        ("up", call(equation=EXACT, times=[0.1, 0.2]), ValueError, ["times must decrease"]),
        ("beyond", call(times=[1.1]), ValueError, ["times must lie in [0, 1]", "got [1.1, 1.1]"]),
        ("zero", call(equation=EXACT, times=[0.0]), ValueError, ["times must lie in [1e-05, 1]"]),
        (
            "singular",
            call(equation=sk.Interpolant(), times=[1.0]),
            ValueError,
            ["times must avoid t = 1"],
        ),
        ("start", call(start=2.0), ValueError, ["start must be"]),
        ("start bool", call(start=True), TypeError, ["start must be a number"]),
        ("tol", call(tol=0.0), ValueError, ["tol must be"]),
        ("tol bool", call(tol=True), TypeError, ["tol must be a number"]),
    ]
)
