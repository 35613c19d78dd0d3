"""The Gaussian by maximum likelihood, held to closed forms, and the affine score model to the fit."""

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import sdekit as sk
from tests.helpers import normal


@pytest.fixture
def baseline(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "experiments"))
    return importlib.import_module("gaussian_baseline")


def test_descent_finds_the_closed_form(baseline):
    data = baseline.LAW.sample(300, seed=3).reshape(2, 150, 2)  # two runs at once
    exact, found = baseline.maximum_likelihood(data), baseline.descended(data, 600, 0.1)
    torch.testing.assert_close(exact[0], data.mean(1), rtol=0, atol=1e-15)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-12)


def test_the_divergence_is_that_of_torch(baseline):
    mean, other = normal(3, seed=1), normal(3, seed=2)
    a, b = normal(3, 3, seed=3), normal(3, 3, seed=4)
    first, second = a @ a.T + torch.eye(3), b @ b.T + torch.eye(3)
    laws = (
        torch.distributions.MultivariateNormal(*law) for law in ((mean, first), (other, second))
    )
    expected = torch.distributions.kl_divergence(*laws)
    torch.testing.assert_close(baseline.gaussian_kl(mean, first, other, second), expected)
    assert float(baseline.gaussian_kl(mean, first, mean, first)) == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize(("n", "d"), [(12, 2), (40, 3), (30, 1)])
def test_the_mean_divergence_of_a_fit_is_exact(baseline, n, d):
    """Within four standard errors over 20,000 data sets; the leading order would be 10 or more away."""
    data = normal(20_000, n, d, seed=n)
    zero, unit = torch.zeros(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64)
    values = baseline.gaussian_kl(zero, unit, *baseline.maximum_likelihood(data))
    exact, leading = baseline.expected_kl(n, d)
    stderr = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean()) - exact) < 4 * stderr
    assert abs(leading - exact) > 10 * stderr


def test_the_mean_divergence_tends_to_its_leading_order(baseline):
    gaps = [baseline.expected_kl(n, 2)[0] / baseline.expected_kl(n, 2)[1] - 1 for n in (500, 1000)]
    assert 0 < gaps[1] < gaps[0] < 0.02
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.02)


def test_a_last_minibatch_iterate_scatters_by_the_rate(baseline):
    """Within four standard errors of 1 / n + rate / ((2 - rate) batch), 300 runs in two dimensions."""
    rate, batch, n = 0.2, 16, 400
    last = baseline.stochastic_mean(normal(300, n, 2, seed=5), 150, rate, batch, seed=6)
    expected = 1 / n + rate / ((2 - rate) * batch) * (1 - 1 / n)
    assert abs(float(last.square().mean()) / expected - 1) < 4 * math.sqrt(2 / 600)


def test_the_optimal_affine_model_is_the_fit(baseline):
    """The likelihood of its flow gives the divergence that the closed form gives the fit."""
    found = baseline.optimum(baseline.maximum_likelihood(baseline.LAW.sample(60, seed=7)))
    from_prior, corrected, closed = found.values()
    assert corrected == pytest.approx(closed, rel=1e-5)
    assert from_prior != pytest.approx(closed, rel=1e-3)  # what N(0, I) costs


def test_the_law_of_an_affine_model_is_read_off_three_points(baseline):
    """The exact score of a Gaussian is affine: its flow from N(0, I) has a known law at the end."""
    truth, process, end = baseline.LAW, baseline.PROCESS, baseline.END
    mean, covariance = baseline.affine_law(truth.denoiser(process))
    first, last = truth.at(process, process.t_max), truth.at(process, end)
    values, vectors = torch.linalg.eigh(truth.covariance)
    variances = [
        process.alpha(t) ** 2 * values + process.sigma(t) ** 2 for t in (end, process.t_max)
    ]
    gain = vectors @ torch.diag((variances[0] / variances[1]).sqrt()) @ vectors.T
    torch.testing.assert_close(mean, last.mean - gain @ first.mean, rtol=0, atol=1e-7)
    torch.testing.assert_close(covariance, gain @ gain.T, rtol=0, atol=1e-7)


def test_an_affine_network_is_affine(baseline):
    network = baseline.AffineNoise(3).double()
    x, t = normal(5, 3), torch.full((1,), 0.3, dtype=torch.float64)
    shift = network(torch.zeros_like(x), t)
    torch.testing.assert_close(network(2 * x, t) - shift, 2 * (network(x, t) - shift))
    torch.testing.assert_close(network(x, t.expand(5)), network(x, t))
    assert isinstance(sk.NetworkDenoiser(network, baseline.PROCESS), sk.Denoiser)
