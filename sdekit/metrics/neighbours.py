"""Metrics of nearest neighbours: fidelity, diversity and memorisation."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdekit.errors import check_integer
from sdekit.metrics.arguments import SampleSet, feature_pair, pair
from sdekit.metrics.distances import distance_blocks, nearest
from sdekit.metrics.features import FeatureSet


@dataclass(frozen=True)
class PrecisionRecall:
    """Share of samples within the reference's support (precision), and the other way (recall)."""

    precision: float
    recall: float
    n: int
    m: int


@dataclass(frozen=True)
class DensityCoverage:
    """How thickly the reference's neighbourhoods are filled (density), and how many are (coverage)."""

    density: float
    coverage: float
    n: int
    m: int


def precision_recall(x: SampleSet, y: SampleSet, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall of samples x against a reference y.

    Kynkäänniemi et al. (2019), equations 1 and 2: a support is the union of balls around a set's
    points that reach to their k-th nearest neighbour in the set; precision is the share of x in the
    support of y, recall the share of y in the support of x. Both are 1 for equal sets, and depend
    on n, m and k for equal laws: hold them against a floor at the same counts.

    Args:
        x: samples (n, *event), n > k, or features.
        y: the reference (m, *event), m > k, or features.
        k: which neighbour, at least 1.

    Raises:
        ValueError: for samples that are not finite, too few, of two dimensions or two extractors.
        TypeError: for samples that are not floating tensors, or a k that is not an integer.
    """
    k = check_integer("k", k, 1)
    x, y = feature_pair(x, y, least=k + 1)
    inside_y, _ = _balls(y, k, x)
    inside_x, _ = _balls(x, k, y)
    return PrecisionRecall(_share(inside_y > 0), _share(inside_x > 0), len(x), len(y))


def density_coverage(x: SampleSet, y: SampleSet, k: int = 5) -> DensityCoverage:
    """Density and coverage of samples x against a reference y.

    Naeem et al. (2020), with the balls of `precision_recall` around y: density is
    the mean number of balls that a sample lies in over k, coverage the share of balls that hold a
    sample. An outlier in y does little to either. For equal continuous laws E density = 1 and
    E coverage = 1 - prod_{i=1..k} (m - i) / (n + m - i), in any dimension.

    Args:
        x: samples (n, *event), n > k, or features.
        y: the reference (m, *event), m > k, or features.
        k: which neighbour, at least 1.

    Raises:
        ValueError: as `precision_recall`.
        TypeError: as `precision_recall`.
    """
    k = check_integer("k", k, 1)
    x, y = feature_pair(x, y, least=k + 1)
    balls, filled = _balls(y, k, x)
    return DensityCoverage(float(balls.mean()) / k, _share(filled), len(x), len(y))


@dataclass(frozen=True, eq=False)
class Memorisation:
    """How near samples are to the training set, beside how near unseen data is.

    Attributes:
        distances: of each sample to the nearest training point, (n,).
        nearest: which training point that is, (n,).
        test_distances: of each test point to the nearest training point, (m,).
        ratio: median of `distances` over median of `test_distances`: about 1 for fresh samples, 0 for
            copies.
        closer: how often a sample is nearer to the training set than a test point is, ties for a
            half: 1/2 on average for fresh samples, 1 for copies.
        z: `closer` in standard errors from 1/2 (Mann and Whitney, 1947): above 2 or so the model
            copies, below -2 it falls short of the data.
    """

    distances: Tensor = field(repr=False)
    nearest: Tensor = field(repr=False)
    test_distances: Tensor = field(repr=False)
    ratio: float
    closer: float
    z: float


def memorisation(samples: SampleSet, train: SampleSet, test: SampleSet) -> Memorisation:
    """Distances of samples to the training set, held against those of test data (Meehan et al. 2020).

    Without ties, given the training set and samples of the data's law, `z` has mean 0 and variance 1
    exactly.

    Args:
        samples: shape (n, *event), n >= 2, or features.
        train: what the model saw, at least 2.
        test: data of the same law that it did not see, at least 2.

    Raises:
        ValueError: for samples that are not finite, too few, of two dimensions or two extractors, or
            a test set of which half lies in the training set.
        TypeError: for samples that are not floating tensors.
    """
    x, known = pair(samples, train, least=2, names=("samples", "train"))
    fresh, _ = pair(test, train, least=2, names=("test", "train"))
    (distances, which), (usual, _) = nearest(x, known), nearest(fresh, known)
    middle = float(usual.quantile(0.5))
    if middle == 0:
        raise ValueError("test must not lie in train: half of its distances to it are 0")
    n, m = len(x), len(fresh)
    ranked = usual.sort().values
    above = m - torch.searchsorted(ranked, distances, right=True)
    tied = m - torch.searchsorted(ranked, distances) - above
    closer = float((above + tied / 2).double().mean()) / m
    z = (closer - 0.5) / math.sqrt((n + m + 1) / (12 * n * m))
    return Memorisation(distances, which, usual, float(distances.quantile(0.5)) / middle, closer, z)


def _balls(centres: FeatureSet, k: int, points: FeatureSet) -> tuple[Tensor, Tensor]:
    """In how many of the centres' balls each point lies, and which balls hold a point."""
    radii = centres.radii(k)
    count = torch.zeros(len(points), dtype=torch.float64)
    filled = torch.zeros(len(centres), dtype=torch.bool)
    for rows, block in distance_blocks(centres.values, points.values):
        inside = block <= radii[rows, None]
        count += inside.sum(0)
        filled[rows] = inside.any(1)
    return count, filled


def _share(hits: Tensor) -> float:
    return float(hits.double().mean())
