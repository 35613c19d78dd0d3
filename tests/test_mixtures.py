# Bad input is passed on purpose.
# pyright: reportArgumentType=false
import math
from typing import Any

import pytest
import torch
from helpers import bad_input
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import MultivariateNormal

from sdekit import EDM, VP, GaussianMixture, Heat, OrnsteinUhlenbeck, Process
from sdekit.testing import strategies as sts

PROCESSES = st.sampled_from([VP(), EDM(), OrnsteinUhlenbeck(0.7, 1.3), Heat()])
SHARES = st.floats(0.02, 1.0)


def points(n: int, d: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(n, d, generator=generator, dtype=torch.float64)


def close(a: Any, b: Any, tolerance: float) -> bool:
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def transformed(law: GaussianMixture, scale: float, shift: Tensor, axes: Tensor) -> GaussianMixture:
    """The law of scale Q x + shift."""
    covariances = scale**2 * axes @ law.covariances @ axes.mT
    return GaussianMixture(
        law.weights, scale * law.means @ axes.mT + shift, covariances=covariances
    )


def rotation(d: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q


# ---- densities -------------------------------------------------------------------------------------


@given(sts.mixtures())
def test_log_prob_is_the_sum_of_the_components(law: GaussianMixture) -> None:
    x = points(7, law.dim)
    parts = MultivariateNormal(law.means, law.covariances).log_prob(x[:, None])
    assert close(law.log_prob(x), torch.logsumexp(law.weights.log() + parts, 1), 1e-11)


@given(sts.mixtures())
def test_score_is_the_gradient_of_log_prob(law: GaussianMixture) -> None:
    x = points(7, law.dim).requires_grad_()
    (gradient,) = torch.autograd.grad(law.log_prob(x).sum(), x)
    assert close(law.score(x), gradient, 1e-10)


@given(sts.mixtures(), st.randoms(use_true_random=False))
def test_order_of_components_does_not_matter(law: GaussianMixture, random: Any) -> None:
    order = list(range(len(law.means)))
    random.shuffle(order)
    axes = None if law.axes is None else law.axes[order]
    other = GaussianMixture._make(
        law.log_weights[order], law.means[order], law.variances[order], axes
    )
    x = points(5, law.dim)
    assert close(other.log_prob(x), law.log_prob(x), 1e-13)
    score = law.score(x)
    size = max(1.0, score.abs().max().item())
    assert torch.allclose(other.score(x), score, rtol=0, atol=1e-13 * size)
    assert close(other.mean, law.mean, 1e-13)
    assert close(other.covariance, law.covariance, 1e-13)


@given(sts.mixtures(kinds=["isotropic"]))
def test_isotropic_diagonal_and_full_are_one_law(law: GaussianMixture) -> None:
    stds = law.variances.sqrt().expand(-1, law.dim)
    diagonal = GaussianMixture(law.weights, law.means, stds)
    full = GaussianMixture(law.weights, law.means, covariances=law.covariances)
    x = points(5, law.dim)
    for other in (diagonal, full):
        assert close(other.log_prob(x), law.log_prob(x), 1e-12)
        assert close(other.score(x), law.score(x), 1e-12)
        exact, twin = (m.denoiser(VP()).data(x, 0.3) for m in (law, other))
        assert close(exact, twin, 1e-12)


@given(st.lists(st.floats(-300, 300), min_size=1, max_size=5))
def test_logits_are_probabilities(logits: list[float]) -> None:
    means = torch.arange(float(len(logits)))
    weights = torch.tensor(logits, dtype=torch.float64).softmax(0)
    law = GaussianMixture(None, means, 1.0, logits=logits)
    assert torch.allclose(law.weights, weights, rtol=1e-12, atol=0)
    shifted = GaussianMixture(None, means, 1.0, logits=[v + 7.0 for v in logits])
    assert torch.allclose(shifted.weights, weights, rtol=1e-12, atol=0)
    assert close(
        GaussianMixture(None, means, 1.0).weights, 0 * means.double() + 1 / len(means), 1e-15
    )


# ---- the line --------------------------------------------------------------------------------------


@given(sts.mixtures(dim=1))
def test_cdf_is_the_integral_of_the_density(law: GaussianMixture) -> None:
    x = torch.linspace(-8, 8, 41, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(law.cdf(x).sum(), x)
    assert close(slope, law.log_prob(x[:, None]).exp(), 1e-12)
    assert close(law.cdf(x) + law.survival(x), torch.ones_like(x), 1e-15)
    assert bool((law.cdf(x).diff() >= 0).all())


@given(sts.mixtures(dim=1), st.floats(-1.0, 1.0))
def test_quantile_inverts_the_cdf(law: GaussianMixture, u: float) -> None:
    k = int(torch.argmax(law.weights))
    x = law.means[k] + 2 * u * law.variances[k].sqrt()
    density = law.log_prob(x.reshape(1, 1)).exp().item()
    # cdf(x) is rounded by half an ulp of 1, which moves x by that over the density.
    assert law.quantile(law.cdf(x)).item() == pytest.approx(x.item(), abs=1e-15 / density + 1e-14)


def test_tails_keep_their_digits(gauss1: GaussianMixture) -> None:
    import mpmath

    for z in (5.0, 10.0, 30.0):
        with mpmath.workdps(30):
            want = float(mpmath.erfc(z / mpmath.sqrt(2)) / 2)
        left, right = (torch.tensor(0.7 + s * 0.5 * z, dtype=torch.float64) for s in (-1, 1))
        assert gauss1.cdf(left).item() == pytest.approx(want, rel=1e-12)
        assert gauss1.survival(right).item() == pytest.approx(want, rel=1e-12)
        u = torch.tensor(want, dtype=torch.float64)
        assert gauss1.quantile(u).item() == pytest.approx(left.item(), rel=1e-12)
    ends = gauss1.quantile(torch.tensor([0.0, 0.5, 1.0]))
    assert ends.tolist() == [-math.inf, pytest.approx(0.7, abs=1e-14), math.inf]


def test_entropy(toy: GaussianMixture, gauss1: GaussianMixture) -> None:
    assert toy.entropy() == pytest.approx(1.0978868, abs=1e-7)
    assert gauss1.entropy() == pytest.approx(0.5 * math.log(2 * math.pi * math.e * 0.25), rel=1e-14)
    full = GaussianMixture(None, [[0.0, 1.0]], covariances=[[[2.0, 0.5], [0.5, 1.0]]])
    want = MultivariateNormal(full.means, full.covariances).entropy().item()
    assert full.entropy() == pytest.approx(want, rel=1e-14)
    # Far apart the entropy is that of the parts and of the choice between them.
    apart = GaussianMixture([0.25, 0.75], [-100.0, 100.0], [0.1, 2.0])
    parts = [0.5 * math.log(2 * math.pi * math.e) + math.log(s) for s in (0.1, 2.0)]
    choice = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    assert apart.entropy() == pytest.approx(0.25 * parts[0] + 0.75 * parts[1] + choice, rel=1e-10)


def test_toy_is_standardised(toy: GaussianMixture) -> None:
    assert toy.mean.item() == pytest.approx(0.0, abs=1e-15)
    assert toy.covariance.item() == pytest.approx(1.0, rel=1e-14)
    assert toy.narrowest == pytest.approx(0.4)
    assert toy.cdf(torch.tensor(-0.4)).item() == pytest.approx(0.3025, abs=1e-4)


# ---- diffusion -------------------------------------------------------------------------------------


@given(sts.mixtures(), PROCESSES, st.floats(0.0, 1.0))
def test_diffused_moments(law: GaussianMixture, process: Process, share: float) -> None:
    t = share * process.horizon
    alpha, variance = process.alpha(t), process.sigma(t) ** 2
    later = law.at(process, t)
    identity = torch.eye(law.dim, dtype=torch.float64)
    assert close(later.mean, alpha * law.mean, 1e-13)
    want = alpha**2 * law.covariance + variance * identity
    assert torch.allclose(later.covariance, want, rtol=1e-12, atol=1e-12 * (1 + variance))


@given(sts.mixtures(), st.floats(0.01, 2.0), st.floats(0.01, 2.0))
def test_diffusion_is_a_semigroup(law: GaussianMixture, s: float, t: float) -> None:
    x = points(4, law.dim)
    for process in (OrnsteinUhlenbeck(0.7, 1.3), Heat(horizon=5.0)):
        twice, once = law.at(process, s).at(process, t), law.at(process, s + t)
        assert close(twice.means, once.means, 1e-14)
        assert close(twice.covariances, once.covariances, 1e-13)
        assert close(twice.log_prob(x), once.log_prob(x), 1e-12)


@given(sts.mixtures(), PROCESSES, SHARES)
def test_four_readings_of_the_exact_denoiser(
    law: GaussianMixture, process: Process, share: float
) -> None:
    t = share * process.horizon
    exact, later = law.denoiser(process), law.at(process, t)
    alpha, sigma = process.alpha(t), process.sigma(t)
    x = alpha * points(5, law.dim) + sigma * points(5, law.dim, 1)
    score = later.score(x)
    size = max(1.0, sigma / alpha)
    assert close(exact.data(x, t), (x + sigma**2 * score) / alpha, 1e-11 * size**2)
    assert close(sigma * exact.score(x, t), sigma * score, 1e-11 * max(1.0, alpha / sigma))
    assert close(exact.noise(x, t), -sigma * score, 1e-11 * max(1.0, alpha / sigma))
    f, g2 = process.rates(t)
    velocity = f * x - 0.5 * g2 * score
    scale = 1 + velocity.abs().max().item()
    assert close(exact.velocity(x, t), velocity, 1e-11 * max(scale, alpha / sigma * scale))


@given(sts.mixtures(dim=1), PROCESSES, st.floats(0.1, 1.0))
def test_posterior_against_quadrature(law: GaussianMixture, process: Process, share: float) -> None:
    """Bayes on a grid that resolves prior and likelihood: trapezoid sums of smooth bells."""
    t = share * (process.horizon if process.horizon < 6 else 2.0)
    alpha, sigma = process.alpha(t), process.sigma(t)
    x = alpha * points(3, 1) + sigma * points(3, 1, 1)
    u = torch.linspace(-24, 24, 12_001, dtype=torch.float64)
    likelihood = -0.5 * ((x - alpha * u) / sigma).square()
    joint = (law.log_prob(u[:, None]) + likelihood).softmax(1)
    mean = joint @ u
    variance = (joint * (u - mean[:, None]).square()).sum(1)
    posterior = law.posterior(process, x, t)
    assert close(posterior.mean[:, 0], mean, 1e-10)
    assert close(posterior.covariance[:, 0, 0], variance, 1e-10)
    assert close(law.denoiser(process).data(x, t)[:, 0], mean, 1e-10)
    for i in range(len(x)):
        logits = posterior.weights[i].clamp(1e-300).log()
        as_mixture = GaussianMixture(
            None, posterior.means[i], covariances=posterior.covariances, logits=logits
        )
        density = as_mixture.log_prob(u[:, None]).exp() * (u[1] - u[0])
        assert close(density, joint[i], 1e-9)


@given(sts.mixtures(), PROCESSES, SHARES)
def test_jacobian_is_the_posterior_covariance(
    law: GaussianMixture, process: Process, share: float
) -> None:
    """d E[x_0 | x] / dx = alpha Cov[x_0 | x] / sigma^2: symmetric and positive semi-definite."""
    t = share * process.horizon
    alpha, sigma = process.alpha(t), process.sigma(t)
    exact = law.denoiser(process)
    x = alpha * points(1, law.dim) + sigma * points(1, law.dim, 1)
    jacobian = torch.autograd.functional.jacobian(lambda v: exact.data(v[None], t)[0], x[0])
    assert isinstance(jacobian, Tensor)
    size = max(1.0, jacobian.abs().max().item())
    assert torch.allclose(jacobian, jacobian.mT, rtol=0, atol=1e-9 * size)
    assert torch.linalg.eigvalsh((jacobian + jacobian.mT) / 2).min() >= -1e-12 * size
    covariance = law.posterior(process, x, t).covariance[0]
    assert torch.allclose(jacobian, alpha / sigma**2 * covariance, rtol=0, atol=1e-9 * size)


@given(sts.mixtures(), SHARES, st.integers(0, 2**31), st.floats(0.2, 5.0))
def test_moving_turning_and_scaling_the_law(
    law: GaussianMixture, share: float, seed: int, scale: float
) -> None:
    process, axes = VP(), rotation(law.dim, seed)
    alpha = process.alpha(share)
    x, zero = points(4, law.dim), torch.zeros(law.dim, dtype=torch.float64)
    identity, shift = torch.eye(law.dim, dtype=torch.float64), points(1, law.dim, 2)[0]
    score = law.denoiser(process).score(x, share)
    size = 1e-12 * max(1.0, score.abs().max().item(), 1 / process.sigma(share) ** 2)
    moved = transformed(law, 1.0, shift, identity).denoiser(process)
    assert close(moved.score(x + alpha * shift, share), score, 10 * size)
    turned = transformed(law, 1.0, zero, axes).denoiser(process)
    assert close(turned.score(x @ axes.mT, share), score @ axes.mT, 10 * size)
    plain = law.denoiser(EDM(1e-3, 50.0))
    scaled = transformed(law, scale, zero, identity).denoiser(EDM(1e-3, 300.0))
    want = plain.score(x, 0.8) / scale
    assert close(scaled.score(scale * x, scale * 0.8), want, 1e-11)


@given(sts.mixtures(), PROCESSES, SHARES)
def test_a_time_for_each_sample(law: GaussianMixture, process: Process, share: float) -> None:
    x = points(4, law.dim)
    shares = torch.tensor([1.0, 0.5, 0.3, 0.1], dtype=torch.float64)
    times = share * process.horizon * shares
    exact = law.denoiser(process)
    together = exact.data(x, times)
    one_by_one = [exact.data(x[i : i + 1], float(times[i])) for i in range(4)]
    assert close(together, torch.cat(one_by_one), 1e-11)


@given(st.data())
def test_events_of_any_shape(data: st.DataObject) -> None:
    law = data.draw(sts.mixtures())
    event = data.draw(sts.event_shapes(law.dim))
    flat = points(5, law.dim)
    x = flat.reshape(5, *event)
    exact = law.denoiser(VP())
    assert torch.equal(law.log_prob(x), law.log_prob(flat))
    assert torch.equal(law.score(x), law.score(flat).reshape(x.shape))
    assert torch.equal(exact.data(x, 0.4), exact.data(flat, 0.4).reshape(x.shape))
    assert exact.velocity(x[:0], 0.4).shape == (0, *event)
    posterior = law.posterior(VP(), x, 0.4)
    assert close(posterior.mean, exact.data(flat, 0.4), 1e-11)


def test_blocks_are_seamless(toy2: GaussianMixture) -> None:
    x = points(150_000, 2)
    edge = slice(43_000, 44_500)
    assert torch.equal(toy2.log_prob(x)[edge], toy2.log_prob(x[edge]))
    times = torch.linspace(0.1, 1, len(x), dtype=torch.float64)
    exact = toy2.denoiser(VP())
    assert close(exact.data(x, times)[edge], exact.data(x[edge], times[edge]), 1e-14)


# ---- extremes --------------------------------------------------------------------------------------


@given(sts.mixtures(), st.sampled_from([1e2, 1e3, 1e4]))
def test_float32_far_out_is_finite_and_right(law: GaussianMixture, distance: float) -> None:
    x = (distance * law.variances.max().sqrt() * torch.sign(points(6, law.dim))).float()
    for got, want in (
        (law.log_prob(x), law.log_prob(x.double())),
        (law.score(x), law.score(x.double())),
    ):
        assert got.dtype == torch.float32
        assert bool(torch.isfinite(got).all())
        assert torch.allclose(got.double(), want, rtol=1e-2, atol=1e-3 * want.abs().max().item())
    assert bool(torch.isfinite(law.denoiser(VP()).data(x, 0.01)).all())


@pytest.mark.parametrize("t", [1e-12, 1e-6, 1e-2, 1.0])
def test_an_atom_is_known_exactly(delta: GaussianMixture, t: float) -> None:
    process = Heat()
    later, sigma = delta.at(process, t), process.sigma(t)
    x = 0.7 + sigma * torch.tensor([[-30.0], [-1.0], [0.0], [2.0]], dtype=torch.float64)
    z = (x[:, 0] - 0.7) / sigma
    want = -0.5 * z * z - math.log(sigma * math.sqrt(2 * math.pi))
    assert close(later.log_prob(x), want, 1e-14)
    # An ulp of x is a part of sigma; the score is as exact as x.
    assert close(sigma * later.score(x)[:, 0], -z, 1e-14 + 4e-16 / sigma)
    if t >= process.t_min:
        assert torch.equal(delta.denoiser(process).data(x, t), torch.full_like(x, 0.7))


@pytest.mark.parametrize("sigma", [1e-3, 1e-6, 1e-9])
def test_narrow_components_keep_their_digits(sigma: float) -> None:
    law = GaussianMixture([0.5, 0.5], [[1.0, 2.0], [1.0 + 4 * sigma, 2.0]], sigma)
    offsets = torch.tensor([[0.5, 1.0], [2.0, 0.0], [3.5, -1.0]], dtype=torch.float64)
    x = law.means[0] + sigma * offsets
    # What is left of the offsets after x was rounded, and of the second mean.
    z = (x - law.means[0]) / sigma
    gap = ((law.means[1] - law.means[0]) / sigma)[0].item()
    unit = GaussianMixture([0.5, 0.5], [[0.0, 0.0], [gap, 0.0]], 1.0)
    assert close(law.log_prob(x), unit.log_prob(z) - 2 * math.log(sigma), 1e-12)
    # An ulp of x is a part of sigma; the score is as exact as x.
    assert close(sigma * law.score(x), unit.score(z), 1e-12 + 2e-15 / sigma)


# ---- draws -----------------------------------------------------------------------------------------


def test_sample_moments(toy2: GaussianMixture, toy: GaussianMixture) -> None:
    """Mean and covariance within four standard errors."""
    n = 200_000
    for law in (toy2, toy):
        x = law.sample(n, seed=3)
        centred = x - law.mean
        error = 4 * (law.covariance.diagonal() / n).sqrt()
        assert bool(((x.mean(0) - law.mean).abs() <= error).all())
        products = centred[:, :, None] * centred[:, None, :]
        error = 4 * products.std(0) / math.sqrt(n)
        assert bool(((products.mean(0) - law.covariance).abs() <= error).all())


def test_share_of_each_component(toy: GaussianMixture) -> None:
    x, n = toy.sample(100_000, seed=5), 100_000
    p = toy.cdf(torch.tensor([-0.4])).item()
    share = (x < -0.4).double().mean().item()
    assert abs(share - p) <= 4 * math.sqrt(p * (1 - p) / n)  # four standard errors


def test_draws_follow_their_seed_and_leave_the_global_generator(toy2: GaussianMixture) -> None:
    before = torch.get_rng_state()
    one, two = toy2.sample(5, seed=1), toy2.sample(5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(one, two)
    assert not torch.equal(toy2.sample(5), toy2.sample(5))
    assert toy2.sample(0, seed=1).shape == (0, 2)
    assert toy2.sample(3, dtype=torch.float32).dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), before)


def test_standardised(toy2: GaussianMixture) -> None:
    moved = transformed(
        toy2, 3.0, torch.tensor([5.0, -1.0]).double(), rotation(2, 1)
    ).standardised()
    assert close(moved.mean, torch.zeros(2).double(), 1e-14)
    assert moved.covariance.diagonal().mean().item() == pytest.approx(1.0, rel=1e-14)


# ---- bad input -------------------------------------------------------------------------------------

ONE = GaussianMixture(None, [0.0], 1.0)
ATOM = GaussianMixture(None, [0.0], 0.0)
PLANE = GaussianMixture(None, [[0.0, 0.0]], 1.0)
X = torch.zeros(3, 1)
DRAWS = torch.Generator()


def mixture(means: Any = (0.0,), **spread: Any) -> GaussianMixture:
    return GaussianMixture(None, means, **spread)


def full(covariance: Any) -> GaussianMixture:
    return GaussianMixture(None, [[0, 0]], covariances=[covariance])


BAD: list[tuple[str, Any, type[Exception], list[str]]] = [
    ("zero weight", lambda: GaussianMixture([0.0, 1.0], [0, 1], 1.0), ValueError, ["weights", "0.0"]),
    ("negative weight", lambda: GaussianMixture([-1, 2], [0, 1], 1.0), ValueError, ["weights", "-1"]),
    ("nan weight", lambda: GaussianMixture([math.nan], [0], 1.0), ValueError, ["weights", "nan"]),
    ("too many weights", lambda: GaussianMixture([1, 1], [0], 1.0), ValueError, ["weights", "(2,)"]),
    ("weights and logits", lambda: GaussianMixture([1], [0], 1.0, logits=[0]), ValueError, ["logits"]),
    ("infinite logit", lambda: mixture(stds=1.0, logits=[math.inf]), ValueError, ["logits", "inf"]),
    ("no means", lambda: GaussianMixture(None, [], 1.0), ValueError, ["means", "(0, 1)"]),
    ("means of rank 3", lambda: mixture(torch.zeros(1, 2, 3), stds=1.0), ValueError, ["means", "(1, 2, 3)"]),
    ("infinite mean", lambda: GaussianMixture(None, [math.inf], 1.0), ValueError, ["means", "inf"]),
    ("negative std", lambda: GaussianMixture(None, [0], -1.0), ValueError, ["stds", "-1.0"]),
    ("too many stds", lambda: GaussianMixture(None, [0], [1.0, 2.0]), ValueError, ["stds", "(2, 1)"]),
    ("no spread", lambda: GaussianMixture(None, [0]), ValueError, ["stds", "covariances"]),
    ("two spreads", lambda: mixture(stds=1.0, covariances=[[[1.0]]]), ValueError, ["one of"]),
    ("covariance shape", lambda: mixture(covariances=[[1.0]]), ValueError, ["covariances", "(1, 1)"]),
    ("asymmetric", lambda: full([[1, 0.5], [0, 1]]), ValueError, ["covariances", "symmetric"]),
    ("indefinite", lambda: full([[1, 2], [2, 1]]), ValueError, ["covariances", "-1"]),
    ("n negative", lambda: ONE.sample(-1), ValueError, ["n must", "-1"]),
    ("n float", lambda: ONE.sample(2.0), TypeError, ["n must", "2.0"]),
    ("n bool", lambda: ONE.sample(True), TypeError, ["n must", "True"]),
    ("seed negative", lambda: ONE.sample(1, seed=-1), ValueError, ["seed", "-1"]),
    ("seed huge", lambda: ONE.sample(1, seed=2**63), ValueError, ["seed", str(2**63)]),
    ("seed float", lambda: ONE.sample(1, seed=1.5), TypeError, ["seed", "1.5"]),
    ("seed twice", lambda: ONE.sample(1, seed=1, generator=DRAWS), ValueError, ["seed", "generator"]),
    ("generator", lambda: ONE.sample(1, generator=7), TypeError, ["generator", "int"]),
    ("integer points", lambda: ONE.log_prob(torch.zeros(3, 1).long()), TypeError, ["x must", "int64"]),
    ("width", lambda: PLANE.log_prob(torch.zeros(3, 3)), ValueError, ["2", "(3, 3)"]),
    ("no batch", lambda: ONE.score(torch.tensor(0.0)), ValueError, ["x must", "()"]),
    ("atom", lambda: ATOM.log_prob(X), ValueError, ["zero standard deviation"]),
    ("cdf in 2-D", lambda: PLANE.cdf(X), ValueError, ["d = 2"]),
    ("quantile in 2-D", lambda: PLANE.quantile(X), ValueError, ["quantile", "d = 2"]),
    ("u above 1", lambda: ONE.quantile(torch.tensor([0.5, 1.5])), ValueError, ["u must", "1.5"]),
    ("u nan", lambda: ONE.quantile(torch.tensor([math.nan])), ValueError, ["u must", "nan"]),
    ("entropy", lambda: GaussianMixture(None, torch.eye(2), 1.0).entropy(), ValueError, ["entropy", "d = 2"]),
    ("t above T", lambda: ONE.at(VP(), 1.5), ValueError, ["t must", "1.5"]),
    ("t bool", lambda: ONE.at(VP(), True), TypeError, ["t must", "True"]),
    ("t vector", lambda: ONE.at(VP(), torch.ones(3)), TypeError, ["t must", "tensor"]),
    ("t integer tensor", lambda: ONE.at(VP(), torch.tensor(1)), TypeError, ["t must"]),
    ("posterior at 0", lambda: ONE.posterior(VP(), X, 0.0), ValueError, ["sigma(t) > 0", "t = 0"]),
    ("conditions", lambda: ONE.denoiser(VP()).data(X, 0.5, cond=X), ValueError, ["conditions", "cond"]),
    ("score at 0", lambda: ONE.denoiser(VP()).score(X, 0.0), ValueError, ["t must", "[1e-05, 1]"]),
]  # fmt: skip


test_bad_input = bad_input(BAD)


def test_times_may_be_tensors_without_a_shape(toy: GaussianMixture) -> None:
    time = torch.tensor(0.3, dtype=torch.float64)
    assert torch.equal(toy.at(VP(), time).means, toy.at(VP(), 0.3).means)
    assert toy.at(VP(), 0).means.tolist() == toy.means.tolist()
