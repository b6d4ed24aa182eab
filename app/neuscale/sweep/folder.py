"""A sweep is a folder in the runs folder: `sweep.json`, the list of its runs, and a log of each.

The list is written before the first run begins and never changes, so that a sweep that was killed
goes on with the runs that it set out with. How far they are, they say themselves.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from neuscale.config import compose_config, preset_words
from neuscale.errors import UsageError, UserError, disk_error
from neuscale.files import make_folder, write_atomically
from neuscale.paths import runs_root
from neuscale.runs.folder import RunFolder
from neuscale.runs.manifest import now, read_manifest

FILE = "sweep.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class PlannedRun:
    """`words`: its configuration, without `run.name`, which is `name`."""

    name: str
    words: list[str]

    @property
    def folder(self) -> RunFolder:
        """Where it is, or will be."""
        return RunFolder(runs_root() / self.name)

    @property
    def manifest(self) -> dict[str, Any]:
        """What it says of itself; empty before it has begun."""
        return read_manifest(self.folder.manifest_file)

    @property
    def finished(self) -> bool:
        """Whether its training reached its end."""
        return self.folder.finished


class Sweep:
    """The sweep in a folder. `fields`: those that differ between its runs."""

    def __init__(self, path: Path, fields: list[str], runs: list[PlannedRun]) -> None:
        self.path, self.fields, self.runs = path, fields, runs

    @property
    def name(self) -> str:
        """The folder's name, which its runs' names begin with."""
        return self.path.name

    def log(self, run: PlannedRun) -> Path:
        """Where a run's output goes."""
        return self.path / f"{run.name}.log"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other processes from running this sweep. Raises UsageError where one does already."""
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(
                f"{self.path}: another process runs this sweep.", "Wait for it, or stop it first."
            ) from None
        try:
            yield
        finally:
            lock.release()


def plan_sweep(lists: list[list[str]], fields: list[str], name: str | None) -> Sweep:
    """A sweep over the configurations that `lists` of words describe; nothing is written.

    Raises UsageError for the first that cannot be, for a single one, and for names that are taken.
    """
    if len(lists) < 2:
        raise UsageError(
            "a sweep takes several values of something, and this is one run.",
            "For example: neuscale sweep optim.lr=1e-3,3e-4 run.seed=range(0,3).",
        )
    if "run.name" in {word.partition("=")[0] for word in lists[0]}:
        raise UsageError("run.name: a sweep names its runs.", "Name the sweep: --name NAME.")
    if name is not None and not _NAME.fullmatch(name):
        raise UsageError(
            f"--name {name}: is no name for a folder.",
            "Use letters, digits, '.', '_' and '-', beginning with a letter or digit.",
        )
    _check(lists)
    name = name or f"sweep-{datetime.now():%Y%m%d-%H%M%S}"
    digits = len(str(len(lists) - 1))
    runs = [PlannedRun(f"{name}-{i:0{digits}}", words) for i, words in enumerate(lists)]
    path = runs_root() / name
    for taken in (path, *(run.folder.path for run in runs)):
        if taken.exists():
            sweep_there = (path / FILE).exists()
            again = f"Go on with it: neuscale sweep --resume {name}; or choose" if sweep_there else "Choose"
            raise UsageError(f"{taken}: is there already.", f"{again} another --name.")
    return Sweep(path, fields, runs)


def store_sweep(sweep: Sweep, command: list[str]) -> None:
    """Makes the sweep's folder with the list of its runs. Raises UserError."""
    content = {
        "command": command,
        "created": now(),
        "fields": sweep.fields,
        "runs": [asdict(run) for run in sweep.runs],
    }
    try:
        make_folder(sweep.path)
        write_atomically(sweep.path / FILE, json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise disk_error(error, sweep.path) from error


def open_sweep(name: str | None) -> Sweep:
    """The sweep of this name or at this path; None: the newest that has not finished. Raises UserError."""
    root = runs_root()
    files = sorted(root.glob(f"*/{FILE}"), key=lambda file: file.stat().st_mtime, reverse=True)
    there = ", ".join(file.parent.name for file in files[:8]) or "none"
    if name is None:
        for file in files:
            sweep = _read(file)
            if not all(run.finished for run in sweep.runs):
                return sweep
        raise UsageError(f"{root}: there is no sweep to go on with (there: {there}).", "Start one.")
    for file in (root / name / FILE, Path(name) / FILE):
        if file.is_file():
            return _read(file)
    raise UsageError(f"{name}: there is no such sweep in {root}.", f"Sweeps there: {there}.")


def _read(file: Path) -> Sweep:
    try:
        content = json.loads(file.read_text())
        runs = [PlannedRun(**run) for run in content["runs"]]
        return Sweep(file.parent, content["fields"], runs)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not the list of a sweep ({error}).", "Start the sweep anew.") from error


def _check(lists: list[list[str]]) -> None:
    """Composes every value beside every choice of presets once: all the combinations would take minutes."""
    seen: set[tuple[str, ...]] = set()
    for words in lists:
        presets = preset_words(words)
        new = {(*presets, word) for word in words} - seen
        if new:
            compose_config(words)
            seen |= new
