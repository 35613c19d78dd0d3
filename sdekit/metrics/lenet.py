"""A small classifier whose last hidden layer is a feature space for images: FD-LeNet."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sdekit.errors import check_finite, check_integer, check_number


class LeNet(nn.Module):
    """LeNet-5 with padded convolutions, so that it takes images from 4 x 4 pixels; called, it gives features.

    Two 5 x 5 convolutions of 6 and 16 channels, each halved by a mean, layers of 120 and 84 and the
    classes, tanh between (LeCun, Bottou, Bengio, Haffner, 1998). The features are the 84. Weights are
    drawn by torch's global generator, as torch modules are.

    Args:
        channels: of the images.
        size: of the images, (height, width), at least 4 each.
        classes: at least 2.
    """

    def __init__(self, channels: int, size: tuple[int, int], classes: int) -> None:
        super().__init__()
        height, width = (check_integer("size", side, 4) for side in size)
        self.channels = check_integer("channels", channels, 1)
        self.size = (height, width)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2),
            nn.Conv2d(6, 16, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(),
            nn.Linear(16 * (height // 4) * (width // 4), 120), nn.Tanh(),
            nn.Linear(120, 84), nn.Tanh(),
        )  # fmt: skip
        self.out = nn.Linear(84, check_integer("classes", classes, 2))

    def forward(self, images: Tensor) -> Tensor:
        """Features (n, 84) of images (n, channels, height, width)."""
        if images.ndim != 4 or tuple(images.shape[1:]) != (self.channels, *self.size):
            shape = ("n", self.channels, *self.size)
            raise ValueError(
                f"images must have shape ({', '.join(map(str, shape))}), got {tuple(images.shape)}"
            )
        return self.layers(images)

    def logits(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of images (n, channels, height, width)."""
        return self.out(self(images))


@dataclass(frozen=True)
class TrainedLeNet:
    """A trained classifier and how often it is right.

    Attributes:
        network: in evaluation mode.
        accuracy: share of right answers on images that it was not trained on.
        held_out: how many those were.
    """

    network: LeNet
    accuracy: float
    held_out: int


def train_lenet(
    images: Tensor, labels: Tensor, epochs: int = 20, held_out: float = 0.2, seed: int = 0
) -> TrainedLeNet:
    """Train a `LeNet` on labelled images, on the CPU in float32.

    Adam at 5e-3 falling to 0 along a cosine, batches of 32. A function of the arguments and of the
    build of torch; the global generator is left as it was.

    Args:
        images: shape (n, channels, height, width), finite, of order 1, n >= 10.
        labels: shape (n,), integers from 0; each class up to the greatest should occur.
        epochs: passes over the training part, at least 1.
        held_out: share of the images, drawn at random, on which accuracy is measured; in (0, 1).
        seed: of the split, the weights and the order.

    Raises:
        ValueError: for images that are not finite, shapes that do not fit, a negative label, fewer
            than two classes, or a part without images.
        TypeError: for images that are not a floating tensor, or labels that are not integers.
    """
    check_integer("epochs", epochs, 1)
    share = check_number("held_out", held_out, 0, 1, open_low=True, open_high=True)
    images, labels = _labelled(images, labels)
    tested = round(share * len(images))
    if not 0 < tested < len(images):
        raise ValueError(
            f"held_out must leave images on either side of {len(images)}, got {held_out}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(check_integer("seed", seed, 0))
        order = torch.randperm(len(images))
        channels, height, width = images.shape[1:]
        network = LeNet(channels, (height, width), int(labels.max()) + 1)
        _fit(network, images[order[tested:]], labels[order[tested:]], epochs)
    network.eval()
    with torch.no_grad():
        answers = network.logits(images[order[:tested]]).argmax(1)
    right = float((answers == labels[order[:tested]]).double().mean())
    return TrainedLeNet(network, right, tested)


def _fit(network: LeNet, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Minimise the cross-entropy, with torch's global generator for the order."""
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    with torch.enable_grad():
        for _ in range(epochs):
            for rows in torch.randperm(len(images)).split(32):
                optimizer.zero_grad()
                F.cross_entropy(network.logits(images[rows]), labels[rows]).backward()
                optimizer.step()
            schedule.step()


def _labelled(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Images (n, c, h, w) float32 and labels (n,) int64 on the CPU, checked."""
    check_finite("images", images)
    if images.ndim != 4 or len(images) < 10:
        raise ValueError(
            f"images must have shape (n, channels, height, width), n >= 10, got {tuple(images.shape)}"
        )
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a torch.Tensor, got {type(labels).__name__}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels must have shape ({len(images)},), got {tuple(labels.shape)}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high < 1:
        raise ValueError(f"labels must be classes 0, 1, ..., two or more, got {low} .. {high}")
    return images.detach().to("cpu", torch.float32), labels.to("cpu", torch.int64)
