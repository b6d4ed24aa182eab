"""The folder of a run: configuration, manifest, metrics, events and checkpoints."""

import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import count, islice
from pathlib import Path

from neuscale.config import Config, config_from_yaml, config_to_yaml
from neuscale.errors import UsageError, UserError, disk_error
from neuscale.fs import held_lock, is_locked, make_folder, sync_folder, write_atomically
from neuscale.paths import runs_root
from neuscale.untrusted import is_plain_name, read_json, read_record, reason_of

# A process that only checks if a run is being trained holds its lock for a moment.
_LOOK_SECONDS = 0.5


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class RunFolder:
    """Paths of a run folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.manifest_file = path / "manifest.json"
        self.metrics_file = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def argument(self) -> str:
        """The run as an argument of a command: its name, or its path if it is elsewhere."""
        inside = self.path.absolute().parent == runs_root().absolute()
        return shlex.quote(self.name if inside else str(self.path))

    @property
    def finished(self) -> bool:
        """True if training has finished."""
        from neuscale.runs.manifest import read_manifest

        return read_manifest(self.manifest_file).get("status") == "finished"

    def config(self, overrides: list[str] | None = None) -> Config:
        """The stored configuration, with fields changed by `overrides`. Raises UserError."""
        try:
            text = read_record(self.config_file)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.config_file}: not readable ({reason_of(error)}).") from error
        return config_from_yaml(text, overrides or [], str(self.config_file))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from training in this folder. Raises UsageError if one already does."""
        busy = UsageError(
            f"{self.path}: another process is training this run.", "Wait for it, or stop it first."
        )
        with held_lock(self.path / ".lock", busy, _LOOK_SECONDS):
            yield

    def is_held(self) -> bool:
        """True while a process is training in this folder."""
        return is_locked(self.path / ".lock")

    def store(self, config: Config) -> None:
        """Replace the configuration. Raises UserError if it cannot be written."""
        try:
            write_atomically(self.config_file, config_to_yaml(config))
        except OSError as error:
            raise disk_error(error, self.path) from error


def check_name(name: str, field: str = "run.name=") -> None:
    """Raise UsageError for an invalid folder name; `field`: text before the name in the message."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{field}{name}: is not a valid folder name.",
            "Use letters, digits, '.', '_' and '-', beginning with a letter or digit.",
        )


def default_name(config: Config) -> str:
    """Default name of a run: its recipe or model, and the time."""
    return f"{config.experiment or config.model.title}-{datetime.now():%Y%m%d-%H%M%S}"


def numbered_names(base: str) -> Iterator[str]:
    """`base`, `base-2`, `base-3`, …"""
    yield base
    yield from (f"{base}-{number}" for number in count(2))


def create_run(config: Config) -> RunFolder:
    """Create a run folder with its configuration. Raises UsageError if the name is taken."""
    if config.run.name is not None:
        check_name(config.run.name)
    base = config.run.name or default_name(config)
    root = runs_root()
    for name in islice(numbered_names(base), 100):
        path = root / name
        try:
            make_folder(path, exist_ok=False)
            break
        except FileExistsError:
            if config.run.name is not None and path.is_dir():
                raise UsageError(
                    f"{path}: there is a run of this name.",
                    "Use `resume` to continue it, or choose another run.name.",
                ) from None
            if not path.is_dir():
                raise UsageError(
                    f"{path}: is not a folder.", "Choose another run.name or $NEUSCALE_RUNS."
                ) from None
        except OSError as error:
            raise disk_error(error, path) from error
    else:
        raise UserError(f"{root}: no free name for a run like {base}.", "Give one: run.name=NAME.")
    run = RunFolder(path)
    try:
        run.store(config)
    except UserError:
        path.rmdir()
        raise
    return run


def all_runs() -> list[RunFolder]:
    """The runs in the runs folder, newest first."""
    root = runs_root()
    if not root.is_dir():
        return []
    found = [RunFolder(p) for p in root.iterdir() if (p / "config.yaml").is_file()]
    return sorted(found, key=lambda run: run.config_file.stat().st_mtime, reverse=True)


def find_run(name: str) -> RunFolder:
    """The run with this name or path; 'last' is the newest. Raises UsageError."""
    runs = all_runs()
    if name == "last":
        if runs:
            return runs[0]
        raise UsageError(f"{runs_root()}: there are no runs yet.", "Start one: neuscale train.")
    for path in (runs_root() / name, Path(name)):
        if (path / "config.yaml").is_file():
            return RunFolder(path)
    if Path(name).is_dir() or (runs_root() / name).is_dir():
        folder = Path(name) if Path(name).is_dir() else runs_root() / name
        raise UsageError(f"{folder}: there is no run in this folder.", "One has a config.yaml.")
    import difflib

    close = difflib.get_close_matches(Path(name).name, [run.name for run in runs], n=1)
    hint = (
        f"Did you mean '{close[0]}'?"
        if close
        else f"Runs there: {', '.join(r.name for r in runs[:8]) or 'none'}."
    )
    raise UsageError(f"{name}: there is no such run in {runs_root()}.", hint)


META = "checkpoint.json"


BEST = "best.json"


PREFIX, PARTIAL = "step-", ".partial-"


_STEP = re.compile(rf"{PREFIX}[0-9]+")


def checkpoint_paths(folder: Path) -> list[Path]:
    """The folders of complete checkpoints in `folder`, oldest first; not yet verified."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.glob(f"{PREFIX}*") if _STEP.fullmatch(p.name) and (p / META).is_file())


def best_checkpoint(folder: Path) -> Path | None:
    """Folder of the checkpoint with the best evaluation so far; None if there is none."""
    try:
        name = read_json(folder / BEST)["checkpoint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return folder / name if is_plain_name(name) else None


def checkpoint_step(path: Path) -> int:
    """Step of a checkpoint, from the name of its folder."""
    return int(path.name.removeprefix(PREFIX))


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint; it is renamed first, so that an interrupted removal leaves no damaged one."""
    doomed = path.with_name(f"{PARTIAL}{path.name}")
    path.rename(doomed)
    sync_folder(path.parent)
    shutil.rmtree(doomed)
