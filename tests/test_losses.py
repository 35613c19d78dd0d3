# Bad input is passed on purpose.
# pyright: reportArgumentType=false
import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import normal
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.integrate import quad
from torch import Tensor, nn

from sdekit import (
    EDM,
    VE,
    VP,
    Denoiser,
    EDMPrecondition,
    GaussianMixture,
    Interpolant,
    NetworkDenoiser,
    SubVP,
)
from sdekit.ddpm import cosine_betas, linear_betas, rescale_zero_terminal_snr, sigmoid_betas
from sdekit.denoisers import Prediction
from sdekit.processes import ALL as PROCESSES
from sdekit.processes import Process
from sdekit.training import DenoisingLoss, draw_times, excess_loss, minimum_loss

KINDS = Prediction.__args__
WEIGHTINGS = ("simple", "likelihood", "min-snr", "edm", "truncated-snr")
UNIT = GaussianMixture(None, [0.0], 1.0)
SPIKED = GaussianMixture([0.1, 0.6, 0.3], [-3.0, 0.0, 2.0], torch.tensor([0.01, 1.0, 0.1]).double())
each_process = pytest.mark.parametrize("process", PROCESSES, ids=repr)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Function(Denoiser):
    """A function noise(x, t), given as a prediction of any kind by the definitions of the kinds."""

    def __init__(self, process: Process, noise: Callable, prediction: str = "noise") -> None:
        self.process, self.prediction, self._noise = process, prediction, noise

    def predict(self, x, t, **conditions):
        noise = self._noise(x, t)
        column = t.double().view(-1, *[1] * (x.ndim - 1))
        alpha, sigma = (
            c.view(column.shape) for c in (self.process.alpha(t), self.process.sigma(t))
        )
        data = (x - sigma * noise) / alpha
        d_alpha, d_sigma = (c.view(column.shape) for c in self.process.slopes(t))
        return {
            "noise": noise,
            "data": data,
            "score": -noise / sigma,
            "v": alpha * noise - sigma * data,
            "velocity": d_alpha * data + d_sigma * noise,
        }[self.prediction]


def batch(process: Process, target: GaussianMixture, n: int, seed: int = 0, times="stratified"):
    g = generator(seed)
    t = draw_times(n, process, g, times)
    x0 = target.sample(n, generator=g)
    return x0, t, torch.randn(x0.shape, generator=g, dtype=torch.float64)


# --------------------------------------------------------------------------- the least loss


def test_minimum_on_the_linear_schedule(toy):
    assert minimum_loss(UNIT, VP()) == pytest.approx(0.275988, abs=5e-7)
    assert minimum_loss(toy, VP()) == pytest.approx(0.243988, abs=5e-7)


def by_decades(function, low: float, high: float) -> float:
    """Mean of a function over [low, high] by adaptive quadrature, decade by decade from `low`."""
    cuts = [low + (high - low) * 10.0**-k for k in range(6, -1, -1)]
    parts = [quad(function, low, cuts[0], epsabs=1e-14, epsrel=1e-11)[0]]
    parts += [
        quad(function, a, b, epsabs=1e-13, epsrel=1e-11, limit=400)[0] for a, b in pairwise(cuts)
    ]
    return math.fsum(parts) / (high - low)


@pytest.mark.parametrize("variance", [0.01, 1.0, 4.0])
@pytest.mark.parametrize("process", [VP(), SubVP(), VE(), EDM(), Interpolant()], ids=repr)
def test_minimum_on_gaussians_is_their_closed_form(process, variance):
    def least(t: float) -> float:
        signal = process.alpha(t) ** 2 * variance
        return signal / (signal + process.sigma(t) ** 2)

    expected = by_decades(least, process.t_min, process.t_max)
    target = GaussianMixture(None, [0.3], math.sqrt(variance))
    assert minimum_loss(target, process) == pytest.approx(expected, abs=1e-8)


def test_minimum_of_components_three_decades_apart_in_width():
    """Against sums on a grid fine enough for the narrowest, with densities written here."""
    process = VE()
    weights, means = SPIKED.weights.numpy(), SPIKED.means[:, 0].numpy()
    variances = SPIKED.variances[:, 0].numpy()

    def least(t: float) -> float:
        s2 = process.sigma(t) ** 2
        spread = np.sqrt(variances + s2)
        # u -> sinh(u) around each centre: fine there, and wide enough everywhere
        u = np.linspace(-14, 14, 6001)
        x = np.unique(
            np.concatenate([m + 0.01 * s * np.sinh(u) for m, s in zip(means, spread, strict=True)])
        )
        x = x[np.abs(x) < 12 * spread.max() + 3]
        bells = np.exp(-((x[:, None] - means) ** 2) / (2 * spread**2)) / spread
        bells *= weights / math.sqrt(2 * math.pi)
        p, slope = bells.sum(1), (bells * (means - x[:, None]) / spread**2).sum(1)
        return 1 - s2 * float(np.trapezoid(slope**2 / np.maximum(p, 1e-300), x))

    nodes, weights_t = np.polynomial.legendre.leggauss(12)
    cuts = [1e-5, 1e-4, 1e-3, 1e-2, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    total = math.fsum(
        0.5 * (b - a) * w * least(0.5 * (a + b) + 0.5 * (b - a) * u)
        for a, b in pairwise(cuts)
        for u, w in zip(nodes, weights_t, strict=True)
    )
    assert minimum_loss(SPIKED, process) == pytest.approx(total / (1 - 1e-5), abs=1e-6)


@pytest.mark.parametrize(
    "betas",
    [
        linear_betas(100, 1e-3, 0.2),
        sigmoid_betas(),
        cosine_betas(30),
        torch.tensor([0.3, 0.01, 0.6, 0.2]),
        rescale_zero_terminal_snr(linear_betas(50, 1e-3, 0.1)),
    ],
    ids=["linear", "sigmoid", "cosine", "jagged", "zero terminal SNR"],
)
def test_minimum_on_a_table_of_betas(betas):
    """On N(0, 1) it is the mean of alpha^2, an exponential in every cell."""
    zero = bool(betas[-1] == 1)
    process, n = VP.from_betas(betas, zero_terminal_snr=zero), len(betas)
    total, before = 0.0, 1.0
    for i, beta in enumerate(betas.tolist()[: n - zero]):
        low = process.t_min * n if i == 0 else 0.0
        rate = -math.log1p(-beta)
        total += before * math.exp(-rate * low) * -math.expm1(-rate * (1 - low)) / rate / n
        before *= 1 - beta
    expected = total / (process.t_max - process.t_min)
    assert minimum_loss(UNIT, process) == pytest.approx(expected, abs=1e-8)


def test_minimum_by_draws_agrees_with_quadrature(toy):
    """Two independent copies in the plane: the same value, within 4 standard errors of the draws."""
    w, m = toy.weights, toy.means[:, 0]
    means = torch.cartesian_prod(m, m)
    plane = GaussianMixture(torch.outer(w, w).flatten(), means, 0.4)
    exact, n, process = minimum_loss(toy, VP()), 20_000, VP()
    x0, t, noise = batch(process, plane, n, seed=9)
    spread = plane.denoiser(process).noise(process.perturb(x0, t, noise), t).square().mean(1).std()
    assert abs(minimum_loss(plane, process, n=n) - exact) < 4 * spread.item() / math.sqrt(n)
    assert minimum_loss(plane, process, n=100) == minimum_loss(plane, process, n=100, seed=0)
    assert minimum_loss(plane, process, n=100) != minimum_loss(plane, process, n=100, seed=1)


@pytest.mark.parametrize("process", [VP(), SubVP(), VE(), EDM(), Interpolant()], ids=repr)
def test_exact_denoiser_has_the_least_loss(toy, process):
    """Within 4 standard errors."""
    losses = DenoisingLoss()(toy.denoiser(process), *batch(process, toy, 20_000, times="uniform"))
    error = losses.std().item() / math.sqrt(len(losses))
    assert abs(losses.mean().item() - minimum_loss(toy, process)) < 4 * error


SIZE = st.floats(-2, 2)


@given(SIZE, SIZE, SIZE, SIZE, st.sampled_from(KINDS))
def test_no_network_is_below_the_least_loss(a, b, c, d, kind):
    """A theorem on the mean; the draws may be below it by 4 standard errors."""
    target, process = GaussianMixture([0.3, 0.7], [-1.4, 0.6], 0.4), VP()
    model = Function(process, lambda x, t: a * torch.sin(b * x + c * t[:, None]) + d * x, kind)
    losses = DenoisingLoss()(model, *batch(process, target, 4000))
    least = 0.24398840346  # minimum_loss(target, process), held to account above
    assert losses.mean().item() >= least - 4 * losses.std().item() / math.sqrt(len(losses))


def test_excess_of_a_shifted_exact_model_is_the_square_of_the_shift(toy):
    process = VP()
    exact = toy.denoiser(process)
    model = Function(process, lambda x, t: exact.noise(x, t) + 0.3)
    assert excess_loss(model, toy, n=20_000) == (
        pytest.approx(0.09, rel=1e-12),
        pytest.approx(0, abs=1e-14),
    )
    assert excess_loss(exact, toy, n=1000) == (0.0, 0.0)


def test_excess_of_a_scaled_exact_model(toy):
    """E |delta eps_hat|^2 = delta^2 (1 - minimum), within 4 of the standard errors it returns."""
    process = VP()
    exact = toy.denoiser(process)
    model = Function(process, lambda x, t: 1.1 * exact.noise(x, t))
    excess, error = excess_loss(model, toy, n=50_000)
    assert abs(excess - 0.01 * (1 - minimum_loss(toy, process))) < 4 * error
    assert error < 1e-3


def test_excess_is_loss_minus_minimum(toy):
    """For an arbitrary model, within 4 standard errors of the two together."""
    process = VP()
    model = Function(process, lambda x, t: 0.8 * torch.tanh(x) + 0.1 * t[:, None])
    losses = DenoisingLoss()(model, *batch(process, toy, 100_000, seed=1))
    difference = losses.mean().item() - minimum_loss(toy, process)
    excess, error = excess_loss(model, toy)
    error = math.hypot(error, losses.std().item() / math.sqrt(len(losses)))
    assert abs(difference - excess) < 4 * error


@pytest.mark.parametrize("dim", [1, 3])
def test_excess_of_a_float32_network_runs_in_its_dtype(dim):
    target = GaussianMixture(None, torch.zeros(1, dim), 1.0)
    network = nn.Linear(dim, dim).float()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, x, t):
            assert x.dtype == torch.float32
            return self.inner(x)

    excess, error = excess_loss(NetworkDenoiser(Net(), VP()), target, n=10_000)
    assert excess > 4 * error > 0


# ------------------------------------------------------------------------------ the loss


def test_simple_loss_is_the_mean_square_of_the_noise_error():
    process, x0, noise = VP(), normal(5, 2, 3), normal(5, 2, 3, seed=1)
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    x = process.alpha(t)[:, None, None] * x0 + process.sigma(t)[:, None, None] * noise
    losses = DenoisingLoss()(Function(process, lambda x, t: torch.sin(x)), x0, t, noise)
    expected = [(torch.sin(x[i]) - noise[i]).square().mean().item() for i in range(5)]
    assert losses.tolist() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("process", [VP(), SubVP(), VE(), EDM(), Interpolant()], ids=repr)
def test_one_function_has_one_loss_whatever_it_predicts(process, weighting):
    low, high = process.t_min, process.t_max
    t = low + (high - low) * torch.linspace(0.01, 0.99, 40, dtype=torch.float64)
    x0, noise = normal(40, 2), normal(40, 2, seed=1)

    def losses(kind: str) -> Tensor:
        model = Function(process, lambda x, t: torch.sin(x + t[:, None]), kind)
        return DenoisingLoss(weighting)(model, x0, t, noise)

    expected = losses("noise")
    assert (expected > 0).all()
    for kind in KINDS:
        torch.testing.assert_close(losses(kind), expected, rtol=1e-10, atol=0)


@each_process
def test_likelihood_weight_is_the_rate_of_log_snr(process):
    """-(1/2) d log_snr / dt, by symmetric differences extrapolated to fourth order."""
    low, high = process.t_min, process.t_max
    t = low + (high - low) * torch.linspace(0.05, 0.93, 23, dtype=torch.float64)
    n = len(getattr(getattr(process, "schedule", None), "betas", ()))
    if n:  # the rate of a table jumps at i / N: stay in the middle of a cell
        t = ((t * n).floor() + 0.5) / n

    def rate(h: Tensor) -> Tensor:
        return process.delta_log_snr(t - h, t + h) / (2 * h)

    h = torch.minimum(t, process.horizon - t) * 2e-3
    h = h.clamp(max=0.4 / n) if n else h
    derivative = (4 * rate(h / 2) - rate(h)) / 3
    found = DenoisingLoss("likelihood").weights(process, t)
    torch.testing.assert_close(found, -0.5 * derivative, rtol=1e-8, atol=0)


@each_process
def test_min_snr_weight(process):
    t = torch.linspace(process.t_min, process.t_max, 50, dtype=torch.float64)
    snr = [math.exp(process.log_snr(u)) for u in t.tolist()]
    for cap in (1.0, 5.0):
        found = DenoisingLoss("min-snr", snr_cap=cap).weights(process, t)
        assert found.tolist() == pytest.approx([min(s, cap) / s for s in snr], rel=1e-12)


@each_process
def test_weights_that_are_written_on_the_data(process):
    """rho^2 times (rho^2 + std^2) / (rho std)^2, and rho^2 max(snr, 1), with rho = sigma / alpha."""
    t = torch.linspace(process.t_min, process.t_max, 50, dtype=torch.float64)
    rho = [process.sigma(u) / process.alpha(u) for u in t.tolist()]
    edm = [r**2 * (r**2 + 0.25) / (0.5 * r) ** 2 for r in rho]
    found = DenoisingLoss("edm", data_std=0.5).weights(process, t)
    assert found.tolist() == pytest.approx(edm, rel=1e-10)
    found = DenoisingLoss("truncated-snr").weights(process, t)
    assert found.tolist() == pytest.approx([max(r**2, 1.0) for r in rho], rel=1e-10)


@pytest.mark.parametrize("process", [VP(), VE(), EDM(), Interpolant()], ids=repr)
def test_edm_weight_undoes_the_preconditioning(process):
    """The loss is the mean square of F minus its target of unit variance: w c_out^2 = 1."""
    std, n = 0.5, 30

    class Sine(nn.Module):
        def forward(self, x, t):
            return torch.sin(x + t.view(-1, 1))

    network = Sine()
    model = EDMPrecondition(network, process, sigma_data=std)
    t = torch.linspace(0.01, 0.99, n, dtype=torch.float64) * process.horizon
    x0, noise = normal(n, 2), normal(n, 2, seed=1)
    rho = (process.sigma(t) / process.alpha(t))[:, None]
    y, spread = x0 + rho * noise, (rho**2 + std**2).sqrt()
    wanted = (x0 - std**2 / spread**2 * y) * spread / (rho * std)
    expected = (network(y / spread, rho.log()[:, 0] / 4) - wanted).square().mean(1)
    found = DenoisingLoss("edm", data_std=std)(model, x0, t, noise)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("kind", KINDS)
def test_target_loss_is_of_the_network_s_own_error(kind, norm):
    process, x0, noise = SubVP(), normal(6, 2), normal(6, 2, seed=1)
    t = torch.linspace(0.1, 1.0, 6, dtype=torch.float64)
    model = Function(process, lambda x, t: torch.sin(x), kind)
    x = process.perturb(x0, t, noise)
    truth = Function(process, lambda x, t: noise, kind).predict(x, t)
    error = model.predict(x, t) - truth
    expected = (error.square() if norm == "l2" else error.abs()).mean(1)
    found = DenoisingLoss("target", norm)(model, x0, t, noise)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_absolute_errors_have_the_root_of_the_weight(weighting, kind):
    process, x0, noise = VP(), normal(6, 2), normal(6, 2, seed=1)
    t = torch.linspace(0.1, 1.0, 6, dtype=torch.float64)
    model, loss = Function(process, lambda x, t: torch.sin(x), kind), DenoisingLoss(weighting, "l1")
    error = (torch.sin(process.perturb(x0, t, noise)) - noise).abs().mean(1)
    expected = loss.weights(process, t).sqrt() * error
    torch.testing.assert_close(loss(model, x0, t, noise), expected, rtol=1e-10, atol=0)


def test_weights_where_there_is_no_signal():
    """The last step of a chain without signal, read from the data or v that is predicted there."""
    process = VP.from_betas([0.1, 0.5, 1.0], zero_terminal_snr=True)
    t, x0, noise = torch.ones(2, dtype=torch.float64), normal(2, 1), normal(2, 1, seed=1)

    class Zero(nn.Module):
        def forward(self, x, t):
            return torch.zeros_like(x)

    for kind in ("data", "v"):
        model = NetworkDenoiser(Zero(), process, kind, time="label")
        for weighting, expected in (("edm", x0), ("truncated-snr", x0), ("simple", 0 * x0)):
            found = DenoisingLoss(weighting)(model, x0, t, noise)
            torch.testing.assert_close(found, expected.square()[:, 0], rtol=1e-12, atol=1e-30)


def test_weights_multiply_the_simple_loss():
    process, x0, noise = VP(), normal(6, 2), normal(6, 2, seed=1)
    t = torch.linspace(0.01, 1.0, 6, dtype=torch.float64)
    model = Function(process, lambda x, t: torch.sin(x), "v")
    simple = DenoisingLoss()(model, x0, t, noise)
    assert DenoisingLoss().weights(process, t).tolist() == [1.0] * 6
    for weighting in WEIGHTINGS:
        loss = DenoisingLoss(weighting)
        weighted = loss.weights(process, t) * simple
        torch.testing.assert_close(loss(model, x0, t, noise), weighted, rtol=1e-14, atol=0)


def test_likelihood_loss_bounds_the_likelihood_of_gaussians():
    """int w (|eps - eps_hat|^2 - 1 + sigma^2 J) dt = KL of the paths, with equality of score and law.

    For the exact model of N(0, v) at data N(0, 1): int g^2 / 2 E |s - s_hat|^2 dt = KL(0) - KL(T) of the two
    diffused Gaussians (Song et al. 2021b, theorem 2, whose model is itself a diffusion).
    """
    process, v = VP(), 0.5
    nodes, weights = np.polynomial.legendre.leggauss(200)
    low, high = 1e-3, 1.0
    t = torch.from_numpy(low + (high - low) * (nodes + 1) / 2)
    alpha2, sigma2 = process.alpha(t) ** 2, process.sigma(t) ** 2
    gap = sigma2 * (1 / (alpha2 * v + sigma2) - 1) ** 2  # E |eps_hat' - eps_hat|^2 at x_t ~ N(0, 1)
    w = DenoisingLoss("likelihood").weights(process, t)
    found = float((torch.from_numpy(weights) * w * gap).sum()) * (high - low) / 2

    def kl(t: float) -> float:
        r = 1 / (process.alpha(t) ** 2 * v + process.sigma(t) ** 2)
        return 0.5 * (r - 1 - math.log(r))

    assert found == pytest.approx(kl(low) - kl(high), rel=1e-10)


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 2), (6, 1, 4, 4)], ids=str)
def test_any_event_shape_gives_one_number_a_sample(shape):
    process, x0, noise = VP(), normal(*shape), normal(*shape, seed=1)
    t = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    losses = DenoisingLoss()(Function(process, lambda x, t: torch.sin(x)), x0, t, noise)
    assert losses.shape == (6,)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    again = DenoisingLoss()(
        Function(process, lambda x, t: torch.sin(x)), x0[order], t[order], noise[order]
    )
    torch.testing.assert_close(again, losses[order], rtol=1e-14, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_float32_agrees_with_float64(kind, weighting):
    process, x0, noise = VP(), normal(50, 2), normal(50, 2, seed=1)
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)

    class Sine(nn.Module):
        def forward(self, x, t):
            return torch.sin(x)

    loss, model = DenoisingLoss(weighting), NetworkDenoiser(Sine(), process, kind)
    wide, narrow = (loss(model, x0.to(d), t, noise.to(d)) for d in (torch.float64, torch.float32))
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), wide, rtol=2e-5, atol=0)


def test_cond_reaches_the_network():
    class Shift(nn.Module):
        def forward(self, x, t, cond):
            return cond.expand_as(x)

    x0, t, noise, cond = normal(3, 2), torch.full((3,), 0.5), normal(3, 2, seed=1), normal(3, 1)
    losses = DenoisingLoss()(NetworkDenoiser(Shift(), VP()), x0, t, noise, cond)
    torch.testing.assert_close(losses, (cond - noise).square().mean(1), rtol=1e-14, atol=0)


# ------------------------------------------------------------------------------ the times


@each_process
def test_stratified_times_have_one_in_each_cell(process):
    for n in (1, 2, 7, 1000):
        t = draw_times(n, process, generator(n))
        assert t.dtype == torch.float64
        u = (t - process.t_min) / (process.t_max - process.t_min)
        cells = (u * n).floor().clamp(max=n - 1).long()
        assert torch.equal(cells.sort().values, torch.arange(n))


@pytest.mark.parametrize("times", ["uniform", "stratified"])
@each_process
def test_times_stay_inside(process, times):
    for seed in range(50):
        t = draw_times(64, process, generator(seed), times)
        assert t.min() >= process.t_min
        assert t.max() <= process.t_max
        assert torch.equal(t, draw_times(64, process, generator(seed), times))


@pytest.mark.parametrize("times", ["uniform", "stratified"])
def test_each_time_is_uniform(times):
    """The law of one member of the batch over seeds (Kolmogorov-Smirnov, 1 in 10,000)."""
    process, n = VP(), 4
    draws = torch.stack([draw_times(n, process, generator(s), times) for s in range(3000)])
    draws = (draws - process.t_min) / (process.t_max - process.t_min)
    for k in range(n):
        assert stats.kstest(draws[:, k].numpy(), "uniform").pvalue > 1e-4


@pytest.mark.parametrize("times", ["uniform", "stratified"])
@pytest.mark.parametrize("process", [VP(), EDM()], ids=repr)
def test_times_of_labels_are_the_steps_of_the_chain(process, times):
    """Each of 7 as often, within 4 standard errors of independent draws."""
    n = 7000
    t = draw_times(n, process, generator(0), times, labels=7)
    steps = (t * 7 / process.horizon).round()
    torch.testing.assert_close(t, steps / 7 * process.horizon, rtol=1e-15, atol=0)
    counts = torch.bincount(steps.long(), minlength=8)
    assert counts[0] == 0
    assert ((counts[1:] - n / 7).abs() < 4 * math.sqrt(n * (1 / 7) * (6 / 7))).all()
    assert times == "uniform" or counts[1:].tolist() == [1000] * 7


def test_min_snr_weight_where_there_is_no_signal():
    process = VP.from_betas([0.1, 0.5, 1.0], zero_terminal_snr=True)
    t = torch.tensor([1.0], dtype=torch.float64)
    assert DenoisingLoss("min-snr").weights(process, t).tolist() == [1.0]


def test_no_times_for_no_samples():
    for times in ("uniform", "stratified"):
        assert draw_times(0, VP(), generator(0), times).shape == (0,)


def test_gradient_is_unbiased_whatever_the_times():
    """eps_hat = theta x on N(0, 1) has the mean gradient 2 (theta - E sigma); 4 standard errors."""
    process, theta = VP(), torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    mean_sigma = by_decades(process.sigma, process.t_min, process.t_max)
    spreads = {}
    for times in ("uniform", "stratified"):
        gradients = []
        for seed in range(400):
            x0, t, noise = batch(process, UNIT, 64, seed, times)
            value = DenoisingLoss()(Function(process, lambda x, t: theta * x), x0, t, noise).mean()
            gradients.append(torch.autograd.grad(value, theta)[0])
        gradient = torch.stack(gradients)
        spreads[times] = gradient.std().item()
        error = spreads[times] / math.sqrt(len(gradient))
        assert abs(gradient.mean().item() - 2 * (0.4 - mean_sigma)) < 4 * error
    assert spreads["stratified"] < spreads["uniform"]


# ------------------------------------------------------------------------------ bad input


class Pair(Function):
    def predict(self, x, t, **conditions):
        return x, x


PAIR, TIME = torch.zeros(4, 2), torch.full((4,), 0.5)
ZERO = Function(VP(), lambda x, t: torch.zeros_like(x))
BAD = {
    "norm": (lambda: DenoisingLoss(norm="l3"), ValueError, "norm must be one of 'l2', 'l1'"),
    "data_std": (lambda: DenoisingLoss("edm", data_std=0.0), ValueError, "data_std must be"),
    "data_std bool": (lambda: DenoisingLoss(data_std=True), TypeError, "data_std must be a number"),
    "weighting": (lambda: DenoisingLoss("likelyhood"), ValueError, "did you mean 'likelihood'"),
    "snr_cap": (lambda: DenoisingLoss("min-snr", snr_cap=0), ValueError, "snr_cap must be"),
    "snr_cap bool": (lambda: DenoisingLoss(snr_cap=True), TypeError, "snr_cap must be a number"),
    "times": (
        lambda: draw_times(4, VP(), generator(0), "stratifed"),
        ValueError,
        "did you mean 'stratified'",
    ),
    "noise shape": (
        lambda: DenoisingLoss()(ZERO, PAIR, TIME, PAIR[:, 0]),
        ValueError,
        "noise must have the shape of x0",
    ),
    "integers": (
        lambda: DenoisingLoss()(ZERO, PAIR.int(), TIME, PAIR),
        TypeError,
        "x0 must be floating point",
    ),
    "t of other length": (
        lambda: DenoisingLoss()(ZERO, PAIR, TIME[:3], PAIR),
        ValueError,
        r"t must be a number or have shape \(n,\)",
    ),
    "t column": (lambda: DenoisingLoss()(ZERO, PAIR, TIME[:, None], PAIR), ValueError, "t must"),
    "t outside": (lambda: DenoisingLoss()(ZERO, PAIR, TIME + 1, PAIR), ValueError, r"\[0, 1\]"),
    "output shape": (
        lambda: DenoisingLoss()(Function(VP(), lambda x, t: x[:, :1]), PAIR, TIME, PAIR),
        ValueError,
        r"shape of x, \(4, 2\), got \(4, 1\)",
    ),
    "output tuple": (
        lambda: DenoisingLoss()(Pair(VP(), torch.sin), PAIR, TIME, PAIR),
        TypeError,
        "must return a tensor, got tuple",
    ),
    "n": (lambda: excess_loss(ZERO, UNIT, n=1), ValueError, "n must be >= 2"),
    "n of minimum": (
        lambda: minimum_loss(GaussianMixture(None, torch.zeros(1, 2), 1.0), VP(), n=0),
        ValueError,
        "n must be >= 1",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()
