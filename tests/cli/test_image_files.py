"""Data sets kept as image files: listed, shown, verified and trained on; same weights as packed data."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file

from .conftest import TINY


@pytest.fixture
def tree(build_image_tree: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEUSCALE_DATA", str(tmp_path / "data"))
    return build_image_tree(tmp_path / "photos", train=20, val=7, size=(22, 17), suffix=".jpg")


def test_files_are_listed_shown_checked_and_trained_on(
    neuscale: Callable[..., Any], runs: Path, tree: Path, tmp_path: Path
) -> None:
    said = neuscale(
        "data", "prepare", "image_folder", "--source", str(tree), "--layout", "files", "--size", "8"
    )
    assert said.code == 0, said.err
    assert "60 training and 21 validation images of 8×8 in 3 classes, listed" in " ".join(said.out.split())
    assert not (tmp_path / "data" / "packed").exists(), "nothing is packed"
    assert "listed: 60 + 21 images" in " ".join(neuscale("data", "list").out.split())
    found = neuscale("data", "info", "photos", "--picture", str(tmp_path / "grid.png"), "--json").json
    assert found["classes"]["owl"] == {"train": 20, "val": 7}
    assert Image.open(tmp_path / "grid.png").width > 300
    assert neuscale("data", "verify", "photos").code == 0
    staged = neuscale("data", "stage", "photos", "--to", str(tmp_path))
    assert staged.code == 2
    assert "kept as image files" in staged.words

    words = ["train", *TINY, "data.name=photos", "train.epochs=2", "data.workers=2"]
    said = neuscale(*words, "augment.resized_crop=0.5", "run.name=a")
    assert said.code == 0, said.err
    assert "loader files: photos is kept as image files" in said.words
    assert json.loads((runs / "a" / "manifest.json").read_text())["loader"]["kind"] == "files"
    assert neuscale("eval", "a").code == 0

    (tree / "train" / "cat" / "0003.jpg").unlink()
    said = neuscale("data", "verify", "photos", "--json")
    assert (said.code, said.json["damaged"]) == (1, ["train/cat/0003.jpg"])
    said = neuscale(*words, "run.name=b")
    assert said.code == 1
    assert "train/cat/0003.jpg: cannot be read" in said.words
    assert "Traceback" not in said.err


def test_every_loader_trains_the_same_weights(neuscale: Callable[..., Any], runs: Path, tree: Path) -> None:
    prepare = ["data", "prepare", "image_folder", "--source", str(tree), "--size", "8"]
    for layout in ("packed", "files"):
        assert neuscale(*prepare, "--layout", layout).code == 0
    weights = {}
    for loader in ("resident", "stream", "files"):
        words = ["train", *TINY, "data.name=photos", "train.epochs=2", "augment.mixup_alpha=0.4"]
        said = neuscale(*words, f"data.loader={loader}", f"run.name={loader}")
        assert said.code == 0, said.err
        assert f"loader {loader}: " in said.words
        [*_, last] = sorted((runs / loader / "checkpoints").glob("step-*"))
        weights[loader] = load_file(last / "model.safetensors")
    for loader in ("stream", "files"):
        for name, value in weights["resident"].items():
            assert value.equal(weights[loader][name]), f"{loader}: {name}"


def test_a_folder_is_listed_by_training_itself(neuscale: Callable[..., Any], runs: Path, tree: Path) -> None:
    words = ["train", *TINY, "data.name=mine", f"data.source={tree}", "data.loader=files", "data.workers=0"]
    for run in ("a", "b"):
        said = neuscale(*words, "data.image_size=8", "train.max_steps=2", f"run.name={run}")
        assert said.code == 0, said.err
    said = neuscale("train", *TINY, "data.name=tiny", "data.loader=files")
    assert said.code == 2
    assert "data.loader=files: the images of tiny are not kept as files" in said.words


def test_a_signal_to_all_processes_of_the_job_still_saves(
    neuscale: Callable[..., Any], start_endless: Callable[..., Any], tree: Path
) -> None:
    """A run still saves if a scheduler signals all its processes at once, DataLoader workers included."""
    prepare = ["data", "prepare", "image_folder", "--source", str(tree), "--size", "8", "--layout", "files"]
    assert neuscale(*prepare).code == 0
    process = start_endless("data.name=photos", "data.workers=2")
    os.killpg(process.popen.pid, signal.SIGTERM)
    said = process.end()
    assert said.code == 75, said.err
    assert "stopped by SIGTERM after step" in said.err
