"""IDX files, MNIST's folders and folders of pictures; the files are written by the tests."""

import gzip
import math
import re
import struct
import sys
import tracemalloc
import warnings
from pathlib import Path

import pytest
import torch
from helpers import bad_input
from PIL import Image
from torch import Tensor

from sdekit.data.images import Labelled, fashion_mnist, image_folder, mnist, read_idx

CODES = {
    torch.uint8: (0x08, "B"), torch.int8: (0x09, "b"), torch.int16: (0x0B, "h"), torch.int32: (0x0C, "i"),
    torch.float32: (0x0D, "f"), torch.float64: (0x0E, "d"),
}  # fmt: skip


def idx(values: Tensor) -> bytes:
    """The bytes of an IDX file."""
    code, letter = CODES[values.dtype]
    head = bytes([0, 0, code, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return head + struct.pack(f">{values.numel()}{letter}", *values.flatten().tolist())


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def levels(*shape: int) -> Tensor:
    return (torch.arange(math.prod(shape)) * 37 % 256).to(torch.uint8).reshape(shape)


def lay_out(folder: Path, n: int = 12, end: str = ".gz", part: str = "train") -> Tensor:
    """A tiny MNIST of n images 5 x 4."""
    images, labels = levels(n, 5, 4), (torch.arange(n) % 10).to(torch.uint8)
    written(folder / f"{part}-images-idx3-ubyte{end}", idx(images))
    written(folder / f"{part}-labels-idx1-ubyte{end}", idx(labels))
    return images


# ---- IDX -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", CODES, ids=str)
@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("shape", [(7,), (3, 2), (2, 5, 4), (0, 3)], ids=str)
def test_idx_files_are_read(tmp_path, dtype, end, shape):
    values = (torch.arange(math.prod(shape)) - 3).to(dtype).reshape(shape) / 1
    values = values.to(dtype)
    found = read_idx(written(tmp_path / f"x{end}", idx(values)))
    assert found.dtype == dtype
    assert torch.equal(found, values)


def test_a_gzip_file_is_known_by_its_bytes(tmp_path):
    path = tmp_path / "no-suffix"
    path.write_bytes(gzip.compress(idx(levels(2, 3))))
    assert torch.equal(read_idx(path), levels(2, 3))


GOOD = idx(levels(2, 5, 4))
ZIPPED = gzip.compress(GOOD, mtime=0)
BROKEN = {
    "empty": (b"", "it begins with nothing"),
    "pickle": (b"\x80\x04\x95\x10" + GOOD, "it begins with 80 04 95 10"),
    "png": (b"\x89PNG" + GOOD, "is not an IDX file"),
    "unknown type": (b"\0\0\x07" + GOOD[3:], "is not an IDX file"),
    "no dimensions": (b"\0\0\x08\0" + GOOD[4:], "is not an IDX file"),
    "little end first": (b"\x03\x08\0\0" + GOOD[4:], "is not an IDX file"),
    "short header": (GOOD[:9], "ends within its header"),
    "short": (GOOD[:-1], "2 x 5 x 4, 40 bytes, and it has only 39"),
    "long": (GOOD + b"!", "40 bytes, and it has more"),
    "huge": (GOOD[:4] + b"\xff" * 12 + GOOD[16:], "has only 40"),
    "many dimensions": (b"\0\0\x08\xff" + b"\xff" * 1020 + b"1", "has only 1"),
}


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("name", BROKEN)
def test_broken_idx_files_are_refused(tmp_path, name, end):
    content, words = BROKEN[name]
    path = written(tmp_path / f"x{end}", content)
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("cut", range(3, len(ZIPPED), 5))
def test_truncated_gzip_files_are_refused(tmp_path, cut):
    path = tmp_path / "x.gz"
    path.write_bytes(ZIPPED[:cut])
    with pytest.raises(
        ValueError, match=r"x\.gz is (a damaged gzip file|truncated|not an IDX file)"
    ):
        read_idx(path)


@pytest.mark.parametrize("place", [2, 3, *range(10, len(ZIPPED) - 9), *range(-8, 0)])
def test_damaged_gzip_files_are_refused(tmp_path, place):
    """Nothing depends on bytes 4 to 9, a date and a system, nor on the bits that fill the last data byte."""
    damaged = bytearray(ZIPPED)
    damaged[place] ^= 0x10
    path = tmp_path / "x.gz"
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"x\.gz"):
        read_idx(path)


def test_neither_a_huge_size_nor_a_bomb_takes_memory(tmp_path):
    huge = written(tmp_path / "huge", BROKEN["huge"][0])
    bomb = written(tmp_path / "bomb.gz", GOOD + bytes(50_000_000))
    tracemalloc.start()
    for path in (huge, bomb):
        with pytest.raises(ValueError, match="wrong size"):
            read_idx(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4_000_000


# ---- MNIST ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize(
    ("read", "folder"),
    [
        (mnist, "."), (mnist, "mnist"), (mnist, "MNIST/raw"), (fashion_mnist, "."),
        (fashion_mnist, "fashion-mnist"), (fashion_mnist, "FashionMNIST/raw"),
    ],
)  # fmt: skip
def test_a_root_is_searched(tmp_path, read, folder, end):
    images = lay_out(tmp_path / folder, end=end)
    lay_out(tmp_path / folder, n=3, part="t10k", end=end)
    found = read(tmp_path)
    assert torch.equal(found.images, images[:, None])
    assert found.labels.tolist() == [*range(10), 0, 1]
    assert found.labels.dtype == torch.int64
    assert len(found.classes) == 10
    assert repr(found) == "Labelled((12, 1, 5, 4) uint8, 10 named classes)"
    assert len(read(str(tmp_path), train=False).images) == 3


def test_names_with_a_dot_are_read(tmp_path):
    lay_out(tmp_path)
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    assert len(mnist(tmp_path).images) == 12


def test_without_a_root_the_environment_then_the_folder_data_are_searched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDEKIT_DATA", str(tmp_path / "store"))
    lay_out(tmp_path / "data" / "MNIST" / "raw", n=10)
    assert len(mnist().images) == 10
    lay_out(tmp_path / "store" / "mnist", n=11)
    assert len(mnist().images) == 11
    monkeypatch.delenv("SDEKIT_DATA")
    assert len(mnist().images) == 10


def test_one_set_is_never_taken_for_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sdekit.data.images.mnist_files._DEBIAN", tmp_path / "none")
    monkeypatch.setenv("SDEKIT_DATA", str(tmp_path))
    lay_out(tmp_path)  # of either set: the names are the same
    lay_out(tmp_path / "mnist")
    with pytest.raises(FileNotFoundError, match="Fashion-MNIST is not here"):
        fashion_mnist()


def test_a_missing_set_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sdekit.data.images.mnist_files._DEBIAN", tmp_path / "none")
    monkeypatch.delenv("SDEKIT_DATA", raising=False)
    with pytest.raises(FileNotFoundError) as caught:
        fashion_mnist()
    for words in (
        "apt install dataset-fashion-mnist",
        "$SDEKIT_DATA",
        "FashionMNIST/raw",
        "train-images-idx3",
    ):
        assert words in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"^MNIST is not here") as caught:
        mnist(tmp_path, train=False)
    for words in (str(tmp_path), "t10k-images-idx3", "$SDEKIT_DATA", "MNIST/raw"):
        assert words in str(caught.value)
    assert "apt" not in str(caught.value)


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    lay_out(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    for values, words in [
        (levels(11), "got 11 for 12"),
        (torch.full((12,), 10, dtype=torch.uint8), "labels 0 to 9, got 10"),
        (levels(12, 1), "labels (n,)"),
        (torch.zeros(12), "torch.float32"),
    ]:
        written(labels, idx(values))
        with pytest.raises(ValueError, match=r"must (have|hold)") as caught:
            mnist(tmp_path)
        assert words in str(caught.value)


def test_the_real_fashion_mnist_if_it_is_here():
    try:
        train, test = fashion_mnist(), fashion_mnist(train=False)
    except FileNotFoundError:
        pytest.skip("Fashion-MNIST is not on this machine")
    assert train.images.shape == (60_000, 1, 28, 28)
    assert test.images.shape == (10_000, 1, 28, 28)
    assert torch.bincount(train.labels).tolist() == [6_000] * 10  # type: ignore[arg-type]
    assert torch.bincount(test.labels).tolist() == [1_000] * 10  # type: ignore[arg-type]
    # The mean and standard deviation that its users quote for pixels in [0, 1].
    pixels = train.images.double() / 255
    assert float(pixels.mean()) == pytest.approx(0.2860, abs=5e-5)
    assert float(pixels.std()) == pytest.approx(0.3530, abs=5e-5)


# ---- folders of pictures -------------------------------------------------------------------------
def picture(path: Path, pixels: Tensor, **options: object) -> None:
    """Write (h, w) or (h, w, 3) levels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.numpy()).save(path, **options)


def test_classes_are_folders_and_everything_is_in_order(tmp_path):
    for k, name in enumerate(["b/2.png", "b/1.png", "a/x.PNG"]):
        picture(tmp_path / name, torch.full((6, 6, 3), 10 * k, dtype=torch.uint8))
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    (tmp_path / ".hidden").mkdir()
    found = image_folder(tmp_path, 6)
    assert isinstance(found, Labelled)
    assert found.images.shape == (3, 3, 6, 6)
    assert found.images.dtype == torch.uint8
    assert found.images[:, 0, 0, 0].tolist() == [20, 10, 0]
    assert found.labels.tolist() == [0, 1, 1]  # type: ignore[union-attr]
    assert found.classes == ("a", "b")


def test_pixels_of_the_right_size_are_unchanged(tmp_path):
    pixels = levels(5, 5, 3)
    picture(tmp_path / "x.png", pixels)
    found = image_folder(tmp_path, 5)
    assert torch.equal(found.images[0], pixels.permute(2, 0, 1))
    assert found.labels is None
    assert found.classes == ()


@pytest.mark.parametrize("shape", [(8, 12), (12, 8)], ids=str)
def test_the_middle_square_is_cut_out(tmp_path, shape):
    pixels = levels(*shape)
    picture(tmp_path / "x.png", pixels)
    down, across = (shape[0] - 8) // 2, (shape[1] - 8) // 2
    expected = pixels[down : down + 8, across : across + 8]
    assert torch.equal(image_folder(tmp_path, 8, mode="L").images[0, 0], expected)


def test_resizing_keeps_ramps(tmp_path):
    """A picture linear in its coordinates is so at any size, away from its edges."""
    ramp = (torch.arange(64) * 4).to(torch.uint8).expand(64, 64).contiguous()
    picture(tmp_path / "x.png", ramp)
    found = image_folder(tmp_path, 16, mode="L").images[0, 0]
    expected = (torch.arange(16) * 4 + 1.5) * 4
    assert (found[:, 2:-2] - expected[2:-2]).abs().max() <= 1


def test_grey_and_colour(tmp_path):
    picture(tmp_path / "a.png", levels(4, 4))
    colour = image_folder(tmp_path, 4).images
    assert torch.equal(colour, levels(4, 4).expand(1, 3, 4, 4))
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "a.png")
    # ITU-R 601: 0.299 of full red.
    assert image_folder(tmp_path, 4, mode="L").images.unique().tolist() == [76]


def test_pictures_are_turned_upright(tmp_path):
    pixels = levels(4, 4)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    picture(tmp_path / "x.png", pixels, exif=exif)
    found = image_folder(tmp_path, 4, mode="L").images[0, 0]
    assert torch.equal(found, pixels.rot90(-1))


def test_a_missing_pillow_names_the_extra(tmp_path, monkeypatch):
    picture(tmp_path / "x.png", levels(4, 4))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r'pip install "sdekit\[images\]"'):
        image_folder(tmp_path, 4)


def test_bad_pictures_are_named(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    picture(path, levels(40, 40))
    whole = path.read_bytes()
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n"
    for content in (b"", b"\x80\x04pickle", whole[:60], whole[: len(whole) // 2], postscript):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.png cannot be read as a picture"):
            image_folder(tmp_path, 4)
    Image.new("I;16", (4, 4)).save(path)
    with pytest.raises(ValueError, match="more than 8 bits"):
        image_folder(tmp_path, 4)
    path.write_bytes(whole)
    for limit in (
        1_000,
        100,
    ):  # 1,600 pixels: Pillow warns above the limit and refuses above twice it
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(ValueError, match="cannot be read as a picture"):
                image_folder(tmp_path, 4)


HERE = Path(__file__).parent
test_bad_input_is_named = bad_input(
    [
        ("no file", lambda: read_idx("nowhere"), FileNotFoundError, ["nowhere"]),
        ("train", lambda: mnist(HERE, train=1), TypeError, ["train must be True or False"]),  # type: ignore[arg-type]
        ("no folder", lambda: image_folder("nowhere", 4), FileNotFoundError, ["root must be a folder"]),
        ("size", lambda: image_folder(HERE, 0), ValueError, ["size must be >= 1"]),
        ("size type", lambda: image_folder(HERE, 4.0), TypeError, ["size must be an integer"]),  # type: ignore[arg-type]
        ("mode", lambda: image_folder(HERE, 4, mode="RGBA"), ValueError, ["mode must be one of 'RGB', 'L'"]),
    ]
)  # fmt: skip


def test_folders_without_pictures_or_with_both_kinds_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no picture"):
        image_folder(tmp_path, 4)
    picture(tmp_path / "a" / "x.png", levels(4, 4))
    (tmp_path / "b").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no picture .* in .*b"):
        image_folder(tmp_path, 4)
    picture(tmp_path / "y.png", levels(4, 4))
    with pytest.raises(ValueError, match="has both"):
        image_folder(tmp_path, 4)
