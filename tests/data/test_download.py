"""An interrupted download resumes where it ended, so that a large file arrives even over a bad line."""

import dataclasses
import hashlib
import http.server
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ListeningProgress
from neuscale.data.catalog import CATALOG, CatalogEntry, SourceFile
from neuscale.data.download.fetch import fetch
from neuscale.errors import DataError
from neuscale.progress import Silent

APP = Path(__file__).parents[2] / "app"
CONTENT = random.Random(0).randbytes(2_000_000)
HALF = len(CONTENT) // 2


class Server(http.server.ThreadingHTTPServer):
    """HTTP server of CONTENT whose behaviour the path selects; records requests and the bytes sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, int]] = []  # path and first byte, -1 for a request without a range
        self.given = 0

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        manner = self.path.strip("/")
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(wanted[1]) if wanted else 0
        again = any(path == manner for path, _ in self.server.asked)
        self.server.asked.append((manner, first if wanted else -1))
        content = CONTENT[::-1] if manner == "other" else CONTENT
        if manner == "refuses-ranges" and wanted:
            self.send_error(416)
            return
        if manner == "busy" and again:
            self.send_error(503)
            return
        ranged = wanted is not None and manner != "no-ranges"
        body = content[first:] if ranged else content
        self.send_response(206 if ranged else 200)
        if ranged:
            shown = 0 if manner == "wrong-range" else first
            self.send_header("Content-Range", f"bytes {shown}-{len(content) - 1}/{len(content)}")
        if manner not in ("no-length", "too-much"):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        length = len(body)
        if manner in ("half", "busy", "stalls") and not ranged:
            length = HALF
        elif manner in ("bit-by-bit", "no-length"):
            length = min(length, 300_000)
        elif manner == "too-much":
            body += b"more"
            length += 4
        pause = 0.004 if manner == "slow" else 0.0
        for start in range(0, length, 1 << 15):
            piece = body[start : min(start + (1 << 15), length)]
            try:
                self.wfile.write(piece)
            except OSError:  # the client is gone
                self.close_connection = True
                return
            self.server.given += len(piece)
            time.sleep(pause)
        if manner == "stalls" and not ranged:
            time.sleep(1)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuscale.data.download.http._WAITS", (0.01, 0.02))


def entry_of(*urls: str) -> CatalogEntry:
    file = SourceFile("thing.bin", len(CONTENT), hashlib.md5(CONTENT).hexdigest(), urls)
    return dataclasses.replace(CATALOG["cifar10"], name="thing", title="Thing", files=(file,))


def part(root: Path) -> Path:
    return root / "raw" / ".thing.bin.part"


def begun(root: Path, content: bytes) -> Path:
    """Write the partial file of an interrupted download."""
    (root / "raw").mkdir(exist_ok=True)
    part(root).write_bytes(content)
    return root


def names(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "raw").iterdir() if not path.name.endswith(".lock"))


def check_whole(root: Path, *urls: str) -> None:
    fetched = fetch(entry_of(*urls), root, Silent())["thing.bin"]
    assert fetched.path.read_bytes() == CONTENT
    assert names(root) == ["thing.bin"]


@pytest.mark.parametrize("manner", ["half", "bit-by-bit", "no-length", "busy-then-good", "stalls"])
def test_a_connection_that_breaks_off_goes_on_where_it_ended(
    manner: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuscale.data.download.http._STALL_SECONDS", 0.2)
    urls = ["busy", "good"] if manner == "busy-then-good" else [manner]
    check_whole(tmp_path, *map(server.url, urls))
    # The last bytes before a stall, less than a chunk, may be dropped and fetched again.
    assert server.given < len(CONTENT) + (1 << 16 if manner == "stalls" else 1)
    assert len(server.asked) > 1 and all(first > 0 for _, first in server.asked[1:])


def test_another_mirror_goes_on_where_the_first_ended(
    server: Server, tmp_path: Path, listening: ListeningProgress
) -> None:
    fetch(entry_of(server.url("busy"), server.url("good")), tmp_path, listening)
    assert server.asked[0] == ("busy", -1) and server.asked[-1] == ("good", HALF)
    assert listening.messages == ["thing.bin: resuming at 1 of 2 MB"]
    downloads = [task for task in listening.tasks if task.title.startswith("downloading")]
    assert (downloads[-1].done, downloads[-1].total) == (len(CONTENT), len(CONTENT))


@pytest.mark.parametrize("manner", ["no-ranges", "refuses-ranges", "wrong-range"])
def test_a_server_without_ranges_sends_all_of_it_again(manner: str, server: Server, tmp_path: Path) -> None:
    check_whole(begun(tmp_path, CONTENT[:HALF]), server.url(manner))
    assert server.asked[0] == (manner, HALF)
    assert len(server.asked) == (1 if manner == "no-ranges" else 2)


def test_a_wrong_beginning_is_thrown_away_once(server: Server, tmp_path: Path) -> None:
    check_whole(begun(tmp_path, bytes(HALF)), server.url("good"))
    assert server.asked == [("good", HALF), ("good", -1)]


def test_a_wrong_mirror_spoils_nothing(server: Server, tmp_path: Path) -> None:
    check_whole(
        begun(tmp_path, CONTENT[:HALF]), server.url("other"), server.url("too-much"), server.url("good")
    )
    assert server.asked == [("other", HALF), ("other", -1), ("too-much", -1), ("good", -1)]


@pytest.mark.parametrize("length", [len(CONTENT), len(CONTENT) + 5])
def test_a_part_of_full_length_is_judged_by_its_checksum(length: int, server: Server, tmp_path: Path) -> None:
    check_whole(begun(tmp_path, (CONTENT + b"extra")[:length]), server.url("good"))
    assert len(server.asked) == (length > len(CONTENT))


def test_what_came_is_kept_for_the_next_run_when_all_mirrors_fail(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="/busy: the server answered 503") as caught:
        fetch(entry_of(server.url("busy")), tmp_path, Silent())
    assert "run the command again" in caught.value.fix
    assert names(tmp_path) == [".thing.bin.part"]
    check_whole(tmp_path, server.url("good"))
    assert server.given == len(CONTENT)


def test_a_file_that_the_user_brings_ends_the_download(tmp_path: Path) -> None:
    begun(tmp_path, CONTENT[:HALF])
    (tmp_path / "raw" / "thing.bin").write_bytes(CONTENT)
    check_whole(tmp_path, "http://127.0.0.1:9/x")


FETCH = """
import dataclasses, sys
from pathlib import Path
import requests
from neuscale.data.catalog import CATALOG, SourceFile
from neuscale.data.download.fetch import fetch
from neuscale.progress import Silent

url, size, md5, root = sys.argv[1:]
file = SourceFile("thing.bin", int(size), md5, (url,))
print("ready", flush=True)
fetch(dataclasses.replace(CATALOG["cifar10"], name="thing", files=(file,)), Path(root), Silent())
"""


def test_killed_at_random_moments_the_next_run_goes_on(server: Server, tmp_path: Path) -> None:
    moments = random.Random(0)
    (file,) = entry_of(server.url("slow")).files
    arguments = [file.urls[0], str(file.bytes), file.md5, str(tmp_path)]
    killed = 0
    while not (tmp_path / "raw" / "thing.bin").exists():
        process = subprocess.Popen(
            [sys.executable, "-c", FETCH, *arguments],
            env={**os.environ, "PYTHONPATH": str(APP)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        if killed < 5:
            time.sleep(moments.uniform(0, 0.07))
            process.kill()
        process.communicate(timeout=60)
        if process.returncode == -signal.SIGKILL:
            killed += 1
            if "thing.bin" in names(tmp_path):
                assert (tmp_path / "raw" / "thing.bin").read_bytes() == CONTENT
        else:
            assert process.returncode == 0
    assert killed >= 3
    check_whole(tmp_path, server.url("slow"))
    firsts = [first for _, first in server.asked]
    assert firsts == sorted(firsts) and firsts[-1] > 0
    # Only the bytes in flight when a process was killed are sent twice.
    assert server.given < 1.3 * len(CONTENT)
