import math

import pytest
import torch
from scipy import stats

import sdekit as sk
from sdekit import checks
from sdekit.checks import fokker_planck_check, law_check, precision_audit
from sdekit.sampling import ALL, PlanSampler

TIMES = (0.05, 0.1, 0.25, 0.5, 1.0)


@pytest.fixture(scope="module")
def fine():
    return fokker_planck_check(800)


def test_the_pde_is_as_exact_as_promised(fine):
    assert [(r["equation"], r["t"]) for r in fine.rows] == [
        (name, t) for name in ("VP", "heat equation") for t in TIMES
    ]
    for row in fine.rows:
        assert 0 < row["l1"] <= 5e-7
        assert abs(row["mass"] - 1) <= 1e-13
        assert row["minimum"] >= -1e-12
        assert all(isinstance(row[k], float) for k in ("t", "l1", "mass", "minimum"))


def test_l1_errors_are_those_of_cell_averages_by_scipy(fine):
    for run, process_scale in zip(fine.runs, ("VP", "heat"), strict=True):
        edges = run.solution.edges
        for i, t in enumerate(TIMES):
            if process_scale == "VP":
                B = 0.1 * t + 9.95 * t * t
                alpha, noise = math.exp(-B / 2), -math.expm1(-B)
            else:
                alpha, noise = 1.0, 2 * t
            std = math.sqrt(alpha**2 * 0.16 + noise)
            mass = 0.0
            for weight, mean in ((0.3, -1.4), (0.7, 0.6)):
                mass = mass + weight * stats.norm.cdf(edges, alpha * mean, std)
            exact = mass[1:] - mass[:-1]
            found = run.solution.density[i] * (edges[1] - edges[0])
            assert run.l1_errors()[i] == pytest.approx(abs(found - exact).sum(), abs=1e-13)


def test_errors_fall_with_the_fourth_power_of_the_cell():
    coarse, fine = (fokker_planck_check(cells, tol=1e-11).rows for cells in (200, 400))
    for a, b in zip(coarse, fine, strict=True):
        assert 3.7 < math.log2(a["l1"] / b["l1"]) < 4.5, a


def test_tables_have_a_line_a_row(fine):
    text = str(fine).splitlines()
    assert text[0].split() == ["equation", "t", "L1", "error", "mass", "-", "1", "minimum"]
    assert len(text) == 2 + len(fine.rows)
    assert len({len(line) for line in text}) == 1
    markdown = fine.markdown().splitlines()
    assert len(markdown) == 2 + len(fine.rows)
    assert {line.count("|") for line in markdown} == {6}
    for line, row in zip(markdown[2:], fine.rows, strict=True):
        cells = [c.strip() for c in line.strip("|").split("|")]
        assert cells[0] == row["equation"]
        assert float(cells[1]) == row["t"]
        assert float(cells[2]) == pytest.approx(row["l1"], rel=0.05)


def test_laws_of_every_plan():
    rows = law_check(20_000, steps=10, seed=1)
    assert [r["sampler"] for r in rows] == [repr(s) for s in ALL if isinstance(s, PlanSampler)]
    for row in rows:
        # Four standard errors of the sample mean and of the sample variance.
        assert abs(row["z_mean"]) < 4
        assert abs(row["z_variance"]) < 4
    assert rows == law_check(20_000, steps=10, seed=1)


def test_a_wrong_law_is_noticed(monkeypatch):
    real = checks.sample

    def off(*arguments, **keywords):
        out = real(*arguments, **keywords)
        out.x.add_(0.02)
        return out

    monkeypatch.setattr(checks, "sample", off)
    for row in law_check(20_000, steps=10):
        # 0.02 is 0.02 / sqrt(variance / n) standard errors, give or take four.
        assert row["z_mean"] == pytest.approx(0.02 / math.sqrt(row["variance"] / 20_000), abs=4)


BAD = [
    (lambda: fokker_planck_check(7), ValueError, "cells must be >= 8, got 7"),
    (lambda: fokker_planck_check(800.0), TypeError, "cells must be an integer"),  # type: ignore[arg-type]
    (lambda: fokker_planck_check(True), TypeError, "cells must be an integer"),
    (lambda: fokker_planck_check(50), ValueError, "at least 120 cells, got 50"),
    (lambda: fokker_planck_check(200, tol=0.0), ValueError, "tol must be"),
    (lambda: law_check(1), ValueError, "n must be >= 2, got 1"),
    (lambda: law_check(torch.ones(2)), TypeError, "n must be an integer"),  # type: ignore[arg-type]
    (lambda: law_check(10, steps=0), ValueError, "steps must be >= 1"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=range(len(BAD)))
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


PLANS = [s for s in ALL if isinstance(s, PlanSampler)]


@pytest.mark.parametrize("sampler", PLANS, ids=repr)
@pytest.mark.parametrize("process", [sk.VP(), sk.EDM()], ids=repr)
def test_single_precision_is_enough(process, sampler):
    """1e-5 of the scale at 100 steps, and as much for every 100 calls that these steps cost."""
    target = sk.GaussianMixture([0.3, 0.7], [-1.4, 0.6], 0.4)
    found = precision_audit(target.denoiser(process), sampler, (200, 1))
    times = sampler.grid.times(process, 100, process.t_max, 1e-3 * process.horizon)
    calls = sampler.plan(process, times).nfe
    assert 0 < found.worst < 1e-5 * found.scale * max(1, calls / 100)
    assert found.median <= found.worst
    assert repr(sampler) in str(found)


def test_the_audit_sees_lost_digits():
    """A model that rounds to half precision on its way in single precision."""

    class Coarse(sk.Denoiser):
        process = sk.VP()

        def predict(self, x, t, **conditions):
            return x.half().float() * 0.3 if x.dtype == torch.float32 else x * 0.3

    found = precision_audit(Coarse(), sk.samplers.DDIM(), (100, 2))
    assert found.worst > 1e-5 * found.scale
