"""Multi-label images, from a table to metrics, predictions and an exported model."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import neuscale as neuscale_api
from conftest import Said
from neuscale.data.formats.packed import PackedDataset
from neuscale.data.prepare import prepare
from neuscale.data.sources.options import SourceOptions
from neuscale.errors import UsageError

from .conftest import TINY

NAMES = ["black", "green", "red"]
Run = Callable[..., Said]


@pytest.fixture(scope="module")
def marks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data folder with 'marks': 8×8 images with a red upper half, a green lower half, both or neither."""
    folder = tmp_path_factory.mktemp("marks")
    random = np.random.default_rng(0)
    lines = ["image,label,split"]
    for i in range(120):
        red, green = i % 2, i // 2 % 2
        pixels = random.integers(40, 90, (8, 8, 3)).astype(np.uint8)
        pixels[:4, :, 0] += np.uint8(150 * red)
        pixels[4:, :, 1] += np.uint8(150 * green)
        labels = ["red"] * red + ["green"] * green + ["black"] * (not red and not green and i % 3 == 0)
        Image.fromarray(pixels).save(folder / f"{i:03}.png")
        lines.append(f"{i:03}.png,{' '.join(labels)},{'train' if i < 96 else 'val'}")
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    options = SourceOptions(labels=folder / "t.csv", label_separator=" ")
    prepare("image_folder", root=folder / "data", source=folder, options=options, save_as="marks")
    return folder


@pytest.fixture
def command(neuscale: Run, marks: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("NEUSCALE_DATA", str(marks / "data"))

    def run(*words: str) -> Said:
        if words[0] == "train" and "--resume" not in words:
            words = (*words, *TINY, "data.name=marks", "train.global_batch_size=24")
        return neuscale(*words)

    return run


def test_from_a_table_to_numbers_and_predictions(
    command: Run, runs: Path, marks: Path, tmp_path: Path
) -> None:
    said = command("train", "train.epochs=12", "optim.lr=3e-3", "run.name=a", "augment.mixup_alpha=0.2")
    assert said.code == 0, said.err
    assert "epoch 1: mAP " in said.err and "top-1" not in said.out
    result = json.loads((runs / "a" / "manifest.json").read_text())["result"]
    lines = [json.loads(line) for line in (runs / "a" / "metrics.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if line["split"] == "val"]
    assert result["best"] == {"metric": "map", "value": max(line["map"] for line in evaluations)}
    assert result["best_top1"] is None and result["last"]["map"] > 0.6

    found = command("eval", "a", "--checkpoint", "last", "--json").json
    for name in ("map", "loss", "macro_f1", "micro_f1", "exact"):
        assert found[name] == pytest.approx(result["last"][name], abs=1e-6)
    assert list(found["per_class"]) == NAMES and "ece" not in found
    shown = command("eval", "a", "--corruptions", "--tta", "flip").out
    assert "average precision" in shown and "mAP on corrupted images" in shown
    said = command("eval", "a", "--reliability", str(tmp_path / "r.png"))
    assert said.code == 2 and "--reliability is of images with one label" in said.err

    shown = command("runs", "list").out
    assert f"mAP {max(line['map'] for line in evaluations):.2%}" in shown
    assert command("runs", "list", "--json").json["runs"][0]["top1"] is None
    said = command("runs", "show", "a")
    assert said.code == 0, said.err
    last = evaluations[-1]
    assert f"step {last['step']:,}: mAP {last['map']:.2%}, loss {last['loss']:.4f}" in said.out
    page = tmp_path / "page.html"
    said = command("runs", "report", "a", "--output", str(page))
    assert said.code == 0 and "an image may have several labels" in said.err
    assert "Average precision of each class" in page.read_text() and "mAP" in page.read_text()

    files = [str(marks / f"{i:03}.png") for i in range(96, 120)]
    predictions = command("predict", "a", *files, "--checkpoint", "last", "--json").json["images"]
    data = PackedDataset.open(marks / "data" / "packed" / "marks")
    assert all(len(each["predictions"]) == 3 for each in predictions), "all classes have their probability"
    hits = 0
    truth = dict(zip(data.names("val"), data.labels("val"), strict=True))
    for each in predictions:
        chosen = {one["class"] for one in each["predictions"] if one["probability"] >= 0.5}
        right = data.meta.label_name(int(truth[Path(each["file"]).name]))
        hits += chosen == set(right.split(" + ")) - {"(none)"}
    assert hits / 24 == pytest.approx(found["exact"])
    assert command("predict", "a", *files, "--csv", str(tmp_path / "p.csv"), "--checkpoint", "last").code == 0
    with (tmp_path / "p.csv").open() as opened:
        rows = list(csv.DictReader(opened))
    for row, each in zip(rows, predictions, strict=True):
        shares = {one["class"]: one["probability"] for one in each["predictions"]}
        assert {name: float(row[f"probability_{name}"]) for name in NAMES} == pytest.approx(shares, abs=1e-6)
        assert row["labels"] == "|".join(name for name in NAMES if shares[name] >= 0.5)
    assert "labels" in command("predict", "a", files[0]).out


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_the_exported_model_and_its_card_say_several_labels(
    command: Run, runs: Path, marks: Path, kind: str
) -> None:
    assert command("train", "train.epochs=6", "optim.lr=3e-3", "run.name=a").code == 0
    said = command("export", "a", "--to", kind)
    assert said.code == 0 and "mAP" in said.out
    folder = runs / "a" / "export" / kind
    assert json.loads((folder / "model.json").read_text())["several_labels"] is True
    card = (folder / "README.md").read_text()
    assert "mAP **" in card and "sigmoids" in card and "softmax" not in card
    (folder / "image.png").write_bytes((marks / "099.png").read_bytes())  # red and green
    code = card.split("```python\n")[1].split("```")[0]
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    (predicted,) = command("predict", "a", str(marks / "099.png"), "--json").json["images"]
    shares = {one["class"]: one["probability"] for one in predicted["predictions"]}
    assert answer.stdout.strip() == str([name for name in NAMES if shares[name] >= 0.5])


def test_an_export_in_half_precision_is_measured_by_its_map(command: Run, tmp_path: Path) -> None:
    assert command("train", "train.epochs=1", "run.name=half").code == 0
    words = ["--to", "safetensors", "--precision", "bf16", "--output", str(tmp_path / "model"), "--json"]
    said = command("export", "half", *words, "--max-accuracy-drop", "100")
    assert said.code == 0, said.err
    measured, trained = said.json["measured"]["metrics"]["map"], said.json["metrics"]["map"]
    assert measured == pytest.approx(trained, abs=0.1)
    assert f"| mAP | {trained:.2%} | {measured:.2%}" in (tmp_path / "model" / "README.md").read_text()
    assert f"mAP {measured:.2%}" in command("export", "half", *words[:4], "--max-accuracy-drop", "100").out


def test_a_run_goes_on_from_a_checkpoint_to_the_same_bits(command: Run, runs: Path) -> None:
    words = ["augment.mixup_alpha=0.2", "train.class_weights=balanced", "train.focal_gamma=1"]
    words += ["eval.metric=micro_f1", "checkpoint.keep_last=9"]
    assert command("train", "train.epochs=3", "run.name=a", *words).code == 0
    before = json.loads((runs / "a" / "manifest.json").read_text())["result"]
    assert before["best"]["metric"] == "micro_f1"
    said = command("train", "--resume", "a", "--checkpoint", "step-00000004")
    assert said.code == 0, said.err
    after = json.loads((runs / "a" / "manifest.json").read_text())["result"]
    assert after["weights_sha256"] == before["weights_sha256"]
    assert (after["best"], after["last"]) == (before["best"], before["last"])


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("data.sampler=balanced", "an image of marks may be of several classes"),
        ("eval.metric=top5", "it is not known of images with several labels"),
    ],
)
def test_what_means_nothing_for_several_labels_is_refused(
    command: Run, runs: Path, word: str, words: str
) -> None:
    said = command("train", "run.name=a", word)
    assert said.code == 2 and words in said.err and not (runs / "a").exists()


def test_a_run_is_not_evaluated_on_data_of_the_other_kind(command: Run, tiny_data: Path) -> None:
    assert command("train", "train.epochs=1", "run.name=a").code == 0
    one = PackedDataset.open(tiny_data / "packed" / "tiny")
    with pytest.raises(UsageError, match="one has several labels an image and the other has one"):
        neuscale_api.evaluate("a", one)
    said = command("data", "check", "marks", "--run", "a")
    assert said.code == 2 and "looks for wrong single ones" in said.err
