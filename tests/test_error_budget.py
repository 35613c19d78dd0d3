import csv
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import sdekit as sk
from sdekit import VP, GaussianMixture, OrnsteinUhlenbeck, error_budget, metrics, sample
from sdekit.data import ring, two_mode
from sdekit.denoisers import Denoiser
from sdekit.sampling import DDIM, Ancestral, EulerMaruyama, FlowODE, UniPC

LINE = two_mode()
#: Away from the priors in mean and variance.
FAR = GaussianMixture([0.3, 0.7], [0.0, 2.0], 0.3)
PARTS = ["score error", "prior mismatch", "discretisation", "truncation"]


class Shifted(Denoiser):
    """An exact model whose score is off by a constant."""

    def __init__(self, exact, shift):
        self.process, self.prediction, self.exact, self.shift = exact.process, "score", exact, shift

    def predict(self, x, t, **conditions):
        return self.exact.score(x, t) + self.shift


@pytest.fixture
def float64():
    """States in double precision, so that rounding hides in no tolerance."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def signed_mean(x, law):
    return float(x.double().mean() - law.mean)


def signed_variance(x, law):
    return float(x.double().var() - law.covariance)


def by_part(budget):
    return {row["part"]: row for row in budget.rows}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("sampler", [DDIM(), UniPC(), EulerMaruyama(), Ancestral()], ids=repr)
def test_parts_of_the_moments_are_those_of_the_exact_laws(sampler):
    """On Gaussian data every set's law is known: each part to 4 standard errors of 40 seeds."""
    process, (mean, std) = VP(0.1, 3.0), (0.7, 0.5)
    truth, wrong = GaussianMixture(None, [mean], std), GaussianMixture(None, [0.9], 0.6)
    budget = error_budget(
        wrong.denoiser(process), truth, sampler=sampler, steps=8, grid="uniform", t_end=0.05,
        metrics={"mean": signed_mean, "variance": signed_variance}, n=1_000, seeds=range(40),
    )  # fmt: skip
    plan = sampler.plan(process, sk.samplers.GRIDS["uniform"].times(process, 8, 1.0, 0.05))
    end = truth.at(process, 0.05)
    laws = [
        plan.gaussian_law(0.9, 0.36),
        plan.gaussian_law(mean, std**2),
        plan.gaussian_law(mean, std**2, start="exact"),
        (end.mean, end.covariance),
        (mean, std**2),
    ]
    moments = np.array([[float(m), float(v)] for m, v in laws])
    expected = dict(zip(PARTS, moments[:-1] - moments[1:], strict=True))
    expected |= {"total": moments[0] - moments[-1], "floor of exact samples": (0, 0)}
    for part, row in by_part(budget).items():
        for name, value in zip(("mean", "variance"), expected[part], strict=True):
            assert abs(row[name] - value) <= 4 * row[f"{name} se"], (part, name)
    # The parts are of a size to be seen, and their errors small since the sets share their numbers.
    for part in set(PARTS) - {"discretisation"}:
        assert abs(by_part(budget)[part]["mean"]) > 4 * by_part(budget)[part]["mean se"]


CASES = {
    "discretisation": (LINE.denoiser(VP()), {"sampler": DDIM(), "steps": 5, "t_end": 1e-4}),
    "prior mismatch": (
        FAR.denoiser(VP(0.1, 2.0)),
        {"sampler": UniPC(), "steps": 150, "t_end": 1e-4},
    ),
    "score error": (
        Shifted(LINE.denoiser(VP()), 0.15),
        {"sampler": UniPC(), "steps": 150, "t_end": 1e-4},
    ),
    "truncation": (LINE.denoiser(VP()), {"sampler": UniPC(), "steps": 150, "t_end": 0.3}),
}


@pytest.mark.parametrize("part", CASES)
def test_where_one_part_is_wrong_the_budget_says_so(part):
    model, how = CASES[part]
    truth = FAR if part == "prior mismatch" else LINE
    rows = by_part(error_budget(model, truth, n=2_000, seeds=range(4), **how))
    for name in ("W1", "W2"):
        assert rows[part][name] > 0.04
        assert rows[part][name] > 10 * rows[part][f"{name} se"]
        for other in set(PARTS) - {part}:
            assert abs(rows[other][name]) < 0.02 * rows[part][name]
        floor = rows["floor of exact samples"][name]
        assert rows["total"][name] == pytest.approx(rows[part][name] + floor, rel=0.02)


def test_a_short_horizon_is_a_prior_mismatch_for_the_ou_process_too():
    process = OrnsteinUhlenbeck(horizon=1.0)
    how = {"sampler": UniPC(), "steps": 150, "t_end": 1e-4, "n": 2_000, "seeds": range(3)}
    rows = by_part(error_budget(FAR.denoiser(process), FAR, **how))
    others = [abs(rows[p]["W1"]) for p in PARTS if p != "prior mismatch"]
    assert rows["prior mismatch"]["W1"] > 0.05 > 50 * max(others)


@pytest.mark.parametrize("truth", [LINE, ring()], ids=["line", "plane"])
def test_an_exact_model_has_no_score_error_at_all(truth):
    rows = by_part(error_budget(truth.denoiser(VP()), truth, steps=4, n=500, seeds=(3, 4)))
    for key, value in rows["score error"].items():
        assert not isinstance(value, float) or key.endswith(("left", "left se")) or value == 0.0


@pytest.mark.parametrize("truth", [LINE, ring()], ids=["line", "plane"])
@pytest.mark.parametrize("sampler", [DDIM(), EulerMaruyama()], ids=repr)
def test_parts_and_floor_add_up_and_the_total_is_the_error_of_the_samples(truth, sampler):
    model, seeds = Shifted(truth.denoiser(VP()), 0.3), (5, 6, 7)
    budget = error_budget(model, truth, sampler=sampler, steps=6, n=400, seeds=seeds, t_end=0.02)
    rows = budget.rows
    assert [r["part"] for r in rows] == ["total", *PARTS, "floor of exact samples"]
    for name, metric in sk.comparison.default_metrics(truth).items():
        assert math.fsum(r[name] for r in rows[1:]) == pytest.approx(rows[0][name], rel=1e-12)
        for before, row in pairwise(rows[:-1]):
            assert before[f"{name} left"] - row[f"{name} left"] == pytest.approx(
                row[name], rel=1e-9
            )
        how = {"sampler": sampler, "steps": 6, "t_end": 0.02}
        errors = [metric(sample(model, (400, truth.dim), seed=s, **how).x, truth) for s in seeds]
        assert rows[0][name] == pytest.approx(np.mean(errors), rel=1e-12)
        assert rows[0][f"{name} se"] == pytest.approx(np.std(errors, ddof=1) / 3**0.5, rel=1e-12)
        assert rows[-1][name] == rows[-2][f"{name} left"]


@pytest.mark.parametrize("truth", [LINE, ring()], ids=["line", "plane"])
def test_the_last_row_is_the_floor_of_exact_samples(truth):
    """To 4 standard errors of both."""
    for name, metric in sk.comparison.default_metrics(truth).items():
        chosen = {name: metric}
        how = {"steps": 1, "n": 300, "seeds": range(40), "metrics": chosen}
        row = error_budget(truth.denoiser(VP()), truth, **how).rows[-1]
        floor = metrics.floor(metric, truth, 300, repeats=200)
        assert abs(row[name] - floor.mean) <= 4 * math.hypot(row[f"{name} se"], floor.stderr)


def test_in_the_plane_the_steps_are_told_from_the_rest():
    truth = ring()
    how = {"steps": 4, "n": 1_500, "seeds": range(4), "t_end": 1e-4}
    rows = by_part(error_budget(truth.denoiser(VP()), truth, **how))
    assert rows["discretisation"]["sliced W2"] > 4 * rows["discretisation"]["sliced W2 se"] > 0
    for part in ("prior mismatch", "truncation"):
        assert abs(rows[part]["sliced W2"]) < 0.02 * rows["discretisation"]["sliced W2"]


def test_exact_steps_leave_what_a_very_fine_solve_leaves():
    """The quantile map is the flow: fine steps from the same start differ from it by the solver's error."""
    how = {"n": 500, "seeds": (0, 1), "t_end": 0.01}
    fine = {"sampler": FlowODE(rtol=1e-9, atol=1e-9)}
    rows = by_part(error_budget(LINE.denoiser(VP()), LINE, **fine, **how))
    assert abs(rows["discretisation"]["W1"]) < 1e-5


def test_a_grid_of_times_and_an_end_at_zero():
    model, times = LINE.denoiser(VP()), [1.0, 0.6, 0.2, 0.05]
    given = error_budget(model, LINE, grid=times, steps=3, n=100, seeds=(0, 1))
    grid = sk.samplers.GRIDS["uniform"].times(VP(), 3, 1.0, 0.05)
    assert given.rows != error_budget(model, LINE, grid=grid, steps=3, n=100, seeds=(0, 1)).rows
    closed = by_part(error_budget(model, LINE, t_end=0.0, steps=10, n=100, seeds=(0, 1)))
    assert closed["truncation"]["W1"] == 0.0


def test_as_text_csv_and_frame(tmp_path, monkeypatch):
    budget = error_budget(LINE.denoiser(VP()), LINE, steps=3, n=100, seeds=(0, 1))
    lines = str(budget).splitlines()
    assert lines[0].split() == ["part", "swapped", "W1", "W1", "left", "W2", "W2", "left"]
    assert [line.split("  ")[0] for line in lines[2:]] == [r["part"] for r in budget.rows]
    assert "0.0000 ± 0.0000" in lines[3]
    assert "-0.0000" not in str(budget)
    assert len({len(line) for line in lines}) == 1
    assert len(budget.markdown().splitlines()) == 2 + 6
    budget.to_csv(tmp_path / "b.csv")
    with (tmp_path / "b.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [float(r["W1 left"]) for r in found] == [r["W1 left"] for r in budget.rows]
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ImportError, match=r"ErrorBudget.to_pandas needs pandas"):
        budget.to_pandas()


def test_it_is_a_function_of_the_seeds_and_leaves_global_randomness_alone():
    state = torch.get_rng_state()
    first, again, other = (
        error_budget(ring().denoiser(VP()), ring(), sampler=Ancestral(), steps=3, n=100, seeds=s)
        for s in ((1, 2), (1, 2), (3, 4))
    )
    assert first.rows == again.rows
    assert first.rows != other.rows
    assert torch.equal(torch.get_rng_state(), state)


def budget(model=None, truth=LINE, **keywords):
    return error_budget(LINE.denoiser(VP()) if model is None else model, truth, **keywords)


BAD = [
    (lambda: budget(VP()), TypeError, "denoiser must be a Denoiser, got VP"),
    (lambda: budget(truth=VP()), TypeError, "truth must be a GaussianMixture, got VP"),
    (lambda: budget(sampler="ddim"), TypeError, "sampler must be a Sampler"),
    (lambda: budget(steps=0), ValueError, "steps must be >= 1, got 0"),
    (lambda: budget(steps=True), TypeError, "steps must be an integer"),
    (lambda: budget(grid="unifrom"), ValueError, "grid must be one of"),
    (lambda: budget(grid=[1.0, 0.5], steps=1, t_end=0.5), ValueError, "leave out t_start and t_end"),
    (lambda: budget(n=1), ValueError, "n must be >= 2, got 1"),
    (lambda: budget(seeds=(0,)), ValueError, r"seeds must be at least two, .* got \(0,\)"),
    (lambda: budget(seeds=3), TypeError, "seeds must be a sequence, got 3"),
    (lambda: budget(seeds=(0, True)), TypeError, "seed must be an integer"),
    (lambda: budget(seeds=(0, None)), TypeError, "seed must be an integer"),
    (lambda: budget(t_end=1.0), ValueError, r"t_end must be a finite number in \[0, 1\)"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=range(len(BAD)))
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
