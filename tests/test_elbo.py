"""The variational bound: exact where it should be, below where it should be."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sdekit as sk
from sdekit.processes import ALL as PROCESSES
from sdekit.processes import GaussianPrior
from tests.helpers import bad_input, normal
from tests.test_likelihood import TOY, VP, Broken, mixture, random_mlp

F64 = torch.float64


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_the_bound_of_a_unit_normal_is_its_density(process: sk.Process) -> None:
    """With nothing left to chance, but for the last step to 0: how that differs is known."""
    law = sk.GaussianMixture(None, torch.zeros(1, 3), 1.0)
    x = 2 * normal(6, 3)
    end = law.at(process, process.t_max)
    prior = GaussianPrior(math.sqrt(end.variances[0, 0].item()))
    out = sk.elbo(law.denoiser(process), x, samples=4, prior=prior)
    # E|eps - eps_hat|^2 at t_min is p^2 d + p (1 - p) |x|^2 with p = alpha^2 / (alpha^2 + sigma^2) there.
    alpha, sigma = (float(c(process.t_min)) for c in (process.alpha, process.sigma))
    v = alpha**2 + sigma**2
    p = alpha**2 / v
    last = 0.5 * (3 * p * p + p * (1 - p) * x.square().sum(1))
    last = last + 1.5 * math.log(2 * math.pi * (sigma / alpha) ** 2)
    # The exact last step has the variance sigma^2 / v and the mean alpha x_t / v; the rest is the same.
    shift = (p - 1) * x
    exact = 0.5 * (3 * p + shift.square().sum(1) * v / sigma**2)
    exact = exact + 1.5 * math.log(2 * math.pi * sigma**2 / v)
    assert (out.value - (law.log_prob(x) - last + exact)).abs().max() < 1e-8
    assert out.stderr.max() < 1e-8
    assert out.nfe == 8


@pytest.mark.parametrize("process", [VP, sk.VE(), sk.EDM(), sk.SubVP(), sk.Interpolant()], ids=repr)
@pytest.mark.parametrize("d", [1, 3])
def test_the_bound_is_tight_for_an_exact_score(process: sk.Process, d: int) -> None:
    """The mean over 400 points within 4 standard errors, which must be small, of log q."""
    law = mixture(d)
    x = law.sample(400, seed=2)
    out = sk.elbo(law.denoiser(process), x, samples=128, prior=law.at(process, process.t_max))
    stderr = out.stderr.square().sum().sqrt() / 400
    assert stderr < 0.03
    assert abs((out.value - law.log_prob(x)).mean()) < 4 * stderr


def test_the_bound_holds_of_points_from_elsewhere() -> None:
    """A model of N(0, 1) has the density of N(0, 1), whatever is asked."""
    law, x = sk.GaussianMixture(None, [0.0], 1.0), TOY.sample(50, seed=3)
    out = sk.elbo(law.denoiser(VP), x, samples=8)
    assert (out.value - law.log_prob(x)).abs().max() < 1e-4
    assert out.stderr.max() < 1e-8


def test_the_standard_error_is_what_the_values_vary_by() -> None:
    """Over 500 points the mean of z^2 is within a quarter of 1; an error is estimated from 64 pairs."""
    law = mixture(2)
    x, end = law.sample(500, seed=4), law.at(VP, 1.0)
    out = sk.elbo(law.denoiser(VP), x, samples=128, prior=end, seed=9)
    z = (out.value - law.log_prob(x)) / out.stderr
    assert 0.75 < z.square().mean() < 1.25


def test_the_bound_lies_below_the_density() -> None:
    """Of an exact model, point by point: the mean over seeds, less 4 standard errors."""
    law = mixture(2)
    x = law.sample(20, seed=5)
    model, prior = law.denoiser(VP), law.at(VP, 1.0)
    runs = [sk.elbo(model, x, samples=64, prior=prior, seed=seed) for seed in range(10)]
    mean = torch.stack([run.value for run in runs]).mean(0)
    stderr = torch.stack([run.stderr for run in runs]).square().sum(0).sqrt() / 10
    flow = sk.log_likelihood(model, x, prior=prior)
    assert (mean <= flow.value + 4 * stderr).all()


@pytest.mark.parametrize("process", [VP, sk.VE()], ids=repr)
def test_the_bound_of_a_wrong_model_by_quadrature(process: sk.Process) -> None:
    """Of each of three points, the mean over 400 copies within 4 standard errors of the integrals."""

    class Wrong(sk.Denoiser):
        prediction = "noise"

        def __init__(self) -> None:
            self.process = process

        def predict(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
            noise = TOY.denoiser(process).noise(x, t)
            return noise + 0.6 * torch.sin(2 * noise + 1)

    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    eps, weights = torch.tensor(nodes)[:, None], torch.tensor(weights / weights.sum())

    def errors(x: float, t: float) -> float:
        alpha, sigma = process.alpha(t), process.sigma(t)
        found = Wrong().noise(alpha * x + sigma * eps, t)
        return (weights @ (found - eps).square()).item()

    def bound(x: float) -> float:
        first, last = process.t_min, process.t_max
        low, high = (float(process.log_snr(t)) for t in (last, first))
        places, parts = np.polynomial.legendre.leggauss(300)
        clock = torch.as_tensor(
            process.time_at_log_snr(torch.tensor(low + (high - low) * (places + 1) / 2))
        )
        clock = clock.clamp(first, last).tolist()
        integral = (
            (high - low) / 2 * sum(w * errors(x, t) for w, t in zip(parts, clock, strict=True))
        )
        ends = process.alpha(last) * x + process.sigma(last) * eps
        entropy = 0.5 + 0.5 * math.log(2 * math.pi) + math.log(process.sigma(last))
        step = 0.5 * math.log(2 * math.pi) + math.log(process.sigma(first) / process.alpha(first))
        known = (weights @ process.prior.log_prob(ends)).item() + entropy - step
        return known - 0.5 * integral - 0.5 * errors(x, first)

    points = [-1.4, 0.2, 2.5]
    x = torch.tensor(points, dtype=F64).repeat_interleave(400)[:, None]
    out = sk.elbo(Wrong(), x, samples=64)
    value, stderr = out.value.view(3, 400), out.stderr.view(3, 400)
    z = (value.mean(1) - torch.tensor([bound(x) for x in points])) / (stderr.norm(dim=1) / 400)
    assert z.abs().max() < 4
    assert stderr.norm(dim=1).max() / 400 < 0.05
    # What the model loses is much more than that.
    assert (TOY.log_prob(x) - out.value).mean() > 0.4


def test_a_wrong_model_has_a_lower_bound() -> None:
    """By KL(p | q) or more, on average over p, for a score that is exact for no q."""
    law, x = TOY, TOY.sample(2000, seed=6)
    model = Broken(lambda out, t: out + 0.3 * torch.sin(4 * out))
    good, bad = (sk.elbo(m, x, samples=32) for m in (law.denoiser(VP), model))
    stderr = torch.stack([good.stderr, bad.stderr]).square().sum().sqrt() / 2000
    assert (good.value - bad.value).mean() > 0.05 + 4 * stderr


def test_samples_are_the_same_in_any_batch() -> None:
    model, x = random_mlp(4), normal(7, 4)
    whole = sk.elbo(model, x, samples=6)
    assert (sk.elbo(model, x, samples=6, chunk=2).value - whole.value).abs().max() < 1e-10
    assert (sk.elbo(model, x[:3], samples=6).value - whole.value[:3]).abs().max() < 1e-10
    assert not torch.equal(sk.elbo(model, x, samples=6, seed=1).value, whole.value)


def test_conditions_and_single_precision() -> None:
    model, x, cond = random_mlp(4, cond_dim=2), normal(7, 2, 2), normal(7, 2)
    whole = sk.elbo(model, x, samples=4, cond=cond)
    parts = sk.elbo(model, x, samples=4, cond=cond, chunk=3)
    assert (whole.value - parts.value).abs().max() < 1e-10
    swapped = sk.elbo(model, x, samples=4, cond=cond.flip(0))
    assert (whole.value - swapped.value).abs().max() > 1e-6
    single = sk.elbo(model.float(), x.float(), samples=4, cond=cond.float())
    assert single.value.dtype == F64
    assert (single.value - whole.value).abs().max() < 1e-2


def test_a_nan_has_a_time() -> None:
    def late(out: Tensor, t: Any) -> Tensor:
        return torch.where(t[:, None] > 0.5, math.nan, out)

    with pytest.raises(sk.NumericsError, match=r"t = 0\.[5-9]"):
        sk.elbo(Broken(late), normal(3, 1), samples=32)


X = normal(4, 1)
MODEL = TOY.denoiser(VP)
test_bad_input = bad_input(
    [
        ("denoiser", lambda: sk.elbo(VP, X), TypeError, ["denoiser must be"]),  # type: ignore[arg-type]
        ("x", lambda: sk.elbo(MODEL, X.int()), TypeError, ["x must be a floating"]),
        ("odd", lambda: sk.elbo(MODEL, X, samples=5), ValueError, ["samples must be even, got 5"]),
        ("none", lambda: sk.elbo(MODEL, X, samples=0), ValueError, ["samples must be >= 2"]),
        ("cond", lambda: sk.elbo(MODEL, X, cond=X[:1]), ValueError, ["cond must be"]),
        ("chunk", lambda: sk.elbo(MODEL, X, chunk=0), ValueError, ["chunk must be >= 1"]),
        ("prior", lambda: sk.elbo(MODEL, X, prior=1), TypeError, ["prior must have"]),  # type: ignore[arg-type]
        ("seed", lambda: sk.elbo(MODEL, X, seed=-1), ValueError, ["seed must be >= 0"]),
    ]
)
