"""How the runs of a comparison are run: by executors, and from a file that keeps what is done."""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from sdekit import VP, CheckpointError, GaussianMixture, NetworkDenoiser, compare
from sdekit.comparison.journal import Journal, identity
from sdekit.comparison.runs import Bench, default_metrics
from sdekit.data import ring, two_mode
from sdekit.denoisers import Denoiser
from sdekit.errors import NumericsError
from sdekit.networks import MLP
from sdekit.sampling import (
    DDIM,
    Ancestral,
    EulerMaruyama,
    FlowODE,
    PredictorCorrector,
    Sampler,
    TorchSDE,
    UniPC,
)

TARGET = two_mode()
EXACT = TARGET.denoiser(VP())
TIMES = ("seconds", "model seconds", "overhead us")


def mean(x, law):
    return abs(float(x.double().mean()) - float(law.mean))


def square(x, law):
    return abs(float(x.double().square().mean()) - 1)


@dataclass(frozen=True)
class Failing(Sampler):
    """Diverges at once."""

    def program(self, denoiser, times, final):
        def program(engine, x):
            raise NumericsError("lost")

        return program


class Counting(Denoiser):
    """The exact model; knows how many samples it was called on."""

    def __init__(self, exact=EXACT):
        self.process, self.prediction, self.exact = exact.process, exact.prediction, exact
        self.sizes = []

    def predict(self, x, t, **conditions):
        self.sizes.append(len(x))
        return self.exact.predict(x, t, **conditions)

    @property
    def runs(self):
        """Calls on as many samples as a run has, over the 4 steps of each."""
        return self.sizes.count(200) / 4


def random_network():
    """A network that gives something: a new one ends in zeros."""
    model = NetworkDenoiser(MLP(dim=1, hidden=16), VP())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in model.parameters():
            weights.copy_(0.3 * torch.randn(weights.shape, generator=generator))
    return model


USED = [EulerMaruyama(), (DDIM(), "karras"), Failing(), FlowODE(), PredictorCorrector(), TorchSDE()]


def quick(used=USED, counts=(4, 9), model=EXACT, truth=TARGET, **keywords):
    defaults = {"metrics": {"mean": mean, "square": square}, "n": 200, "floor_repeats": 2}
    return compare(model, used, counts, truth, **{**defaults, **keywords})


def untimed(table):
    """Rows without what no second run repeats; NaN as text, to be equal to itself."""
    return [{k: str(v) for k, v in row.items() if k not in TIMES} for row in table.rows]


# ------------------------------------------------------------------------------------- executors


def test_threads_give_the_numbers_of_a_serial_run():
    before = torch.get_num_threads()
    with ThreadPoolExecutor(4) as pool:
        table = quick(executor=pool, seeds=(0, 1))
    assert untimed(table) == untimed(quick(seeds=(0, 1)))
    assert torch.get_num_threads() == before


def test_threads_share_a_model_in_evaluation_mode():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Dropout(0.5), nn.Linear(1, 1))

    class Timeless(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, x, t):
            return self.inner(x)

    model = NetworkDenoiser(Timeless(), VP()).train()
    with ThreadPoolExecutor(3) as pool, pytest.warns(UserWarning, match="training mode"):
        table = quick([DDIM(), Ancestral()], model=model, executor=pool)
    assert network[0].training
    assert untimed(table) == untimed(quick([DDIM(), Ancestral()], model=model.eval()))


def test_an_exact_model_is_whole_while_another_thread_clears_what_it_keeps():
    class Cleared(dict):
        def __setitem__(self, key, value):
            super().__setitem__(key, value)
            self.clear()

    model, x = TARGET.denoiser(VP()), torch.ones(3, 1)
    model._laws = Cleared()
    assert torch.equal(model.predict(x, 0.3), EXACT.predict(x, 0.3))


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        2, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        yield pool


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["exact", "network", "plane"])
def test_spawned_processes_give_the_numbers_of_a_serial_run(kind, processes):
    truth = ring() if kind == "plane" else TARGET
    model = truth.denoiser(VP())
    if kind == "network":
        model = random_network()
    metrics = (
        {} if kind == "exact" else {"metrics": None}
    )  # functions of this module, or the package's
    used = {"model": model, "truth": truth, "seeds": (0, 5), **metrics}
    assert untimed(quick(executor=processes, **used)) == untimed(quick(**used))


def test_what_does_not_pickle_is_named_before_the_model_is_called(processes):
    model = Counting()
    with pytest.raises(TypeError, match=r"must pickle for ProcessPoolExecutor: .* not a lambda"):
        quick(model=model, executor=processes, metrics={"mean": lambda x, law: 0.0})
    assert model.sizes == []


def test_processes_that_fork_are_refused():
    fork = multiprocessing.get_context("fork")
    with (
        ProcessPoolExecutor(1, mp_context=fork) as pool,
        pytest.raises(ValueError, match=r"fork: .*spawn"),
    ):
        quick(executor=pool)


class Lossy(Executor):
    """Loses its worker at the third task."""

    def __init__(self):
        self.futures = []

    def submit(self, function, /, *arguments, **keywords):
        future = Future()
        self.futures.append(future)
        if len(self.futures) < 3:
            future.set_result(function(*arguments, **keywords))
        elif len(self.futures) == 3:
            future.set_exception(RuntimeError("a worker died"))
        return future


def test_an_executor_that_breaks_is_an_error_and_its_other_tasks_are_cancelled(tmp_path):
    lossy = Lossy()
    with pytest.raises(RuntimeError, match="a worker died"):
        quick(executor=lossy, resume=tmp_path / "r")
    assert len(lossy.futures) == 11
    assert all(f.cancelled() for f in lossy.futures[3:])
    kept = (tmp_path / "r").read_text().splitlines()
    assert 1 <= len(kept) <= 3  # the broken future may be reported before the two that are done
    assert untimed(quick(resume=tmp_path / "r")) == untimed(quick())


@pytest.mark.slow
def test_a_dask_cluster_of_two_workers_gives_the_numbers_of_a_serial_run(tmp_path):
    distributed = pytest.importorskip("distributed", reason='needs pip install "sdekit[cluster]"')
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    )
    with cluster, distributed.Client(cluster) as client:
        assert len(client.scheduler_info()["workers"]) == 2
        client.run(torch.set_num_threads, 1)
        used = {"used": [DDIM(), EulerMaruyama(), UniPC()], "metrics": None, "seeds": (0, 1)}
        path = tmp_path / "r"
        table = quick(executor=client.get_executor(), resume=path, progress=True, **used)
        pids = set(client.run(os.getpid).values())
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert untimed(table) == untimed(quick(**used))
    assert len(path.read_text().splitlines()) == 1 + 3 * 2 * 2


# ---------------------------------------------------------------------------------------- resume


def test_finished_runs_are_not_done_again(tmp_path):
    path, model = tmp_path / "new" / "r.jsonl", Counting()
    once = {"used": [EulerMaruyama(), DDIM()], "counts": (4,), "model": model, "resume": path}
    first = quick(**once, seeds=(0, 1))
    assert model.runs == 4
    again = quick(**once, seeds=(0, 1))
    assert model.runs == 4
    assert again.rows == first.rows  # the times as well
    # More samplers, step counts and seeds are added to it.
    once["used"] = [DDIM(), EulerMaruyama(), Ancestral()]
    more = quick(**once, seeds=(0, 1, 2))
    assert model.runs == 4 + 2 + 3
    assert untimed(more) == untimed(quick(once["used"], (4,), seeds=(0, 1, 2)))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 1 + 9
    assert lines[1]["run"] == ["EulerMaruyama()", "Power(power=1.0)", 4, 0]
    assert lines[1]["values"]["mean"] == quick([EulerMaruyama()], (4,)).rows[0]["mean"]


def test_the_bar_starts_where_the_file_ends(tmp_path, capsys):
    quick([DDIM()], (4,), resume=tmp_path / "r")
    quick([DDIM(), Ancestral()], (4,), resume=tmp_path / "r", progress=True)
    shown = capsys.readouterr().err
    assert "comparing:  50%" in shown
    assert "2/2" in shown


def test_runs_that_failed_are_tried_again(tmp_path):
    path, fine = tmp_path / "r", [True]

    def picky(x, law):
        if len(x) == 200 and not fine[0]:
            raise ArithmeticError("not today")
        return 1.0

    def run():
        return quick([DDIM()], (4,), metrics={"picky": picky}, resume=path)

    run()
    path.unlink()
    floor = {"picky": (1.0, 1.0)}
    bench = Bench(EXACT, TARGET.at(VP(), 1e-3), {"picky": picky}, 200, 1e-3)
    Journal(path, bench)
    key = ("DDIM(eta=0.0)", repr(DDIM().grid), 4, 0)
    failed = {"error": "ArithmeticError: not today", "values": {}, "nfe": 4, "seconds": 1.0}
    Journal(path, bench).add(key, {**failed, "model seconds": 0.5})
    assert Journal(path, bench).records == {}
    table = run()
    assert (table.rows[0]["error"], table.rows[0]["picky"], table.floors) == ("", 1.0, floor)
    assert Journal(path, bench).records.keys() == {key}


def test_an_interrupt_leaves_a_good_file(tmp_path):
    path, seen = tmp_path / "r", []

    def impatient(x, law):
        seen.append(len(x))
        if len(seen) == 2 + 1 + 3:  # two draws of the floor, one of the file, and the third run
            raise KeyboardInterrupt
        return mean(x, law)

    with pytest.raises(KeyboardInterrupt):
        quick([DDIM(), EulerMaruyama()], metrics={"mean": impatient}, resume=path)
    assert len(path.read_text().splitlines()) == 1 + 2
    model = Counting()
    table = quick([DDIM(), EulerMaruyama()], metrics={"mean": mean}, resume=path, model=model)
    assert model.sizes.count(200) == 4 + 9
    assert untimed(table) == untimed(quick([DDIM(), EulerMaruyama()], metrics={"mean": mean}))


def test_an_interrupt_in_a_thread_stops_the_run_and_leaves_a_good_file(tmp_path):
    path, main = tmp_path / "r", threading.get_ident()

    def impatient(x, law):
        if threading.get_ident() != main and path.read_bytes().count(b"\n") >= 3:
            raise KeyboardInterrupt
        return mean(x, law)

    with ThreadPoolExecutor(1) as pool, pytest.raises(KeyboardInterrupt):
        quick([DDIM()], seeds=range(50), metrics={"mean": impatient}, resume=path, executor=pool)
    assert 3 <= path.read_bytes().count(b"\n") < 90
    table = quick([DDIM()], seeds=range(50), metrics={"mean": mean}, resume=path)
    assert untimed(table) == untimed(quick([DDIM()], seeds=range(50), metrics={"mean": mean}))


SLOW = """
import sys, time
import sdekit as sk
def mean(x, law):
    time.sleep(0.05)
    return abs(float(x.double().mean()) - float(law.mean))
target = sk.data.two_mode()
sk.compare(target.denoiser(sk.VP()), [sk.samplers.DDIM()], [4], target, metrics={"mean": mean}, n=200,
           floor_repeats=2, seeds=range(200), resume=sys.argv[1])
"""


def test_a_killed_process_leaves_a_good_file(tmp_path):
    path = tmp_path / "r"
    killed = subprocess.Popen([sys.executable, "-c", SLOW, str(path)])
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and killed.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= 4:
            break
        time.sleep(0.02)
    killed.kill()
    assert killed.wait() < 0  # by the signal, before its end
    done = path.read_bytes().count(b"\n") - 1
    assert 3 <= done < 200
    model, seeds = Counting(), range(done + 2)
    table = quick([DDIM()], (4,), metrics={"mean": mean}, resume=path, model=model, seeds=seeds)
    assert model.runs == 2
    plain = quick([DDIM()], (4,), metrics={"mean": mean}, seeds=seeds)
    assert untimed(table) == untimed(plain)


@pytest.mark.parametrize("cut", [1, 30, "header"])
def test_a_last_line_cut_short_is_dropped(cut, tmp_path):
    path = tmp_path / "r"
    first = quick([DDIM()], (4, 5), resume=path)
    whole = path.read_bytes()
    path.write_bytes(whole[:15] if cut == "header" else whole[:-cut])
    model = Counting()
    again = quick([DDIM()], (4, 5), resume=path, model=model)
    assert model.sizes.count(200) == (9 if cut == "header" else 5)
    assert untimed(again) == untimed(first)
    assert [json.loads(line)["run"] for line in path.read_bytes().splitlines()[1:]] == [
        ["DDIM(eta=0.0)", repr(DDIM().grid), steps, 0] for steps in (4, 5)
    ]


OTHERS = {
    "n": {"n": 201},
    "t_end": {"t_end": 2e-3},
    "truth": {"truth": GaussianMixture([0.3, 0.7], [-1.4, 0.6], 0.41), "model": EXACT},
    "denoiser": {"model": GaussianMixture([0.3, 0.7], [-1.4, 0.6001], 0.4).denoiser(VP())},
    "metrics": {"metrics": {"mean": square, "square": square}},
    "process": {"model": TARGET.denoiser(VP(0.1, 19.999)), "t_end": 1e-3},
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_file_of_other_arguments_is_refused(what, tmp_path):
    path, model = tmp_path / "r", Counting(OTHERS[what].get("model", EXACT))
    quick([DDIM()], (4,), resume=path)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=rf"resume: .*r was written with another .*{what}"):
        quick([DDIM()], (4,), resume=path, **{**OTHERS[what], "model": model})
    assert set(model.sizes) <= {4}  # no run, only the points that tell models apart
    assert path.read_bytes() == before


@pytest.mark.parametrize("names", [("mean",), ("mean", "other"), ("square", "mean", "third")])
def test_a_file_of_other_metrics_is_refused(names, tmp_path):
    quick([DDIM()], (4,), resume=tmp_path / "r")
    with pytest.raises(CheckpointError, match="written with another metrics"):
        quick([DDIM()], (4,), resume=tmp_path / "r", metrics=dict.fromkeys(names, mean))


@pytest.mark.parametrize(
    "content", [b"sampler,steps\n1,2\n", b"notes", b"[1, 2]\n", b"{}\n", b"\xff\xfe"]
)
def test_a_file_of_another_kind_is_refused_and_left_as_it_is(content, tmp_path):
    path = tmp_path / "r"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"resume: .*r is "):
        quick([DDIM()], (4,), resume=path)
    assert path.read_bytes() == content


def test_a_damaged_line_is_refused(tmp_path):
    path = tmp_path / "r"
    quick([DDIM()], (4, 5), resume=path)
    lines = path.read_bytes().splitlines(keepends=True)
    for damaged in (lines[1][:9] + b"\n", b"{}\n"):
        path.write_bytes(lines[0] + damaged + lines[2])
        with pytest.raises(CheckpointError, match="damaged"):
            quick([DDIM()], (4, 5), resume=path)


def test_a_network_is_known_by_its_predictions(tmp_path):
    model = random_network()
    law = TARGET.at(VP(), 1e-3)
    metrics = default_metrics(TARGET)
    before = identity(Bench(model, law, metrics, 50, 1e-3))
    quick([DDIM()], (4,), model=model, resume=tmp_path / "r")
    with torch.no_grad():
        next(p for p in model.parameters() if p.ndim == 2).mul_(1.001)
    after = identity(Bench(model, law, metrics, 50, 1e-3))
    assert [k for k in before if before[k] != after[k]] == ["denoiser"]
    with pytest.raises(CheckpointError, match="another denoiser"):
        quick([DDIM()], (4,), model=model, resume=tmp_path / "r")


def test_a_used_model_is_still_the_same(tmp_path):
    """What a model keeps for speed is no part of what it is."""
    model = TARGET.denoiser(VP())
    quick([DDIM()], (4,), model=model, resume=tmp_path / "r")
    quick([DDIM()], (17,), model=model)
    assert len(quick([DDIM()], (4, 5), model=model, resume=tmp_path / "r").rows) == 2


def test_a_path_may_be_text_and_its_folder_new(tmp_path):
    quick([DDIM()], (4,), resume=str(tmp_path / "a" / "b" / "r"))
    assert Path(tmp_path / "a" / "b" / "r").is_file()


def test_a_sampler_that_asks_an_exact_model_for_its_mixture_runs():
    table = compare(
        EXACT, [Ancestral("optimal"), Ancestral("beta")], steps=[10], truth=TARGET, n=200
    )
    assert [row["error"] for row in table.rows] == ["", ""]
    assert all(row["W1"] < 0.5 for row in table.rows)
