# Bad input is passed on purpose.
# pyright: reportArgumentType=false
import math

import numpy as np
import pytest
import torch
from helpers import bad_input, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from torch import Tensor

from sdekit.metrics import FeatureSet, frechet_bias, frechet_distance, gaussian_wasserstein


def rotation(d: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(normal(d, d, seed=seed)).Q


def covariance(d: int, seed: int = 0, rank: int | None = None) -> Tensor:
    factor = normal(d, rank or d, seed=seed)
    return factor @ factor.T


# ---- between Gaussians ---------------------------------------------------------------------------


def test_covariances_that_commute():
    # sqrt(|m_1 - m_2|^2 + sum (sqrt a - sqrt b)^2) over shared axes, some of them of no variance.
    turn = rotation(5)
    a = torch.tensor([4.0, 1.0, 0.0, 2.0, 0.0], dtype=torch.float64)
    b = torch.tensor([1.0, 0.0, 9.0, 2.5, 0.0], dtype=torch.float64)
    shift = normal(5, seed=1)
    expected = math.sqrt(float((a.sqrt() - b.sqrt()).square().sum() + shift.square().sum()))
    first, second = ((turn * v) @ turn.T for v in (a, b))
    found = gaussian_wasserstein(torch.zeros(5, dtype=torch.float64), first, shift, second)
    assert found == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("seed", range(5))
def test_any_covariances_against_the_matrix_root(seed):
    d = 6
    a, b = covariance(d, seed), covariance(d, seed + 50) + 0.1 * torch.eye(d)
    root = np.asarray(sqrtm(a.numpy()))
    inner = np.asarray(sqrtm(root @ b.numpy() @ root))
    cross = float(np.real(np.trace(inner)))
    expected = math.sqrt(float(a.trace() + b.trace()) - 2 * cross)
    mean = torch.zeros(d, dtype=torch.float64)
    assert gaussian_wasserstein(mean, a, mean, b) == pytest.approx(expected, rel=1e-9)


def test_laws_on_lines():
    # u u^T and v v^T: |u|^2 + |v|^2 - 2 |u.v|; the matrix roots of published code give NaN here.
    mean, u, v = torch.zeros(4, dtype=torch.float64), normal(4, seed=2), normal(4, seed=3)
    expected = math.sqrt(float(u @ u + v @ v - 2 * (u @ v).abs()))
    found = gaussian_wasserstein(mean, torch.outer(u, u), mean, torch.outer(v, v))
    assert found == pytest.approx(expected, rel=1e-12)
    none = torch.zeros(4, 4, dtype=torch.float64)
    to_a_point = gaussian_wasserstein(mean, none, v, torch.outer(u, u))
    assert to_a_point == pytest.approx(math.sqrt(float(u @ u + v @ v)), rel=1e-14)
    assert gaussian_wasserstein(mean, none, mean, none) == 0


@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-9])
def test_close_laws_keep_their_digits(gap):
    # N(0, C) and N(0, (1 + gap)^2 C): gap sqrt(tr C). The usual difference of traces is round-off
    # for a gap below 1e-8; here what is lost is 1e-16 of the scale.
    mean, c = torch.zeros(8, dtype=torch.float64), covariance(8) + torch.eye(8)
    expected = gap * math.sqrt(float(c.trace()))
    found = gaussian_wasserstein(mean, c, mean, (1 + gap) ** 2 * c)
    assert found == pytest.approx(expected, rel=1e-14 / gap + 1e-13)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), d=st.integers(1, 6), rank=st.integers(1, 6))
def test_it_is_a_metric(seed, d, rank):
    laws = [(normal(d, seed=seed + i), covariance(d, seed + 7 * i, min(rank, d))) for i in range(3)]
    a, b, c = laws
    ab, ba, bc, ac = (gaussian_wasserstein(*p, *q) for p, q in ((a, b), (b, a), (b, c), (a, c)))
    assert ab == pytest.approx(ba, rel=2e-14)
    assert gaussian_wasserstein(*a, *a) < 1e-13
    assert ac <= (ab + bc) * (1 + 1e-14)


# ---- between samples -----------------------------------------------------------------------------


def test_samples_have_their_moments_distance():
    x, y = normal(60, 3), 0.4 + 1.3 * normal(50, 3, seed=1)
    found = frechet_distance(x, y)
    moments = (m for s in (x, y) for m in (s.mean(0), s.T.cov()))
    assert found.value == pytest.approx(gaussian_wasserstein(*moments) ** 2, rel=1e-12)
    assert (found.n, found.m) == (60, 50)
    assert found.bias == frechet_bias(y.T.cov(), 60, 50)
    assert frechet_distance(x, x).value < 1e-26


def test_on_the_line():
    x, y = normal(40), 2 * normal(30, seed=1) - 1
    expected = (x.mean() - y.mean()) ** 2 + (x.std() - y.std()) ** 2
    assert frechet_distance(x, y).value == pytest.approx(float(expected), rel=1e-12)


def test_translation_rotation_and_scale():
    x, y, turn = normal(50, 4), 1.2 * normal(50, 4, seed=1), rotation(4)
    whole, shift = frechet_distance(x, y).value, normal(4, seed=5)
    moved = frechet_distance(x, x + shift).value
    assert moved == pytest.approx(float(shift @ shift), rel=1e-12)
    turned = frechet_distance(3 * x @ turn + shift, 3 * y @ turn + shift).value
    assert turned == pytest.approx(9 * whole, rel=1e-11)


def test_features_and_tensors_agree_and_the_counts_are_printed():
    x, y = normal(60, 3), normal(1500, 3, seed=1)
    found = frechet_distance(FeatureSet(x, "LeNet"), FeatureSet(y, "LeNet"))
    plain = frechet_distance(x, y)
    assert found.value == plain.value
    assert str(found).startswith("FD-LeNet ")
    assert "n = 60 against 1,500" in str(found)
    assert f"sets of one law score about {found.bias:.3g}" in str(found)


def test_few_samples_when_allowed():
    # Five samples in twenty dimensions against twice themselves: (2 - 1)^2 tr C, on rank 4.
    x = normal(5, 20)
    x = x - x.mean(0)
    found = frechet_distance(x, 2 * x, allow_singular=True)
    assert found.value == pytest.approx(float(x.T.cov().trace()), rel=1e-12)


# ---- what it is for equal laws -------------------------------------------------------------------


def test_bias_in_closed_form():
    eye = torch.eye(8, dtype=torch.float64)
    assert frechet_bias(eye, 200, 200) == pytest.approx(0.26, rel=1e-14)
    assert frechet_bias(eye, 200) == pytest.approx(0.13, rel=1e-14)
    padded = torch.block_diag(eye, torch.zeros(3, 3, dtype=torch.float64))
    assert frechet_bias(padded, 200, 200) == pytest.approx(0.26, rel=1e-14)


def test_bias_on_the_line_against_the_exact_mean():
    # E (x - y)^2 of means is 2/n, E (s_x - s_y)^2 is 2 (1 - c_4^2), with c_4 the mean of s / sigma.
    one, gaps = torch.ones(1, 1, dtype=torch.float64), []
    for n in (50, 100, 200):
        c4 = math.sqrt(2 / (n - 1)) * math.exp(math.lgamma(n / 2) - math.lgamma((n - 1) / 2))
        exact = 2 / n + 2 * (1 - c4**2)
        gaps.append(frechet_bias(one, n, n) / exact - 1)
    assert all(abs(gap) < 1 / n for gap, n in zip(gaps, (50, 100, 200), strict=True))
    # The next order is 1/n of it: halved as n doubles.
    assert gaps[0] / gaps[1] == pytest.approx(2, abs=0.05)
    assert gaps[1] / gaps[2] == pytest.approx(2, abs=0.05)


def test_bias_of_correlated_features():
    # 300 pairs of sets of one law, mean within four standard errors of the leading order.
    n, root = 500, torch.linalg.cholesky(covariance(4) + 0.2 * torch.eye(4))
    draws = normal(300, 2, n, 4, seed=9) @ root.T
    values = np.array([frechet_distance(x, y).value for x, y in draws])
    expected = frechet_bias(root @ root.T, n, n)
    assert abs(values.mean() - expected) < 4 * values.std() / math.sqrt(300)
    # And it is a bias: 0 lies far away.
    assert values.mean() > 20 * values.std() / math.sqrt(300)


# ---- bad input -----------------------------------------------------------------------------------

PLANE, EYE, ZERO = normal(8, 2), torch.eye(2, dtype=torch.float64), torch.zeros(2)
HOLED = PLANE.clone().index_fill(0, torch.tensor([3]), math.nan)
SKEW = torch.tensor([[1.0, 0.5], [0.0, 1.0]])

test_bad_input = bad_input(
    [
        (
            "one",
            lambda: frechet_distance(PLANE[:1], PLANE),
            ValueError,
            ["x", "at least 2", "(1, 2)"],
        ),
        (
            "few",
            lambda: frechet_distance(PLANE, PLANE[:2]),
            ValueError,
            ["y", "d + 1 = 3", "got 2", "allow_singular"],
        ),
        ("dims", lambda: frechet_distance(PLANE, normal(8, 3)), ValueError, ["(8, 2) and (8, 3)"]),
        ("nan", lambda: frechet_distance(HOLED, PLANE), ValueError, ["x has 2 NaN", "(3, 0)"]),
        ("int", lambda: frechet_distance(PLANE, PLANE.long()), TypeError, ["y", "torch.int64"]),
        ("flag", lambda: frechet_distance(PLANE, PLANE, 1), TypeError, ["allow_singular", "got 1"]),
        (
            "names",
            lambda: frechet_distance(FeatureSet(PLANE, "A"), FeatureSet(PLANE, "B")),
            ValueError,
            ["one extractor", "'A' and 'B'"],
        ),
        (
            "skew",
            lambda: gaussian_wasserstein(ZERO, SKEW, ZERO, EYE),
            ValueError,
            ["cov", "symmetric"],
        ),
        (
            "negative",
            lambda: gaussian_wasserstein(ZERO, EYE, ZERO, -EYE),
            ValueError,
            ["other_cov", "-1"],
        ),
        (
            "shape",
            lambda: gaussian_wasserstein(ZERO, EYE, ZERO, EYE[:1]),
            ValueError,
            ["other_cov", "(2, 2)", "(1, 2)"],
        ),
        (
            "means",
            lambda: gaussian_wasserstein(ZERO, EYE, ZERO[:1], EYE),
            ValueError,
            ["(2,) and (1,)"],
        ),
        (
            "mean inf",
            lambda: gaussian_wasserstein(ZERO / 0, EYE, ZERO, EYE),
            ValueError,
            ["mean has 2 NaN"],
        ),
        (
            "list",
            lambda: gaussian_wasserstein(ZERO, [[1.0]], ZERO, EYE),
            TypeError,
            ["cov", "list"],
        ),
        ("bias n", lambda: frechet_bias(EYE, 1), ValueError, ["n must be >= 2, got 1"]),
        ("bias m", lambda: frechet_bias(EYE, 5, True), TypeError, ["m must be", "True"]),
        ("bias shape", lambda: frechet_bias(ZERO, 5), ValueError, ["covariance", "(d, d)", "(2,)"]),
    ]
)
