"""What the image experiments share: data sets that are always there, a judge, and the errors it gives."""

import struct
import sys
from pathlib import Path

import pytest
import torch
from helpers import bad_input, normal

import sdekit as sk
from sdekit.data.images import Labelled
from sdekit.metrics import FeatureSet, frechet_distance

sys.path.insert(0, str(Path(__file__).parent.parent / "experiments"))

from harness.images import (
    SYMMETRIC,
    Judge,
    Pictures,
    frechet_with_error,
    load,
    sampler_named,
    steps_of,
)
from mnist_ddpm import by_epoch, by_level, linear_losses


@pytest.fixture(scope="module")
def digits():
    return load("digits", 28)


def small(data: Pictures) -> Pictures:
    """The digits in their own 8 x 8 pixels, so that every pixel but the empty ones varies by itself."""
    images = SYMMETRIC.to_levels(sk.data.images.digits())
    train = data.train._replace(images=images[:500], labels=sk.data.images.digit_labels()[:500])
    return Pictures("8 x 8", train, train)


@pytest.mark.parametrize("size", [28, 32])
def test_digits_in_any_size(size):
    data = load("digits", size)
    assert len(data.train.images) + len(data.test.images) == 1797
    for part in (data.train, data.test):
        assert part.images.shape[1:] == (1, size, size)
        assert part.images.dtype == torch.uint8
        assert part.labels.unique().tolist() == list(range(10))
    assert data.train.images.float().std() > 50


def write_idx(path, array):
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.numpy().tobytes())


def test_files_get_a_border_and_missing_ones_a_substitute(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDEKIT_DATA", str(tmp_path))
    assert load("mnist", 32).name == "8 x 8 digits"
    assert "scikit-learn's digits" in capsys.readouterr().out
    folder = tmp_path / "mnist"
    folder.mkdir()
    images = torch.randint(1, 256, (20, 28, 28), dtype=torch.uint8)
    for part in ("train", "t10k"):
        write_idx(folder / f"{part}-images-idx3-ubyte", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte", torch.arange(20, dtype=torch.uint8) % 10)
    data = load("mnist", 32)
    assert torch.equal(data.train.images[:, 0, 2:-2, 2:-2], images)
    assert data.test.images.sum() == images.sum()
    assert torch.equal(load("mnist", 28).train.images[:, 0], images)


def test_samplers_have_the_names_of_the_command_line():
    assert sampler_named("uni-pc") == sk.samplers.UniPC()
    with pytest.raises(ValueError, match=r"sampler must be one of .* did you mean 'uni-pc'"):
        sampler_named("unipc")


def test_calls_are_counted_in_steps():
    model = sk.data.two_mode().denoiser(sk.VP())
    for sampler in (sk.samplers.DDIM(), sk.samplers.DPMSolver(), sk.samplers.DPMSolver(order=3)):
        steps = steps_of(sampler, 12)
        assert sk.sample(model, (1, 1), sampler=sampler, steps=steps, seed=0).nfe == 12
    assert steps_of(sk.samplers.DPMSolver(order=3), 1) == 1


test_bad_input = bad_input(
    [
        ("data", lambda: load("cifar", 28), ValueError, ["data must be one of", "got 'cifar'"]),
        ("size", lambda: load("digits", 30), ValueError, ["size must be 28 or 32", "got 30"]),
        ("sampler", lambda: sampler_named("dimm"), ValueError, ["did you mean 'ddim'"]),
    ]
)


# ------------------------------------------------------------------------------------- the judge


def test_jackknife_gives_the_spread_over_draws():
    reference = FeatureSet(normal(5_000, 5, seed=1))
    draws = [FeatureSet(1.2 * normal(400, 5, seed=10 + k) + 0.2) for k in range(80)]
    found = [frechet_with_error(x, reference) for x in draws]
    values, errors = torch.tensor(found, dtype=torch.float64).T
    assert values.tolist() == [frechet_distance(x, reference).value for x in draws]
    # The spread of 80 values is known to 8 %, a jackknife of 20 groups to 16 %: four standard errors of both.
    assert errors.square().mean().sqrt() / values.std() == pytest.approx(1, abs=0.4)


def test_judge_knows_real_images_from_noise_and_from_one_class(digits):
    judge = Judge.of(digits, epochs=6)
    assert judge.classifier.accuracy > 0.8
    test = judge.scores(digits.test.images)
    assert test["FD"] == pytest.approx(0, abs=1e-9)
    assert sum(test["classes"]) == pytest.approx(1)
    assert test["off balance"] <= 2 * (1 - judge.classifier.accuracy)
    floor = judge.floor(200, repeats=5)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (200, 1, 28, 28), dtype=torch.uint8, generator=generator)
    ones = digits.train.images[digits.train.labels == 1]
    for images in (noise, ones):
        row = judge.scores(images)
        assert row["FD"] - 4 * row["FD se"] > max(floor.values)
        assert row["KID"] - 4 * row["KID se"] > 0
    assert judge.scores(ones)["off balance"] > 0.8


# -------------------------------------------------------------------------------- what is reported


def test_losses_by_epoch_are_means_over_the_steps_that_begin_in_them():
    # 5 images, 2 a step: the steps begin at 0, 2, 4 | 6, 8 | 10.
    found = by_epoch(torch.tensor([1.0, 2.0, 6.0, 4.0, 8.0, 5.0]), batch=2, images=5)
    assert found == [3.0, 6.0, 5.0]
    assert by_epoch(torch.tensor([1.0, 2.0]), batch=12, images=5) == [1.0, 2.0]


class Linear(sk.Denoiser):
    """The exact denoiser of one Gaussian, on images."""

    prediction = "data"

    def __init__(self, images, process):
        rows = images.flatten(1)
        noisy = rows.T.cov() + 1e-6 * torch.eye(rows.shape[1])
        self.exact = sk.GaussianMixture(None, rows.mean(0)[None], covariances=noisy[None]).denoiser(
            process
        )
        self.process = process

    def predict(self, x, t):
        return self.exact.data(x.flatten(1), t).reshape(x.shape)


def test_the_linear_bound_is_what_one_gaussian_reaches(digits):
    data = small(digits)
    model = Linear(
        SYMMETRIC.forward(data.train.images).double(), sk.VP.from_betas(sk.ddpm.linear_betas())
    )
    rows = by_level(model, SYMMETRIC, data)
    assert len(rows) == 16
    for row in rows:
        assert abs(row["network"] - row["linear"]) < 4 * row["network se"]
        assert row["network se"] < 0.05 * row["network"]


def test_the_linear_bound_of_independent_pixels_in_closed_form():
    """Of pixels of variance v it is alpha^2 v / (alpha^2 v + sigma^2)."""
    levels = torch.randint(
        0, 256, (4000, 1, 2, 2), generator=torch.Generator().manual_seed(0)
    ).byte()
    part = Labelled(levels, torch.zeros(4000, dtype=torch.int64))
    process, times = sk.VP(), torch.tensor([0.01, 0.3, 0.9], dtype=torch.float64)
    found = linear_losses(process, SYMMETRIC, Pictures("noise", part, part), times)
    signal = process.alpha(times) ** 2 * (256**2 - 1) / 12 / 127.5**2
    expected = signal / (signal + process.sigma(times) ** 2)
    # Eigenvalues of 4,000 draws spread by a few per cent, their mean by 4 * 0.9 / sqrt(16,000).
    assert found == pytest.approx(expected, rel=0.03)
