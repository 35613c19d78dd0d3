# Bad input is passed on purpose.
# pyright: reportArgumentType=false
import math

import pytest
import torch
from helpers import bad_input, normal
from torch import Tensor, nn

from sdekit.data.images import digit_labels, digits
from sdekit.metrics import FeatureSet, LeNet, extract_features, train_lenet


class Moody(nn.Module):
    """A module that would give other features in training mode, and counts its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(4, 3))
        self.dropout = nn.Dropout(0.9)
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        assert x.dtype == self.weight.dtype
        self.batches.append(len(x))
        return self.dropout(x.flatten(1) @ self.weight)


# ---- sets of features ----------------------------------------------------------------------------


def test_moments():
    x = normal(20, 4).float()
    found = FeatureSet(x, "plain")
    assert found.values.dtype == torch.float64
    assert torch.allclose(found.mean, x.double().mean(0), rtol=1e-14)
    assert torch.allclose(found.covariance, x.double().T.cov(), rtol=1e-13)
    assert found.covariance is found.covariance
    part = found[torch.tensor([3, 1])]
    assert torch.equal(part.values, x.double()[[3, 1]])
    assert (len(part), part.name) == (2, "plain")
    assert repr(found) == "FeatureSet(plain, n=20, d=4)"


def test_an_extractor_runs_in_batches_and_keeps_its_mode():
    network, images = Moody(), normal(23, 1, 2, 2).float()
    network.dropout.eval()  # a part in another mode than the whole
    found = extract_features(network, images, batch=10)
    assert network.batches == [10, 10, 3]
    assert network.training
    assert not network.dropout.training
    expected = images.double().flatten(1) @ network.weight.detach()
    assert torch.allclose(found.values, expected, rtol=1e-12)
    assert found.name == "Moody"
    assert torch.equal(extract_features(network, images, name="again").values, found.values)


def test_any_callable_is_an_extractor():
    def brightness(images: Tensor) -> Tensor:
        return images.mean((2, 3))

    images = normal(7, 3, 4, 4)
    found = extract_features(brightness, images)
    assert found.name == "brightness"
    assert torch.allclose(found.values, images.mean((2, 3)), rtol=1e-14)


def test_the_mode_survives_an_error():
    network = Moody()
    with pytest.raises(RuntimeError):
        extract_features(network, normal(5, 7))
    assert network.training
    assert network.dropout.training


# ---- LeNet ---------------------------------------------------------------------------------------


def test_digits_are_told_apart_in_seconds():
    state = torch.get_rng_state()
    fit = train_lenet(digits(), digit_labels(), epochs=10)
    assert torch.equal(state, torch.get_rng_state())
    assert fit.held_out == 359
    assert fit.accuracy > 0.9
    assert not fit.network.training
    found = extract_features(fit.network, digits())
    assert repr(found) == "FeatureSet(LeNet, n=1797, d=84)"
    # The features are enough for the classes: a linear map of them gives the logits.
    logits = fit.network.out(found.values.float())
    assert (logits.argmax(1) == digit_labels()).double().mean() > 0.93


def easy(n: int = 200) -> tuple[Tensor, Tensor]:
    """Bright or dark images, in a random order."""
    labels = (normal(n, seed=8) > 0).long()
    return normal(n, 3, 5, 6) * 0.1 + labels[:, None, None, None] - 0.5, labels


def test_accuracy_is_one_where_it_can_be_and_chance_where_it_cannot():
    images, labels = easy()
    assert train_lenet(images, labels, epochs=5).accuracy == 1
    # Labels that the images say nothing of, learnt by heart: right answers on the others are tosses
    # of a coin, four standard errors.
    noise, labels = normal(400, 3, 5, 6), easy(400)[1]
    fit = train_lenet(noise, labels, epochs=60, held_out=0.5)
    assert fit.held_out == 200
    assert abs(fit.accuracy - 0.5) < 4 * 0.5 / math.sqrt(200)
    right = (fit.network.logits(noise.float()).argmax(1) == labels).double().sum()
    assert (right - 200 * fit.accuracy) / 200 > 0.95  # the half that it was trained on


def test_training_is_a_function_of_its_seed():
    images, labels = easy(60)
    first, same, other = (train_lenet(images, labels, epochs=1, seed=s) for s in (3, 3, 4))
    for a, b in zip(first.network.parameters(), same.network.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.network.out.weight, other.network.out.weight)
    with torch.no_grad():
        assert torch.equal(
            train_lenet(images, labels, epochs=1, seed=3).network.out.weight,
            first.network.out.weight,
        )


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (28, 28), (9, 13)])
def test_images_of_any_size(size):
    network = LeNet(2, size, 5)
    images = torch.zeros(3, 2, *size)
    assert network(images).shape == (3, 84)
    assert network.logits(images).shape == (3, 5)


PLANE, IMAGES, LABELS = normal(8, 2), normal(12, 1, 8, 8), torch.arange(12) % 3

test_bad_input = bad_input(
    [
        ("values", lambda: FeatureSet(normal(8)), ValueError, ["values", "(n, d)", "(8,)"]),
        ("nan values", lambda: FeatureSet(PLANE / 0 * 0), ValueError, ["values has 16 NaN"]),
        ("ints", lambda: FeatureSet(PLANE.long()), TypeError, ["values", "torch.int64"]),
        (
            "radii",
            lambda: FeatureSet(PLANE).radii(8),
            ValueError,
            ["k must be below", "8", "got 8"],
        ),
        ("extractor", lambda: extract_features(3, PLANE), TypeError, ["extractor", "int"]),
        ("images", lambda: extract_features(abs, PLANE.long()), TypeError, ["images", "int64"]),
        ("no images", lambda: extract_features(abs, PLANE[:0]), ValueError, ["images", "(0, 2)"]),
        ("batch", lambda: extract_features(abs, PLANE, 0), ValueError, ["batch", "got 0"]),
        (
            "one row",
            lambda: extract_features(lambda x: x.mean(0), PLANE),
            ValueError,
            ["one row of features an image, (8, d)", "(2,)"],
        ),
        (
            "nan features",
            lambda: extract_features(lambda x: x / 0 * 0, PLANE),
            ValueError,
            ["extractor(images) has 16 NaN"],
        ),
        ("size", lambda: LeNet(1, (8, 3), 10), ValueError, ["size must be >= 4, got 3"]),
        ("classes", lambda: LeNet(1, (8, 8), 1), ValueError, ["classes must be >= 2, got 1"]),
        ("channels", lambda: LeNet(2, (8, 8), 3)(IMAGES.float()), ValueError, ["(n, 2, 8, 8)"]),
        ("flat", lambda: train_lenet(PLANE, LABELS), ValueError, ["images", "(8, 2)"]),
        (
            "labels",
            lambda: train_lenet(IMAGES, LABELS[:5]),
            ValueError,
            ["labels", "(12,)", "(5,)"],
        ),
        ("float", lambda: train_lenet(IMAGES, LABELS / 1), TypeError, ["labels", "float32"]),
        ("list", lambda: train_lenet(IMAGES, [0] * 12), TypeError, ["labels", "list"]),
        ("negative", lambda: train_lenet(IMAGES, LABELS - 1), ValueError, ["labels", "-1 .. 1"]),
        ("one class", lambda: train_lenet(IMAGES, LABELS * 0), ValueError, ["labels", "0 .. 0"]),
        ("all", lambda: train_lenet(IMAGES, LABELS, 1, 0.99), ValueError, ["held_out", "0.99"]),
        ("share", lambda: train_lenet(IMAGES, LABELS, 1, 1.0), ValueError, ["held_out", "1.0"]),
        ("epochs", lambda: train_lenet(IMAGES, LABELS, 0), ValueError, ["epochs", "got 0"]),
    ]
)
