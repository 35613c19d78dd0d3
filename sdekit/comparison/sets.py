"""Sets of generated data side by side, each held against data and against the data's own floor."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit import metrics as distances
from sdekit.errors import check_flag, check_integer
from sdekit.metrics import FeatureSet, Floor
from sdekit.records import Records

#: Columns, and whether more is better.
_COLUMNS = {
    "FD": False, "KID": False, "energy": False,
    "precision": True, "recall": True, "density": True, "coverage": True,
}  # fmt: skip

# Coverage looks at fifth neighbours.
_LEAST = 6


@dataclass(frozen=True)
class SetTable(Records):
    """Rows of `compare_sets`.

    Attributes:
        rows: one dict a set, with the keys set, n, FD, KID, "KID se", energy, "energy se", precision, recall,
            density, coverage (against as many training samples), and "NN ratio", closer and z of
            `sdekit.metrics.memorisation`.
        floors: by column, what test samples score against training samples at the same n.
        features: name of the features that all was measured on.
    """

    floors: dict[str, Floor]
    features: str

    def _cells(self) -> list[list[str]]:
        """Head, rows and floors."""
        head = ["set", "n", f"FD-{self.features}", *list(_COLUMNS)[1:], "NN ratio", "z"]
        body = [
            [
                row["set"],
                f"{row['n']:,}",
                *(f"{row[column]:.4f}" for column in _COLUMNS),
                f"{row['NN ratio']:.3f}",
                f"{row['z']:+.1f}",
            ]
            for row in self.rows
        ]
        n = f"{self.rows[0]['n']:,}"
        means = [f"{self.floors[c].mean:.4f}" for c in _COLUMNS]
        limits = [f"{_limit(self.floors[c], more):.4f}" for c, more in _COLUMNS.items()]
        return [
            head,
            *body,
            ["test data, mean", n, *means, "1", "0"],
            ["test data, worst 5 %", n, *limits, "", ""],
        ]


def compare_sets(
    sets: Mapping[str, Tensor],
    train: Tensor,
    test: Tensor,
    extractor: Callable[[Tensor], Tensor] | None = None,
    repeats: int = 20,
    allow_singular: bool = False,
    seed: int = 0,
) -> SetTable:
    """Generated sets of one size against the training set, beside what unseen data of that size scores.

    Each set and each draw of the test set is held against n training samples, so that rows and floor
    differ by the samples alone. A set within the floor cannot be told from data with n samples; one
    that is nearer to the training set than data is (`z` far above 0) copies it.

    Args:
        sets: by name, samples (n, *event), n >= 6; n is one number for all, since the Fréchet distance and
            the shares of neighbours move with it.
        train: what the models saw, at least n.
        test: data of the same law that they did not see, at least n.
        extractor: features to measure on, as `sdekit.metrics.extract_features` takes; None flattens.
        repeats: draws of the floor, at least 2; they share the data, so with n near all of it their
            spread comes out too small.
        allow_singular: take fewer than d + 1 samples for d features.
        seed: of the draws.

    Raises:
        ValueError: for no sets, sets of two sizes, fewer training or test samples than a set has, or
            samples that the metrics refuse.
        TypeError: for sets that are not tensors by name.
    """
    check_integer("repeats", repeats, 2)
    check_flag("allow_singular", allow_singular)
    generator = torch.Generator().manual_seed(check_integer("seed", seed, 0))
    n = _one_size(sets)
    for name, data in (("train", train), ("test", test)):
        if not isinstance(data, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(data).__name__}")
        if data.ndim == 0 or len(data) < n:
            raise ValueError(f"{name} must hold at least n = {n} samples, got {tuple(data.shape)}")

    def measured(images: Tensor) -> FeatureSet:
        return distances.extract_features(extractor or pixels, images)

    known, unseen = measured(train), measured(test)
    reference = known[torch.randperm(len(known), generator=generator)[:n]]
    rows = []  # before the floors, which take longer, so that samples are refused at once
    for name, samples in sets.items():
        found = measured(samples)
        scored = _scores(found, reference, allow_singular)
        near = distances.memorisation(found, known, unseen)
        copies = {"NN ratio": near.ratio, "closer": near.closer, "z": near.z}
        rows.append({"set": name, "n": n, **scored, **copies})
    splits = distances.data_splits(unseen, known, n, repeats, seed)
    scores = [_scores(*parts, allow_singular) for parts in splits]
    floors = {column: Floor.of([score[column] for score in scores]) for column in _COLUMNS}
    return SetTable(rows, floors, known.name)


def pixels(images: Tensor) -> Tensor:
    """Images as they are."""
    return images.flatten(1)


def _scores(x: FeatureSet, y: FeatureSet, allow_singular: bool) -> dict[str, float]:
    """Every column of x against y."""
    frechet = distances.frechet_distance(x, y, allow_singular)
    kernel, energy = distances.kid(x, y), distances.energy_distance(x, y)
    support, filled = distances.precision_recall(x, y), distances.density_coverage(x, y)
    return {
        "FD": frechet.value,
        "KID": kernel.value,
        "KID se": kernel.stderr,
        "energy": energy.value,
        "energy se": energy.stderr,
        "precision": support.precision,
        "recall": support.recall,
        "density": filled.density,
        "coverage": filled.coverage,
    }


def _one_size(sets: Mapping[str, Tensor]) -> int:
    """How many samples every set has."""
    if not isinstance(sets, Mapping) or not all(isinstance(x, Tensor) for x in sets.values()):
        raise TypeError(f"sets must be tensors by name, got {type(sets).__name__}")
    if not sets:
        raise ValueError("sets must hold at least one set, got none")
    sizes = {name: len(x) if x.ndim else 0 for name, x in sets.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            "sets must have equally many samples, since Fréchet distances and shares of neighbours"
            f" depend on n; got {', '.join(f'{name!r}: {n}' for name, n in sizes.items())}"
        )
    n = next(iter(sizes.values()))
    if n < _LEAST:
        raise ValueError(f"sets must hold at least {_LEAST} samples each, got {n}")
    return n


def _limit(floor: Floor, more_is_better: bool) -> float:
    """What one in twenty draws of data does worse than."""
    if not more_is_better:
        return floor.quantile95
    return float(torch.tensor(floor.values, dtype=torch.float64).quantile(0.05))
