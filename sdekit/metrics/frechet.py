"""Fréchet distance: the Wasserstein distance of the Gaussians with the features' moments."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit.errors import check_flag, check_integer
from sdekit.metrics.arguments import SampleSet, exact, feature_pair

# Covariances may be this far from symmetric and from positive, relative to their largest entry.
_ROUND_OFF = 1e-8


@dataclass(frozen=True)
class Frechet:
    """A Fréchet distance with what it means nothing without: the counts and its bias.

    Attributes:
        value: the distance, squared as is usual.
        n: samples in the first set.
        m: samples in the second.
        bias: `frechet_bias` of the second set's covariance: what two sets of one law would score.
        features: name of the features.
    """

    value: float
    n: int
    m: int
    bias: float
    features: str

    def __str__(self) -> str:
        """`FD-LeNet 2.84 (n = 500 against 500; sets of one law score about 2.71)`."""
        counts = f"n = {self.n:,} against {self.m:,}"
        return (
            f"FD-{self.features} {self.value:.4g} ({counts};"
            f" sets of one law score about {self.bias:.3g})"
        )


def frechet_distance(x: SampleSet, y: SampleSet, allow_singular: bool = False) -> Frechet:
    """|m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^{1/2}) of the moments of two sets.

    Dowson and Landau (1982); on features of an Inception network it is the FID of Heusel et al.
    (2017), and only there should it be called so. It grows as samples get fewer (see
    `frechet_bias`): compare values at one n only.

    Args:
        x: features or samples, (n, d); an event is flattened.
        y: the reference, (m, d).
        allow_singular: take sets of fewer than d + 1 samples, whose covariance has no full rank.

    Raises:
        ValueError: for samples that are not finite, fewer than 2 (d + 1 unless `allow_singular`), of
            two dimensions, or from two extractors.
        TypeError: for samples that are neither features nor a floating tensor.
    """
    check_flag("allow_singular", allow_singular)
    x, y = feature_pair(x, y, least=2)
    d = x.values.shape[1]
    for name, points in (("x", x), ("y", y)):
        if len(points) <= d and not allow_singular:
            raise ValueError(
                f"{name} must hold at least d + 1 = {d + 1} samples for a covariance of full rank, got"
                f" {len(points)}; allow_singular=True takes fewer"
            )
    distance = gaussian_wasserstein(x.mean, x.covariance, y.mean, y.covariance)
    bias = frechet_bias(y.covariance, len(x), len(y))
    return Frechet(distance**2, len(x), len(y), bias, y.name)


def gaussian_wasserstein(mean: Tensor, cov: Tensor, other_mean: Tensor, other_cov: Tensor) -> float:
    """W_2 of N(mean, cov) and N(other_mean, other_cov); covariances may be singular.

    sqrt(|m_1 - m_2|^2 + min over rotations U of |A - U B|_F^2), A and B the roots of the covariances
    (the orthogonal Procrustes problem; Bhatia, Jain, Lim, On the Bures-Wasserstein distance, 2019).
    As a sum of squares it keeps its digits when the laws are close, and is never the root of a
    negative number.
    Eigenvalues within round-off of 0 are taken as 0.

    Args:
        mean: shape (d,).
        cov: shape (d, d), symmetric and positive semidefinite within 1e-8 of its largest entry.
        other_mean: shape (d,).
        other_cov: shape (d, d).

    Raises:
        ValueError: for shapes that do not fit, numbers that are not finite, a covariance that is not one.
        TypeError: for what is not a floating tensor.
    """
    first, second = exact("mean", mean), exact("other_mean", other_mean)
    if first.ndim != 1 or first.shape != second.shape:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise ValueError(f"mean and other_mean must share one shape (d,), got {shapes}")
    a, b = _root("cov", cov, len(first)), _root("other_cov", other_cov, len(first))
    left, _, right = torch.linalg.svd(b @ a)
    apart = a - (right.T @ left.T) @ b
    return float(torch.cat([first - second, apart.flatten()]).norm())


def frechet_bias(covariance: Tensor, n: int, m: int | None = None) -> float:
    """What the Fréchet distance of n and m Gaussian samples of one law is on average, for many samples.

    To leading order in 1/n and 1/m, with l_i the eigenvalues of the covariance,

        (1/n + 1/m) (sum_i l_i + 1/2 sum_ij l_i l_j (1 + [i = j]) / (l_i + l_j)),

    the sampling variances of the means, which hold for any law, and of the covariances, which are
    those of Gaussians, through the second derivative of the Bures distance. For N(0, 1) in d
    dimensions: (1/n + 1/m) (d^2 + 5 d) / 4. The next order is about d/n of it.

    Args:
        covariance: of the features, shape (d, d).
        n: samples in one set, at least 2.
        m: samples in the other; None for a law that is known.

    Raises:
        ValueError: for counts below 2 or a covariance that is not one.
        TypeError: for counts that are not integers.
    """
    rate = 1 / check_integer("n", n, 2) + (0 if m is None else 1 / check_integer("m", m, 2))
    values = _eigen("covariance", covariance)[0]
    pairs = values[:, None] + values
    products = torch.outer(values, values) * (1 + torch.eye(len(values), dtype=torch.float64))
    spread = torch.where(pairs > 0, products / pairs.clamp(min=torch.finfo(pairs.dtype).tiny), 0.0)
    return rate * float(values.sum() + spread.sum() / 2)


def _root(name: str, covariance: Tensor, d: int) -> Tensor:
    """The symmetric root of a covariance (d, d)."""
    if isinstance(covariance, Tensor) and covariance.shape != (d, d):
        raise ValueError(f"{name} must have shape ({d}, {d}), got {tuple(covariance.shape)}")
    values, vectors = _eigen(name, covariance)
    return (vectors * values.sqrt()) @ vectors.T


def _eigen(name: str, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (d,), none negative, and eigenvectors (d, d) of a covariance, checked."""
    matrix = exact(name, covariance)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) == 0:
        raise ValueError(f"{name} must have shape (d, d), got {tuple(matrix.shape)}")
    largest = float(matrix.abs().max())
    if float((matrix - matrix.T).abs().max()) > _ROUND_OFF * largest:
        raise ValueError(f"{name} must be symmetric within {_ROUND_OFF:g} of its largest entry")
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    if float(values[0]) < -_ROUND_OFF * largest:
        raise ValueError(f"{name} must have no negative eigenvalue, got {float(values[0]):.3g}")
    noise = len(matrix) * torch.finfo(values.dtype).eps * float(values[-1])
    return torch.where(values > noise, values, 0.0), vectors
