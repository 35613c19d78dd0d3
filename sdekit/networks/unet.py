"""A residual U-Net for images of one to three channels and any even size.

The residual blocks, their dropout and the middle with attention are those of Ho, Jain, Abbeel (2020,
arXiv:2006.11239), with attention at the lowest resolution only; as there, every block on the way down hands
a skip to a block on the way up. Pixels taken in patches are those of Hoogeboom, Heek, Salimans (2023,
"simple diffusion", arXiv:2301.11093).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sdekit.errors import check_flag, check_integer, check_number
from sdekit.networks.embeddings import TimeFeatures, check_times


class UNet(nn.Module):
    """Residual blocks down and up again, with skips; the output starts at zero.

    Each level halves the image; half of an odd size is rounded up, and cropped away again, so that any
    number of levels fits any even size. A time shared by the batch, of shape (1,), is embedded once.
    Works in either memory format; weights are drawn by torch's global generator, as torch modules are,
    and so is dropout in train mode.

    Args:
        channels: of the image, 1 to 3.
        widths: channels of each level, from full resolution down.
        depth: residual blocks in a level, on each way.
        attention: self-attention at the lowest resolution.
        embedding_dim: features of each of the two time embeddings, even.
        num_classes: labels are 0 .. num_classes - 1; 0 means the network takes none. For
            classifier-free guidance count one more, as the label of "no class".
        time_scale: multiplies t; 1 suits times in [0, 1], 1e-3 labels up to 1,000, 0.05 a log-SNR.
        dropout: probability that a feature is dropped inside a residual block, in train mode.
        patch: pixels enter and leave as patch x patch blocks, a channel a pixel of the block; 2 makes
            a call about four times cheaper. Sizes must divide by it.
        readings: how many images the output holds, one after the other along the channels: 1, or 2 for
            `LearnedVariance`.
    """

    #: A time of shape (1,) is embedded once for the whole batch.
    broadcasts_time = True

    def __init__(
        self,
        channels: int = 1,
        widths: Sequence[int] = (16, 32),
        depth: int = 1,
        attention: bool = True,
        embedding_dim: int = 32,
        num_classes: int = 0,
        time_scale: float = 1.0,
        dropout: float = 0.0,
        patch: int = 1,
        readings: int = 1,
    ) -> None:
        super().__init__()
        self.channels = _check_channels(channels)
        self.widths = _check_widths(widths)
        self.depth = check_integer("depth", depth, 1)
        self.attention = check_flag("attention", attention)
        self.embedding_dim = embedding_dim
        self.num_classes = check_integer("num_classes", num_classes, 0)
        self.dropout = check_number("dropout", dropout, 0.0, 1.0, open_high=True)
        self.patch = check_integer("patch", patch, 1)
        self.readings = check_integer("readings", readings, 1)
        self.features = TimeFeatures("sinusoidal", embedding_dim, time_scale)
        down = [width for width in self.widths for _ in range(depth)]
        up, low, time = down[::-1], down[-1], 2 * down[0]
        self.time_in = nn.Sequential(
            nn.Linear(self.features.features, time), nn.SiLU(), nn.Linear(time, time)
        )
        self.class_in = nn.Embedding(num_classes, time) if num_classes else None
        self.x_in = nn.Conv2d(channels * patch**2, down[0], 3, padding=1)
        self.down = nn.ModuleList(_Block(i, o, time, dropout) for i, o in _steps(down))
        self.mid_in = _Block(low, low, time, dropout)
        self.mid = _Attention(low) if attention else nn.Identity()
        self.mid_out = _Block(low, low, time, dropout)
        self.up = nn.ModuleList(_Block(i + o, o, time, dropout) for i, o in _steps(up))
        self.out_norm = _norm(down[0])
        self.out = nn.Conv2d(down[0], readings * channels * patch**2, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # pyright: ignore[reportArgumentType]

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON."""
        return {
            "channels": self.channels,
            "widths": list(self.widths),
            "depth": self.depth,
            "attention": self.attention,
            "embedding_dim": self.embedding_dim,
            "num_classes": self.num_classes,
            "time_scale": self.features.scale,
            "dropout": self.dropout,
            "patch": self.patch,
            "readings": self.readings,
        }

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """The network at x (n, channels, h, w) and t (n,) or (1,), with labels cond (n,) if it takes any.

        Raises:
            ValueError: a shape or label does not fit, or `cond` is missing or unexpected.
        """
        check_image(x, self.channels, math.lcm(2, self.patch))
        labels = check_labels(x, cond, self.num_classes)
        e = self.time_in(self.features(check_times(t, x)))
        e = F.silu(e if self.class_in is None else e + self.class_in(labels))
        h, skips = self.x_in(F.pixel_unshuffle(x, self.patch)), []
        for k, block in enumerate(self.down):
            if k and k % self.depth == 0:
                h = F.avg_pool2d(h, 2, ceil_mode=True)
            h = block(h, e)
            skips.append(h)
        h = self.mid_out(self.mid(self.mid_in(h, e)), e)
        for block in self.up:
            skip = skips.pop()
            h = block(torch.cat([_enlarge(h, skip), skip], dim=1), e)
        return F.pixel_shuffle(self.out(F.silu(self.out_norm(h))), self.patch)


def check_image(x: Tensor, channels: int, divisor: int) -> None:
    """x has shape (n, channels, height, width), with sides that divide by `divisor`."""
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"x must have shape (n, {channels}, height, width), got {tuple(x.shape)}")
    height, width = x.shape[2:]
    if min(height, width) < 1 or height % divisor or width % divisor:
        raise ValueError(
            f"height and width must be positive and divide by {divisor}, got {height} x {width}"
        )


def check_labels(x: Tensor, cond: Tensor | None, num_classes: int) -> Tensor | None:
    """`cond` as int64 labels of the batch x, None for a network of no classes."""
    if num_classes == 0:
        if cond is not None:
            raise ValueError("cond was given, but this network takes none (it has no classes)")
        return None
    if cond is None:
        raise ValueError("cond is missing: this network needs integer labels of shape (n,)")
    if cond.shape != x.shape[:1] or cond.is_floating_point() or cond.dtype == torch.bool:
        raise ValueError(
            f"cond must hold integer labels of shape ({x.shape[0]},), "
            f"got {cond.dtype} of shape {tuple(cond.shape)}"
        )
    if cond.numel() and not 0 <= int(cond.min()) <= int(cond.max()) < num_classes:
        raise ValueError(
            f"cond must hold labels in 0 .. {num_classes - 1}, "
            f"got {int(cond.min())} .. {int(cond.max())}"
        )
    return cond.long()


class _Block(nn.Module):
    """x + conv(dropout(conv(x) + time)): pre-activation, the residual of He et al. (2016)."""

    def __init__(self, ins: int, outs: int, time: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(ins), _norm(outs)
        self.conv1 = nn.Conv2d(ins, outs, 3, padding=1)
        self.conv2 = nn.Conv2d(outs, outs, 3, padding=1)
        self.time = nn.Linear(time, outs)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.skip = nn.Conv2d(ins, outs, 1) if ins != outs else nn.Identity()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time(e)[:, :, None, None]
        return self.skip(x) + self.conv2(self.dropout(F.silu(self.norm2(h))))


class _Attention(nn.Module):
    """One head of self-attention over the pixels, written out so that every derivative exists."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).chunk(3, dim=1)
        weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(x.shape[1]), dim=-1)
        return x + self.out((v @ weights.transpose(1, 2)).reshape(x.shape))


def _steps(widths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Channels into and out of blocks of these widths, one after the other."""
    return zip((widths[0], *widths[:-1]), widths, strict=True)


def _enlarge(h: Tensor, skip: Tensor) -> Tensor:
    """h at the resolution of the skip: each pixel doubled, what was rounded up cropped."""
    if h.shape[2:] == skip.shape[2:]:
        return h
    return F.interpolate(h, size=skip.shape[2:], mode="nearest")


def _norm(width: int) -> nn.GroupNorm:
    """Up to 8 groups of at least 4 channels, so that one pixel can be normalised too."""
    return nn.GroupNorm(max(1, math.gcd(32, width) // 4), width)


def _check_channels(channels: int) -> int:
    if check_integer("channels", channels, 1) > 3:
        raise ValueError(f"channels must be 1, 2 or 3, got {channels}")
    return channels


def _check_widths(widths: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(widths, Sequence) or not widths:
        raise ValueError(f"widths must be a non-empty sequence of integers, got {widths!r}")
    return tuple(check_integer(f"widths[{k}]", width, 2) for k, width in enumerate(widths))
