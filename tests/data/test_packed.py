"""A packed data set opens whole or not at all, and damage to it is detected."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from conftest import TreeBuilder
from neuscale.data.formats.meta import META_FILE, SPLITS
from neuscale.data.formats.packed import PackedDataset, array_files, packed_path
from neuscale.data.formats.write_packed import ChannelStatistics
from neuscale.data.prepare import prepare
from neuscale.errors import DataError, UsageError


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, build_image_tree: TreeBuilder) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    tree = build_image_tree(folder / "tree")
    return prepare("image_folder", root=folder, source=tree, save_as="images").folder


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "images"))


def contents(data: PackedDataset) -> tuple[object, ...]:
    arrays = [array(split).tobytes() for split in ("train", "val") for array in (data.images, data.labels)]
    return (data.meta, *arrays)


def test_arrays_are_mapped_and_read_only(packed: Path) -> None:
    data = PackedDataset.open(packed)
    images, labels = data.images("train"), data.labels("train")
    assert isinstance(images, np.memmap) and images.dtype == np.uint8 and not images.flags.writeable
    assert labels.dtype == np.int64 and labels.shape == (12,)
    assert data.verify() == []
    with pytest.raises(ValueError, match="split"):
        data.images("test")


def test_statistics_are_those_of_the_training_split(packed: Path) -> None:
    data = PackedDataset.open(packed)
    values = np.asarray(data.images("train"), np.float64) / 255
    assert np.allclose(data.meta.mean, values.mean(axis=(0, 2, 3)), rtol=1e-12, atol=0)
    assert np.allclose(data.meta.std, values.std(axis=(0, 2, 3)), rtol=1e-12, atol=0)


@given(arrays(np.uint8, (7, 2, 3, 5)), st.integers(1, 7))
def test_statistics_do_not_depend_on_the_blocks(images: np.ndarray, block: int) -> None:
    whole, parts = ChannelStatistics(2), ChannelStatistics(2)
    whole.add(images)
    for first in range(0, 7, block):
        parts.add(images[first : first + block])
    assert whole.mean_and_std() == parts.mean_and_std()
    assert np.allclose(whole.mean_and_std()[1], (images / 255).std(axis=(0, 2, 3)), atol=1e-7)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_byte_anywhere_is_found(packed: Path, tmp_path: Path, data: st.DataObject) -> None:
    """A flipped byte is detected on opening or verifying; training on it would silently spoil all results."""
    folder = tmp_path / "images"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(packed, folder)
    file = data.draw(st.sampled_from((*array_files(SPLITS), META_FILE)))
    whole = (folder / file).read_bytes()
    position = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[position] ^= data.draw(st.integers(1, 255))
    (folder / file).write_bytes(damaged)
    try:
        opened = PackedDataset.open(folder)
    except DataError as error:
        assert file in error.problem and "--force" in error.fix
    else:
        if file == META_FILE:
            assert contents(opened) == contents(PackedDataset.open(packed))
        else:
            assert opened.verify() == [file]


@pytest.mark.parametrize("file", [*array_files(SPLITS), META_FILE])
@pytest.mark.parametrize("kind", ["missing", "empty", "cut", "longer", "folder"])
def test_a_file_that_is_not_whole_is_named_on_opening(file: str, kind: str, copy: Path) -> None:
    path = copy / file
    whole = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes({"empty": b"", "cut": whole[:-1], "longer": whole + b"x"}[kind])
    if file == META_FILE and kind == "cut":
        return  # only the final newline is missing
    with pytest.raises(DataError) as caught:
        PackedDataset.open(copy)
    assert str(path) in caught.value.problem and "images --force" in caught.value.fix


def test_arrays_of_another_type_or_order_are_refused(copy: Path) -> None:
    images = np.load(copy / "train_images.npy")
    for wrong in (images.astype(np.int8), images[:-1], np.asfortranarray(images)):
        np.save(copy / "train_images.npy", wrong)
        with pytest.raises(DataError, match=r"train_images\.npy"):
            PackedDataset.open(copy)


def test_a_label_out_of_range_is_refused(copy: Path) -> None:
    """A bad label is refused at once; on a GPU it would be an anonymous kernel assertion, hours later."""
    labels = np.load(copy / "val_labels.npy")
    labels[3] = 3
    np.save(copy / "val_labels.npy", labels)
    data = PackedDataset.open(copy)
    with pytest.raises(DataError, match=r"val_labels\.npy: a label is out of range"):
        data.labels("val")
    assert data.verify() == ["val_labels.npy"]


def test_another_format_says_so(copy: Path) -> None:
    fields = json.loads((copy / META_FILE).read_text())
    fields["format_version"] = 99
    (copy / META_FILE).write_text(json.dumps(fields))
    with pytest.raises(DataError, match="format is 99, this program reads format 1"):
        PackedDataset.open(copy)


def test_a_file_damaged_after_opening_is_found(copy: Path) -> None:
    data = PackedDataset.open(copy)
    (copy / "val_images.npy").unlink()
    assert data.verify() == ["val_images.npy"]


def test_what_is_not_prepared_says_how_to(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        PackedDataset.open(packed_path("cifar10", tmp_path))
    assert "not prepared" in caught.value.problem
    assert "'neuscale data prepare cifar10'" in caught.value.fix


@pytest.mark.parametrize("name", ["../x", "a/b", "", "A", ".x", "x" * 65, "a b"])
def test_a_name_cannot_leave_the_folder(name: str) -> None:
    with pytest.raises(UsageError):
        packed_path(name)


def test_fingerprints_differ_with_data_and_with_class_names(
    tmp_path: Path, build_image_tree: TreeBuilder
) -> None:
    trees = [
        build_image_tree(tmp_path / "a", seed=0),
        build_image_tree(tmp_path / "b", seed=1),
        build_image_tree(tmp_path / "c", seed=0, classes=("cat", "dog", "pig")),
    ]
    prints = {prepare("image_folder", root=tmp_path, source=tree).meta.fingerprint for tree in trees}
    assert len(prints) == 3
