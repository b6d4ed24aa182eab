"""Run folders written without training, with distinct numbers, and a fixture that runs commands on them."""

import functools
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from conftest import Said
from neuscale.cli import run
from neuscale.config import Config, compose_config, config_to_yaml
from neuscale.runs.folder import RunFolder
from neuscale.runs.manifest import VERSION

RunWriter = Callable[..., RunFolder]
STEPS_PER_EPOCH = 5  # 60 images in batches of 12

# Five evaluations: the best is the second, the last is neither the best nor the worst.
TOP1 = (0.25, 0.75, 0.5, 0.125, 0.375)


def val_lines(top1: tuple[float, ...] = TOP1) -> list[dict[str, Any]]:
    """Metrics lines of an evaluation after each epoch."""
    return [
        {"split": "val", "step": STEPS_PER_EPOCH * (i + 1), "top1": x, "top5": 0.9 + i / 100, "loss": 2.5 - x}
        for i, x in enumerate(top1)
    ]


def train_lines() -> list[dict[str, Any]]:
    """Metrics lines of training, with values of different sizes and numbers of digits."""
    return [
        {
            "split": "train",
            "step": step,
            "loss": 3.0 - 0.1 * step,
            "accuracy": 0.01 * step,
            "lr": 0.001 / step,
            "memory_gb": 1.5 + 0.125 * step,
            "images_per_second": 20_000.0 + 100 * step,
            "data_wait": 0.5 / step,
            "tflops": 4.0 + step,
            "mfu": 0.004 * step,
        }
        for step in range(2, 26, 2)
    ]


@functools.cache
def config_of(words: tuple[str, ...]) -> Config:
    """Configuration of 'pets' with overrides; cached, because composing takes time."""
    return compose_config(["run.seed=7", "train.global_batch_size=12", "train.epochs=5", *words])


def manifest_of(name: str, *words: str, experiment: str | None = None, **fields: Any) -> dict[str, Any]:
    """Complete manifest of a run of 25 steps on 'pets', with as few null fields as possible."""
    config = asdict(config_of(words)) | {"experiment": experiment}
    made: dict[str, Any] = {
        "version": VERSION,
        "name": name,
        "status": "finished",
        "command": ["/opt/bin/neuscale", "train", "run.name=a b"],
        "started": "2026-11-21T12:34:56+00:00",
        "ended": "2026-11-21T13:45:07+00:00",
        "exit_code": 0,
        "stopped_by": None,
        "error": None,
        "resumed": [],
        "config": config,
        "seed": 7,
        "precision": "bf16",
        "determinism": {
            "deterministic_algorithms": True,
            "cudnn_benchmark": False,
            "cudnn_deterministic": False,
            "float32_matmul_precision": "highest",
            "cublas_workspace": ":4096:8",
        },
        "neuscale": "1.2.3",
        "code": {"revision": "c" * 40, "changed": True, "source_sha256": "5" * 64, "diff": None},
        "lock_sha256": "1" * 64,
        "image": {"version": "9", "name": "neuscale:9", "digest": None, "sbom_sha256": None},
        "python": "3.11.7",
        "packages": {"neuscale": "1.2.3", "numpy": "2.1.0", "torch": "2.15.0", "zstd": "1.0"},
        "machine": {
            "host": "node7",
            "system": "Linux-6.1",
            "cpu": "EPYC",
            "cores": 12,
            "memory_gb": 67.5,
            "gpus": [{"name": "NVIDIA H100", "memory_gb": 85.0, "capability": "9.0"}],
            "driver": "550.1",
            "cuda": "12.4",
            "kind": "cuda",
            "device": "NVIDIA H100",
            "threads": 6,
            "processes": 2,
        },
        "loader": {"kind": "resident", "reason": "it fits"},
        "ops": {
            "kind": "fused",
            "reason": "",
            "build": {"version": "0.4", "cpu_sha256": "a" * 64, "cuda_sha256": "b" * 64},
        },
        "data": {
            "name": "pets",
            "fingerprint": "f" * 64,
            "counts": {"train": 60, "val": 1021},
            "source": {"given": "pets.zip"},
        },
        "result": {
            "steps": 25,
            "epochs": 5,
            "train_seconds": 3754.4,
            "images_per_second": 12345.6,
            "last": {"top1": TOP1[-1], "top5": 0.94, "loss": 2.125},
            "best_top1": max(TOP1),
            "weights_sha256": "e" * 64,
            "average_sha256": None,
        },
    }
    if fields.get("result") is not None:
        fields["result"] = {**made["result"], "last": None, "best_top1": None} | fields["result"]
    return made | fields


@pytest.fixture
def write_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunWriter:
    """A function that writes the run `name`: configuration, manifest, curves and checkpoints.

    `checkpoints` maps a step to the size of its weights in bytes; `best` is the step of the best one;
    `fields` replace fields of the manifest.
    """
    root = tmp_path / "runs"
    monkeypatch.setenv("NEUSCALE_RUNS", str(root))

    def write(
        name: str = "pets",
        *words: str,
        lines: list[dict[str, Any]] | None = None,
        checkpoints: dict[int, int] | None = None,
        best: int | None = None,
        **fields: Any,
    ) -> RunFolder:
        folder = RunFolder(root / name)
        folder.checkpoints.mkdir(parents=True)
        folder.config_file.write_text(config_to_yaml(config_of(words)))
        folder.manifest_file.write_text(json.dumps(manifest_of(name, *words, **fields)))
        shown = sorted(train_lines() + val_lines(), key=lambda line: line["step"]) if lines is None else lines
        folder.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in shown))
        for step, size in (checkpoints or {}).items():
            path = folder.checkpoints / f"step-{step:08d}"
            path.mkdir()
            (path / "checkpoint.json").write_text("{}")
            (path / "model.safetensors").write_bytes(bytes(size))
        if best is not None:
            (folder.checkpoints / "best.json").write_text(json.dumps({"checkpoint": f"step-{best:08d}"}))
        return folder

    return write


@pytest.fixture
def neuscale(write_run: RunWriter, capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """A function that runs a command line in this process."""
    del write_run  # only needed for the environment variable that it sets

    def command(*words: str) -> Said:
        capfd.readouterr()
        code = run(list(words))
        return Said(code, *capfd.readouterr())

    return command
