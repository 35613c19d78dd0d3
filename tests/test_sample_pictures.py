# Bad input is passed on purpose.
# pyright: reportArgumentType=false
"""Pictures of samples, and while a model trains."""

import pytest
import torch

from sdekit import VP, GaussianMixture, NetworkDenoiser, train
from sdekit.networks import MLP
from sdekit.sample_pictures import SamplePictures, sample_picture

BAD = {
    "every": ({"every": 0}, ValueError, "every must be >= 1"),
    "shape": ({"shape": (4, 8)}, ValueError, r"which have a picture; got \(4, 8\)"),
    "no event": ({"shape": (4,)}, ValueError, r"which have a picture; got \(4,\)"),
    "two channels": ({"shape": (4, 2, 8, 8)}, ValueError, "one or three channels"),
    "no samples": ({"shape": (0, 1)}, ValueError, r"shape\[0\] must be >= 1"),
    "float": ({"shape": (4.0, 1)}, TypeError, r"shape\[0\] must be an integer"),
    "steps": ({"steps": 0}, ValueError, "steps must be >= 1"),
    "sampler": ({"sampler": "ddim"}, TypeError, "sampler must be a Sampler, got str"),
    "seed": ({"seed": -1}, ValueError, "seed must be >= 0"),
    "cond": ({"cond": torch.zeros(3, 2)}, ValueError, "cond"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_the_first_picture(tmp_path, name):
    changes, error, message = BAD[name]
    with pytest.raises(error, match=message):
        SamplePictures(tmp_path, **{"shape": (4, 1), **changes})


def test_a_picture_every_so_often(tmp_path):
    target = GaussianMixture([0.3, 0.7], [-1.4, 0.6], 0.4)
    pictures = SamplePictures(tmp_path, (4, 1), every=2, steps=2)
    model = NetworkDenoiser(MLP(1, hidden=4), VP())
    train(model, target, steps=5, batch=4, progress=False, callback=pictures)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["samples-00000002.png", "samples-00000004.png"]


def test_what_has_no_picture_has_none():
    assert sample_picture(torch.zeros(4, 3)) is None
    assert sample_picture(torch.zeros(4)) is None
    assert sample_picture(torch.zeros(4, 2, 8, 8)) is None
