import csv
import json
import math
import re
from dataclasses import replace

import pytest

from sdekit import cli, compare, samplers
from sdekit.data import spiral, two_mode
from sdekit.demo import QUICK, Budget, Report, demo_samplers, run_demo
from sdekit.processes import VP
from sdekit.training import minimum_loss

RUNS = {"two-mode": QUICK.steps_1d, "spiral": QUICK.steps_2d, "digits": QUICK.steps_images}


def numbers(value):
    """Every number in nested lists and dictionaries."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [n for v in value for n in numbers(v)]
    return [value] if isinstance(value, (int, float)) else []


def checkpoints(out):
    return {p: p.stat().st_mtime_ns for p in sorted(out.glob("*/checkpoints/*"))}


def check_page(out):
    page = (out / "index.md").read_text()
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page)
    assert len(pictures) == len(set(pictures)) >= 9
    for name in pictures:
        assert (out / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert sorted(pictures) == sorted(p.name for p in out.glob("*.png"))
    assert page.startswith("# ")
    assert page.count("\n## ") == 4
    assert "nan" not in page.lower().split()
    assert "failed" not in page
    for block in re.findall(r"(?:^\|.*\|\n)+", page, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1
    return page


def check_tables(out, counts):
    for problem, metric, finest in (
        ("two-mode", "W1", two_mode().narrowest),
        ("spiral", "sliced W2", spiral().narrowest),
    ):
        for label in ("exact-score", "trained-network"):
            with (out / f"{problem}-{label}.csv").open(newline="") as file:
                rows = list(csv.DictReader(file))
            assert [(r["sampler"], int(r["steps"])) for r in rows] == [
                (repr(s), c)
                for s in demo_samplers(finest)
                for c in (counts if s.nfe_per_step else counts[-1:])
            ]
            assert all(not r["error"] and float(r[metric]) > 0 for r in rows)


@pytest.mark.slow
def test_quick_demo_from_end_to_end_and_once_more(tmp_path, capsys):
    pytest.importorskip("sklearn")
    out = tmp_path / "new" / "demo"
    assert cli.main(["demo", "--quick", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.count("== ") == 4
    assert f"wrote {out / 'index.md'}" in said
    page = check_page(out)
    check_tables(out, QUICK.counts)

    summary = json.loads((out / "summary.json").read_text())
    assert {"two-mode", "spiral", "digits", "seconds"} <= summary.keys()
    # Rows have no standard error where there is one seed, and no overhead a step where the solver
    # chooses its steps; every other number is there.
    for problem in ("two-mode", "spiral"):
        for label in ("exact score", "trained network"):
            for row in summary[problem][label]:
                for key in [k for k in row if k.endswith(" se") or k == "overhead us"]:
                    row.pop(key)
    assert all(math.isfinite(n) for n in numbers(summary))
    least = summary["two-mode"]["least_loss"]
    assert least == pytest.approx(minimum_loss(two_mode(), VP()), rel=1e-9)
    assert f"{least:.5f}" in page
    for name in ("two-mode", "spiral"):
        assert summary[name]["excess_loss"] > 4 * summary[name]["excess_loss_se"] > 0
    before = checkpoints(out)
    assert [p.name for p in before] == [f"step-{RUNS[p.parts[-3]]:08d}" for p in before]
    assert {p.parts[-3] for p in before} == RUNS.keys()

    # Again, with less to measure: the networks are those of the first run.
    lines = []
    run_demo(out, budget=replace(QUICK, counts=(2, 3), n=100), say=lines.append)
    assert checkpoints(out) == before
    assert sum(line.startswith("== ") for line in lines) == 4
    check_page(out)
    check_tables(out, (2, 3))
    again = json.loads((out / "summary.json").read_text())
    for name in ("two-mode", "spiral"):
        assert again[name]["excess_loss"] == summary[name]["excess_loss"]
    assert again["digits"]["final_loss"] == summary["digits"]["final_loss"]


def test_the_summary_is_json_as_the_standard_has_it(tmp_path):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    target = two_mode()
    rows = compare(
        target.denoiser(VP()), [samplers.DDIM()], [2], target, n=50, floor_repeats=2
    ).rows
    Report(tmp_path, {"two-mode": {"exact score": rows}}).write()
    text = (tmp_path / "summary.json").read_text()
    found = json.loads(text, parse_constant=refuse)["two-mode"]["exact score"][0]
    assert found["W1"] == rows[0]["W1"]
    assert found["W1 se"] is None


def test_samplers_of_the_demo():
    used = demo_samplers(0.1)
    assert len({type(s) for s in used}) == len(used) == 5
    corrector = next(s for s in used if isinstance(s, samplers.PredictorCorrector))
    assert corrector.data_std == 0.1


def test_the_quick_budget_is_smaller_in_everything():
    full = Budget()
    for name in ("steps_1d", "steps_2d", "steps_images", "n", "seeds"):
        assert getattr(QUICK, name) < getattr(full, name)
    assert max(QUICK.counts) < max(full.counts)
