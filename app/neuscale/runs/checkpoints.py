"""Which checkpoints a run has, by their names alone: nothing is read that takes time to import."""

import json
import shutil
from pathlib import Path

from neuscale.files import sync_folder

META = "checkpoint.json"
BEST = "best.json"
PREFIX, PARTIAL = "step-", ".partial-"


def checkpoint_paths(folder: Path) -> list[Path]:
    """The folders of complete checkpoints in `folder`, oldest first; not yet verified."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.glob(f"{PREFIX}*") if (p / META).is_file())


def best_checkpoint(folder: Path) -> Path | None:
    """The folder of the checkpoint with the best evaluation so far."""
    try:
        return folder / str(json.loads((folder / BEST).read_text())["checkpoint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def checkpoint_step(path: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(path.name.removeprefix(PREFIX))


def remove_checkpoint(path: Path) -> None:
    """Removes the checkpoint in `path`. Its name goes first: what a removal cut short leaves is none."""
    doomed = path.with_name(f"{PARTIAL}{path.name}")
    path.rename(doomed)
    sync_folder(path.parent)
    shutil.rmtree(doomed)
