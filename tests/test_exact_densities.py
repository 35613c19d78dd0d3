"""The benchmark of exact densities measures what it says, and its quick part runs."""

import csv
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import sdekit as sk

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import density_peers
import exact_densities as bench


@pytest.mark.parametrize("problem", bench.PROBLEMS, ids=lambda p: p.name)
def test_exact_averages_and_values_agree_by_quadrature(problem):
    """Ten Gauss-Legendre points in each of 200 cells: far below round-off for these densities."""
    edges = problem.edges(200)
    nodes, weights = np.polynomial.legendre.leggauss(10)
    middle, half = (edges[1:] + edges[:-1]) / 2, (edges[1] - edges[0]) / 2
    for t in (0.0, *problem.times):
        points = problem.scale(t) * (middle[:, None] + half * nodes)
        averages = problem.values(t, points.ravel()).reshape(points.shape) @ weights / 2
        np.testing.assert_allclose(problem.averages(t, edges), averages, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("problem", bench.PROBLEMS, ids=lambda p: p.name)
def test_order_error_and_mass(problem):
    found = bench.with_orders([bench.accuracy(problem, n, 1e-10) for n in (150, 300)])
    assert {r["scheme"] for r in found} == {"fv4" if "steps" in problem.name else "exponential"}
    assert found[0]["order"] is None
    assert 3.8 < found[1]["order"] < 4.2
    assert max(r["mass error"] for r in found) < 1e-14
    usual = bench.accuracy(problem, 800, None, budget=1e-3)
    assert bench.largest(usual) < 5e-7
    assert usual["ms"] > 0


def test_orders_are_of_one_process():
    rows = [("a", 100, 16.0), ("a", 200, 1.0), ("b", 100, 3.0)]
    records = [{"process": p, "cells": n, "L1 at 1": e} for p, n, e in rows]
    assert [r["order"] for r in bench.with_orders(records)] == [None, 4.0, None]


def test_errors_are_held_in_the_unknowns_of_the_solver():
    edges = bench.VP.edges(50)
    h, shift = edges[1] - edges[0], 1e-3
    kinds = {"averages": None, "values": edges}
    for x in kinds.values():
        truth = [
            bench.VP.averages(t, edges) if x is None else bench.VP.values(t, x)
            for t in bench.VP.times
        ]
        rows = np.stack(truth)
        rows[1, 3] += shift
        solver = density_peers.Solver("some", "setting", 50, lambda r=rows: lambda: r, x)
        assert bench.error_of(bench.VP, solver, rows) == pytest.approx(shift * h, rel=1e-9)
        (record,) = bench.timed(bench.VP, [solver], budget=1e-4, passes=1)
        assert record["error"] == pytest.approx(shift * h, rel=1e-9)
        rows[0, 0] = math.nan
        assert bench.error_of(bench.VP, solver, rows) == math.inf


def test_costs_are_compared_at_equal_error():
    rows = [
        ("sdekit", 1e-5, 2.0),
        ("sdekit", 1e-7, 8.0),
        ("sdekit by steps", 1e-9, 10.0),
        ("one", 1e-5, 30.0),
        ("one", 1e-8, 40.0),
        ("one + two", 1e-6, 20.0),
        ("slow", 1e-9, 99.0),
    ]
    usual = {"process": "VP", "setting": "s", "cells": 1}
    records = [usual | {"library": a, "error": e, "ms": t} for a, e, t in rows]
    by_bound = {r["error at most"]: r for r in bench.at_equal_error(records)}
    assert by_bound[1e-5]["best peer"] == "one + two"
    assert by_bound[1e-5]["ratio"] == 10.0
    assert by_bound[1e-5]["best library alone"] == "one"
    assert by_bound[1e-5]["ratio alone"] == 15.0
    assert {r["by steps"] for r in by_bound.values()} == {10.0}
    assert by_bound[1e-7]["ratio"] == by_bound[1e-7]["ratio alone"] == 5.0
    assert 5e-8 not in by_bound  # none of ours is that near
    assert [r["ms"] for r in bench.front(records)] == [2.0, 8.0, 10.0]


def test_the_clock_of_the_peers():
    """In tau the decay of the means is e^-tau, for VP; heat keeps its own time."""
    for t in bench.VP.times:
        tau = density_peers.clock(bench.VP, t)
        assert bench.VP.process.alpha(t) == pytest.approx(math.exp(-tau), rel=1e-14)
        assert density_peers.clock(bench.HEAT, t) == t
    assert bench.VP.process == sk.VP(0.1, 20.0)  # the beta that py-pde's expression has


def test_what_is_lent_to_a_module_is_taken_back():
    module = ModuleType("module")
    with density_peers.lent(module, "product", math.prod):
        assert module.product([2, 3]) == 6
        with density_peers.lent(module, "product", None):
            assert module.product([2, 3]) == 6  # its own is kept
    assert not hasattr(module, "product")


@pytest.mark.parametrize("problem", [bench.VP, bench.HEAT], ids=lambda p: p.name)
def test_findiff_solves_the_same_equation(problem):
    """The orders of its stencils in the cells, and two time steppers that agree."""
    pytest.importorskip("findiff")
    for make, setting in ((density_peers.crank_nicolson, 400), (density_peers.lines, 1e-8)):
        errors = []
        for cells in (100, 200):
            solver = make(problem, cells, 4, setting)
            errors.append(bench.error_of(problem, solver, solver.prepare()()))
        assert 3.7 < math.log2(errors[0] / errors[1]) < 4.3


@pytest.mark.parametrize("problem", [bench.VP, bench.HEAT], ids=lambda p: p.name)
def test_fplanck_solves_the_same_equation(problem):
    pytest.importorskip("fplanck")
    errors = []
    for cells in (60, 120):
        solver = density_peers.master_equation(problem, cells)
        errors.append(bench.error_of(problem, solver, solver.prepare()()))
    assert 1.7 < math.log2(errors[0] / errors[1]) < 2.3


def test_torchdiffeq_alone_finds_the_exact_likelihood():
    points = bench.TARGET.at(sk.VP(), bench.T_END).sample(16, seed=0)
    truth = bench.TARGET.at(sk.VP(), bench.T_END).log_prob(points)
    end, model = bench.TARGET.at(sk.VP(), 1.0), bench.TARGET.denoiser(sk.VP())
    value, nfe = bench.by_torchdiffeq(model, points, end, 1e-8)
    assert (value - truth).abs().max() < 1e-6
    assert nfe > 50


def test_likelihoods_are_compared_at_one_tolerance():
    points = bench.TARGET.at(sk.VP(), bench.T_END).sample(16, seed=0)
    loose, tight = (bench.calls(points, 10.0**-k) for k in (5, 7))
    for record in (loose, tight):
        assert 0.5 < record["calls"] / record["torchdiffeq calls"] < 2
    assert tight["error"] < loose["error"] / 10
    assert tight["error"] < 1e-5


def test_the_law_of_euler_maruyama_closes_in_at_its_order():
    fifty, hundred = (bench.law_of(n) for n in (50, 100))
    orders = {name: math.log2(fifty[name] / hundred[name]) for name in bench.DISTANCES}
    assert orders["KL"] == pytest.approx(2, abs=0.1)
    assert [orders[name] for name in ("TV", "W1", "W2")] == pytest.approx([1, 1, 1], abs=0.1)
    for record in (fifty, hundred):
        assert record["doubled"] < 1e-6  # six digits
        assert record["law.error"] < 1e-9
        assert record["alarms"] == ""


def test_the_equation_is_written_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "QUICK", (100, 150))
    monkeypatch.setattr(bench, "least_seconds", lambda *_: 1.0)
    bench.main(["--quick", "--parts", "equation", "--out", str(tmp_path)])
    for name in ("equation", "order"):
        with (tmp_path / f"{name}.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert {r["process"] for r in rows} == {p.name for p in bench.PROBLEMS}
        assert (tmp_path / f"{name}.md").read_text().count("\n") == len(rows) + 2
    assert (tmp_path / "equation.png").stat().st_size > 20_000


def test_ours_are_compared_and_drawn(tmp_path, monkeypatch):
    slower = [
        replace(s, library="another", prepare=lambda s=s: lambda: s.prepare()())
        for s in density_peers.ours(bench.VP, quick=True)
    ]
    monkeypatch.setattr(density_peers, "solvers", lambda *_, **__: slower)
    monkeypatch.setattr(bench, "least_seconds", lambda *_: 1.0)
    bench.main(["--quick", "--peers", "--parts", "--out", str(tmp_path)])
    with (tmp_path / "peers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {r["library"] for r in rows} == {"sdekit", "sdekit by steps", "another"}
    assert (tmp_path / "peers_at_equal_error.md").exists()
    assert (tmp_path / "peers.png").stat().st_size > 20_000


def test_a_quick_law_and_likelihood_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "EM_STEPS", (10, 20, 30, 40))
    monkeypatch.setattr(bench, "least_seconds", lambda *_: 1.0)
    bench.main(["--quick", "--parts", "sampler", "likelihood", "--out", str(tmp_path)])
    for name in ("sampler", "likelihood", "divergence"):
        assert (tmp_path / f"{name}.csv").exists()
    assert (tmp_path / "sampler.png").stat().st_size > 20_000
