# Bad input is passed on purpose.
# pyright: reportArgumentType=false
import copy
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset

import sdekit as sk
from sdekit import (
    EDM,
    VP,
    CheckpointError,
    Denoiser,
    EDMPrecondition,
    GaussianMixture,
    NetworkDenoiser,
    NumericsError,
    train,
)
from sdekit.ddpm import linear_betas, quadratic_betas, rescale_zero_terminal_snr
from sdekit.networks import MLP, UNet
from sdekit.processes import Process
from sdekit.storage import load_tensors, save_tensors
from sdekit.training import DenoisingLoss, Plateau, excess_loss, fit, minimum_loss
from sdekit.training.draws import AHEAD, normals, step_generator
from sdekit.training.times import UniformTimes

TOY = GaussianMixture([0.3, 0.7], [-1.4, 0.6], 0.4)
quiet = partial(train, progress=False)


class Dropping(nn.Module):
    """A network that draws from the global generator in every training step."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 16), nn.Linear(16, 1)
        self.drop = nn.Dropout(0.3)

    def forward(self, x, t):
        rows = torch.cat([x, t[:, None].to(x)], 1)
        return self.last(self.drop(torch.tanh(self.first(rows))))


def small(process=None, *, seed: int = 0, cond_dim: int = 0, hidden: int = 16) -> NetworkDenoiser:
    torch.manual_seed(seed)
    return NetworkDenoiser(MLP(1, hidden=hidden, depth=2, cond_dim=cond_dim), process or VP())


def dropping() -> NetworkDenoiser:
    torch.manual_seed(0)
    return NetworkDenoiser(Dropping(), VP())


def images() -> NetworkDenoiser:
    """Weights in channels-last layout, moments too."""
    torch.manual_seed(0)
    network = UNet(widths=(4, 8)).to(memory_format=torch.channels_last)
    return NetworkDenoiser(network, VP(), "v")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


#: (model, data, settings): 50 rows and batches of 16 leave a remainder in every epoch.
SETUPS = {
    "endless": (small, TOY, {"batch": 32}),
    "rows": (
        small,
        normal(50, 1),
        {"batch": 16, "loss": DenoisingLoss("likelihood"), "times": "uniform"},
    ),
    "few rows": (small, normal(3, 1), {"batch": 16}),
    "dropout": (dropping, normal(50, 1), {"batch": 16, "weight_decay": 0.01}),
    "constant": (dropping, TOY, {"batch": 8, "schedule": "constant", "half_life": 1}),
    "condition": (
        partial(small, cond_dim=2),
        normal(50, 1),
        {"batch": 16, "cond": normal(50, 2, seed=1)},
    ),
    "parts": (
        dropping,
        normal(50, 1),
        {"batch": 16, "accumulate": 4, "optimizer": torch.optim.NAdam},
    ),
    "plateau": (
        small,
        TOY,
        {"batch": 8, "schedule": Plateau(5, 1), "validation": TOY, "evaluate_every": 15},
    ),
    "images": (images, normal(10, 1, 8, 8), {"batch": 4, "loss": DenoisingLoss("min-snr")}),
}


def run(setup: str, out: Path | None, steps: int = 60, **changes):
    """(result, trained model) of a named run; what the tests and their child processes share."""
    make, data, settings = SETUPS[setup]
    model = make()
    options = {"steps": steps, "out": out, "seed": 7, "warmup": 10, "checkpoint_every": 20}
    return quiet(model, data, **{**options, **settings, **changes}), model


def same(a: Path | None, b: Path | None) -> bool:
    """Whether two checkpoints agree in every bit: model, average, moments, losses, header."""
    assert a is not None
    assert b is not None
    for name in ("model.safetensors", "training.safetensors"):
        (ours, our_header), (theirs, their_header) = load_tensors(a / name), load_tensors(b / name)
        assert our_header == their_header
        if ours.keys() != theirs.keys() or not all(torch.equal(ours[k], theirs[k]) for k in ours):
            return False
    return (a / "config.json").read_text() == (b / "config.json").read_text()


def child(code: str, *arguments: object) -> subprocess.CompletedProcess:
    """Run code in a new process that can import this file."""
    here = Path(__file__).parent
    head = f"import sys; sys.path.insert(0, {str(here)!r}); import os, signal, test_trainer as t\n"
    head += "import torch; torch.set_num_threads(1); from pathlib import Path\n"
    return subprocess.run(
        [sys.executable, "-c", head + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


# ---------------------------------------------------------------------------- it learns


def test_a_small_network_learns_the_toy(tmp_path):
    """Loss between the minimum - 4 standard errors and half of where it began; excess far below that."""
    model = small(hidden=32)
    before = excess_loss(model, TOY, n=20_000)[0]
    result = quiet(model, TOY, steps=400, batch=256, lr=1e-2, half_life=69, seed=1, out=tmp_path)
    least, tail = minimum_loss(TOY, VP()), result.losses[-100:]
    error = tail.std().item() / math.sqrt(len(tail))
    assert result.losses.shape == (400,)
    assert result.losses.dtype == torch.float64
    assert result.losses[0] == pytest.approx(1, abs=0.4)  # a network that starts at zero
    assert least - 4 * error < tail.mean().item() < 0.5 * result.losses[:5].mean().item()
    assert excess_loss(result.model, TOY, n=20_000)[0] < 0.1 * before
    assert not result.model.training
    assert result.model is not model
    assert result.seconds > 0
    record = json.loads((tmp_path / "losses.json").read_text())
    assert record["losses"] == result.losses.tolist()
    assert record["config"]["batch"] == 256


def test_preconditioned_model_learns():
    torch.manual_seed(0)
    model = EDMPrecondition(MLP(1, hidden=32, depth=2), EDM(sigma_max=5.0), sigma_data=1.0)
    before = excess_loss(model, TOY, n=10_000)[0]
    result = quiet(model, TOY, steps=200, batch=128, lr=1e-2, half_life=6.6)
    assert isinstance(result.model, EDMPrecondition)
    assert excess_loss(result.model, TOY, n=10_000)[0] < 0.7 * before


def test_conditions_are_paired_with_their_rows():
    """Data equal to their condition: the conditional optimum is 0, the unconditional one 0.28."""
    cond = normal(2000, 1)
    result = quiet(
        small(cond_dim=1, hidden=32), cond, cond=cond, steps=300, batch=128, lr=1e-2, half_life=69
    )
    assert result.losses[-50:].mean() < 0.5 * 0.275988


def test_every_kind_of_data_is_the_same_data():
    rows = normal(20, 1)

    class Rows(Dataset):
        def __len__(self) -> int:
            return 20

        def __getitem__(self, i: int) -> Tensor:
            return rows[i]

    labelled = TensorDataset(rows, torch.arange(20))
    runs = [quiet(small(), d, steps=5, batch=8) for d in (rows, Rows(), labelled, rows.double())]
    for other in runs[1:]:
        assert torch.equal(other.losses, runs[0].losses)


@pytest.mark.parametrize("zero", [False, True], ids=["chain", "zero terminal SNR"])
def test_network_of_labels_is_trained_on_the_steps_of_its_chain(zero):
    seen: set[int] = set()

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Embedding(10, 1)

        def forward(self, x, t):
            seen.update(t.tolist())
            return x * self.rows(t)

    betas = linear_betas(10, 0.01, 0.3)
    betas = rescale_zero_terminal_snr(betas) if zero else betas
    model = NetworkDenoiser(
        Table(), VP.from_betas(betas, zero_terminal_snr=zero), "v", time="label"
    )
    before = excess_loss(model, TOY, n=5000)[0]
    result = quiet(
        model, TOY, steps=150, batch=40, lr=0.1, half_life=6.6, loss=DenoisingLoss("min-snr")
    )
    assert seen == set(range(10))
    assert excess_loss(result.model, TOY, n=5000)[0] < 0.5 * before


def test_events_may_be_numbers():
    result = quiet(small(), normal(20), steps=3, batch=8)
    assert torch.equal(result.losses, quiet(small(), normal(20, 1), steps=3, batch=8).losses)


# ---------------------------------------------------- the run, against a loop written out


def rate(k: int, steps: int, lr: float, warmup: int, schedule: str) -> float:
    fall = 0.5 * (1 + math.cos(math.pi * k / steps)) if schedule == "cosine" else 1.0
    return lr * min(1.0, (k + 1) / warmup if warmup else 1.0) * fall


@pytest.mark.parametrize(("warmup", "schedule"), [(0, "constant"), (5, "constant"), (5, "cosine")])
def test_run_is_the_loop_written_out(warmup, schedule):
    """float64: optimiser, learning rates, clipping and average, to 1e-12."""
    steps, lr, clip, decay, seed = 25, 3e-3, 0.7, 0.1, 11
    model, reference = small().double(), small().double()
    averaged, norms = [], []

    def keep(step, average):
        averaged.append([p.clone() for p in average.parameters()])
        norms.append(step.gradient_norm)

    result = quiet(
        model, TOY, steps=steps, batch=16, lr=lr, clip=clip, half_life=2, weight_decay=decay,
        warmup=warmup, schedule=schedule, seed=seed, callback=keep,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(reference.parameters(), lr=1.0, weight_decay=decay, fused=False)
    average: list[Tensor] = []
    ahead = AHEAD // 16  # steps that are drawn at once
    generator = step_generator(seed, 0, "times of 16 x (1,)")
    times = UniformTimes().draw(16, VP(), generator, batches=ahead).view(ahead, 16)
    noises = normals(seed, 0, 16, range(16), torch.Size([1]), torch.float64, steps=ahead)
    for k in range(steps):
        x0 = TOY.sample(16, generator=step_generator(seed, k, "data"))
        loss = DenoisingLoss()(reference, x0, times[k], noises[k]).mean()
        optimizer.zero_grad()
        loss.backward()
        gradients = [p.grad for p in reference.parameters()]
        norm = math.sqrt(sum(v.square().sum().item() for v in gradients if v is not None))
        for v in gradients:
            if v is not None:
                v *= min(1.0, clip / (norm + 1e-6))  # torch's guard against a norm of zero
        optimizer.param_groups[0]["lr"] = rate(k, steps, lr, warmup, schedule)
        optimizer.step()
        weights = [p.detach().clone() for p in reference.parameters()]
        d = min(2**-0.5, (1 + k) / (10 + k)) if k else 0.0
        average = [d * a + (1 - d) * w for a, w in zip(average or weights, weights, strict=True)]
        assert result.losses[k].item() == pytest.approx(loss.item(), rel=1e-11)
        assert norms[k] == pytest.approx(norm, rel=1e-9)
        for ours, theirs in zip(averaged[k], average, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert max(norms) > clip > min(norms)
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    for ours, theirs in zip(result.model.parameters(), average, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


class Still(nn.Module, Denoiser):
    """One weight that no step moves: its gradient is exactly zero."""

    process, prediction = VP(), "noise"

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def predict(self, x, t, **conditions):
        return 0 * self.weight * x


@pytest.mark.parametrize("half_life", [0.0, 0.25, 2.0, 700.0])
def test_average_of_constant_weights_decays_geometrically(half_life):
    """Weights 1 at step 0 and 0 after: the average is the product of the decays."""
    model, seen = Still(), []

    def drop(step, average):
        seen.append(average.weight.item())
        nn.init.zeros_(model.weight)

    quiet(model, TOY, steps=40, batch=2, half_life=half_life, callback=drop)
    decay = 0.5 ** (1 / half_life) if half_life else 0.0
    decays = [min(decay, (1 + k) / (10 + k)) for k in range(40)]
    expected = [math.prod(decays[1 : k + 1]) for k in range(40)]
    assert seen == pytest.approx(expected, rel=1e-12, abs=1e-300)


def test_average_takes_the_buffers_of_the_model():
    class Counting(Still):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

        def predict(self, x, t, **conditions):
            self.calls += 1
            return super().predict(x, t)

    assert quiet(Counting(), TOY, steps=5, batch=2).model.calls == 5


def test_fit_is_the_inner_loop_of_train():
    model, reference = small(), small()
    options = {"lr": 2e-3, "weight_decay": 0.0}
    expected = quiet(
        reference, TOY, steps=20, batch=16, seed=3, warmup=0, schedule="constant", lr=2e-3
    )
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, **options)
    batches = (TOY.sample(16, generator=step_generator(3, k, "data")).float() for k in range(20))
    running = fit(model, batches, optimizer, clip=1.0, seed=3)
    first = next(running)
    assert first.index == 0
    assert not torch.equal(model.network.out.bias, torch.zeros(1))  # the step has been taken
    losses = [first.loss, *(step.loss for step in running)]
    assert losses == expected.losses.tolist()
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(a, b)


def test_fit_clips_to_the_norm():
    model = small().double()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    (step,) = fit(model, [normal(64, 1).double()], optimizer, clip=0.01)
    moved = [(p - q).square().sum() for p, q in zip(model.parameters(), before, strict=True)]
    assert step.gradient_norm > 0.01
    assert math.sqrt(sum(m.item() for m in moved)) == pytest.approx(0.01, rel=1e-4)


def test_fit_takes_conditions_and_counts_from_first():
    model = small(cond_dim=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steps = list(fit(model, [(normal(4, 1), normal(4, 2))] * 3, optimizer, first=5, seed=1))
    assert [s.index for s in steps] == [5, 6, 7]


def test_fit_leaves_the_parameters_at_a_bad_step():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    running = fit(model, [normal(4, 1), torch.full((4, 1), 1e30)], optimizer)
    next(running)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NumericsError, match=r"gradient norm .* at step 1 are not finite"):
        next(running)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# ------------------------------------------------------------------------- the randomness


class Seen(nn.Module, Denoiser):
    """Remembers the states it is asked about."""

    prediction = "noise"

    def __init__(self, process, start: float = 0.0) -> None:
        super().__init__()
        self.process = process
        self.weight = nn.Parameter(torch.full((1,), start, dtype=torch.float64))
        self.states: list[Tensor] = []

    def predict(self, x, t, **conditions):
        self.states.append(x.clone())
        return self.weight * x


def test_data_times_and_noise_depend_on_the_seed_alone():
    rows = normal(50, 1).double()

    def states(seed: int, start: float, around: int, **options) -> Tensor:
        torch.manual_seed(around)
        model = Seen(VP(), start)
        quiet(model, rows, steps=10, batch=16, seed=seed, **options)
        return torch.stack(model.states)

    first = states(5, 0.0, 1)
    assert torch.equal(
        first, states(5, 0.7, 2, lr=1e-4, half_life=1, warmup=0, schedule="constant")
    )
    assert not torch.equal(first, states(6, 0.0, 1))


@pytest.mark.parametrize("batch", [1, 7, 10, 25])
def test_every_epoch_is_a_new_order_of_all_rows(batch):
    n, spacing = 10, 1e9
    model = Seen(EDM())  # alpha = 1, so rows 1e9 apart can be told through the noise
    rows = spacing * torch.arange(n, dtype=torch.float64)[:, None]
    quiet(model, rows, steps=-(-60 // batch), batch=batch)
    order = (torch.cat(model.states)[:60, 0] / spacing).round().long()
    epochs = order.view(-1, n)
    assert torch.equal(epochs.sort(1).values, torch.arange(n).expand(6, n))
    assert len({tuple(e.tolist()) for e in epochs}) == 6


def test_global_generators_are_neither_read_nor_moved():
    results = []
    for seed in (1, 2):
        model = dropping()
        torch.manual_seed(seed)
        random.seed(seed)
        states = torch.get_rng_state(), random.getstate()
        results.append(quiet(model, normal(50, 1), steps=5, batch=16))
        assert torch.equal(torch.get_rng_state(), states[0])
        assert random.getstate() == states[1]
    assert torch.equal(results[0].losses, results[1].losses)


@pytest.mark.parametrize("training", [True, False])
def test_modes_are_as_they_were(training):
    model = dropping().train(training)
    modes = []
    quiet(model, TOY, steps=2, batch=4, callback=lambda s, m: modes.append(model.training))
    assert modes == [True, True]
    assert model.training is training


# -------------------------------------------------------------------- stopped and resumed


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The runs that nobody stopped, made once."""
    folder, made = tmp_path_factory.mktemp("whole"), {}

    def get(setup: str):
        if setup not in made:
            made[setup] = run(setup, folder / setup.replace(" ", "-"))
        return made[setup]

    return get


def agree(resumed, whole) -> None:
    (result, model), (expected, reference) = resumed, whole
    assert same(result.checkpoint, expected.checkpoint)
    assert torch.equal(result.losses, expected.losses)
    for ours, theirs in ((model, reference), (result.model, expected.model)):
        state = theirs.state_dict()
        assert all(torch.equal(v, state[k]) for k, v in ours.state_dict().items())


@pytest.mark.parametrize("setup", SETUPS)
def test_stopped_by_the_callback_and_resumed_is_the_same_run(tmp_path, whole, setup):
    first, _ = run(setup, tmp_path, callback=lambda step, _: step.index == 29)
    assert len(first.losses) == 30
    assert first.checkpoint == tmp_path / "checkpoints" / "step-00000030"
    agree(run(setup, tmp_path, resume=True), whole(setup))


@pytest.mark.parametrize("setup", ["rows", "dropout"])
def test_interrupted_and_resumed_is_the_same_run(tmp_path, whole, setup, capsys):
    def press(step, _):
        if step.index == 29:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(setup, tmp_path, callback=press)
    assert signal.getsignal(signal.SIGINT) is before
    saved = tmp_path / "checkpoints" / "step-00000030"
    assert saved.is_dir()
    assert f"the last checkpoint is {saved}" in capsys.readouterr().err
    agree(run(setup, tmp_path, resume=True), whole(setup))


def test_killed_and_resumed_is_the_same_run(tmp_path, whole):
    code = """
def kill(step, _):
    if step.index == 34:
        os.kill(os.getpid(), signal.SIGKILL)
t.run("dropout", Path(sys.argv[1]), callback=kill)
"""
    done = child(code, tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    names = [p.name for p in sorted((tmp_path / "checkpoints").iterdir())]
    assert names == ["step-00000020"]
    agree(run("dropout", tmp_path, resume=True), whole("dropout"))


@pytest.mark.slow
def test_killed_fifty_times_is_the_same_run(tmp_path):
    """SIGKILL at random moments, often within a save: no checkpoint is lost, and not a bit of the weights."""
    code = """
import random, time
from sdekit.training.checkpoints import checkpoints
from sdekit.storage import load_tensors
out, moments = Path(sys.argv[1]), random.Random(0)
def newest():
    found = checkpoints(out / "checkpoints")
    return int(found[-1].name[5:]) if found else 0
kills = 0
while newest() < 2500:
    before = newest()
    if not (child := os.fork()):
        t.run("dropout", out, 2500, checkpoint_every=3, resume=True)
        os._exit(0)
    if kills < 50:
        time.sleep(moments.uniform(0.03, 0.15))
        os.kill(child, signal.SIGKILL)
        kills += 1
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or status == 0, status
    assert newest() >= before
    for path in checkpoints(out / "checkpoints"):
        for name in ("model.safetensors", "training.safetensors"):
            load_tensors(path / name)
assert kills == 50, kills
"""
    done = child(code, tmp_path / "killed")
    assert done.returncode == 0, done.stderr
    done = child(
        't.run("dropout", Path(sys.argv[1]), 2500, checkpoint_every=3)', tmp_path / "whole"
    )
    assert done.returncode == 0, done.stderr
    paths = [tmp_path / name / "checkpoints" / "step-00002500" for name in ("killed", "whole")]
    assert same(*paths)
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*.tmp"))


def test_terminated_exits_143_and_resumes(tmp_path, whole):
    code = """
def stop(step, _):
    if step.index == 34:
        os.kill(os.getpid(), signal.SIGTERM)
t.run("rows", Path(sys.argv[1]), callback=stop)
"""
    done = child(code, tmp_path)
    assert done.returncode == 143, done.stderr
    assert "step-00000035" in done.stderr
    assert "Traceback" not in done.stderr
    agree(run("rows", tmp_path, resume=True), whole("rows"))


def test_second_interrupt_is_immediate(tmp_path):
    def press(step, _):
        if step.index == 29:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run("rows", tmp_path, callback=press)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000020"]


def test_interrupt_at_the_last_step_is_not_swallowed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run("rows", tmp_path, 5, callback=lambda s, _: s.index == 4 and signal.raise_signal(2))
    assert run("rows", tmp_path, 5, resume=True)[0].losses.shape == (5,)


def test_interrupt_without_a_folder_is_an_interrupt():
    with pytest.raises(KeyboardInterrupt):
        run("rows", None, callback=lambda s, _: signal.raise_signal(signal.SIGINT))


def test_runs_in_a_thread(whole):
    results = []
    thread = threading.Thread(target=lambda: results.append(run("endless", None)))
    thread.start()
    thread.join()
    assert torch.equal(results[0][0].losses, whole("endless")[0].losses)


def test_stopped_many_times_is_the_same_run(tmp_path, whole):
    for stop in (1, 2, 19, 20, 41, 59):
        run("dropout", tmp_path, resume=True, callback=lambda s, _, k=stop: s.index + 1 == k)
    agree(run("dropout", tmp_path, resume=True), whole("dropout"))


def test_resuming_a_finished_run_takes_no_step(tmp_path, whole):
    finished, _ = run("rows", tmp_path)
    calls = []
    agree(
        run("rows", tmp_path, resume=True, callback=lambda *_: calls.append(1)),
        whole("rows"),
    )
    assert not calls
    assert finished.checkpoint is not None


def test_resume_without_a_run_starts_one(tmp_path, whole):
    agree(run("rows", tmp_path / "new" / "folder", resume=True), whole("rows"))


def test_constant_rate_may_be_prolonged(tmp_path, whole):
    run("constant", tmp_path, 25)
    agree(run("constant", tmp_path, 60, resume=True), whole("constant"))


def test_falls_back_when_the_newest_checkpoint_is_truncated(tmp_path, whole):
    run("dropout", tmp_path)
    newest = tmp_path / "checkpoints" / "step-00000060" / "training.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=r"step-00000060.* is damaged.* trying the one before"):
        resumed = run("dropout", tmp_path, resume=True)
    agree(resumed, whole("dropout"))


def test_keeps_the_newest_checkpoints_and_clears_leftovers(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir(parents=True)
    left = folder / ".step-00000040.123.tmp"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    other = folder / "notes.txt"
    other.write_text("mine")
    run("rows", tmp_path, keep=2, checkpoint_every=10)
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["notes.txt", "step-00000050", "step-00000060"]
    with pytest.raises(ValueError, match=r"already holds a run; give resume=True or another out="):
        run("rows", tmp_path)


BETAS = [VP.from_betas(make(100)) for make in (linear_betas, quadratic_betas)]
CHANGES = {
    "lr": ({"lr": 1e-2}, "lr was 0.003, now 0.01"),
    "steps": ({"steps": 80}, "steps was 60, now 80"),
    "batch": ({"batch": 8}, "batch was 16, now 8"),
    "seed": ({"seed": 8}, "seed was 7, now 8"),
    "warmup": ({"warmup": 0}, "warmup was 10, now 0"),
    "schedule": ({"schedule": "constant"}, "schedule was 'Cosine()', now 'Constant()'"),
    "weight_decay": ({"weight_decay": 0.1}, "weight_decay was 0.0, now 0.1"),
    "clip": ({"clip": 2.0}, "clip was 1.0, now 2.0"),
    "half_life": ({"half_life": 9}, "half_life was 700.0, now 9.0"),
    "loss": ({"loss": DenoisingLoss()}, "loss was \"DenoisingLoss(weighting='likelihood'"),
    "times": ({"times": "stratified"}, "stratified=False)', now 'UniformTimes(stratified=True)'"),
    "optimizer": ({"optimizer": torch.optim.RMSprop}, "optimizer was 'AdamW', now 'RMSprop'"),
    "two": ({"lr": 1e-2, "clip": 2.0}, "lr was 0.003, now 0.01, clip was 1.0, now 2.0"),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    run("rows", folder, callback=lambda *_: True)
    return folder


@pytest.mark.parametrize("name", CHANGES)
def test_other_settings_are_refused_by_name(stopped, name):
    changes, message = CHANGES[name]
    with pytest.raises(CheckpointError, match=f"other settings: .*{re.escape(message)}"):
        run("rows", stopped, **{"resume": True, **changes})


def test_other_models_and_data_are_refused(stopped, tmp_path):
    options = {**SETUPS["rows"][2], "steps": 60, "seed": 7, "warmup": 10, "resume": True}
    resume = partial(quiet, out=stopped, **options)
    with pytest.raises(CheckpointError, match="samples was 50, now 49"):
        resume(small(), normal(49, 1))
    with pytest.raises(CheckpointError, match=r"process was 'VP\(.*, now 'SubVP|now 'VP\("):
        resume(small(VP(0.1, 10.0)), normal(50, 1))
    with pytest.raises(CheckpointError, match="prediction was 'noise', now 'v'"):
        resume(NetworkDenoiser(MLP(1, hidden=16, depth=2), VP(), "v"), normal(50, 1))
    with pytest.raises(CheckpointError, match="time was 'unit', now 'log_snr'"):
        resume(NetworkDenoiser(MLP(1, hidden=16, depth=2), VP(), time="log_snr"), normal(50, 1))
    with pytest.raises(CheckpointError, match=r"does not fit the network: .*shapes"):
        resume(small(hidden=8), normal(50, 1))
    slow = NetworkDenoiser(MLP(1, hidden=16, depth=2, time_scale=0.5), VP())
    with pytest.raises(CheckpointError, match=r"network\.time_scale was 1.0, now 0.5"):
        resume(slow, normal(50, 1))
    # Two tables of as many betas with the same ends.
    assert repr(BETAS[0]) == repr(BETAS[1])
    quiet(small(BETAS[0]), TOY, steps=4, out=tmp_path, callback=lambda *_: True)
    with pytest.raises(CheckpointError, match="process was"):
        quiet(small(BETAS[1]), TOY, steps=4, out=tmp_path, resume=True)


def test_another_scale_of_the_data_is_refused(tmp_path):
    def begun(sigma_data, **options):
        torch.manual_seed(0)
        model = sk.EDMPrecondition(MLP(1, hidden=8), VP(), sigma_data)
        return quiet(model, ROWS, steps=4, batch=4, out=tmp_path, **options)

    begun(1.0, callback=lambda *_: True)
    with pytest.raises(CheckpointError, match=r"sigma_data was 1\.0, now 0\.5"):
        begun(0.5, resume=True)


def test_another_null_condition_is_refused(tmp_path):
    def begun(null, **options):
        conditions = {"cond": normal(10, 2), "cond_dropout": 0.5, "cond_null": null}
        model = small(cond_dim=2)
        return quiet(model, ROWS, steps=4, batch=4, out=tmp_path, **conditions, **options)

    begun(torch.zeros(2), callback=lambda *_: True)
    with pytest.raises(CheckpointError, match=r"cond_null was \[0.0, 0.0\], now \[1.0, 1.0\]"):
        begun(torch.ones(2), resume=True)


@dataclass(frozen=True)
class Linear:
    """A schedule that depends on the number of steps."""

    def factors(self, steps, losses):
        return lambda k: 1 - k / steps


def test_a_schedule_of_your_own_must_have_as_many_steps(tmp_path):
    options = {"schedule": Linear(), "batch": 4, "out": tmp_path}
    quiet(small(), ROWS, steps=4, callback=lambda *_: True, **options)
    with pytest.raises(CheckpointError, match="steps was 4, now 8"):
        quiet(small(), ROWS, steps=8, resume=True, **options)


def test_checkpoint_loads_as_the_averaged_model(whole):
    result, model = whole("rows")
    loaded = NetworkDenoiser.load(result.checkpoint)
    state = result.model.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(v, state[k]) for k, v in loaded.state_dict().items())
    assert not torch.equal(loaded.network.out.weight, model.network.out.weight)
    assert loaded.process == VP()
    own = NetworkDenoiser.load(whole("dropout")[0].checkpoint, network=Dropping())
    assert torch.equal(own.network.last.bias, whole("dropout")[0].model.network.last.bias)


# ------------------------------------------------------------------------------- numerics


class Breaks(nn.Module):
    """Good for some calls, then NaN."""

    def __init__(self, good: int) -> None:
        super().__init__()
        self.linear, self.left = nn.Linear(1, 1), good

    def forward(self, x, t):
        self.left -= 1
        return self.linear(x) * (1.0 if self.left >= 0 else math.nan)


def test_nan_stops_with_the_step_and_the_last_good_checkpoint(tmp_path):
    model, seen = NetworkDenoiser(Breaks(25), VP()), []
    with pytest.raises(NumericsError, match=r"loss nan .* at step 25 are not finite") as caught:
        quiet(
            model, TOY, steps=60, batch=8, out=tmp_path, checkpoint_every=10,
            callback=lambda *_: seen.append(copy.deepcopy(model.state_dict())),
        )  # fmt: skip
    path = tmp_path / "checkpoints" / "step-00000020"
    assert f"the last good checkpoint is {path}" in str(caught.value)
    tensors, header = load_tensors(path / "training.safetensors")
    assert header["step"] == 20
    assert len(seen) == 25
    for name, value in seen[19].items():
        assert torch.equal(tensors[f"model.{name}"], value)
    loaded = NetworkDenoiser.load(path, network=Breaks(1))
    assert all(torch.isfinite(p).all() for p in loaded.parameters())
    assert all(torch.equal(v, seen[-1][k]) for k, v in model.state_dict().items())


def test_nan_without_a_folder_says_so():
    with pytest.raises(NumericsError, match=r"at step 3 .* no checkpoint was written"):
        quiet(NetworkDenoiser(Breaks(3), VP()), TOY, steps=9, batch=8)


def test_progress_bar_shows_the_loss(capsys):
    train(small(), TOY, steps=3, batch=8)
    assert re.search(r"training: .*3/3.*loss=", capsys.readouterr().err)


# ------------------------------------------------------------------------------ bad input


class Source:
    def __init__(self, sample: Tensor) -> None:
        self._sample = sample

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        return self._sample


class Endless(IterableDataset):
    def __iter__(self):
        return iter([])


class Words(Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> str:
        return "word"


class Bare(nn.Module, Denoiser):
    process = VP()

    def predict(self, x, t, **conditions):
        return x


@dataclass(frozen=True, eq=False)
class Tabled(Process):
    """A process with a field that no header can hold."""

    table: Tensor

    def _alpha(self, t):
        return 1.0 + 0 * t

    def _sigma(self, t):
        return t


ROWS = normal(10, 1)
BAD = {
    "steps zero": ({"steps": 0}, ValueError, "steps must be >= 1, got 0"),
    "steps float": ({"steps": 10.0}, TypeError, "steps must be an integer"),
    "steps bool": ({"steps": True}, TypeError, "steps must be an integer"),
    "batch zero": ({"batch": 0}, ValueError, "batch must be >= 1"),
    "batch float": ({"batch": 8.0}, TypeError, "batch must be an integer"),
    "lr zero": ({"lr": 0}, ValueError, "lr must be a finite number in"),
    "lr negative": ({"lr": -1e-3}, ValueError, "lr must be"),
    "lr NaN": ({"lr": math.nan}, ValueError, "lr must be"),
    "lr bool": ({"lr": True}, TypeError, "lr must be a number"),
    "warmup negative": ({"warmup": -1}, ValueError, "warmup must be >= 0"),
    "clip negative": ({"clip": -1.0}, ValueError, "clip must be"),
    "clip zero": ({"clip": 0.0}, ValueError, "clip must be"),
    "half_life": (
        {"half_life": -1.0},
        ValueError,
        r"half_life must be a finite number in \[0, inf",
    ),
    "half_life NaN": ({"half_life": math.nan}, ValueError, "half_life must be"),
    "weight_decay": ({"weight_decay": -1.0}, ValueError, "weight_decay must be"),
    "keep": ({"keep": 0}, ValueError, "keep must be >= 1"),
    "process": (
        {"model": small(Tabled(ROWS))},
        TypeError,
        "fields of the process must be JSON: .*Tensor",
    ),
    "resume alone": ({"resume": True, "out": None}, ValueError, "resume needs out="),
    "checkpoint_every": ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be >= 1"),
    "seed negative": ({"seed": -1}, ValueError, "seed must be >= 0"),
    "seed float": ({"seed": 1.5}, TypeError, "seed must be an integer"),
    "schedule": ({"schedule": "cosin"}, ValueError, "did you mean 'cosine'"),
    "times": ({"times": "random"}, ValueError, "times must be one of"),
    "data int": ({"data": torch.zeros(4, 1, dtype=torch.uint8)}, TypeError, "scale it to float"),
    "data NaN": ({"data": torch.tensor([[0.0], [math.nan]])}, ValueError, r"first at \(1, 0\)"),
    "data empty": (
        {"data": torch.empty(0, 1)},
        ValueError,
        r"samples \(N, \*event\), got \(0, 1\)",
    ),
    "data 0-d": ({"data": torch.tensor(1.0)}, ValueError, r"data must hold samples"),
    "data list": ({"data": [1.0, 2.0]}, TypeError, "data must be a tensor, a Dataset or have"),
    "data numpy int": ({"data": ROWS.int().numpy()}, TypeError, "scale it to float"),
    "source int": ({"data": Source(torch.ones(1, 1).int())}, TypeError, "scale it to float"),
    "source NaN": ({"data": Source(ROWS * math.inf)}, ValueError, "data has 10 NaN or infinite"),
    "source other": ({"data": Source("x")}, TypeError, "data must be a torch.Tensor, got str"),
    "dataset empty": ({"data": TensorDataset(ROWS[:0])}, ValueError, "data must hold samples"),
    "dataset iterable": ({"data": Endless()}, TypeError, "data must be a Dataset with a length"),
    "dataset of words": (
        {"data": Words()},
        TypeError,
        "a Dataset of tensors or arrays, got str items",
    ),
    "cond rows": (
        {"cond": normal(9, 2)},
        ValueError,
        r"one row a sample of data, 10, got .*\(9, 2\)",
    ),
    "cond list": ({"cond": [0] * 10}, TypeError, "cond must be a torch.Tensor, got list"),
    "cond NaN": ({"cond": normal(10, 2) * math.nan}, ValueError, "cond has 20 NaN"),
    "cond 0-d": ({"cond": torch.tensor(1.0)}, ValueError, "cond must have one row"),
    "cond endless": ({"data": TOY, "cond": normal(9, 2)}, ValueError, "endless data has none"),
    "not a module": ({"model": TOY.denoiser(VP())}, TypeError, "a Denoiser and a torch module"),
    "not a denoiser": ({"model": MLP(1)}, TypeError, "must be a Denoiser .*, got MLP"),
    "no parameters": ({"model": Bare()}, ValueError, "model has no parameters to train"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, name):
    changes, error, message = BAD[name]
    options = {"model": small(), "data": ROWS, "steps": 5, "out": tmp_path / "run", **changes}
    with pytest.raises(error, match=message):
        quiet(options.pop("model"), options.pop("data"), **options)
    assert not (tmp_path / "run").exists()


def test_fit_refuses_a_bad_clip_and_times():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="clip must be"):
        next(fit(model, [ROWS], optimizer, clip=-1.0))
    with pytest.raises(ValueError, match="times must be one of"):
        next(fit(model, [ROWS], optimizer, times="random"))


def test_numbers_of_numpy_are_numbers(tmp_path):
    numpy = pytest.importorskip("numpy")
    options = {"lr": numpy.float32(1e-3), "half_life": numpy.float64(9), "steps": numpy.int64(3)}
    assert quiet(small(), ROWS, batch=numpy.int32(4), out=tmp_path, **options).checkpoint.is_dir()
    record = json.loads((tmp_path / "losses.json").read_text())
    assert record["config"]["lr"] == pytest.approx(1e-3, rel=1e-7)


def test_unwritable_folder_fails_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("")
    calls = []
    with pytest.raises(OSError, match="file"):
        quiet(small(), ROWS, steps=2, out=tmp_path / "file", callback=lambda *_: calls.append(1))
    assert not calls
    assert os.path.getsize(tmp_path / "file") == 0  # noqa: PTH202


def test_an_array_is_the_tensor_it_holds():
    runs = [
        sk.train(small(), data, steps=4, batch=8, progress=False).losses
        for data in (ROWS, ROWS.numpy())
    ]
    assert torch.equal(*runs)


def test_a_model_is_loaded_from_a_file_a_checkpoint_or_a_run(tmp_path):
    result = quiet(small(), TOY, steps=4, batch=8, checkpoint_every=2, out=tmp_path / "run")
    first = tmp_path / "run" / "checkpoints" / "step-00000002"
    want = NetworkDenoiser.load(result.checkpoint)
    for place in (result.checkpoint / "model.safetensors", tmp_path / "run"):
        for ours, theirs in zip(
            NetworkDenoiser.load(place).parameters(), want.parameters(), strict=True
        ):
            assert torch.equal(ours, theirs)
    earlier = NetworkDenoiser.load(first)
    assert not torch.equal(next(earlier.parameters()), next(want.parameters()))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty holds no checkpoints/step-\* and no model"):
        NetworkDenoiser.load(tmp_path / "empty")


def test_parameters_that_join_are_cleared_and_clipped_with_the_others():
    """Gradients of a group added between steps do not add up."""
    model = small()
    first, *rest = model.parameters()
    optimizer = torch.optim.SGD([first], lr=1e-3)
    norms = []
    for step in fit(model, [ROWS] * 5, optimizer, clip=1e-2):
        if step.index == 1:
            optimizer.add_param_group({"params": rest})
        norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters())))
    # Clipped in every step since they joined; before that the rest is as it came.
    assert norms[2:] == pytest.approx([1e-2] * 3, rel=1e-3)


def test_a_step_in_which_no_parameter_took_part():
    class Idle(MLP):
        def __init__(self) -> None:
            super().__init__(1, hidden=4, depth=1)
            self.idle = nn.Parameter(torch.ones(1))

    model = NetworkDenoiser(Idle(), VP())
    optimizer = torch.optim.SGD([model.network.idle], lr=1.0)
    (step,) = fit(model, [ROWS], optimizer, clip=1.0)
    assert step.gradient_norm == 0.0
    assert model.network.idle.item() == 1.0


def test_norms_of_gradients_of_several_dtypes():
    """In the wider of them: 1e5 is beyond float16."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small = nn.Parameter(torch.zeros(1, dtype=torch.float16))
            self.full = nn.Parameter(torch.zeros(1))

        def forward(self, x, t):
            return x * self.full + self.small.float()

    model = NetworkDenoiser(Two(), VP())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def steep(model, x0, t, noise, cond=None):
        return 1e5 * model.network.full * torch.ones(len(x0)) + model.network.small.float()

    (step,) = fit(model, [ROWS], optimizer, loss=steep)
    assert step.gradient_norm == pytest.approx(1e5, rel=1e-6)


def test_a_checkpoint_of_an_earlier_version_is_refused(tmp_path):
    quiet(small(), TOY, steps=2, batch=8, out=tmp_path)
    path = tmp_path / "checkpoints" / "step-00000002" / "training.safetensors"
    tensors, header = load_tensors(path)
    del tensors["norms"]
    save_tensors(path, tensors, header)
    with pytest.raises(CheckpointError, match="step-00000002 is of an earlier version"):
        quiet(small(), TOY, steps=2, batch=8, out=tmp_path, resume=True)
