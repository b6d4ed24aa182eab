"""Images and labels in an `.npz` file."""

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuscale.errors import DataError, UsageError

from .trees import ready


def images(*shape: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def write(path: Path, compressed: bool = False, **arrays: Any) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("x_train", "y_train", "x_test", "y_test"), {"train": 6, "val": 4}),
        (("train_images", "train_labels", "val_images", "val_labels"), {"train": 6, "val": 4}),
        (("X-train", "Y-train", "X-valid", "Y-valid"), {"train": 6, "val": 4}),
    ],
)
def test_pixels_and_labels_are_those_of_the_arrays(
    tmp_path: Path, compressed: bool, names: tuple[str, ...], splits: dict[str, int]
) -> None:
    pixels = images(6, 7, 5, 3), images(4, 7, 5, 3, seed=1)
    labels = np.array([2, 0, 2, 0, 2, 0]), np.array([[0], [2], [0], [2]])  # MedMNIST's labels have this shape
    arrays = dict(zip(names, [pixels[0], labels[0], pixels[1], labels[1]], strict=True))
    data = ready(tmp_path, write(tmp_path / "a.npz", compressed, **arrays))
    assert (data.meta.counts, data.meta.classes) == (splits, ["0", "2"])
    for split, of_split, numbers in zip(("train", "val"), pixels, labels, strict=True):
        order = np.argsort(numbers.ravel(), kind="stable")
        np.testing.assert_array_equal(data.images(split), of_split[order].transpose(0, 3, 1, 2))
        np.testing.assert_array_equal(data.labels(split), numbers.ravel()[order] // 2)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (images(8, 6, 4), lambda x: np.stack([x, x, x], 1)),
        (images(8, 6, 4, 1), lambda x: np.concatenate([x, x, x], 3).transpose(0, 3, 1, 2)),
        (images(8, 6, 4, 4), lambda x: x[..., :3].transpose(0, 3, 1, 2)),
        (images(8, 3, 6, 4), lambda x: x),
        (images(8, 1, 6, 4), lambda x: np.concatenate([x, x, x], 1)),
        (images(8, 6, 4).astype(np.uint16) * 201, lambda x: np.stack([x >> 8] * 3, 1)),
        (images(8, 6, 4).astype(">u2") * 201, lambda x: np.stack([x >> 8] * 3, 1)),
    ],
    ids=["N H W", "N H W 1", "N H W 4", "N 3 H W", "N 1 H W", "16 bits", "big-endian"],
)
def test_every_shape_gives_its_pixels(tmp_path: Path, given: Any, expected: Any) -> None:
    path = write(tmp_path / "a.npz", images=given, labels=np.zeros(8, int))
    data = ready(tmp_path, path, val_share=0.25)
    found = {tuple(image.ravel().tolist()) for split in ("train", "val") for image in data.images(split)}
    assert found == {tuple(image.ravel().tolist()) for image in expected(given).astype(np.uint8)}
    small = ready(tmp_path, path, "small", val_share=0.25, size=4, fit="squash").meta
    assert (small.channels, small.height, small.width) == (3, 4, 4)


@pytest.mark.parametrize(
    "labels",
    [np.array(["dog", "cat"] * 4), np.eye(2)[[1, 0] * 4], np.array([True, False] * 4), np.array([1, 0] * 4)],
    ids=["text", "one-hot", "bool", "number"],
)
def test_labels_of_every_kind(tmp_path: Path, labels: Any) -> None:
    """Two arrays of any name are told apart by their shapes, and class names are read."""
    names = {} if labels.dtype.kind == "U" else {"class_names": np.array(["cat", "dog"])}
    pair = ("images", "labels") if names else ("arr_0", "arr_1")
    arrays = dict(zip(pair, [images(8, 4, 4), labels], strict=True))
    data = ready(tmp_path, write(tmp_path / "a.npz", **arrays, **names), val_share=0.25)
    assert data.meta.classes == ["cat", "dog"] and data.class_counts("train") == [3, 3]


Y = np.arange(4)
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "floats": ({"x": images(4, 4, 4) / 255, "y": Y}, "x: values of type float64"),
    "no images": ({"x": images(4, 4), "y": Y}, "x: of shape [4, 4]"),
    "channels": ({"x": images(4, 5, 5, 7), "y": Y}, "x: of shape [4, 5, 5, 7]"),
    "lengths": ({"x": images(4, 4, 4), "y": np.arange(5)}, "x has 4 images, y 5 labels"),
    "several labels": ({"x": images(4, 4, 4), "y": np.ones((4, 3), int)}, "not one 1 in each row"),
    "real labels": ({"x": images(4, 4, 4), "y": Y / 2}, "y: float64 of shape [4] are no labels"),
    "negative": ({"x": images(4, 4, 4), "y": Y - 1}, "y: it has a class below 0"),
    "empty text": ({"x": images(4, 4, 4), "y": np.array(["a", "", "b", "b"])}, "y: label 1 is empty"),
    "objects": (
        {"x": images(4, 4, 4), "y": np.array(["a", 1, None, {}], object)},
        "y: holds objects",
    ),
    "Fortran": (
        {"x": np.asfortranarray(images(4, 4, 4)), "y": Y},
        "x: its order is",
    ),
    "unclear": (
        {"a": images(4, 4, 4), "b": Y, "c": Y},
        "which of 'a', 'b', 'c' are",
    ),
    "twice": (
        {"x": images(4, 4, 4), "images": images(4, 4, 4), "y": Y},
        "'x' and 'images' mean",
    ),
    "one split": ({"x_train": images(4, 4, 4), "y": Y}, "which of 'x_train', 'y' are images"),
    "empty": ({"x": images(0, 4, 4), "y": np.arange(0)}, "it names no images"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_named(tmp_path: Path, kind: str) -> None:
    arrays, words = WRONG[kind]
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        ready(tmp_path, write(tmp_path / "a.npz", **arrays), val_share=0.5)
    assert caught.value.fix


def test_an_option_for_files_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", x=images(4, 4, 4), y=np.arange(4) % 2)
    for option in ({"nested": True}, {"encoding": "gbk"}, {"label_column": "y"}):
        with pytest.raises(UsageError, match=f"`{next(iter(option))}` means nothing for a file of arrays"):
            ready(tmp_path, path, val_share=0.5, **option)


def test_a_header_that_promises_more_than_there_is_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    header = (
        b"\x93NUMPY\x01\x00\x76\x00"
        + str({"descr": "|u1", "fortran_order": False, "shape": (1 << 40, 1000, 1000)}).encode().ljust(117)
        + b"\n"
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header + b"\0" * 100)
        archive.writestr("y.npy", header + b"\0" * 100)
    with pytest.raises(DataError, match="x: has not the size that its header says"):
        ready(tmp_path, path)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("array", [0, 1])
def test_another_checksum_is_damage(tmp_path: Path, compressed: bool, array: int) -> None:
    path = write(tmp_path / "a.npz", compressed, x=images(40, 40, 40), y=np.arange(40) % 2)
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    for _ in range(array):
        entry = content.index(b"PK\x01\x02", entry + 4)
    content[entry + 16] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{'xy'[array]}: damaged .*CRC"):
        ready(tmp_path, path, val_share=0.25)
