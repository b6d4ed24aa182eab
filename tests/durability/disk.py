"""Model of the states in which a power cut can leave a disk, given the operations before it.

The model is that of ALICE (Pillai et al. 2014) and CrashMonkey (Mohan et al. 2018). Data that was
not synced may or may not have reached the disk: a file may have its new content, its older content,
half of it, zeros or nothing, under whatever names it has by then. A change of names in a folder is
durable once that folder is synced. Until then, a power cut may keep any first part of the pending
changes of all folders, and the changes of one folder may have reached the disk when those of the
others have not. A rename is one change.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = 0  # number of the recorded folder itself
FATES = ("kept", "older", "cut", "zeros", "empty")

Names = dict[int, dict[str, int]]  # names in each folder; files and folders are numbers, like inodes
Tree = dict[str, bytes | None]  # path → content, None for a folder


@dataclass(frozen=True)
class Change:
    """Names that change atomically: (folder, name, node that it names then, None if removed).

    `locked`: the watched lock was held during the change.
    """

    edits: tuple[tuple[int, str, int | None], ...]
    locked: bool

    @property
    def home(self) -> int:
        """The folder whose sync makes the change durable: the one with the new name, if there is one."""
        return next((folder for folder, _, node in self.edits if node is not None), self.edits[0][0])

    def __str__(self) -> str:
        return ", ".join(f"{name} {'removed' if node is None else 'named'}" for _, name, node in self.edits)


@dataclass(frozen=True)
class Write:
    """A file gets `content`, in memory and not yet on the disk."""

    node: int
    content: bytes


@dataclass(frozen=True)
class Sync:
    """A file's content or a folder's names are synced to the disk; if `node` is None, everything is."""

    node: int | None


@dataclass(frozen=True)
class Done:
    """The writer has reported `label` as done."""

    label: str


@dataclass(frozen=True)
class File:
    """A file's synced and current content.

    `floor`: number of leading bytes that the synced content shares with every later content, so that no
    power cut changes them.
    """

    synced: bytes | None = None
    content: bytes = b""
    floor: int = 0

    def written(self, content: bytes) -> "File":
        kept = self.content[: self.floor]
        if not content.startswith(kept):
            pairs = enumerate(zip(kept, content, strict=False))
            differ = (number for number, (old, new) in pairs if old != new)
            kept = kept[: next(differ, min(len(kept), len(content)))]
        return File(self.synced, content, len(kept))

    def after(self, fate: str) -> bytes:
        """Content after a power cut with this outcome."""
        if fate == "kept" or self.content == self.synced:
            return self.content
        if fate == "older":
            return self.synced or b""
        kept, lost = self.content[: self.floor], self.content[self.floor :]
        return kept + {"cut": lost[: len(lost) // 2], "zeros": bytes(len(lost)), "empty": b""}[fate]


@dataclass
class Disk:
    """Names on the disk, changes of names that may not be on it yet, and files."""

    names: Names
    files: dict[int, File]
    pending: list[Change] = field(default_factory=list)

    def apply(self, entry: Change | Write | Sync) -> None:
        if isinstance(entry, Change):
            self.pending.append(entry)
        elif isinstance(entry, Write):
            self.files[entry.node] = self.files.get(entry.node, File()).written(entry.content)
        else:
            for node in self.files if entry.node is None else {entry.node} & self.files.keys():
                content = self.files[node].content
                self.files[node] = File(content, content, len(content))
            # A change that stays keeps earlier pending changes of the names that it touches.
            names: set[tuple[int, str]] = set()
            split: dict[bool, list[Change]] = {True: [], False: []}
            for change in reversed(self.pending):
                touched = {(folder, name) for folder, name, _ in change.edits}
                stays = entry.node in (None, change.home) or not touched.isdisjoint(names)
                split[stays].insert(0, change)
                names |= touched if stays else set()
            self.names, self.pending = _changed(self.names, split[True]), split[False]

    def names_after_a_cut(self) -> Iterator[tuple[Names, str]]:
        for count in range(len(self.pending), -1, -1):
            told = f"the first {count} of {len(self.pending)} changes of names stay"
            yield _changed(self.names, self.pending[:count]), told
        homes = {change.home for change in self.pending}
        for home in homes if len(homes) > 1 else ():
            only = [change for change in self.pending if change.home == home]
            others = [change for change in self.pending if change.home != home]
            yield _changed(self.names, only), f"only these stay: {'; '.join(map(str, only))}"
            yield _changed(self.names, others), f"these are lost: {'; '.join(map(str, only))}"

    def tree(self, names: Names, fate: str) -> Tree:
        found: Tree = {}
        folders = [(ROOT, "")]
        for folder, path in folders:
            for name, node in names.get(folder, {}).items():
                if node in names:
                    found[path + name] = None
                    folders.append((node, f"{path}{name}/"))
                else:
                    found[path + name] = self.files.get(node, File()).after(fate)
        return found


def _changed(names: Names, changes: list[Change]) -> Names:
    touched = {folder for change in changes for folder, _, _ in change.edits}
    new = names | {folder: dict(names.get(folder, {})) for folder in touched}
    for change in changes:
        for folder, name, node in change.edits:
            if node is None:
                new[folder].pop(name, None)
            else:
                new[folder][name] = node
    return new


@dataclass(frozen=True)
class Cut:
    """Possible state after a power cut, the labels done before it, and a description of the cut."""

    tree: Tree
    done: tuple[str, ...]
    story: str

    def put(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        for path, content in self.tree.items():  # folders come before their contents
            if content is None:
                (folder / path).mkdir()
            else:
                (folder / path).write_bytes(content)
