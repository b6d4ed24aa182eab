"""A replay trains with the manifest's configuration, processes and threads, and records its verdict."""

import json
import os
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conftest import ListeningProgress
from neuscale.analysis import replay as replay_module
from neuscale.analysis.replay import replay
from neuscale.config import Config
from neuscale.errors import UsageError
from neuscale.runs import folder
from neuscale.runs.folder import RunFolder, create_run
from neuscale.runs.manifest import read_manifest, write_manifest

from .conftest import RunWriter, config_of, manifest_of

CPU = {**manifest_of("x")["machine"], "kind": "cpu", "device": "CPU, 6 threads", "processes": 1}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Fakes for training and launching that write a manifest; the dictionary records what they were given."""
    asked: dict[str, Any] = {"stopped_by": None, "result": {"steps": 25, "weights_sha256": "e" * 64}}

    def train(config: Config, run: RunFolder, _progress: Any) -> Any:
        asked.update(config=config, run=run)
        manifest = manifest_of(run.name, machine=CPU, result=asked["result"])
        write_manifest(run.manifest_file, manifest)
        if "lines" in asked:
            run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in asked["lines"]))
        return SimpleNamespace(outcome=SimpleNamespace(stopped_by=asked["stopped_by"]))

    def launch(words: list[str], processes: int, quiet: bool) -> int:
        asked.update(words=words, processes=processes, threads=os.environ.get("OMP_NUM_THREADS"))
        write_manifest(Path(words[1]) / "manifest.json", manifest_of("x", result=asked["result"]))
        return int(asked.get("code", 0))

    def open_data(config: Config, _progress: Any) -> Any:
        asked["data"] = config
        return SimpleNamespace(
            meta=SimpleNamespace(fingerprint="f" * 64, is_recorded_as=lambda f: f == "f" * 64),
            verify=lambda _p: [],
        )

    monkeypatch.setattr(replay_module, "train", train)
    monkeypatch.setattr(replay_module, "launch", launch)
    monkeypatch.setattr(replay_module, "open_run_data", open_data)
    monkeypatch.setattr(replay_module, "check_device", lambda _device: None)
    monkeypatch.setattr(replay_module, "is_prepared", lambda _name: True)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: asked.update(set_threads=count))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return asked


def test_what_the_manifest_says_is_trained_under_another_name(
    write_run: RunWriter, trained: dict[str, Any], listening: ListeningProgress
) -> None:
    words = ["optim.lr=0.5", "run.time_limit=3h", "tracking=wandb", "data.source=gone"]
    run = write_run("pets", *words, machine=CPU)
    found = replay(run, ["train.epochs=2"], False, listening)
    config = trained["config"]
    assert (config.optim.lr, config.train.epochs, config.run.seed) == (0.5, 2, 7)
    assert (config.run.name, config.run.device) == ("pets-replay", "cpu")
    assert (config.run.time_limit, config.data.source) == (None, None)
    assert config.tracking.trackers == ["tensorboard"]
    assert trained["set_threads"] == 6
    assert "words" not in trained, "one process is trained in this one"
    assert found.run.name == "pets-replay"
    assert replay(run, ["run.device=mps"], False, listening).run.name == "pets-replay-2"
    assert trained["config"].run.device == "mps"


def test_several_processes_are_started_with_as_many_threads(
    write_run: RunWriter, trained: dict[str, Any], listening: ListeningProgress
) -> None:
    run = write_run("pets")
    found = replay(run, [], False, listening)
    assert trained["words"] == ["train", str(found.run.path), "--resume", "run.device=cuda"]
    assert (trained["processes"], trained["threads"]) == (2, "6")
    assert "set_threads" not in trained


def test_equal_weights_are_equal_and_others_are_marked(
    write_run: RunWriter, trained: dict[str, Any], listening: ListeningProgress
) -> None:
    run = write_run("pets", machine=CPU, result=trained["result"])
    trained["lines"] = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    found = replay(run, [], False, listening)
    assert found.verdict is not None
    assert (found.verdict.equal, found.changed, found.forced) == (True, [], [])
    trained["lines"][3]["loss"] += 1e-9
    found = replay(run, [], False, listening)
    marked = read_manifest(found.run.manifest_file)["replay"]
    assert (marked["of"], marked["equal"], marked["first"]["step"]) == ("pets", False, 6)
    assert marked["verdict"].startswith("differs first at step 6")


def test_one_that_was_stopped_has_no_verdict(
    write_run: RunWriter, trained: dict[str, Any], listening: ListeningProgress
) -> None:
    trained["stopped_by"] = "SIGTERM"
    found = replay(write_run("one", machine=CPU), [], False, listening)
    assert found.verdict is None
    marked = read_manifest(found.run.manifest_file)["replay"]
    assert (marked["equal"], marked["verdict"]) == (None, "stopped before its end")
    trained["code"] = 75
    assert replay(write_run("two"), [], False, listening).verdict is None


def test_what_was_other_in_a_resume_is_warned_of(
    write_run: RunWriter, trained: dict[str, Any], listening: ListeningProgress
) -> None:
    change = {"area": "packages", "what": "numpy", "before": "1", "now": "2"}
    resumed = [{"time": None, "step": 15, "changed": [change]}, {"time": None, "step": 20, "changed": []}]
    replay(write_run("pets", machine=CPU, resumed=resumed), [], False, listening)
    assert listening.warnings == [
        "pets resumed at step 15 with another packages (packages: numpy 1 → 2);"
        " it is trained again as it ended"
    ]


def test_a_training_that_never_began_leaves_no_folder(
    write_run: RunWriter,
    trained: dict[str, Any],
    listening: ListeningProgress,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: Any) -> None:
        raise UsageError("no memory.")

    monkeypatch.setattr(replay_module, "train", fails)
    run = write_run("pets", machine=CPU)
    with pytest.raises(UsageError, match="no memory"):
        replay(run, [], False, listening)
    assert [path.name for path in run.path.parent.iterdir()] == ["pets"]


def test_an_unnamed_run_is_called_by_its_recipe_and_its_time(
    write_run: RunWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run("first")
    moment = datetime(2026, 3, 4, 5, 6, 7)
    monkeypatch.setattr(folder, "datetime", SimpleNamespace(now=lambda: moment))
    config = config_of(())
    base = config.experiment or config.model.title
    made = [create_run(config).name for _ in range(3)]
    assert made == [f"{base}-20260304-050607{end}" for end in ("", "-2", "-3")]
