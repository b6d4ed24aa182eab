"""Files are taken from the first source that has them and verified before use; an error names the remedy."""

import dataclasses
import gzip
import hashlib
import http.server
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ListeningProgress
from neuscale.data.catalog import CATALOG, CatalogEntry, SourceFile, catalog_entry
from neuscale.data.download.apt import PackageUnavailable, fetch_package
from neuscale.data.download.fetch import fetch
from neuscale.errors import DataError, UsageError
from neuscale.progress import Silent

CONTENT = bytes(range(256)) * 5000
MD5 = hashlib.md5(CONTENT).hexdigest()
CLOSED = "http://127.0.0.1:9"  # the discard port, on which nothing listens


def entry_of(*urls: str, md5: str = MD5, content_md5: str | None = None) -> CatalogEntry:
    file = SourceFile("thing.bin", len(CONTENT), md5, urls, content_md5)
    return dataclasses.replace(CATALOG["cifar10"], name="thing", title="Thing", files=(file,))


class Handler(http.server.BaseHTTPRequestHandler):
    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.path == "/missing":
            self.send_error(404)
            return
        if self.path == "/silent":
            time.sleep(1)
        body = {"/page": b"an error page", "/other": CONTENT[::-1]}.get(self.path, CONTENT)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path == "/cut" else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    Handler.requests = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", Handler.requests
        running.shutdown()
        thread.join()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_mirrors_are_tried_in_order_until_one_is_right(
    server: tuple[str, list[str]],
    tmp_path: Path,
    listening: ListeningProgress,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("neuscale.data.download.http._WAITS", ())
    base, requests = server
    paths = ("/missing", "/page", "/other", "/cut", "/good", "/never")
    entry = entry_of(f"{CLOSED}/x", *(base + path for path in paths))
    fetched = fetch(entry, tmp_path, listening)["thing.bin"]
    assert fetched.path == tmp_path / "raw" / "thing.bin"
    assert fetched.path.read_bytes() == CONTENT and fetched.identity.md5 == MD5
    assert fetched.origin == f"{base}/good"
    assert requests == list(paths[:5])
    assert names(tmp_path / "raw") == ["thing.bin"]
    download = [task for task in listening.tasks if task.title.startswith("downloading")][-1]
    assert (download.total, download.done, download.unit) == (len(CONTENT), len(CONTENT), "B")

    again = fetch(entry, tmp_path, Silent())["thing.bin"]
    assert again.origin == "raw" and len(requests) == 5


def test_when_all_fail_one_message_says_what_was_tried_and_what_to_do(
    server: tuple[str, list[str]], tmp_path: Path
) -> None:
    base, _ = server
    started = time.monotonic()
    with pytest.raises(DataError) as caught:
        fetch(entry_of(f"{CLOSED}/x", f"{base}/missing", f"{base}/page", f"{base}/other"), tmp_path, Silent())
    assert time.monotonic() - started < 5
    problem = caught.value.problem
    assert f"{CLOSED}/x: no connection" in problem
    assert "/missing: the server answered 404" in problem
    assert f"/page: what it has is another file (13 bytes instead of {len(CONTENT)})" in problem
    assert "/other: what came has another checksum" in problem
    assert caught.value.fix == (
        f"Put the file thing.bin (md5 {MD5}) in {tmp_path / 'raw'}/ and run the command again."
    )
    assert names(tmp_path / "raw") == []


def test_a_server_that_does_not_answer_is_given_up(
    server: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuscale.data.download.http._STALL_SECONDS", 0.2)
    with pytest.raises(DataError, match="/silent: no answer in time"):
        fetch(entry_of(f"{server[0]}/silent"), tmp_path, Silent())


def test_a_file_in_raw_is_used_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "thing.bin").write_bytes(CONTENT)
    assert fetch(entry_of(f"{CLOSED}/x"), tmp_path, Silent())["thing.bin"].origin == "raw"
    (raw / "thing.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(
        DataError, match=r"raw/thing\.bin: checksum differs \(md5 \w{8}… instead of"
    ) as caught:
        fetch(entry_of(f"{CLOSED}/x"), tmp_path, Silent())
    assert "Delete it" in caught.value.fix
    assert names(raw) == ["thing.bin"]


def test_a_gzip_is_known_by_what_it_holds(tmp_path: Path) -> None:
    """A gzip file is identified by its content: distributions recompress the same images."""
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "thing.bin").write_bytes(gzip.compress(CONTENT, 1))
    entry = entry_of(md5="0" * 32, content_md5=MD5)
    assert fetch(entry, tmp_path, Silent())["thing.bin"].origin == "raw"
    (raw / "thing.bin").write_bytes(gzip.compress(CONTENT, 1)[:-1])
    with pytest.raises(DataError, match="checksum differs"):
        fetch(entry, tmp_path, Silent())


def test_an_installed_package_is_used_where_it_lies(tmp_path: Path) -> None:
    installed = tmp_path / "usr"
    installed.mkdir()
    (installed / "thing.bin").write_bytes(CONTENT)
    entry = dataclasses.replace(
        entry_of(f"{CLOSED}/x"), distribution_package="dataset-thing", distribution_folder=str(installed)
    )
    fetched = fetch(entry, tmp_path / "root", Silent())["thing.bin"]
    assert fetched.path == installed / "thing.bin"
    assert fetched.origin == "installed package dataset-thing"
    assert not (tmp_path / "root").exists()


def test_without_apt_and_network_the_reasons_are_all_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    entry = dataclasses.replace(
        entry_of(f"{CLOSED}/x"), distribution_package="dataset-thing", distribution_folder="/nowhere"
    )
    with pytest.raises(DataError, match="package dataset-thing: no apt-get on this system"):
        fetch(entry, tmp_path, Silent())


needs_apt = pytest.mark.skipif(
    not (shutil.which("apt-get") and shutil.which("dpkg-deb")), reason="this system has no apt-get"
)


@needs_apt
def test_apt_without_a_network_fails_quickly(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(PackageUnavailable):
        fetch_package("dataset-fashion-mnist", tmp_path, ("-o", f"Acquire::http::Proxy={CLOSED}"))
    assert time.monotonic() - started < 20


@pytest.mark.network
@needs_apt
@pytest.mark.parametrize("lists", ["the system's", "none"])
def test_fashion_mnist_comes_from_the_distribution(
    lists: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first run needs no account, web site or root, and in a container no package lists."""
    if lists == "the system's" and not any(Path("/var/lib/apt/lists").glob("*Release*")):
        pytest.skip("this system has no package lists (apt-get update)")
    empty = tmp_path / "empty" / "partial"
    empty.mkdir(parents=True)
    options = () if lists == "the system's" else ("-o", f"Dir::State::Lists={empty.parent}")
    monkeypatch.chdir(tmp_path)
    work = Path("work")  # relative, like the default data folder
    work.mkdir()
    try:
        root = fetch_package("dataset-fashion-mnist", work, options)
    except PackageUnavailable as reason:
        if not re.search("resolve|connect|timed out|unable to locate|fetch", str(reason), re.IGNORECASE):
            raise
        pytest.skip(f"the distribution's archive cannot be reached: {reason}")
    raw = tmp_path / "raw"
    raw.mkdir()
    entry = CATALOG["fashion_mnist"]
    assert entry.distribution_folder is not None
    for path in (root / entry.distribution_folder.lstrip("/")).iterdir():
        shutil.copy(path, raw)
    fetched = fetch(entry, tmp_path, Silent())
    assert {file.origin for file in fetched.values()} == {"raw"} and len(fetched) == 4
    assert bool(list(work.glob("state/lists/*Release*"))) == (lists == "none")


def test_the_catalogue_agrees_with_torchvision() -> None:
    """The checksums and URLs are torchvision's, the ones that everybody trains on."""
    import importlib.util

    found = importlib.util.find_spec("torchvision")
    assert found is not None and found.submodule_search_locations
    datasets = Path(found.submodule_search_locations[0]) / "datasets"
    for name, module in (("fashion_mnist", "mnist.py"), ("cifar10", "cifar.py"), ("cifar100", "cifar.py")):
        text = (datasets / module).read_text()
        for file in CATALOG[name].files:
            assert file.md5 in text and file.urls[0].rpartition("/")[0] in text


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'tiny_imagenet'"):
        catalog_entry("tiny-imagnet")
    with pytest.raises(UsageError, match="Known are fashion_mnist, cifar10"):
        catalog_entry("xyz")
