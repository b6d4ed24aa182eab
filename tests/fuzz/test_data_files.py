"""Damaged archives, arrays and lists of images are read as valid images, or rejected with a clear error."""

import gzip
import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from conftest import TreeBuilder
from fuzzing import changed_json, damaged, fuzz
from neuscale.data.formats.image_list import ListedDataset, files_file
from neuscale.data.formats.meta import META_FILE, _checksum
from neuscale.data.formats.packed import PackedDataset, images_file, labels_file
from neuscale.data.formats.write_image_list import list_images
from neuscale.data.prepare import prepare
from neuscale.data.sources.decode import decode_image
from neuscale.data.sources.decoding import Decoding
from neuscale.data.sources.idx import IdxSource
from neuscale.data.sources.open_images import open_images
from neuscale.errors import DataError, UsageError


@pytest.fixture(scope="module")
def tree(build_image_tree: TreeBuilder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    return build_image_tree(folder / "tree", classes=("a", "é" * 60), train=3, val=1, size=(4, 4))


@pytest.fixture(scope="module")
def packed(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    return prepare("image_folder", root=tmp_path_factory.mktemp("data"), source=tree, save_as="x")


@pytest.fixture(scope="module")
def listed(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> ListedDataset:
    return list_images("image_folder", root=tmp_path_factory.mktemp("data"), source=tree, save_as="x")


def read_source(path: Path) -> None:
    source = open_images(path)
    for split in ("train", "val"):
        for block in source.blocks(split):
            assert block.images.dtype == np.uint8
            assert 0 <= block.labels.min() <= block.labels.max() < len(source.classes)


def or_refused(read: Callable[[], object]) -> None:
    """Call `read`, whose only error may be a DataError that names the problem and the fix."""
    try:
        read()
    except DataError as error:
        assert error.problem and error.fix


def as_zip(tree: Path) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(p for p in tree.rglob("*") if p.is_file()):
            archive.write(path, path.relative_to(tree))
    return memory.getvalue()


def as_tar(tree: Path, form: int) -> bytes:
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w", format=form) as archive:
        archive.add(tree, "a folder with a name that is " + "long " * 30)
    return memory.getvalue()


WRITERS = {
    "zip": as_zip,
    "gnu tar": lambda tree: as_tar(tree, tarfile.GNU_FORMAT),
    "pax tar": lambda tree: as_tar(tree, tarfile.PAX_FORMAT),
}


@pytest.mark.parametrize("kind", WRITERS)
@fuzz
@given(data=st.data())
def test_archives(kind: str, tree: Path, tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "archive"
    whole = tmp_path / "whole"
    if not whole.exists():
        whole.write_bytes(WRITERS[kind](tree))
        read_source(whole)
    content = data.draw(damaged(whole.read_bytes()))
    if kind != "zip" and data.draw(st.booleans()):
        content = repaired_tar(content)
    path.write_bytes(content if data.draw(st.booleans()) or kind == "zip" else gzip.compress(content, 1))
    or_refused(lambda: read_source(path))


def as_npz(save: Callable[..., None] = np.savez) -> bytes:
    memory = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 4), np.uint8)
    labels = np.array(["a", "b", "a", "b"])
    save(memory, x_train=pixels[0], y_train=labels, x_val=pixels[1], y_val=labels)
    return memory.getvalue()


def as_compressed_npz() -> bytes:
    return as_npz(np.savez_compressed)


def as_parquet() -> bytes:
    pytest.importorskip("pyarrow")
    import pyarrow
    from pyarrow import parquet

    images = [{"bytes": picture("PNG"), "path": f"{i}.png"} for i in range(4)]
    splits = ["train", "train", "val", "val"]
    table = pyarrow.table({"image": images, "label": ["a", "b"] * 2, "split": splits})
    memory = io.BytesIO()
    parquet.write_table(table, memory)
    return memory.getvalue()


@pytest.mark.parametrize("write", [as_npz, as_compressed_npz, as_parquet])
@fuzz
@given(data=st.data())
def test_arrays_and_tables_of_images(write: Callable[[], bytes], tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "file"
    path.write_bytes(data.draw(damaged(write())))
    try:
        read_source(path)
    except (DataError, UsageError) as error:  # the damage may have renamed a column
        assert error.problem


def repaired_tar(content: bytes) -> bytes:
    """`content` with correct header checksums, as in a file that somebody has damaged on purpose."""
    data = bytearray(content)
    for at in range(0, len(data) - 511, 512):
        if data[at + 257 : at + 262] == b"ustar":
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = f"{sum(data[at : at + 512]):06o}\0 ".encode()
    return bytes(data)


def picture(form: str) -> bytes:
    memory = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (24, 40, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(memory, form)
    return memory.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@fuzz
@given(data=st.data())
def test_images(form: str, data: st.DataObject) -> None:
    """A damaged image is decoded to some pixels, or rejected with an exception that callers catch."""
    content = data.draw(damaged(picture(form)))
    try:
        pixels = decode_image(content, Decoding((16, 16)))
    except Exception as error:
        assert not isinstance(error, MemoryError), error
    else:
        assert (pixels.shape, pixels.dtype) == ((16, 16, 3), np.uint8)


@pytest.mark.parametrize("file", [images_file("train"), labels_file("train")])
@fuzz
@given(data=st.data())
def test_headers_of_arrays(file: str, packed: PackedDataset, data: st.DataObject) -> None:
    path = packed.folder / file
    whole = path.read_bytes()
    header = whole[:128]
    try:
        path.unlink()  # a new inode: arrays that are already mapped do not change
        path.write_bytes(data.draw(damaged(header)) + whole[128:])

        def read() -> None:
            found = PackedDataset.open(packed.folder)
            assert found.images("train").shape == packed.meta.shape("train")
            found.labels("train")

        or_refused(read)
    finally:
        path.unlink(missing_ok=True)
        path.write_bytes(whole)


@fuzz
@given(data=st.data())
def test_records_of_data_sets(packed: PackedDataset, data: st.DataObject) -> None:
    """The damaged record gets a correct checksum, as if edited on purpose."""
    path = packed.folder / META_FILE
    whole = path.read_text()
    fields = json.loads(whole)
    del fields["meta_checksum"]
    text = data.draw(changed_json(fields))
    try:
        found = json.loads(text)
        text = json.dumps({**found, "meta_checksum": _checksum(found)})
    except (ValueError, TypeError):
        pass
    try:
        path.write_text(text, errors="surrogateescape")

        def read() -> None:
            opened = PackedDataset.open(packed.folder)
            opened.verify()
            assert opened.class_counts("val") and opened.meta.fingerprint

        or_refused(read)
    finally:
        path.write_text(whole)


@fuzz
@given(data=st.data())
def test_lists_of_images(listed: ListedDataset, data: st.DataObject) -> None:
    """The record gets the checksum of the damaged list."""
    path, record = listed.folder / files_file("train"), listed.folder / META_FILE
    whole, whole_record = path.read_bytes(), record.read_text()
    lines = [json.loads(line) for line in whole.decode().splitlines()]
    text = "".join(f"{data.draw(changed_json(line))}\n" for line in lines[:2])
    text += "".join(f"{json.dumps(line)}\n" for line in lines[2:])
    content = text.encode(errors="surrogateescape")
    meta = json.loads(whole_record)
    del meta["meta_checksum"]
    meta["checksums"][path.name] = hashlib.sha256(content).hexdigest()
    meta["fingerprint"] = _checksum({"checksums": meta["checksums"], "classes": meta["classes"]})
    try:
        path.write_bytes(content)
        record.write_text(json.dumps({**meta, "meta_checksum": _checksum(meta)}))

        def read() -> None:
            opened = ListedDataset.open(listed.folder)
            opened.verify()
            for sample in range(len(opened.labels("train"))):
                opened.image("train", sample)

        or_refused(read)
    finally:
        path.write_bytes(whole)
        record.write_text(whole_record)


@fuzz
@given(data=st.data())
def test_idx_files(tmp_path: Path, data: st.DataObject) -> None:
    images = bytes([0, 0, 8, 3, 0, 0, 0, 5, 0, 0, 0, 4, 0, 0, 0, 6]) + bytes(range(120))
    labels = bytes([0, 0, 8, 1, 0, 0, 0, 5, 0, 1, 2, 1, 0])
    files = {}
    for split in ("train", "t10k"):
        for kind, content in (("images-idx3", images), ("labels-idx1", labels)):
            name = f"{split}-{kind}-ubyte.gz"
            files[name] = tmp_path / name
            files[name].write_bytes(gzip.compress(content, 1))
    name = data.draw(st.sampled_from(sorted(files)))
    content = images if "images" in name else labels
    compressed = data.draw(st.booleans())
    content = data.draw(damaged(content if compressed else gzip.compress(content, 1)))
    files[name].write_bytes(gzip.compress(content, 1) if compressed else content)

    def read() -> None:
        source = IdxSource(files, ["a", "b", "c"])
        for split in ("train", "val"):
            for block in source.blocks(split):
                assert block.images.shape[1:] == source.image_shape

    or_refused(read)
