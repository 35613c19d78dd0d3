"""IDX files, the format of MNIST: a header of sizes and then plain numbers, perhaps in a gzip file.

The header is believed only as far as the file goes: nothing is allocated for bytes that are not there, and
nothing in a file is ever run. Source: Y. LeCun, C. Cortes and C. Burges, The MNIST database.
"""

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import torch
from torch import Tensor

#: Types by the third byte of the magic number, as they lie in the file: big end first.
_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_CHUNK = 1 << 20


def read_idx(path: str | Path) -> Tensor:
    """The array in an IDX file, raw or gzipped (told by its first bytes, not by its name).

    Returns:
        A tensor in the file's shape and type (uint8 for MNIST).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an IDX file, a size in it does not match its length, or a damaged gzip file.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream = cast("BinaryIO", gzip.GzipFile(fileobj=file)) if zipped else file
            shape, kind = _header(path, stream)
            payload = _exactly(path, stream, math.prod(shape) * int(kind[2]), shape)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is a damaged gzip file: {error}") from error
    return _tensor(payload, kind, shape)


def _header(path: Path, stream: BinaryIO) -> tuple[tuple[int, ...], str]:
    """Shape and type."""
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES or not magic[3]:
        raise ValueError(
            f"{path} is not an IDX file: it begins with {magic.hex(' ') or 'nothing'}, not with 00 00, a "
            "type (08 for bytes) and a number of dimensions"
        )
    sizes = stream.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise ValueError(f"{path} is truncated: it ends within its header")
    shape = tuple(int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4))
    return shape, _TYPES[magic[2]]


def _exactly(path: Path, stream: BinaryIO, wanted: int, shape: tuple[int, ...]) -> bytearray:
    """The bytes left in the stream, if they are as many as wanted; never reads more than one byte beyond."""
    payload = bytearray()
    while chunk := stream.read(min(_CHUNK, wanted + 1 - len(payload))):
        payload += chunk
    if len(payload) != wanted:
        has = f"only {len(payload)}" if len(payload) < wanted else "more"
        sizes = " x ".join(map(str, shape))
        raise ValueError(
            f"{path} has the wrong size: its header says {sizes}, {wanted} bytes, and it has {has}"
        )
    return payload


def _tensor(payload: bytearray, kind: str, shape: tuple[int, ...]) -> Tensor:
    import numpy as np

    array = np.frombuffer(payload, dtype=kind)
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False)).reshape(shape)
