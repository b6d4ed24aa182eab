"""Damage in an archive is reported, or the images read are exactly those of the intact archive."""

import gzip
import io
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import ArchiveBuilder, TreeBuilder
from neuscale.data.sources.file_tree import MAX_MEMBER_BYTES
from neuscale.data.sources.open_images import open_images, open_tree
from neuscale.errors import DataError

CONTAINERS = ("images.zip", "images.tar.gz")

# Fixtures of this module are read-only, so examples may share them.
SHARED = settings(
    deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def read_all(path: Path) -> tuple[object, ...]:
    """Return everything that would be packed, as comparable bytes."""
    source = open_images(path)
    parts: list[object] = [tuple(source.classes), source.image_shape]
    for split in ("train", "val"):
        count = source.counts[split]
        images = np.zeros((count, *source.image_shape), np.uint8)
        labels = np.full(count, -1)
        for block in source.blocks(split):
            images[block.places], labels[block.places] = block.images, block.labels
        parts += [count, images.tobytes(), labels.tobytes()]
    return tuple(parts)


@pytest.fixture(scope="module")
def archives(
    tmp_path_factory: pytest.TempPathFactory, build_image_tree: TreeBuilder, build_archive: ArchiveBuilder
) -> dict[str, tuple[bytes, tuple[object, ...]]]:
    folder = tmp_path_factory.mktemp("damage")
    # Files that are not images, because damage to a name can turn an image into one.
    tree = build_image_tree(folder / "tree", classes=("a", "b"), train=3, val=1, size=(4, 4))
    (tree / "train" / "a" / "notes.txt").write_text("not an image")
    (tree / "README").write_text("hello")
    built = {}
    for name in CONTAINERS:
        path = build_archive(tree, folder / name)
        built[name] = (path.read_bytes(), read_all(path))
    return built


def same_or_refused(data: bytes, expected: tuple[object, ...], path: Path) -> None:
    path.write_bytes(data)
    try:
        found = read_all(path)
    except DataError as error:
        assert str(path) in error.problem and error.fix
    else:
        assert found == expected


@pytest.mark.parametrize("name", CONTAINERS)
@SHARED
@given(data=st.data())
def test_a_flipped_byte_is_noticed_or_harmless(
    name: str, archives: dict[str, tuple[bytes, tuple[object, ...]]], tmp_path: Path, data: st.DataObject
) -> None:
    whole, expected = archives[name]
    position = data.draw(st.integers(0, len(whole) - 1))
    mask = data.draw(st.integers(1, 255))
    damaged = bytearray(whole)
    damaged[position] ^= mask
    same_or_refused(bytes(damaged), expected, tmp_path / name)


@pytest.mark.parametrize("name", CONTAINERS)
@SHARED
@given(data=st.data())
def test_a_cut_archive_is_refused(
    name: str, archives: dict[str, tuple[bytes, tuple[object, ...]]], tmp_path: Path, data: st.DataObject
) -> None:
    whole, _ = archives[name]
    length = data.draw(st.integers(0, len(whole) - 1))
    path = tmp_path / name
    path.write_bytes(whole[:length])
    with pytest.raises(DataError) as caught:
        read_all(path)
    assert str(path) in caught.value.problem


def test_any_damage_to_a_zip_directory_is_noticed_or_harmless(
    archives: dict[str, tuple[bytes, tuple[object, ...]]], tmp_path: Path
) -> None:
    """A zip directory has no checksum: one bit of a length can hide members, one bit of a suffix an image."""
    whole, expected = archives["images.zip"]
    for position in range(whole.index(b"PK\x01\x02"), len(whole)):
        for mask in (0x01, 0x80):
            damaged = bytearray(whole)
            damaged[position] ^= mask
            same_or_refused(bytes(damaged), expected, tmp_path / "images.zip")


def test_a_tar_cut_between_two_members_is_refused(
    tmp_path: Path, archives: dict[str, tuple[bytes, tuple[object, ...]]]
) -> None:
    """A tar without its end is refused; `tarfile` takes it for whole, and images would be lost silently."""
    content = gzip.decompress(archives["images.tar.gz"][0])
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        infos = tar.getmembers()
    last = infos[-1]
    ends = [info.offset for info in infos] + [last.offset_data + -(-last.size // 512) * 512]
    path = tmp_path / "cut.tar"
    for end in ends:
        path.write_bytes(content[:end])
        with pytest.raises(DataError):
            read_all(path)
    path.write_bytes(content[: ends[-1] + 512])
    assert read_all(path) == archives["images.tar.gz"][1]


def zip_of(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    "name", ["../train/a/0.png", "/train/a/0.png", "train/../../0.png", "C:/train/0.png"]
)
@pytest.mark.parametrize("container", ["zip", "tar"])
def test_names_that_leave_the_archive_are_refused(name: str, container: str, tmp_path: Path) -> None:
    path = tmp_path / f"evil.{container}"
    if container == "zip":
        zip_of(path, {name: b"x"})
    else:
        with tarfile.open(path, "w") as tar:
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(DataError, match="outside of the archive"):
        open_tree(path)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (tarfile.SYMTYPE, "a symbolic link, not a plain file"),
        (tarfile.LNKTYPE, "outside of the archive"),
        (tarfile.FIFOTYPE, "a device or the like"),
        (tarfile.CHRTYPE, "a device or the like"),
    ],
)
def test_links_and_devices_in_a_tar_are_refused(kind: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "links.tar"
    info = tarfile.TarInfo("train/a/0.png")
    info.type, info.linkname = kind, "/etc/passwd"
    with tarfile.open(path, "w") as tar:
        tar.addfile(info)
    with pytest.raises(DataError, match=words):
        open_tree(path)


def test_a_hard_link_is_another_name_of_a_file_before_it(tmp_path: Path) -> None:
    """A hard link, which tar(1) writes for the second of two names of a file, is read as a file."""
    path = tmp_path / "links.tar"
    (tmp_path / "one").write_bytes(b"content")
    (tmp_path / "two").hardlink_to(tmp_path / "one")
    with tarfile.open(path, "w") as tar:
        for name in ("one", "two"):
            tar.add(tmp_path / name, name)
    tree = open_tree(path)
    assert tree.files == {"one": 7, "two": 7}
    assert sorted(tree.read(["two", "one"])) == [("one", b"content"), ("two", b"content")]
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("two")
        info.type, info.linkname = tarfile.LNKTYPE, "one"
        tar.addfile(info)
    with pytest.raises(DataError, match="a hard link to 'one', which is not before it"):
        open_tree(path)


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("train/a/0.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = tmp_path / "links.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="link or device"):
        open_tree(path)


def test_a_member_out_of_all_proportion_is_refused_unread(tmp_path: Path) -> None:
    """42 kB that unpack to gigabytes must not fill the memory."""
    path = tmp_path / "bomb.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("train/a/0.png", "w") as stream,
    ):
        for _ in range(MAX_MEMBER_BYTES // (1 << 24) + 1):
            stream.write(bytes(1 << 24))
    tree = open_tree(path)
    with pytest.raises(DataError, match="out of all proportion"):
        list(tree.read(["train/a/0.png"]))


def test_a_member_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.tar"
    with tarfile.open(path, "w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("train/a/0.png"), io.BytesIO())
    with pytest.raises(DataError, match="twice"):
        open_tree(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"BZh91AY&SY", b"\x1f\x8bnot gzip", b"PK not a zip"])
def test_what_is_no_archive_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "thing.zip"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"thing\.zip"):
        open_tree(path)


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "secret.zip", {"train/a/0.png": b"x"})
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="secret"):
        list(open_tree(path).read(["train/a/0.png"]))
