"""Folders of pictures, read with Pillow (the optional extra `images`)."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdekit.data.images.labelled import Labelled
from sdekit.errors import check_choice, check_integer

#: Formats that are decoded; among those left out is PostScript, which would be run by an interpreter.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "WEBP")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".webp"}


def image_folder(root: str | Path, size: int, *, mode: str = "RGB") -> Labelled:
    """The pictures under `root`, their shorter side resized to `size` and cropped to the middle square.

    A folder of folders has a class for each, in the order of their names; a folder of pictures has no
    labels. Pictures come in the order of their names, turned as their EXIF orientation says.

    Args:
        root: the folder.
        size: side of the result in pixels, at least 1.
        mode: "RGB" (3 channels) or "L" (1, grey); what is transparent becomes its own colour.

    Returns:
        Images (n, 3 or 1, size, size) uint8, with labels and classes where there are.

    Raises:
        ImportError: Pillow is missing.
        FileNotFoundError: no such folder, or no picture in it or in one of its classes.
        ValueError: a file is damaged, in no known format, deeper than 8 bits, or too large to be decoded.
    """
    size, mode = check_integer("size", size, 1), check_choice("mode", mode, ("RGB", "L"))
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"root must be a folder, got {root}")
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if folders and _pictures(root, required=False):
        raise ValueError(f"root must hold pictures or folders of them, {root} has both")
    groups = [_pictures(folder) for folder in folders or [root]]
    pictures = [_read(path, size, mode) for group in groups for path in group]
    labels = torch.tensor([k for k, group in enumerate(groups) for _ in group])
    classes = tuple(folder.name for folder in folders)
    return Labelled(torch.stack(pictures), labels if folders else None, classes)


def _pictures(folder: Path, *, required: bool = True) -> list[Path]:
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES and p.is_file())
    if required and not found:
        raise FileNotFoundError(f"no picture ({', '.join(sorted(_SUFFIXES))}) in {folder}")
    return found


def _read(path: Path, size: int, mode: str) -> Tensor:
    """One picture, (c, size, size) uint8."""
    image_module, ops = _pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", image_module.DecompressionBombWarning)
            with image_module.open(path, formats=_FORMATS) as picture:
                if picture.mode.startswith(("I", "F")):
                    raise ValueError(f"its pixels have more than 8 bits (mode {picture.mode})")
                square = ops.fit(
                    ops.exif_transpose(picture).convert(mode),
                    (size, size),
                    method=image_module.Resampling.LANCZOS,
                )
    except (
        OSError,  # includes Pillow's own "cannot identify"
        SyntaxError,
        ValueError,
        image_module.DecompressionBombError,
        image_module.DecompressionBombWarning,
    ) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error
    levels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8)
    return levels.reshape(size, size, -1).permute(2, 0, 1)


def _pillow() -> Any:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError('pictures are read by Pillow: pip install "sdekit[images]"') from error
    return Image, ImageOps
