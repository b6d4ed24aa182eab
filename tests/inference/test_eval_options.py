"""Further measurements of `neuscale eval`: corruptions, calibration, mirrored images, latency, --limit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from .conftest import Trained

Command = Callable[..., Any]


def test_corruptions_cost_accuracy_and_the_same_on_two_processes(neuscale: Command) -> None:
    words = ["eval", "done", "--split", "train", "--limit", 120, "--corruptions", "--json"]
    found = neuscale(*words).json
    assert found["samples"] == 120
    assert len(found["corruptions"]) == 10
    rows = list(found["corruptions"].values())
    assert all(len(row) == 5 and all(0 <= share <= 1 for share in row) for row in rows)
    assert found["corrupted_top1"] == pytest.approx(np.mean(rows))
    assert found["corrupted_top1"] < found["top1"]
    assert neuscale(*words, "--processes", 2).json["corruptions"] == found["corruptions"]
    shown = neuscale("eval", "done", "--limit", 20, "--corruptions").out
    assert "gaussian noise" in shown
    assert "on corrupted images, the mean of all" in shown


def test_calibration_agrees_with_what_predict_says(
    neuscale: Command, trained: Trained, tmp_path: Path
) -> None:
    diagram = tmp_path / "new" / "reliability.png"
    found = neuscale("eval", "done", "--json", "--reliability", diagram).json
    images = neuscale("predict", "done", trained.tree / "val", "--json").json["images"]
    shares = np.array([image["predictions"][0]["probability"] for image in images])
    right = np.array([i["predictions"][0]["class"] == Path(i["file"]).parent.name for i in images])
    place = np.clip(np.ceil(shares * 15), 1, 15) - 1
    expected = sum(
        abs(shares[place == bin].sum() - right[place == bin].sum()) for bin in range(15)
    ) / len(shares)  # fmt: skip
    assert found["ece"] == pytest.approx(expected, abs=1e-4)
    assert len(found["calibration"]) == 15
    assert sum(bin["images"] for bin in found["calibration"]) == found["samples"]
    with Image.open(diagram) as image:
        assert image.format == "PNG"
    assert f"ECE {found['ece']:.2%}" in neuscale("eval", "done").out


def test_flipping_averages_an_image_and_its_mirror_image(
    neuscale: Command, trained: Trained, tmp_path: Path
) -> None:
    """Averaging the probabilities of images and files mirrored by hand gives the loss of --tta flip."""
    mirrored = tmp_path / "mirrored"
    for file in trained.val_files:
        target = mirrored / file.parent.name / f"{file.stem}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(file).convert("RGB").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(target)
    both = [
        neuscale("predict", "done", folder, "--top", 99, "--json").json["images"]
        for folder in (trained.tree / "val", mirrored)
    ]
    losses = []
    for here, there in zip(*both, strict=True):
        assert Path(here["file"]).stem == Path(there["file"]).stem
        true = Path(here["file"]).parent.name
        shares = [p["probability"] for i in (here, there) for p in i["predictions"] if p["class"] == true]
        losses.append(-np.log(np.mean(shares)))
    found = neuscale("eval", "done", "--tta", "flip", "--json").json
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert found["tta"] == "flip"
    assert found["loss"] != neuscale("eval", "done", "--json").json["loss"]
    assert "mirrored as well" in neuscale("eval", "done", "--tta", "flip").out


def test_latency(neuscale: Command) -> None:
    found = neuscale("eval", "done", "--latency", "1,16", "--limit", 5, "--json").json["latency"]
    assert [row["batch_size"] for row in found] == [1, 16]
    for row in found:
        assert 0 < row["median_ms"] <= row["p95_ms"]
        assert row["images_per_second"] == pytest.approx(row["batch_size"] / row["median_ms"] * 1000)
        assert row["passes"] >= 20
    assert found[1]["median_ms"] > found[0]["median_ms"]


def test_limit_spreads_over_the_split(neuscale: Command) -> None:
    """Images are spread over the split, whose files are sorted by class: the first would be of one class."""
    found = neuscale("eval", "done", "--limit", 10, "--json").json
    assert found["samples"] == 10
    assert sum(share is not None for share in found["per_class"].values()) > 2
    assert neuscale("eval", "done", "--limit", 10**6, "--json").json["top1"] == pytest.approx(
        neuscale("eval", "done", "--json").json["top1"]
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tta", "turn"], "--tta turn: expected none or flip"),
        (["--latency", "1,x"], "--latency 1,x: expected batch sizes such as 1,8,64"),
        (["--latency", "0"], "--latency 0: expected batch sizes"),
        (["--latency", "1", "--processes", "2"], "--latency times one process"),
    ],
)
def test_what_cannot_be(neuscale: Command, words: list[str], said: str) -> None:
    found = neuscale("eval", "done", *words)
    assert found.code == 2
    assert said in found.words
