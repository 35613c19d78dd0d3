"""Small grey images for the experiments, and a judge of generated ones."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import sdekit as sk
from sdekit import metrics
from sdekit.data import images as sources
from sdekit.data.images import Labelled, Scaling
from sdekit.errors import check_choice

#: Levels to [-1, 1]: what judges and pictures see, whatever a network was trained on.
SYMMETRIC = Scaling.symmetric()


@dataclass(frozen=True)
class Pictures:
    """A data set of square grey images, levels (n, 1, size, size) uint8."""

    name: str
    train: Labelled
    test: Labelled


def load(name: str, size: int) -> Pictures:
    """Fashion-MNIST or MNIST, with a border if `size` is 32; the digits, enlarged, where it is missing.

    Args:
        name: "fashion", "mnist", or "digits" (scikit-learn's, 8 x 8, which are always there).
        size: side in pixels, 28 or 32.
    """
    if size not in (28, 32):
        raise ValueError(f"size must be 28 or 32, got {size}")
    readers = {"fashion": sources.fashion_mnist, "mnist": sources.mnist}
    if check_choice("data", name, (*readers, "digits")) == "digits":
        return _digits(size)
    try:
        parts = readers[name](), readers[name](train=False)
    except FileNotFoundError as missing:
        print(f"{missing}\nscikit-learn's digits, enlarged to {size} x {size}, take its place")
        return _digits(size)
    border = [(size - 28) // 2] * 4
    train, test = (part._replace(images=functional.pad(part.images, border)) for part in parts)
    return Pictures({"fashion": "Fashion-MNIST", "mnist": "MNIST"}[name], train, test)


def _digits(size: int) -> Pictures:
    """1,347 digits to train on and 450 to test."""
    enlarged = functional.interpolate(sources.digits(), (size, size), mode="bilinear")
    levels, labels = SYMMETRIC.to_levels(enlarged), sources.digit_labels()
    order = torch.randperm(len(levels), generator=torch.Generator().manual_seed(0))
    names = tuple("0123456789")
    train, test = (Labelled(levels[k], labels[k], names) for k in (order[450:], order[:450]))
    return Pictures("8 x 8 digits", train, test)


def sampler_named(name: str) -> sk.samplers.Sampler:
    """A sampler by its name in `sdekit samplers`: its default instance."""
    known = sk.samplers.by_name()
    return known[check_choice("sampler", name, tuple(known))]


def steps_of(sampler: sk.samplers.Sampler, calls: int) -> int:
    """The steps of a sampler that take so many network calls, at least one."""
    return max(1, calls // (sampler.nfe_per_step or 1))


@dataclass(frozen=True)
class Judge:
    """A classifier's opinion of images: distances of its features from unseen data, and what it recognises.

    Attributes:
        classifier: trained on one half of the training images, or `most` of them.
        reference: features of all test images.
        real: features of the other half, which say what real images score.
        shares: of the classes among the test images.
    """

    classifier: metrics.TrainedLeNet
    reference: metrics.FeatureSet
    real: metrics.FeatureSet
    shares: Tensor

    @classmethod
    def of(cls, data: Pictures, most: int = 20_000, epochs: int = 6, seed: int = 0) -> "Judge":
        """Train the classifier: half a minute for 20,000 images."""
        half = min(most, len(data.train.images) // 2)
        seen, unseen = (
            SYMMETRIC.forward(data.train.images[k]) for k in (slice(half), slice(half, 2 * half))
        )
        assert data.train.labels is not None
        assert data.test.labels is not None
        fit = metrics.train_lenet(seen, data.train.labels[:half], epochs, seed=seed)
        test = metrics.extract_features(fit.network, SYMMETRIC.forward(data.test.images))
        shares = torch.bincount(data.test.labels, minlength=10) / len(data.test.labels)
        return cls(fit, test, metrics.extract_features(fit.network, unseen), shares)

    def scores(self, levels: Tensor) -> dict[str, Any]:
        """FD and KID with standard errors, how sure the classifier is, and how classes are shared out."""
        images = SYMMETRIC.forward(levels)
        features = metrics.extract_features(self.classifier.network, images)
        distance, error = frechet_with_error(features, self.reference)
        kernel = metrics.kid(features, self.reference)
        with torch.no_grad():
            chances = self.classifier.network.out(features.values.float()).softmax(1)
        found = torch.bincount(chances.argmax(1), minlength=10) / len(chances)
        return {
            "FD": distance,
            "FD se": error,
            "KID": kernel.value,
            "KID se": kernel.stderr,
            "sure": float((chances.amax(1) > 0.9).float().mean()),
            "off balance": float((found - self.shares).abs().sum() / 2),
            "classes": found.tolist(),
        }

    def floor(self, n: int, repeats: int = 20, seed: int = 0) -> metrics.Floor:
        """FD of n real images, unseen by the classifier, from the test images."""
        generator = torch.Generator().manual_seed(seed)
        n = min(n, len(self.real))
        draws = [torch.randperm(len(self.real), generator=generator)[:n] for _ in range(repeats)]
        found = [metrics.frechet_distance(self.real[rows], self.reference) for rows in draws]
        return metrics.Floor.of([distance.value for distance in found])


def frechet_with_error(
    x: metrics.FeatureSet, y: metrics.FeatureSet, groups: int = 20
) -> tuple[float, float]:
    """The Fréchet distance of x from y, and its standard error over draws of x by the jackknife.

    One of `groups` random parts of x is left out at a time (Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, chapter 11, with groups in place of points).
    """
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    parts = order.tensor_split(groups)
    rest = [torch.cat([p for p in parts if p is not part]) for part in parts]
    values = torch.tensor([metrics.frechet_distance(x[rows], y).value for rows in rest])
    spread = float((values - values.mean()).square().sum())
    return metrics.frechet_distance(x, y).value, (spread * (groups - 1) / groups) ** 0.5
