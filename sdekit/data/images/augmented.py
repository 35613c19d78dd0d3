"""Images turned, mirrored and moved a little at every draw."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sdekit.errors import check_finite, check_flag, check_integer, check_number, generator_of


@dataclass(frozen=True, repr=False, eq=False)
class Augmented:
    """Endless data made of images: a random one, mirrored, rotated and cropped at random, at each draw.

    Train on it as on any endless data: `sdekit.train(model, Augmented(images, flip=True), ...)`.

    Args:
        images: (n, c, h, w), floating point (see `Scaling`).
        flip: mirror every other image, left to right.
        rotation: largest angle of a rotation about the centre in degrees, either way, at most 45.
        crop: pixels added at each side before an image of the old size is cut out: the largest shift.

    Pixels from outside repeat the nearest one inside; rotations interpolate bilinearly.
    """

    images: Tensor
    flip: bool = False
    rotation: float = 0.0
    crop: int = 0

    def __post_init__(self) -> None:
        if check_finite("images", self.images).ndim != 4 or not self.images.numel():
            shape = tuple(self.images.shape)
            raise ValueError(f"images must be (n, c, h, w) and not empty, got shape {shape}")
        check_flag("flip", self.flip)
        check_number("rotation", self.rotation, 0.0, 45.0)
        check_integer("crop", self.crop, 0)

    def __repr__(self) -> str:
        shape = tuple(self.images.shape)
        return f"Augmented({shape}, flip={self.flip}, rotation={self.rotation}, crop={self.crop})"

    def sample(
        self, n: int, *, seed: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """`n` images (n, c, h, w), drawn with replacement, each changed in its own way."""
        n, generator = check_integer("n", n, 0), generator_of(seed, generator)
        rows = torch.randint(len(self.images), (n,), generator=generator, device=generator.device)
        x = self.images[rows.to(self.images.device)]
        if self.flip:
            mirrored = self._uniforms(n, generator) < 0.5
            x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
        if self.rotation and n:  # torch has no grid of no images
            x = _rotated(x, math.radians(self.rotation) * (2 * self._uniforms(n, generator) - 1))
        if self.crop:
            x = _cropped(x, self.crop, self._uniforms(n, generator), self._uniforms(n, generator))
        return x

    def _uniforms(self, n: int, generator: torch.Generator) -> Tensor:
        draws = torch.rand(n, generator=generator, device=generator.device, dtype=torch.float64)
        return draws.to(self.images.device)


def _rotated(x: Tensor, angle: Tensor) -> Tensor:
    """Each image turned by its own angle in radians, (n,), from the x axis (right) to the y axis (down)."""
    _, _, height, width = x.shape
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # The map goes from places in the result to places in the image, each axis in units of its half.
    rows = [cos, sin * (height / width), zero], [-sin * (width / height), cos, zero]
    theta = torch.stack([torch.stack(row, -1) for row in rows], -2).to(x)
    places = functional.affine_grid(theta, list(x.shape), align_corners=False)
    return functional.grid_sample(x, places, padding_mode="border", align_corners=False)


def _cropped(x: Tensor, pixels: int, u: Tensor, v: Tensor) -> Tensor:
    """Each image moved by whole pixels in [-pixels, pixels], from uniforms (n,)."""
    _, _, height, width = x.shape

    def places(u: Tensor, size: int) -> Tensor:
        shift = (u * (2 * pixels + 1)).floor().long() - pixels
        return (torch.arange(size, device=x.device) + shift[:, None]).clamp(0, size - 1)

    down, across = places(u, height), places(v, width)
    samples = torch.arange(len(x), device=x.device)[:, None, None]
    return x.permute(0, 2, 3, 1)[samples, down[:, :, None], across[:, None, :]].permute(0, 3, 1, 2)
