"""Preparing, if killed, out of disk or started twice, leaves a whole data set or none; a rerun repairs it."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from conftest import ArchiveBuilder, TreeBuilder
from neuscale.data.datasets import prepared_names
from neuscale.data.formats.packed import PackedDataset
from neuscale.data.formats.write_packed import write_packed
from neuscale.data.prepare import prepare
from neuscale.data.sources.open_images import open_images
from neuscale.errors import DataError, UserError
from neuscale.fs import remove_leftovers
from neuscale.progress import Silent

APP = Path(__file__).parents[2] / "app"

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


@pytest.fixture(scope="module")
def trees(
    tmp_path_factory: pytest.TempPathFactory, build_image_tree: TreeBuilder, build_archive: ArchiveBuilder
) -> tuple[Path, Path]:
    """Two small archives with different images."""
    folder = tmp_path_factory.mktemp("trees")
    first = build_archive(build_image_tree(folder / "a", seed=1), folder / "a.zip")
    return first, build_archive(build_image_tree(folder / "b", seed=2, train=5), folder / "b.zip")


def names(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "packed").iterdir() if not path.name.endswith(".lock"))


# Audit events, which Python raises before each call that opens, renames, creates or removes a path.
EVENTS = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree")


def in_a_child(work: Callable[[], object], die_at: int | None, under: Path) -> tuple[int, int]:
    """Run `work` in a fork that kills itself before its `die_at`th file operation below `under`.

    Returns the number of operations counted and the signal that ended the fork.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            if event in EVENTS and str(under) in str(arguments[0]):
                count += 1
                if count == die_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        status = 1
        try:
            work()
            status = 0
        finally:
            os.write(writer, str(count).encode())
            os._exit(status)
    os.close(writer)
    counted = os.read(reader, 100)
    os.close(reader)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        assert os.waitstatus_to_exitcode(status) == 0
        return int(counted), 0
    return 0, os.WTERMSIG(status)


@needs_fork
@pytest.mark.parametrize("replacing", [False, True])
def test_killed_before_any_file_operation(replacing: bool, trees: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = trees
    expected = prepare("image_folder", root=tmp_path / "expected", source=new, save_as="x").meta.fingerprint
    older = prepare("image_folder", root=tmp_path / "older", source=old, save_as="x").meta.fingerprint

    def run(root: Path, die_at: int | None) -> tuple[int, int]:
        shutil.rmtree(root, ignore_errors=True)
        if replacing:
            shutil.copytree(tmp_path / "older", root)
        options = {"root": root, "source": new, "save_as": "x", "force": replacing}
        return in_a_child(lambda: prepare("image_folder", **options), die_at, root)  # type: ignore[arg-type]

    root = tmp_path / "root"
    operations, ended_by = run(root, None)
    assert ended_by == 0 and operations > 20
    seen = set()
    for die_at in range(1, operations + 1):
        _, ended_by = run(root, die_at)
        assert ended_by == signal.SIGKILL
        try:
            data = PackedDataset.open(root / "packed" / "x")
        except DataError as error:
            assert "is not prepared" in error.problem
            seen.add("nothing")
        else:
            assert data.verify() == []
            seen.add({expected: "new", older: "old"}[data.meta.fingerprint])
        repaired = prepare("image_folder", root=root, source=new, save_as="x", force=replacing)
        assert repaired.meta.fingerprint == expected and repaired.verify() == []
        assert names(root) == ["x"]
    assert seen >= ({"old", "new"} if replacing else {"nothing", "new"})


def test_the_older_one_comes_back_after_a_kill_between_the_renames(
    trees: tuple[Path, Path], tmp_path: Path
) -> None:
    older = prepare("image_folder", root=tmp_path, source=trees[0], save_as="x")
    older.folder.rename(older.folder.with_name(".x.replaced-1"))
    (tmp_path / "packed" / ".x.partial-1").mkdir()
    remove_leftovers(older.folder)
    assert names(tmp_path) == ["x"]
    assert PackedDataset.open(older.folder).verify() == []


PREPARE = """
import sys
from pathlib import Path
from neuscale.data.prepare import prepare
from neuscale.progress import Silent

class Printing(Silent):
    def task(self, title, total, unit):
        print("task", title, flush=True)
        return super().task(title, total, unit)
    def message(self, text):
        print("message", text, flush=True)

prepare("image_folder", root=Path(sys.argv[1]), source=Path(sys.argv[2]), save_as="x", progress=Printing())
print("done", flush=True)
"""


def start(root: Path, source: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(APP)}
    command = [sys.executable, "-c", PREPARE, str(root), str(source)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def larger(
    tmp_path_factory: pytest.TempPathFactory, build_image_tree: TreeBuilder, build_archive: ArchiveBuilder
) -> Path:
    """Archive that takes about half a second to pack."""
    folder = tmp_path_factory.mktemp("larger")
    tree = build_image_tree(folder / "tree", train=400, val=100, size=(64, 64))
    return build_archive(tree, folder / "larger.tar.gz")


def test_two_processes_at_once(larger: Path, tmp_path: Path) -> None:
    """Of two processes one does the work; the other reports that it waits and finds the work done."""
    running = [start(tmp_path, larger) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in running]
    outputs.sort(key=lambda output: "task packing train" in output)
    assert [process.returncode for process in running] == [0, 0]
    waited, worked = outputs
    assert "task packing train" in worked and "waiting" not in worked
    first, second, last = waited.splitlines()
    assert (first, last) == ("message another process is preparing x: waiting for it", "done")
    assert second.startswith("message x was prepared on ") and second.endswith("nothing was read anew")
    assert names(tmp_path) == ["x"]


def test_killed_at_random_moments(larger: Path, tmp_path: Path) -> None:
    moments = random.Random(0)
    killed = 0
    for attempt in range(5):
        root = tmp_path / str(attempt)
        process = start(root, larger)
        assert process.stdout is not None
        process.stdout.readline()  # preparing has begun
        time.sleep(moments.uniform(0, 0.5))
        process.kill()
        killed += process.wait(timeout=60) == -signal.SIGKILL
        assert prepared_names(root) in ([], ["x"])
        if prepared_names(root):
            assert PackedDataset.open(root / "packed" / "x").verify() == []
    data = prepare("image_folder", root=tmp_path / "0", source=larger, save_as="x")
    assert data.verify() == [] and names(tmp_path / "0") == ["x"]
    assert killed >= 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Disk of 1 MB; mounting it needs root."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("only root on Linux can mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_too_small_is_known_before(small_disk: Path, larger: Path) -> None:
    with pytest.raises(DataError, match=r"takes 18 MB, but only 1 MB are free"):
        prepare("image_folder", root=small_disk, source=larger, save_as="x")
    assert names(small_disk) == []


def test_a_disk_that_fills_up_leaves_nothing_and_keeps_the_older(
    small_disk: Path, larger: Path, trees: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other files fill the disk during the write: the result is an error, not SIGBUS."""
    older = prepare("image_folder", root=small_disk, source=trees[0], save_as="x")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**12))
    with pytest.raises(UserError, match="the disk is full"):
        prepare("image_folder", root=small_disk, source=larger, save_as="x", force=True)
    assert names(small_disk) == ["x"]
    assert PackedDataset.open(older.folder).verify() == []


def test_a_read_only_disk_is_one_message(small_disk: Path, trees: tuple[Path, Path]) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match="the file system is read-only"):
        prepare("image_folder", root=small_disk, source=trees[0])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_one_message(trees: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "packed").mkdir(mode=0o500)
    with pytest.raises(UserError, match="no permission to write there"):
        prepare("image_folder", root=tmp_path, source=trees[0])


@needs_fork
def test_a_file_size_limit_is_an_error_and_leaves_nothing(larger: Path, tmp_path: Path) -> None:
    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        try:
            prepare("image_folder", root=tmp_path, source=larger, save_as="x")
        except UserError:
            return
        raise AssertionError("it fitted")

    in_a_child(work, None, tmp_path)
    assert names(tmp_path) == []


def test_a_source_that_shrinks_while_it_is_read_is_noticed(
    trees: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_images(trees[0])
    blocks = source.blocks
    monkeypatch.setattr(source, "blocks", lambda split: (block for block in blocks(split) if split == "val"))
    with pytest.raises(DataError, match="changed while it was read"):
        write_packed(
            tmp_path / "packed" / "x", source, title="", licence="", provenance={}, progress=Silent()
        )
    assert names(tmp_path) == []


def test_ctrl_c_leaves_nothing(
    trees: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("neuscale.data.formats.write_packed._checksums", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare("image_folder", root=tmp_path, source=trees[0], save_as="x")
    assert names(tmp_path) == []
