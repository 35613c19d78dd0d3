import math

import pytest
import torch

from sdekit.data import TARGETS, GaussianMixture, ring, spiral, two_mode

VARIANTS = [
    *TARGETS.values(), lambda: spiral(0.3, 2, 0.5), lambda: spiral(4.0, 300, 0.01), lambda: ring(1),
    lambda: ring(2, 1e-3), lambda: ring(13, 2.0),
]  # fmt: skip


def test_targets_are_named_and_are_mixtures():
    assert list(TARGETS) == ["two-mode", "spiral", "ring"]
    assert [make().dim for make in TARGETS.values()] == [1, 2, 2]
    assert all(isinstance(make(), GaussianMixture) for make in TARGETS.values())


@pytest.mark.parametrize("make", VARIANTS, ids=range(len(VARIANTS)))
def test_mean_zero_and_average_variance_one(make):
    target = make()
    weights = target.log_weights.exp()
    mean = weights @ target.means
    second = weights @ (target.means.square() + target.variances.expand_as(target.means))
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)
    assert mean.abs().max() < 1e-12
    assert (second - mean**2).mean() == pytest.approx(1.0, abs=1e-12)


def test_two_mode_in_closed_form():
    target = two_mode()
    # Mean 0.3 (-0.5) + 0.7 (0.5) = 0.2 and variance 0.2^2 + 0.3 0.7 = 0.25 before standardising.
    torch.testing.assert_close(
        target.log_weights.exp(), torch.tensor([0.3, 0.7], dtype=torch.float64)
    )
    assert target.means.flatten().tolist() == pytest.approx([-1.4, 0.6], abs=1e-12)
    assert target.variances.sqrt().flatten().tolist() == pytest.approx([0.4] * 2, abs=1e-12)


def test_ring_is_a_circle_of_equal_bells():
    target = ring(modes=8, std=0.1)
    scale = 1 / math.sqrt(0.5 + 0.1**2)
    radius, angle = target.means.norm(dim=1), torch.atan2(target.means[:, 1], target.means[:, 0])
    assert radius.tolist() == pytest.approx([scale] * 8, abs=1e-12)
    assert target.narrowest == pytest.approx(0.1 * scale, abs=1e-12)
    steps = angle.sort().values.diff()
    assert steps.tolist() == pytest.approx([math.pi / 4] * 7, abs=1e-12)
    torch.testing.assert_close(target.log_weights, torch.full((8,), -math.log(8.0)).double())


def test_a_spiral_is_an_arm_of_evenly_spread_components():
    target = spiral()
    steps = target.means.diff(dim=0).norm(dim=1)
    assert len(target.means) == 120
    # Each end of a step is rounded to one of the 4,000 pieces of the arm, about 1/31 of a step.
    assert steps.max() / steps.min() < 1 + 2 / 31
    assert steps.max() < target.narrowest
    angle = torch.linspace(0, 1, 200_001).double() * 2 * math.pi * 1.5
    arm = angle[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    scale = target.narrowest / 0.05
    # Undo the scale; the shift is what puts the end of the arm at radius 1.
    points = target.means / scale
    shift = (arm / (3 * math.pi))[-1] - points[-1]
    assert torch.cdist(points + shift, arm / (3 * math.pi)).min(dim=1).values.max() < 1e-4


@pytest.mark.parametrize("name", ["spiral", "ring"])
def test_density_integrates_to_one_on_a_grid(name):
    target = TARGETS[name]()
    # The midpoint rule is exact to rounding for bells wider than two cells; nothing is left outside.
    cells, half = 300, 3.5
    assert 2 * half / cells < target.narrowest / 2
    line = (torch.arange(cells).double() + 0.5) / cells * 2 * half - half
    points = torch.cartesian_prod(line, line)
    total = target.log_prob(points).exp().sum().item() * (2 * half / cells) ** 2
    assert total == pytest.approx(1.0, abs=1e-10)


BAD = [
    (lambda: spiral(components=1), ValueError, "components must be >= 2, got 1"),
    (lambda: spiral(components=2.0), TypeError, "components must be an integer"),  # type: ignore[arg-type]
    (lambda: spiral(turns=0), ValueError, "turns must be"),
    (lambda: spiral(turns=math.inf), ValueError, "turns must be"),
    (lambda: spiral(std=0.0), ValueError, "std must be"),
    (lambda: spiral(std=True), TypeError, "std must be a number"),
    (lambda: ring(modes=0), ValueError, "modes must be >= 1, got 0"),
    (lambda: ring(modes=True), TypeError, "modes must be an integer"),
    (lambda: ring(std=-0.1), ValueError, "std must be"),
    (lambda: ring(std=math.nan), ValueError, "std must be"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=range(len(BAD)))
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
