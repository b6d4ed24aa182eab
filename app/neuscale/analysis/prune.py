"""Find and remove checkpoints and runs that are no longer needed, to free space."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuscale.analysis.listing import folder_size, metrics_of, state_of
from neuscale.data.sampling import steps_per_epoch
from neuscale.errors import UserError, disk_error
from neuscale.runs.folder import (
    PARTIAL,
    RunFolder,
    best_checkpoint,
    checkpoint_paths,
    checkpoint_step,
    remove_checkpoint,
)
from neuscale.runs.manifest import load_manifest


@dataclass(frozen=True)
class Removal:
    """A folder that can be removed. `size`: bytes; `whole`: it is a whole run."""

    run: RunFolder
    path: Path
    reason: str
    size: int
    whole: bool = False


def removals(runs: Iterable[RunFolder], failed: bool = False) -> list[Removal]:
    """Removable parts of `runs`: spare checkpoints, empty runs, and failed runs without a checkpoint.

    `failed`: also failed runs with checkpoints, which could still be resumed. Runs that are being
    trained, runs whose manifest is damaged or of a newer version, and targets of links, which may
    belong to another run, are not included.
    """
    found: list[Removal] = []
    for run in runs:
        if run.is_held() or run.path.is_symlink():
            continue
        paths = checkpoint_paths(run.checkpoints)
        if not run.manifest_file.exists():
            if not paths and not metrics_of(run):
                found.append(Removal(run, run.path, "empty run", folder_size(run), whole=True))
            continue
        try:
            manifest = load_manifest(run.manifest_file)
        except UserError:
            continue
        state = state_of(run, manifest)
        if state == "failed" and (failed or not paths):
            what = "failed run" + (f", {len(paths)} checkpoints, best and last among them" if paths else "")
            found.append(Removal(run, run.path, what, folder_size(run), whole=True))
        elif state == "stopped" and not paths and not metrics_of(run):
            found.append(Removal(run, run.path, "empty run", folder_size(run), whole=True))
        else:
            found += _spare(run, paths, manifest)
    return found


def _spare(run: RunFolder, paths: list[Path], manifest: dict[str, Any]) -> list[Removal]:
    """Checkpoints that are neither best nor last nor a milestone, and leftovers of interrupted saves."""
    kept = {best_checkpoint(run.checkpoints), *paths[-1:]}
    try:
        milestones = _milestones(manifest)
    except (KeyError, TypeError, ValueError, UserError):  # a configuration not written by this program
        return []
    if run.checkpoints.is_symlink():
        return []
    spare = [
        (path, "checkpoint, neither best nor last")
        for path in paths
        if path not in kept and checkpoint_step(path) not in milestones
    ]
    if run.checkpoints.is_dir():
        spare += [(path, "left by a save cut short") for path in run.checkpoints.glob(f"{PARTIAL}*")]
    return [Removal(run, path, reason, _bytes(path)) for path, reason in spare if not path.is_symlink()]


def _milestones(manifest: dict[str, Any]) -> set[int]:
    """Steps whose checkpoints `checkpoint.milestones` keeps permanently."""
    if manifest["config"] is None:
        return set()
    batch = manifest["config"]["train"]["global_batch_size"]
    each = steps_per_epoch(manifest["data"]["counts"]["train"], batch)
    return {epoch * each for epoch in manifest["config"]["checkpoint"]["milestones"]}


def remove(found: Removal) -> None:
    """Remove a folder. Raises UserError if the run is being trained by now, or the folder is a link."""
    with found.run.held():
        if found.path.is_symlink() or (not found.whole and found.path.parent.is_symlink()):
            raise UserError(f"{found.path}: is a link by now, and links are not followed.")
        try:
            if found.whole or found.path.name.startswith(PARTIAL):
                shutil.rmtree(found.path)
            else:
                remove_checkpoint(found.path)
        except OSError as error:
            raise disk_error(error, found.path) from error


def _bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
