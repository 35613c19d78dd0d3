# Bad input is passed on purpose.
# pyright: reportArgumentType=false
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sdekit import VP, CheckpointError, Denoiser, EDMPrecondition, NetworkDenoiser
from sdekit.denoisers import NetworkModel
from sdekit.networks import MLP, UNet
from sdekit.storage import load_tensors, remove_leftovers, save_tensors
from sdekit.training import fit
from sdekit.training.average import Average
from sdekit.training.checkpoints import TrainingState, checkpoints

CONFIG = {"lr": 0.01, "schedule": "constant", "steps": None}


def state(network: nn.Module | None = None, *, trained: int = 0, config=None) -> TrainingState:
    """A run after some steps; the networks of two calls start alike."""
    torch.manual_seed(0)
    network = MLP(1, hidden=4, depth=2) if network is None else network
    model = NetworkDenoiser(network, VP())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    average = Average(model, 100.0)
    new = TrainingState(model, average, optimizer, config or dict(CONFIG))
    advance(new, trained)
    return new


def advance(run: TrainingState, steps: int) -> None:
    """Steps on data of one event shape, a function of the step."""
    shape = (3, 1, 8, 8) if isinstance(run.model.network, UNet) else (3, 1)
    for k in range(run.step, run.step + steps):
        x0 = torch.randn(shape, generator=torch.Generator().manual_seed(k))
        (step,) = fit(run.model, [x0], run.optimizer, first=k)
        run.average.follow(k)
        run.losses.append(step.loss)
        run.step += 1


def tensors_of(run: TrainingState) -> dict[str, Tensor]:
    slots = run.optimizer.state_dict()["state"]
    return {
        **{f"model.{k}": v for k, v in run.model.state_dict().items()},
        **{f"ema.{k}": v for k, v in run.average.module.state_dict().items()},
        **{f"optimizer.{i}.{k}": v for i, s in slots.items() for k, v in s.items()},
    }


def assert_same(a: TrainingState, b: TrainingState) -> None:
    ours, theirs = tensors_of(a), tensors_of(b)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
        assert value.dtype == theirs[name].dtype
        assert value.stride() == theirs[name].stride()
    assert (a.step, a.losses) == (b.step, b.losses)


def channels_last() -> nn.Module:
    torch.manual_seed(1)
    return UNet(widths=(4, 8)).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("make", [lambda: None, channels_last], ids=["contiguous", "channels last"])
def test_restored_state_is_the_saved_one_and_goes_on_alike(tmp_path, make):
    run, fresh = state(make(), trained=5), state(make())
    path = run.save(tmp_path, keep=1)
    assert path == tmp_path / "step-00000005"
    assert fresh.restore_newest(tmp_path) == path
    assert_same(fresh, run)
    advance(run, 4)
    advance(fresh, 4)
    assert_same(fresh, run)


def test_a_run_of_no_steps_is_a_state_too(tmp_path):
    run, fresh = state(), state(trained=2)
    run.save(tmp_path, keep=1)
    fresh.restore_newest(tmp_path)
    assert_same(fresh, run)


def test_float64_and_zero_dimensional_tensors_survive(tmp_path):
    run = state(MLP(1, hidden=4, depth=1).double())
    run.optimizer = torch.optim.AdamW(run.model.parameters(), lr=0.01, amsgrad=True)
    run.save(tmp_path, keep=1)
    fresh = state(MLP(1, hidden=4, depth=1).double())
    fresh.restore_newest(tmp_path)
    assert_same(fresh, run)


def test_saving_what_was_restored_gives_the_same_bytes(tmp_path):
    run, fresh = state(trained=3), state()
    first = run.save(tmp_path / "a", keep=1)
    fresh.restore_newest(tmp_path / "a")
    second = fresh.save(tmp_path / "b", keep=1)
    names = sorted(p.name for p in first.iterdir())
    assert names == ["config.json", "model.safetensors", "training.safetensors"]
    for name in names:
        assert (second / name).read_bytes() == (first / name).read_bytes()


def test_saving_does_not_alias_or_change_the_run(tmp_path):
    run = state(trained=2)
    before = {k: v.clone() for k, v in tensors_of(run).items() if not k.startswith("ema.")}
    path = run.save(tmp_path, keep=1)
    advance(run, 1)
    saved = load_tensors(path / "training.safetensors")[0]
    assert all(torch.equal(saved[k], v) for k, v in before.items())


def test_checkpoint_is_a_model_file(tmp_path):
    run = state(trained=3)
    path = run.save(tmp_path, keep=1)
    loaded = NetworkDenoiser.load(path)
    average = run.average.module.state_dict()
    assert all(torch.equal(v, average[k]) for k, v in loaded.state_dict().items())
    with pytest.raises(CheckpointError, match="holds a NetworkDenoiser, not a EDMPrecondition"):
        EDMPrecondition.load(path)


def test_checkpoint_of_a_preconditioned_model_is_a_model_file_too(tmp_path):
    model = EDMPrecondition(MLP(1, hidden=4, depth=1), VP(), sigma_data=0.7)
    optimizer = torch.optim.AdamW(model.parameters())
    path = TrainingState(model, Average(model, 100.0), optimizer, {}).save(tmp_path, keep=1)
    loaded, x = NetworkModel.load(path), torch.randn(5, 1)
    assert isinstance(loaded, EDMPrecondition)
    assert (loaded.sigma_data, loaded.process) == (0.7, VP())
    assert torch.equal(loaded.predict(x, 0.3), model.predict(x, 0.3))


class Bare(nn.Module, Denoiser):
    """A denoiser of the user's own."""

    process, prediction = VP(), "noise"

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def predict(self, x, t, **conditions):
        return self.weight * x


def test_checkpoint_of_another_denoiser_resumes_but_is_no_model_file(tmp_path):
    model = Bare()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = TrainingState(model, Average(model, 100.0), optimizer, {}, step=3)
    with pytest.raises(CheckpointError, match="holds no model"):
        NetworkDenoiser.load(run.save(tmp_path, keep=1))
    assert run.restore_newest(tmp_path) == tmp_path / "step-00000003"


def test_newest_are_kept(tmp_path):
    run = state()
    for step in (1, 2, 10, 100):
        run.step = step
        run.save(tmp_path, keep=2)
    assert [p.name for p in checkpoints(tmp_path)] == [
        "step-00000010",
        "step-00000100",
    ]


def test_other_files_are_not_checkpoints(tmp_path):
    for name in ("step-1", "step-00000001.bak", "step-00000009"):
        (tmp_path / name).write_text("mine")
    assert checkpoints(tmp_path) == []
    assert state().restore_newest(tmp_path) is None
    state(trained=1).save(tmp_path, keep=1)
    assert len(list(tmp_path.iterdir())) == 4
    assert checkpoints(tmp_path / "nowhere") == []


def test_leftovers_of_killed_writes_are_removed(tmp_path):
    """A process killed just before the rename leaves its temporary file, and the old checkpoint whole."""
    old = state(trained=1).save(tmp_path, keep=2)
    code = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from sdekit import storage
import test_checkpoints as t
storage.Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
t.state(trained=2).save(Path(sys.argv[2]), keep=2)
"""
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code, here, str(tmp_path)], capture_output=True, check=False
    )
    assert done.returncode == -9, done.stderr
    left = [p for p in tmp_path.iterdir() if p != old]
    assert [re.sub(r"\d+\.tmp", "X.tmp", p.name) for p in left] == [".step-00000002.X.tmp"]
    assert checkpoints(tmp_path) == [old]
    other = tmp_path / ".other.tmp"
    other.write_text("mine")
    remove_leftovers(tmp_path, "step-*")
    assert sorted(tmp_path.iterdir()) == sorted([old, other])
    fresh = state()
    assert fresh.restore_newest(tmp_path) == old
    assert_same(fresh, state(trained=1))


# -------------------------------------------------------------------------------- damage


def flip(path: Path) -> None:
    """One bit in the last tensor."""
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 4
    path.write_bytes(raw)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, path)


def pickled(path: Path) -> None:
    torch.save({"x": torch.zeros(1)}, path)


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors"])
@pytest.mark.parametrize("damage", [flip, cut, empty, foreign, pickled, Path.unlink])
def test_damaged_newest_is_passed_over_with_a_warning(tmp_path, damage, name):
    run = state(trained=1)
    run.save(tmp_path, keep=2)
    advance(run, 1)
    newest = run.save(tmp_path, keep=2)
    damage(newest / name)
    fresh = state()
    with pytest.warns(UserWarning, match=f"{newest.name}.* trying the one before"):
        assert fresh.restore_newest(tmp_path) == tmp_path / "step-00000001"
    assert_same(fresh, state(trained=1))


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_later_checkpoint_does_not_push_out_a_whole_one(tmp_path, keep):
    run = state(trained=1)
    run.save(tmp_path, keep=2)
    advance(run, 5)
    cut(run.save(tmp_path, keep=2) / "model.safetensors")
    again = state()
    with pytest.warns(UserWarning, match="trying the one before"):
        again.restore_newest(tmp_path)
    advance(again, 2)
    saved = again.save(tmp_path, keep=keep)
    assert saved.is_dir()
    fresh = state()
    with pytest.warns(UserWarning, match="trying the one before"):
        assert fresh.restore_newest(tmp_path) == saved
    advance(fresh, 3)
    fresh.save(tmp_path, keep=keep)  # over the damaged one
    assert state().restore_newest(tmp_path) == tmp_path / "step-00000006"


def test_nothing_whole_is_an_error(tmp_path):
    run = state(trained=1)
    cut(run.save(tmp_path, keep=1) / "training.safetensors")
    with (
        pytest.warns(UserWarning, match="trying the one before"),
        pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole: \['step-00000001"),
    ):
        run.restore_newest(tmp_path)


# ------------------------------------------------------------------------------ other runs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.02}, "lr was 0.01, now 0.02"),
        ({"schedule": "cosine"}, "schedule was 'constant', now 'cosine'"),
        ({"steps": 10, "lr": 1.0}, "lr was 0.01, now 1.0, steps was None, now 10"),
        ({"newer": 1}, "newer was None, now 1"),
    ],
)
def test_other_settings_are_named(tmp_path, changes, message):
    state(trained=1).save(tmp_path, keep=1)
    fresh = state(config={**CONFIG, **changes})
    before = {k: v.clone() for k, v in tensors_of(fresh).items()}
    with pytest.raises(CheckpointError, match=f"other settings: {re.escape(message)}"):
        fresh.restore_newest(tmp_path)
    assert all(torch.equal(v, before[k]) for k, v in tensors_of(fresh).items())
    assert fresh.step == 0


def test_another_network_is_named(tmp_path):
    state(trained=1).save(tmp_path, keep=1)
    with pytest.raises(
        CheckpointError, match=r"shapes \['network.layers.0.bias: file \(4,\), netw"
    ):
        state(MLP(1, hidden=8, depth=2)).restore_newest(tmp_path)
    with pytest.raises(CheckpointError, match=r"missing \['network.layers.1.bias'"):
        state(MLP(1, hidden=4, depth=3)).restore_newest(tmp_path)
    with pytest.raises(CheckpointError, match=r"unexpected \['network.layers.0.bias'"):
        state(MLP(1, hidden=4, depth=1)).restore_newest(tmp_path)


def test_a_checkpoint_without_the_average_is_named(tmp_path):
    path = state(trained=1).save(tmp_path, keep=1) / "model.safetensors"
    save_tensors(path, {}, load_tensors(path)[1])
    with pytest.raises(CheckpointError, match=r"missing \['network"):
        state().restore_newest(tmp_path)


def test_failed_write_leaves_the_run_and_its_checkpoint(tmp_path, monkeypatch):
    run = state(trained=1)
    old = run.save(tmp_path, keep=1)
    advance(run, 1)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("sdekit.storage.os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            run.save(tmp_path, keep=1)
    assert list(tmp_path.iterdir()) == [old]
    new = run.save(tmp_path, keep=1)
    assert list(tmp_path.iterdir()) == [new]
