# Bad input is passed on purpose.
# pyright: reportArgumentType=false
import pytest
import torch
from helpers import bad_input, normal

from sdekit import compare_sets
from sdekit.metrics import energy_distance, frechet_distance, memorisation, precision_recall

TRAIN, TEST = normal(150, 1, 2, 2), normal(120, 1, 2, 2, seed=1)
SETS = {
    "fresh": normal(100, 1, 2, 2, seed=2),
    "copies": TRAIN[:100] + 1e-3 * normal(100, 1, 2, 2, seed=3),
    "shifted": normal(100, 1, 2, 2, seed=4) + 0.5,
    "narrow": 0.5 * normal(100, 1, 2, 2, seed=5),
}


@pytest.fixture(scope="module")
def table():
    return compare_sets(SETS, TRAIN, TEST)


def test_rows_are_the_metrics_against_as_many_training_samples(table):
    rows = {row["set"]: row for row in table.rows}
    assert list(rows) == list(SETS)
    reference = TRAIN[torch.randperm(150, generator=torch.Generator().manual_seed(0))[:100]]
    for name, samples in SETS.items():
        x, y = samples.flatten(1), reference.flatten(1)
        assert rows[name]["n"] == 100
        assert rows[name]["FD"] == pytest.approx(frechet_distance(x, y).value, rel=1e-12)
        energy = energy_distance(x, y)
        assert (rows[name]["energy"], rows[name]["energy se"]) == (energy.value, energy.stderr)
        assert rows[name]["precision"] == precision_recall(x, y).precision
        near = memorisation(x, TRAIN.flatten(1), TEST.flatten(1))
        assert (rows[name]["NN ratio"], rows[name]["z"]) == (near.ratio, near.z)


def test_it_tells_fresh_from_copied_from_wrong(table):
    rows = {row["set"]: row for row in table.rows}
    for column in ("FD", "KID", "energy"):
        assert rows["fresh"][column] < table.floors[column].quantile95
        assert rows["shifted"][column] > 2 * table.floors[column].quantile95
    assert rows["narrow"]["recall"] < min(table.floors["recall"].values)
    assert rows["narrow"]["density"] > max(table.floors["density"].values)
    assert abs(rows["fresh"]["z"]) < 4
    assert rows["copies"]["z"] > 10
    assert rows["copies"]["NN ratio"] < 0.01
    # Which no distance to the data says: copies are as good as data there.
    assert rows["copies"]["FD"] < table.floors["FD"].quantile95


def test_it_prints_its_floor(table):
    lines = str(table).splitlines()
    assert "FD-pixels" in lines[0]
    assert len(lines) == 8
    assert lines[-2].startswith("test data, mean")
    assert f"{table.floors['FD'].mean:.4f}" in lines[-2]
    assert f"{table.floors['KID'].quantile95:.4f}" in lines[-1]
    low = torch.tensor(table.floors["recall"].values, dtype=torch.float64).quantile(0.05)
    assert f"{float(low):.4f}" in lines[-1]
    assert table.markdown().count("\n") == 7


def test_an_extractor_measures_everything():
    def first(images):
        return images.flatten(1)[:, :2]

    found = compare_sets({"a": SETS["shifted"]}, TRAIN, TEST, first, repeats=2)
    plain = compare_sets({"a": first(SETS["shifted"])}, first(TRAIN), first(TEST), repeats=2)
    assert found.features == "first"
    assert found.rows == plain.rows
    assert found.floors == plain.floors


FEW = normal(30, 1, 2, 2)

test_bad_input = bad_input(
    [
        (
            "two sizes",
            lambda: compare_sets({"a": FEW, "b": FEW[:20]}, TRAIN, TEST),
            ValueError,
            ["equally many samples", "'a': 30, 'b': 20"],
        ),
        ("none", lambda: compare_sets({}, TRAIN, TEST), ValueError, ["at least one set"]),
        (
            "tensor",
            lambda: compare_sets(FEW, TRAIN, TEST),
            TypeError,
            ["sets", "by name", "Tensor"],
        ),
        ("lists", lambda: compare_sets({"a": [1.0]}, TRAIN, TEST), TypeError, ["sets", "by name"]),
        (
            "train",
            lambda: compare_sets({"a": FEW}, TRAIN[:9], TEST),
            ValueError,
            ["train", "n = 30"],
        ),
        ("test", lambda: compare_sets({"a": FEW}, TRAIN, TEST[:9]), ValueError, ["test", "n = 30"]),
        ("test list", lambda: compare_sets({"a": FEW}, TRAIN, []), TypeError, ["test", "list"]),
        ("nan", lambda: compare_sets({"a": FEW / 0 * 0}, TRAIN, TEST), ValueError, ["120 NaN"]),
        (
            "few",
            lambda: compare_sets({"a": FEW[:5]}, TRAIN, TEST),
            ValueError,
            ["sets must hold at least 6", "got 5"],
        ),
        (
            "singular",
            lambda: compare_sets({"a": normal(30, 40)}, normal(30, 40), normal(30, 40)),
            ValueError,
            ["d + 1 = 41", "allow_singular"],
        ),
        (
            "seed",
            lambda: compare_sets({"a": FEW}, TRAIN, TEST, seed=0.5),
            TypeError,
            ["seed", "0.5"],
        ),
        (
            "dims",
            lambda: compare_sets({"a": normal(30, 3)}, TRAIN, TEST),
            ValueError,
            ["samples of one dimension", "(30, 3) and (30, 4)"],
        ),
        (
            "repeats",
            lambda: compare_sets({"a": FEW}, TRAIN, TEST, repeats=1),
            ValueError,
            ["got 1"],
        ),
    ]
)
