import csv
import hashlib
import itertools
import math
import sys
import time
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from sdekit import VP, NetworkDenoiser, metrics, samplers
from sdekit.comparison import compare, default_metrics, runs, short_name, short_names
from sdekit.data import ring, two_mode
from sdekit.denoisers import Denoiser
from sdekit.errors import NumericsError
from sdekit.sampling import (
    DDIM,
    Ancestral,
    EulerMaruyama,
    FlowODE,
    Karras,
    Power,
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


#: Columns that a second run does not repeat.
TIMES = ("seconds", "model seconds", "overhead us")
#: Instant, where the point is not the distance.
MOMENTS = {
    "mean": lambda x, law: abs(float(x.mean()) - float(law.mean)),
    "square": lambda x, law: abs(float(x.square().mean()) - 1),
}


def quick(used, counts=(4,), **keywords):
    defaults = {"metrics": MOMENTS, "n": 200, "floor_repeats": 3}
    return compare(EXACT, used, counts, TARGET, **{**defaults, **keywords})


def untimed(row):
    return {k: v for k, v in row.items() if k not in TIMES}


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
        [untimed(r) for r in quick(samplers.ALL, seeds=seeds).rows]
        for seeds in ((3, 4), (3, 4), (5, 6))
    )
    assert first == again
    for a, b in zip(first, other, strict=True):
        assert a["mean"] != b["mean"]


def test_a_sampler_runs_on_its_own_grid_one_for_all_or_one_of_its_own():
    times = [1.0, 0.5, 0.2, 1e-3]
    used = [DDIM(), (DDIM(), None), (DDIM(), "karras"), (EulerMaruyama(), times)]
    rows = quick(used, [2, 4], grid=Power(2.0), seeds=(7,)).rows
    digest = hashlib.sha256(np.array(times).tobytes()).hexdigest()[:8]
    assert [(r["grid"], r["steps"]) for r in rows] == [
        *((repr(g), c) for g in (Power(2.0), DDIM().grid, Karras()) for c in (2, 4)),
        (f"times:{digest}", 3),
    ]
    grids = [Power(2.0), Power(2.0), None, None, "karras", "karras", times]
    for row, grid in zip(rows, grids, strict=True):
        own = {"grid": grid, "steps": row["steps"], "sampler": DDIM(), "seed": 7}
        if grid is times:
            own = {"grid": times, "sampler": EulerMaruyama(), "seed": 7}
        out = samplers.sample(EXACT, (200, 1), **own)
        assert row["mean"] == MOMENTS["mean"](out.x, TARGET.at(VP(), 1e-3))


def test_time_is_told_apart_into_the_model_and_the_rest():
    class Slow(Counting):
        def predict(self, x, t, **conditions):
            time.sleep(0.004)
            return super().predict(x, t, **conditions)

    table = compare(
        Slow(), [DDIM(), FlowODE()], [10], TARGET, metrics=MOMENTS, n=50, floor_repeats=2
    )
    row, adaptive = table.rows
    assert 0.04 <= row["model seconds"] < row["seconds"]
    rest = 1e6 * (row["seconds"] - row["model seconds"]) / 10
    assert row["overhead us"] == pytest.approx(rest, rel=1e-12)
    assert 0 < row["overhead us"] < 4_000  # the model's time is not in it
    assert math.isnan(adaptive["overhead us"])
    assert 0.004 * adaptive["nfe"] <= adaptive["model seconds"] < adaptive["seconds"]


def test_the_overhead_is_the_least_of_the_seeds_and_times_are_their_means(monkeypatch):
    ticks = itertools.chain([0.0, 3.0, 10.0, 12.0], itertools.repeat(0.0))  # runs of 3 s and 2 s
    monkeypatch.setattr(runs.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(runs.TimedDenoiser, "predict", lambda self, x, t: EXACT.predict(x, t))
    row = quick([DDIM()], seeds=(0, 1)).rows[0]
    assert (row["seconds"], row["model seconds"]) == (2.5, 0.0)
    assert row["overhead us"] == 1e6 * 2 / 4


def test_every_row_has_its_floor_and_family():
    table = quick([DDIM(), EulerMaruyama()])
    for row, stochastic in zip(table.rows, (False, True), strict=True):
        assert row["stochastic"] is stochastic
        assert all(row[f"{name} floor"] == table.floors[name][0] for name in MOMENTS)


def test_whatever_a_sampler_or_a_metric_raises_is_in_its_row():
    def fragile(x, law):
        if len(x.unique()) < len(x):
            raise ZeroDivisionError("no spread")
        return 0.0

    @dataclass(frozen=True)
    class Collapsing(Failing):
        def program(self, denoiser, times, final):
            return lambda engine, x: x * 0

    @dataclass(frozen=True)
    class Broken(Failing):
        def program(self, denoiser, times, final):
            raise RuntimeError("out of order")

    table = quick([Collapsing(), Broken(), DDIM()], metrics={"fragile": fragile}, seeds=(0, 1))
    assert [r["error"] for r in table.rows] == [
        "ZeroDivisionError: no spread", "RuntimeError: out of order", "",
    ]  # fmt: skip
    assert [math.isnan(r["fragile"]) for r in table.rows] == [True, True, False]


def test_the_model_is_in_evaluation_mode_and_then_as_it_was():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    class Timeless(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, x, t):
            return self.inner(x)

    model = NetworkDenoiser(Timeless(), VP()).train()
    keywords = {"metrics": MOMENTS, "n": 50, "floor_repeats": 2}
    with pytest.warns(UserWarning, match="training mode"):
        table = compare(model, [DDIM()], [3], TARGET, **keywords)
    assert network[1].training
    again = compare(model.eval(), [DDIM()], [3], TARGET, **keywords)
    assert untimed(table.rows[0]) == untimed(again.rows[0])


def test_a_metric_may_take_gradients():
    def slope(x, law):
        x = x.requires_grad_()
        x.square().sum().backward()
        return float(x.grad.abs().mean())

    row = quick([DDIM()], metrics={"slope": slope}).rows[0]
    assert not row["error"]
    assert row["slope"] > 0


def test_pandas_gets_the_rows_or_the_message_says_what_to_install(monkeypatch):
    table = quick([DDIM(), EulerMaruyama()])
    monkeypatch.setitem(
        sys.modules, "pandas", SimpleNamespace(DataFrame=lambda rows: ("frame", rows))
    )
    assert table.to_pandas() == ("frame", table.rows)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(
        ImportError, match=r'Table.to_pandas needs pandas: pip install "sdekit\[tables\]"'
    ):
        table.to_pandas()


def test_a_data_frame_has_the_rows():
    pytest.importorskip("pandas", reason="pandas is not installed")
    table = quick([DDIM(), EulerMaruyama()], [2, 3], seeds=(0, 1))
    frame = table.to_pandas()
    assert list(frame.columns) == list(table.rows[0])
    assert frame["mean"].tolist() == [row["mean"] for row in table.rows]


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
    assert text[2].split()[4:6] == ["failed", "failed"]
    assert text[-1] == "Failing(), 4 steps failed: NumericsError: lost | at once"
    assert table.markdown().endswith(f"\n\n{text[-1]}")
    assert {line.count("|") for line in table.markdown().splitlines()[:6]} == {9}


def test_csv_round_trip(tmp_path):
    table = quick([DDIM(), Failing()], [3, 4], seeds=(0, 1))
    table.to_csv(tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == [
        "sampler", "grid", "stochastic", "steps", "nfe", "error", "mean", "mean se", "mean floor",
        "square", "square se", "square floor", "seconds", "model seconds", "overhead us",
    ]  # fmt: skip
    for row, read in zip(table.rows, found, strict=True):
        for key, value in row.items():
            if isinstance(value, (str, bool)):
                assert read[key] == str(value)
            else:
                kept = type(value)(read[key])
                assert kept == value or (math.isnan(value) and math.isnan(kept))


def test_tables_as_text_are_well_formed():
    table = quick([EulerMaruyama(), FlowODE()], [2, 4], seeds=(0, 1))
    text, marks = str(table).splitlines(), table.markdown().splitlines()
    assert text[0].split() == [
        "sampler", "grid", "steps", "NFE", "mean", "square", "seconds", "us/step",
    ]  # fmt: skip
    assert len({len(line) for line in text}) == 1
    assert set(text[1]) == {"-"}
    assert len(text) == len(marks) == 2 + 3 + 1
    assert {line.count("|") for line in marks} == {9}
    for line, row in zip(marks[2:], table.rows, strict=False):
        cells = [c.strip() for c in line.strip("|").split("|")]
        assert cells[:2] == [short_name(row["sampler"]), "uniform"]
        assert cells[2:4] == [str(row["steps"]), str(row["nfe"])]
        assert cells[4] == f"{row['mean']:.4f} ± {row['mean se']:.4f}"
        assert (cells[-1] == "") == math.isnan(row["overhead us"])
    mean, square = (f"{table.floors[name][0]:.4f}" for name in MOMENTS)
    assert marks[-1] == f"| 200 exact samples |  |  |  | {mean} | {square} |  |  |"
    # One seed has no spread to show.
    assert "±" not in str(quick([DDIM()]))


def test_short_names_tell_samplers_apart():
    names = {repr(s): short_name(repr(s)) for s in samplers.ALL}
    assert all(name.startswith(full.partition("(")[0]) for full, name in names.items())
    assert max(map(len, names.values())) < 40
    assert len(set(short_names(list(names)).values())) == len(names)
    some = [samplers.EulerMaruyama(), samplers.Ancestral(), DDIM(), samplers.PredictorCorrector(),
            samplers.NormCorrector(), samplers.SigmaRungeKutta(), FlowODE()]  # fmt: skip
    assert [short_name(repr(s)) for s in some] == [
        "EulerMaruyama()", "Ancestral(beta_tilde)", "DDIM(eta=0.0)", "PredictorCorrector(EulerMaruyama)",
        "NormCorrector(EulerMaruyama)", "SigmaRungeKutta(rk4)", "FlowODE(dopri5)",
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
    (lambda: quick([DDIM(), "ddim"]), TypeError, r"samplers\[1\] must be a Sampler or .* got 'ddim'"),
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
    (lambda: quick([DDIM()], grid=7), TypeError, "grid must be a name, .* got int"),
    (lambda: quick([(DDIM(), "unifrom")]), ValueError, "grid must be one of"),
    (lambda: quick([(DDIM(), "uniform", 1)]), TypeError, r"samplers\[0\] must be a Sampler or"),
    (lambda: quick([DDIM(), (DDIM(), [0.5, 0.9])]), ValueError, r"samplers\[1\]\[1\] must decrease"),
    (lambda: quick([(DDIM(), [1.0, 0.1])]), ValueError, r"must end at t_end = 0.001, .* got 0.1"),
    (lambda: quick([DDIM()], seeds=(None,)), TypeError, "seed must be an integer"),
    (lambda: quick([DDIM()], resume=3), TypeError, "resume must be a path, got 3"),
    (lambda: quick([DDIM()], executor=2), TypeError, "executor must be a concurrent.futures.Executor, got 2"),
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
