"""Checkpoints: a folder each, complete and checksummed, or not there at all.

`checkpoints/step-00000500/` holds `model.safetensors` (weights under the model's own
names), `training.pt` (optimizer, gradient scaler and loop state; read with
`weights_only`) and `checkpoint.json` with the checksums of both. It is written under a
temporary name, synced and renamed; older ones go only when it is safe.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from neuscale.errors import CheckpointError, disk_error
from neuscale.files import sync_file, sync_folder, write_atomically

WEIGHTS, TRAINING, META = "model.safetensors", "training.pt", "checkpoint.json"
BEST = "best.json"
_PREFIX, _PARTIAL = "step-", ".partial-"


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint. `metrics`: those of the evaluation at its step, if there was one."""

    path: Path
    step: int
    epoch: int
    metrics: dict[str, float]

    def weights(self) -> dict[str, Tensor]:
        """The model's state dict, on the CPU."""
        return load_file(self.path / WEIGHTS)

    def training_state(self) -> dict[str, Any]:
        """What `save` was given as `training`, tensors on the CPU."""
        state: dict[str, Any] = torch.load(self.path / TRAINING, map_location="cpu", weights_only=True)
        return state


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in `path`, its checksums compared. Raises CheckpointError naming what is damaged."""
    try:
        meta = json.loads((path / META).read_text())
        sums, step, epoch, metrics = meta["sha256"], meta["step"], meta["epoch"], meta["metrics"]
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no checkpoint here.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / META}: not readable ({error}).") from error
    for name in (WEIGHTS, TRAINING):
        try:
            found = _sha256(path / name)
        except OSError as error:
            raise CheckpointError(f"{path / name}: not readable ({error.strerror}).") from error
        if found != sums.get(name):
            raise CheckpointError(
                f"{path / name}: damaged (its checksum is {found[:12]}…, not {str(sums.get(name))[:12]}…)."
            )
    return Checkpoint(path, int(step), int(epoch), metrics)


class CheckpointFolder:
    """The checkpoints of a run.

    One process writes. `keep_last`: how many of the newest stay; the best stays besides.
    """

    def __init__(self, folder: Path, keep_last: int = 2) -> None:
        self.folder = folder
        self.keep_last = keep_last

    def paths(self) -> list[Path]:
        """Folders of complete checkpoints, oldest first; not yet verified."""
        if not self.folder.is_dir():
            return []
        return sorted(p for p in self.folder.glob(f"{_PREFIX}*") if (p / META).is_file())

    def save(
        self,
        step: int,
        epoch: int,
        weights: dict[str, Tensor],
        training: dict[str, Any],
        metrics: dict[str, float],
        is_best: bool,
    ) -> Path:
        """Writes a checkpoint; returns its folder. Raises UserError where the disk cannot be written."""
        final = self.folder / f"{_PREFIX}{step:08d}"
        part = self.folder / f"{_PARTIAL}{step:08d}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in self.folder.glob(f"{_PARTIAL}*"):
                shutil.rmtree(leftover)
            part.mkdir()
            save_file({n: t.detach().cpu().contiguous() for n, t in weights.items()}, part / WEIGHTS)
            torch.save(training, part / TRAINING)
            meta = {
                "step": step,
                "epoch": epoch,
                "metrics": metrics,
                "sha256": {name: _sha256(part / name) for name in (WEIGHTS, TRAINING)},
            }
            (part / META).write_text(json.dumps(meta, indent=2))
            for name in (WEIGHTS, TRAINING, META):
                sync_file(part / name)
            sync_folder(part)
            if final.exists():  # a damaged one that the run went back behind
                shutil.rmtree(final)
            part.rename(final)
            sync_folder(self.folder)
            if is_best:
                write_atomically(self.folder / BEST, json.dumps({"checkpoint": final.name, **metrics}))
            self._prune()
        except (OSError, RuntimeError) as error:
            shutil.rmtree(part, ignore_errors=True)
            cause = error if isinstance(error, OSError) else _disk_cause(error, self.folder)
            if cause is None:
                raise
            raise disk_error(cause, self.folder) from error
        return final

    def newest(self, report: Callable[[str], None]) -> Checkpoint | None:
        """The newest intact checkpoint; each damaged one passed over is told to `report`."""
        for path in reversed(self.paths()):
            try:
                return open_checkpoint(path)
            except CheckpointError as error:
                report(f"{error.problem} Going back to the checkpoint before it.")
        return None

    def best_path(self) -> Path | None:
        """The folder of the checkpoint with the best evaluation so far."""
        try:
            return self.folder / str(json.loads((self.folder / BEST).read_text())["checkpoint"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _prune(self) -> None:
        best = self.best_path()
        for path in self.paths()[: -self.keep_last]:
            if path != best:
                # The name goes first: what is left of a removal cut short is no checkpoint.
                doomed = path.with_name(f"{_PARTIAL}{path.name}")
                path.rename(doomed)
                shutil.rmtree(doomed)


def _disk_cause(error: RuntimeError, folder: Path) -> OSError | None:
    """torch and safetensors report a full disk as errors of their own; this finds out whether it was one."""
    probe = folder / f"{_PARTIAL}probe"
    try:
        with probe.open("wb") as file:
            file.write(bytes(1 << 20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as cause:
        return cause
    finally:
        probe.unlink(missing_ok=True)
    text = str(error)
    return OSError(28, text) if "os error 28" in text or "No space left" in text else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
