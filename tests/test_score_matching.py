# Bad input is passed on purpose.
# pyright: reportArgumentType=false
import math

import pytest
import torch
from helpers import bad_input, normal
from torch import nn

from sdekit import VP, Denoiser, GaussianMixture, NetworkDenoiser
from sdekit.training import (
    DenoisingLoss,
    ImplicitScoreMatching,
    SlicedScoreMatching,
    minimum_loss,
)
from sdekit.training.times import UniformTimes

SLICED = [SlicedScoreMatching(), SlicedScoreMatching(3), SlicedScoreMatching(2, False)]


class Linear(Denoiser):
    """eps_hat = A x, of parameters A."""

    prediction = "noise"

    def __init__(self, matrix: torch.Tensor) -> None:
        self.process, self.matrix = VP(), matrix

    def predict(self, x, t, **conditions):
        return x @ self.matrix.T


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 2)).double()

    def forward(self, x, t):
        return self.layers(torch.cat([x, t[:, None].to(x)], 1))


def small(prediction: str = "noise") -> NetworkDenoiser:
    torch.manual_seed(0)
    return NetworkDenoiser(Small(), VP(), prediction)


def batch(target, n: int, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    t = 0.05 + 0.95 * torch.rand(n, generator=g, dtype=torch.float64)
    x0 = target.sample(n, generator=g)
    return x0, t, torch.randn(x0.shape, generator=g, dtype=torch.float64)


def call(loss, model, x0, t, noise, seed: int = 5):
    k = getattr(loss, "probes", 0)
    given = {"probes": normal(k, *x0.shape, seed=seed).to(x0)} if k else {}
    return loss(model, x0, t, noise, **given)


def test_implicit_loss_of_a_linear_model_is_its_formula():
    matrix = normal(3, 3)
    x0, t, noise = batch(GaussianMixture(None, torch.zeros(1, 3), 1.0), 20)
    sigma = VP().sigma(t)
    eps = VP().perturb(x0, t, noise) @ matrix.T
    expected = 1 + (eps.square().sum(1) - 2 * sigma * matrix.trace()) / 3
    found = ImplicitScoreMatching()(Linear(matrix), x0, t, noise)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("loss", SLICED, ids=repr)
def test_sliced_loss_of_a_linear_model_is_its_formula(loss):
    matrix, k = normal(3, 3), loss.probes
    x0, t, noise = batch(GaussianMixture(None, torch.zeros(1, 3), 1.0), 20)
    v = normal(k, 20, 3, seed=5).sign()
    eps = VP().perturb(x0, t, noise) @ matrix.T
    squares = eps.square().sum(1) if loss.variance_reduced else (v * eps).sum(2).square().mean(0)
    slopes = torch.einsum("kni,ij,knj->n", v, matrix, v) / k
    expected = 1 + (squares - 2 * VP().sigma(t) * slopes) / 3
    found = call(loss, Linear(matrix), x0, t, noise)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("time", [0.1, 0.5, 1.0])
def test_gradient_is_that_of_denoising_on_a_gaussian(time):
    """eps_hat = theta x on N(0, v): both gradients by Gauss-Hermite over (x0, eps), exact for squares."""
    import numpy as np

    theta, v, process = torch.tensor(0.4, dtype=torch.float64, requires_grad=True), 0.7, VP()
    z, w = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(6))
    x0, noise = torch.cartesian_prod(z * math.sqrt(v), z)[:, :, None].unbind(1)
    weights = torch.cartesian_prod(w, w).prod(1) / (2 * math.pi)
    t, model = torch.full((36,), time, dtype=torch.float64), Linear(theta.view(1, 1))
    found = {}
    for loss in (DenoisingLoss(), ImplicitScoreMatching(), *SLICED):
        value = weights @ call(loss, model, x0, t, noise)
        found[repr(loss)] = value.item(), torch.autograd.grad(value, theta)[0].item()
    alpha, sigma = process.alpha(time), process.sigma(time)
    slope = 2 * 0.4 * (alpha**2 * v + sigma**2) - 2 * sigma
    value = 0.16 * (alpha**2 * v + sigma**2) - 2 * 0.4 * sigma + 1
    for mean, gradient in found.values():
        assert mean == pytest.approx(value, abs=1e-12)
        assert gradient == pytest.approx(slope, abs=1e-12)


@pytest.mark.parametrize("loss", [ImplicitScoreMatching(), *SLICED], ids=repr)
def test_gradient_of_a_network_is_that_of_denoising_in_the_mean(toy2, loss):
    """All parameters of a small network, differences of paired batches within 4 standard errors."""
    model = small()
    parameters = list(model.parameters())
    differences = []
    for seed in range(60):
        drawn = batch(toy2, 256, seed)
        ours, theirs = call(loss, model, *drawn, seed=seed), DenoisingLoss()(model, *drawn)
        gradients = torch.autograd.grad((ours - theirs).mean(), parameters)
        differences.append(torch.cat([g.flatten() for g in gradients]))
    each = torch.stack(differences)
    error = each.std(0) / math.sqrt(len(each))
    # 4 standard errors for each of about 100 numbers: together as a chi-square with as many degrees
    assert (each.mean(0).abs() < 4 * error + 1e-14).all()


@pytest.mark.parametrize("prediction", ["noise", "data", "score", "v", "velocity"])
def test_one_function_has_one_loss_whatever_it_predicts(toy2, prediction):
    """The mean of the implicit and the denoising loss agree for every prediction; 4 standard errors."""
    model, drawn = small(prediction), batch(toy2, 4000)
    loss = ImplicitScoreMatching()
    with torch.no_grad():
        gap = loss(model, *drawn) - DenoisingLoss()(model, *drawn)
    assert abs(gap.mean().item()) < 4 * gap.std().item() / math.sqrt(len(gap))
    assert gap.std() > 0


@pytest.mark.parametrize("loss", [ImplicitScoreMatching(), SlicedScoreMatching()], ids=repr)
def test_exact_denoiser_has_the_least_loss(toy, loss):
    """Within 4 standard errors, over uniform times."""
    process, n = VP(), 20_000
    g = torch.Generator().manual_seed(3)
    t = UniformTimes(stratified=False).draw(n, process, g)
    x0 = toy.sample(n, generator=g)
    noise = torch.randn(x0.shape, generator=g, dtype=torch.float64)
    losses = call(loss, toy.denoiser(process), x0, t, noise)
    error = losses.std().item() / math.sqrt(n)
    assert abs(losses.mean().item() - minimum_loss(toy, process, loss=loss)) < 4 * error


def test_more_projections_have_less_variance_about_the_exact_divergence(toy2):
    model, drawn = small(), batch(toy2, 2000)
    with torch.no_grad():
        exact = ImplicitScoreMatching()(model, *drawn)
        one, four, plain = (
            (call(loss, model, *drawn) - exact).square().mean().item()
            for loss in (
                SlicedScoreMatching(),
                SlicedScoreMatching(4),
                SlicedScoreMatching(variance_reduced=False),
            )
        )
    assert one / four == pytest.approx(4, rel=0.3)
    assert plain > one


def test_gradients_are_recorded_only_where_they_are_wanted(toy2):
    model, drawn = small(), batch(toy2, 5)
    assert ImplicitScoreMatching()(model, *drawn).requires_grad
    with torch.no_grad():
        assert not ImplicitScoreMatching()(model, *drawn).requires_grad
        assert not call(SlicedScoreMatching(), model, *drawn).requires_grad


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 1, 2, 2)], ids=str)
def test_any_event_shape_gives_one_number_a_sample(shape):
    class Sine(nn.Module):
        def forward(self, x, t, cond):
            return torch.sin(x) * cond.view(-1, *[1] * (x.ndim - 1))

    x0, noise, t, cond = normal(*shape), normal(*shape, seed=1), normal(6).sigmoid(), normal(6)
    model, process = NetworkDenoiser(Sine(), VP()), VP()
    x = process.perturb(x0, t, noise).reshape(6, -1)
    eps, d = torch.sin(x) * cond[:, None], x.shape[1]
    slope = (torch.cos(x) * cond[:, None]).sum(1)
    expected = 1 + (eps.square().sum(1) - 2 * process.sigma(t) * slope) / d
    torch.testing.assert_close(ImplicitScoreMatching()(model, x0, t, noise, cond), expected)
    sliced = SlicedScoreMatching()(model, x0, t, noise, cond, probes=normal(1, *shape, seed=2))
    torch.testing.assert_close(sliced, expected)  # the Jacobian is diagonal


def test_float32_agrees_with_float64(toy2):
    x0, t, noise = batch(toy2, 50)
    wide, narrow = small(), small().float()
    for loss in (ImplicitScoreMatching(), SlicedScoreMatching()):
        found = call(loss, narrow, x0.float(), t, noise.float())
        assert found.dtype == torch.float32
        torch.testing.assert_close(
            found.double(), call(loss, wide, x0, t, noise), rtol=1e-4, atol=1e-5
        )


class Detached(Linear):
    def predict(self, x, t, **conditions):
        return x.detach() @ self.matrix.T


PAIR, TIME = normal(4, 2), torch.full((4,), 0.5, dtype=torch.float64)
test_bad_input = bad_input(
    [
        ("projections", lambda: SlicedScoreMatching(0), ValueError, ["projections must be >= 1"]),
        ("float", lambda: SlicedScoreMatching(1.0), TypeError, ["projections"]),
        ("flag", lambda: SlicedScoreMatching(1, 0), TypeError, ["variance_reduced"]),
        (
            "probes",
            lambda: SlicedScoreMatching()(small(), PAIR, TIME, PAIR, probes=PAIR),
            ValueError,
            ["probes must have shape (1, 4, 2)", "(4, 2)"],
        ),
        (
            "detached",
            lambda: ImplicitScoreMatching()(Detached(torch.eye(2).double()), PAIR, TIME, PAIR),
            ValueError,
            ["depend differentiably on x"],
        ),
    ]
)
