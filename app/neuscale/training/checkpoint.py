"""Checkpoints: a folder each, complete and checksummed, or not there at all.

`checkpoints/step-00000500/` holds `model.safetensors` (weights under the model's own
names), `ema.safetensors` (their moving average, where there is one), `training.pt`
(optimizer, gradient scaler and loop state; read with `weights_only`) and
`checkpoint.json` with the checksums of all. It is written under a temporary name, synced
and renamed; older ones go only when it is safe.
"""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from neuscale.errors import CheckpointError, disk_error
from neuscale.files import make_folder, sync_folder, write_atomically
from neuscale.runs.checkpoints import (
    BEST,
    META,
    PARTIAL,
    PREFIX,
    best_checkpoint,
    checkpoint_paths,
    remove_checkpoint,
)

WEIGHTS, AVERAGE, TRAINING = "model.safetensors", "ema.safetensors", "training.pt"


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

    def average(self) -> dict[str, Tensor] | None:
        """The moving average of the model's state, on the CPU, where there is one."""
        return load_file(self.path / AVERAGE) if (self.path / AVERAGE).exists() else None

    def training_state(self) -> dict[str, Any]:
        """What `save` was given as `training`, tensors on the CPU."""
        state: dict[str, Any] = torch.load(self.path / TRAINING, map_location="cpu", weights_only=True)
        return state


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in `path`, its checksums compared. Raises CheckpointError naming what is damaged."""
    try:
        meta = json.loads((path / META).read_text())
        own_sum = meta.pop("sha256_of_this")
        sums, step, epoch, metrics = meta["sha256"], meta["step"], meta["epoch"], meta["metrics"]
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no checkpoint here.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / META}: not readable ({error}).") from error
    if own_sum != _meta_sum(meta):
        raise CheckpointError(f"{path / META}: damaged (it differs from its own checksum).")
    for name in {WEIGHTS: None, TRAINING: None, **sums}:
        try:
            with (path / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(f"{path / name}: not readable ({error.strerror}).") from error
        if found != sums.get(name):
            raise CheckpointError(
                f"{path / name}: damaged (its checksum is {found[:12]}…, not {str(sums.get(name))[:12]}…)."
            )
    return Checkpoint(path, step, epoch, metrics)


class CheckpointFolder:
    """The checkpoints of a run.

    One process writes. `keep_last`: how many of the newest stay; the best stays besides, and
    those of the steps in `milestones`.
    """

    def __init__(self, folder: Path, keep_last: int = 2, milestones: Collection[int] = ()) -> None:
        self.folder = folder
        self.keep_last = keep_last
        self._kept = {f"{PREFIX}{step:08d}" for step in milestones}

    def paths(self) -> list[Path]:
        """Folders of complete checkpoints, oldest first; not yet verified."""
        return checkpoint_paths(self.folder)

    def save(
        self,
        step: int,
        epoch: int,
        weights: dict[str, Tensor],
        training: dict[str, Any],
        metrics: dict[str, float],
        is_best: bool,
        average: dict[str, Tensor] | None = None,
    ) -> Path:
        """Writes a checkpoint; returns its folder. Raises UserError where the disk cannot be written."""
        final = self.folder / f"{PREFIX}{step:08d}"
        part = self.folder / f"{PARTIAL}{step:08d}"
        try:
            make_folder(self.folder)
            for leftover in self.folder.glob(f"{PARTIAL}*"):
                shutil.rmtree(leftover)
            part.mkdir()
            content = {WEIGHTS: _safetensors(weights), TRAINING: _torch_bytes(training)}
            if average is not None:
                content[AVERAGE] = _safetensors(average)
            meta: dict[str, Any] = {
                "step": step,
                "epoch": epoch,
                "metrics": metrics,
                "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in content.items()},
            }
            meta["sha256_of_this"] = _meta_sum(meta)
            content[META] = json.dumps(meta, indent=2).encode()
            for name, data in content.items():
                _write(part / name, data)
            sync_folder(part)
            if final.exists():  # a damaged one that the run went back behind
                shutil.rmtree(final)
            part.rename(final)
            sync_folder(self.folder)
            if is_best:
                write_atomically(self.folder / BEST, json.dumps({"checkpoint": final.name, **metrics}))
            self._prune()
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            raise disk_error(error, self.folder) from error
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
        return best_checkpoint(self.folder)

    def _prune(self) -> None:
        best = self.best_path()
        for path in self.paths()[: -self.keep_last]:
            if path != best and path.name not in self._kept:
                remove_checkpoint(path)


def _meta_sum(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _safetensors(tensors: dict[str, Tensor]) -> bytes:
    return safetensors_bytes({name: value.detach().cpu().contiguous() for name, value in tensors.items()})


def _torch_bytes(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> None:
    # Serialised in memory first: torch and safetensors report a full disk each in a way of its own.
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
