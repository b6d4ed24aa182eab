"""The folder of a sweep, in the runs folder: `sweep.json`, the list of its runs, and a log of each.

The list is written before the first run starts and never changes, so that a killed sweep resumes
with the same runs. The state of each run is read from its own manifest.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from neuscale.config import compose_config, preset_overrides
from neuscale.errors import UsageError, UserError, disk_error
from neuscale.fs import held_lock, make_folder, write_atomically
from neuscale.paths import runs_root
from neuscale.project.trust import is_trusted
from neuscale.runs.folder import RunFolder, check_name
from neuscale.runs.manifest import read_manifest
from neuscale.units import now
from neuscale.untrusted import read_json, reason_of

FILE = "sweep.json"


_LONGEST_NAME = 100


_NAMES_CODE = re.compile(r"_target_|\.target=|\.imports=")
_OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")  # and not a CLI option


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep. `words`: its overrides, without `run.name`, which is `name`."""

    name: str
    words: list[str]

    @property
    def folder(self) -> RunFolder:
        """The folder of the run, existing or not."""
        return RunFolder(runs_root() / self.name)

    @property
    def manifest(self) -> dict[str, Any]:
        """Manifest of the run; empty before it starts."""
        return read_manifest(self.folder.manifest_file)

    @property
    def finished(self) -> bool:
        """True if its training has finished."""
        return self.folder.finished


class Sweep:
    """The sweep in a folder. `fields`: the fields that differ between its runs."""

    def __init__(self, path: Path, fields: list[str], runs: list[PlannedRun]) -> None:
        self.path, self.fields, self.runs = path, fields, runs

    @property
    def name(self) -> str:
        """Name of the folder, with which the names of its runs begin."""
        return self.path.name

    def log(self, run: PlannedRun) -> Path:
        """File for a run's output."""
        return self.path / f"{run.name}.log"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from running this sweep. Raises UsageError if one already does."""
        busy = UsageError(f"{self.path}: another process runs this sweep.", "Wait for it, or stop it first.")
        with held_lock(self.path / ".lock", busy):
            yield


def name_runs(lists: list[list[str]], name: str) -> list[PlannedRun]:
    """One run per list of overrides, named after `name` and the values that differ: `NAME-lr0.001-seed2`.

    The runs are numbered instead if such names would be equal or too long. A single run is called `name`.
    """
    if len(lists) == 1:
        return [PlannedRun(name, lists[0])]
    differing = [i for i, values in enumerate(zip(*lists, strict=True)) if len(set(values)) > 1]
    names = ["-".join([name, *(_label(overrides[i]) for i in differing)]) for overrides in lists]
    if len(set(names)) < len(names) or max(map(len, names)) > _LONGEST_NAME:
        digits = len(str(len(lists) - 1))
        names = [f"{name}-{number:0{digits}}" for number in range(len(lists))]
    return [PlannedRun(each, overrides) for each, overrides in zip(names, lists, strict=True)]


def _label(override: str) -> str:
    key, _, value = override.partition("=")
    return re.sub(r"[^A-Za-z0-9._-]+", "_", f"{key.rpartition('.')[2]}{value}").strip("_")


def plan_sweep(lists: list[list[str]], fields: list[str], name: str | None) -> Sweep:
    """Plan a sweep over the configurations that `lists` of overrides describe; nothing is written.

    Raises UsageError for an invalid configuration, for a single run, and for names that are taken.
    """
    if len(lists) < 2:
        raise UsageError(
            "a sweep takes several values of something, and this is one run.",
            "For example: neuscale sweep optim.lr=1e-3,3e-4 run.seed=range(0,3).",
        )
    if "run.name" in {word.partition("=")[0] for word in lists[0]}:
        raise UsageError("run.name: a sweep names its runs.", "Name the sweep with `name`.")
    if name is not None:
        check_name(name, "`name` ")
    _check(lists)
    name = name or f"sweep-{datetime.now():%Y%m%d-%H%M%S}"
    runs = name_runs(lists, name)
    path = runs_root() / name
    for taken in (path, *(run.folder.path for run in runs)):
        if taken.exists():
            sweep_there = (path / FILE).exists()
            again = f"Resume it: neuscale sweep --resume {name}; or choose" if sweep_there else "Choose"
            raise UsageError(f"{taken}: already exists.", f"{again} another `name`.")
    return Sweep(path, fields, runs)


def store_sweep(sweep: Sweep, command: list[str]) -> None:
    """Create the sweep's folder with the list of its runs. Raises UserError if it cannot be written."""
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
    """Open the sweep with this name or path; None: the newest unfinished one. Raises UserError."""
    root = runs_root()
    files = sorted(root.glob(f"*/{FILE}"), key=lambda file: file.stat().st_mtime, reverse=True)
    there = ", ".join(file.parent.name for file in files[:8]) or "none"
    if name is None:
        for file in files:
            sweep = _read(file)
            if not all(run.finished for run in sweep.runs):
                return sweep
        raise UsageError(f"{root}: there is no sweep to resume (existing: {there}).", "Start one.")
    for file in (root / name / FILE, Path(name) / FILE):
        if file.is_file():
            return _read(file)
    raise UsageError(f"{name}: there is no such sweep in {root}.", f"Sweeps there: {there}.")


def best_words(result: Mapping[str, Any]) -> str:
    """Text for the best evaluation in a manifest's result: top-1 if there is one, else `eval.metric`."""
    if result.get("best_top1") is not None:
        return f"top-1 {result['best_top1']:.2%}"
    best = result.get("best") or {}
    return f"{best['metric']} {best['value']:.2%}" if best.get("value") is not None else ""


def _read(file: Path) -> Sweep:
    try:
        content = read_json(file)
        runs = [_planned(run["name"], run["words"]) for run in content["runs"]]
        fields = [str(field) for field in content["fields"]]
        if not runs:
            raise ValueError("it names no runs")
        return Sweep(file.parent, fields, runs)
    except (OSError, ValueError, KeyError, TypeError, UsageError) as error:
        reason = error.problem if isinstance(error, UsageError) else reason_of(error)
        raise UserError(f"{file}: not the list of a sweep ({reason}).", "Start the sweep anew.") from error


def _planned(name: Any, words: Any) -> PlannedRun:
    """Validate a run of a list that another user may have written: a plain name, and only overrides."""
    if not isinstance(name, str):
        raise TypeError(f"{name!r} is not a name")
    check_name(name, "name ")
    for word in words:
        if not isinstance(word, str) or not _OVERRIDE.match(word) or word.startswith("run.name="):
            raise ValueError(f"{word!r} is not an override")
        if _NAMES_CODE.search(word) and not is_trusted():
            raise ValueError(f"{word!r} names code to be run, which needs `trust`")
    return PlannedRun(name, list(words))


def _check(lists: list[list[str]]) -> None:
    """Compose each value once with each choice of presets; all combinations would take minutes."""
    seen: set[tuple[str, ...]] = set()
    for words in lists:
        presets = preset_overrides(words)
        new = {(*presets, word) for word in words} - seen
        if new:
            compose_config(words)
            seen |= new
