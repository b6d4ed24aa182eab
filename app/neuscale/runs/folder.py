"""A run is a folder: its configuration, manifest, metrics, events and checkpoints."""

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from neuscale.config import Config, config_from_yaml, config_to_yaml
from neuscale.errors import UsageError, UserError, disk_error
from neuscale.files import make_folder, write_atomically
from neuscale.paths import runs_root

# Who only looks whether a run is being trained holds its lock for a moment.
_LOOK_SECONDS = 0.5

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class RunFolder:
    """Where everything about one run is."""

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
        """What a command line says to mean this run: its name, or its path where it is elsewhere."""
        inside = self.path.absolute().parent == runs_root().absolute()
        return shlex.quote(self.name if inside else str(self.path))

    @property
    def finished(self) -> bool:
        """Whether training reached its end."""
        from neuscale.runs.manifest import read_manifest

        return read_manifest(self.manifest_file).get("status") == "finished"

    def config(self, words: list[str] | None = None) -> Config:
        """The configuration it was started with, fields changed by `words`."""
        try:
            text = self.config_file.read_text()
        except OSError as error:
            raise UserError(f"{self.config_file}: not readable ({error.strerror}).") from error
        return config_from_yaml(text, words or [], str(self.config_file))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other processes from training in this folder. Raises UsageError where one does already."""
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=_LOOK_SECONDS)
        except Timeout:
            raise UsageError(
                f"{self.path}: another process is training this run.", "Wait for it, or stop it first."
            ) from None
        except OSError as error:
            raise disk_error(error, self.path) from error
        except NotImplementedError:  # a file system without locks: nothing to hold
            yield
            return
        try:
            yield
        finally:
            lock.release()

    def is_held(self) -> bool:
        """Whether a process is training in this folder."""
        if not (self.path / ".lock").exists():
            return False
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        except (OSError, NotImplementedError):  # a folder of somebody else's, or without locks
            return False
        lock.release()
        return False

    def store(self, config: Config) -> None:
        """Replaces the configuration. Raises UserError where it cannot be written."""
        try:
            write_atomically(self.config_file, config_to_yaml(config))
        except OSError as error:
            raise disk_error(error, self.path) from error


def check_name(name: str) -> None:
    """UsageError for a `run.name` that cannot be a folder's."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"run.name={name}: is no name for a folder.",
            "Use letters, digits, '.', '_' and '-', beginning with a letter or digit.",
        )


def create_run(config: Config) -> RunFolder:
    """A new run folder with its configuration. Raises UsageError where the name is taken."""
    if config.run.name is not None:
        check_name(config.run.name)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    base = config.run.name or f"{config.experiment or config.model.title}-{stamp}"
    root = runs_root()
    for attempt in range(100):
        path = root / (base if attempt == 0 else f"{base}-{attempt + 1}")
        try:
            make_folder(path, exist_ok=False)
            break
        except FileExistsError:
            if config.run.name is not None and path.is_dir():
                raise UsageError(
                    f"{path}: there is a run of this name.",
                    "Add --resume to go on with it, or choose another run.name.",
                ) from None
            if not path.is_dir():
                raise UsageError(
                    f"{path}: is no folder.", "Choose another run.name or $NEUSCALE_RUNS."
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
    """The run called `name`, or at that path; 'last' is the newest. Raises UsageError."""
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
