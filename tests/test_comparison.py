import csv
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from sdekit import VP, metrics, samplers
from sdekit.comparison import compare, default_metrics, short_name, short_names
from sdekit.data import ring, two_mode
from sdekit.denoisers import Denoiser
from sdekit.errors import NumericsError
from sdekit.sampling import (
    DDIM,
    Ancestral,
    EulerMaruyama,
    FlowODE,
    PredictorCorrector,
    Sampler,
    TorchSDE,
)

TARGET = two_mode()
EXACT = TARGET.denoiser(VP())


class Counting(Denoiser):
    """The exact model, which counts its own calls."""

    def __init__(self):
        self.process, self.prediction, self.calls = EXACT.process, EXACT.prediction, 0

    def predict(self, x, t, **conditions):
        self.calls += 1
        return EXACT.predict(x, t, **conditions)


@dataclass(frozen=True)
class Failing(Sampler):
    """Diverges at once, with a message that would break a table."""

    def program(self, denoiser, times, final):
        def program(engine, x):
            raise NumericsError("lost | at\nonce")

        return program


#: Instant, where the point is not the distance.
MOMENTS = {
    "mean": lambda x, law: abs(float(x.mean()) - float(law.mean)),
    "square": lambda x, law: abs(float(x.square().mean()) - 1),
}


def quick(used, counts=(4,), **keywords):
    defaults = {"metrics": MOMENTS, "n": 200, "floor_repeats": 3}
    return compare(EXACT, used, counts, TARGET, **{**defaults, **keywords})


def documented(sampler, steps):
    """Calls by the documentation: so many a step; torchsde makes one more, to check shapes."""
    return steps * sampler.nfe_per_step + isinstance(sampler, TorchSDE)


@pytest.mark.parametrize("sampler", samplers.ALL, ids=repr)
def test_nfe_is_what_the_model_sees_and_what_is_documented(sampler):
    model = Counting()
    table = compare(model, [sampler], [7], TARGET, metrics=MOMENTS, n=50, floor_repeats=2)
    assert table.rows[0]["nfe"] == model.calls
    if sampler.nfe_per_step is not None:
        assert model.calls == documented(sampler, 7)


def test_rows_are_samplers_by_steps_and_adaptive_solvers_run_once():
    used = [EulerMaruyama(), FlowODE(), FlowODE(method="rk4"), PredictorCorrector()]
    table = quick(used, [2, 4, 8])
    assert [(r["sampler"], r["steps"]) for r in table.rows] == [
        (repr(s), c) for s in used for c in ((8,) if s == FlowODE() else (2, 4, 8))
    ]
    assert all(not r["error"] and r["seconds"] > 0 for r in table.rows)


def test_rows_are_a_function_of_the_seeds():
    first, again, other = (
        [{**r, "seconds": 0} for r in quick(samplers.ALL, seeds=seeds).rows]
        for seeds in ((3, 4), (3, 4), (5, 6))
    )
    assert first == again
    for a, b in zip(first, other, strict=True):
        assert a["mean"] != b["mean"]


def test_mean_and_standard_error_over_seeds():
    seeds = (0, 1, 2, 9)
    single = [quick([Ancestral()], seeds=(s,)).rows[0] for s in seeds]
    row = quick([Ancestral()], seeds=seeds).rows[0]
    for name in MOMENTS:
        values = np.array([r[name] for r in single])
        assert row[name] == pytest.approx(values.mean(), rel=1e-12)
        assert row[f"{name} se"] == pytest.approx(values.std(ddof=1) / 2, rel=1e-12)
        assert all(math.isnan(r[f"{name} se"]) for r in single)


def test_values_are_the_metric_of_the_samples_from_the_law_at_the_end():
    for t_end in (None, 0.05, 0.0):
        table = quick([DDIM()], metrics=None, seeds=(7,), t_end=t_end)
        end = 1e-3 if t_end is None else t_end
        out = samplers.sample(EXACT, (200, 1), sampler=DDIM(), steps=4, t_end=end, seed=7)
        for p in (1, 2):
            exact = metrics.wasserstein_1d(out.x, TARGET.at(VP(), end), p=p)
            assert table.rows[0][f"W{p}"] == exact


@pytest.mark.parametrize("truth", [TARGET, ring()], ids=["line", "plane"])
def test_floors_are_what_exact_samples_score(truth):
    table = compare(truth.denoiser(VP()), [DDIM()], [3], truth, n=150, floor_repeats=5)
    law = truth.at(VP(), 1e-3)
    assert set(table.floors) == set(default_metrics(truth)) == set(table.metric_names)
    for name, metric in default_metrics(truth).items():
        floor = metrics.floor(metric, law, 150, repeats=5)
        assert table.floors[name] == (floor.mean, floor.quantile95)
        assert 0 < floor.mean < table.rows[0][name]


def test_the_sliced_distance_is_to_one_set_of_exact_samples():
    truth = ring()
    table = compare(truth.denoiser(VP()), [DDIM()], [3], truth, n=150, floor_repeats=2, seeds=(4,))
    out = samplers.sample(truth.denoiser(VP()), (150, 2), sampler=DDIM(), steps=3, seed=4)
    reference = truth.at(VP(), 1e-3).sample(150, seed=2**31)
    expected = metrics.sliced_wasserstein(out.x.double(), reference, p=2)
    assert table.rows[0]["sliced W2"] == expected


def test_error_falls_with_the_steps():
    table = quick([EulerMaruyama()], [10, 200], metrics=None, n=5_000, floor_repeats=20)
    coarse, fine = table.rows
    for name in ("W1", "W2"):
        high = table.floors[name][1]
        assert coarse[name] > 2 * high
        assert fine[name] < high  # not to be told from exact samples


def test_a_sampler_that_fails_is_a_row_and_the_rest_runs():
    table = quick([TorchSDE(), Failing(), DDIM()], grid="karras", seeds=(0, 1))
    wrong, lost, right = table.rows
    assert wrong["error"].startswith("ValueError: TorchSDE takes equal steps")
    assert lost["error"] == "NumericsError: lost | at\nonce"
    assert math.isnan(wrong["mean"])
    assert math.isnan(lost["square se"])
    assert not right["error"]
    assert right["mean"] > 0
    text = str(table).splitlines()
    assert text[2].split()[3:5] == ["failed", "failed"]
    assert text[-1] == "Failing(), 4 steps failed: NumericsError: lost | at once"
    assert table.markdown().endswith(f"\n\n{text[-1]}")
    assert {line.count("|") for line in table.markdown().splitlines()[:6]} == {7}


def test_csv_round_trip(tmp_path):
    table = quick([DDIM(), Failing()], [3, 4], seeds=(0, 1))
    table.to_csv(tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == [
        "sampler", "steps", "nfe", "error", "mean", "mean se", "square", "square se", "seconds",
    ]  # fmt: skip
    for row, read in zip(table.rows, found, strict=True):
        for key, value in row.items():
            kept = read[key] if isinstance(value, str) else type(value)(read[key])
            assert kept == value or (math.isnan(value) and math.isnan(kept))


def test_tables_as_text_are_well_formed():
    table = quick([EulerMaruyama(), FlowODE()], [2, 4], seeds=(0, 1))
    text, marks = str(table).splitlines(), table.markdown().splitlines()
    assert text[0].split() == ["sampler", "steps", "NFE", "mean", "square", "seconds"]
    assert len({len(line) for line in text}) == 1
    assert set(text[1]) == {"-"}
    assert len(text) == len(marks) == 2 + 3 + 1
    assert {line.count("|") for line in marks} == {7}
    for line, row in zip(marks[2:], table.rows, strict=False):
        cells = [c.strip() for c in line.strip("|").split("|")]
        assert cells[:3] == [short_name(row["sampler"]), str(row["steps"]), str(row["nfe"])]
        assert cells[3] == f"{row['mean']:.4f} ± {row['mean se']:.4f}"
    mean, square = (f"{table.floors[name][0]:.4f}" for name in MOMENTS)
    assert marks[-1] == f"| 200 exact samples |  |  | {mean} | {square} |  |"
    # One seed has no spread to show.
    assert "±" not in str(quick([DDIM()]))


def test_short_names_tell_samplers_apart():
    assert [short_name(repr(s)) for s in samplers.ALL] == [
        "EulerMaruyama()", "Ancestral(beta_tilde)", "Ancestral(beta)", "DDIM(eta=0.0)", "DDIM(eta=1.0)",
        "PredictorCorrector(EulerMaruyama)", "ExponentialAB(3)", "ExponentialAB(4)", "DPMSolverPP(2)",
        "DPMSolverPP(2)", "DPMSolverMultistep(2)", "DEIS(3)", "VelocityAB(3)", "UniPC(2)", "EDMHeun(0.0)",
        "DPMSolver(2)", "DPMSolver(3)", "ExponentialRK(krogstad)", "SigmaRungeKutta(rk4)",
        "LogSNRRungeKutta(rk4)",
        "FlowODE(dopri5)", "TorchSDE(euler)",
    ]  # fmt: skip
    loose, tight = FlowODE(), FlowODE(rtol=1e-9)
    names = short_names([repr(s) for s in (loose, tight, loose, DDIM())])
    assert names == {
        repr(loose): repr(loose),
        repr(tight): repr(tight),
        repr(DDIM()): "DDIM(eta=0.0)",
    }


def test_metrics_of_your_own():
    seen = []

    def mean_error(x, law):
        seen.append((x.shape, law))
        return abs(float(x.mean()) - float(law.mean))

    table = quick([DDIM()], metrics={"mean": mean_error}, seeds=(2,))
    out = samplers.sample(EXACT, (200, 1), sampler=DDIM(), steps=4, seed=2)
    assert table.metric_names == ("mean",)
    assert table.rows[0]["mean"] == pytest.approx(abs(out.x.mean().item()), rel=1e-5)
    assert len(seen) == 1 + 3  # the run and the draws of the floor
    assert all(shape == (200, 1) for shape, _ in seen)
    assert "mean" in str(table).splitlines()[0]


def test_progress_is_shown_where_wanted(capsys):
    quick([DDIM()])
    assert capsys.readouterr().err == ""
    quick([DDIM()], progress=True)
    assert "comparing: 100%" in capsys.readouterr().err


def test_global_randomness_is_left_alone():
    state = torch.get_rng_state()
    quick(samplers.ALL)
    assert torch.equal(torch.get_rng_state(), state)


BAD = [
    (lambda: quick([]), ValueError, "at least one sampler, one step count and one seed"),
    (lambda: quick([DDIM()], []), ValueError, "at least one sampler, one step count"),
    (lambda: quick([DDIM()], seeds=()), ValueError, "at least one sampler, one step count"),
    (lambda: quick([DDIM(), "ddim"]), TypeError, r"samplers\[1\] must be a Sampler, got 'ddim'"),
    (lambda: quick([DDIM]), TypeError, r"samplers\[0\] must be a Sampler"),
    (lambda: quick([DDIM()], [4, 0]), ValueError, r"steps\[1\] must be >= 1, got 0"),
    (lambda: quick([DDIM()], [4.0]), TypeError, r"steps\[0\] must be an integer"),
    (lambda: quick([DDIM()], [True]), TypeError, r"steps\[0\] must be an integer"),
    (lambda: quick([DDIM()], 4), TypeError, "steps must be a sequence, got 4"),
    (lambda: quick(DDIM()), TypeError, r"samplers must be a sequence, got DDIM\("),
    (lambda: quick([DDIM()], seeds=3), TypeError, "seeds must be a sequence, got 3"),
    (lambda: quick([DDIM()], n=1), ValueError, "n must be >= 2, got 1"),
    (lambda: quick([DDIM()], n=10.0), TypeError, "n must be an integer"),
    (lambda: quick([DDIM()], seeds=(0, -1)), ValueError, "seed must be >= 0"),
    (lambda: quick([DDIM()], seeds=(0.5,)), TypeError, "seed must be an integer"),
    (lambda: quick([DDIM()], grid="unifrom"), ValueError, "grid must be one of"),
    (lambda: quick([DDIM()], t_end=1.0), ValueError, r"t_end must be a finite number in \[0, 1\)"),
    (lambda: quick([DDIM()], t_end=-0.1), ValueError, "t_end must be"),
    (lambda: quick([DDIM()], floor_repeats=1), ValueError, "repeats"),
    (lambda: compare(VP(), [DDIM()], [4], TARGET), TypeError, "denoiser must be a Denoiser, got VP"),  # type: ignore[arg-type]
    (lambda: compare(EXACT, [DDIM()], [4], EXACT), TypeError, "truth must be a GaussianMixture"),  # type: ignore[arg-type]
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=range(len(BAD)))
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
