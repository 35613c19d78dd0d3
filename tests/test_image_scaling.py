import json
import math

import torch
from helpers import bad_input, normal
from hypothesis import given, settings
from hypothesis import strategies as st

from sdekit.data.images import Scaling

LEVELS = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
numbers = st.floats(-1e3, 1e3)
positive = st.floats(1e-2, 1e3)
scalings = st.integers(1, 3).flatmap(
    lambda c: st.builds(
        Scaling,
        st.lists(numbers, min_size=c, max_size=c),
        st.lists(positive, min_size=c, max_size=c),
    )
)


@given(scalings)
@settings(derandomize=True, deadline=None, max_examples=50)
def test_there_and_back(scaling):
    levels = LEVELS.expand(2, len(scaling.mean), 16, 16)
    x = scaling.forward(levels)
    assert x.dtype == torch.float32
    assert torch.equal(scaling.to_levels(x), levels)
    y = normal(3, len(scaling.mean), 4, 5, seed=1)
    torch.testing.assert_close(scaling.backward(scaling.forward(y)), y, rtol=1e-12, atol=1e-11)
    mean, std = (torch.tensor(v).double()[:, None, None] for v in (scaling.mean, scaling.std))
    torch.testing.assert_close(scaling.forward(y), (y - mean) / std, rtol=1e-6, atol=1e-4)


@given(scalings)
@settings(derandomize=True, deadline=None, max_examples=50)
def test_json_keeps_every_bit(scaling):
    assert Scaling(**json.loads(json.dumps(scaling.config))) == scaling


def test_symmetric_takes_the_levels_to_minus_one_and_one():
    x = Scaling.symmetric().forward(LEVELS, dtype=torch.float64)
    expected = torch.linspace(-1, 1, 256, dtype=torch.float64)
    torch.testing.assert_close(x.flatten(), expected, rtol=0, atol=1e-15)
    assert Scaling.symmetric(17) == Scaling((8.0,), (8.0,))


def test_standardising_gives_every_channel_mean_zero_and_variance_one():
    images = torch.tensor([3.0, 5.0, 0.1]).double()[:, None, None] * normal(20, 3, 4, 4) + 2
    scaling = Scaling.standardising(images)
    x = scaling.forward(images)
    assert x.dtype == torch.float64
    assert x.mean((0, 2, 3)).abs().max() < 1e-14
    assert (x.var((0, 2, 3), correction=0) - 1).abs().max() < 1e-13


def test_levels_are_rounded_and_clamped():
    x = torch.tensor([-2.0, -1.0, 0.0019, 0.999, 1.5, math.inf]).reshape(1, 1, 1, 6)
    assert Scaling.symmetric().to_levels(x).flatten().tolist() == [0, 0, 128, 255, 255, 255]
    assert Scaling.symmetric(17).to_levels(x, 17).flatten().tolist() == [0, 0, 8, 16, 16, 16]


IMAGES = torch.zeros(2, 3, 4, 4)
test_bad_input_is_named = bad_input(
    [
        ("std zero", lambda: Scaling((0.0,), (0.0,)), ValueError, ["std must be", "(0, inf]"]),
        ("nan", lambda: Scaling((math.nan,), (1.0,)), ValueError, ["mean must be a finite number"]),
        ("bool", lambda: Scaling((True,), (1.0,)), TypeError, ["mean must be a number"]),
        ("lengths", lambda: Scaling((0.0, 1.0), (1.0,)), ValueError, ["as many, got 2 and 1"]),
        ("a number", lambda: Scaling(0.0, (1.0,)), TypeError, ["mean must be a sequence"]),  # type: ignore[arg-type]
        ("text", lambda: Scaling("0", (1.0,)), TypeError, ["mean must be a sequence"]),  # type: ignore[arg-type]
        ("none", lambda: Scaling((), ()), ValueError, ["mean must hold at least one"]),
        ("levels", lambda: Scaling.symmetric(1), ValueError, ["levels must be >= 2"]),
        ("many levels", lambda: Scaling.symmetric().to_levels(IMAGES, 257), ValueError, ["at most 256"]),
        ("channels", lambda: Scaling((0, 0), (1, 1)).forward(IMAGES), ValueError, ["2 channels"]),
        ("shape", lambda: Scaling.symmetric().forward(IMAGES[0]), ValueError, ["(n, c, h, w)"]),
        ("array", lambda: Scaling.symmetric().forward([0]), TypeError, ["images must be a torch.Tensor"]),  # type: ignore[arg-type]
        ("mask", lambda: Scaling.symmetric().forward(IMAGES > 0), TypeError, ["images must hold real"]),
        ("dtype", lambda: Scaling((0,), (1,)).forward(LEVELS, dtype=torch.int64), TypeError, ["dtype"]),
        ("integers back", lambda: Scaling.symmetric().backward(LEVELS), TypeError, ["x must be floating"]),
        ("nan level", lambda: Scaling.symmetric().to_levels(IMAGES * math.nan), ValueError, ["x has 96 NaN"]),
        ("constant", lambda: Scaling.standardising(IMAGES + 0.1), ValueError, ["channel 0 does not"]),
        ("empty", lambda: Scaling.standardising(IMAGES[:0]), ValueError, ["must not be empty"]),
    ]
)  # fmt: skip
