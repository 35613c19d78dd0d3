import subprocess
import sys

import pytest
import torch

import sdekit as sk
from sdekit.data.images import digit_labels, digits


def test_digits_are_scaled_images():
    x = digits()
    assert x.shape == (1797, 1, 8, 8)
    assert x.dtype == torch.float32
    assert x.min() == -1.0
    assert x.max() == 1.0
    assert torch.equal((x + 1) * 8, ((x + 1) * 8).round())


def test_labels_match_the_images():
    x, labels = digits().flatten(1), digit_labels()
    assert labels.shape == (1797,)
    assert labels.dtype == torch.int64
    assert torch.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    distances = torch.cdist(x, x).fill_diagonal_(float("inf"))
    assert (labels[distances.argmin(1)] == labels).double().mean() > 0.98


def test_reading_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    digits()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "sdekit\[images\]"'):
        digits()


def test_importing_does_not_import_scikit_learn_or_pillow():
    code = (
        "import sys, sdekit.data.images; sys.exit('sklearn' in sys.modules or 'PIL' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_everything_is_reached_from_the_package():
    assert callable(sk.data.images.digits)
    assert sk.data.images.__all__ == sorted(sk.data.images.__all__)
