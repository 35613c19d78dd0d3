import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdekit import networks
from sdekit.networks import (
    MLP,
    DiffusersUNet,
    FourierEmbedding,
    SinusoidalEmbedding,
    TimeFeatures,
    UNet,
)

# (class, constructor arguments, event shape, conditions of n samples or None)
CASES = [
    (MLP, {"dim": 1}, (1,), None),
    (MLP, {"dim": 1}, (), None),
    (MLP, {"dim": 2, "depth": 1}, (2,), None),
    (MLP, {"dim": 6, "hidden": 32, "embedding": "fourier"}, (2, 3), None),
    (MLP, {"dim": 64, "time_scale": 1e-3}, (1, 8, 8), None),
    (MLP, {"dim": 2, "cond_dim": 3}, (2,), lambda n: torch.linspace(-1, 1, 3 * n).reshape(n, 3)),
    (UNet, {}, (1, 8, 8), None),
    (UNet, {"channels": 3, "widths": (8, 12, 16), "depth": 2}, (3, 8, 12), None),
    (UNet, {"channels": 2, "widths": (8,), "attention": False}, (2, 4, 6), None),
    (UNet, {"widths": (8, 16), "num_classes": 10}, (1, 16, 16), lambda n: torch.arange(n) % 10),
    (UNet, {"widths": (8, 16, 16), "patch": 2, "time_scale": 0.05}, (1, 28, 28), None),
    (UNet, {"widths": (8, 8, 8, 8), "dropout": 0.0}, (1, 10, 10), None),
]
IDS = [f"{kind.__name__}-{shape}-{k}" for k, (kind, _, shape, _) in enumerate(CASES)]
each_case = pytest.mark.parametrize(("kind", "arguments", "event", "conditions"), CASES, ids=IDS)


def build(kind: Any, arguments: dict, perturbed: bool = True) -> nn.Module:
    """A network from a fixed seed, its zero output layer replaced by small random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = kind(**arguments)
        if perturbed:
            for weight in net.out.parameters():
                nn.init.normal_(weight, std=0.1)
    return net


def inputs(event: tuple[int, ...], conditions: Any, n: int = 5) -> tuple[Tensor, Tensor, Any]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, *event, generator=generator)
    return x, torch.rand(n, generator=generator), conditions and conditions(n)


def test_all_is_every_network():
    public = {getattr(networks, name) for name in networks.__all__ if name != "ALL"}
    features = {SinusoidalEmbedding, FourierEmbedding, TimeFeatures}
    assert set(networks.ALL) == public - features
    apart = {DiffusersUNet, networks.PerStepMLP}  # files of their own
    assert {kind for kind, *_ in CASES} == set(networks.ALL) - apart


@each_case
def test_output_has_the_shape_and_dtype_of_x(kind, arguments, event, conditions):
    net = build(kind, arguments)
    for n in (5, 1):
        x, t, cond = inputs(event, conditions, n)
        out = net(x, t, cond)
        assert out.shape == x.shape
        assert out.dtype == x.dtype
        assert out.abs().max() > 0
    x, t, cond = inputs(event, conditions)
    assert net.double()(x.double(), t, cond).dtype == torch.float64


@each_case
def test_starts_at_zero(kind, arguments, event, conditions):
    x, t, cond = inputs(event, conditions)
    assert not build(kind, arguments, perturbed=False)(x, t, cond).any()


@each_case
def test_config_rebuilds_the_network(kind, arguments, event, conditions):
    net = build(kind, arguments)
    config = json.loads(json.dumps(net.config))
    assert set(arguments) <= set(config)
    twin = kind(**config)
    twin.load_state_dict(net.state_dict())
    x, t, cond = inputs(event, conditions)
    assert torch.equal(twin(x, t, cond), net(x, t, cond))
    assert twin.config == net.config


@each_case
def test_one_time_for_all_is_that_time_for_each(kind, arguments, event, conditions):
    net = build(kind, arguments).double()
    x, t, cond = inputs(event, conditions)
    x = x.double()
    for value in (1e-5, 0.3, 1.0):
        shared = net(x, torch.tensor([value]), cond)
        each = net(x, torch.full_like(t, value), cond)
        torch.testing.assert_close(shared, each, rtol=0, atol=1e-12)


@each_case
def test_samples_do_not_see_their_batch(kind, arguments, event, conditions):
    net = build(kind, arguments).double()
    x, t, cond = inputs(event, conditions)
    x, t = x.double(), t.double()
    together = net(x, t, cond)
    for i in range(len(x)):
        alone = net(x[i : i + 1], t[i : i + 1], None if cond is None else cond[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-12)


@each_case
def test_gradients_reach_every_parameter_and_both_inputs(kind, arguments, event, conditions):
    net = build(kind, arguments)
    x, t, cond = inputs(event, conditions, n=10)
    x, t = x.requires_grad_(), t.requires_grad_()
    net(x, t, cond).square().sum().backward()
    for name, weight in [("x", x), ("t", t), *net.named_parameters()]:
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert weight.grad.any(), name


@each_case
def test_forward_and_reverse_derivatives_agree(kind, arguments, event, conditions):
    net = build(kind, arguments).double()
    x, t, cond = inputs(event, conditions, n=2)
    x, t = x.double(), t.double()
    v, w = torch.cos(torch.arange(x.numel())).reshape(x.shape).double(), torch.ones_like(x)
    _, forward = torch.func.jvp(lambda y: net(y, t, cond), (x,), (v,))
    _, pull = torch.func.vjp(lambda y: net(y, t, cond), x)
    torch.testing.assert_close((forward * w).sum(), (pull(w)[0] * v).sum())


@each_case
def test_forward_leaves_the_global_generator_alone(kind, arguments, event, conditions):
    net, state = build(kind, arguments), torch.get_rng_state()
    net(*inputs(event, conditions))
    assert torch.equal(torch.get_rng_state(), state)


def mlp_parameters(dim: int, hidden: int, depth: int, embedding_dim: int) -> int:
    features = 2 * embedding_dim + 2
    return ((dim + 1) * hidden + features * hidden + (depth - 1) * (hidden + 1) * hidden) + (
        hidden + 1
    ) * dim


@pytest.mark.parametrize(("dim", "hidden", "depth", "width"), [(1, 128, 3, 16), (6, 32, 1, 4)])
def test_mlp_parameter_count(dim, hidden, depth, width):
    net = MLP(dim, hidden, depth, embedding_dim=width)
    count = sum(weight.numel() for weight in net.parameters())
    assert count == mlp_parameters(dim, hidden, depth, width)


def test_unet_for_digits_is_small():
    assert 90_000 < sum(weight.numel() for weight in UNet().parameters()) < 160_000


def test_unet_in_channels_last():
    net = build(UNet, {}).double()
    x, t, _ = inputs((1, 16, 16), None)
    plain = net(x.double(), t)
    net = net.to(memory_format=torch.channels_last)
    other = net(x.double().contiguous(memory_format=torch.channels_last), t)
    torch.testing.assert_close(other, plain, rtol=0, atol=1e-12)


def test_labels_and_conditions_matter():
    unet, mlp = build(UNet, {"num_classes": 2}), build(MLP, {"dim": 1, "cond_dim": 1})
    x, t = torch.zeros(2, 1, 8, 8), torch.tensor([0.5])
    assert not torch.allclose(*unet(x, t, torch.tensor([0, 1])))
    assert not torch.allclose(*mlp(torch.zeros(2, 1), t, torch.tensor([[0.0], [1.0]])))


def test_sinusoids_are_those_of_the_periods():
    t = torch.tensor([0.0, 0.1, 0.7], dtype=torch.float64)
    net = SinusoidalEmbedding(6, max_period=8.0, min_period=0.5).double()
    periods = torch.tensor([0.5, 2.0, 8.0], dtype=torch.float64)
    angles = 2 * math.pi * t[:, None] / periods
    expected = torch.cat([angles.sin(), angles.cos()], -1)
    torch.testing.assert_close(net(t), expected, rtol=0, atol=1e-6)  # frequencies made in float32


def test_fourier_frequencies_are_seeded_scaled_and_saved():
    state = torch.get_rng_state()
    first, again, other = (FourierEmbedding(4096, 3.0, seed) for seed in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.frequencies, again.frequencies)
    assert not torch.equal(first.frequencies, other.frequencies)
    cycles = first.frequencies / (2 * math.pi)
    # Standard error of a standard deviation from m normals: std / sqrt(2 m); four of them.
    assert abs(cycles.std() - 3.0) < 4 * 3.0 / math.sqrt(2 * 2048)
    other.load_state_dict(first.state_dict())
    assert torch.equal(first.frequencies, other.frequencies)


def test_time_features_are_smooth_and_bounded_on_the_unit_interval():
    features = TimeFeatures("sinusoidal", 4).double()
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    out = features(t)
    assert out.shape == (1001, features.features)
    assert out.abs().max() <= 1.0
    assert out[0, -1] == 0.0
    assert abs(out[-1, -1] - 1.0) < 1e-12
    assert features(-t).isfinite().all()


X, T, IMAGE = torch.zeros(4, 2), torch.zeros(4), torch.zeros(4, 1, 8, 8)
LABELS = torch.zeros(4, dtype=torch.int64)
BAD = [
    (lambda: MLP(0), ValueError, "dim must be >= 1, got 0"),
    (lambda: MLP(True), TypeError, "dim must be an integer"),
    (lambda: MLP(2, hidden=1.5), TypeError, "hidden must be an integer"),  # type: ignore[arg-type]
    (lambda: MLP(2, depth=0), ValueError, "depth must be >= 1"),
    (lambda: MLP(2, embedding="sinus"), ValueError, "did you mean 'sinusoidal'"),
    (lambda: MLP(2, embedding_dim=7), ValueError, "embedding_dim must be even"),
    (lambda: MLP(2, cond_dim=-1), ValueError, "cond_dim must be >= 0"),
    (lambda: MLP(2, time_scale=0.0), ValueError, "time_scale must be"),
    (lambda: MLP(3)(X, T), ValueError, r"3 numbers in an event \(dim\), got \(4, 2\)"),
    (lambda: MLP(1)(torch.tensor(0.0), T), ValueError, r"x must have shape \(n, \*event\)"),
    (
        lambda: MLP(2)(X, T[:3]),
        ValueError,
        r"t must have shape \(n,\) or \(1,\).*n = 4, got \(3,\)",
    ),
    (lambda: MLP(2)(X, T[0]), ValueError, r"t must have shape .* got \(\)"),
    (lambda: MLP(2)(X, T[:, None]), ValueError, r"t must have shape .* got \(4, 1\)"),
    (lambda: MLP(2)(X, T, X), ValueError, "cond was given, but this MLP takes none"),
    (lambda: MLP(2, cond_dim=3)(X, T), ValueError, r"cond is missing.*\(n, 3\)"),
    (lambda: MLP(2, cond_dim=3)(X, T, X), ValueError, r"cond must have shape \(4, 3\)"),
    (lambda: UNet(channels=4), ValueError, "channels must be 1, 2 or 3, got 4"),
    (lambda: UNet(widths=()), ValueError, "widths must be a non-empty sequence"),
    (lambda: UNet(widths=32), ValueError, "widths must be a non-empty sequence"),  # type: ignore[arg-type]
    (lambda: UNet(widths=(8, 0)), ValueError, r"widths\[1\] must be >= 2"),
    (lambda: UNet(depth=0), ValueError, "depth must be >= 1"),
    (lambda: UNet(attention=1), TypeError, "attention must be True or False"),  # type: ignore[arg-type]
    (lambda: UNet(dropout=1.0), ValueError, r"dropout must be .* in \[0, 1\), got 1.0"),
    (lambda: UNet(dropout=-0.1), ValueError, "dropout must be"),
    (lambda: UNet(dropout=True), TypeError, "dropout must be a number, got True"),
    (lambda: UNet(patch=0), ValueError, "patch must be >= 1, got 0"),
    (lambda: UNet(patch=2.0), TypeError, "patch must be an integer"),  # type: ignore[arg-type]
    (lambda: UNet(num_classes=-1), ValueError, "num_classes must be >= 0"),
    (lambda: UNet()(X, T), ValueError, r"x must have shape \(n, 1, height, width\)"),
    (lambda: UNet(3)(IMAGE, T), ValueError, r"x must have shape \(n, 3, height, width\)"),
    (lambda: UNet()(IMAGE[..., :7], T), ValueError, "divide by 2, got 8 x 7"),
    (lambda: UNet()(IMAGE[:, :, :3, :3], T), ValueError, "divide by 2, got 3 x 3"),
    (lambda: UNet()(IMAGE[..., :0], T), ValueError, "must be positive .* got 8 x 0"),
    (lambda: UNet(patch=4)(IMAGE[..., :6], T), ValueError, "divide by 4, got 8 x 6"),
    (lambda: UNet(patch=3)(IMAGE[:, :, :6, :3], T), ValueError, "divide by 6, got 6 x 3"),
    (lambda: UNet()(IMAGE, T[:2]), ValueError, "t must have shape"),
    (lambda: UNet()(IMAGE, T, LABELS), ValueError, "cond was given, but this network takes none"),
    (lambda: UNet(num_classes=3)(IMAGE, T), ValueError, "cond is missing"),
    (lambda: UNet(num_classes=3)(IMAGE, T, LABELS[:2]), ValueError, r"labels of shape \(4,\)"),
    (lambda: UNet(num_classes=3)(IMAGE, T, T), ValueError, "integer labels.*float32"),
    (lambda: UNet(num_classes=3)(IMAGE, T, LABELS + 3), ValueError, r"labels in 0 \.\. 2, got 3"),
    (lambda: SinusoidalEmbedding(3), ValueError, "dim must be even"),
    (lambda: SinusoidalEmbedding(4, max_period=-1.0), ValueError, "max_period must be"),
    (lambda: SinusoidalEmbedding(4, 1.0, 2.0), ValueError, "min_period must be"),
    (lambda: SinusoidalEmbedding(4)(X), ValueError, r"t must have shape \(n,\), got \(4, 2\)"),
    (lambda: FourierEmbedding(4, scale=0.0), ValueError, "scale must be"),
    (lambda: FourierEmbedding(4, seed=-1), ValueError, "seed must be >= 0"),
    (lambda: FourierEmbedding(4, seed=None), TypeError, "seed must be an integer"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[row[2][:40] for row in BAD])
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
