"""Every file of a distribution's package is verified byte for byte, like a file from a mirror.

`apt-get` and `dpkg-deb` are fakes that hand out a folder, so that no network is needed.
"""

import dataclasses
import gzip
import hashlib
import os
from pathlib import Path

import pytest

from conftest import ListeningProgress
from neuscale.data.catalog import CATALOG, CatalogEntry, SourceFile
from neuscale.data.download.apt import PackageUnavailable, fetch_package
from neuscale.data.download.checksum import file_identity, is_published
from neuscale.data.download.fetch import fetch
from neuscale.errors import DataError
from neuscale.progress import Silent

CLOSED = "http://127.0.0.1:9"
ONE, TWO = b"one" * 700_000, b"two" * 900
INSTALLED = "/usr/share/datasets/thing"

APT_GET = """#!/bin/sh
echo "$@" >> "$APT_LOG"
for word; do last=$word; done
case " $* " in
*" update "*) exit 0 ;;
*" download "*)
    case "$APT_MODE" in
    nothing) exit 0 ;;
    "own lists") case " $* " in *Dir::State=*) ;; *) echo "E: Unable to locate package $last" >&2; exit 100 ;;
        esac ;;
    never) echo "E: Unable to locate package $last" >&2; exit 100 ;;
    esac
    echo "$last" > "${last}_1.0_all.deb" ;;
esac
"""
DPKG_DEB = """#!/bin/sh
[ "$1" = -x ] && [ -f "$2" ] || exit 2
mkdir -p "$3" && cp -r "$PACKAGE/." "$3/"
"""


def entry() -> CatalogEntry:
    files = tuple(
        SourceFile(name, len(content), hashlib.md5(content).hexdigest(), (f"{CLOSED}/{name}",))
        for name, content in (("one.bin", ONE), ("two.bin", TWO))
    )
    return dataclasses.replace(
        CATALOG["cifar10"],
        name="thing",
        title="Thing",
        files=files,
        distribution_package="dataset-thing",
        distribution_folder=INSTALLED,
    )


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of the files in the fake package, intact as published."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, script in (("apt-get", APT_GET), ("dpkg-deb", DPKG_DEB)):
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PACKAGE", str(tmp_path / "package"))
    monkeypatch.setenv("APT_LOG", str(tmp_path / "apt.log"))
    monkeypatch.delenv("APT_MODE", raising=False)
    monkeypatch.setattr("neuscale.data.download.http._WAITS", ())
    files = tmp_path / "package" / INSTALLED.lstrip("/")
    files.mkdir(parents=True)
    (files / "one.bin").write_bytes(ONE)
    (files / "two.bin").write_bytes(TWO)
    return files


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def changed(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def test_what_is_in_the_package_is_taken(package: Path, tmp_path: Path, listening: ListeningProgress) -> None:
    root = tmp_path / "data"
    found = fetch(entry(), root, listening)
    assert {name: file.origin for name, file in found.items()} == dict.fromkeys(
        ("one.bin", "two.bin"), "package dataset-thing"
    )
    for name, content in (("one.bin", ONE), ("two.bin", TWO)):
        assert found[name].path == root / "raw" / name
        assert found[name].path.read_bytes() == content
        identity = found[name].identity
        assert (identity.name, identity.bytes) == (name, len(content))
        assert identity.md5 == hashlib.md5(content).hexdigest()
        assert identity.sha256 == hashlib.sha256(content).hexdigest()
    assert names(root / "raw") == ["one.bin", "two.bin"]
    assert listening.messages == ["fetching Thing from the distribution's package dataset-thing"]
    assert package.is_dir()


@pytest.mark.parametrize("at", [0, 1_500_000, len(ONE) - 1])
def test_a_wrong_byte_in_the_package_is_refused(package: Path, tmp_path: Path, at: int) -> None:
    (package / "one.bin").write_bytes(changed(ONE, at))
    with pytest.raises(DataError) as caught:
        fetch(entry(), tmp_path / "data", Silent())
    assert "package dataset-thing: one.bin has another checksum" in caught.value.problem
    assert f"{CLOSED}/one.bin: no connection" in caught.value.problem
    assert "two.bin" not in caught.value.problem
    assert hashlib.md5(ONE).hexdigest() in caught.value.fix
    assert names(tmp_path / "data" / "raw") == ["two.bin"], "the sound one is kept for the next time"


def test_a_file_that_is_not_in_the_package_is_looked_for_elsewhere(package: Path, tmp_path: Path) -> None:
    (package / "two.bin").unlink()
    with pytest.raises(DataError) as caught:
        fetch(entry(), tmp_path / "data", Silent())
    assert "package dataset-thing: two.bin is not in it" in caught.value.problem
    assert f"{CLOSED}/two.bin: no connection" in caught.value.problem
    (tmp_path / "data" / "raw" / "two.bin").write_bytes(TWO)
    found = fetch(entry(), tmp_path / "data", Silent())
    assert {name: file.origin for name, file in found.items()} == {"one.bin": "raw", "two.bin": "raw"}


def test_an_installed_file_with_a_wrong_byte_is_passed_over_and_one_in_raw_comes_first(
    package: Path, tmp_path: Path
) -> None:
    installed = tmp_path / "installed"
    installed.mkdir()
    (installed / "one.bin").write_bytes(changed(ONE, 7))
    (installed / "two.bin").write_bytes(TWO)
    here = dataclasses.replace(entry(), distribution_folder=str(installed))
    unpacked = tmp_path / "package" / str(installed).lstrip("/")
    unpacked.mkdir(parents=True)
    (unpacked / "one.bin").write_bytes(ONE)
    found = fetch(here, tmp_path / "data", Silent())
    assert found["one.bin"].origin == "package dataset-thing"
    assert found["two.bin"].origin == "installed package dataset-thing"
    assert found["two.bin"].path == installed / "two.bin"
    (tmp_path / "data" / "raw" / "two.bin").write_bytes(TWO)
    (tmp_path / "data" / "raw" / "one.bin").unlink()
    assert fetch(here, tmp_path / "data", Silent())["two.bin"].origin == "raw"
    (tmp_path / "data" / "raw" / "one.bin").unlink()
    (installed / "one.bin").write_bytes(ONE)
    found = fetch(here, tmp_path / "data", Silent())
    assert found["one.bin"].origin == "installed package dataset-thing"
    assert found["two.bin"].origin == "raw"


@pytest.mark.parametrize("mode", ["", "own lists"])
def test_the_systems_lists_are_tried_before_lists_of_our_own(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("APT_MODE", mode)
    work = tmp_path / "work"
    work.mkdir()
    root = fetch_package("dataset-thing", work, ("-o", "Some::Option=1"))
    assert (root / INSTALLED.lstrip("/") / "two.bin").read_bytes() == TWO
    asked = (tmp_path / "apt.log").read_text().splitlines()
    steps = ["download dataset-thing"] if not mode else ["download dataset-thing", "update"] * 2
    assert [line for line in asked if not line.endswith(tuple(steps))] == []
    assert len(asked) == (1 if not mode else 3)
    assert all("Some::Option=1" in line and "Acquire::http::Timeout=10" in line for line in asked)
    assert [f"Dir::State={work / 'state'}" in line for line in asked] == [False, True, True][: len(asked)]


@pytest.mark.parametrize(
    ("mode", "says"),
    [("never", "Unable to locate package dataset-thing"), ("nothing", "apt-get downloaded nothing")],
)
def test_a_package_that_is_not_had_is_said_in_apts_words(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, says: str
) -> None:
    monkeypatch.setenv("APT_MODE", mode)
    (tmp_path / "work").mkdir()
    with pytest.raises(PackageUnavailable, match=f"^{says}$"):
        fetch_package("dataset-thing", tmp_path / "work")


def test_an_identity_is_that_of_the_whole_file(tmp_path: Path, listening: ListeningProgress) -> None:
    """The identity covers a whole file of 2.1 MB, which is read in several chunks."""
    path = tmp_path / "one.bin"
    path.write_bytes(ONE)
    identity = file_identity(path, listening)
    assert dataclasses.astuple(identity) == (
        "one.bin",
        2_100_000,
        hashlib.md5(ONE).hexdigest(),
        hashlib.sha256(ONE).hexdigest(),
    )
    (task,) = listening.tasks
    assert (task.done, task.total, task.unit) == (2_100_000, 2_100_000, "B")


def test_what_a_gzip_holds_is_compared_whole(tmp_path: Path) -> None:
    published = SourceFile("x.gz", 1, "0" * 32, (), hashlib.md5(ONE).hexdigest())
    path = tmp_path / "x.gz"
    for content, right in ((ONE, True), (changed(ONE, 0), False), (changed(ONE, len(ONE) - 1), False)):
        path.write_bytes(gzip.compress(content, 1))
        assert is_published(file_identity(path, Silent()), path, published) is right
    path.write_bytes(gzip.compress(ONE, 1))
    identity = file_identity(path, Silent())
    without = dataclasses.replace(published, content_md5=None)
    assert not is_published(identity, path, without)
    assert is_published(identity, path, dataclasses.replace(without, md5=identity.md5))
    assert not is_published(identity, path, dataclasses.replace(without, md5=identity.sha256[:32]))
