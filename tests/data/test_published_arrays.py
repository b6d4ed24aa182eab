"""The official CIFAR-10 and Fashion-MNIST files are read correctly, and never trusted before verification."""

import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuscale.data.catalog import CATALOG
from neuscale.data.sources.cifar import CIFAR100, CifarSource
from neuscale.data.sources.idx import IdxSource
from neuscale.errors import DataError

CIFAR_CLASSES = CATALOG["cifar10"].classes or ()
FASHION_CLASSES = CATALOG["fashion_mnist"].classes or ()
BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


def write_cifar(path: Path, batches: Mapping[str, object]) -> str:
    """Write an archive like the official one and return its MD5."""
    with tarfile.open(path, "w:gz") as tar:
        for name, batch in batches.items():
            content = batch if isinstance(batch, bytes) else pickle.dumps(batch, protocol=4)
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


def cifar_batches(count: int = 7) -> dict[str, dict[str, object]]:
    random = np.random.default_rng(0)
    return {
        name: {
            "data": random.integers(0, 256, (count, 3072), dtype=np.uint8),
            "labels": random.integers(0, 10, count).tolist(),
            "filenames": ["x.png"] * count,
        }
        for name in BATCHES
    }


def test_cifar100_has_its_fine_labels(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    batches = {
        name: {
            "data": random.integers(0, 256, (count, 3072), dtype=np.uint8),
            "fine_labels": list(range(100 - count, 100)),
            "coarse_labels": [0] * count,
        }
        for name, count in (("train", 6), ("test", 3))
    }
    path = tmp_path / "cifar-100-python.tar.gz"
    classes = CATALOG["cifar100"].classes or ()
    source = CifarSource(path, classes, write_cifar(path, {"meta": {}, **batches}), CIFAR100)
    assert source.counts == {"train": 6, "val": 3}
    (block,) = source.blocks("train")
    assert block.labels.tolist() == [94, 95, 96, 97, 98, 99]
    assert np.array_equal(block.images.reshape(6, -1), batches["train"]["data"])
    assert len(set(classes)) == 100


def test_cifar_batches_are_read_in_order(tmp_path: Path) -> None:
    batches = cifar_batches()
    path = tmp_path / "cifar-10-python.tar.gz"
    source = CifarSource(path, CIFAR_CLASSES, write_cifar(path, batches))
    assert source.counts == {"train": 35, "val": 7}
    blocks = list(source.blocks("train"))
    expected = np.concatenate([np.asarray(batches[name]["data"]) for name in BATCHES[:5]])
    images = np.concatenate([block.images for block in blocks])
    assert np.array_equal(images, expected.reshape(-1, 3, 32, 32))
    assert np.array_equal(np.concatenate([block.places for block in blocks]), np.arange(35))
    labels = np.concatenate([block.labels for block in blocks]).tolist()
    assert labels == [label for name in BATCHES[:5] for label in batches[name]["labels"]]  # type: ignore[attr-defined]


def python2_batch() -> bytes:
    """Return a pickle like the official ones: protocol 2, from Python 2, with NumPy's old module name."""
    pixels, labels = bytes(range(256)) * 12, b"]q\x01K\x03a"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + struct.pack("<i", len(pixels)) + pixels + b"tb"
    )
    return b"\x80\x02}(U\x06labels" + labels + b"U\x04data" + array + b"u."


def test_a_pickle_of_python_2_is_read(tmp_path: Path) -> None:
    path = tmp_path / "cifar-10-python.tar.gz"
    md5 = write_cifar(path, dict.fromkeys(BATCHES, python2_batch()))
    (block,) = CifarSource(path, CIFAR_CLASSES, md5).blocks("val")
    assert block.labels.tolist() == [3]
    assert block.images.tobytes() == bytes(range(256)) * 12


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.mark}",)


def test_a_malicious_pickle_is_not_executed(tmp_path: Path) -> None:
    """An archive with another checksum is not unpickled at all, and the unpickler allows only arrays."""
    mark, path = tmp_path / "executed", tmp_path / "cifar-10-python.tar.gz"
    batches: dict[str, object] = {**cifar_batches(), "data_batch_3": {"data": Malicious(mark), "labels": [1]}}
    md5 = write_cifar(path, batches)
    with pytest.raises(DataError, match="checksum differs"):
        CifarSource(path, CIFAR_CLASSES, "0" * 32)
    with pytest.raises(DataError, match=r"data_batch_3: not a batch .*posix\.system"):
        CifarSource(path, CIFAR_CLASSES, md5)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Malicious(mark)))
    assert mark.exists()  # proof that the pickle would have left its mark


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, 10]}, "out of range"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, "not a batch"),
        ({"data": np.zeros((2, 3072), np.float32), "labels": [1, 1]}, "not bytes"),
        ({"labels": [1]}, "not a batch"),
        ([1, 2], "not a batch"),
        (b"\x80\x04garbage", "not a batch"),
    ],
)
def test_a_batch_of_another_form_is_named(batch: object, says: str, tmp_path: Path) -> None:
    path = tmp_path / "cifar-10-python.tar.gz"
    md5 = write_cifar(path, {**cifar_batches(), "data_batch_2": batch})
    with pytest.raises(DataError, match=says) as caught:
        CifarSource(path, CIFAR_CLASSES, md5)
    assert "data_batch_2" in caught.value.problem


def test_a_missing_batch_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cifar-10-python.tar.gz"
    batches = cifar_batches()
    del batches["test_batch"]
    with pytest.raises(DataError, match="test_batch is missing"):
        CifarSource(path, CIFAR_CLASSES, write_cifar(path, batches))


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes(), mtime=0)


@pytest.fixture(scope="module")
def idx_files() -> dict[str, bytes]:
    random = np.random.default_rng(0)
    files = {}
    for prefix, count in (("train", 9), ("t10k", 4)):
        files[f"{prefix}-images-idx3-ubyte.gz"] = idx(random.integers(0, 256, (count, 5, 6)))
        files[f"{prefix}-labels-idx1-ubyte.gz"] = idx(random.integers(0, 10, count))
    return files


def read_idx(folder: Path, files: Mapping[str, bytes]) -> list[bytes]:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    source = IdxSource({name: folder / name for name in files}, FASHION_CLASSES)
    assert source.image_shape == (1, 5, 6)
    blocks = [block for split in ("train", "val") for block in source.blocks(split)]
    return [part.tobytes() for block in blocks for part in block[:3]]


def test_idx_files_are_read(tmp_path: Path, idx_files: dict[str, bytes]) -> None:
    _, images, labels, _, held_out, _ = read_idx(tmp_path, idx_files)
    assert images == gzip.decompress(idx_files["train-images-idx3-ubyte.gz"])[16:]
    assert held_out == gzip.decompress(idx_files["t10k-images-idx3-ubyte.gz"])[16:]
    assert bytes(labels[::8]) == gzip.decompress(idx_files["train-labels-idx1-ubyte.gz"])[8:]


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_idx_files_are_noticed(
    tmp_path: Path, idx_files: dict[str, bytes], data: st.DataObject
) -> None:
    expected = read_idx(tmp_path, idx_files)
    name = data.draw(st.sampled_from(sorted(idx_files)))
    damaged = bytearray(idx_files[name])
    position = data.draw(st.integers(0, len(damaged) - 1))
    if data.draw(st.booleans()):
        damaged[position] ^= data.draw(st.integers(1, 255))
    else:
        del damaged[position:]
    try:
        found = read_idx(tmp_path, {**idx_files, name: bytes(damaged)})
    except DataError as error:
        assert ".gz" in error.problem
    else:
        assert found == expected


def test_damaged_checksums_of_idx_files_are_noticed(tmp_path: Path, idx_files: dict[str, bytes]) -> None:
    """A wrong CRC is detected, although gzip checks it only when it is read past its last value."""
    for name, content in idx_files.items():
        damaged = content[:-8] + bytes([content[-8] ^ 1]) + content[-7:]
        with pytest.raises(DataError, match=f"{name}: damaged"):
            read_idx(tmp_path, {**idx_files, name: damaged})


@pytest.mark.parametrize(
    ("name", "array", "says"),
    [
        ("train-images-idx3-ubyte.gz", np.zeros((8, 5, 6)), "8 images, but 9 labels"),
        ("train-images-idx3-ubyte.gz", np.zeros((9, 5)), "not an IDX file of 3 dimensions"),
        ("t10k-images-idx3-ubyte.gz", np.zeros((4, 6, 6)), "another size"),
        ("t10k-labels-idx1-ubyte.gz", np.full(4, 10), "out of range"),
    ],
)
def test_idx_files_that_do_not_fit_are_named(
    name: str,
    array: np.ndarray,
    says: str,
    tmp_path: Path,
    idx_files: dict[str, bytes],
) -> None:
    with pytest.raises(DataError, match=says) as caught:
        read_idx(tmp_path, {**idx_files, name: idx(array)})
    assert name in caught.value.problem
