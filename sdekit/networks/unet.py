"""A small residual U-Net for images of 8 x 8 to 32 x 32 pixels.

Ho, Jain, Abbeel (2020, arXiv:2006.11239) with one residual block a level and attention at the lowest
resolution only; a level halves the image.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sdekit.errors import check_integer
from sdekit.networks.embeddings import TimeFeatures, check_times


class UNet(nn.Module):
    """Residual blocks down and up again, with skips; the output has x's shape and starts at zero.

    A time shared by the batch, of shape (1,), is embedded once. Works in either memory format; weights
    are drawn by torch's global generator, as torch modules are.

    Args:
        channels: of the image, 1 to 3.
        widths: channels of each level, from full resolution down.
        depth: residual blocks in a level, on each way.
        attention: self-attention at the lowest resolution.
        embedding_dim: features of each of the two time embeddings, even.
        num_classes: labels are 0 .. num_classes - 1; 0 means the network takes none. For
            classifier-free guidance count one more, as the label of "no class".
        time_scale: multiplies t; 1 suits times in [0, 1], 1e-3 labels up to 1,000, 0.05 a log-SNR.
    """

    #: A time of shape (1,) is embedded once for the whole batch.
    broadcasts_time = True

    def __init__(
        self,
        channels: int = 1,
        widths: Sequence[int] = (32, 64),
        depth: int = 1,
        attention: bool = True,
        embedding_dim: int = 32,
        num_classes: int = 0,
        time_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.channels = _check_channels(channels)
        self.widths = _check_widths(widths)
        self.depth = check_integer("depth", depth, 1)
        if not isinstance(attention, bool):
            raise TypeError(f"attention must be True or False, got {attention!r}")
        self.attention = attention
        self.embedding_dim = embedding_dim
        self.num_classes = check_integer("num_classes", num_classes, 0)
        self.features = TimeFeatures("sinusoidal", embedding_dim, time_scale)
        time = 2 * self.widths[0]
        self.time_in = nn.Sequential(
            nn.Linear(self.features.features, time), nn.SiLU(), nn.Linear(time, time)
        )
        self.class_in = nn.Embedding(num_classes, time) if num_classes else None
        self.x_in = nn.Conv2d(channels, self.widths[0], 3, padding=1)
        ins = (self.widths[0], *self.widths[:-1])
        ups = [(low + w, w) for w, low in zip(self.widths[:-1], self.widths[1:], strict=True)]
        self.down = nn.ModuleList(
            _Level(i, o, time, depth) for i, o in zip(ins, self.widths, strict=True)
        )
        self.mid = _Attention(self.widths[-1]) if attention else nn.Identity()
        self.up = nn.ModuleList(_Level(i, o, time, depth) for i, o in reversed(ups))
        self.out_norm = _norm(self.widths[0])
        self.out = nn.Conv2d(self.widths[0], channels, 3, padding=1)
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
        }

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """The network at x (n, channels, h, w) and t (n,) or (1,), with labels cond (n,) if it takes any.

        Raises:
            ValueError: a shape or label does not fit, or `cond` is missing or unexpected.
        """
        self._check_image(x)
        e = self.time_in(self.features(check_times(t, x)))
        e = F.silu(e if (labels := self._labels(x, cond)) is None else e + labels)
        h, skips = self.x_in(x), []
        for level in self.down:
            h = level(F.avg_pool2d(h, 2) if skips else h, e)
            skips.append(h)
        h = self.mid(skips.pop())
        for level in self.up:
            h = F.interpolate(h, scale_factor=2.0, mode="nearest")
            h = level(torch.cat([h, skips.pop()], dim=1), e)
        return self.out(F.silu(self.out_norm(h)))

    def _check_image(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(
                f"x must have shape (n, {self.channels}, height, width), got {tuple(x.shape)}"
            )
        divisor = 2 ** (len(self.widths) - 1)
        if x.shape[2] % divisor or x.shape[3] % divisor:
            raise ValueError(
                f"height and width must divide by {divisor} (2 ** (len(widths) - 1)), "
                f"got {x.shape[2]} x {x.shape[3]}"
            )

    def _labels(self, x: Tensor, cond: Tensor | None) -> Tensor | None:
        if self.class_in is None:
            if cond is not None:
                raise ValueError("cond was given, but this UNet takes none (num_classes is 0)")
            return None
        if cond is None:
            raise ValueError("cond is missing: this UNet needs integer labels of shape (n,)")
        if cond.shape != x.shape[:1] or cond.is_floating_point() or cond.dtype == torch.bool:
            raise ValueError(
                f"cond must hold integer labels of shape ({x.shape[0]},), "
                f"got {cond.dtype} of shape {tuple(cond.shape)}"
            )
        if cond.numel() and not 0 <= int(cond.min()) <= int(cond.max()) < self.num_classes:
            raise ValueError(
                f"cond must hold labels in 0 .. {self.num_classes - 1}, "
                f"got {int(cond.min())} .. {int(cond.max())}"
            )
        return self.class_in(cond.long())


class _Block(nn.Module):
    """x + conv(conv(x) + time): pre-activation, the residual of He et al. (2016)."""

    def __init__(self, ins: int, outs: int, time: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(ins), _norm(outs)
        self.conv1 = nn.Conv2d(ins, outs, 3, padding=1)
        self.conv2 = nn.Conv2d(outs, outs, 3, padding=1)
        self.time = nn.Linear(time, outs)
        self.skip = nn.Conv2d(ins, outs, 1) if ins != outs else nn.Identity()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time(e)[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class _Level(nn.Module):
    """`depth` blocks at one resolution."""

    def __init__(self, ins: int, outs: int, time: int, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            _Block(ins if k == 0 else outs, outs, time) for k in range(depth)
        )

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, e)
        return x


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


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, width), width)


def _check_channels(channels: int) -> int:
    if check_integer("channels", channels, 1) > 3:
        raise ValueError(f"channels must be 1, 2 or 3, got {channels}")
    return channels


def _check_widths(widths: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(widths, Sequence) or not widths:
        raise ValueError(f"widths must be a non-empty sequence of integers, got {widths!r}")
    return tuple(check_integer(f"widths[{k}]", width, 1) for k, width in enumerate(widths))
