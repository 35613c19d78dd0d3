"""The terms of the variational bound: their values, their least values, and what their gradients move."""

# pyright: reportArgumentType=false
import math
from typing import Any

import pytest
import torch
from helpers import BadRow, bad_input, normal
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

import sdekit as sk
from sdekit.data.mixtures import GaussianMixture
from sdekit.ddpm import DDPM, linear_betas, sigmoid_betas
from sdekit.networks import MLP, PerStepMLP
from sdekit.training import DenoisingLoss, Hybrid, PerStepKL, kl_minima, train
from sdekit.training.per_step_kl import step_before

F64 = torch.float64
SIGMOID = DDPM(sigmoid_betas())
CHAIN = DDPM(linear_betas(20, 1e-3, 0.3))
UNIT = GaussianMixture(None, [0.0], 1.0)


def network(steps: int, dim: int = 2) -> PerStepMLP:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = PerStepMLP(dim, steps=steps, hidden=8)
        nn.init.normal_(net.out.weight, std=0.2)
        nn.init.normal_(net.out.bias, std=0.2)
    return net.double()


def learned(chain: DDPM = CHAIN, dim: int = 2, **arguments: Any) -> sk.LearnedVariance:
    return sk.LearnedVariance(network(len(chain), dim), chain.process, time="label", **arguments)


def batch(chain: DDPM, law: GaussianMixture, n: int, seed: int = 0, first: int = 1):
    """Data, times of steps `first` to N in turn, and noise."""
    steps = torch.arange(n) % (len(chain) + 1 - first) + first
    return law.sample(n, seed=seed), steps.double() / len(chain), normal(n, law.dim, seed=seed + 1)


# --------------------------------------------------------------------------- values


@pytest.mark.parametrize("parameterisation", ["relative", "interpolated"])
def test_it_is_the_divergence_of_two_normals(parameterisation, toy2):
    """torch's own divergence, of the chain's posterior from the model's step."""
    model = learned(parameterisation=parameterisation)
    x0, t, noise = batch(CHAIN, toy2, 19 * 4, first=2)
    i = (t * 20).round().long() - 1
    x_t = CHAIN.q_sample(x0, i, noise)
    mean, variance = CHAIN.posterior(x0, x_t, i)
    own_mean, own_variance = model.reverse(x_t, t, t - 1 / 20)
    divergence = kl_divergence(Normal(mean, variance.sqrt()), Normal(own_mean, own_variance.sqrt()))
    assert (PerStepKL()(model, x0, t, noise) / divergence.mean(1) - 1).abs().max() < 1e-9


@pytest.mark.parametrize("parameterisation", ["relative", "interpolated"])
def test_the_first_step_is_a_likelihood(parameterisation, toy2):
    model = learned(parameterisation=parameterisation)
    x0, noise, t = toy2.sample(50, seed=0), normal(50, 2), torch.full((50,), 1 / 20, dtype=F64)
    x_t = CHAIN.q_sample(x0, 0, noise)
    mean, variance = model.reverse(x_t, t, torch.zeros(50, dtype=F64))
    expected = -Normal(mean, variance.sqrt()).log_prob(x0).mean(1)
    assert (PerStepKL()(model, x0, t, noise) - expected).abs().max() < 1e-10


def test_steps_of_a_chain():
    process = CHAIN.process
    t = torch.arange(1, 21, dtype=F64) / 20
    assert torch.equal(step_before(t, 20, process), torch.arange(20, dtype=F64) / 20)
    assert torch.equal(step_before(t.float(), 20, process), torch.arange(20, dtype=F64) / 20)
    off = torch.tensor([1e-5, 0.06, 0.08, 0.99], dtype=F64)
    assert step_before(off, 20, process).tolist() == [0.0, 0.0, 0.05, 0.95]
    assert step_before(t * 5, 20, sk.OrnsteinUhlenbeck(horizon=5.0)).tolist() == [
        i / 20 * 5 for i in range(20)
    ]


def test_a_model_that_knows_no_labels_is_told_its_steps(toy2):
    """Times as numbers, a process that was no chain: the chain is that of its steps."""
    net = nn.Linear(2, 4).double()

    class OfX(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.inner(x)

    vp = sk.VP()
    twin = DDPM(vp.to_betas(10))
    one, two = (sk.LearnedVariance(OfX(), p) for p in (vp, twin.process))
    x0, t, noise = batch(twin, toy2, 40)
    loss = PerStepKL(steps=10)
    assert (loss(one, x0, t, noise) - loss(two, x0, t, noise)).abs().max() < 1e-9


def test_numbers_and_images_and_single_precision():
    model = sk.LearnedVariance(network(20, 4), CHAIN.process, time="label")
    flat = normal(40, 4), (torch.arange(40) % 20 + 1).double() / 20, normal(40, 4, seed=1)
    shaped = flat[0].reshape(40, 2, 2), flat[1], flat[2].reshape(40, 2, 2)
    for loss in (PerStepKL(), Hybrid()):
        expected = loss(model, *flat)
        assert expected.shape == (40,)
        order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
        assert (loss(model, *(v[order] for v in flat)) - expected[order]).abs().max() < 1e-12
        assert loss(_Rows(model), *shaped).sub(expected).abs().max() < 1e-12
    single = sk.LearnedVariance(network(20, 4).float(), CHAIN.process, time="label")
    close = PerStepKL()(single, flat[0].float(), flat[1], flat[2].float())
    assert close.dtype == torch.float32
    assert (close - PerStepKL()(model, *flat)).abs().max() < 1e-3
    assert (close / PerStepKL()(model, *flat) - 1).abs().max() < 1e-3


class _Rows(sk.LearnedVariance):
    """A model of vectors (n, 4) as one of (n, 2, 2)."""

    def __init__(self, inner: sk.LearnedVariance) -> None:
        super().__init__(inner.network, inner.process, time="label")

    def halves(self, x: Tensor, t: Any, **conditions: Any) -> tuple[Tensor, Tensor]:
        first, second = super().halves(x.flatten(1), t, **conditions)
        return first.reshape(x.shape), second.reshape(x.shape)


# --------------------------------------------------------------------------- least values


def test_least_values_on_the_chain_of_2015(toy):
    minima = kl_minima(toy, SIGMOID.process, 40)
    assert minima[1:].mean().item() == pytest.approx(0.139614, abs=5e-7)
    assert minima[1:].sum().item() == pytest.approx(5.444950, abs=5e-7)
    assert PerStepKL().minimum(toy, SIGMOID.process, 40) == pytest.approx(minima.mean().item())
    assert PerStepKL(40).minimum(toy, SIGMOID.process) == pytest.approx(minima.mean().item())


def test_least_values_of_unit_normal_data():
    """The steps telescope: their sum is the mutual information of x_1 and x_N, log-ratio of noise levels."""
    bars = SIGMOID.alphas_bar
    expected = 0.5 * math.log((1 - bars[-1]) / (1 - bars[0]))
    total = kl_minima(UNIT, SIGMOID.process, 40)[1:].sum().item()
    assert total == pytest.approx(expected, rel=1e-12)
    assert total == pytest.approx(5.75304503, abs=5e-9)


@pytest.mark.parametrize("stds", [[0.5], [[0.1, 1.5, 0.7]]], ids=str)
def test_the_bound_of_a_normal_law_is_its_entropy(stds):
    """Steps that are exact lose nothing, whatever the chain: per dimension, started at the law of x_N."""
    dim = len(stds[0]) if isinstance(stds[0], list) else 1
    law = GaussianMixture(None, [[0.7] * dim], stds)
    for chain in (CHAIN, SIGMOID, DDPM([0.5, 0.9])):
        end, noise = law.at(chain.process, 1.0), 1 - chain.alphas_bar[-1]
        # E KL(q(x_N | x_0) || q(x_N)) is the mutual information of x_0 and x_N
        prior = 0.5 * (end.variances / noise).log().mean().item()
        bound = kl_minima(law, chain.process, len(chain)).sum().item() + prior
        assert bound == pytest.approx(law.entropy() / dim, abs=1e-11)


def test_the_bound_of_a_mixture_nears_its_entropy_with_the_steps(toy):
    gaps = []
    for steps in (10, 20, 40):
        process = sk.VP()
        end = toy.at(process, 1.0)
        noise = process.sigma(1.0) ** 2
        prior = end.entropy() - 0.5 * math.log(2 * math.pi * math.e * noise)
        gaps.append(kl_minima(toy, process, steps).sum().item() + prior - toy.entropy())
    assert min(gaps) > 0
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2]


def test_least_values_in_the_plane_are_those_of_the_coordinates(toy):
    """A product of two laws on the line, as a mixture of four; 4 standard errors over 8 seeds."""
    pairs = [(i, j) for i in range(2) for j in range(2)]
    weights = [toy.weights[i] * toy.weights[j] for i, j in pairs]
    means = [[toy.means[i, 0], toy.means[j, 0]] for i, j in pairs]
    plane = GaussianMixture(torch.stack(weights), torch.tensor(means), 0.4)
    runs = torch.stack([kl_minima(plane, CHAIN.process, 20, n=500, seed=s) for s in range(8)])
    off = (runs.mean(0) - kl_minima(toy, CHAIN.process, 20)).abs()
    assert (off < 4 * runs.std(0) / math.sqrt(8)).all()
    assert (runs.std(0) < 0.05).all()


@pytest.mark.parametrize("name", ["toy", "toy2", "gauss1"])
def test_the_exact_denoiser_attains_the_minimum_and_no_model_goes_below(name, request):
    """Means over steps and draws, 4 standard errors."""
    law = request.getfixturevalue(name)
    n, loss = 40_000, PerStepKL(steps=20)
    x0, t, noise = batch(CHAIN, law, n)
    least = loss.minimum(law, CHAIN.process, n=5_000)
    own = 0.002 if name == "toy2" else 0.0  # the error of the minimum's own draws
    values = loss(law.denoiser(CHAIN.process), x0, t, noise)
    assert abs(values.mean().item() - least) < 4 * values.std().item() / math.sqrt(n) + own
    with torch.no_grad():
        trained = loss(learned(dim=law.dim), x0, t, noise)
    assert trained.mean().item() > least - 4 * trained.std().item() / math.sqrt(n) - own


# --------------------------------------------------------------------------- gradients


def test_hybrid_moves_the_mean_by_the_simple_loss_and_the_variance_by_the_bound(toy2):
    model, args = learned(prediction="v"), batch(CHAIN, toy2, 100)
    parts = {
        "hybrid": Hybrid(0.01)(model, *args),
        "simple": DenoisingLoss()(model, *args),
        "bound": 0.01 * 20 * PerStepKL()(model, *args),
    }
    assert (parts["hybrid"] - parts["simple"] - parts["bound"]).abs().max() < 1e-12
    weight = model.network.out.weight  # (steps, hidden, 4): two predictions, two readings
    gradients = {
        name: torch.autograd.grad(value.mean(), weight, retain_graph=True)[0]
        for name, value in parts.items()
    }
    mean, variance = slice(0, 2), slice(2, 4)
    assert (gradients["hybrid"] - gradients["simple"])[..., mean].abs().max() < 1e-12
    assert (gradients["hybrid"] - gradients["bound"])[..., variance].abs().max() < 1e-12
    assert not gradients["simple"][..., variance].any()
    assert gradients["bound"][..., mean].abs().max() > 1e-3


def test_gradients_of_the_loss_are_those_of_differences(toy2):
    model, args = learned(), batch(CHAIN, toy2, 40)
    weight = model.network.out.bias
    (gradient,) = torch.autograd.grad(PerStepKL()(model, *args).sum(), weight)
    with torch.no_grad():
        for place in ((0, 0, 1), (3, 0, 0), (3, 0, 2), (19, 0, 3)):
            values = []
            for shift in (1e-5, -1e-5):
                weight[place] += shift
                values.append(PerStepKL()(model, *args).sum().item())
                weight[place] -= shift
            slope = (values[0] - values[1]) / 2e-5
            assert slope == pytest.approx(gradient[place].item(), rel=1e-6, abs=1e-8)


# --------------------------------------------------------------------------- training


@pytest.mark.parametrize("loss", [PerStepKL(), Hybrid(0.01)], ids=repr)
def test_a_run_learns_and_its_checkpoint_knows_its_variance(loss, tmp_path):
    """N(0, diag(0.04, 1)) on a chain of 10 steps: the excess more than halves, and the file is a model."""
    law = GaussianMixture(None, [[0.0, 0.0]], [[0.2, 1.0]])
    chain = DDPM(linear_betas(10, 1e-3, 0.6))
    model = sk.LearnedVariance(network(10).float(), chain.process, time="label")
    x0, t, noise = (v.float() if k != 1 else v for k, v in enumerate(batch(chain, law, 5_000)))
    before = PerStepKL()(model, x0, t, noise).mean().item()
    done = train(
        model,
        law,
        steps=150,
        batch=100,
        lr=1e-2,
        loss=loss,
        half_life=20,
        out=tmp_path,
        progress=False,
    )
    least = PerStepKL().minimum(law, chain.process, 10)
    again = sk.LearnedVariance.load(done.checkpoint)
    with torch.no_grad():
        after = PerStepKL()(again, x0, t, noise).mean().item()
    assert 0 < after - least < 0.5 * (before - least)


# --------------------------------------------------------------------------- bad input

ROWS = normal(3, 2), torch.full((3,), 0.5, dtype=F64), normal(3, 2)
BAD: list[BadRow] = [
    ("steps", lambda: PerStepKL(0), ValueError, ["steps must be >= 1, got 0"]),
    ("steps of hybrid", lambda: Hybrid(steps=2.0), TypeError, ["steps must be an integer"]),
    ("weight", lambda: Hybrid(-1.0), ValueError, ["weight must be", "-1.0"]),
    ("weight true", lambda: Hybrid(True), TypeError, ["weight must be a number"]),
    (
        "a model without a variance",
        lambda: PerStepKL(5)(sk.NetworkDenoiser(MLP(2), sk.VP()), *ROWS),
        TypeError,
        ["reverse(x, t, s)", "NetworkDenoiser has none"],
    ),
    (
        "hybrid of an exact model",
        lambda: Hybrid(steps=5)(UNIT.denoiser(sk.VP()), *ROWS),
        TypeError,
        ["model must be a LearnedVariance, got ExactDenoiser"],
    ),
    (
        "no steps",
        lambda: PerStepKL()(UNIT.denoiser(sk.VP()), *ROWS),
        ValueError,
        ["steps is missing", "PerStepKL(steps=1000)"],
    ),
    (
        "other steps than the labels",
        lambda: PerStepKL(30)(learned(), *ROWS),
        ValueError,
        ["labels, 20, got 30"],
    ),
    ("minimum of no steps", lambda: PerStepKL().minimum(UNIT, sk.VP()), ValueError, ["steps is"]),
    ("minima of no steps", lambda: kl_minima(UNIT, sk.VP(), 0), ValueError, ["steps must be"]),
    ("minima of no draws", lambda: kl_minima(UNIT, sk.VP(), 5, n=0), ValueError, ["n must be"]),
]
test_bad_input = bad_input(BAD)
