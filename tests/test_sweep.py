"""Sweeps: what is done is not done again, what fails loses nothing else, and the table's arithmetic."""

import csv
import json
import math
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from helpers import bad_input

from sdekit import CheckpointError
from sdekit.training import DenoisingLoss

sys.path.insert(0, str(Path(__file__).parent.parent / "experiments"))

from harness.sweep import describe, folder_name, grid, sweep


@dataclass(frozen=True)
class Config:
    lr: float = 0.1
    name: str = "a"
    seed: int = 0


@dataclass(frozen=True)
class Rich:
    loss: object = DenoisingLoss()


@dataclass
class Loose:
    lr: float = 0.1


class Nameless:
    pass


def measure(config, folder):
    """Leaves a line for each time that it is called."""
    with (folder / "calls").open("a") as file:
        file.write("called\n")
    figures = {
        "W1": config.lr * (config.seed + 1),
        "share": round(10 * config.lr),
        "curve": [1, 2],
        "ok": True,
    }
    return {**figures, "threads": torch.get_num_threads()}


def stubborn(config, folder):
    """Fails until a file says that it may not."""
    if config.lr == 0.2 and not (folder.parent / "mended").exists():
        raise ArithmeticError("too steep")
    return measure(config, folder)


def deadly(config, folder):
    """Takes its process with it."""
    if config.lr == 0.2 and not (folder.parent / "mended").exists():
        os._exit(1)
    return measure(config, folder)


def unwritable(config, folder):
    return {"W1": torch.ones(3)}


def calls(out):
    return {p.parent.name: len(p.read_text().split()) for p in out.glob("*/calls")}


def quiet(run, configs, out, **keywords):
    return sweep(run, configs, out, progress=False, **keywords)


# ------------------------------------------------------------------------------------------ configs


def test_grid_is_the_product_with_the_last_choice_fastest():
    found = grid(Config(seed=7), lr=[0.1, 0.2], name=("a", "b"))
    assert [(c.lr, c.name, c.seed) for c in found] == [
        (0.1, "a", 7),
        (0.1, "b", 7),
        (0.2, "a", 7),
        (0.2, "b", 7),
    ]
    assert grid(Config, lr=[0.3]) == [Config(0.3)]
    assert grid(Config) == [Config()]


def test_a_folder_is_named_by_what_is_not_usual_and_told_apart_by_all_of_it():
    usual, other = folder_name(Config()), folder_name(Config(1e-3, "a/b: ü", 3))
    assert usual.startswith("default-")
    assert other.startswith("lr=0.001,name=a_b_,seed=3-")
    assert all(c.isalnum() or c in "=,._+-" for c in other)
    assert folder_name(Config()) == usual
    assert (
        len({folder_name(Config(lr=1 + k * 1e-16)) for k in (0, 4)}) == 2
    )  # digits of the name end
    assert len(folder_name(Config(name="x" * 500))) < 100
    assert len({folder_name(Config(name="x" * 500 + end)) for end in "ab"}) == 2


def test_what_is_not_plain_is_known_by_its_repr():
    assert describe(Rich()) == {"loss": repr(DenoisingLoss())}
    assert folder_name(Rich()) != folder_name(Rich(DenoisingLoss("min-snr")))


# ------------------------------------------------------------------------------------------ running


def test_what_is_done_is_read_and_not_run(tmp_path):
    first = quiet(measure, grid(Config, lr=[0.1, 0.2]), tmp_path)
    again = quiet(measure, grid(Config, lr=[0.1, 0.2, 0.4]), tmp_path)
    assert set(calls(tmp_path).values()) == {1}
    assert len(calls(tmp_path)) == 3
    assert again.rows[:2] == first.rows
    summary = json.loads((tmp_path / folder_name(Config(0.2)) / "summary.json").read_text())
    assert summary["config"] == {"lr": 0.2, "name": "a", "seed": 0}
    assert summary["curve"] == [1, 2]


def test_a_failure_loses_nothing_and_is_tried_again(tmp_path):
    configs = grid(Config, lr=[0.1, 0.2, 0.3])
    table = quiet(stubborn, configs, tmp_path)
    assert [row["runs"] for row in table.rows] == [1, 0, 1]
    folder = tmp_path / folder_name(configs[1])
    assert "ArithmeticError: too steep" in (folder / "failure.txt").read_text()
    assert "failed: ArithmeticError: too steep" in table.rows[1]["error"]
    assert math.isnan(table.rows[1]["W1"])
    assert f"{folder.name} failed: ArithmeticError: too steep" in str(table)
    (tmp_path / "mended").touch()
    table = quiet(stubborn, configs, tmp_path)
    assert [row["runs"] for row in table.rows] == [1, 1, 1]
    assert set(calls(tmp_path).values()) == {1}
    assert not (folder / "failure.txt").exists()


def test_figures_that_are_no_json_are_a_failure_of_that_run(tmp_path):
    table = quiet(unwritable, [Config()], tmp_path)
    assert "TypeError" in table.rows[0]["error"]
    assert not [*tmp_path.glob("*/summary.json")]


def test_a_run_that_was_stopped_on_the_way_is_not_done(tmp_path):
    folder = tmp_path / folder_name(Config())
    folder.mkdir(parents=True)
    (folder / ".summary.1.tmp").write_text('{"config": ')
    (folder / "picture.png").touch()
    assert quiet(measure, [Config()], tmp_path).rows[0]["runs"] == 1


def test_ctrl_c_keeps_what_is_done(tmp_path):
    def interrupted(config, folder):
        if config.lr == 0.2:
            raise KeyboardInterrupt
        return measure(config, folder)

    with pytest.raises(KeyboardInterrupt):
        quiet(interrupted, grid(Config, lr=[0.1, 0.2, 0.3]), tmp_path)
    quiet(measure, grid(Config, lr=[0.1, 0.2, 0.3]), tmp_path)
    assert set(calls(tmp_path).values()) == {1}


def test_threads_give_the_table_that_one_after_another_gives(tmp_path):
    configs = grid(Config, lr=[0.3, 0.1, 0.2])
    alone = quiet(stubborn, configs, tmp_path / "alone", seeds=(0, 1))
    with ThreadPoolExecutor(3) as pool:
        shared = quiet(stubborn, configs, tmp_path / "shared", seeds=(0, 1), executor=pool)
    for row in (*alone.rows, *shared.rows):
        row["seconds"] = 0.0
    assert repr(alone.rows) == repr(shared.rows)  # NaN is not itself
    assert str(alone) == str(shared)


def test_a_dead_process_is_a_failure_and_the_next_sweep_goes_on(tmp_path):
    configs, spawn = grid(Config, lr=[0.1, 0.2, 0.3]), multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        table = quiet(deadly, configs, tmp_path, executor=pool)
    assert table.rows[0]["runs"] == 1
    assert table.rows[1]["runs"] == 0
    assert "BrokenProcessPool" in table.rows[1]["error"]
    (tmp_path / "mended").touch()
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        table = quiet(deadly, configs, tmp_path, executor=pool)
    assert [row["runs"] for row in table.rows] == [1, 1, 1]
    assert [row["threads"] for row in table.rows] == [torch.get_num_threads()] * 3
    assert calls(tmp_path)[folder_name(configs[0])] == 1


# ---------------------------------------------------------------------------------------- the table


def test_means_and_standard_errors_by_hand(tmp_path):
    table = quiet(
        measure, grid(Config, lr=[0.1, 0.2]), tmp_path, seeds=(0, 1, 5), higher=("share",)
    )
    assert table.flags == ("lr",)
    assert table.figures == ("W1", "share", "threads")  # neither lists nor flags
    second = table.rows[1]
    assert (second["lr"], second["runs"], second["error"]) == (0.2, 3, "")
    # 0.2, 0.4 and 1.2: mean 0.6, squares of the differences 0.16 + 0.04 + 0.36 = 0.56
    assert second["W1"] == pytest.approx(0.6, rel=1e-14)
    assert second["W1 se"] == pytest.approx(math.sqrt(0.56 / 2 / 3), rel=1e-14)
    assert second["share se"] == 0
    assert table.best == {"W1": 0, "share": 1}  # and none where all are the same
    head, _, one, two, *notes = str(table).splitlines()
    assert head.split() == ["lr", "runs", "W1", "share", "threads", "seconds"]
    assert "0.3 ± 0.2 *" in one
    assert "0.6 ± 0.3  " in two
    assert "2 ± 0 *" in two
    assert notes[0] == "* the best of its column"
    assert "standard error" in notes[1]


def test_a_row_of_some_seeds_is_of_those(tmp_path):
    def moody(config, folder):
        if config.seed == 1:
            raise ValueError("not today")
        return measure(config, folder)

    table = quiet(moody, [Config()], tmp_path, seeds=(0, 1, 2))
    assert table.rows[0]["runs"] == 2
    assert table.rows[0]["W1"] == pytest.approx(0.2, rel=1e-14)
    assert "seed=1" in table.rows[0]["error"]
    assert table.best == {}


def test_the_file_has_what_the_table_has(tmp_path):
    table = quiet(measure, grid(Config, lr=[0.1, 0.2], seed=[0, 1]), tmp_path / "sweep")
    table.to_csv(tmp_path / "table.csv")
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["W1"]) for row in rows] == [row["W1"] for row in table.rows]
    assert list(rows[0]) == [
        "lr",
        "runs",
        "error",
        *(key for name in table.figures for key in (name, f"{name} se")),
        "seconds",
    ]


def test_damaged_and_foreign_summaries_are_refused(tmp_path):
    path = tmp_path / folder_name(Config()) / "summary.json"
    path.parent.mkdir(parents=True)
    for text, word in (("{", "damaged"), ("[]", "damaged"), ('{"config": {"lr": 1}}', "another")):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=word):
            quiet(measure, [Config()], tmp_path)


FORKING = type(
    "Forking", (ThreadPoolExecutor,), {"_mp_context": multiprocessing.get_context("fork")}
)
NOWHERE = Path("nowhere")

test_bad_input = bad_input(
    [
        ("no field", lambda: grid(Config, rate=[1]), ValueError, ["choices", "'rate'", "lr"]),
        ("bare string", lambda: grid(Config, name="ab"), TypeError, ["name", "'ab'"]),
        ("a number", lambda: grid(Config, lr=0.1), TypeError, ["lr", "0.1"]),
        ("no values", lambda: grid(Config, lr=[]), ValueError, ["lr", "at least one"]),
        ("no dataclass", lambda: grid(dict, lr=[1]), TypeError, ["base", "dict"]),
        ("no config", lambda: sweep(measure, [], NOWHERE), ValueError, ["configs", "at least one"]),
        ("a class", lambda: sweep(measure, [Config], NOWHERE), TypeError, ["configs", "Config"]),
        ("not frozen", lambda: sweep(measure, [Loose()], NOWHERE), TypeError, ["configs", "Loose"]),
        (
            "two classes",
            lambda: sweep(measure, [Config(), Rich()], NOWHERE),
            TypeError,
            ["configs", "Config and Rich"],
        ),
        ("twice", lambda: sweep(measure, [Config()] * 2, NOWHERE), ValueError, ["differ"]),
        (
            "same seed",
            lambda: sweep(measure, [Config()], NOWHERE, seeds=(1, 1)),
            ValueError,
            ["seeds"],
        ),
        ("no seeds", lambda: sweep(measure, [Config()], NOWHERE, seeds=()), ValueError, ["seeds"]),
        (
            "seeds of what has none",
            lambda: sweep(measure, [Rich()], NOWHERE, seeds=(0,)),
            ValueError,
            ["seed", "Rich"],
        ),
        (
            "nameless",
            lambda: sweep(measure, [Rich(Nameless())], NOWHERE),
            TypeError,
            ["loss", "repr", "Nameless"],
        ),
        ("no function", lambda: sweep("run", [Config()], NOWHERE), TypeError, ["run", "'run'"]),
        (
            "higher",
            lambda: sweep(measure, [Config()], NOWHERE, higher="W1"),
            TypeError,
            ["higher", "W1"],
        ),
        (
            "progress",
            lambda: sweep(measure, [Config()], NOWHERE, progress=1),
            TypeError,
            ["progress"],
        ),
        (
            "executor",
            lambda: sweep(measure, [Config()], NOWHERE, executor=2),
            TypeError,
            ["executor", "2"],
        ),
        (
            "forking",
            lambda: sweep(measure, [Config()], NOWHERE, executor=FORKING()),
            ValueError,
            ["executor", "fork"],
        ),
    ]
)


def test_nothing_was_made():
    assert not NOWHERE.exists()
