"""Recorder of changes to a folder, and replay of power cuts at any moment of the recording.

The writers need no changes. Python raises an audit event before each call that changes a disk; the
folder is then scanned, so that changes made by native code in between are seen as well. `os.fsync` is
replaced, because it raises no audit event; its file is identified by its inode.
"""

import fcntl
import os
import shutil
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from durability.disk import FATES, ROOT, Change, Cut, Disk, Done, File, Names, Sync, Write

CHANGING = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")
CHANGING += ("ctypes.dlsym", "shutil.rmtree", "shutil.copyfile")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

# Examine the folder after a cut and return a description; the labels were reported as done before the cut.
Check = Callable[[Path, tuple[str, ...]], str]


class Recording:
    """Changes below `root`, whose present content is assumed to be on the disk."""

    def __init__(self, root: Path, lock: Path | None = None) -> None:
        self.root, self._lock_file = root, lock
        self.entries: list[Change | Write | Sync | Done] = []
        self._known: dict[tuple[int, bool], int] = {}
        self._count = ROOT
        self._turn, self._looking = threading.RLock(), False
        self._locked = False
        self._names, self._contents = self._scan()
        self._folders = set(self._names)
        self._first = (self._names, self._contents)

    def look(self) -> None:
        """Record what has changed since the last call."""
        with self._turn:
            if self._looking:  # an audit event of the scan itself
                return
            self._looking = True
            try:
                self._note(*self._scan())
            finally:
                self._looking = False

    def done(self, label: str) -> None:
        """Record that `label` is done and must survive a power cut from here on."""
        self.look()
        self.entries.append(Done(label))

    def fsync(self, file: int) -> None:
        """Record a sync in place of os.fsync."""
        with self._turn:
            self.look()
            found = os.fstat(file)
            node = self._known.get((found.st_ino, stat.S_ISDIR(found.st_mode)))
            if node is not None and found.st_dev == self.root.stat().st_dev:
                self.entries.append(Sync(node))

    def sync(self) -> None:
        """Record a sync in place of os.sync."""
        self.look()
        self.entries.append(Sync(None))

    def changes_without_the_lock(self) -> list[str]:
        """Changes of names, except of the lock file itself, that were made while the lock was not held."""
        assert self._lock_file is not None
        changes = [entry for entry in self.entries if isinstance(entry, Change) and not entry.locked]
        return [str(change) for change in changes if self._lock_file.name not in str(change)]

    def power_cuts(self) -> Iterator[Cut]:
        """Yield each distinct state that a power cut before, between or after the operations could leave."""
        names, contents = self._first
        disk = Disk(
            {folder: names.get(folder, {}) for folder in self._folders},
            {node: File(content, content, len(content)) for node, content in contents.items()},
        )
        seen = set()
        done: tuple[str, ...] = ()
        for number, entry in enumerate([None, *self.entries]):
            if isinstance(entry, Done):
                done = (*done, entry.label)
            elif entry is not None:
                disk.apply(entry)
            for names, told in disk.names_after_a_cut():
                for fate in FATES:
                    tree = disk.tree(names, fate)
                    key = (done, frozenset(tree.items()))
                    if key not in seen:
                        seen.add(key)
                        yield Cut(tree, done, f"operation {number} ({entry}), {told}, data {fate}"[:1000])

    def replay(self, scratch: Path, check: Check) -> dict[str, int]:
        """Run `check` on each state after a power cut, in a folder of its own, and count its answers."""
        said: dict[str, int] = {}
        for number, cut in enumerate(self.power_cuts()):
            folder = scratch / str(number)
            cut.put(folder)
            try:
                answer = check(folder, cut.done)
            except BaseException as error:
                error.add_note(f"{folder}: power cut after {cut.story}")
                raise
            shutil.rmtree(folder)
            said[answer] = said.get(answer, 0) + 1
        return said

    def _scan(self) -> tuple[Names, dict[int, bytes]]:
        names: Names = {ROOT: {}}
        contents: dict[int, bytes] = {}
        present = set()
        folders = [(ROOT, self.root)]
        for folder, path in folders:
            for entry in _entries(path):
                try:
                    key = (entry.inode(), entry.is_dir(follow_symlinks=False))
                    content = b"" if key[1] else Path(entry.path).read_bytes()
                except OSError:  # another thread has removed it
                    continue
                if key not in self._known:
                    self._count += 1
                    self._known[key] = self._count
                node = names[folder][entry.name] = self._known[key]
                present.add(key)
                if key[1]:
                    names[node] = {}
                    folders.append((node, Path(entry.path)))
                else:
                    contents[node] = content
        self._known = {key: node for key, node in self._known.items() if key in present}
        self._known[(self.root.stat().st_ino, True)] = ROOT
        return names, contents

    def _note(self, names: Names, contents: dict[int, bytes]) -> None:
        self._folders |= names.keys()
        groups: list[tuple[set[int], list[tuple[int, str, int | None]]]] = []
        for folder in {**names, **self._names}:
            old, new = self._names.get(folder, {}), names.get(folder, {})
            for name in {**old, **new}:
                if old.get(name) == new.get(name):
                    continue
                nodes = {node for node in (old.get(name), new.get(name)) if node is not None}
                edits = [(folder, name, new.get(name))]
                # Names that share a file have changed together: it was renamed, or two were exchanged.
                for group in [group for group in groups if group[0] & nodes]:
                    groups.remove(group)
                    nodes, edits = group[0] | nodes, [*group[1], *edits]
                groups.append((nodes, edits))
        self.entries += [Change(tuple(edits), self._locked) for _, edits in groups]
        for node, content in contents.items():
            if content != self._contents.get(node, b""):
                self.entries.append(Write(node, content))
        self._names, self._contents = names, contents
        # The change that is announced now is recorded at the next call.
        self._locked = self._lock_file is not None and _is_held(self._lock_file)


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError:
        return []


def _is_held(lock: Path) -> bool:
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


_active: Recording | None = None
_hooked = False


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _active is None:
        return
    if event in CHANGING or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING):
        _active.look()


@contextmanager
def recorded(root: Path, lock: Path | None = None) -> Iterator[Recording]:
    """Record changes below `root`, and for each whether the file `lock` was locked."""
    global _active, _hooked
    if not _hooked:  # an audit hook cannot be removed
        sys.addaudithook(_hook)
        _hooked = True
    recording = Recording(root, lock)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", recording.fsync)
        patch.setattr(os, "fdatasync", recording.fsync)
        patch.setattr(os, "sync", recording.sync)
        _active = recording
        try:
            yield recording
        finally:
            _active = None
            recording.look()
