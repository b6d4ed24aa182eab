"""Checkpoints: one folder each, written atomically and verified by checksums.

`checkpoints/step-00000500/` contains `model.safetensors` (weights under the model's own
names), `ema.safetensors` (their moving average, if there is one), `training.pt`
(optimizer, gradient scaler and loop state; read with `weights_only`) and
`checkpoint.json` with the checksums of all. A checkpoint is written under a temporary
name, synced and renamed; only then are older ones removed.
"""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from neuscale.errors import CheckpointError, disk_error
from neuscale.fs import make_folder, sync_folder, write_atomically
from neuscale.models.weights_file import read_weights, separate_tensors
from neuscale.runs.folder import (
    BEST,
    META,
    PARTIAL,
    PREFIX,
    best_checkpoint,
    checkpoint_paths,
    checkpoint_step,
    remove_checkpoint,
)
from neuscale.untrusted import is_plain_name, open_regular, read_json, reason_of

WEIGHTS, AVERAGE, TRAINING = "model.safetensors", "ema.safetensors", "training.pt"
_LARGEST = 1 << 50  # bytes of a file


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint. `metrics`: those of the evaluation at its step, if there was one.

    `loop`: loop state that evaluations change; older versions have it in the training state.
    """

    path: Path
    step: int
    epoch: int
    metrics: dict[str, float]
    loop: dict[str, Any] = field(default_factory=dict)

    def weights(self) -> dict[str, Tensor]:
        """The model's state dict, on the CPU."""
        return read_weights(self.path / WEIGHTS)

    def average(self) -> dict[str, Tensor] | None:
        """The moving average of the model's state, on the CPU; None if there is none."""
        return read_weights(self.path / AVERAGE) if (self.path / AVERAGE).exists() else None

    def training_state(self) -> dict[str, Any]:
        """The `training` state as it was saved, tensors on the CPU."""
        try:
            state = torch.load(self.path / TRAINING, map_location="cpu", weights_only=True)
        except Exception as error:  # of any kind; torch's message advises weights_only=False
            raise CheckpointError(
                f"{self.path / TRAINING}: not readable: damaged, or more in it than tensors and numbers."
            ) from error
        if not isinstance(state, dict):
            raise CheckpointError(f"{self.path / TRAINING}: not the state of a training.")
        return state

    def state_dict(self) -> dict[str, Any]:
        """The trainer's `state_dict` as it was saved, and the loop state."""
        return {
            "weights": self.weights(),
            "average": self.average(),
            "training": self.training_state(),
            "loop": self.loop,
        }


def open_checkpoint(path: Path) -> Checkpoint:
    """Open the checkpoint in `path` and verify its checksums. Raises CheckpointError for a damaged file."""
    try:
        meta = read_json(path / META)
        own_sum = meta.pop("sha256_of_this")
        sums, step, epoch, metrics = meta["sha256"], meta["step"], meta["epoch"], meta["metrics"]
        loop = meta.get("loop", {})
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no checkpoint here.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / META}: not readable ({reason_of(error)}).") from error
    if own_sum != _meta_sum(meta):
        raise CheckpointError(f"{path / META}: damaged (it differs from its own checksum).")
    if not (
        isinstance(sums, dict)
        and type(step) is type(epoch) is int
        and isinstance(metrics, dict)
        and isinstance(loop, dict)
    ):
        raise CheckpointError(f"{path / META}: not the record of a checkpoint.")
    for name in {WEIGHTS: None, TRAINING: None, **sums}:
        if not is_plain_name(name):
            raise CheckpointError(f"{path / META}: {name!r} is not the name of a file in the checkpoint.")
        try:
            with open_regular(path / name, _LARGEST) as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(f"{path / name}: not readable ({error.strerror}).") from error
        if found != sums.get(name):
            raise CheckpointError(
                f"{path / name}: damaged (its checksum is {found[:12]}…, not {str(sums.get(name))[:12]}…)."
            )
    return Checkpoint(path, step, epoch, metrics, loop)


class CheckpointFolder:
    """The checkpoints of a run, written by one process.

    `keep_last`: number of newest checkpoints to keep; the best one and those of the steps in
    `milestones` are kept as well.
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
        loop: dict[str, Any] | None = None,
    ) -> Path:
        """Write a checkpoint; return its folder. Raises UserError if the disk cannot be written."""
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
                **({"loop": loop} if loop is not None else {}),
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

    def add_evaluation(
        self, step: int, metrics: dict[str, float], is_best: bool, loop: dict[str, Any]
    ) -> None:
        """Add the results of an evaluation to the checkpoint of `step`, by replacing one small file.

        Raises UserError if the disk cannot be written.
        """
        path = self.folder / f"{PREFIX}{step:08d}"
        try:
            meta = read_json(path / META)
            meta.pop("sha256_of_this")
            meta |= {"metrics": metrics, "loop": loop}
            meta["sha256_of_this"] = _meta_sum(meta)
            write_atomically(path / META, json.dumps(meta, indent=2))
            if is_best:
                write_atomically(self.folder / BEST, json.dumps({"checkpoint": path.name, **metrics}))
                self._prune()  # the previous best need not be kept any more
        except OSError as error:
            raise disk_error(error, self.folder) from error

    def newest(self, report: Callable[[str], None]) -> Checkpoint | None:
        """The newest intact checkpoint, or None; each damaged one is skipped and reported with `report`."""
        for path in reversed(self.paths()):
            try:
                return open_checkpoint(path)
            except CheckpointError as error:
                report(f"{error.problem} Going back to the checkpoint before it.")
        return None

    def go_back_to(self, name: str) -> tuple[Checkpoint, Path | None]:
        """Set aside all checkpoints after `name` ("best", a name or its step), so that a run resumes from it.

        Return that checkpoint, and the folder that contains the later ones now (None if there were none).
        Raises CheckpointError for a missing or damaged checkpoint, UserError if the disk cannot be written.
        """
        paths = {str(checkpoint_step(path)): path for path in self.paths()}
        best = self.best_path()
        path = best if name == "best" else paths.get(name.removeprefix(PREFIX).lstrip("0") or "0")
        if path is None or path not in paths.values():
            listed = ", ".join(found.name for found in paths.values()) or "none"
            raise CheckpointError(f"{self.folder}: there is no checkpoint {name}; there are {listed}.")
        chosen = open_checkpoint(path)
        later = [found for found in paths.values() if checkpoint_step(found) > chosen.step]
        if not later:
            return chosen, None
        aside = self.folder / f"set-aside-{datetime.now():%Y%m%d-%H%M%S}"
        try:
            make_folder(aside)
            if best in later:
                (self.folder / BEST).rename(aside / BEST)
                self._name_best(chosen, [found for found in paths.values() if found not in later])
            for found in reversed(later):  # latest first: a kill leaves the earlier ones in place
                found.rename(aside / found.name)
            sync_folder(self.folder)
        except OSError as error:
            raise disk_error(error, self.folder) from error
        return chosen, aside

    def _name_best(self, chosen: Checkpoint, left: Collection[Path]) -> None:
        """Record which of the remaining checkpoints was the best when `chosen` was saved."""
        known = chosen.loop.get("best") or {}
        for path in left:
            metrics = open_checkpoint(path).metrics
            if known.get("value") is not None and metrics.get(known["metric"]) == known["value"]:
                write_atomically(self.folder / BEST, json.dumps({"checkpoint": path.name, **metrics}))

    def best_path(self) -> Path | None:
        """Folder of the checkpoint with the best evaluation so far; None if there is none."""
        return best_checkpoint(self.folder)

    def _prune(self) -> None:
        best = self.best_path()
        for path in self.paths()[: -self.keep_last]:
            if path != best and path.name not in self._kept:
                remove_checkpoint(path)


def _meta_sum(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _safetensors(tensors: dict[str, Tensor]) -> bytes:
    return safetensors_bytes(separate_tensors(tensors))


def _torch_bytes(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> None:
    # Data is serialised in memory first, since torch and safetensors report a full disk in different ways.
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
