"""Any tensor, any data set, balanced subsets, and images changed at random."""

import math

import numpy as np
import torch
from helpers import bad_input, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset

import sdekit as sk
from sdekit.data.images import Augmented, as_images, balanced_subset
from sdekit.data.images.augmented import _cropped, _rotated

X = normal(7, 2, 4, 5)
LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 2])


class Items(Dataset):
    def __init__(self, *items: object, classes: tuple[str, ...] = ()) -> None:
        self.items, self.classes = items, classes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> object:
        return self.items[i]


class Stream(IterableDataset):
    def __iter__(self):
        yield X[0]


# ---- any data ------------------------------------------------------------------------------------
def test_tensors():
    assert as_images(X).images is X
    assert as_images(X).labels is None
    assert torch.equal(as_images(X[:, 0]).images, X[:, :1])
    found = as_images(X, LABELS.int())
    assert torch.equal(found.labels, LABELS)
    assert found.labels.dtype == torch.int64


def test_data_sets():
    images, labels, classes = as_images(TensorDataset(X, LABELS))
    assert torch.equal(images, X)
    assert torch.equal(labels, LABELS)
    assert classes == ()
    assert as_images(TensorDataset(X)).labels is None
    assert torch.equal(as_images(Items(*X[:, 0])).images, X[:, :1])
    named = Items(*((x, 1) for x in X), classes=("no", "yes"))
    assert as_images(named).classes == ("no", "yes")


def test_data_sets_of_pillow_images_and_arrays():
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    expected = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    assert torch.equal(as_images(Items((Image.fromarray(pixels), 3))).images, expected)
    assert torch.equal(as_images(Items(pixels)).images, expected)
    assert torch.equal(as_images(Items(Image.fromarray(pixels[..., 0]))).images, expected[:, :1])


# ---- subsets -------------------------------------------------------------------------------------
@given(st.lists(st.integers(3, 12), min_size=1, max_size=5), st.integers(1, 3), st.integers(0, 9))
@settings(derandomize=True, deadline=None, max_examples=40)
def test_a_balanced_subset_has_as_many_of_each_class_and_no_image_twice(counts, per_class, seed):
    labels = torch.repeat_interleave(torch.arange(len(counts)) * 3, torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    rows = torch.arange(len(labels))
    images, kept = balanced_subset(rows, labels, per_class, seed=seed)
    assert torch.equal(labels[images], kept)
    assert (images.diff() > 0).all()
    assert torch.bincount(kept)[::3].tolist() == [per_class] * len(counts)
    again, _ = balanced_subset(rows, labels, per_class, seed=seed)
    assert torch.equal(images, again)


def test_every_image_is_as_likely_to_be_in_a_subset():
    labels = torch.zeros(5, dtype=torch.int64)
    counts = torch.zeros(5)
    for seed in range(2_000):
        counts[balanced_subset(torch.arange(5), labels, 2, seed=seed)[0]] += 1
    # Four standard errors of a share of 2/5.
    assert (counts / 2_000 - 0.4).abs().max() < 4 * math.sqrt(0.24 / 2_000)


# ---- augmentation --------------------------------------------------------------------------------
def test_without_changes_the_images_themselves_are_drawn():
    x = Augmented(X).sample(200, seed=1)
    assert {row.sum().item() for row in x} == {row.sum().item() for row in X}


def test_half_the_images_are_mirrored():
    n = 4_000
    x = Augmented(X[:1], flip=True).sample(n, seed=2)
    mirrored = (x == X[:1].flip(-1)).flatten(1).all(1)
    assert ((x == X[:1]).flatten(1).all(1) | mirrored).all()
    # Four standard errors of a share of 1/2.
    assert abs(mirrored.double().mean() - 0.5) < 4 * 0.5 / math.sqrt(n)


def test_a_rotation_turns_a_linear_picture_exactly():
    height, width = 12, 17
    y, x = torch.meshgrid(
        torch.arange(height).double() - (height - 1) / 2,
        torch.arange(width).double() - (width - 1) / 2,
        indexing="ij",
    )
    angle = torch.tensor([0.2, -0.7, 0.0], dtype=torch.float64)
    found = _rotated((0.3 * x - 0.5 * y).expand(3, 1, height, width), angle)[:, 0]
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    expected = 0.3 * (cos * x + sin * y) - 0.5 * (cos * y - sin * x)
    inside = (x**2 + y**2 < (height / 2 - 1) ** 2).expand(3, -1, -1)
    torch.testing.assert_close(found[inside], expected[inside], rtol=1e-12, atol=1e-12)


def test_a_quarter_turn_is_exact():
    x = normal(1, 2, 9, 9)
    found = _rotated(x, torch.tensor([math.pi / 2], dtype=torch.float64))
    torch.testing.assert_close(found, x.rot90(-1, (-2, -1)), rtol=1e-12, atol=1e-12)


def test_rotations_stay_within_their_angle_and_reach_it():
    """A point at radius r moves by r times the angle; read it off a linear picture."""
    line = torch.arange(33).double() - 16
    image = line.expand(33, 33)[None, None]  # the x coordinate
    x = Augmented(image, rotation=10.0).sample(2_000, seed=3)
    angles = torch.rad2deg(torch.asin((x[:, 0, 24, 16] / 8).clamp(-1, 1)))
    assert angles.abs().max() <= 10 + 1e-9
    # Uniform on [-10, 10]: four standard errors of the mean and of the mean square.
    assert abs(angles.mean()) < 4 * 10 / math.sqrt(3 * 2_000)
    assert abs(angles.square().mean() - 100 / 3) < 4 * 100 * math.sqrt(4 / 45 / 2_000)


def test_crops_are_shifts_with_repeated_edges():
    x = normal(1, 2, 4, 5)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2), mode="replicate")
    for i in range(5):
        for j in range(5):
            u, v = (torch.tensor([(k + 0.5) / 5]).double() for k in (i, j))
            found = _cropped(x, 2, u, v)
            assert torch.equal(found, padded[:, :, i : i + 4, j : j + 5])


def test_all_shifts_are_as_likely():
    ramp = (10 * torch.arange(9.0)[:, None] + torch.arange(9.0))[None, None]
    x = Augmented(ramp, crop=1).sample(9_000, seed=4)[:, 0, 4, 4] - 44
    _, counts = x.unique(return_counts=True)
    assert len(counts) == 9
    # Four standard errors of a share of 1/9.
    assert (counts / 9_000 - 1 / 9).abs().max() < 4 * math.sqrt(8 / 81 / 9_000)


def test_draws_belong_to_their_seed():
    data = Augmented(X.float(), flip=True, rotation=15.0, crop=1)
    state = torch.get_rng_state()
    x = data.sample(6, seed=1)
    assert x.shape == (6, 2, 4, 5)
    assert x.dtype == torch.float32
    assert torch.equal(x, data.sample(6, generator=torch.Generator().manual_seed(1)))
    assert not torch.equal(x, data.sample(6, seed=2))
    assert torch.equal(torch.get_rng_state(), state)
    assert data.sample(0).shape == (0, 2, 4, 5)
    assert repr(data) == "Augmented((7, 2, 4, 5), flip=True, rotation=15.0, crop=1)"


def test_a_network_trains_on_augmented_images():
    data = Augmented(sk.data.images.digits()[:100], rotation=5.0, crop=1)
    model = sk.NetworkDenoiser(sk.networks.UNet(widths=(8, 16)), sk.VP())
    losses = sk.train(model, data, steps=30, batch=16, warmup=5, progress=False).losses
    assert losses.isfinite().all()
    assert losses[-10:].mean() < 0.8 * losses[:10].mean()


test_bad_input_is_named = bad_input(
    [
        ("array", lambda: as_images([1]), TypeError, ["data must be a torch.Tensor or a Dataset"]),  # type: ignore[arg-type]
        ("flat", lambda: as_images(X[0, 0]), ValueError, ["(n, h, w) or (n, c, h, w)", "(4, 5)"]),
        ("labels", lambda: as_images(X, LABELS[:3]), ValueError, ["labels must have shape (7,)", "(3,)"]),
        ("float labels", lambda: as_images(X, LABELS.double()), TypeError, ["labels must be integers"]),
        ("two labels", lambda: as_images(Items(X[0]), LABELS), ValueError, ["a Dataset brings its own"]),
        ("stream", lambda: as_images(Stream()), TypeError, ["a Dataset with a length"]),
        ("empty", lambda: as_images(Items()), ValueError, ["at least one image"]),
        ("shapes", lambda: as_images(Items(X[0], X[1, :, 1:])), ValueError, ["at 1, (2, 3, 5)"]),
        ("some labels", lambda: as_images(Items((X[0], 1), X[1])), ValueError, ["for all items or for none"]),
        ("text", lambda: as_images(Items("x")), TypeError, ["of tensors or images, got str"]),
        ("vector", lambda: as_images(Items(X[0, 0, 0])), ValueError, ["images (h, w) or (c, h, w)", "(5,)"]),
        ("too many", lambda: balanced_subset(X, LABELS, 3, seed=0), ValueError, ["at most 2", "class 1"]),
        ("none", lambda: balanced_subset(X, LABELS, 0, seed=0), ValueError, ["per_class must be >= 1"]),
        ("seed", lambda: balanced_subset(X, LABELS, 1, seed=None), TypeError, ["seed must be"]),  # type: ignore[arg-type]
        ("subset of a list", lambda: balanced_subset([0], LABELS, 1, seed=0), TypeError, ["images must be"]),  # type: ignore[arg-type]
        ("levels", lambda: Augmented(X.to(torch.uint8)), TypeError, ["images must be a floating-point"]),
        ("one image", lambda: Augmented(X[0]), ValueError, ["(n, c, h, w)", "(2, 4, 5)"]),
        ("no image", lambda: Augmented(X[:0]), ValueError, ["not empty"]),
        ("nan", lambda: Augmented(X * math.nan), ValueError, ["images has 280 NaN"]),
        ("flip", lambda: Augmented(X, flip=1), TypeError, ["flip must be True or False"]),  # type: ignore[arg-type]
        ("angle", lambda: Augmented(X, rotation=90), ValueError, ["rotation must be", "[0, 45]"]),
        ("crop", lambda: Augmented(X, crop=-1), ValueError, ["crop must be >= 0"]),
        ("n", lambda: Augmented(X).sample(-1), ValueError, ["n must be >= 0"]),
    ]
)  # fmt: skip
