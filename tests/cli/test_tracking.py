"""Files that real trainings write for TensorBoard and Weights & Biases."""

import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata as hparams_metadata

from neuscale.runs.manifest import read_manifest, write_manifest

WANDB = ["tracking=wandb", "tracking.options.wandb.mode=offline"]


def events(run: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(run), size_guidance={"tensors": 0, "scalars": 0})
    return accumulator.Reload()


def test_tensorboard_has_the_hyperparameters_in_the_run_itself(train: Callable[..., Any], runs: Path) -> None:
    """No separate run folder with points of its own is created, unlike by SummaryWriter.add_hparams."""
    assert train("train.epochs=2", "run.name=board", "optim.lr=0.02").code == 0
    folders = {path.parent for path in (runs / "board").rglob("events.out.*")}
    assert folders == {runs / "board"}
    board = events(runs / "board")
    content = board.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    told = hparams_metadata.parse_session_start_info_plugin_data(content).hparams
    assert told["optim.lr"].number_value == pytest.approx(0.02)
    assert told["model.name"].string_value == "swin"
    assert told["model.depths"].string_value == "[1, 1]"
    experiment = board.summary_metadata["_hparams_/experiment"].plugin_data.content
    tags = {info.name.tag for info in hparams_metadata.parse_experiment_plugin_data(experiment).metric_infos}
    assert tags <= set(board.Tags()["scalars"])
    assert "val/top1" in tags


def test_tensorboard_has_the_accuracy_of_each_class_at_each_evaluation(
    train: Callable[..., Any], neuscale: Callable[..., Any], runs: Path
) -> None:
    assert train("train.epochs=2", "run.name=board").code == 0
    tables = events(runs / "board").Tensors("val/per_class/text_summary")
    assert [table.step for table in tables] == [5, 10]
    text = tables[-1].tensor_proto.string_val[0].decode()
    said = neuscale("eval", "board", "--checkpoint", "last", "--json").json["per_class"]
    assert all(f"| {name} | {share:.1%} |" in text for name, share in said.items())


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is an extra")
def test_wandb_offline_writes_into_the_run_folder_and_goes_on_with_the_same_run(
    train: Callable[..., Any], neuscale: Callable[..., Any], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # any use of the network fails
    said = train(*WANDB, "train.epochs=1", "run.name=tracked", "train.log_every_steps=1", "--json")
    assert said.code == 0, said.err
    assert said.json["status"] == "finished"
    assert "wandb:" not in said.err
    run = runs / "tracked"
    manifest = read_manifest(run / "manifest.json")
    write_manifest(run / "manifest.json", manifest | {"status": "stopped"})
    assert neuscale("train", "tracked", "--resume", "train.epochs=2").code == 0
    identifier = (run / "wandb-id").read_text().strip()
    written = sorted(run.glob("wandb/offline-run-*"))
    assert len(written) == 2
    assert all(folder.name.endswith(identifier) for folder in written)
    assert (run / "metrics.jsonl").exists()
    for folder, steps in zip(written, ([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]), strict=True):
        points = logged(next(folder.glob("*.wandb")))
        assert [point["step"] for point in points if "train/loss" in point] == steps
        last = points[-1]
        assert last["val/top1"] in {line["top1"] for line in lines(run) if line["split"] == "val"}
        assert last["val/confusion._type"] == "image-file"
        assert last["val/per_class._type"] == "table-file"


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def logged(path: Path) -> list[dict[str, Any]]:
    """Points in the file that `wandb sync` uploads."""
    from wandb.proto.wandb_internal_pb2 import Record

    points = []
    for data in leveldb_records(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            points.append(
                {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
            )
    return points


def leveldb_records(log: bytes) -> Iterator[bytes]:
    """Records of a LevelDB log (blocks of 32 KiB) after W&B's header of 7 bytes."""
    place, parts = 7, b""
    while place + 7 <= len(log):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(log[place + 4 : place + 6], "little"), log[place + 6]
        parts += log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""


def test_without_wandb_it_says_how_to_get_it_before_anything_is_written(
    train: Callable[..., Any], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuscale.training.tracking.accelerate_trackers.find_spec", lambda _name: None)
    said = train(*WANDB)
    assert said.code == 2
    assert said.words.endswith("tracking.trackers: wandb is not installed. Install it: pip install wandb.")
    assert not runs.exists()


def test_weights_and_biases_takes_its_mode_and_tags_from_the_environment(
    train: Callable[..., Any], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    for name, value in (("MODE", "offline"), ("PROJECT", "ours"), ("TAGS", "x,y"), ("RUN_GROUP", "g")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    assert train("tracking=wandb", "train.max_steps=1", "run.name=tracked").code == 0
    [folder] = (runs / "tracked" / "wandb").glob("offline-run-*")
    written = b"".join(path.read_bytes() for path in folder.rglob("*.wandb"))
    assert b"ours" in written and b"tracked" in written
