"""A new data set survives a power cut; before that, the complete older one is there, or none."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from durability.power_cut import recorded
from neuscale import fs as place
from neuscale.data.formats.image_list import ListedDataset
from neuscale.data.formats.packed import PackedDataset
from neuscale.data.formats.write_image_list import list_images
from neuscale.data.formats.write_image_tree import write_image_tree
from neuscale.data.prepare import prepare
from neuscale.data.staging import stage
from neuscale.errors import DataError
from neuscale.fs import move_into_place, partial_folder, remove_leftovers

Trees = tuple[Path, Path]
Reader = Callable[[Path], str]


def make_packed(root: Path, source: Path) -> None:
    prepare("image_folder", root=root, source=source, size=4, save_as="x", force=True)


def make_listed(root: Path, source: Path) -> None:
    list_images("image_folder", root=root, source=source, size=4, save_as="x", force=True)


def make_tree(root: Path, source: Path) -> None:
    write_image_tree("image_folder", root=root, source=source, save_as="x", force=True)


def make_staged(root: Path, source: Path) -> None:
    elsewhere = root.parent / f"packed-{source.name}"
    make_packed(elsewhere, source)
    stage(PackedDataset.open(elsewhere / "packed" / "x"), root)


def read_packed(root: Path, below: str = "packed") -> str:
    data = PackedDataset.open(root / below / "x")
    assert data.verify() == []
    return data.meta.fingerprint


def read_staged(root: Path) -> str:
    return read_packed(root, "neuscale/packed")


def read_listed(root: Path) -> str:
    data = ListedDataset.open(root / "listed" / "x")
    assert data.verify() == []
    return data.meta.fingerprint


def read_tree(root: Path) -> str:
    folder = root / "folders" / "x"
    if not folder.is_dir():
        raise DataError("is not there")
    return str({str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.*"))})


KINDS = {
    "packed": (make_packed, read_packed),
    "listed": (make_listed, read_listed),
    "folders": (make_tree, read_tree),
    "neuscale/packed": (make_staged, read_staged),
}


def cannot_exchange(one: Path, other: Path) -> bool:
    return False


@pytest.mark.parametrize("case", ["first", "replaced", "replaced without renameat2"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_whole_or_the_older_one_or_not_there(
    kind: str, case: str, trees: Trees, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, read = KINDS[kind]
    if kind == "folders":  # sync as for a tree of many files
        monkeypatch.setattr(place, "_SYNCED_ONE_BY_ONE", 2)
    root = tmp_path / "root"
    root.mkdir()
    old = None
    if case != "first":
        make(root, trees[0])
        old = read(root)
    if "without" in case:
        monkeypatch.setattr(place, "_exchange", cannot_exchange)
    elif old is not None and not place._exchange(trees[0], trees[0]):
        pytest.skip("this file system cannot exchange two names")
    with recorded(root, lock=root / kind / ".x.lock") as record:
        make(root, trees[1])
        record.done("made")
    new = read(root)
    assert new != old

    def check(after: Path, done: tuple[str, ...]) -> str:
        if "without" in case:  # between two renames there is neither; the next command restores one
            remove_leftovers(after / kind / "x")
        try:
            found = read(after)
        except DataError as error:
            assert "is not" in error.problem and old is None and not done, error.problem
            return "none"
        assert found == new or (found == old and not done)
        return "new" if found == new else "old"

    assert record.replay(tmp_path / "after", check).keys() == {"none" if old is None else "old", "new"}
    outside = record.changes_without_the_lock()
    assert [change for change in outside if change.split()[0] not in kind.split("/")] == []
    assert sorted(path.name for path in (root / kind).iterdir()) == [".x.lock", "x"]


def test_what_a_power_cut_leaves_is_cleared_up_by_the_next_one(trees: Trees, tmp_path: Path) -> None:
    root = tmp_path / "root"
    make_packed(root, trees[0])
    with recorded(root) as record:
        make_packed(root, trees[1])
    new = read_packed(root)
    seen: set[Any] = set()

    def check(after: Path, done: tuple[str, ...]) -> str:
        names = frozenset(path.name for path in (after / "packed").rglob("*"))
        if names not in seen:  # once for each set of leftovers
            seen.add(names)
            make_packed(after, trees[1])
            assert read_packed(after) == new
            assert sorted(path.name for path in (after / "packed").iterdir()) == [".x.lock", "x"]
        return "leftovers" if len(names) > 10 else "none"

    assert record.replay(tmp_path / "after", check).keys() == {"leftovers", "none"}


def put(folder: Path, content: str) -> None:
    folder.mkdir()
    (folder / "file").write_text(content)


@pytest.mark.parametrize("exchange", [True, False])
def test_the_older_folder_goes_only_when_the_newer_has_its_name_for_good(
    exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds even if the process was killed after its rename and before the sync."""
    root = tmp_path / "root"
    root.mkdir()
    folder = root / "x"
    put(folder, "old")
    put(partial_folder(folder), "new")
    if not exchange:
        monkeypatch.setattr(place, "_exchange", cannot_exchange)
    with recorded(root) as record:
        with monkeypatch.context() as killed:
            killed.setattr(place, "sync_folder", interrupt)
            with pytest.raises(KeyboardInterrupt):
                move_into_place(partial_folder(folder), folder)
        remove_leftovers(folder)
        put(partial_folder(folder), "newest")
        os.sync()
        move_into_place(partial_folder(folder), folder)
        record.done("moved")

    def check(after: Path, done: tuple[str, ...]) -> str:
        remove_leftovers(after / "x")
        content = (after / "x" / "file").read_text()
        assert content == "newest" or not done
        return content

    assert record.replay(tmp_path / "after", check).keys() == {"old", "new", "newest"}


def interrupt(folder: Path) -> None:
    raise KeyboardInterrupt


def test_a_rename_that_fails_puts_the_older_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "x", "old")
    monkeypatch.setattr(place, "_exchange", cannot_exchange)
    with pytest.raises(OSError, match="missing"):
        move_into_place(tmp_path / "missing", tmp_path / "x")
    assert (tmp_path / "x" / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_late_leaves_the_older_one_and_nothing_beside_it(
    kind: str, trees: Trees, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, read = KINDS[kind]
    root = tmp_path / "root"
    make(root, trees[0])
    make_packed(tmp_path / "packed-b", trees[1])
    old = read(root)
    monkeypatch.setattr("neuscale.fs.move_into_place", fail)
    with pytest.raises(ZeroDivisionError):
        if kind == "neuscale/packed":
            stage(PackedDataset.open(tmp_path / "packed-b" / "packed" / "x"), root)
        else:
            make(root, trees[1])
    assert read(root) == old
    assert sorted(path.name for path in (root / kind).iterdir()) == [".x.lock", "x"]


def fail(partial: Path, folder: Path) -> None:
    raise ZeroDivisionError


def test_a_copy_that_came_out_differently_is_not_staged(
    trees: Trees, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy damaged on the network is detected before it is renamed into place."""
    make_packed(tmp_path / "shared", trees[0])
    data = PackedDataset.open(tmp_path / "shared" / "packed" / "x")
    monkeypatch.setattr("neuscale.data.staging._copy_piece", copy_with_a_changed_byte)
    with recorded(tmp_path) as record, pytest.raises(DataError, match="differs from the recorded checksum"):
        stage(data, tmp_path / "node")
    staged = "node/neuscale/packed/x"
    assert all(staged not in cut.tree for cut in record.power_cuts())


def copy_with_a_changed_byte(source: Path, target: Path, offset: int) -> int:
    content = source.read_bytes()
    return target.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
