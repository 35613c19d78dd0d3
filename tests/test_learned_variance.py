"""A model with a learned variance: the law of its steps, its two parameterisations, its files."""

# pyright: reportArgumentType=false
import math
from typing import Any

import pytest
import torch
from helpers import BadRow, bad_input, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sdekit as sk
from sdekit.data.mixtures import GaussianMixture
from sdekit.ddpm import DDPM, cosine_betas, linear_betas, rescale_zero_terminal_snr
from sdekit.learned_variance import StepModel
from sdekit.networks import MLP, PerStepMLP, UNet
from sdekit.processes import ALL as PROCESSES
from sdekit.training import PerStepKL

F64 = torch.float64
VP = sk.VP()
CHAIN = DDPM(linear_betas(20, 1e-3, 0.3))
each_process = pytest.mark.parametrize("process", PROCESSES, ids=repr)


class Fixed(nn.Module):
    """The same prediction and reading everywhere: 0.3 and r."""

    def __init__(self, r: float = 0.0, out: float = 0.3) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor([out, r], dtype=F64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([torch.full_like(x, v) for v in self.values.tolist()], 1)


class Twice(nn.Module):
    """A network of x as one of twice its channels."""

    broadcasts_time = True

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out = self.inner(x, t)
        return torch.cat([out, 2 * out], 1)


def learned(r: float = 0.0, process: sk.Process = VP, **arguments: Any) -> sk.LearnedVariance:
    return sk.LearnedVariance(Fixed(r), process, **arguments)


# --------------------------------------------------------------------------- the bridge of a process


@each_process
@settings(max_examples=15)
@given(st.floats(0.02, 0.98), st.floats(0.02, 0.98))
def test_the_bridge_is_the_law_that_bayes_gives(process, u, v):
    """x_s ~ N(alpha_s x_0, sigma_s^2) seen through x_t = a x_s + forward z: means weighted by precisions."""
    s, t = sorted(process.t_min + w * (process.t_max - process.t_min) for w in (u, v))
    keep, pull, std = process.bridge(t, s)
    scale, forward = process.transition(s, t)
    sigma, total = process.sigma(s), (scale * process.sigma(s)) ** 2 + forward**2
    assert keep == pytest.approx(scale * sigma**2 / total, rel=1e-10, abs=1e-300)
    assert pull == pytest.approx(process.alpha(s) * forward**2 / total, rel=1e-10, abs=1e-300)
    assert std == pytest.approx(sigma * forward / math.sqrt(total), rel=1e-10)
    pair = process.bridge(torch.tensor([t, t], dtype=F64), torch.tensor([s, s], dtype=F64))
    assert [c[1].item() for c in pair] == pytest.approx([keep, pull, std], rel=1e-13, abs=1e-300)


def test_the_bridge_of_a_chain_is_its_posterior():
    x0, x = normal(5, 2), normal(5, 2, seed=1)
    for i in range(1, 20):
        keep, pull, std = CHAIN.process.bridge((i + 1) / 20, i / 20)
        mean, variance = CHAIN.posterior(x0, x, i)
        assert (keep * x + pull * x0 - mean).abs().max() < 1e-13
        assert std**2 == pytest.approx(variance.item(), rel=1e-12)
    assert CHAIN.process.bridge(1 / 20, 0.0) == (0.0, pytest.approx(1, rel=1e-14), 0.0)


# --------------------------------------------------------------------------- exact moments of a step


@pytest.mark.parametrize("t", [0.02, 0.3, 0.9])
def test_exact_variance_is_the_diagonal_of_the_posterior(toy, toy2, delta, t):
    diagonal = GaussianMixture([0.4, 0.6], [[0.0, 1.0], [2.0, -1.0]], [[0.1, 1.0], [0.5, 0.2]])
    wide = GaussianMixture([0.4, 0.6], normal(2, 9), covariances=_covariances(2, 9))
    for mixture in (toy, toy2, delta, diagonal, wide):
        x = mixture.at(VP, t).sample(50, seed=0)
        expected = mixture.posterior(VP, x, t).covariance.diagonal(dim1=1, dim2=2)
        exact = mixture.denoiser(VP)
        for clock in (t, torch.full((50,), t, dtype=F64)):
            assert (exact.variance(x, clock) - expected).abs().max() < 1e-12
    grid = toy2.at(VP, t).sample(6, seed=0).reshape(6, 1, 2)
    assert exact.mixture.dim == 9
    assert toy2.denoiser(VP).variance(grid, t).shape == (6, 1, 2)


def _covariances(k: int, d: int) -> Tensor:
    roots = normal(k, d, d, seed=3)
    return roots @ roots.mT / d + 0.1 * torch.eye(d, dtype=F64)


@each_process
def test_exact_reverse_is_tweedie_of_the_backward_kernel(process, toy):
    """p(x_s | x_t) = p_s(x_s) N(x_t; a x_s, std^2) / p_t(x_t), its moments by quadrature over x_s."""
    low, high = process.t_min, process.t_max
    s, t = low + 0.35 * (high - low), low + 0.7 * (high - low)
    scale, std = process.transition(s, t)
    x_t = toy.at(process, t).quantile(torch.tensor([0.05, 0.3, 0.6, 0.95]))[:, None]
    mean, variance = toy.denoiser(process).reverse(x_t, t, s)
    nodes, weights = toy.at(process, s).quadrature()
    likelihood = torch.exp(-0.5 * ((x_t - scale * nodes.T) / std) ** 2)
    joint = likelihood * weights
    law = joint / joint.sum(1, keepdim=True)
    first = (law * nodes.T).sum(1)
    second = (law * (nodes.T - first[:, None]) ** 2).sum(1)
    size = toy.at(process, s).covariance.sqrt().item()
    assert (mean[:, 0] - first).abs().max() < 1e-13 * size
    assert (variance[:, 0] - second).abs().max() < 1e-13 * size**2


def test_quadrature_integrates_polynomials(toy):
    x, weights = toy.quadrature()
    moments = [(weights @ x[:, 0] ** k).item() for k in range(5)]
    fourth = sum(w * (m**4 + 6 * m**2 * 0.16 + 3 * 0.16**2) for w, m in ((0.3, -1.4), (0.7, 0.6)))
    assert moments[:3] == pytest.approx([1, 0, 1], abs=1e-12)
    assert moments[4] == pytest.approx(fourth, rel=1e-12)
    with pytest.raises(ValueError, match="one-dimensional"):
        GaussianMixture(None, [[0.0, 0.0]], 1.0).quadrature()


# --------------------------------------------------------------------------- the two parameterisations


@each_process
@pytest.mark.parametrize("r", [-3.0, 0.0, 2.5])
def test_relative_variance_is_that_of_a_posterior(process, r):
    """beta-tilde + pull^2 (sigma / alpha)^2 softplus(r), about keep x + pull E[x_0]."""
    model, x = learned(r, process), normal(4, 2)
    t = 0.5 * (process.t_min + process.t_max)
    s = 0.6 * t
    keep, pull, std = process.bridge(t, s)
    mean, variance = model.reverse(x, t, s)
    data = (x - process.sigma(t) * 0.3) / process.alpha(t)
    assert (mean - keep * x - pull * data).abs().max() < 1e-12 * (1 + data.abs().max())
    rho = process.sigma(t) / process.alpha(t)
    expected = std**2 + (pull * rho) ** 2 * math.log1p(math.exp(r))
    assert (variance / expected - 1).abs().max() < 1e-12
    times = torch.full((4,), t, dtype=F64), torch.full((4,), s, dtype=F64)
    for a, b in zip(model.reverse(x, *times), (mean, variance), strict=True):
        assert (a - b).abs().max() <= 1e-12 * b.abs().max()


def test_interpolated_variance_is_published(toy):
    """r = 1 gives beta, -1 beta-tilde, anything else their geometric mean with these weights."""
    process, x = CHAIN.process, normal(3, 1)
    for i in range(1, 20):
        t, s = (i + 1) / 20, i / 20
        small, large = process.bridge(t, s)[2] ** 2, CHAIN.betas[i].item()
        for r in (-1.0, 1.0, 0.0, 0.4, 1.7):
            model = learned(r, process, parameterisation="interpolated")
            v = (1 + r) / 2
            expected = math.exp(v * math.log(large) + (1 - v) * math.log(small))
            assert model.reverse(x, t, s)[1].flatten().tolist() == pytest.approx(
                [expected] * 3, rel=1e-12
            )
    last = learned(-1.0, process, parameterisation="interpolated").reverse(x, 1 / 20, 0.0)[1]
    assert last.flatten().tolist() == pytest.approx([CHAIN.betas[0].item()] * 3, rel=1e-12)
    both = torch.tensor([1 / 20, 1 / 2, 1.0], dtype=F64)
    model = learned(0.4, process, parameterisation="interpolated")
    tensors = model.reverse(x, both, both - 1 / 20)[1]
    for k, t in enumerate(both.tolist()):
        assert tensors[k].item() == pytest.approx(model.reverse(x, t, t - 1 / 20)[1][k].item())


@pytest.mark.parametrize("prediction", ["noise", "data", "v", "score", "velocity"])
def test_the_first_half_is_an_ordinary_denoiser(prediction):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = MLP(2).double()
        nn.init.normal_(plain.out.weight, std=0.3)
    one = sk.NetworkDenoiser(plain, VP, prediction)
    two = sk.LearnedVariance(Twice(plain), VP, prediction=prediction)
    x = normal(5, 2)
    for t in (0.3, torch.linspace(0.1, 0.9, 5, dtype=F64)):
        for kind in ("data", "noise", "score", "velocity"):
            assert torch.equal(getattr(one, kind)(x, t), getattr(two, kind)(x, t))
    assert torch.equal(two.halves(x, 0.3)[1], 2 * one(x, 0.3))
    mean, _ = two.reverse(x, 0.3, 0.2)
    keep, pull, _ = VP.bridge(0.3, 0.2)
    assert (mean - keep * x - pull * one.data(x, 0.3)).abs().max() < 1e-12
    drawn = [sk.sample(m, (4, 2), steps=5, seed=0, dtype=F64).x for m in (one, two)]
    assert torch.equal(*drawn)


def test_images_and_numbers_without_an_axis():
    model = learned(1.0)
    for event in ((1, 4, 4), (3, 2), (), (1,)):
        x = normal(4, *event)
        wide = sk.LearnedVariance(_Numbers(), VP) if event == () else model
        mean, variance = wide.reverse(x, 0.5, 0.4)
        assert mean.shape == variance.shape == x.shape
    x = normal(4, 2).float()
    assert [v.dtype for v in model.reverse(x, 0.5, 0.4)] == [torch.float32] * 2


def test_a_unet_of_two_readings(tmp_path):
    """Predictions come first, and the second half has weights of its own."""
    net = UNet(2, (8, 8), readings=2, patch=2, num_classes=3)
    nn.init.normal_(net.out.weight)
    model = sk.LearnedVariance(net, VP)
    x, labels = normal(3, 2, 8, 8).float(), torch.arange(3)
    out = net(x, torch.full((3,), 0.5), labels)
    assert out.shape == (3, 4, 8, 8)
    first, second = model.halves(x, 0.5, cond=labels)
    assert (first - out[:, :2]).abs().max() < 1e-5 > (second - out[:, 2:]).abs().max()
    model.save(tmp_path / "model.safetensors")
    again = sk.NetworkDenoiser.load(tmp_path / "model.safetensors")
    for a, b in zip(
        again.reverse(x, 0.5, 0.4, cond=labels),
        model.eval().reverse(x, 0.5, 0.4, cond=labels),
        strict=True,
    ):
        assert torch.equal(a, b)
    loss = PerStepKL(10)(
        model, x, torch.tensor([0.1, 0.5, 1.0]), normal(3, 2, 8, 8).float(), labels
    )
    assert loss.shape == (3,)


class _Numbers(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.stack([x, x], 1)


def test_what_is_a_step_model(toy):
    assert isinstance(learned(), StepModel)
    assert isinstance(toy.denoiser(VP), StepModel)
    assert not isinstance(sk.NetworkDenoiser(MLP(1), VP), StepModel)


# --------------------------------------------------------------------------- files


@pytest.mark.parametrize("parameterisation", ["relative", "interpolated"])
def test_saved_and_loaded_by_name(parameterisation, tmp_path):
    net = PerStepMLP(2, steps=20, hidden=8)
    nn.init.normal_(net.out.weight)
    model = sk.LearnedVariance(net, CHAIN.process, parameterisation, prediction="v", time="label")
    model.save(tmp_path / "model.safetensors")
    x = normal(3, 2).float()
    for cls in (sk.LearnedVariance, sk.NetworkDenoiser):
        again = cls.load(tmp_path / "model.safetensors")
        assert isinstance(again, sk.LearnedVariance)
        assert again.settings == model.settings
        for a, b in zip(again.reverse(x, 0.5, 0.4), model.reverse(x, 0.5, 0.4), strict=True):
            assert torch.equal(a, b)


def test_an_ordinary_file_is_not_loaded_as_one_with_a_variance(tmp_path):
    sk.NetworkDenoiser(MLP(2), VP).save(tmp_path / "plain.safetensors")
    with pytest.raises(sk.CheckpointError, match="holds a NetworkDenoiser, not a LearnedVariance"):
        sk.LearnedVariance.load(tmp_path / "plain.safetensors")


def test_files_from_before_models_had_types_are_read(tmp_path):
    from sdekit.denoisers import describe, rebuild

    description = describe(sk.NetworkDenoiser(MLP(2), VP, "v"))
    del description["type"]
    assert type(rebuild(description)) is sk.NetworkDenoiser
    with pytest.raises(sk.CheckpointError, match="'Other'"):
        rebuild({**description, "type": "Other"})


# --------------------------------------------------------------------------- bad input

ZERO = DDPM(rescale_zero_terminal_snr(cosine_betas(10, largest=0.9)), zero_terminal_snr=True)
BAD: list[BadRow] = [
    (
        "parameterisation",
        lambda: learned(parameterisation="relativ"),
        ValueError,
        ["parameterisation", "did you mean 'relative'"],
    ),
    (
        "a network of x's shape",
        lambda: sk.LearnedVariance(MLP(2).double(), VP).predict(normal(3, 2), 0.5),
        ValueError,
        ["twice the channels of x (3, 2): (3, 4), got (3, 2)"],
    ),
    (
        "a network of tuples",
        lambda: sk.LearnedVariance(_Tuples(), VP).predict(normal(3, 2), 0.5),
        TypeError,
        ["must return a tensor, got tuple"],
    ),
    (
        "forward",
        lambda: learned().reverse(normal(3, 2), 0.5, 0.6),
        ValueError,
        ["s must lie below t, got s = 0.6, t = 0.5"],
    ),
    (
        "no step",
        lambda: learned().reverse(normal(3, 2), 0.5, 0.5),
        ValueError,
        ["s must lie below t"],
    ),
    ("t past the end", lambda: learned().reverse(normal(3, 2), 1.1, 0.5), ValueError, ["t must"]),
    ("t at data", lambda: learned().reverse(normal(3, 2), 0.0, -0.1), ValueError, ["t must"]),
    (
        "relative to no signal",
        lambda: learned(process=ZERO.process, prediction="v").reverse(normal(3, 2), 1.0, 0.9),
        ValueError,
        ["alpha is 0", "t_max", 'parameterisation="interpolated"'],
    ),
    (
        "noise without signal",
        lambda: learned(process=ZERO.process, parameterisation="interpolated").reverse(
            normal(3, 2), 1.0, 0.9
        ),
        ValueError,
        ["'noise' does not determine 'data'"],
    ),
    (
        "conditions of an exact model",
        lambda: (
            GaussianMixture(None, [0.0], 1.0)
            .denoiser(VP)
            .reverse(normal(3, 1), 0.5, 0.4, cond=normal(3, 1))
        ),
        ValueError,
        ["no conditions"],
    ),
]
test_bad_input = bad_input(BAD)


class _Tuples(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def test_a_v_prediction_steps_from_where_there_is_no_signal():
    model = learned(1.0, ZERO.process, parameterisation="interpolated", prediction="v")
    mean, variance = model.reverse(normal(3, 2), 1.0, 0.9)
    assert (mean - ZERO.process.alpha(0.9) * -0.3).abs().max() < 1e-12
    assert (variance - 1).abs().max() < 1e-12
