# Bad input is passed on purpose.
# pyright: reportArgumentType=false
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sdekit import storage
from sdekit.errors import CheckpointError
from sdekit.storage import FORMAT_VERSION, load_tensors, save_tensors

HEADER = {
    "step": 7,
    "note": 'a \N{GREEK SMALL LETTER SIGMA} and " quotes',
    "nested": {"rates": [0.1, 1e-300]},
}


def tensors() -> dict[str, Tensor]:
    grid = torch.arange(12.0).reshape(3, 4)
    return {
        "plain": grid,
        "transposed": grid.T,
        "shared": grid[1:],
        "double": grid.double() / 3,
        "half": grid.half(),
        "brain": grid.bfloat16(),
        "flags": grid > 4,
        "long": grid.long(),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "tracked": torch.nn.Parameter(grid + 1),
    }


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "x.safetensors"
    save_tensors(path, tensors(), HEADER)
    loaded, header = load_tensors(str(path))
    assert {k: header[k] for k in HEADER} == HEADER
    assert header["format_version"] == FORMAT_VERSION
    assert loaded.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor.detach())
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_saving_again_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    save_tensors(one, tensors(), HEADER)
    save_tensors(two, *load_tensors(one))
    assert load_tensors(two)[1] == load_tensors(one)[1]
    save_tensors(two, tensors(), HEADER)
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("place", ["write", "sync", "rename"])
def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.zeros(3)}, {"step": 1})
    before = path.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    where = {"write": (Path, "open"), "sync": (storage.os, "fsync"), "rename": (Path, "replace")}
    monkeypatch.setattr(*where[place], full)
    with pytest.raises(OSError, match="No space left"):
        save_tensors(path, {"a": torch.ones(3)}, {"step": 2})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]  # noqa: PTH208 - hidden files count


SAVER = """
import sys, torch
from sdekit.storage import save_tensors
torch.set_num_threads(1)
step = 0
while True:
    step += 1
    save_tensors(sys.argv[1], {"x": torch.full((400_000,), float(step))}, {"step": step})
    if step == 1:
        print("ready", flush=True)
"""


def test_killed_in_the_middle_of_saves_the_file_is_whole(tmp_path: Path) -> None:
    """Twelve kills at different moments of a save: what is there loads, and belongs together."""
    path = tmp_path / "x.safetensors"
    process = None
    for kill in range(12):
        if process is None or process.poll() is not None:
            process = subprocess.Popen([sys.executable, "-c", SAVER, path], stdout=subprocess.PIPE)
            assert process.stdout is not None
            with process.stdout as pipe:
                assert pipe.readline() == b"ready\n"
        time.sleep(0.003 + 0.0017 * kill)
        process.send_signal(signal.SIGSTOP)
        loaded, header = load_tensors(path)  # frozen at any moment it must be whole, too
        assert torch.equal(loaded["x"], torch.full((400_000,), float(header["step"])))
        process.send_signal(signal.SIGCONT)
        if kill % 4 == 3:
            process.kill()
            process.wait()
            loaded, header = load_tensors(path)
            assert torch.equal(loaded["x"], torch.full((400_000,), float(header["step"])))
    assert process is not None
    assert process.returncode == -signal.SIGKILL


def test_every_damaged_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor([3])}, {"step": 7})
    whole = path.read_bytes()
    for position in range(len(whole)):
        for bit in (0x01, 0x20):
            damaged = bytearray(whole)
            damaged[position] ^= bit
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=r"damaged|no header"):
                load_tensors(path)


def test_a_flipped_bit_names_the_tensor(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"weight": torch.zeros(100)}, {})
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="'weight' does not match its digest"):
        load_tensors(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"weight": torch.zeros(1000)}, {})
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match=r"x\.safetensors is damaged"):
        load_tensors(path)


def test_a_pickled_file_is_refused_unread(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "model.pt"
    torch.save({"weight": torch.zeros(3), "trap": Trap()}, path)
    with pytest.raises(CheckpointError, match="Pickled checkpoints are not read"):
        load_tensors(path)
    assert not (tmp_path / "ran").exists()


def test_a_newer_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(storage, "FORMAT_VERSION", FORMAT_VERSION + 1)
        save_tensors(path, {"a": torch.zeros(1)}, {})
    message = (
        f"newer sdekit: its format is {FORMAT_VERSION + 1}, this one reads up to {FORMAT_VERSION}"
    )
    with pytest.raises(CheckpointError, match=message):
        load_tensors(path)


def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "theirs.safetensors"
    for metadata in (None, {"format": "pt"}):
        save_file({"a": torch.zeros(1)}, path, metadata=metadata)
        with pytest.raises(CheckpointError, match="not written by sdekit"):
            load_tensors(path)
    save_file({"a": torch.zeros(1)}, path, metadata={"sdekit": json.dumps({"format_version": 1})})
    with pytest.raises(CheckpointError, match="header does not match its digest"):
        load_tensors(path)


def test_a_missing_file_lists_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "model-1.safetensors").touch()
    with pytest.raises(
        FileNotFoundError, match=r"no file .*model-2.*there are \['model-1.safetensors'\]"
    ):
        load_tensors(tmp_path / "model-2.safetensors")
    with pytest.raises(FileNotFoundError, match="there are none"):
        load_tensors(tmp_path / "nowhere" / "x")
    with pytest.raises(FileNotFoundError, match="no file"):
        load_tensors(tmp_path)


def test_a_header_that_is_not_json_fails_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="JSON"):
        save_tensors(tmp_path / "x", {"a": torch.zeros(1)}, {"bad": object()})
    assert not list(tmp_path.iterdir())
