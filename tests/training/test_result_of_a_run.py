"""The manifest records the best and the last result of a run, what stopped it and what changed on resume."""

import hashlib
import itertools
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conftest import ListeningProgress, ListeningTask
from neuscale.analysis.listing import run_row
from neuscale.config import Config
from neuscale.errors import UsageError, UserError
from neuscale.models.weights import weights_hash
from neuscale.runs.folder import RunFolder
from neuscale.runs.manifest import read_manifest
from neuscale.training import manifest_writer as record
from neuscale.training import trainer
from neuscale.training.checkpoint import open_checkpoint
from neuscale.training.determinism import determinism
from neuscale.training.manifest_writer import ManifestWriter
from neuscale.training.run import train

ConfigBuilder = Callable[..., Config]
TOP1 = (0.25, 0.75, 0.5, 0.625)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake times T1, T2, …; each evaluation takes the next of TOP1, and the command line is fixed."""
    moments, scores = itertools.count(1), iter(TOP1)
    monkeypatch.setattr(record, "now", lambda: f"T{next(moments)}")
    real = trainer.evaluate

    def evaluate(*words: Any, **options: Any) -> Any:
        return replace(real(*words, **options), top1=next(scores))

    monkeypatch.setattr(trainer, "evaluate", evaluate)
    monkeypatch.setattr(sys, "argv", ["neuscale", "train", "first"])


def stop_after(patch: pytest.MonkeyPatch, steps: int) -> None:
    real = ListeningTask.advance

    def advance(self: ListeningTask, count: int = 1) -> None:
        real(self, count)
        if self.title == "training" and self.done == 12 * steps:
            os.kill(os.getpid(), signal.SIGTERM)

    patch.setattr(ListeningTask, "advance", advance)


def test_the_best_is_not_the_last_and_each_has_its_own_number(
    tiny: ConfigBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    words = [
        "train.epochs=3",
        "train.ema_decay=0.9",
        "checkpoint.keep_last=1",
        "run.name=told",
        "run.seed=11",
    ]
    trained = train(tiny(*words))
    manifest = read_manifest(trained.run.manifest_file)
    result = manifest["result"]
    assert (result["best_top1"], result["last"]["top1"], result["steps"], result["epochs"]) == (
        0.75,
        0.5,
        15,
        3,
    )
    assert set(result["last"]) == {"top1", "top5", "loss", "balanced_accuracy", "macro_f1"}
    assert trained.outcome.best_top1 == 0.75
    assert [manifest[name] for name in ("status", "exit_code", "stopped_by", "error")] == [
        "finished",
        0,
        None,
        None,
    ]
    assert (manifest["started"], manifest["ended"], manifest["command"]) == ("T1", "T2", sys.argv)
    assert (manifest["seed"], manifest["precision"], manifest["name"]) == (11, "fp32", "told")
    assert manifest["data"]["counts"] == {"train": 60, "val": 21}
    machine = manifest["machine"]
    told = [machine[name] for name in ("kind", "device", "threads", "processes")]
    assert told == ["cpu", "CPU, 3 threads", 3, 1]

    best, last = sorted(trained.run.checkpoints.glob("step-*"))
    assert (best.name, last.name) == ("step-00000010", "step-00000015")
    assert json.loads((trained.run.checkpoints / "best.json").read_text())["checkpoint"] == best.name
    assert open_checkpoint(best).metrics["top1"] == 0.75
    average = open_checkpoint(last).average()
    assert average is not None
    hashes = {
        "weights_sha256": weights_hash(open_checkpoint(last).weights()),
        "average_sha256": weights_hash(average),
    }
    assert {name: result[name] for name in hashes} == hashes
    assert len({*hashes.values(), weights_hash(open_checkpoint(best).weights())}) == 3
    row = run_row(trained.run)
    assert (row.top1, row.loss, row.steps) == (0.75, result["last"]["loss"], 15)


def test_a_stopped_run_says_by_what_and_each_resume_what_changed(
    tiny: ConfigBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train.epochs=4", "run.name=told", "tracking.trackers=[]"]
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        run = train(tiny(*words), None, ListeningProgress()).run
    manifest = read_manifest(run.manifest_file)
    assert [manifest[name] for name in ("status", "exit_code", "stopped_by")] == ["stopped", 75, "SIGTERM"]
    assert (manifest["result"]["steps"], manifest["result"]["epochs"]) == (7, 1)
    assert (manifest["result"]["best_top1"], manifest["result"]["last"]["top1"]) == (0.25, 0.25)

    monkeypatch.setattr(sys, "argv", ["neuscale", "train", "second"])
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        train(tiny(*words, "optim.weight_decay=0.75"), run, ListeningProgress())
    monkeypatch.setattr(sys, "argv", ["neuscale", "train", "third"])
    train(tiny(*words, "optim.weight_decay=0.75", "run.time_limit=9h"), run)

    manifest = read_manifest(run.manifest_file)
    before = tiny().optim.weight_decay
    change = {"area": "config", "what": "optim.weight_decay", "before": before, "now": 0.75}
    assert manifest["resumed"] == [
        {"time": "T4", "step": 7, "command": ["neuscale", "train", "second"], "changed": [change]},
        {"time": "T7", "step": 9, "command": ["neuscale", "train", "third"], "changed": []},
    ]
    assert (manifest["started"], manifest["ended"], manifest["command"][-1]) == ("T1", "T8", "first")
    assert [manifest[name] for name in ("status", "exit_code", "stopped_by")] == ["finished", 0, None]
    assert manifest["config"]["optim"]["weight_decay"] == 0.75
    assert (manifest["result"]["best_top1"], manifest["result"]["last"]["top1"]) == (0.75, 0.625)


class Broken(ListeningProgress):
    """Progress that raises an error when training starts, before the first step."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def task(self, title: str, total: int | None, unit: str) -> Any:
        if title == "training":
            raise self.error
        return super().task(title, total, unit)


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (UserError("no room.", "Make some."), 1, "no room."),
        (UsageError("a typo."), 2, "a typo."),
        (KeyboardInterrupt(), 130, "KeyboardInterrupt"),
        (ValueError("a bug"), 1, "a bug"),
    ],
    ids=["user", "usage", "ctrl-c", "bug"],
)
def test_an_error_is_told_with_its_exit_code(
    tiny: ConfigBuilder, tmp_path: Path, error: BaseException, code: int, told: str
) -> None:
    with pytest.raises(type(error)):
        train(tiny("train.epochs=1", "run.name=broken", "tracking.trackers=[]"), None, Broken(error))
    manifest = read_manifest(tmp_path / "runs" / "broken" / "manifest.json")
    assert (manifest["status"], manifest["exit_code"], manifest["ended"]) == ("failed", code, "T2")
    assert told in manifest["error"]
    assert manifest["result"] is None


def test_changes_of_the_code_lie_beside_the_manifest_one_file_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path)
    fake: Any = SimpleNamespace(accelerator=SimpleNamespace(is_main_process=True))
    names = []
    for patch in (b"one", b"two", b"one"):
        sha = hashlib.sha256(patch).hexdigest()
        made: dict[str, Any] = {"code": {"diff": {"file": "code.diff", "sha256": sha}}}
        monkeypatch.setattr(record, "_first_manifest", lambda *_, made=made, patch=patch: (made, patch))
        ManifestWriter(run, fake).on_start()
        names.append(read_manifest(run.manifest_file)["code"]["diff"]["file"])
    second = f"code-{hashlib.sha256(b'two').hexdigest()[:8]}.diff"
    assert names == ["code.diff", second, "code.diff"]
    assert ((tmp_path / "code.diff").read_bytes(), (tmp_path / second).read_bytes()) == (b"one", b"two")
    assert read_manifest(run.manifest_file)["ended"] is None


def test_only_the_main_process_writes(tmp_path: Path, tiny: ConfigBuilder) -> None:
    fake: Any = SimpleNamespace(accelerator=SimpleNamespace(is_main_process=False))
    told = ManifestWriter(RunFolder(tmp_path), fake)
    told.on_resume(5)
    told.on_start()
    told.on_error(ValueError("x"))
    told.write(ended=True)
    assert list(tmp_path.iterdir()) == []


def test_the_switches_of_determinism_are_read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: "algorithms")
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    for benchmark, deterministic in ((True, False), (False, True)):
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", benchmark)
        monkeypatch.setattr(torch.backends.cudnn, "deterministic", deterministic)
        assert determinism() == {
            "deterministic_algorithms": "algorithms",
            "cudnn_benchmark": benchmark,
            "cudnn_deterministic": deterministic,
            "float32_matmul_precision": "medium",
            "cublas_workspace": ":16:8",
        }
