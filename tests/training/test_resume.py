"""A stopped and resumed run is bit-identical to one that was never stopped."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from neuscale.config import Config
from neuscale.data.prepare import prepare
from neuscale.errors import UsageError
from neuscale.models.weights import weights_hash
from neuscale.runs.folder import RunFolder
from neuscale.runs.manifest import SCHEMA, read_manifest
from neuscale.runs.metrics import TIMINGS, read_metrics
from neuscale.training.checkpoint import CheckpointFolder, open_checkpoint
from neuscale.training.run import train

ConfigBuilder = Callable[..., Config]


class SignalAt:
    """Progress that sends this process a signal when training reports its n-th step."""

    def __init__(self, step: int, number: int = signal.SIGTERM) -> None:
        self.left, self.number = step, number
        self.warnings: list[str] = []

    @contextmanager
    def task(self, title: str, total: int | None, unit: str) -> Iterator["SignalAt"]:
        yield self if title == "training" else SignalAt(-1)

    def advance(self, count: int = 1) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)

    def note(self, text: str) -> None:
        pass

    def message(self, text: str) -> None:
        pass

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def final_state(run: RunFolder) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    checkpoint = open_checkpoint(CheckpointFolder(run.checkpoints).paths()[-1])
    state = checkpoint.training_state()
    del state["train_seconds"]
    state["average"] = checkpoint.average()
    return checkpoint.weights(), state


def curves(run: RunFolder) -> list[dict[str, Any]]:
    lines = list(read_metrics(run.metrics_file))
    for line in lines:
        for name in TIMINGS:
            line.pop(name, None)
    return lines


def assert_equal(a: Any, b: Any) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b


@pytest.mark.parametrize(
    "optim", ["adamw", "sgd", "muon", "adamw augment=strong", "adamw train.ema_decay=0.9"]
)
@pytest.mark.parametrize("stops", [[3], [5], [1, 2, 5], [7, 1]], ids=str)
def test_stopped_and_resumed_equals_undisturbed(tiny: ConfigBuilder, optim: str, stops: list[int]) -> None:
    words = [*f"optim={optim}".split(), "train.epochs=2", "train.micro_batch=6"]
    whole = train(tiny(*words, "run.name=whole")).run

    config = tiny(*words, "run.name=broken")
    run: RunFolder | None = None
    for steps in stops:
        stopped = train(config, run, SignalAt(steps))
        run = stopped.run
        assert stopped.outcome.stopped_by == "SIGTERM"
        assert read_manifest(run.manifest_file)["status"] == "stopped"
    trained = train(config, run)
    assert trained.outcome.stopped_by is None
    assert trained.outcome.steps == 10
    assert read_manifest(trained.run.manifest_file)["status"] == "finished"

    assert_equal(final_state(whole), final_state(trained.run))
    assert curves(whole) == curves(trained.run)


def test_going_back_behind_a_damaged_checkpoint_changes_nothing(tiny: ConfigBuilder) -> None:
    words = ["train.epochs=3", "checkpoint.every_steps=2", "checkpoint.keep_last=9"]
    whole = train(tiny(*words, "run.name=whole")).run
    config = tiny(*words, "run.name=broken")
    run = train(config, None, SignalAt(9)).run
    newest = CheckpointFolder(run.checkpoints).paths()[-1]
    content = bytearray((newest / "model.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "model.safetensors").write_bytes(content)

    progress = SignalAt(-1)
    trained = train(config, run, progress)
    assert str(newest / "model.safetensors") in progress.warnings[0]
    assert "damaged" in progress.warnings[0]
    assert_equal(final_state(whole), final_state(trained.run))
    assert curves(whole) == curves(trained.run)


def test_curves_have_no_zigzag_after_a_crash(tiny: ConfigBuilder) -> None:
    """Points that a killed run logged after its last checkpoint are not drawn twice."""
    config = tiny("train.epochs=2", "run.name=broken", "checkpoint.keep_last=9")
    run = train(config, None, SignalAt(9)).run
    newest = CheckpointFolder(run.checkpoints).paths()[-1]
    shutil.rmtree(newest)  # as if it had been killed at step 9 after a checkpoint at step 5
    with run.metrics_file.open("a") as file:
        file.write('{"split": "train", "st')  # a truncated line
    trained = train(config, run)

    steps = [line["step"] for line in curves(trained.run) if line["split"] == "train"]
    assert steps == [2, 4, 6, 8, 10]
    events = EventAccumulator(str(run.path)).Reload()
    for tag in ("train/loss", "optim/lr"):
        assert [point.step for point in events.Scalars(tag)] == [2, 4, 6, 8, 10]
    assert [point.step for point in events.Scalars("val/top1")] == [5, 10]


def test_a_longer_run_goes_on_where_the_shorter_ended(tiny: ConfigBuilder) -> None:
    run = train(tiny("train.epochs=1", "run.name=longer")).run
    assert train(tiny("train.epochs=1"), run).outcome.steps == 5
    assert train(tiny("train.epochs=2"), run).outcome.steps == 10
    assert len(read_manifest(run.manifest_file)["resumed"]) == 1


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("model.embed_dim=16", "model.embed_dim"),
        ("train.global_batch_size=6", "train.global_batch_size"),
        ("run.seed=1", "run.seed"),
        ("optim=sgd", "optim.name"),
    ],
)
def test_what_makes_it_another_run_is_refused(tiny: ConfigBuilder, word: str, named: str) -> None:
    run = train(tiny("train.max_steps=2", "train.epochs=2", "run.name=fixed")).run
    with pytest.raises(UsageError, match=f"{named} cannot change"):
        train(tiny("train.epochs=2", word), run)


def test_other_data_of_the_same_name_is_refused(
    tiny: ConfigBuilder,
    build_image_tree: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = train(tiny("train.max_steps=2", "train.epochs=2", "run.name=fixed")).run
    other = build_image_tree(tmp_path / "tree", train=20, val=7, seed=1)
    prepare("image_folder", root=tmp_path / "data", source=other, save_as="tiny")
    monkeypatch.setenv("NEUSCALE_DATA", str(tmp_path / "data"))
    with pytest.raises(UsageError, match="other data"):
        train(tiny("train.epochs=2"), run)


def test_the_manifest_says_what_was_trained(tiny: ConfigBuilder) -> None:
    run = train(tiny("train.max_steps=3", "train.epochs=1", "run.name=told", "run.seed=5")).run
    manifest = json.loads(run.manifest_file.read_text())
    assert manifest["seed"] == 5
    assert manifest["data"]["name"] == "tiny"
    assert manifest["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert manifest["result"]["steps"] == 3
    assert manifest["result"]["last"]["top1"] == curves(run)[-1]["top1"]
    assert run.config().run.seed == 5
    jsonschema.validate(manifest, json.loads(SCHEMA.read_text()))
    assert manifest["config"] == asdict(run.config())
    last = open_checkpoint(CheckpointFolder(run.checkpoints).paths()[-1])
    assert manifest["result"]["weights_sha256"] == weights_hash(last.weights())
