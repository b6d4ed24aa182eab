"""Archives crafted to fill the memory are refused early; the longest names that a disk can hold are read."""

import gzip
import io
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from neuscale.data.sources import file_tree, zip_tree
from neuscale.data.sources.file_tree import MAX_LEVELS
from neuscale.data.sources.open_images import open_tree
from neuscale.errors import DataError

MEMORY = 256 << 20  # bytes of address space beyond what the process uses when it begins to read

READ = f"""
import resource, sys
from pathlib import Path
from neuscale.data.sources.open_images import open_tree
from neuscale.errors import DataError
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {MEMORY}, resource.RLIM_INFINITY))
try:
    open_tree(Path(sys.argv[1]))
except DataError as error:
    sys.exit(str(error))
"""


def refused(path: Path) -> str:
    """Return the error message of a process with little memory that opens the archive."""
    done = subprocess.run([sys.executable, "-c", READ, path], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr and str(path) in done.stderr, done.stderr
    return done.stderr


def header(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, form: int = tarfile.GNU_FORMAT) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(form)


def padded(size: int) -> int:
    return -(-size // 512) * 512


def long_name(length: int) -> Iterator[bytes]:
    """Yield a GNU long-name header, its name and the header of an empty file with that name."""
    yield header("././@LongLink", tarfile.GNUTYPE_LONGNAME, length)
    yield (b"a/" * (length // 2)).ljust(padded(length), b"\0")
    yield header("x")


def endless_name() -> Iterator[bytes]:
    yield header("././@LongLink", tarfile.GNUTYPE_LONGNAME, 8 << 30)
    for _ in range(400):
        yield b"n" * (1 << 20)


def endless_fields() -> Iterator[bytes]:
    yield header("pax", tarfile.XHDTYPE, 8 << 30)
    for _ in range(400):
        yield b"p" * (1 << 20)


def many_global_fields() -> Iterator[bytes]:
    for number in range(700):
        field = f" k{number}=".encode() + b"v" * (1 << 19)
        length = len(field) + 8
        record = str(length).encode().rjust(7, b"0") + field + b"\n"
        yield header("pax", tarfile.XGLTYPE, len(record)) + record.ljust(padded(len(record)), b"\0")
    yield header("x")


def chain_of_names() -> Iterator[bytes]:
    for _ in range(400):
        yield from list(long_name(1 << 20))[:2]
    yield header("x")


def holes() -> Iterator[bytes]:
    block = bytearray(header("x", tarfile.GNUTYPE_SPARSE, 0))
    block[482] = 1  # more blocks follow
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    yield bytes(block)
    entry = (b"00000000001\0" * 42)[:504] + b"\1" + bytes(7)
    for _ in range(200_000):
        yield entry


def holes_in_the_content() -> Iterator[bytes]:
    fields = b"".join(
        f"{len(field) + 4} {field}\n".encode()
        for field in ("GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.realsize=9")
    )
    yield header("pax", tarfile.XHDTYPE, len(fields)) + fields.ljust(512, b"\0")
    yield header("x", size=2 << 30)
    yield b"999999999\n"
    for _ in range(300):
        yield b"1\n" * (1 << 19)


TARS = {
    "path of 60,000 folders": (lambda: long_name(120_000), "more than 100 folders deep"),
    "name of 8 GiB": (endless_name, "a header is extended by more than 1,048,576 bytes"),
    "fields of 8 GiB": (endless_fields, "a header is extended by more than 1,048,576 bytes"),
    "global fields": (many_global_fields, "a header is extended by more than 1,048,576 bytes"),
    "chain of names": (chain_of_names, "a header is extended by more than 1,048,576 bytes"),
    "holes": (holes, "x has holes"),
    "holes in the content": (holes_in_the_content, "x has holes"),
}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limit of memory is Linux's")
@pytest.mark.parametrize("kind", TARS)
def test_a_tar_that_unpacks_to_a_list_of_gigabytes_is_refused(kind: str, tmp_path: Path) -> None:
    blocks, reason = TARS[kind]
    path = tmp_path / "small.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        for block in blocks():
            stream.write(block)
        stream.write(bytes(1024))
    assert path.stat().st_size < 20e6
    assert reason in refused(path)


def write_tar(path: Path, name: str) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo(name)
        info.pax_headers = {"path": name}
        tar.addfile(info, io.BytesIO())
    return path


def write_zip(path: Path, name: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("placeholder", b"")
        archive.infolist()[0].filename = name
    return path


NAMES = {
    "deep": ("a/" * MAX_LEVELS + "x.png", "more than 100 folders deep"),
    "long": ("/".join(["é" * 100] * 30), "more than 4,096 bytes"),
    "long part": ("train/" + "é" * 128, "a part of it has more than 255 bytes"),
    "NUL": ("train/a\0b.png", "it has a NUL"),
}


@pytest.mark.parametrize("write", [write_tar, write_zip])
@pytest.mark.parametrize("kind", NAMES)
def test_names_that_no_disk_could_hold_are_refused(
    write: Callable[[Path, str], Path], kind: str, tmp_path: Path
) -> None:
    name, reason = NAMES[kind]
    with pytest.raises(DataError, match=reason) as caught:
        open_tree(write(tmp_path / "archive", name))
    assert len(str(caught.value)) < 400, "a long name is not shown whole"


@pytest.mark.parametrize("write", [write_tar, write_zip])
@pytest.mark.parametrize(
    "name", ["a/" * (MAX_LEVELS - 1) + "x.png", "train/" + "é" * 127, "/".join(["b" * 250] * 16)]
)
def test_the_longest_names_of_a_disk_are_taken(
    write: Callable[[Path, str], Path], name: str, tmp_path: Path
) -> None:
    assert list(open_tree(write(tmp_path / "archive", name)).files) == [name]


@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_the_list_of_an_archive_has_a_budget(
    write: Callable[[Path, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "archive", "a/b/c/d/x.png")
    tree = open_tree(path)
    assert tree.listing_bytes >= sum(sys.getsizeof(name) for name in (*tree.files, *tree.folders))
    monkeypatch.setattr(file_tree, "MAX_LISTING_BYTES", tree.listing_bytes - 1)
    with pytest.raises(DataError, match="its list of names takes more than"):
        open_tree(path)


def test_the_directory_of_a_zip_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`zipfile` reads the whole directory at once, so its size is checked first in the end record."""
    path = write_zip(tmp_path / "archive.zip", "x" * 100)
    data = path.read_bytes()
    (size,) = struct.unpack_from("<L", data, data.rindex(b"PK\x05\x06") + 12)
    monkeypatch.setattr(zip_tree, "MAX_DIRECTORY_BYTES", size)
    assert len(open_tree(path).files) == 1
    monkeypatch.setattr(zip_tree, "MAX_DIRECTORY_BYTES", size - 1)
    with pytest.raises(DataError, match=f"its directory of {size} bytes exceeds {size - 1}"):
        open_tree(path)


def test_a_folder_that_is_too_deep_is_refused(tmp_path: Path) -> None:
    """A very deep folder is refused before its listing reaches Python's recursion limit."""
    here = os.open(tmp_path, os.O_RDONLY)
    try:
        for _ in range(1200):
            os.mkdir("d", dir_fd=here)
            deeper = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = deeper
    finally:
        os.close(here)
    try:
        with pytest.raises(DataError, match="more than 100 folders deep"):
            open_tree(tmp_path)
    finally:  # too deep for shutil.rmtree
        subprocess.run(["rm", "-r", tmp_path / "d"], check=True)


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="it is not a regular file"):
        open_tree(tmp_path / "pipe")
