"""File names in archives are read as their creator saw them."""

import struct
import subprocess
import unicodedata
import zlib
from collections.abc import Mapping
from pathlib import Path

import pytest

from conftest import ListeningProgress
from neuscale.data.prepare import prepare
from neuscale.data.sources.options import SourceOptions
from neuscale.errors import UsageError

from .trees import as_folder, as_tar, as_zip, ready, split_files


def raw_zip(path: Path, files: Mapping[bytes, bytes], extras: Mapping[bytes, bytes] | None = None) -> Path:
    """Write a stored (uncompressed) zip by hand, with these bytes as names."""
    local, central = b"", b""
    for raw, content in files.items():
        extra = (extras or {}).get(raw, b"")
        numbers = (20, 0, 0, 0, 33, zlib.crc32(content), len(content), len(content), len(raw), len(extra))
        offset = len(local)
        local += struct.pack("<4s5H3L2H", b"PK\x03\x04", *numbers) + raw + extra + content
        central += (
            struct.pack(
                "<4s6H3L5H2L",
                b"PK\x01\x02",
                20,
                *numbers[:5],
                *numbers[5:8],
                *numbers[8:],
                0,
                0,
                0,
                0,
                offset,
            )
            + raw
            + extra
        )
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, len(files), len(files), len(central), len(local), 0)
    path.write_bytes(local + central + end)
    return path


NAMES = {
    "café": "utf-8",
    "犬": "utf-8",
    "ネコ": "cp932",
    "猫狗": "gbk",
    "Straße": "cp1252",
    "Ünïcode": "cp437",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_without_a_flag_are_read_in_their_encoding(
    tmp_path: Path, name: str, listening: ListeningProgress
) -> None:
    encoding = NAMES[name]
    files = split_files([name, "other"])
    tree = as_folder(files, tmp_path / "tree")
    path = raw_zip(tmp_path / "old.zip", {key.encode(encoding): content for key, content in files.items()})
    given = None if encoding in ("utf-8", "cp437") else encoding
    options = SourceOptions(encoding=given)
    data = prepare("image_folder", root=tmp_path, source=path, options=options, progress=listening)
    assert data.meta.classes == sorted([name, "other"])
    assert data.meta.fingerprint == ready(tmp_path, tree).meta.fingerprint
    warned = [warning for warning in listening.warnings if "in an encoding that it does not name" in warning]
    assert len(warned) == (encoding == "cp437")


def test_a_name_that_no_encoding_fits_is_warned_of_and_a_wrong_one_refused(
    tmp_path: Path, listening: ListeningProgress
) -> None:
    files = {key.encode("cp932"): content for key, content in split_files(["ネコ", "other"]).items()}
    path = raw_zip(tmp_path / "old.zip", files)
    prepare("image_folder", root=tmp_path, source=path, progress=listening)
    assert "set `encoding`, for example to cp932" in listening.warnings[0]
    for encoding, words in (("ascii", "a name is not in it"), ("klingon", "there is no such encoding")):
        with pytest.raises(UsageError, match=words):
            ready(tmp_path, path, "y", encoding=encoding)


def test_the_unicode_field_of_a_name_is_taken_where_it_is_of_this_name(tmp_path: Path) -> None:
    """Info-ZIP's Unicode path field is used only if its checksum matches the raw name and it is valid UTF-8.

    A wrong checksum means that a program that does not know the field has renamed the file.
    """
    files, extras = {}, {}
    for name, content in split_files(["a?", "b?"]).items():
        raw = name.encode().replace(b"?", b"\xff")
        files[raw] = content
        field = struct.pack("<BL", 1, zlib.crc32(raw)) + name.replace("?", "ñ").encode()
        extras[raw] = struct.pack("<HH", 0x7075, len(field)) + field
    assert ready(tmp_path, raw_zip(tmp_path / "z.zip", files, extras)).meta.classes == ["añ", "bñ"]
    wrong = {raw: field[:9] + bytes(reversed(field[9:])) for raw, field in extras.items()}
    stale = {
        raw: field.replace(struct.pack("<L", zlib.crc32(raw)), b"\0\0\0\1") for raw, field in extras.items()
    }
    for broken in (wrong, stale):
        data = ready(tmp_path, raw_zip(tmp_path / "z.zip", files, broken), "y" if broken is wrong else "z")
        assert data.meta.classes == ["a\xa0", "b\xa0"], "code page 437"


def test_a_backslash_separates_only_in_a_zip_without_slashes(tmp_path: Path) -> None:
    files = split_files(["AC\\DC", "AC\\BC"])
    tree = ready(tmp_path, as_folder(files, tmp_path / "tree"), "tree")
    assert tree.meta.classes == ["AC\\BC", "AC\\DC"]
    for kind, archive in (("tar", as_tar(files, tmp_path / "t")), ("zip", as_zip(files, tmp_path / "z"))):
        assert ready(tmp_path, archive, kind).meta.fingerprint == tree.meta.fingerprint
    windows = {
        name.replace("/", "\\").encode(): content for name, content in split_files(["cat", "dog"]).items()
    }
    assert ready(tmp_path, raw_zip(tmp_path / "w.zip", windows), "windows").meta.classes == ["cat", "dog"]


def test_two_unicode_forms_of_a_name_are_one_class(tmp_path: Path, listening: ListeningProgress) -> None:
    files = split_files(["café", "dog"])
    forms = {
        unicodedata.normalize("NFD", name) if name.startswith("val") else name: content
        for name, content in files.items()
    }
    data = prepare("image_folder", root=tmp_path, source=as_tar(forms, tmp_path / "t"), progress=listening)
    assert data.meta.classes == ["café", "dog"] and data.class_counts("val") == [2, 2]
    assert "'café' is written in 2 forms of Unicode, and is one class" in listening.warnings
    assert data.meta.fingerprint == ready(tmp_path, as_folder(files, tmp_path / "tree")).meta.fingerprint


def test_zip_of_the_command_zip(tmp_path: Path) -> None:
    """The `zip` command leaves the UTF-8 flag unset; its names are still read as UTF-8."""
    if subprocess.run(["which", "zip"], capture_output=True, check=False).returncode:
        pytest.skip("there is no zip here")
    tree = as_folder(split_files(["café", "犬"]), tmp_path / "tree")
    subprocess.run(["zip", "-qr", str(tmp_path / "z.zip"), "."], cwd=tree, check=True)
    data = ready(tmp_path, tmp_path / "z.zip")
    assert data.meta.classes == ["café", "犬"]
    assert data.meta.fingerprint == ready(tmp_path, tree, "tree").meta.fingerprint
