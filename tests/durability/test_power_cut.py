"""The recorder finds each way to lose a file in a power cut, and reports no loss where there is none."""

import ctypes
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from durability.power_cut import Recording, recorded

OLD, NEW = b"the older content", b"something newer and longer"


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def right(file: Path) -> None:
    part = file.with_name("part")
    part.write_bytes(NEW)
    sync(part)
    part.replace(file)
    sync(file.parent)


def in_one_stream(file: Path) -> None:
    part = file.with_name("part")
    with part.open("wb") as stream:
        stream.write(NEW)
        stream.flush()
        os.fsync(stream.fileno())
    part.rename(file)
    sync(file.parent)


def without_sync(file: Path) -> None:
    part = file.with_name("part")
    part.write_bytes(NEW)
    part.replace(file)
    sync(file.parent)


def without_sync_of_the_folder(file: Path) -> None:
    part = file.with_name("part")
    part.write_bytes(NEW)
    sync(part)
    part.replace(file)


def renamed_first(file: Path) -> None:
    part = file.with_name("part")
    part.write_bytes(NEW)
    part.replace(file)
    sync(file)
    sync(file.parent)


def not_flushed(file: Path) -> None:
    part = file.with_name("part")
    with part.open("wb") as stream:
        stream.write(NEW)
        os.fsync(stream.fileno())
    part.replace(file)
    sync(file.parent)


def more_after_the_sync(file: Path) -> None:
    part = file.with_name("part")
    with part.open("wb", buffering=0) as stream:
        stream.write(NEW[:-3])
        os.fsync(stream.fileno())
        stream.write(NEW[-3:])
    part.replace(file)
    sync(file.parent)


def another_file_synced(file: Path) -> None:
    part, other = file.with_name("part"), file.with_name("other")
    part.write_bytes(NEW)
    other.write_bytes(NEW)
    sync(other)
    part.replace(file)
    sync(file.parent)


def another_folder_synced(file: Path) -> None:
    part = file.with_name("part")
    part.write_bytes(NEW)
    sync(part)
    part.replace(file)
    sync(file.parent.parent)


def into_the_final_name(file: Path) -> None:
    with file.open("wb") as stream:
        stream.write(NEW)
        stream.flush()
        os.fsync(stream.fileno())
    sync(file.parent)


def in_place(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.write(NEW)
        stream.flush()
        os.fsync(stream.fileno())


def removed_before(file: Path) -> None:
    part = file.with_name("part")
    part.write_bytes(NEW)
    sync(part)
    file.unlink()
    part.rename(file)
    sync(file.parent)


def from_another_folder(file: Path) -> None:
    part = file.parent / "elsewhere" / "part"
    part.parent.mkdir()
    part.write_bytes(NEW)
    sync(part)
    part.replace(file)
    sync(part.parent)


def exchanged(one: Path, other: Path) -> None:
    renameat2 = ctypes.CDLL(None).renameat2
    if renameat2(-100, os.fsencode(one), -100, os.fsencode(other), 2) != 0:
        pytest.skip("this file system cannot exchange two names")


def lost(writer: Callable[[Path], None], tmp_path: Path) -> list[str]:
    """Wrong states that a reader may find: other content than old or new, or the old one after the end."""
    folder = tmp_path / "root" / "folder"
    folder.mkdir(parents=True)
    (folder / "file").write_bytes(OLD)
    with recorded(tmp_path / "root") as record:
        writer(folder / "file")
        record.done("written")

    def check(root: Path, done: tuple[str, ...]) -> str:
        file = root / "folder" / "file"
        content = file.read_bytes() if file.exists() else None
        if content == NEW or (content == OLD and not done):
            return "right"
        return f"{content!r} after {done}"

    said = record.replay(tmp_path / "after", check)
    assert said["right"] >= 2
    return sorted(said.keys() - {"right"})


@pytest.mark.parametrize("writer", [right, in_one_stream])
def test_nothing_is_lost_where_all_is_synced_in_order(writer: Callable[[Path], None], tmp_path: Path) -> None:
    assert lost(writer, tmp_path) == []


@pytest.mark.parametrize(
    ("writer", "example"),
    [
        (without_sync, f"{bytes(len(NEW))!r} after ('written',)"),
        (without_sync_of_the_folder, f"{OLD!r} after ('written',)"),
        (renamed_first, "b'' after ()"),
        (not_flushed, f"{NEW[: len(NEW) // 2]!r} after ('written',)"),
        (more_after_the_sync, f"{NEW[:-3] + bytes(3)!r} after ('written',)"),
        (another_file_synced, "b'' after ('written',)"),
        (another_folder_synced, f"{OLD!r} after ('written',)"),
        (into_the_final_name, "b'' after ()"),
        (in_place, f"{NEW[: len(NEW) // 2]!r} after ()"),
        (removed_before, "None after ()"),
        (from_another_folder, f"{OLD!r} after ('written',)"),
    ],
)
def test_each_way_to_lose_a_file_is_found(
    writer: Callable[[Path], None], example: str, tmp_path: Path
) -> None:
    assert example in lost(writer, tmp_path)


def trees(record: Recording) -> list[dict[str, bytes | None]]:
    return [cut.tree for cut in record.power_cuts()]


def test_what_was_synced_stays_when_more_is_appended(tmp_path: Path) -> None:
    with recorded(tmp_path) as record, (tmp_path / "log").open("ab") as log:
        log.write(b"one\n")
        log.flush()
        os.fsync(log.fileno())
        sync(tmp_path)
        record.done("one")
        log.write(b"two\n")
        log.flush()
    found = {cut.tree["log"] for cut in record.power_cuts() if cut.done}
    assert found == {b"one\n", b"one\ntw", b"one\n\0\0\0\0", b"one\ntwo\n"}


def test_two_names_are_exchanged_at_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with recorded(tmp_path) as record:
        exchanged(tmp_path / "a", tmp_path / "b")
    contents = [(tree["a/file"], tree["b/file"]) for tree in trees(record)]
    assert contents == [(b"a", b"b"), (b"b", b"a")]


def test_changes_in_two_folders_reach_the_disk_in_any_order(tmp_path: Path) -> None:
    """A folder that is renamed and emptied may be found empty under its old name."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").write_text("x")
    with recorded(tmp_path) as record:
        (tmp_path / "old").rename(tmp_path / "doomed")
        (tmp_path / "doomed" / "file").unlink()
    assert {"old": None} in trees(record)
    with recorded(tmp_path) as record:
        (tmp_path / "doomed" / "file").write_text("y")
        sync(tmp_path / "doomed" / "file")
        sync(tmp_path / "doomed")
        (tmp_path / "doomed").rename(tmp_path / "new")
        sync(tmp_path)
        shutil.rmtree(tmp_path / "new")
    assert {"new": None, "new/file": b"y"} in trees(record) and {"new": None} in trees(record)
    assert {"doomed": None, "new": None} not in trees(record)


def test_a_new_folder_is_lost_with_all_that_is_in_it_until_the_one_above_is_synced(tmp_path: Path) -> None:
    with recorded(tmp_path) as record:
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "a" / "b" / "file").write_text("x")
        sync(tmp_path / "a" / "b" / "file")
        sync(tmp_path / "a" / "b")
        record.done("written")
        sync(tmp_path)
        sync(tmp_path / "a")
        record.done("synced")
    found = [cut.tree for cut in record.power_cuts() if cut.done == ("written",)]
    assert {} in found and {"a": None} in found
    found = [cut.tree for cut in record.power_cuts() if "synced" in cut.done]
    assert found == [{"a": None, "a/b": None, "a/b/file": b"x"}]


def test_threads_are_seen_and_so_is_one_call_to_sync_it_all(tmp_path: Path) -> None:
    def write(number: int) -> None:
        (tmp_path / str(number)).write_text(str(number))

    with recorded(tmp_path) as record:
        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        os.sync()
        record.done("synced")
    found = [cut.tree for cut in record.power_cuts() if cut.done]
    assert found == [{str(number): str(number).encode() for number in range(8)}]


def test_changes_that_nobody_holds_the_lock_for_are_named(tmp_path: Path) -> None:
    with recorded(tmp_path, lock=tmp_path / "lock") as record:
        with FileLock(tmp_path / "lock"):
            (tmp_path / "inside").touch()
        (tmp_path / "outside").touch()
    assert record.changes_without_the_lock() == ["outside named"]


def test_nothing_is_recorded_or_replaced_afterwards(tmp_path: Path) -> None:
    real = os.fsync
    with recorded(tmp_path) as record:
        assert os.fsync != real
    assert os.fsync is real
    (tmp_path / "file").touch()
    assert record.entries == []
