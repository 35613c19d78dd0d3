"""Two processes on loopback against one: the same weights, the same samples."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sdekit import VP, GaussianMixture, NetworkDenoiser, sample, samplers, train
from sdekit.networks import MLP
from sdekit.training import DenoisingLoss
from sdekit.world import ALONE, World

TOY = GaussianMixture([0.3, 0.7], [-1.4, 0.6], 0.4)
ROWS = torch.randn(100, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(100) % 3

SETUPS = {
    "endless": (TOY, {"batch": 64}),
    "rows": (ROWS, {"batch": 24, "accumulate": 3}),
    "importance": (TOY, {"batch": 32, "loss": DenoisingLoss("likelihood"), "times": "importance"}),
    "conditions": (
        ROWS,
        {"batch": 16, "cond": torch.eye(3)[LABELS], "cond_dropout": 0.3, "cond_null": 0},
    ),
}


def run(setup: str, out: Path, **changes):
    """One process's part of a named run; the only one if nobody launched it."""
    data, settings = SETUPS[setup]
    dim = 1 if data is TOY else 2
    torch.manual_seed(World.current().rank)  # what processes start with must not matter
    network = MLP(dim, hidden=16, depth=2, cond_dim=3 if "cond" in settings else 0)
    if World.current().rank == 0:
        torch.manual_seed(5)
        network = MLP(dim, hidden=16, depth=2, cond_dim=3 if "cond" in settings else 0)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    options = {"steps": 30, "seed": 3, "warmup": 5, "progress": False, "checkpoint_every": 10}
    held = {"validation": data if setup != "conditions" else None, "evaluate_every": 15}
    model = NetworkDenoiser(network.double(), VP())
    return train(model, data, out=out, **{**options, **held, **settings, **changes})


def launched(code: str, *arguments: object, size: int = 2) -> None:
    """Run code in `size` processes of one group, as `torchrun` starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    head = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    head += "import torch; torch.set_num_threads(1); import test_distributed as t\n"
    head += "from pathlib import Path\n"
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    common |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", head + code, *map(str, arguments)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    errors = [process.communicate(timeout=180)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * size, "\n".join(errors)


@pytest.mark.slow
@pytest.mark.parametrize("setup", SETUPS)
def test_two_processes_on_half_batches_are_one_process(tmp_path, setup):
    """Equal to 1e-5, and closer in float64, where only the order of sums differs."""
    launched(f"t.run({setup!r}, Path(sys.argv[1]))", tmp_path / "two")
    one = run(setup, tmp_path / "one")
    two = NetworkDenoiser.load(tmp_path / "two" / "checkpoints" / "step-00000030")
    state = two.state_dict()
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-11)
    names = sorted(p.name for p in (tmp_path / "two" / "checkpoints").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "one" / "checkpoints").iterdir())
    log = [(tmp_path / d / "log.csv").read_text().split() for d in ("one", "two")]
    assert log[0] == log[1]


@pytest.mark.slow
def test_two_processes_stopped_and_resumed_are_two_that_were_not(tmp_path):
    code = """
t.run("rows", Path(sys.argv[1]))
t.run("rows", Path(sys.argv[2]), callback=lambda step, _: step.index == 12)
result = t.run("rows", Path(sys.argv[2]), resume=True)
assert len(result.losses) == 30
"""
    launched(code, tmp_path / "whole", tmp_path / "parts")
    for name in ("model.safetensors", "training.safetensors", "config.json"):
        files = [tmp_path / d / "checkpoints/step-00000030" / name for d in ("whole", "parts")]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_samples_are_shared_out_and_the_same(tmp_path):
    code = """
x = t.draw()
assert len(x) == 300
torch.save(x, Path(sys.argv[1]) / f"{t.World.current().rank}.pt")
"""
    launched(code, tmp_path)
    alone = draw()
    for rank in range(2):
        assert torch.equal(torch.load(tmp_path / f"{rank}.pt", weights_only=True), alone)


def draw() -> torch.Tensor:
    """Samples of a run with noise, shared by the processes there are."""
    model = TOY.denoiser(VP())
    return sample(
        model, (300, 1), sampler=samplers.EulerMaruyama(), steps=10, seed=4, world=World.current()
    ).x


# ------------------------------------------------------------------------------- one process


def test_alone_is_a_world_of_one():
    assert World.current() == ALONE
    assert ALONE.writes
    assert ALONE.share(7) == range(7)
    assert ALONE.any(True, torch.device("cpu"))
    assert ALONE.every("value") == ["value"]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [0, 1, 6, 100])
def test_shares_are_neighbours_and_cover_everything(n, size):
    shares = [World(rank, size).share(n) for rank in range(size)]
    assert [i for share in shares for i in share] == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_batch_that_processes_cannot_share_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(World, "current", classmethod(lambda cls: World(0, 3)))
    with pytest.raises(
        ValueError, match="batch must be a multiple of accumulate x processes, 2 x 3"
    ):
        run("endless", tmp_path / "x", accumulate=2)
    assert not (tmp_path / "x").exists()


def test_processes_of_a_machine_with_gpus_take_one_each(monkeypatch):
    for name, value in {
        "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    told = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: told.append(device))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda kind: told.append(kind))
    assert World.current() == ALONE  # nothing was joined in truth
    assert told == [1, "cpu:gloo,cuda:nccl"]


class Recorded(World):
    """One of two processes, of which the other told `others`."""

    def every(self, value):
        asked.append(value)
        return [value, value] if value is None or isinstance(value, int) else [value[:0], value]


asked: list = []


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_without_a_sample_takes_part_in_every_exchange(rank):
    """Of one sample the first of two processes has none; both must ask for as many values."""
    asked.clear()
    sample(
        TOY.denoiser(VP()),
        (1, 1),
        sampler=samplers.AdaptiveDPMSolver(),
        seed=0,
        world=Recorded(rank, 2),
    )
    assert len(asked) == 5
