# Bad input is passed on purpose.
# pyright: reportArgumentType=false
"""Held-out data that a run would stumble over at its first evaluation is refused before its first step."""

import pytest
import torch

from sdekit import VP, NetworkDenoiser, train
from sdekit.networks import MLP

ROWS, CONDITIONS = torch.randn(10, 2, generator=torch.Generator().manual_seed(0)), torch.eye(10)
BAD = {
    "shape": ({"validation": torch.zeros(4, 3)}, "shape of data, \\(2,\\), got \\(3,\\)"),
    "rows": (
        {"cond": CONDITIONS, "validation": (ROWS, CONDITIONS[:9])},
        "validation conditions must have one row a sample of data, 10, got shape \\(9, 10\\)",
    ),
    "no conditions": (
        {"cond": CONDITIONS, "validation": ROWS},
        "as the data has: rows of shape \\(10,\\) there, none in validation",
    ),
    "conditions": ({"validation": (ROWS, CONDITIONS)}, "none there, rows of shape \\(10,\\) in"),
    "other conditions": (
        {"cond": CONDITIONS, "validation": (ROWS, CONDITIONS[:, :3])},
        "rows of shape \\(3,\\) in validation",
    ),
    "triple": ({"validation": (ROWS, CONDITIONS, 1)}, "a pair \\(data, cond\\), got 3 parts"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_held_out_data_is_refused_before_anything_is_written(tmp_path, name):
    changes, message = BAD[name]
    model = NetworkDenoiser(MLP(2, hidden=4, cond_dim=10 if "cond" in changes else 0), VP())
    options = {"steps": 2, "batch": 4, "evaluate_every": 2, "progress": False, **changes}
    with pytest.raises(ValueError, match=message):
        train(model, ROWS, out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
