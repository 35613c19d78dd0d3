# Bad input is passed on purpose.
# pyright: reportArgumentType=false
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import normal
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sdekit import DDPM, VP, Denoiser, GaussianMixture, NetworkDenoiser
from sdekit.ddpm import (
    betas_from_alphas_bar,
    cosine_betas,
    linear_betas,
    quadratic_betas,
    rescale_zero_terminal_snr,
    sigmoid_betas,
)
from sdekit.denoisers import conversion
from sdekit.sampling import DDIM, Ancestral, EulerMaruyama
from sdekit.testing import strategies

SIZES = (250, 500, 1000)
random_betas = strategies.betas(max_steps=300)


def doubles(values: float | list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(a, b, rtol: float = 0.0, atol: float = 0.0) -> None:
    a, b = (torch.as_tensor(v, dtype=torch.float64) for v in (a, b))
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def slope(sizes, errors) -> float:
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


# ------------------------------------------------------------------------------ schedules

#: alpha_bar_N to the digits given.
PUBLISHED = {
    "Ho et al. 2020": (linear_betas(), 4.0358e-5),
    "200 steps to 0.2": (linear_betas(200, 1e-4, 0.2), 4.599e-10),
    "Sohl-Dickstein et al. 2015, swiss roll": (sigmoid_betas(), 6.358e-3),
    "steps of 1.99e-5": (linear_betas(1000, 1e-4, 1e-4 + 999 * 1.99e-5), 4.077e-5),
    "Nichol & Dhariwal 2021": (cosine_betas(), 2.428767e-9),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_schedules_end_where_they_should(name):
    betas, last = PUBLISHED[name]
    close(DDPM(betas).alphas_bar[-1], last, rtol=1e-4)


def test_formulas_of_the_schedules():
    assert linear_betas().dtype == torch.float64
    close(linear_betas(5, 0.1, 0.3), [0.1, 0.15, 0.2, 0.25, 0.3], rtol=1e-15)
    close(quadratic_betas(3, 0.01, 0.09), [0.01, 0.04, 0.09], rtol=1e-15)
    logistic = [1 / (1 + math.exp(-v)) for v in (-2.0, 0.0, 2.0)]
    close(sigmoid_betas(3, 0.1, 0.5, -2, 2), [0.1 + 0.4 * v for v in logistic], rtol=1e-15)
    cosine = [math.cos((i / 50 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(51)]
    expected = [min(1 - b / a, 0.999) for a, b in pairwise(cosine)]
    close(cosine_betas(50), expected, rtol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 10, 100, 1000, 4000])
def test_cosine_betas_are_clipped_and_increase(n):
    betas = cosine_betas(n)
    assert (betas.diff() >= 0).all()
    assert betas[0] > 0
    assert betas[-1] == 0.999


@given(random_betas)
def test_betas_from_alphas_bar_inverts_the_product(betas):
    alphas_bar = DDPM(betas).alphas_bar
    kept = alphas_bar > 1e-280
    alphas_bar = alphas_bar[kept]
    # alpha_bar has rounded at 1e-16, which is all it tells of a small beta; N sums add to that.
    close(betas_from_alphas_bar(alphas_bar), doubles(betas)[kept], rtol=0, atol=3e-13)


# ------------------------------------------------------------------------ chain and process


@given(random_betas)
def test_process_has_the_alpha_bar_of_the_chain(betas):
    chain = DDPM(betas)
    n = len(betas)
    exact = [math.fsum(math.log1p(-b) for b in betas[: i + 1]) for i in range(n)]
    close(chain.log_alphas_bar, exact, rtol=1e-13)
    for i in range(n):
        t, log_bar = (i + 1) / n, float(chain.log_alphas_bar[i])
        assert chain.process.alpha(t) ** 2 == pytest.approx(math.exp(log_bar), rel=1e-12)
        assert chain.process.sigma(t) ** 2 == pytest.approx(-math.expm1(log_bar), rel=1e-12)


@given(random_betas)
def test_betas_come_back_exactly(betas):
    close(DDPM(betas).process.to_betas(len(betas)), betas, rtol=1e-14)


@given(random_betas)
def test_joint_law_is_that_of_the_chain(betas):
    process, n = DDPM(betas).process, len(betas)
    for i, beta in enumerate(betas):
        scale, std = process.transition(i / n, (i + 1) / n)
        assert scale == pytest.approx(math.sqrt(1 - beta), rel=1e-12)
        assert std == pytest.approx(math.sqrt(beta), rel=1e-12)


def test_times_run_from_one_to_zero():
    assert DDPM(linear_betas(4)).times() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert len(DDPM(linear_betas(4))) == 4


@pytest.mark.parametrize("n", [200, 400, 800])
def test_matching_rates_instead_of_alpha_bar_is_off_by_one_over_n(n):
    """N beta_i = beta(i / N), as the limit is often written, has the alpha_bar of VP to O(1 / N) only."""
    process = VP()

    def gap(n: int) -> float:
        betas = doubles([float(process.schedule.beta(i / n)) / n for i in range(1, n + 1)])
        return abs(float(DDPM(betas).log_alphas_bar[-1]) + float(process.schedule.B(1.0)))

    assert gap(n) / gap(2 * n) == pytest.approx(2, abs=0.15)
    assert 0 < n * gap(n) < 100


# ----------------------------------------------------------------------------- posterior


def coefficients(chain: DDPM, i: int) -> tuple[float, float, float]:
    """(weight on x0, weight on x_i, variance)."""
    one, zero = doubles([[1.0]]), doubles([[0.0]])
    on_x0, variance = chain.posterior(one, zero, i)
    return on_x0.item(), chain.posterior(zero, one, i)[0].item(), variance.item()


@given(random_betas, st.data())
def test_posterior_identities(betas, data):
    chain = DDPM(betas)
    i = data.draw(st.integers(0, len(betas) - 1))
    on_x0, on_xt, variance = coefficients(chain, i)
    bar = chain.alphas_bar[i].item()
    before = chain.alphas_bar[i - 1].item() if i else 1.0
    noise, noise_before = (-math.expm1(v.item()) for v in chain.log_alphas_bar[[i, i - 1]])
    assert on_x0 + on_xt * math.sqrt(bar) == pytest.approx(math.sqrt(before), rel=1e-12)
    if i == 0:
        assert (variance, on_xt) == (0.0, 0.0)
        assert on_x0 == pytest.approx(1, rel=1e-15)
        return
    assert on_xt**2 * noise + variance == pytest.approx(noise_before, rel=1e-12, abs=1e-15)
    assert 0 < variance <= betas[i]
    if before > 1e-15:
        assert variance < betas[i]


@pytest.mark.parametrize("i", [1, 7, 19])
def test_posterior_is_bayes_by_quadrature(i):
    betas = linear_betas(20, 0.01, 0.4)
    chain = DDPM(betas)
    x0, xt, beta, before = 0.8, -0.3, betas[i].item(), chain.alphas_bar[i - 1].item()
    x = np.linspace(-14, 14, 20_001)
    log_p = -((xt - math.sqrt(1 - beta) * x) ** 2) / (2 * beta)
    log_p -= (x - math.sqrt(before) * x0) ** 2 / (2 * (1 - before))
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    mean = float((p * x).sum())
    found, variance = chain.posterior(doubles([[x0]]), doubles([[xt]]), i)
    assert found.item() == pytest.approx(mean, rel=1e-12)
    assert variance.item() == pytest.approx(float((p * (x - mean) ** 2).sum()), rel=1e-12)


@given(random_betas, st.data(), st.floats(-5, 5), st.floats(-5, 5))
def test_noise_form_of_the_mean_is_the_data_form(betas, data, start, eps):
    chain = DDPM(betas)
    i = data.draw(st.integers(0, len(betas) - 1))
    beta, noise = betas[i], -math.expm1(chain.log_alphas_bar[i].item())
    x0 = doubles([[start]])
    xt = chain.q_sample(x0, i, doubles([[eps]]))
    mean = (xt - beta / math.sqrt(noise) * eps) / math.sqrt(1 - beta)
    close(chain.posterior(x0, xt, i)[0], mean, rtol=1e-12, atol=1e-12)


def test_posterior_shapes_and_rows():
    chain = DDPM(linear_betas(10, 0.01, 0.2))
    x0, xt, i = normal(4, 2, 3), normal(4, 2, 3, seed=1), torch.tensor([0, 3, 9, 3])
    mean, variance = chain.posterior(x0, xt, i)
    assert mean.shape == (4, 2, 3)
    assert variance.shape == (4, 1, 1)
    for row, k in enumerate(i.tolist()):
        one = slice(row, row + 1)
        alone, spread = chain.posterior(x0[one], xt[one], k)
        close(mean[one], alone, rtol=1e-15)
        assert variance[row].item() == spread.item()
    mean, variance = chain.posterior(x0.float(), xt.float(), 3)
    assert (mean.dtype, variance.dtype) == (torch.float32, torch.float32)


# ------------------------------------------------------------------------------- q_sample


@given(random_betas, st.data())
def test_q_sample_coefficients(betas, data):
    chain = DDPM(betas)
    i = data.draw(st.integers(0, len(betas) - 1))
    one, zero = doubles([[1.0]]), doubles([[0.0]])
    log_bar = math.fsum(math.log1p(-b) for b in betas[: i + 1])
    assert chain.q_sample(one, i, zero).item() == pytest.approx(math.exp(log_bar / 2), rel=1e-12)
    spread = math.sqrt(-math.expm1(log_bar))
    assert chain.q_sample(zero, i, one).item() == pytest.approx(spread, rel=1e-12)


def test_q_sample_has_the_moments_of_the_walk():
    """Against the chain run step by step: within 4 standard errors of its mean and variance."""
    betas, n = linear_betas(30, 0.01, 0.2), 100_000
    chain, walk = DDPM(betas), torch.full((n, 1), 1.5, dtype=torch.float64)
    for i, beta in enumerate(betas.tolist()):
        walk = math.sqrt(1 - beta) * walk + math.sqrt(beta) * normal(n, 1, seed=100 + i)
        if i in (0, 14, 29):
            ends = chain.q_sample(doubles([[1.5]] * 2), i, doubles([[0.0], [1.0]]))
            mean, std = ends[0].item(), (ends[1] - ends[0]).item()
            assert abs(walk.mean().item() - mean) < 4 * std / math.sqrt(n)
            assert abs(walk.var().item() - std**2) < 4 * std**2 * math.sqrt(2 / n)


def test_q_sample_rows_dtype_and_empty_batch():
    chain = DDPM(linear_betas(10, 0.01, 0.2))
    x0, noise = normal(3, 2), normal(3, 2, seed=1)
    i = torch.tensor([0, 9, 4], dtype=torch.int32)
    together = chain.q_sample(x0, i, noise)
    for row, k in enumerate(i.tolist()):
        one = slice(row, row + 1)
        close(together[one], chain.q_sample(x0[one], k, noise[one]), rtol=1e-15)
    assert chain.q_sample(x0.float(), 3, noise.float()).dtype == torch.float32
    nothing = torch.empty(0, 2)
    assert chain.q_sample(nothing, torch.empty(0, dtype=torch.int64), nothing).shape == (0, 2)


# ------------------------------------------------------------------------------- sampling


@given(strategies.betas(max_steps=60))
def test_ddim_with_eta_one_is_ancestral(betas):
    chain = DDPM(betas)
    plans = [s.plan(chain.process, chain.times()) for s in (DDIM(eta=1.0), Ancestral())]
    for k, (ours, theirs) in enumerate(zip(*(plan.rows[1:] for plan in plans), strict=True)):
        i = len(betas) - 1 - k
        for mine, other in ((ours.x, theirs.x), (ours.p, theirs.p), (ours.z, theirs.z)):
            assert mine == pytest.approx(other, rel=1e-12, abs=1e-12)
        variance = sum(c * c for c in ours.z.values())
        assert variance == pytest.approx(coefficients(chain, i)[2], rel=1e-12, abs=1e-14)


def walked_back(chain: DDPM, mean: float, variance: float, kind: str) -> tuple[float, float]:
    """Law of Ho et al. 2020, algorithm 2, on N(mean, variance), written with betas."""
    betas, bars = chain.betas.tolist(), [1.0, *torch.cumprod(1 - chain.betas, 0).tolist()]
    at, spread = 0.0, 1.0
    for i in reversed(range(len(betas))):
        beta, bar, before = betas[i], bars[i + 1], bars[i]
        gain = math.sqrt(bar) * variance / (bar * variance + 1 - bar)
        guess = mean - gain * math.sqrt(bar) * mean  # E[x0 | x] = guess + gain x
        on_x0 = math.sqrt(before) * beta / (1 - bar)
        on_xt = math.sqrt(1 - beta) * (1 - before) / (1 - bar)
        noise = beta if kind == "beta" else (1 - before) / (1 - bar) * beta
        factor = on_xt + on_x0 * gain
        at = factor * at + on_x0 * guess
        spread = factor**2 * spread + (noise if i else 0.0)
    return at, spread


@pytest.mark.parametrize("kind", ["beta", "beta_tilde"])
@pytest.mark.parametrize(("mean", "variance"), [(0.7, 0.25), (0.0, 1.0), (-2.0, 3.0), (0.7, 0.0)])
@pytest.mark.parametrize(
    "betas", [linear_betas(200), [0.3, 0.01, 0.6, 0.2], [0.5]], ids=["linear", "jagged", "one step"]
)
def test_chain_law_is_the_recursion_in_betas(betas, mean, variance, kind):
    chain = DDPM(betas)
    plan = Ancestral(kind).plan(chain.process, chain.times())
    assert plan.nfe == len(chain)
    found = plan.gaussian_law(mean, variance)
    expected = walked_back(chain, mean, variance, kind)
    for a, b in zip(found, expected, strict=True):
        assert a.item() == pytest.approx(b, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("kind", ["beta", "beta_tilde"])
def test_chain_samples_have_the_law(kind):
    """Within 4 standard errors of the exact mean and variance of the recursion."""
    n, chain = 20_000, DDPM(linear_betas(25, 0.01, 0.4))
    exact = GaussianMixture(None, [0.7], 0.5).denoiser(chain.process)
    out = chain.sample(exact, (n, 1), variance=kind, seed=3, dtype=torch.float64)
    mean, variance = walked_back(chain, 0.7, 0.25, kind)
    assert out.nfe == 25
    assert out.times == tuple(chain.times())
    assert abs(out.x.mean().item() - mean) < 4 * math.sqrt(variance / n)
    assert abs(out.x.var().item() - variance) < 4 * variance * math.sqrt(2 / n)


@given(strategies.betas(max_steps=60))
def test_beta_is_exact_for_unit_gaussians_and_beta_tilde_for_a_point(betas):
    chain = DDPM(betas)
    if len(betas) == 1:
        return
    times = chain.times()[:-1]  # down to the state after the first step: no last mean
    kept, noise = 1 - betas[0], betas[0]
    mean, variance = Ancestral("beta").plan(chain.process, times).gaussian_law(0.0, 1.0)
    close(mean, [0.0])
    close(variance, [1.0], rtol=1e-12)
    plan = Ancestral("beta_tilde").plan(chain.process, times)
    mean, variance = plan.gaussian_law(0.7, 0.0, start="exact")
    close(mean, [0.7 * math.sqrt(kept)], rtol=1e-12)
    close(variance, [noise], rtol=1e-12)


# ------------------------------------------------------------------- the continuous limit


def on_x_and_score(plan, process: VP) -> tuple[float, float]:
    """Weights of the first row on the state and on the score there."""
    start, row = plan.rows[:2]
    alpha, sigma = process.alpha(start.t), process.sigma(start.t)
    on_x = row.x.get(0, 0.0) + row.p[0] * start.read[0]
    on_data = row.p[0] * start.read[1]  # E[x0 | x] = (x + sigma^2 score) / alpha
    return on_x + on_data / alpha, on_data * sigma**2 / alpha


def test_reverse_sde_step_is_the_chain_step_to_second_order_in_beta():
    sizes, gaps = [0.1, 0.05, 0.025, 0.0125], []
    for beta in sizes:
        process = VP.from_betas([beta] * 20)
        steps = [
            on_x_and_score(s.plan(process, [1.0, 0.95]), process)
            for s in (EulerMaruyama(), Ancestral())
        ]
        on_x, on_score = steps[1]
        assert on_x == pytest.approx(1 / math.sqrt(1 - beta), rel=1e-11)
        assert on_score == pytest.approx(beta / math.sqrt(1 - beta), rel=1e-11)
        gaps.append([abs(a - b) for a, b in zip(*steps, strict=True)])
        # exp(h) = 1 + h + h^2 / 2 + .. and 2 sinh(h) = 2 h + h^3 / 3 + .., h = -log(1 - beta) / 2
        assert gaps[-1][0] == pytest.approx(beta**2 / 8, rel=2 * beta)
        assert gaps[-1][1] == pytest.approx(beta**3 / 24, rel=2 * beta)
    on_x, on_score = zip(*gaps, strict=True)
    assert slope(sizes, on_x) == pytest.approx(2, abs=0.1)
    assert slope(sizes, on_score) == pytest.approx(3, abs=0.1)


def test_reverse_sde_mean_converges_to_the_chain_mean_at_order_one():
    process, gaps = VP(), []
    for n in SIZES:
        chain = DDPM(process.to_betas(n))
        plan = EulerMaruyama().plan(process, chain.times())
        other = Ancestral("beta").plan(chain.process, chain.times())
        means = [p.gaussian_law(0.7, 0.25)[0].item() for p in (plan, other)]
        gaps.append(abs(means[0] - means[1]))
    assert slope(SIZES, gaps) == pytest.approx(-1, abs=0.05)


# --------------------------------------------------------------- zero terminal SNR


class Reading(Denoiser):
    """The exact model of a mixture, declared and given as another kind of prediction."""

    def __init__(self, target: GaussianMixture, process: VP, prediction: str) -> None:
        self.exact, self.process, self.prediction = target.denoiser(process), process, prediction
        self.calls = 0

    def predict(self, x, t, **conditions):
        self.calls += 1
        a, b = conversion(self.process, "data", self.prediction, t)
        return a * x + b * self.exact.data(x, t)


def test_zero_terminal_snr_keeps_the_start_and_ends_at_nothing():
    betas = linear_betas()
    rescaled = rescale_zero_terminal_snr(betas)
    chain = DDPM(rescaled, zero_terminal_snr=True)
    close(chain.alphas_bar[0], 1 - betas[0], rtol=1e-12)
    assert chain.alphas_bar[-1] == 0
    assert rescaled[-1] == 1
    assert rescaled[:-1].max().item() == pytest.approx(0.752, abs=5e-4)
    assert (chain.alphas_bar.diff() < 0).all()
    assert chain.process.alpha(1.0) == 0
    root = torch.cumprod(1 - betas, 0).sqrt()
    expected = (root - root[-1]) * root[0] / (root[0] - root[-1])  # Lin et al. 2023, algorithm 1
    close(chain.alphas_bar, expected.square(), rtol=1e-11)


@given(strategies.betas(max_steps=300))
def test_zero_terminal_snr_of_any_chain(betas):
    alphas_bar = DDPM(betas).alphas_bar
    if len(betas) == 1 or alphas_bar[-2] < 1e-12:  # the last roots would not be told apart
        return
    rescaled = rescale_zero_terminal_snr(betas)
    chain = DDPM(rescaled, zero_terminal_snr=True)
    assert chain.alphas_bar[0].item() == pytest.approx(1 - betas[0], rel=1e-12)
    assert chain.alphas_bar[-1] == 0
    assert (rescaled[:-1] < 1).all()
    assert (chain.alphas_bar.diff() < 0).all()
    assert (chain.alphas_bar <= alphas_bar * (1 + 1e-12)).all()


@pytest.mark.parametrize("prediction", ["noise", "score"])
def test_noise_says_nothing_where_there_is_no_signal(prediction):
    chain = DDPM(rescale_zero_terminal_snr(linear_betas(50, 1e-3, 0.2)), zero_terminal_snr=True)
    model = Reading(GaussianMixture(None, [0.7], 0.5), chain.process, prediction)
    with pytest.raises(ValueError, match=f"{prediction}.* does not determine 'data'.* data or v"):
        chain.sample(model, (10, 1), seed=0)
    assert model.calls == 0


@pytest.mark.parametrize("prediction", ["data", "v"])
def test_zero_terminal_snr_samples_with_data_or_v(prediction):
    """Within 4 standard errors of the exact law, which has no error of the start."""
    n = 20_000
    chain = DDPM(rescale_zero_terminal_snr(linear_betas(50, 1e-3, 0.2)), zero_terminal_snr=True)
    model = Reading(GaussianMixture(None, [0.7], 0.5), chain.process, prediction)
    out = chain.sample(model, (n, 1), seed=5, dtype=torch.float64)
    mean, variance = walked_back(chain, 0.7, 0.25, "beta_tilde")
    assert mean == pytest.approx(0.7, abs=1e-12)  # nothing of the start's mean is left
    assert abs(out.x.mean().item() - mean) < 4 * math.sqrt(variance / n)
    assert abs(out.x.var().item() - variance) < 4 * variance * math.sqrt(2 / n)
    plan = Ancestral().plan(chain.process, chain.times())
    found = [v.item() for v in plan.gaussian_law(0.7, 0.25)]
    assert found == pytest.approx([mean, variance], rel=1e-12)


def test_label_networks_see_the_index_of_the_step():
    seen = []

    class Zero(nn.Module):
        def forward(self, x, label):
            seen.append(label.unique().tolist())
            return torch.zeros_like(x)

    chain = DDPM(linear_betas(7, 0.01, 0.2))
    chain.sample(NetworkDenoiser(Zero(), chain.process, time="label"), (2, 1), seed=0)
    assert seen == [[i] for i in range(6, -1, -1)]


# ------------------------------------------------------------------------------ bad input

X, CHAIN = torch.zeros(4, 2), DDPM(linear_betas(10, 0.01, 0.2))
OTHER = GaussianMixture(None, [0.7], 0.5).denoiser(VP())
BAD = {
    "2-D": (lambda: DDPM(torch.full((2, 3), 0.1)), ValueError, r"betas .*\(2, 3\)"),
    "empty": (lambda: DDPM([]), ValueError, "betas must be a non-empty vector"),
    "a number": (lambda: DDPM(0.1), TypeError, "betas must be a vector, got 0.1"),
    "zero": (lambda: DDPM([0.1, 0.0]), ValueError, r"betas\[1\] = 0.0"),
    "negative": (lambda: DDPM([-0.1, 0.2]), ValueError, r"betas\[0\] = -0.1"),
    "one": (lambda: DDPM([0.1, 1.0]), ValueError, "zero_terminal_snr=True"),
    "one inside": (
        lambda: DDPM([0.1, 1.0, 0.1], zero_terminal_snr=True),
        ValueError,
        r"betas\[1\] = 1",
    ),
    "above one": (lambda: DDPM([0.1, 1.5]), ValueError, r"betas\[1\] = 1.5"),
    "NaN": (lambda: DDPM([0.1, math.nan]), ValueError, r"betas\[1\] = nan"),
    "alpha_bar": (
        lambda: DDPM(DDPM(linear_betas()).alphas_bar),
        ValueError,
        r"as alpha_bar does; betas are 1 - ",
    ),
    "n zero": (lambda: linear_betas(0), ValueError, "n must be >= 1, got 0"),
    "n float": (lambda: cosine_betas(10.0), TypeError, "n must be an integer"),
    "n bool": (lambda: cosine_betas(True), TypeError, "n must be an integer"),
    "s negative": (lambda: cosine_betas(10, s=-0.1), ValueError, "s must be"),
    "bar rises": (lambda: betas_from_alphas_bar([0.5, 0.6]), ValueError, "decrease strictly"),
    "bar one": (lambda: betas_from_alphas_bar([1.0, 0.6]), ValueError, "decrease strictly"),
    "bar negative": (lambda: betas_from_alphas_bar([0.5, -0.1]), ValueError, "stay >= 0"),
    "bar NaN": (lambda: betas_from_alphas_bar([math.nan]), ValueError, "decrease strictly"),
    "bar empty": (lambda: betas_from_alphas_bar([]), ValueError, "non-empty vector"),
    "rescale one": (lambda: rescale_zero_terminal_snr([0.1]), ValueError, "two steps or more"),
    "i large": (lambda: CHAIN.q_sample(X, 10, X), ValueError, r"i must lie in 0 \.\. 9, got 10"),
    "i negative": (lambda: CHAIN.q_sample(X, -1, X), ValueError, "i must be >= 0, got -1"),
    "i float": (lambda: CHAIN.q_sample(X, 0.5, X), TypeError, "i must be an integer"),
    "i bool": (lambda: CHAIN.q_sample(X, True, X), TypeError, "i must be an integer"),
    "i tensor float": (
        lambda: CHAIN.q_sample(X, torch.ones(4), X),
        TypeError,
        "i must be integer indices, got torch.float32",
    ),
    "i tensor negative": (
        lambda: CHAIN.posterior(X, X, torch.tensor([0, 1, -1, 2])),
        ValueError,
        r"got -1 \.\. 2",
    ),
    "i column": (
        lambda: CHAIN.q_sample(X, torch.ones(4, 1, dtype=torch.int64), X),
        ValueError,
        r"i must have shape \(4,\), got \(4, 1\)",
    ),
    "noise shape": (lambda: CHAIN.q_sample(X, 0, X[:, 0]), ValueError, r"\(4, 2\), got \(4,\)"),
    "xt shape": (lambda: CHAIN.posterior(X, X[:, :1], 0), ValueError, r"\(4, 2\), got \(4, 1\)"),
    "integers": (lambda: CHAIN.q_sample(X.int(), 0, X), TypeError, "x0 must be floating point"),
    "integers in posterior": (
        lambda: CHAIN.posterior(X.int(), X, 0),
        TypeError,
        "x0 must be floating point",
    ),
    "other process": (lambda: CHAIN.sample(OTHER, (2, 1)), ValueError, "denoiser must be on"),
    "variance": (
        lambda: CHAIN.sample(OTHER.mixture.denoiser(CHAIN.process), (2, 1), variance="beta-tilde"),
        ValueError,
        "did you mean 'beta_tilde'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()


def test_a_decreasing_table_of_betas_is_allowed():
    chain = DDPM([0.5, 0.2, 0.1])
    close(chain.alphas_bar, [0.5, 0.4, 0.36], rtol=1e-15)
