"""MNIST and Fashion-MNIST from files that are on the machine: nothing is downloaded.

Sources: Y. LeCun et al., Gradient-based learning applied to document recognition, 1998; H. Xiao, K. Rasul
and R. Vollgraf, Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms, 2017.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from sdekit.data.images.idx import read_idx
from sdekit.data.images.labelled import Labelled
from sdekit.errors import check_flag

#: Where Debian's package dataset-fashion-mnist puts its files.
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_DIGITS = tuple("0123456789")
_CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def mnist(root: str | Path | None = None, *, train: bool = True) -> Labelled:
    """MNIST's handwritten digits: 60,000 images (n, 1, 28, 28) uint8 to train on, or 10,000 to test.

    Args:
        root: folder with the four IDX files (.gz or not), or one above it: `mnist` or torchvision's
            `MNIST/raw`. Without it, $SDEKIT_DATA and ./data are searched for such a folder.
        train: the training part or the test part.

    Raises:
        FileNotFoundError: the files are nowhere; the message says where they may be put.
        ValueError: a file is damaged, or labels and images do not match.
    """
    return _read("MNIST", ("mnist", "MNIST", "MNIST/raw"), root, train, _DIGITS)


def fashion_mnist(root: str | Path | None = None, *, train: bool = True) -> Labelled:
    """Fashion-MNIST's pieces of clothing, in the layout of `mnist`.

    Args:
        root: as in `mnist`, the folders being `fashion-mnist` and `FashionMNIST/raw`. Without it, the folder
            of Debian's package dataset-fashion-mnist is searched last.
        train: the training part or the test part.

    Raises:
        FileNotFoundError: the files are nowhere; the message says where they may be put.
        ValueError: a file is damaged, or labels and images do not match.
    """
    names = ("fashion-mnist", "FashionMNIST", "FashionMNIST/raw")
    return _read("Fashion-MNIST", names, root, train, _CLOTHES)


def _read(
    title: str,
    names: tuple[str, ...],
    root: str | Path | None,
    train: bool,
    classes: tuple[str, ...],
) -> Labelled:
    part = "train" if check_flag("train", train) else "t10k"
    wanted = f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"
    folders = list(_folders(names, root))
    for folder in folders:
        found = [_file(folder, name) for name in wanted]
        if found[0] and found[1]:
            images, labels = read_idx(found[0]), read_idx(found[1])
            return _checked(folder, images, labels, classes)
    raise FileNotFoundError(_advice(title, names, wanted, folders))


def _folders(names: tuple[str, ...], root: str | Path | None) -> Iterator[Path]:
    """Folders to look in. Only a root that was given may hold the files itself: the two sets share names."""
    if root is not None:
        yield Path(root)
        yield from (Path(root) / name for name in names)
        return
    bases = (os.environ.get("SDEKIT_DATA"), "data")
    yield from (Path(base) / name for base in bases if base for name in names)
    if "fashion-mnist" in names:
        yield _DEBIAN


def _file(folder: Path, name: str) -> Path | None:
    """The file of this name in the folder: raw or gzipped, the dash before idx perhaps a dot."""
    variants = (name, name.replace("-idx", ".idx"))
    candidates = (folder / (stem + end) for stem in variants for end in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def _checked(folder: Path, images: Tensor, labels: Tensor, classes: tuple[str, ...]) -> Labelled:
    """Both files, if they belong together."""
    if (
        images.dtype != torch.uint8
        or images.ndim != 3
        or labels.dtype != torch.uint8
        or labels.ndim != 1
    ):
        raise ValueError(
            f"{folder} must hold images (n, h, w) and labels (n,) of bytes, got {tuple(images.shape)} "
            f"{images.dtype} and {tuple(labels.shape)} {labels.dtype}"
        )
    if len(images) != len(labels):
        raise ValueError(
            f"{folder} must have a label an image, got {len(labels)} for {len(images)}"
        )
    if len(labels) and int(labels.max()) >= len(classes):
        raise ValueError(f"{folder} must have labels 0 to 9, got {int(labels.max())}")
    return Labelled(images[:, None], labels.long(), classes)


def _advice(
    title: str, names: tuple[str, ...], wanted: tuple[str, str], folders: list[Path]
) -> str:
    """What was searched and how to get the files."""
    ways = [
        f"put its IDX files (.gz or not) in {names[0]}/ under the folder that $SDEKIT_DATA names",
        f"give the root of a torchvision data set (files in {names[-1]}/)",
    ]
    if "fashion-mnist" in names:
        ways.insert(0, "apt install dataset-fashion-mnist (Debian, Ubuntu)")
    return (
        f"{title} is not here: no {wanted[0]} and {wanted[1]} in {', '.join(map(str, folders))}. "
        f"Ways to get it: {'; '.join(ways)}"
    )
