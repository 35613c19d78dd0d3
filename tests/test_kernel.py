# Bad input is passed on purpose.
# pyright: reportArgumentType=false
import math
from functools import cache

import numpy as np
import pytest
import torch
from helpers import bad_input, normal

from sdekit.metrics import FeatureSet, Measured, kid


def plain(x, y):
    """The U-statistic with the kernel written out."""
    k = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3  # noqa: E731
    n, m = len(x), len(y)
    within = [(s.sum() - s.trace()) / (c * (c - 1)) for s, c in ((k(x, x), n), (k(y, y), m))]
    return float(within[0] + within[1] - 2 * k(x, y).mean())


@pytest.mark.parametrize("d", [1, 3, 40])
def test_it_is_the_u_statistic(d):
    x, y = normal(30, d), 0.5 + normal(21, d, seed=1)
    assert kid(x, y).value == pytest.approx(plain(x, y), rel=1e-11)
    assert kid(y, x).value == pytest.approx(plain(x, y), rel=1e-11)
    assert kid(FeatureSet(x), FeatureSet(y)) == kid(x, y)


def half_diallel(h):
    """Effects and residual variance of h_ij = mean + e_i + e_j + residual over pairs, by regression."""
    n = len(h)
    i, j = np.triu_indices(n, 1)
    design = np.zeros((len(i), n))
    design[np.arange(len(i)), i] = design[np.arange(len(i)), j] = 1
    halves, *_ = np.linalg.lstsq(design, h[i, j], rcond=None)  # mean / 2 + e_i
    residual = h[i, j] - design @ halves
    return halves - halves.mean(), residual @ residual / (n * (n - 3) / 2)


def test_the_standard_error_is_its_formula():
    # The analysis of variance, each part from a regression.
    x, y = normal(11, 2), 0.8 + 1.3 * normal(9, 2, seed=1)
    h, (n, m) = (x @ y.T / 2 + 1).numpy() ** 3, (11, 9)
    residual = h - h.mean(0) - h.mean(1)[:, None] + h.mean()
    between = (residual**2).sum() / ((n - 1) * (m - 1))
    variance = 4 * between / (n * m)
    first = 0.0
    for points, other, means in ((x, m, h.mean(1)), (y, n, h.mean(0))):
        c = len(points)
        effects, inner = half_diallel((points @ points.T / 2 + 1).numpy() ** 3)
        first += 4 / c * (np.var(means - effects, ddof=1) - between / other - inner / (c - 2))
        variance += 2 * inner / (c * (c - 1))
    assert first > 0
    assert kid(x, y).stderr == pytest.approx(math.sqrt(first + variance), rel=1e-10)


def test_in_blocks(monkeypatch):
    x, y = normal(30, 3), 0.5 + normal(21, 3, seed=1)
    whole = kid(x, y)
    monkeypatch.setattr("sdekit.metrics.two_sample.BLOCK", 1)
    assert kid(x, y).value == pytest.approx(whole.value, rel=1e-12)
    assert kid(x, y).stderr == pytest.approx(whole.stderr, rel=1e-10)


def test_subsets_are_parts_without_overlap():
    # The shuffle of either set, cut in three, each part by the kernel written out.
    x, y = normal(12, 2), normal(12, 2, seed=1) + 0.3
    found = kid(x, y, subsets=3, seed=4)
    generator = torch.Generator().manual_seed(4)
    parts = [s[torch.randperm(12, generator=generator)].split(4) for s in (x, y)]
    values = [plain(a, b) for a, b in zip(*parts, strict=True)]
    assert found.value == pytest.approx(np.mean(values), rel=1e-11)
    assert found.stderr == pytest.approx(np.std(values, ddof=1) / math.sqrt(3), rel=1e-11)
    state = torch.get_rng_state()
    assert kid(x, y, subsets=3, seed=5) != found == kid(x, y, subsets=3, seed=4)
    assert torch.equal(state, torch.get_rng_state())


def expected(shift, scale):
    """On the line (x y + 1)^3 has the features sqrt 3 x, sqrt 3 x^2, x^3: differences of moments."""
    first, second = shift, shift**2 + scale**2 - 1
    third = shift**3 + 3 * shift * scale**2
    return 3 * first**2 + 3 * second**2 + third**2


@cache
def replicates(
    n: int, m: int, shift: float, scale: float, subsets: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Values and variances of 400 distances of N(0, 1) and N(shift, scale^2)."""
    x, y = normal(400, n, 1), shift + scale * normal(400, m, 1, seed=1)
    found: list[Measured] = [kid(a, b, subsets) for a, b in zip(x, y, strict=True)]
    return np.array([each.value for each in found]), np.array([each.stderr**2 for each in found])


CASES = [
    (20, 30, 0.0, 1.0, None),
    (20, 30, 0.5, 1.2, None),
    (40, 50, 0.0, 1.0, 5),
    (40, 50, 0.5, 1.2, 5),
]


@pytest.mark.parametrize("case", CASES)
def test_no_bias(case):
    # Within four standard errors over 400 replicates.
    values, _ = replicates(*case)
    assert abs(values.mean() - expected(*case[2:4])) < 4 * values.std() / math.sqrt(400)


@pytest.mark.parametrize("case", CASES[1:])
def test_the_standard_error_is_the_spread(case):
    # Mean reported variance against the variance of 400 replicates; four standard errors. Parts
    # without overlap keep this for equal laws too.
    values, variances = replicates(*case)
    gap = variances - (values - values.mean()) ** 2 * 400 / 399
    assert abs(gap.mean()) < 4 * gap.std() / math.sqrt(400)


def test_of_equal_laws_it_errs_to_the_safe_side():
    # The cut at zero about doubles the variance. The kernel's cubes have heavy tails: the ratio of
    # standard deviations is known to about 10 %, four of these are 0.4.
    values, variances = replicates(*CASES[0])
    assert 1.0 < math.sqrt(variances.mean()) / values.std() < math.sqrt(2) + 0.4


PLANE = normal(12, 2)

test_bad_input = bad_input(
    [
        ("few", lambda: kid(PLANE, PLANE[:3]), ValueError, ["y must hold at least 4", "(3, 2)"]),
        ("dims", lambda: kid(PLANE, normal(12, 3)), ValueError, ["(12, 2) and (12, 3)"]),
        ("nan", lambda: kid(PLANE / 0 * 0, PLANE), ValueError, ["x has 24 NaN"]),
        ("int", lambda: kid(PLANE.int(), PLANE), TypeError, ["x", "torch.int32"]),
        ("one subset", lambda: kid(PLANE, PLANE, 1), ValueError, ["subsets must be >= 2, got 1"]),
        ("subsets", lambda: kid(PLANE, PLANE, 4), ValueError, ["subsets", "at most 3", "got 4"]),
        ("true", lambda: kid(PLANE, PLANE, True), TypeError, ["subsets", "True"]),
        ("seed", lambda: kid(PLANE, PLANE, 2, -1), ValueError, ["seed", "-1"]),
    ]
)
