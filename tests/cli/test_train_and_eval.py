"""From an image folder to metrics: evaluation reproduces the numbers of training."""

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from neuscale.data.formats.packed import PackedDataset

KEYS = {
    "run",
    "checkpoint",
    "step",
    "weights",
    "split",
    "tta",
    "samples",
    "top1",
    "top5",
    "loss",
    "per_class",
}
NUMBERS = ("top1", "top5", "loss", "balanced_accuracy", "macro_f1")
KEYS |= {"ece", "calibration", *NUMBERS}


def metrics(run: Path, split: str = "val") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_own_images_to_numbers_and_back(
    neuscale: Callable[..., Any],
    runs: Path,
    tmp_path: Path,
    build_image_tree: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    relative: bool,
) -> None:
    """Class names may contain spaces, umlauts, and brackets that look like terminal markup."""
    classes = ("Kätzchen", "日本", "[red]x", "a b")
    tree = build_image_tree(tmp_path / "my ímages", classes=classes, train=5, val=3, size=(16, 16))
    monkeypatch.setenv("NEUSCALE_DATA", str(tmp_path / "some data"))
    monkeypatch.chdir(tmp_path)
    source = tree.relative_to(tmp_path) if relative else tree
    model = ["model.embed_dim=8", "model.depths=[1,1]", "model.num_heads=[1,1]", "model.window_size=2"]
    words = ["data=image_folder", "data.name=mine", f"data.source={source}", "train.global_batch_size=5"]
    said = neuscale(
        "train", *words, *model, "train.epochs=3", "checkpoint.keep_last=9", "run.name=a", "run.device=cpu"
    )
    assert said.code == 0, said.err
    assert "neuscale eval a " in said.err

    lines = metrics(runs / "a")
    best = max(lines, key=lambda line: line["top1"])
    asked = {"best": best, "last": lines[-1], str(runs / "a" / "checkpoints" / "step-00000008"): lines[1]}
    for checkpoint, line in asked.items():
        found = neuscale("eval", "a", "--checkpoint", checkpoint, "--json").json
        assert found["step"] == line["step"]
        assert found["top1"] == line["top1"]
        assert found["loss"] == pytest.approx(line["loss"], rel=1e-6)
    assert set(found["per_class"]) == set(classes)
    shown = neuscale("eval", str(runs / "a")).out
    for name in classes:
        assert name in shown


def test_json_of_train(train: Callable[..., Any], runs: Path) -> None:
    said = train("train.epochs=1", "train.max_steps=3", "run.name=j", "--json")
    assert said.json["run"] == str(runs / "j")
    assert (said.json["status"], said.json["steps"]) == ("finished", 3)
    assert said.json["last"] == {k: metrics(runs / "j")[-1][k] for k in NUMBERS}
    assert {"epochs", "train_seconds", "images_per_second", "best_top1"} <= set(said.json)


def test_json_of_eval(neuscale: Callable[..., Any], done: Path) -> None:
    found = neuscale("eval", "last", "--json").json
    assert set(found) == KEYS
    assert found["run"] == done.name
    assert found["samples"] == 21
    assert np.mean(list(found["per_class"].values())) == pytest.approx(found["top1"])
    assert neuscale("eval", "done", "--split", "train", "--json").json["samples"] == 60


def test_json_has_no_nan(neuscale: Callable[..., Any], done: Path) -> None:
    """`NaN` is not valid JSON: jq and JavaScript would refuse the whole object."""
    weights = load_file(done / "checkpoints" / "step-00000015" / "model.safetensors")
    weights["head.bias"][:] = torch.nan
    save_file(weights, done / "nan.safetensors")
    said = neuscale("eval", "done", "--checkpoint", str(done / "nan.safetensors"), "--json")
    assert "NaN" not in said.out
    assert said.json["loss"] is None


def test_json_of_data_commands_and_doctor(
    neuscale: Callable[..., Any], tmp_path: Path, build_image_tree: Callable[..., Path], tiny_data: Path
) -> None:
    listing = neuscale("data", "list", "--json").json
    assert listing["folder"] == str(tiny_data)
    rows = {row["name"]: row for row in listing["datasets"]}
    assert rows["tiny"]["state"] == "prepared"
    assert rows["tiny"]["images"] == {"train": 60, "val": 21}
    assert rows["cifar10"]["state"] == "not prepared"

    tree = build_image_tree(tmp_path / "tree")
    words = ["data", "prepare", "image_folder", "--source", str(tree), "--save-as", "mine", "--json"]
    prepared = neuscale(*words).json
    assert prepared["classes"] == ["cat", "dog", "owl"]
    assert (prepared["counts"], prepared["shape"]) == ({"train": 12, "val": 6}, [3, 8, 8])
    assert neuscale("data", "verify", "mine", "--json").json["intact"] is True
    shutil.rmtree(prepared["folder"])

    found = neuscale("doctor", "--json").json
    assert {"neuscale", "python", "packages", "cores", "devices", "data_sets", "problems"} <= set(found)


@pytest.mark.parametrize(
    ("name", "processes"), [("tiny", 2), ("single", 3)], ids=["2 of unequal shares", "3 for one image"]
)
def test_any_number_of_processes_counts_every_image_once(
    neuscale: Callable[..., Any], train: Callable[..., Any], tiny_data: Path, name: str, processes: int
) -> None:
    """Shares are not padded, which would count images twice; the usual default port 29500 may be in use."""
    assert train(f"data.name={name}", "train.max_steps=2", "run.name=r", "eval.batch_size=2").code == 0
    alone = neuscale("eval", "r", "--json").json
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 29500))
        taken.listen()
        together = neuscale("eval", "r", "--processes", str(processes), "--json").json
    for number in ("loss", "ece"):
        assert together.pop(number) == pytest.approx(alone.pop(number), rel=1e-5)
    for one, other in zip(together.pop("calibration"), alone.pop("calibration"), strict=True):
        assert (one["images"], one["accuracy"]) == (other["images"], other["accuracy"])
    assert together == alone
    assert alone["samples"] == PackedDataset.open(tiny_data / "packed" / name).meta.counts["val"]


def test_damaged_checkpoint_is_named_and_another_offered(neuscale: Callable[..., Any], done: Path) -> None:
    best = json.loads((done / "checkpoints" / "best.json").read_text())["checkpoint"]
    weights = done / "checkpoints" / best / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    said = neuscale("eval", "done")
    assert said.code == 1
    assert f"{weights}: damaged" in said.words
    others = {path.name for path in (done / "checkpoints").glob("step-*")} - {best}
    assert others
    for name in others:
        assert name in said.words
        assert neuscale("eval", "done", "--checkpoint", name).code == 0


@pytest.mark.parametrize("missing", ["nope", "step-00000099"])
def test_missing_checkpoint(neuscale: Callable[..., Any], done: Path, missing: str) -> None:
    said = neuscale("eval", str(done), "--checkpoint", missing)
    assert said.code == 1
    assert f"{missing}: there is no checkpoint here" in said.words
    assert "step-00000015, step-00000010, step-00000005" in said.words


def test_run_without_a_checkpoint(neuscale: Callable[..., Any], done: Path) -> None:
    shutil.rmtree(done / "checkpoints")
    said = neuscale("eval", "done")
    assert said.code == 1
    assert "has no checkpoint yet. Train on: neuscale train --resume done" in said.words


def test_checkpoint_of_another_model(
    neuscale: Callable[..., Any], train: Callable[..., Any], done: Path
) -> None:
    assert train("model.embed_dim=16", "train.max_steps=1", "run.name=other").code == 0
    other = done.parent / "other" / "checkpoints" / "step-00000001"
    said = neuscale("eval", "done", "--checkpoint", str(other))
    assert said.code == 1
    assert f"{other}: weights of another model" in said.words
    assert "there and" in said.words
