"""Zip members are read many at a time, with the contents that `zipfile` reads; damage is refused."""

import io
import random
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from neuscale.data.sources.zip_tree import ZipTree, read_plain
from neuscale.errors import DataError

NAMES = ("a/0.png", "a/ü.png", "b/0.png", "b/empty.png", "c/much.png")


class Unseekable(io.RawIOBase):
    """Stream like a pipe: sizes and CRC follow the content, and the local header has none."""

    def __init__(self) -> None:
        self.content = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.content += data
        return len(data)


def contents() -> dict[str, bytes]:
    dice = random.Random(0)
    lengths = (300, 70_000, 5, 0, 3 << 20)
    return {name: dice.randbytes(length) for name, length in zip(NAMES, lengths, strict=True)}


def zip_file(path: Path, kind: str) -> Path:
    method = zipfile.ZIP_DEFLATED if "deflated" in kind else zipfile.ZIP_STORED
    method = zipfile.ZIP_LZMA if kind == "lzma" else method
    target = Unseekable() if "piped" in kind else io.BytesIO()
    if "behind a program" in kind:
        target.write(b"#!/bin/sh\n" * 50)
    with zipfile.ZipFile(target, "w", method) as archive:  # type: ignore[arg-type]
        for name, content in contents().items():
            with archive.open(name, "w", force_zip64="64-bit" in kind) as stream:
                stream.write(content)
    path.write_bytes(target.content if isinstance(target, Unseekable) else target.getvalue())
    return path


def plain(path: Path) -> list[bool]:
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        return [data is not None for _, data in read_plain(path, infos, infos, archive.start_dir)]


@pytest.mark.parametrize(
    "kind", ["stored", "deflated", "piped", "deflated, piped", "64-bit", "behind a program", "lzma"]
)
def test_contents_are_whole(kind: str, tmp_path: Path) -> None:
    path = zip_file(tmp_path / "x.zip", kind)
    assert dict(ZipTree(path).read(NAMES)) == contents()
    assert dict(ZipTree(path).read(NAMES[3:1:-1])) == {name: contents()[name] for name in NAMES[2:4]}
    assert plain(path) == [kind != "lzma"] * len(NAMES)


def test_a_changed_byte_is_noticed_or_harmless(tmp_path: Path) -> None:
    """Stored members are protected only by their CRC; a flipped pixel would be trained on."""
    few = {name: content for name, content in contents().items() if len(content) < 1000}
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in few.items():
            archive.writestr(name, content)
    whole = path.read_bytes()
    refused = 0
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x11
        path.write_bytes(damaged)
        try:
            tree = ZipTree(path)
            names = list(tree.files)
            found = dict(tree.read(names))
            tree.check_rest(names)
        except DataError as error:
            assert str(path) in error.problem
            refused += 1
        else:
            assert list(found.values()) == list(few.values())
    assert refused > sum(map(len, few.values()))


def test_a_size_that_is_a_lie_takes_no_memory(tmp_path: Path) -> None:
    """The directory declares 1 KB unpacked, but the content has 64 MB."""
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a/0.png", "w") as stream:
        for _ in range(4):
            stream.write(bytes(1 << 24))
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    struct.pack_into("<L", content, entry + 24, 1024)
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"a/0\.png"):
            list(ZipTree(path).read(["a/0.png"]))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
