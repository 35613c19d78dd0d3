# Bad input is passed on purpose.
# pyright: reportArgumentType=false
import math

import numpy as np
import pytest
import torch
from helpers import bad_input, normal

from sdekit import GaussianMixture
from sdekit.metrics import (
    FeatureSet,
    data_floor,
    data_splits,
    density_coverage,
    energy_distance,
    floor,
    frechet_bias,
    frechet_distance,
    kid,
)


def test_parts_do_not_overlap():
    data = torch.arange(20.0)
    for first, second in data_splits(data, n=7, repeats=5):
        assert len(first) == len(second) == 7
        assert len({*first.tolist(), *second.tolist()}) == 14
    first, second = next(data_splits(data))
    assert sorted([*first.tolist(), *second.tolist()]) == data.tolist()


def test_parts_of_two_sets():
    test, train = torch.arange(9.0), 100 + torch.arange(30.0)
    pairs = list(data_splits(test, train, repeats=4))
    for first, second in pairs:
        assert sorted(first.tolist()) == test.tolist()
        assert len({*second.tolist()}) == 9
        assert second.min() >= 100
    assert len({tuple(sorted(second.tolist())) for _, second in pairs}) == 4
    assert len(next(data_splits(test, train, n=5))[1]) == 5


def test_features_are_split_without_being_computed_again():
    data = FeatureSet(normal(40, 2), "plain")
    first, second = next(data_splits(data, n=15))
    assert (repr(first), repr(second)) == ("FeatureSet(plain, n=15, d=2)",) * 2
    as_tensors = data_floor(frechet_distance, data.values, n=15, repeats=3)
    assert data_floor(frechet_distance, data, n=15, repeats=3) == as_tensors


def test_the_mean_over_splits_of_a_finite_population():
    # Parts of n drawn without replacement: E (mean - mean)^2 = 2 S^2 / n, S^2 the data's variance
    # with divisor N - 1. Four standard errors.
    data = normal(50)
    found = data_floor(lambda x, y: float((x.mean() - y.mean()) ** 2), data, n=12, repeats=2000)
    assert abs(found.mean - 2 * float(data.var()) / 12) < 4 * found.stderr
    assert found.quantile95 == pytest.approx(np.quantile(found.values, 0.95), rel=1e-12)


def test_floors_of_metrics_that_return_results():
    # Without bias and with it: four standard errors. Splits of 4,000 into 200s hardly share samples.
    data = FeatureSet(normal(4000, 3))
    for metric in (energy_distance, kid):
        found = data_floor(metric, data, n=200)
        assert abs(found.mean) < 4 * found.stderr
    found = data_floor(frechet_distance, data, n=200)
    assert abs(found.mean - frechet_bias(torch.eye(3, dtype=torch.float64), 200, 200)) < (
        4 * found.stderr
    )
    filled = data_floor(lambda x, y: density_coverage(x, y).density, data, n=200)
    assert abs(filled.mean - 1) < 4 * filled.stderr


def test_the_floor_of_data_is_the_floor_of_its_law():
    # Against exact draws as against a law; four standard errors of the difference.
    law = GaussianMixture([0.3, 0.7], [-1.4, 0.6], 0.4)
    exact = floor(
        lambda x, law: energy_distance(x, law.sample(100, seed=x.sum().long() + 999)), law, 100
    )
    split = data_floor(energy_distance, law.sample(20_000, seed=1), n=100)
    assert abs(exact.mean - split.mean) < 4 * math.hypot(exact.stderr, split.stderr)
    # The spread of 40 is known to 1/sqrt(78) of itself, four of these of a ratio are 0.64.
    assert abs(math.log(exact.std / split.std)) < 0.64


def test_a_function_of_its_seed():
    data, state = normal(30, 2), torch.get_rng_state()
    first = data_floor(energy_distance, data, repeats=3, seed=1)
    assert first == data_floor(energy_distance, data, repeats=3, seed=1)
    assert first != data_floor(energy_distance, data, repeats=3, seed=2)
    assert torch.equal(state, torch.get_rng_state())


DATA = normal(9, 2)


def constant(value):
    return lambda: data_floor(lambda x, y: value, DATA)


test_bad_input = bad_input(
    [
        ("n", lambda: data_floor(kid, DATA, n=1), ValueError, ["n must be >= 2, got 1"]),
        ("large", lambda: data_floor(kid, DATA, n=5), ValueError, ["n must be at most 4", "got 5"]),
        ("other", lambda: data_splits(DATA, DATA[:6], 7), ValueError, ["n must be at most 6", "7"]),
        (
            "small",
            lambda: data_splits(DATA[:3]),
            ValueError,
            ["data must hold at least 4", "(3, 2)"],
        ),
        ("dims", lambda: data_splits(DATA, normal(9, 3)), ValueError, ["data and other", "(9, 3)"]),
        ("nan", lambda: data_splits(DATA / 0 * 0), ValueError, ["data has 18 NaN"]),
        ("ints", lambda: data_splits(DATA.long()), TypeError, ["data", "torch.int64"]),
        ("repeats", lambda: data_floor(kid, DATA, repeats=1), ValueError, ["repeats", "got 1"]),
        ("seed", lambda: data_floor(kid, DATA, seed=-1), ValueError, ["seed", "got -1"]),
        ("float n", lambda: data_floor(kid, DATA, n=4.0), TypeError, ["n must be", "4.0"]),
        ("text", constant("low"), TypeError, ["metric must return a number", "str"]),
        ("infinite", constant(math.inf), ValueError, ["metric must return a finite", "inf"]),
    ]
)
