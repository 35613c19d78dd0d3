"""The U-Net's own: sizes, skips, patches, dropout and what checkpoints keep of them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from sdekit import VP, NetworkDenoiser
from sdekit.networks import UNet
from sdekit.networks.unet import _enlarge


def build(**arguments) -> UNet:
    """A U-Net in float64 whose every weight is random, from a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet(**arguments).double()
        for weight in net.parameters():
            nn.init.normal_(weight, std=0.2)
    return net


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def count(net: nn.Module) -> int:
    return sum(weight.numel() for weight in net.parameters())


def test_parameters_of_the_published_unet():
    """The U-Net of the DDIM tutorials, of 3,562,211 parameters, has these widths and this depth."""
    for attention in (True, False):
        net = UNet(3, (32, 64, 96, 128), depth=2, attention=attention)
        assert abs(count(net) / 3_562_211 - 1) < 0.05


def expected_parameters(channels: int, widths: list[int], depth: int, patch: int) -> int:
    """Counted from the drawing: every block down has a partner up that takes its output as well."""

    def block(ins: int, outs: int) -> int:
        norms, time = 2 * (ins + outs), (2 * widths[0] + 1) * outs
        convolutions = (9 * ins + 1) * outs + (9 * outs + 1) * outs
        return norms + time + convolutions + ((ins + 1) * outs if ins != outs else 0)

    down = [w for w in widths for _ in range(depth)]
    up, low, first = down[::-1], down[-1], widths[0]
    blocks = [block(i, o) for i, o in zip([first, *down], down, strict=False)]
    blocks += [block(low, low)] * 2
    blocks += [block(i + o, o) for i, o in zip([low, *up], up, strict=False)]
    attention = 2 * low + (low + 1) * 3 * low + (low + 1) * low
    features, time, pixels = 2 * 32 + 2, 2 * first, channels * patch**2
    embedding = (features + 1) * time + (time + 1) * time
    ends = (9 * pixels + 1) * first + 2 * first + (9 * first + 1) * pixels
    return sum(blocks) + attention + embedding + ends


@pytest.mark.parametrize(
    ("channels", "widths", "depth", "patch"),
    [(3, [32, 64, 96, 128], 2, 1), (1, [32, 64], 1, 1), (1, [32, 64, 96], 1, 2), (2, [8], 3, 1)],
)
def test_a_skip_after_every_block(channels, widths, depth, patch):
    net = UNet(channels, widths, depth, patch=patch)
    assert count(net) == expected_parameters(channels, widths, depth, patch)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    height=st.integers(1, 16),
    width=st.integers(1, 16),
    channels=st.integers(1, 3),
    levels=st.integers(1, 6),
    depth=st.integers(1, 2),
    patch=st.integers(1, 4),
    n=st.integers(1, 2),
)
def test_any_even_size_and_number_of_levels(height, width, channels, levels, depth, patch, n):
    side = math.lcm(2, patch)
    x = draw(n, channels, side * height, side * width)
    net = build(channels=channels, widths=(8,) * levels, depth=depth, patch=patch)
    out = net(x, torch.full((n,), 0.3))
    assert out.shape == x.shape
    assert out.isfinite().all()
    assert out.any()


@pytest.mark.parametrize("size", [(28, 28), (10, 10), (8, 12), (14, 30)])
def test_every_pixel_reaches_every_level(size):
    """Nothing is cropped away that the output depends on: each pixel moves, and is moved by, the rest."""
    net = build(widths=(8, 8, 8, 8))
    x = draw(1, 1, *size).requires_grad_()
    out = net(x, torch.tensor([0.5]))
    corner, last = out[0, 0, 0, 0], out[0, 0, -1, -1]
    for pixel in (corner, last):
        (gradient,) = torch.autograd.grad(pixel, x, retain_graph=True)
        assert (gradient != 0).all()


@pytest.mark.parametrize("size", range(1, 41))
def test_halving_is_a_mean_and_doubling_repeats_pixels(size):
    x = draw(2, 3, size, 5)
    half = F.avg_pool2d(x, 2, ceil_mode=True)
    assert half.shape[2:] == (math.ceil(size / 2), 3)
    rows, columns = torch.arange(size) // 2, torch.arange(5) // 2
    blocks = (
        F.one_hot(rows).T[:, None, :, None] * F.one_hot(columns).T[None, :, None, :]
    )  # (., ., size, 5)
    blocks = blocks.double() / blocks.sum((2, 3), keepdim=True)
    mean = torch.einsum("nchw,ijhw->ncij", x, blocks)
    torch.testing.assert_close(half, mean, rtol=0, atol=1e-15)
    back = half.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, :size, :5]
    assert torch.equal(_enlarge(half, x), back)


def test_patches_are_blocks_of_pixels():
    """With the middle of the network silent, what is left is the way in and out, pixel by pixel."""
    net = build(channels=2, widths=(8,), patch=2, attention=False)
    x = draw(1, 2, 8, 8).requires_grad_()
    columns, t = x.detach().unfold(2, 2, 2).unfold(3, 2, 2), torch.tensor([0.5])
    assert columns.shape == (1, 2, 4, 4, 2, 2)  # channel, block, pixel of the block
    seen = []
    net.x_in.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    net.out.register_forward_hook(lambda module, args, out: seen.append(out))
    out = net(x, t)
    pixels = columns.permute(0, 1, 4, 5, 2, 3).reshape(1, 8, 4, 4)
    assert torch.equal(seen[0], pixels)
    leaving = out.detach().unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 1, 4, 5, 2, 3)
    assert torch.equal(seen[1], leaving.reshape(1, 8, 4, 4))


def test_dropout_acts_in_train_mode_only():
    net, x, t = build(widths=(8, 16), dropout=0.5), draw(3, 1, 8, 8), torch.tensor([0.4])
    plain = build(widths=(8, 16))
    plain.load_state_dict(net.state_dict())
    state = torch.get_rng_state()
    assert torch.equal(net.eval()(x, t), plain(x, t))
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng():
        net.train()
        torch.manual_seed(1)
        first, second = net(x, t), net(x, t)
        torch.manual_seed(1)
        assert torch.equal(net(x, t), first)
    assert not torch.allclose(first, second)


def test_dropout_has_its_probability_and_keeps_the_mean():
    """Each block drops before its second convolution; four standard errors of a share of n draws."""
    shares, kept = [], []

    def watch(module: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
        shares.append((out == 0).double().mean().item())
        kept.append(out[out != 0] / args[0][out != 0])

    net = build(widths=(16, 16), depth=2, dropout=0.3).train()
    for block in net.modules():
        if isinstance(block, nn.Dropout):
            block.register_forward_hook(watch)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net(draw(8, 1, 16, 16), torch.tensor([0.4]))
    assert len(shares) == 10  # 2 x 2 down, 2 in the middle, 2 x 2 up
    smallest = 8 * 16 * 8 * 8
    for share, scale in zip(shares, kept, strict=True):
        assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / smallest)
        torch.testing.assert_close(scale, torch.full_like(scale, 1 / 0.7), rtol=1e-12, atol=0)


def test_double_backward_is_the_derivative_of_the_gradient():
    """The second derivative along a direction, against a central difference of first ones."""
    net = build(widths=(8, 8), num_classes=2)
    x, v, t = draw(2, 1, 6, 6), draw(2, 1, 6, 6, seed=1), torch.tensor([0.4])
    cond = torch.tensor([0, 1])

    def gradient(y: Tensor, graph: bool = False) -> Tensor:
        y = y if y.requires_grad else y.detach().requires_grad_()
        return torch.autograd.grad(net(y, t, cond).square().sum(), y, create_graph=graph)[0]

    leaf = x.clone().requires_grad_()
    (second,) = torch.autograd.grad((gradient(leaf, graph=True) * v).sum(), leaf)
    h = 1e-5
    difference = (gradient(x + h * v) - gradient(x - h * v)) / (2 * h)
    torch.testing.assert_close(second, difference, rtol=1e-6, atol=1e-6 * second.abs().max().item())


def test_labels_are_added_to_the_time():
    """Two classes with one embedding are one; a label shifts its own sample only."""
    net = build(widths=(8, 8), num_classes=3)
    x, t = draw(1, 1, 8, 8).expand(3, -1, -1, -1), torch.tensor([0.5])
    with torch.no_grad():
        net.class_in.weight[2] = net.class_in.weight[0]  # type: ignore[union-attr]
    out = net(x, t, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(out[0], out[2], rtol=0, atol=1e-12)
    assert (out[0] - out[1]).abs().max() > 1e-3
    for dtype in (torch.uint8, torch.int32):
        assert torch.equal(net(x, t, torch.tensor([0, 1, 2], dtype=dtype)), out)


def test_a_checkpoint_rebuilds_it(tmp_path):
    net = build(channels=3, widths=(8, 16), num_classes=4, dropout=0.2, patch=2, time_scale=0.05)
    model = NetworkDenoiser(net, VP(), "v", time="log_snr").eval()
    model.save(tmp_path / "unet.safetensors")
    twin = NetworkDenoiser.load(tmp_path / "unet.safetensors")
    assert isinstance(twin.network, UNet)
    assert twin.network.config == net.config
    x, cond = draw(2, 3, 12, 12), torch.tensor([3, 0])
    assert torch.equal(twin.noise(x, 0.3, cond=cond), model.noise(x, 0.3, cond=cond))
