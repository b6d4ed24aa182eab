"""A fetched download survives a power cut; an interrupted one is completed correctly."""

import dataclasses
import hashlib
import http.server
import random
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from durability.power_cut import recorded
from neuscale.data.catalog import CATALOG, CatalogEntry, SourceFile
from neuscale.data.download.fetch import fetch
from neuscale.errors import DataError
from neuscale.progress import Silent

CONTENT = random.Random(0).randbytes(200_000)


class Handler(http.server.BaseHTTPRequestHandler):
    """HTTP handler that serves CONTENT; /half breaks off in the middle unless a range is requested."""

    def do_GET(self) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(wanted[1]) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(CONTENT) - first))
        self.end_headers()
        self.wfile.write(CONTENT[first : len(CONTENT) // 2 if self.path == "/half" and not wanted else None])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuscale.data.download.http._WAITS", (0.0,))


def entry_of(*urls: str) -> CatalogEntry:
    file = SourceFile("thing.bin", len(CONTENT), hashlib.md5(CONTENT).hexdigest(), urls)
    return dataclasses.replace(CATALOG["cifar10"], name="thing", title="Thing", files=(file,))


def names(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "raw").iterdir() if path.name != ".thing.lock")


@pytest.mark.parametrize("path", ["whole", "half"])
def test_a_download_is_whole_or_goes_on(path: str, server: str, tmp_path: Path) -> None:
    """The part file is not synced before its end, so a power cut may leave zeros in any piece of it."""
    root = tmp_path / "root"
    root.mkdir()
    entry = entry_of(f"{server}/{path}")
    with recorded(root, lock=root / "raw" / ".thing.lock") as record:
        fetch(entry, root, Silent())
        record.done("fetched")

    def check(after: Path, done: tuple[str, ...]) -> str:
        there = (after / "raw" / "thing.bin").exists()
        if there:
            assert (after / "raw" / "thing.bin").read_bytes() == CONTENT
        assert there or not done
        part = (after / "raw" / ".thing.bin.part").exists()
        if part or there:
            assert fetch(entry, after, Silent())["thing.bin"].path.read_bytes() == CONTENT
            assert names(after) == ["thing.bin"]
        return "there" if there else "part" if part else "none"

    assert record.replay(tmp_path / "after", check).keys() == {"none", "part", "there"}
    assert record.changes_without_the_lock() == ["raw named"]


def test_what_came_from_a_package_is_whole_once_it_has_its_name(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    entry = dataclasses.replace(
        entry_of(f"{server}/never"),
        distribution_package="dataset-thing",
        distribution_folder="/usr/share/thing",
    )

    def unpack(package: str, folder: Path) -> Path:
        unpacked = folder / "root" / "usr" / "share" / "thing"
        unpacked.mkdir(parents=True)
        (unpacked / "thing.bin").write_bytes(CONTENT)
        return folder / "root"

    monkeypatch.setattr("neuscale.data.download.fetch.fetch_package", unpack)
    with recorded(root, lock=root / "raw" / ".thing.lock") as record:
        assert fetch(entry, root, Silent())["thing.bin"].origin == "package dataset-thing"
        record.done("fetched")

    def check(after: Path, done: tuple[str, ...]) -> str:
        file = after / "raw" / "thing.bin"
        assert file.exists() or not done
        if file.exists():
            assert file.read_bytes() == CONTENT
        if (after / "raw" / ".thing.partial").exists():
            fetch(entry, after, Silent())
            assert file.exists()
        return "there" if file.exists() else "none"

    assert record.replay(tmp_path / "after", check).keys() == {"none", "there"}
    assert names(root) == ["thing.bin"]
    assert record.changes_without_the_lock() == ["raw named"]


def test_a_file_that_is_not_what_was_published_gets_no_name(server: str, tmp_path: Path) -> None:
    """This holds for a mirror's file and for a part file of full length, as a power cut may leave it."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / ".thing.bin.part").write_bytes(bytes(len(CONTENT)))
    file = dataclasses.replace(entry_of(f"{server}/whole").files[0], md5=hashlib.md5(b"other").hexdigest())
    with recorded(tmp_path) as record, pytest.raises(DataError, match="another checksum"):
        fetch(dataclasses.replace(entry_of(), files=(file,)), tmp_path, Silent())
    assert all("raw/thing.bin" not in cut.tree for cut in record.power_cuts())
