"""Files of tensors: written atomically, read without running code, checked against their digests.

One format everywhere: safetensors, with a JSON header (what made the file, and a SHA-256 of every tensor,
since a flipped bit in tensor data loads silently otherwise).
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdekit.errors import CheckpointError

#: Raised when the meaning of the header changes.
FORMAT_VERSION = 1


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> None:
    """Write tensors and a JSON-able header so that `path` is always either the old file or the new one.

    A temporary file in the same folder is written, synced to disk and renamed over `path`.
    """
    from safetensors.torch import save

    path = Path(path)
    plain = {k: t.detach().cpu().contiguous().clone() for k, t in sorted(tensors.items())}
    full = {
        "format_version": FORMAT_VERSION,
        "digests": {name: _digest(t) for name, t in plain.items()},
        **header,
    }
    text = json.dumps(full)
    # One entry: safetensors writes several in any order, and equal models should be equal files.
    payload = save(plain, metadata={"sdekit": f"{_text_digest(text)} {text}"})
    _write(path, payload)


def save_text(path: str | Path, text: str) -> None:
    """Write a text so that `path` is always either the old file or the new one."""
    _write(Path(path), text.encode())


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write into that becomes `path` at the end: whole, or not at all.

    One that is there already is removed just before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = _temporary(path)
    draft.mkdir()
    try:
        yield draft
        _sync_folder(draft)
        if path.exists():
            remove_folder(path)
        draft.rename(path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    _sync_folder(path.parent)


def remove_folder(path: Path) -> None:
    """Delete a folder so that it is never seen half deleted: it loses its name first."""
    condemned = path.with_name(f".{path.name}.{os.getpid()}.old.tmp")
    path.rename(condemned)
    shutil.rmtree(condemned)


def remove_leftovers(folder: Path, names: str) -> None:
    """Delete what killed writes and removals of such names (a glob pattern) left in a folder."""
    for path in folder.glob(f".{names}.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and header of a file written by `save_tensors`.

    Raises:
        FileNotFoundError: no such file; the message lists what the folder has.
        CheckpointError: truncated or damaged, not in this format (pickled checkpoints are refused: reading
            them can run code), or from a newer version.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.safetensors"))
        raise FileNotFoundError(f"no file {path}; in {path.parent} there are {near or 'none'}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, UnicodeDecodeError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged or is not a safetensors file ({error}). Pickled checkpoints are not read, "
            "since loading one can run code: convert it with safetensors on a machine you trust"
        ) from error
    header = _checked_header(path, metadata)
    digests = header.pop("digests")
    for name in digests.keys() | tensors.keys():
        if name not in tensors or _digest(tensors[name]) != digests.get(name):
            raise CheckpointError(f"{path} is damaged: tensor {name!r} does not match its digest")
    return tensors, header


def _checked_header(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """The header, if it is ours, undamaged and of a version that this code reads."""
    if "sdekit" not in metadata:
        raise CheckpointError(f"{path} was not written by sdekit: it has no header")
    digest, _, text = metadata["sdekit"].partition(" ")
    if _text_digest(text) != digest:
        raise CheckpointError(f"{path} is damaged: its header does not match its digest")
    header = json.loads(text)
    if header["format_version"] > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} was written by a newer sdekit: its format is {header['format_version']}, "
            f"this one reads up to {FORMAT_VERSION}"
        )
    return header


def _digest(tensor: Tensor) -> str:
    """SHA-256 of dtype, shape and bytes."""
    flat = tensor.reshape(-1).view(torch.uint8) if tensor.numel() else tensor.new_empty(0)
    kind = f"{tensor.dtype}{tuple(tensor.shape)}".encode()
    return hashlib.sha256(kind + flat.numpy().tobytes()).hexdigest()


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _write(path: Path, payload: bytes) -> None:
    """Write a temporary file in the same folder, sync it to disk, rename it over `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system lets a folder be synced."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
