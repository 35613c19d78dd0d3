# Bad input is passed on purpose.
# pyright: reportArgumentType=false
import math

import numpy as np
import pytest
import torch
from helpers import bad_input, normal
from scipy import stats

from sdekit.metrics import FeatureSet, density_coverage, memorisation, precision_recall
from sdekit.metrics.distances import nearest, neighbour_radii


def apart(x, y):
    return np.linalg.norm(x.numpy()[:, None] - y.numpy(), axis=2)


def balls(centres, k, points):
    radii = np.sort(apart(centres, centres), axis=1)[:, k]
    return apart(centres, points) <= radii[:, None]


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("block", [1, 40, 2**22])
def test_against_every_pair(k, block, monkeypatch):
    monkeypatch.setattr("sdekit.metrics.distances._BLOCK", block)
    x, y = 1.4 * normal(30, 3), normal(25, 3, seed=1)
    around_y, around_x = balls(y, k, x), balls(x, k, y)
    support, filled = precision_recall(x, y, k), density_coverage(x, y, k)
    assert support.precision == pytest.approx(around_y.any(0).mean(), rel=1e-14)
    assert support.recall == pytest.approx(around_x.any(0).mean(), rel=1e-14)
    assert filled.density == pytest.approx(around_y.sum() / (k * 30), rel=1e-14)
    assert filled.coverage == pytest.approx(around_y.any(1).mean(), rel=1e-14)
    assert 0 < support.precision < 1
    assert (support.n, support.m, filled.n, filled.m) == (30, 25, 30, 25)


@pytest.mark.parametrize("d", [1, 2, 84])
def test_equal_sets_have_precision_and_recall_one(d):
    x = normal(50, d)
    for points in (x, x[torch.arange(50) // 5]):  # also with repeats, where balls have no radius
        found = precision_recall(points, points.flip(0))
        assert (found.precision, found.recall) == (1, 1)
        assert density_coverage(points, points.flip(0)).coverage == 1


def test_on_a_line_by_hand():
    # Reference 0, 1, 2, 10 with k = 1: balls [-1, 1], [0, 2], [1, 3], [2, 18].
    y = torch.tensor([0.0, 1.0, 2.0, 10.0])
    x = torch.tensor([-0.5, 0.5, 4.0, 30.0])
    support, filled = precision_recall(x, y, 1), density_coverage(x, y, 1)
    assert support.precision == 3 / 4
    assert filled.density == 4 / 4
    assert filled.coverage == 3 / 4
    # Samples' balls: [-1.5, .5], [-.5, 1.5], [.5, 7.5], [4, 56]: all of the reference is inside.
    assert support.recall == 1


def test_what_precision_and_recall_are_for():
    real = torch.cat([normal(200, 2) - 5, normal(200, 2, seed=1) + 5])
    one_mode = normal(400, 2, seed=2) + 5
    too_wide = torch.cat([real[:200], 20 + normal(200, 2, seed=3)])
    assert precision_recall(one_mode, real).precision > 0.9
    assert precision_recall(one_mode, real).recall < 0.55
    assert precision_recall(too_wide, real).precision < 0.55
    far = precision_recall(real + 100, real)
    assert (far.precision, far.recall) == (0, 0)


def test_distances_turn_and_scale():
    x, y = normal(40, 3), normal(40, 3, seed=1)
    turn = torch.linalg.qr(normal(3, 3, seed=2)).Q
    for metric in (precision_recall, density_coverage):
        assert metric(4 * x @ turn - 1, 4 * y @ turn - 1) == metric(x, y)


@pytest.mark.parametrize(("n", "m", "k"), [(40, 25, 5), (15, 60, 3)])
def test_density_and_coverage_of_one_law(n, m, k):
    # E density = 1, E coverage = 1 - prod (m - i)/(n + m - i), in any dimension: 300 replicates, four
    # standard errors.
    draws = normal(300, n + m, 3)
    found = [density_coverage(each[:n], each[n:], k) for each in draws]
    i = np.arange(1, k + 1)
    expected = {"density": 1.0, "coverage": 1 - np.prod((m - i) / (n + m - i))}
    for name, value in expected.items():
        values = np.array([getattr(each, name) for each in found])
        assert abs(values.mean() - value) < 4 * values.std() / math.sqrt(300), name


def test_radii_are_computed_once(monkeypatch):
    calls = []

    def counted(x, k):
        calls.append(k)
        return neighbour_radii(x, k)

    monkeypatch.setattr("sdekit.metrics.features.neighbour_radii", counted)
    reference = FeatureSet(normal(30, 2))
    for seed in range(3):
        precision_recall(FeatureSet(normal(20, 2, seed=seed)), reference)
    assert len(calls) == 4  # three sets of samples, one reference
    density_coverage(normal(20, 2), reference)
    assert calls == [3, 3, 3, 3, 5]


# ---- memorisation --------------------------------------------------------------------------------


def test_distances_to_the_training_set():
    x, train, test = normal(30, 3), normal(50, 3, seed=1), normal(20, 3, seed=2)
    found = memorisation(x, train, test)
    pairs = apart(x, train)
    assert found.distances.numpy() == pytest.approx(pairs.min(1), rel=1e-13)
    assert found.nearest.tolist() == pairs.argmin(1).tolist()
    usual = apart(test, train).min(1)
    assert found.test_distances.numpy() == pytest.approx(usual, rel=1e-13)
    assert found.ratio == pytest.approx(np.median(pairs.min(1)) / np.median(usual), rel=1e-13)
    test_of = stats.mannwhitneyu(
        found.test_distances, found.distances, method="asymptotic", use_continuity=False
    )
    assert found.closer == pytest.approx(test_of.statistic / (30 * 20), rel=1e-14)
    assert stats.norm.sf(abs(found.z)) * 2 == pytest.approx(test_of.pvalue, rel=1e-12)


def test_copies_are_at_distance_zero():
    train, test = normal(60, 84), normal(60, 84, seed=1)
    found = memorisation(train[:25], train, test)
    assert torch.equal(found.distances, torch.zeros(25, dtype=torch.float64))
    assert found.nearest.tolist() == list(range(25))
    assert (found.ratio, found.closer) == (0, 1)
    assert found.z > 5
    # The test set itself ties with itself everywhere, or wins as often as it loses.
    assert memorisation(test, train, test).closer == 0.5
    assert memorisation(test, train, test).ratio == 1


def test_fresh_samples_score_as_the_null_has_it():
    # z has mean 0 and variance 1, given the training set: 400 replicates, four standard errors; the
    # variance's is sqrt(2/400).
    train = normal(40, 2)
    draws = normal(400, 45, 2, seed=1)
    z = np.array([memorisation(each[:20], train, each[20:]).z for each in draws])
    assert abs(z.mean()) < 4 / 20
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / 400)


def test_nearest_in_blocks(monkeypatch):
    x, y = normal(20, 2), normal(30, 2, seed=1)
    whole = nearest(x, y)
    monkeypatch.setattr("sdekit.metrics.distances._BLOCK", 31)
    for part, expected in zip(nearest(x, y), whole, strict=True):
        assert torch.equal(part, expected)


PLANE = normal(8, 2)

test_bad_input = bad_input(
    [
        ("few", lambda: precision_recall(PLANE[:3], PLANE), ValueError, ["x must hold at least 4"]),
        ("k", lambda: precision_recall(PLANE, PLANE, 8), ValueError, ["x must hold at least 9"]),
        (
            "k zero",
            lambda: density_coverage(PLANE, PLANE, 0),
            ValueError,
            ["k must be >= 1, got 0"],
        ),
        ("k float", lambda: density_coverage(PLANE, PLANE, 2.0), TypeError, ["k must be", "2.0"]),
        ("dims", lambda: density_coverage(PLANE, normal(8, 3)), ValueError, ["(8, 2) and (8, 3)"]),
        ("nan", lambda: precision_recall(PLANE, PLANE / 0 * 0), ValueError, ["y has 16 NaN"]),
        (
            "one",
            lambda: memorisation(PLANE[:1], PLANE, PLANE),
            ValueError,
            ["samples", "at least 2"],
        ),
        (
            "test dims",
            lambda: memorisation(PLANE, PLANE, normal(8, 3)),
            ValueError,
            ["test and train", "(8, 3) and (8, 2)"],
        ),
        (
            "leak",
            lambda: memorisation(PLANE + 1, PLANE, PLANE),
            ValueError,
            ["test must not lie in"],
        ),
    ]
)
