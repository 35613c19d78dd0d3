import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from helpers import bad_input
from scipy.linalg import expm
from torch import nn

import sdekit as sk
from sdekit.data.mixtures import GaussianMixture
from sdekit.data.targets import two_mode
from sdekit.denoisers import Denoiser
from sdekit.pde import SDE, solve_fokker_planck
from sdekit.pde.arguments import cell_averages
from sdekit.processes import EDM, VE, VP, Heat, Interpolant, OrnsteinUhlenbeck, SubVP

TARGET = two_mode()
#: The same two modes before standardising would be done: mean 0.8, variance 3.36.
WIDE = GaussianMixture([0.3, 0.7], [-2.0, 2.0], stds=0.4)


def grid(half_width, cells):
    return np.linspace(-half_width, half_width, cells + 1)


def l1(a, b, edges):
    return np.abs(a - b).sum(-1) * (edges[1] - edges[0])


def averages(law, edges):
    return cell_averages(law, edges)[0]


def kl(p, q, edges):
    """KL(p || q) of averages, over cells where there is something to tell."""
    seen = (p > 1e-12) & (q > 1e-12)
    return (p[seen] * np.log(p[seen] / q[seen])).sum() * (edges[1] - edges[0])


# ---------------------------------------------------------------------------- an SDE of two functions


@pytest.mark.parametrize("process", [VP(), SubVP(), Heat()], ids=repr)
def test_a_process_written_as_two_functions(process):
    sde = SDE(lambda x, t: process.rates(t)[0] * x, lambda t: math.sqrt(process.rates(t)[1]))
    edges = grid(12, 400)
    for scheme, tol in (("fv4", 1e-8), ("sg", 1e-4)):
        keywords = {"scheme": scheme, "tol": tol}
        a, b = (
            solve_fokker_planck(e, TARGET, edges, [0.1, 1.0], **keywords) for e in (process, sde)
        )
        np.testing.assert_allclose(a.density, b.density, rtol=0, atol=1e-10)
        assert a.steps == b.steps


def test_forced_gaussian_with_a_drift_and_a_diffusion_that_move():
    # m' = -m + 2 cos 3t and v' = -2 v + g^2 with g^2 = 1 + sin(5t)/2: both in closed form.
    sde = SDE(lambda x, t: 2 * math.cos(3 * t) - x, lambda t: math.sqrt(1 + math.sin(5 * t) / 2))
    m0, v0, start = 0.5, 0.36, 0.3

    def mean(t):
        return 2 * (math.cos(3 * t) + 3 * math.sin(3 * t)) / 10

    def variance(t):
        return 0.5 + 0.5 * (2 * math.sin(5 * t) - 5 * math.cos(5 * t)) / 29

    times, errors = [0.5, 1.0, 2.0], []
    for edges in (grid(8, 320), grid(8, 640)):
        law = GaussianMixture(None, [m0], stds=0.6)
        solution = solve_fokker_planck(sde, law, edges, times, start=start, tol=1e-10)
        fades = [math.exp(start - t) for t in times]
        means = [mean(t) + f * (m0 - mean(start)) for t, f in zip(times, fades, strict=True)]
        noise = [
            variance(t) + f**2 * (v0 - variance(start)) for t, f in zip(times, fades, strict=True)
        ]
        laws = [GaussianMixture(None, [m], stds=v**0.5) for m, v in zip(means, noise, strict=True)]
        truth = np.stack([averages(law, edges) for law in laws])
        errors.append(l1(solution.density, truth, edges))
        assert np.abs(solution.mass - 1).max() <= 1e-12
    assert (errors[1] <= 3e-7).all()
    orders = np.log2(errors[0] / errors[1])
    assert (orders >= 3.8).all()
    assert (orders <= 4.1).all()


def well(x, t):
    return x - x**3


@pytest.mark.parametrize("g", [1.0, 0.7])
def test_a_double_well_comes_to_rest(g):
    errors = []
    for cells in (100, 200):
        edges = grid(4, cells)
        start = GaussianMixture(None, [-1.0], stds=0.4)
        solution = solve_fokker_planck(SDE(well, g), start, edges, [1.0, 80.0], tol=1e-9)
        fine = edges[0] + (np.arange(64 * cells) + 0.5) * (edges[1] - edges[0]) / 64
        rest = np.exp(2 * (fine**2 / 2 - fine**4 / 4) / g**2)
        rest = (rest / rest.sum()).reshape(cells, 64).sum(1) / (edges[1] - edges[0])
        errors.append(l1(solution.density[1], rest, edges))
        assert l1(solution.density[0], rest, edges) > 0.1
        assert np.abs(solution.mass - 1).max() <= 1e-12
    assert errors[1] <= 3e-5
    assert 3.7 <= math.log2(errors[0] / errors[1]) <= 4.3


def spectral(drift, spread, t, start, edges, n):
    """Cell averages by a Fourier collocation in space and an exponential of the matrix in time."""
    a, length = edges[0], edges[-1] - edges[0]
    x, k = a + length * np.arange(n) / n, 2j * np.pi * np.fft.fftfreq(n, 1 / n) / length
    k[n // 2] = 0
    D1 = np.real(np.fft.ifft(k[:, None] * np.fft.fft(np.eye(n), axis=0), axis=0))
    p = expm(t * (spread * D1 @ D1 - D1 * drift(x))) @ start(x)
    c = np.fft.fft(p) / n
    waves = np.divide(c, k, out=np.zeros_like(c), where=k != 0)
    integral = np.real(np.exp(np.outer(edges - a, k)) @ waves + c[0] * (edges - a))
    return np.diff(integral) / np.diff(edges)


def test_a_double_well_on_its_way_against_a_spectral_method():
    def density(x):
        return np.exp(-0.5 * ((x + 1) / 0.4) ** 2) / (0.4 * math.sqrt(2 * math.pi))

    law, errors = GaussianMixture(None, [-1.0], stds=0.4), []
    for edges in (grid(4, 200), grid(4, 400)):
        solution = solve_fokker_planck(SDE(well, 1.0), law, edges, [0.7], tol=1e-10)
        truth, again = (
            spectral(lambda x: x - x**3, 0.5, 0.7, density, edges, n) for n in (256, 128)
        )
        assert l1(truth, again, edges) <= 1e-10
        errors.append(l1(solution.density[0], truth, edges))
    assert errors[1] <= 4e-7
    assert 3.8 <= math.log2(errors[0] / errors[1]) <= 4.1


def test_two_solutions_approach_each_other_under_any_drift():
    edges, times = grid(4, 400), np.linspace(0.02, 2, 12)
    starts = GaussianMixture(None, [-1.0], stds=0.4), GaussianMixture(None, [0.5], stds=0.5)
    sde = SDE(lambda x, t: well(x, t) + math.sin(4 * t), lambda t: 1 + 0.3 * math.cos(t))
    for scheme in ("fv4", "sg"):
        a, b = (solve_fokker_planck(sde, p, edges, times, scheme=scheme).density for p in starts)
        assert (np.diff(l1(a, b, edges)) <= 1e-12).all()
        # Where both have digits: central fluxes leave 1e-14 of either sign far out.
        divergence = [kl(p, q, edges) for p, q in zip(a, b, strict=True)]
        assert (np.diff(divergence) < 0).all()


def test_names_and_walls():
    assert repr(SDE(well, 1.0)) == "SDE(well, 1.0)"
    assert repr(SDE(well, math.sqrt)) == "SDE(well, sqrt)"
    # Nothing holds this density: it drifts to the end of the grid and stays there.
    with pytest.raises(ValueError, match=r"edges must hold the mass until t = 9, where 0.6 of it"):
        solve_fokker_planck(
            SDE(lambda x, t: torch.ones_like(x), 0.5), TARGET, grid(6, 200), [1.0, 9.0]
        )


# ---------------------------------------------------------------------------- the reverse SDE and the flow


def test_the_exact_score_brings_the_prior_to_the_data():
    # KL(N(0, 1), p_T) is 4e-15 here, so all the error is the solver's.
    model, times = TARGET.denoiser(VP()), [0.5, 0.1, 1e-3]
    errors = []
    for cells in (400, 800):
        edges = grid(8, cells)
        solution = solve_fokker_planck(sk.ReverseSDE(model), VP().prior, edges, times, tol=1e-9)
        truth = np.stack([averages(TARGET.at(VP(), t), edges) for t in times])
        errors.append(l1(solution.density, truth, edges))
        assert np.abs(solution.mass - 1).max() <= 1e-11
        assert (solution.minimum >= -1e-12).all()
        assert solution.scheme == "fv4"
    assert (errors[1] <= 3e-7).all()
    assert 3.8 <= math.log2(errors[0][-1] / errors[1][-1]) <= 4.1


@pytest.mark.parametrize("process", [SubVP(), VE(), EDM(), Interpolant()], ids=repr)
@pytest.mark.parametrize("kind", [sk.ReverseSDE, sk.ProbabilityFlow])
def test_there_and_back_from_the_law_at_the_end(process, kind):
    edges, law = grid(8, 800), TARGET.at(process, process.t_max)
    times = [0.1 * process.t_max, 1e-3 * process.t_max]
    equation = kind(TARGET.denoiser(process))
    solution = solve_fokker_planck(equation, law, edges, times, coordinates="scaled", tol=1e-8)
    for t, s, row in zip(times, solution.scale, solution.density, strict=True):
        assert l1(row, averages(TARGET.at(process, t), s * edges), s * edges) <= 5e-7
    assert np.abs(solution.mass - 1).max() <= 1e-11
    if kind is sk.ProbabilityFlow and isinstance(process, (SubVP, EDM)):
        back = solve_fokker_planck(
            equation, solution.density[1], edges, [process.t_max], start=times[1],
            coordinates="scaled", tol=1e-8,
        )  # fmt: skip
        x = back.scale[0] * edges
        assert l1(back.density[0], averages(law, x), x) <= 1e-6


def test_a_wrong_prior_is_forgotten_by_the_sde_and_kept_by_the_flow():
    model, edges, end = WIDE.denoiser(VP()), grid(8, 900), 1e-3
    prior, p_T = averages(VP().prior, edges), averages(WIDE.at(VP(), 1.0), edges)
    p_end = averages(WIDE.at(VP(), end), edges)
    before = kl(prior, p_T, edges)
    assert before == pytest.approx(1.3821e-5, rel=1e-3)
    sde, flow = (
        solve_fokker_planck(kind(model), VP().prior, edges, [end], tol=1e-9).density[0]
        for kind in (sk.ReverseSDE, sk.ProbabilityFlow)
    )
    assert kl(flow, p_end, edges) == pytest.approx(before, rel=1e-3)
    assert kl(sde, p_end, edges) <= 3e-9
    assert 0.5 * l1(prior, p_T, edges) == pytest.approx(2.10e-3, rel=5e-3)
    assert 0.5 * l1(flow, p_end, edges) == pytest.approx(2.10e-3, rel=5e-3)
    assert 0.5 * l1(sde, p_end, edges) <= 4e-5


def test_a_wrong_score_has_a_density_of_its_own():
    # d log p / dx = -x / v with v too large by the factor c: a linear reverse SDE, variance in closed form.
    class Stretched(Denoiser):
        process, prediction = OrnsteinUhlenbeck(horizon=2.0), "score"

        def predict(self, x, t, **conditions):
            return -x / 1.3

    # In s = T - t: v' = 2 (1 - 2 / 1.3) v + 2 from v = 1.
    rate = 2 * (1 - 2 / 1.3)
    rest = -2 / rate
    v = rest + (1 - rest) * math.exp(rate * (2.0 - 0.5))
    edges = grid(10, 600)
    solution = solve_fokker_planck(
        sk.ReverseSDE(Stretched()), Stretched.process.prior, edges, [0.5], start=2.0, tol=1e-9
    )
    truth = averages(GaussianMixture(None, [0.0], stds=math.sqrt(v)), edges)
    assert l1(solution.density[0], truth, edges) <= 1e-7


@pytest.mark.parametrize("kind", [sk.ReverseSDE, sk.ProbabilityFlow])
def test_rates_that_jump_are_met_exactly_by_models(kind):
    chain = VP.from_betas([0.2, 0.7, 0.3, 0.9, 0.6])
    edges, times = grid(8, 600), [0.8, 0.6 + 1e-13, 0.5, 0.2]
    equation, law = kind(TARGET.denoiser(chain)), TARGET.at(chain, 1.0)
    solution = solve_fokker_planck(equation, law, edges, times, start=1.0, tol=1e-8)
    for t, row in zip(times, solution.density, strict=True):
        assert l1(row, averages(TARGET.at(chain, t), edges), edges) <= 1.5e-6
    again = solve_fokker_planck(
        equation, solution.density[0], edges, times[1:], start=0.8, tol=1e-8
    )
    np.testing.assert_allclose(again.density, solution.density[1:], rtol=0, atol=1e-7)


class Single(nn.Module):
    """The exact noise of the target in single precision, which counts its calls."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.one, self.dropout, self.calls = nn.Parameter(torch.ones(1)), nn.Identity(), []
        if dropout:
            self.dropout = nn.Dropout(dropout)

    def forward(self, x, t):
        assert x.dtype == torch.float32
        assert x.shape[1:] == (1,)
        assert not torch.is_grad_enabled()
        self.calls.append(float(t[0]))
        return self.dropout(self.one * TARGET.denoiser(VP()).noise(x, t))


def test_a_network_in_single_precision_is_asked_once_a_time():
    network, edges, times = Single(), grid(8, 400), [0.5, 1e-2]
    model = sk.NetworkDenoiser(network, VP())
    solution = solve_fokker_planck(sk.ReverseSDE(model), VP().prior, edges, times)
    truth = np.stack([averages(TARGET.at(VP(), t), edges) for t in times])
    assert (l1(solution.density, truth, edges) <= 5e-6).all()
    assert solution.steps <= 60
    # An output may be the end of a step that was refused at first; no other time comes twice.
    assert len(network.calls) - len(set(network.calls)) <= len(times)
    flow = solve_fokker_planck(sk.ProbabilityFlow(model), VP().prior, edges, times)
    assert flow.scheme == "fv4"
    assert (l1(flow.density, truth, edges) <= 5e-5).all()


def test_a_network_runs_in_evaluation_mode_and_is_put_back():
    model = sk.NetworkDenoiser(Single(dropout=0.5), VP()).train()
    arguments = sk.ReverseSDE(model), VP().prior, grid(8, 200), [0.5]
    with pytest.warns(UserWarning, match="training mode") as caught:
        first = solve_fokker_planck(*arguments)
    assert caught[0].filename == __file__
    assert model.training
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = solve_fokker_planck(sk.ReverseSDE(model.eval()), *arguments[1:])
    np.testing.assert_array_equal(first.density, second.density)


def test_conditions_and_shapes_reach_the_model():
    class Shifted(Denoiser):
        process, prediction = VP(), "data"

        def predict(self, x, t, **conditions):
            assert x.shape[1:] == (1, 1)
            y = x - self.process.alpha(t) * conditions["by"]
            return (
                TARGET.denoiser(self.process).data(y.reshape(-1, 1), t).reshape(x.shape)
                + conditions["by"]
            )

    moved = GaussianMixture(TARGET.weights, TARGET.means[:, 0] + 0.5, stds=0.4)
    edges = grid(8, 400)
    solution = solve_fokker_planck(
        sk.ReverseSDE(Shifted(), event=(1, 1), start=0.4, by=0.5), moved.at(VP(), 0.4), edges, [0.1]
    )
    assert l1(solution.density[0], averages(moved.at(VP(), 0.1), edges), edges) <= 5e-6


# ---------------------------------------------------------------------------- bad input


class Broken(Denoiser):
    process, prediction = VP(), "score"

    def predict(self, x, t, **conditions):
        return x if t > 0.5 else x * math.nan


def call(
    equation: Any, density0: Any = TARGET, edges: Any = None, times: Any = (0.5,), **keywords: Any
) -> Any:
    edges = grid(8, 200) if edges is None else edges
    return lambda: solve_fokker_planck(equation, density0, edges, times, **keywords)


MODEL = TARGET.denoiser(VP())
NARROW = GaussianMixture(None, [0.0], stds=0.05)

test_bad_input = bad_input(
    [
        ("a bare denoiser", call(MODEL), TypeError, ["ExactDenoiser", "wrap it in sk.ReverseSDE"]),
        ("a class", call(VP), TypeError, ["equation must be a Process", "got ABCMeta"]),
        ("scaled, no process", call(SDE(well, 1.0), coordinates="scaled"), ValueError, ['"raw"']),
        ("drift no function", lambda: SDE(3.0, 1.0), TypeError, ["drift(x, t)", "3.0"]),  # type: ignore[arg-type]
        ("diffusion negative", lambda: SDE(well, -1.0), ValueError, ["diffusion", "-1.0"]),
        ("diffusion a flag", lambda: SDE(well, True), TypeError, ["diffusion", "True"]),
        ("drift a number", call(SDE(lambda x, t: 0.0, 1.0)), ValueError,  # type: ignore[arg-type]
         ["drift must", "(199,)", "float"]),
        ("drift an array", call(SDE(lambda x, t: -x.numpy(), 1.0)), ValueError, ["got ndarray"]),  # type: ignore[arg-type]
        ("drift infinite on the way", call(SDE(lambda x, t: -x / (t - 0.03), 1.0)), sk.NumericsError,
         ["step has shrunk", "t = 0.02999"]),
        ("drift a column", call(SDE(lambda x, t: x[:, None], 1.0)), ValueError, ["(199, 1)"]),
        ("g turns negative", call(SDE(well, lambda t: 0.1 - t)), ValueError, ["diffusion(t)", "-0."]),
        ("drift not finite", call(SDE(lambda x, t: x / 0, 1.0)), sk.NumericsError,
         ["drift has", "t = 0"]),
        ("model not finite", call(sk.ReverseSDE(Broken()), VP().prior, times=[0.1]), sk.NumericsError,
         ["the model has 199 of 199"]),
        ("reverse times increase", call(sk.ReverseSDE(MODEL), VP().prior, times=[0.1, 0.5]), ValueError,
         ["times must decrease, got 0.1 and then 0.5"]),
        ("flow turns around", call(sk.ProbabilityFlow(MODEL), times=[0.1, 0.5, 0.2], start=0.05), ValueError,
         ["times must increase, got 0.5 and then 0.2"]),
        ("flow on both sides", call(sk.ProbabilityFlow(MODEL), times=[0.9, 0.1], start=0.5), ValueError,
         ["times must lie in [1e-05, 0.5], decrease from start = 0.5", "[0.1, 0.9]"]),
        ("model read at 0", call(sk.ReverseSDE(MODEL), VP().prior, times=[0.0]), ValueError, ["[1e-05, 1]"]),
        ("model from beyond", call(sk.ReverseSDE(TARGET.denoiser(VP())), start=1.5), ValueError, ["start"]),
        ("starts at 0", call(sk.ProbabilityFlow(MODEL), start=0), ValueError, ["start", "[1e-05, 1]"]),
        ("two coordinates", call(sk.ReverseSDE(MODEL, event=(2,)), VP().prior), ValueError, ["(2,)"]),
        ("ends too narrow", call(sk.ReverseSDE(NARROW.denoiser(VP())), VP().prior, times=[1e-4]), ValueError,
         ["at t = 0.0001: at least 9", "got 200"]),
        ("prior too wide", call(sk.ReverseSDE(TARGET.denoiser(VE())), VE().prior), ValueError,
         ["mass of density0"]),
    ]
)  # fmt: skip
