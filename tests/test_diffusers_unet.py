"""A model of diffusers as a network; without the library, only what is said of its absence is tested."""

import json
import math
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from sdekit import VP, NetworkDenoiser, log_likelihood, sample, samplers, train
from sdekit.networks import ALL, DiffusersUNet

needs_diffusers = pytest.mark.skipif(
    find_spec("diffusers") is None, reason="needs diffusers: the extra `diffusers`"
)
SMALL = {
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4,
    "add_attention": False,
}
LABELS = torch.tensor([0, 1, 2, 0])


def build(time_scale: float = 1.0, **changes) -> DiffusersUNet:
    """The small model from a fixed seed, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DiffusersUNet({**SMALL, **changes}, time_scale).eval()


def images(n: int = 4, size: int = 8) -> torch.Tensor:
    return torch.randn(n, 1, size, size, generator=torch.Generator().manual_seed(1))


def test_it_is_a_network_that_files_know():
    assert DiffusersUNet in ALL


def test_without_the_library_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)  # as if it were not installed
    for model in (SMALL, nn.Identity()):
        with pytest.raises(ImportError, match=r'pip install "sdekit\[diffusers\]"'):
            DiffusersUNet(model)


@needs_diffusers
def test_it_returns_what_the_model_returns():
    from diffusers import UNet2DModel

    model = UNet2DModel(**SMALL, num_class_embeds=3).eval()
    net, x = DiffusersUNet(model), images()
    assert net.model is model
    labels = torch.tensor([0, 7, 500, 999])
    assert torch.equal(net(x, labels, LABELS), model(x, labels, class_labels=LABELS).sample)
    assert not torch.allclose(net(x, labels, LABELS), net(x, labels, (LABELS + 1) % 3))


@needs_diffusers
def test_time_is_a_label_or_a_number_of_its_size():
    net, scaled, x = build(), build(1e3), images()
    label = torch.tensor([400])
    out = net(x, label)
    assert torch.equal(scaled(x, label), out)  # labels are labels
    assert torch.equal(net(x, label.float()), out)
    torch.testing.assert_close(scaled(x, torch.tensor([0.4])), out)
    assert torch.equal(net(x, label.expand(4)), out)
    assert not torch.allclose(net(x, torch.tensor([401.0])), out)
    # t in [0, 1] itself leaves half of the sinusoids where they were.
    features = net.model.time_proj(torch.tensor([0.0, 1.0]))
    assert ((features[1] - features[0]).abs() < 0.1).float().mean() >= 0.5


@needs_diffusers
def test_config_rebuilds_the_network():
    net = build(1e3, num_class_embeds=3, time_embedding_type="fourier")
    twin = DiffusersUNet(**json.loads(json.dumps(net.config)))
    assert twin.config == net.config
    twin.load_state_dict(net.state_dict())
    x, t = images(), torch.tensor([0.3])
    assert torch.equal(twin.eval()(x, t, LABELS), net(x, t, LABELS))


@needs_diffusers
@pytest.mark.parametrize("instance", [False, True], ids=["arguments", "instance"])
def test_it_trains_saves_loads_and_samples(tmp_path, instance):
    from diffusers import UNet2DModel

    arguments = {**SMALL, "num_class_embeds": 3}
    net = DiffusersUNet(UNet2DModel(**arguments) if instance else arguments)
    model = NetworkDenoiser(net, VP(), time="label", labels=1_000)
    result = train(model, images(), cond=LABELS, steps=4, batch=4, out=tmp_path, progress=False)
    assert result.checkpoint is not None
    result.model.save(tmp_path / "model.safetensors")
    loaded = NetworkDenoiser.load(tmp_path / "model.safetensors")
    x = images()
    assert torch.equal(loaded.noise(x, 0.5, cond=LABELS), result.model.noise(x, 0.5, cond=LABELS))
    out = sample(loaded, x.shape, sampler=samplers.DDIM(), steps=3, cond=LABELS, seed=0)
    assert out.x.isfinite().all()


@needs_diffusers
def test_float64_and_every_derivative_without_attention():
    net = build(1e3).double()
    x, t = images(2).double(), torch.tensor([0.4], dtype=torch.float64)
    v = torch.cos(torch.arange(x.numel())).reshape(x.shape).double()
    out, forward = torch.func.jvp(lambda y: net(y, t), (x,), (v,))
    assert out.dtype == torch.float64
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(leaf, t).sum(), leaf, create_graph=True)
    torch.testing.assert_close((gradient * v).sum(), forward.sum())
    (second,) = torch.autograd.grad((gradient * v).sum(), leaf)
    assert second.isfinite().all()
    assert second.any()


@needs_diffusers
@pytest.mark.parametrize(
    ("attention", "divergence"), [(False, "exact"), (False, "hutchinson"), (True, "hutchinson")]
)
def test_likelihoods_through_it(attention, divergence):
    model = NetworkDenoiser(build(1e3, add_attention=attention).double(), VP(), "v")
    found = log_likelihood(
        model, images(2).double(), divergence=divergence, method="midpoint", steps=2, t_end=0.1
    )
    assert found.value.isfinite().all()
    # Standard normals of 64 numbers: -64 (1 + log(2 pi)) / 2 = -90.8 nats; the network is a random one.
    assert (found.value / (-32 * (1 + math.log(2 * math.pi))) - 1).abs().max() < 1


X, T = images(), torch.zeros(4)
BAD = [
    (lambda: DiffusersUNet(nn.Identity()), TypeError, "UNet2DModel or a mapping .* got Identity"),
    (lambda: DiffusersUNet({"width": 3}), TypeError, "width"),
    (lambda: build(0.0), ValueError, "time_scale must be"),
    (lambda: build(out_channels=2), ValueError, "as many out_channels as in_channels, got 2 and 1"),
    (lambda: build(class_embed_type="timestep"), ValueError, "class_embed_type='timestep'"),
    (lambda: build()(X[..., :7], T), ValueError, "divide by 2, got 8 x 7"),
    (lambda: build()(X[:, [0, 0]], T), ValueError, r"x must have shape \(n, 1, height, width\)"),
    (lambda: build()(X, T[:3]), ValueError, "t must have shape"),
    (lambda: build()(X, T, LABELS), ValueError, "cond was given, but this network takes none"),
    (lambda: build(num_class_embeds=3)(X, T), ValueError, "cond is missing"),
    (
        lambda: build(num_class_embeds=2)(X, T, LABELS),
        ValueError,
        r"labels in 0 \.\. 1, got 0 \.\. 2",
    ),
]


@needs_diffusers
@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[row[2][:40] for row in BAD])
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
