"""The benchmark of samplers against model calls measures what it says, and its quick part runs."""

import csv
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import sdekit as sk

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import samplers_vs_steps as bench

DETERMINISTIC = [s for s in bench.SAMPLERS if not s.stochastic]
#: Formulas in t or in the states of the process itself; all others know y = x / alpha and log-SNR only.
OF_THE_PROCESS = (sk.samplers.DEIS, sk.samplers.VelocityAB)


def measured(sampler, world, steps):
    return bench.EndpointRun("two-mode", world, sampler, steps, 256, repr(sampler)).measure()


@pytest.mark.parametrize("sampler", DETERMINISTIC, ids=repr)
def test_endpoints_converge_at_the_declared_order(sampler):
    """From 100 to 200 steps, far above rounding; the straight path from a start of its order."""
    if getattr(sampler, "prediction", "") == "flow":
        sampler = replace(sampler, start="single-step")
    for world in bench.WORLDS if isinstance(sampler, OF_THE_PROCESS) else ("VP",):
        errors = [measured(sampler, world, steps)[bench.MEDIAN] for steps in (100, 200)]
        assert math.log2(errors[0] / errors[1]) > sampler.order - 0.25, world


def test_the_two_processes_are_one_flow():
    """What is written in y = x / alpha and log-SNR cannot tell VP from EDM, on a grid of log-SNR."""
    same = [s for s in DETERMINISTIC if not isinstance(s, OF_THE_PROCESS)]
    same = [s for s in same if getattr(s, "prediction", "data") == "data"]
    assert len(same) > 8
    for sampler in same:
        vp, edm = (measured(sampler, world, 20) for world in bench.WORLDS)
        assert edm[bench.RMS] == pytest.approx(vp[bench.RMS], rel=1e-8), sampler


def test_an_exact_solve_meets_the_endpoints_of_both_processes():
    for world in bench.WORLDS:
        tight = sk.samplers.FlowODE("dopri8", rtol=1e-11, atol=1e-11)
        assert measured(tight, world, 1)[bench.RMS] < 1e-8


def test_budgets_are_kept_and_used():
    for sampler in bench.SAMPLERS:
        if not isinstance(sampler, sk.samplers.PlanSampler):
            continue
        for world, (process, _) in bench.WORLDS.items():
            for budget in bench.QUICK:
                steps = bench.steps_within(sampler, world, budget)
                calls = sampler.plan(process, bench.times_of(sampler, world, steps)).nfe
                assert 0.7 * budget <= calls <= budget, (sampler, world, budget)


def test_no_sampler_is_missing():
    types = {*map(type, bench.SAMPLERS), *map(type, bench.ADAPTIVE)}
    left_out = {type(s).__name__ for s in sk.samplers.ALL if type(s) not in types}
    assert left_out == {"ParallelInTime", "TorchSDE"}
    assert all(f"`{name}()`" in (bench.__doc__ or "") for name in left_out)


def test_samples_have_every_budget_and_go_on_from_a_file(tmp_path, monkeypatch):
    chosen = (sk.samplers.DDIM(), sk.samplers.EDMHeun(), sk.samplers.Restart())
    monkeypatch.setattr(bench, "SAMPLERS", chosen)
    journal = tmp_path / "runs.jsonl"
    tables = [
        bench.samples("two-mode", "EDM", (20, 50), 500, (0, 1), resume=journal) for _ in range(2)
    ]
    assert len(journal.read_text().splitlines()) == 1 + 3 * 2 * 2
    assert tables[0].rows == tables[1].rows
    rows = tables[0].rows
    assert [r["sampler"] for r in rows] == [repr(s) for s in chosen for _ in range(2)]
    assert all(r["nfe"] <= budget for r, budget in zip(rows, (20, 50) * 3, strict=True))
    assert not any(r["error"] for r in rows)


def test_the_endpoints_of_one_problem_are_written_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "SAMPLERS", bench.CHOSEN[:3])
    bench.main(["--quick", "--views", "endpoints", "--out", str(tmp_path)])
    with (tmp_path / "two-mode-endpoints-VP.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {r["sampler"] for r in rows} >= {repr(s) for s in bench.CHOSEN[:3]}
    assert {int(r["nfe"]) for r in rows if r["sampler"] == "DDIM(eta=0.0)"} == set(bench.QUICK)
    for picture in ("error-against-nfe", "two-mode-endpoints-RMS-endpoint-error"):
        assert (tmp_path / f"{picture}.png").stat().st_size > 20_000
