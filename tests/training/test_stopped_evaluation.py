"""A stop during an evaluation loses nothing: the epoch is saved, and a resumed run evaluates it first."""

import json
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from conftest import ListeningProgress, ListeningTask
from neuscale.config import Config
from neuscale.runs.folder import RunFolder
from neuscale.runs.manifest import read_manifest
from neuscale.runs.metrics import TIMINGS, read_metrics
from neuscale.training.checkpoint import CheckpointFolder, open_checkpoint
from neuscale.training.run import TrainedRun, train

ConfigBuilder = Callable[..., Config]
WORDS = ["train.epochs=2", "eval.batch_size=5", "train.ema_decay=0.9", "train.patience=5"]
WORDS += ["train.log_every_steps=3"]


def curves(run: RunFolder) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in line.items() if name not in TIMINGS}
        for line in read_metrics(run.metrics_file)
    ]


def stop_while_evaluating(config: Config, which: int, monkeypatch: pytest.MonkeyPatch) -> TrainedRun:
    """Train, and stop after the second batch of evaluation number `which`."""
    begun = [0]
    real = ListeningTask.advance

    def advance(self: ListeningTask, count: int = 1) -> None:
        real(self, count)
        if self.title == "evaluating":
            begun[0] += self.done == 5
            if begun[0] == which and self.done == 10:
                os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(ListeningTask, "advance", advance)
        return train(config, None, ListeningProgress())


@pytest.mark.parametrize(("which", "step"), [(1, 5), (2, 10)], ids=["an epoch", "the last"])
def test_a_stop_while_evaluating(
    tiny: ConfigBuilder, monkeypatch: pytest.MonkeyPatch, which: int, step: int
) -> None:
    whole = train(tiny(*WORDS, "run.name=whole")).run
    stopped = stop_while_evaluating(tiny(*WORDS, "run.name=cut"), which, monkeypatch)
    assert (stopped.outcome.steps, stopped.outcome.stopped_by) == (step, "SIGTERM")
    manifest = read_manifest(stopped.run.manifest_file)
    assert (manifest["status"], manifest["exit_code"]) == ("stopped", 75)
    path = CheckpointFolder(stopped.run.checkpoints).paths()[-1]
    assert path.name == f"step-{step:08d}" and open_checkpoint(path).metrics == {}
    resumed = train(stopped.run.config(), stopped.run, ListeningProgress())
    assert resumed.outcome.steps == 10 and resumed.outcome.stopped_by is None
    assert curves(resumed.run) == curves(whole)
    for name in ("best.json", "step-00000010/model.safetensors", "step-00000010/ema.safetensors"):
        assert (resumed.run.checkpoints / name).read_bytes() == (whole.checkpoints / name).read_bytes()
    after, expected = (
        json.loads((run.checkpoints / "step-00000010" / "checkpoint.json").read_text())
        for run in (resumed.run, whole)
    )
    assert (after["metrics"], after["loop"]) == (expected["metrics"], expected["loop"])
    results = [read_manifest(run.manifest_file)["result"] for run in (resumed.run, whole)]
    for name in ("last", "best_top1", "weights_sha256"):
        assert results[0][name] == results[1][name]


def test_an_epoch_is_saved_before_it_is_evaluated(
    tiny: ConfigBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process killed during an evaluation, however long that takes, has already saved the epoch."""
    found = []
    from neuscale.training import trainer as module

    real = module.evaluate

    def look(*arguments: Any, **named: Any) -> Any:
        folder = CheckpointFolder(arguments_run[0].checkpoints)
        module_saver[0].wait()
        found.append(folder.paths()[-1].name if folder.paths() else None)
        return real(*arguments, **named)

    arguments_run: list[RunFolder] = []
    module_saver: list[Any] = []
    fit = module.Trainer.fit

    def remember(self: Any, checkpoints: CheckpointFolder, tracker: Any) -> Any:
        arguments_run.append(RunFolder(checkpoints.folder.parent))
        module_saver.append(self._saver)
        return fit(self, checkpoints, tracker)

    monkeypatch.setattr(module.Trainer, "fit", remember)
    monkeypatch.setattr(module, "evaluate", look)
    train(tiny(*WORDS, "run.name=saved"))
    assert found == ["step-00000005", "step-00000010"]


@pytest.mark.parametrize("which", [1, 2], ids=["an epoch", "the last"])
def test_an_evaluation_is_recorded_once_where_a_kill_parts_it_from_its_checkpoint(
    tiny: ConfigBuilder, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    whole = train(tiny(*WORDS, "run.name=whole")).run
    config, calls = tiny(*WORDS, "run.name=cut"), []
    real = CheckpointFolder.add_evaluation

    def killed(*given: Any) -> None:
        calls.append(1)
        if len(calls) == which:
            raise KeyboardInterrupt
        real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFolder, "add_evaluation", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    run = RunFolder(whole.path.parent / "cut")
    assert [line["step"] for line in curves(run) if line["split"] == "val"] == [5, 10][:which]
    resumed = train(run.config(), run).run
    assert curves(resumed) == curves(whole)
