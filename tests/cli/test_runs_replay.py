"""`neuscale runs replay` reproduces a run bit for bit, or names the first step and setting that differ."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuscale.data.prepare import prepare
from neuscale.runs.manifest import read_manifest, write_manifest

Command = Callable[..., Any]


@pytest.fixture
def own_data(tiny_data: Path, tmp_path: Path, done: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the prepared data, for a test to damage; the run 'done' exists."""
    shutil.copytree(tiny_data, tmp_path / "data")
    monkeypatch.setenv("NEUSCALE_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "packed" / "tiny"


def replay(neuscale: Command, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = neuscale("runs", "replay", *words, "--json").json
    return found


def test_a_run_is_bitwise_equal_to_its_replay(neuscale: Command, done: Path) -> None:
    before = {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}
    said = neuscale("runs", "replay", "done")
    assert said.code == 0, said.err
    assert "bitwise equal: 4 points of the curves, and the weights after 15 steps" in said.out
    assert "Nothing changed" in said.out
    assert before == {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}
    again = done.with_name("done-replay")
    weights = [sorted(run.glob("checkpoints/*/model.safetensors"))[-1] for run in (done, again)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    marked = read_manifest(again / "manifest.json")["replay"]
    assert (marked["of"], marked["equal"], marked["forced"], marked["changed"]) == ("done", True, [], [])
    assert neuscale("runs", "replay", "done").code == 0
    assert done.with_name("done-replay-2").is_dir(), "a second one has a folder of its own"


def test_another_package_is_named_and_nothing_else(
    neuscale: Command, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    was = read_manifest(done / "manifest.json")["packages"]["safetensors"]
    fake = tmp_path / "site" / "safetensors-99.1.dist-info"
    fake.mkdir(parents=True)
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: safetensors\nVersion: 99.1\n\nText.\n")
    monkeypatch.syspath_prepend(str(fake.parent))
    found = replay(neuscale, "done")
    assert found["equal"]
    assert found["changed"] == [{"area": "packages", "what": "safetensors", "before": was, "now": "99.1"}]


def test_another_value_is_named_with_the_first_step_that_differs(neuscale: Command, done: Path) -> None:
    found = replay(neuscale, "done", "optim.weight_decay=0.9")
    was = read_manifest(done / "manifest.json")["config"]["optim"]["weight_decay"]
    assert found["equal"] is False
    assert found["first"]["step"] == 5, "that of the first point of the curves"
    assert found["changed"] == [{"area": "config", "what": "optim.weight_decay", "before": was, "now": 0.9}]
    said = neuscale("runs", "replay", "done", "optim.weight_decay=0.9")
    assert said.code == 1
    assert f"config: optim.weight_decay {was} → 0.9" in said.out
    assert "differs first at step 5" in said.out


def test_one_byte_of_the_data_is_refused_and_with_force_it_is_marked(
    neuscale: Command, own_data: Path, runs: Path
) -> None:
    file = own_data / "train_images.npy"
    content = bytearray(file.read_bytes())
    content[-100] ^= 0xFF
    file.write_bytes(content)
    said = neuscale("runs", "replay", "done")
    assert said.code == 2
    assert "other data than what is there now (data: train_images.npy as prepared → damaged)" in said.err
    assert "--force" in said.err
    assert not (runs / "done-replay").exists()
    found = replay(neuscale, "done", "--force")
    assert found["forced"] == ["train_images.npy"]
    assert [(c["area"], c["what"]) for c in found["changed"]] == [("data", "train_images.npy")]
    assert found["equal"] is False
    assert read_manifest(runs / "done-replay" / "manifest.json")["replay"]["forced"] == ["train_images.npy"]


def test_data_prepared_anew_from_other_images_are_refused(
    neuscale: Command, own_data: Path, build_image_tree: Callable[..., Path], tmp_path: Path
) -> None:
    tree = build_image_tree(tmp_path / "others", train=20, val=7, seed=1)
    prepare("image_folder", root=own_data.parent.parent, source=tree, save_as="tiny", force=True)
    said = neuscale("runs", "replay", "done")
    assert said.code == 2
    assert "was trained on other data" in said.err
    found = replay(neuscale, "done", "--force")
    assert [change["area"] for change in found["changed"]] == ["data"]


def test_what_changed_when_a_run_went_on_is_told(neuscale: Command, done: Path) -> None:
    assert neuscale("train", "--resume", "done", "train.epochs=4", "run.device=cpu").code == 0
    resumed = read_manifest(done / "manifest.json")["resumed"]
    assert resumed[0]["step"] == 15
    assert [(c["what"], c["before"], c["now"]) for c in resumed[0]["changed"]] == [("train.epochs", 3, 4)]
    said = neuscale("runs", "replay", "done")
    assert "resumed at step 15 with another config (config: train.epochs 3 → 4)" in said.words


def test_a_configuration_changed_by_hand_does_not_hold(neuscale: Command, done: Path) -> None:
    file = done / "config.yaml"
    file.write_text(file.read_text().replace("weight_decay: ", "weight_decay: 0.9 # "))
    said = neuscale("runs", "replay", "done")
    assert said.code == 0
    assert "config.yaml says optim.weight_decay=0.9, which is not what was trained" in said.words


def test_data_whose_source_is_gone_are_those_that_are_prepared(
    neuscale: Command, runs: Path, build_image_tree: Callable[..., Path], tmp_path: Path
) -> None:
    """The prepared data is enough, for example if the image archive was deleted a year later."""
    tree = build_image_tree(tmp_path / "gone", train=20, val=7)
    words = ["data=image_folder", "data.name=gone", f"data.source={tree}", "train.global_batch_size=12"]
    model = ["model.embed_dim=8", "model.depths=[1,1]", "model.num_heads=[1,1]", "model.patch_size=2"]
    words += [*model, "model.window_size=2", "run.device=cpu", "run.name=old", "train.epochs=1"]
    assert neuscale("train", *words).code == 0
    shutil.rmtree(tree)
    assert neuscale("eval", "old").code == 0
    found = replay(neuscale, "old")
    assert (found["equal"], found["changed"]) == (True, [])
    assert neuscale("runs", "report", "old").err == ""


def test_two_processes_are_replayed_with_two(neuscale: Command, train: Command, runs: Path) -> None:
    assert train("train.epochs=1", "run.name=two", "--processes", "2").code == 0
    found = replay(neuscale, "two")
    assert (found["equal"], found["changed"]) == (True, [])
    assert read_manifest(runs / "two-replay" / "manifest.json")["machine"]["processes"] == 2


def test_a_run_of_an_older_version_is_replayed(neuscale: Command, done: Path) -> None:
    """Its manifest has no configuration and no hash: config.yaml and the last checkpoint are used instead."""
    new = read_manifest(done / "manifest.json")
    kept = ("command", "started", "status", "neuscale", "image", "python", "precision", "seed", "data")
    old = {name: new[name] for name in (*kept, "ended", "loader")}
    old["code"] = {name: new["code"][name] for name in ("revision", "changed")} if new["code"] else None
    old["packages"] = {"torch": new["packages"]["torch"], "timm": None}
    old["machine"] = {name: new["machine"][name] for name in ("system", "device", "processes")}
    old["ops"] = {name: new["ops"][name] for name in ("kind", "reason")}
    old["resumed"] = []
    old["result"] = {n: v for n, v in new["result"].items() if not n.endswith("sha256")}
    write_manifest(done / "manifest.json", old)
    found = replay(neuscale, "done")
    assert (found["equal"], found["changed"]) == (True, [])


def test_with_nothing_to_compare_it_is_not_trained(neuscale: Command, done: Path, runs: Path) -> None:
    (done / "metrics.jsonl").unlink()
    shutil.rmtree(done / "checkpoints")
    manifest = read_manifest(done / "manifest.json")
    write_manifest(done / "manifest.json", manifest | {"result": None})
    said = neuscale("runs", "replay", "done")
    assert said.code == 2
    assert "has nothing to compare with: no curves, no checkpoint" in said.err
    assert [path.name for path in runs.iterdir()] == ["done"]


def test_weights_are_compared_where_the_curves_are_equal(neuscale: Command, done: Path) -> None:
    shutil.copytree(done, done.with_name("other"))
    manifest = read_manifest(done / "manifest.json")
    manifest["result"]["weights_sha256"] = "0" * 64
    write_manifest(done / "manifest.json", manifest)
    assert "the weights after step 15 differ" in neuscale("runs", "compare", "done", "other").out


def test_the_first_step_of_curves_that_part_is_named(neuscale: Command, done: Path) -> None:
    other = done.with_name("other")
    shutil.copytree(done, other)
    lines = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 15, 15]
    lines[1]["loss"] = float(np.nextafter(lines[1]["loss"], 9))
    (other / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = neuscale("runs", "compare", "done", "other")
    assert "differs first at step 10: validation loss" in said.out
    assert "the one before is equal" in said.out
