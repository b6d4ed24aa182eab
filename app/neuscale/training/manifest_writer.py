"""Write the manifest of a run: before its first step, and whenever something changes."""

import hashlib
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from neuscale.data.formats.meta import kept_check
from neuscale.distributed.accelerator import device_name, resolve_device, resolve_precision
from neuscale.errors import EXIT_FAILED, EXIT_RESUME, UserError, disk_error
from neuscale.fs import write_atomically
from neuscale.models.weights import weights_hash
from neuscale.runs.differences import differences
from neuscale.runs.environment import environment, ops_build
from neuscale.runs.folder import RunFolder
from neuscale.runs.manifest import VERSION, load_manifest, read_manifest, write_manifest
from neuscale.runs.own_code import describe_own_code
from neuscale.training.determinism import determinism
from neuscale.training.outcome import Outcome
from neuscale.training.trainer import Trainer
from neuscale.units import now
from neuscale.untrusted import read_regular


class ManifestWriter:
    """Writer of a run's manifest; only the main process collects and writes it."""

    def __init__(self, run: RunFolder, trainer: Trainer) -> None:
        self.run, self._trainer = run, trainer
        self._is_main: bool = trainer.accelerator.is_main_process
        self._patch = b""
        self.manifest: dict[str, Any] = {}
        if self._is_main:
            self.manifest, self._patch = _first_manifest(run, trainer)

    def on_resume(self, step: int) -> None:
        """Record that the run resumes after `step`, and what has changed since its last start."""
        if not self._is_main or not read_manifest(self.run.manifest_file):
            return  # the manifest was lost or damaged: nothing to compare with
        before = load_manifest(self.run.manifest_file)
        changed = [asdict(found) for found in differences(before, self.manifest)]
        resume = {"time": now(), "step": step, "command": self.manifest["command"], "changed": changed}
        self.manifest["started"] = before["started"]
        self.manifest["command"] = before["command"]
        self.manifest["resumed"] = [*before["resumed"], resume]

    def on_start(self) -> None:
        """Write the manifest before the first step. Raises UserError if it cannot be written."""
        if not self._is_main:
            return
        if self._patch:
            self._write_patch()
        self.manifest |= describe_own_code(self.run.path)
        self.write()

    def on_end(self, outcome: Outcome) -> None:
        """Record the outcome of a training that finished or was stopped."""
        if not self._is_main:
            return
        self.manifest |= describe_own_code(self.run.path)  # including modules imported since the start
        trainer, ema = self._trainer, self._trainer.ema
        self.manifest["status"] = "stopped" if outcome.stopped_by else "finished"
        self.manifest["exit_code"] = EXIT_RESUME if outcome.stopped_by else 0
        self.manifest["stopped_by"] = outcome.stopped_by
        self.manifest["result"] = {
            "steps": outcome.steps,
            "epochs": outcome.epochs,
            "train_seconds": round(trainer.metrics.timer.seconds, 2),
            "images_per_second": round(outcome.images_per_second, 1),
            "last": outcome.last.scalars() if outcome.last else None,
            "best": {"metric": outcome.best_metric, "value": outcome.best_value},
            "best_top1": outcome.best_top1 if outcome.best_top1 >= 0 else None,
            "weights_sha256": weights_hash(trainer.raw_model.state_dict()),
            "average_sha256": weights_hash(ema.average) if ema is not None else None,
        }

    def on_error(self, error: BaseException) -> None:
        """Record an error that ended the training."""
        if self._is_main:
            interrupted = isinstance(error, KeyboardInterrupt)
            code = error.exit_code if isinstance(error, UserError) else 130 if interrupted else EXIT_FAILED
            told = str(error) or type(error).__name__
            self.manifest |= {"status": "failed", "exit_code": code, "error": told}

    def write(self, ended: bool = False) -> None:
        """Replace the manifest in the folder. Raises UserError if it cannot be written."""
        if not self._is_main:
            return
        self.manifest["ended"] = now() if ended else None
        try:
            write_manifest(self.run.manifest_file, self.manifest)
        except OSError as error:
            raise disk_error(error, self.run.manifest_file) from error

    def _write_patch(self) -> None:
        """Write the code patch beside the manifest; a different patch of an earlier start is not replaced."""
        diff, file = self.manifest["code"]["diff"], self.run.path / "code.diff"
        if os.path.lexists(file) and _sha256(file) != diff["sha256"]:
            diff["file"] = f"code-{diff['sha256'][:8]}.diff"
        try:
            write_atomically(self.run.path / diff["file"], self._patch)
        except OSError as error:
            raise disk_error(error, self.run.path) from error


def _sha256(file: Path) -> str | None:
    """SHA-256 of a regular file; None if it is not one or cannot be read."""
    try:
        return hashlib.sha256(read_regular(file)).hexdigest()
    except OSError:
        return None


def _first_manifest(run: RunFolder, trainer: Trainer) -> tuple[dict[str, Any], bytes]:
    config, accelerator, meta = trainer.config, trainer.accelerator, trainer.data.meta
    kind = resolve_device(config.run.device)
    where, patch = environment()
    where["machine"] |= {
        "kind": kind,
        "device": device_name(accelerator),
        "threads": torch.get_num_threads(),
        "processes": accelerator.num_processes,
    }
    manifest = {
        "version": VERSION,
        "name": run.name,
        "status": "running",
        "command": sys.argv,
        "started": now(),
        "ended": None,
        "exit_code": None,
        "stopped_by": None,
        "error": None,
        "resumed": [],
        "config": asdict(config),
        "seed": config.run.seed,
        "precision": resolve_precision(config.train.precision, kind),
        "determinism": determinism(),
        **where,
        **describe_own_code(),
        "loader": asdict(trainer.choice),
        "ops": {**asdict(trainer.ops), "build": ops_build()},
        "data": {
            "name": meta.name,
            "fingerprint": meta.fingerprint,
            "fingerprint_v1": meta.fingerprint_v1,
            "counts": meta.counts,
            "mean": meta.mean,
            "std": meta.std,
            "source": meta.source,
            "check": kept_check(trainer.data.folder, meta.fingerprint),
        },
        "result": None,
    }
    return manifest, patch
