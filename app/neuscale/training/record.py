"""The manifest of a run while it trains: written before the first step, and again whenever it changes."""

import hashlib
import os
import sys
from dataclasses import asdict
from typing import Any

import torch

from neuscale.errors import EXIT_FAILED, EXIT_RESUME, UserError, disk_error
from neuscale.files import write_atomically
from neuscale.runs.differences import differences
from neuscale.runs.environment import environment, ops_build
from neuscale.runs.folder import RunFolder
from neuscale.runs.manifest import VERSION, load_manifest, now, read_manifest, write_manifest
from neuscale.training.device import device_name, resolve_device, resolve_precision
from neuscale.training.fingerprint import weights_hash
from neuscale.training.outcome import Outcome
from neuscale.training.trainer import Trainer


class RunRecord:
    """What `run` says of itself; only the main process finds it out and writes it."""

    def __init__(self, run: RunFolder, trainer: Trainer) -> None:
        self._run, self._trainer = run, trainer
        self._is_main: bool = trainer.accelerator.is_main_process
        self._patch = b""
        self.manifest: dict[str, Any] = {}
        if self._is_main:
            self.manifest, self._patch = _first_manifest(run, trainer)

    def goes_on(self, step: int) -> None:
        """The run goes on after `step`: what has changed since is told with it."""
        if not self._is_main or not read_manifest(self._run.manifest_file):
            return  # of one that was lost or damaged nothing can be told
        before = load_manifest(self._run.manifest_file)
        changed = [asdict(found) for found in differences(before, self.manifest)]
        resume = {"time": now(), "step": step, "command": self.manifest["command"], "changed": changed}
        self.manifest["started"] = before["started"]
        self.manifest["command"] = before["command"]
        self.manifest["resumed"] = [*before["resumed"], resume]

    def begins(self) -> None:
        """Training begins now. Raises UserError where it cannot be written."""
        if not self._is_main:
            return
        if self._patch:
            self._write_patch()
        self.write()

    def ends(self, outcome: Outcome) -> None:
        """Training has come to its end, or to a stop."""
        if not self._is_main:
            return
        trainer, average = self._trainer, self._trainer.optimize.average
        self.manifest["status"] = "stopped" if outcome.stopped_by else "finished"
        self.manifest["exit_code"] = EXIT_RESUME if outcome.stopped_by else 0
        self.manifest["stopped_by"] = outcome.stopped_by
        self.manifest["result"] = {
            "steps": outcome.steps,
            "epochs": outcome.epochs,
            "train_seconds": round(trainer.log.clock.seconds, 2),
            "images_per_second": round(outcome.images_per_second, 1),
            "last": outcome.last.scalars() if outcome.last else None,
            "best_top1": outcome.best_top1 if outcome.best_top1 >= 0 else None,
            "weights_sha256": weights_hash(trainer.raw_model.state_dict()),
            "average_sha256": weights_hash(average.state) if average is not None else None,
        }

    def fails(self, error: BaseException) -> None:
        """Training was ended by an error."""
        if self._is_main:
            interrupted = isinstance(error, KeyboardInterrupt)
            code = error.exit_code if isinstance(error, UserError) else 130 if interrupted else EXIT_FAILED
            told = str(error) or type(error).__name__
            self.manifest |= {"status": "failed", "exit_code": code, "error": told}

    def write(self, ended: bool = False) -> None:
        """Replaces the manifest in the folder. Raises UserError where it cannot be written."""
        if not self._is_main:
            return
        self.manifest["ended"] = now() if ended else None
        try:
            write_manifest(self._run.manifest_file, self.manifest)
        except OSError as error:
            raise disk_error(error, self._run.manifest_file) from error

    def _write_patch(self) -> None:
        """Beside the manifest; one of an earlier start stays under its own name."""
        diff, file = self.manifest["code"]["diff"], self._run.path / "code.diff"
        if file.exists() and hashlib.sha256(file.read_bytes()).hexdigest() != diff["sha256"]:
            diff["file"] = f"code-{diff['sha256'][:8]}.diff"
        try:
            write_atomically(self._run.path / diff["file"], self._patch)
        except OSError as error:
            raise disk_error(error, self._run.path) from error


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
        "loader": asdict(trainer.choice),
        "ops": {**asdict(trainer.ops), "build": ops_build()},
        "data": {
            "name": meta.name,
            "fingerprint": meta.fingerprint,
            "counts": meta.counts,
            "source": meta.source,
        },
        "result": None,
    }
    return manifest, patch


def determinism() -> dict[str, Any]:
    """The switches of torch and CUDA that decide whether equal inputs give equal bits."""
    return {
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    }
