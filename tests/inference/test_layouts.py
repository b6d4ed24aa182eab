"""Prediction and export preprocess like validation, also images that are kept as files or are not square."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import TreeBuilder

from .conftest import MODEL

LAYOUTS = {
    "files": (["--layout", "files", "--size", "24"], ["data.workers=0"]),
    "files, another size": (["--layout", "files", "--size", "24"], ["data.workers=0", "data.image_size=16"]),
    "packed, cropped": (["--size", "16"], []),
    "packed, no squares": ([], ["data.image_size=16"]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_loss_is_that_of_validation(
    neuscale: Callable[..., Any],
    build_image_tree: TreeBuilder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    layout: str,
) -> None:
    monkeypatch.setenv("NEUSCALE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("NEUSCALE_RUNS", str(tmp_path / "runs"))
    tree = build_image_tree(tmp_path / "photos", train=8, val=5, size=(40, 24), suffix=".jpg")
    prepare, train = LAYOUTS[layout]
    said = neuscale("data", "prepare", "image_folder", "--source", tree, "--save-as", "photos", *prepare)
    assert said.code == 0, said.err
    words = ["train", "data=image_folder", "data.name=photos", *MODEL, "model.patch_size=2", *train]
    words += ["train.global_batch_size=8", "train.epochs=3", "run.device=cpu", "run.name=a"]
    said = neuscale(*words)
    assert said.code == 0, said.err

    expected = neuscale("eval", "a", "--json").json
    images = neuscale("predict", "a", tree / "val", "--top", 99, "--json").json["images"]
    losses = [
        -np.log(next(p["probability"] for p in image["predictions"] if p["class"] == true))
        for image in images
        for true in [Path(image["file"]).parent.name]
    ]
    assert len(losses) == expected["samples"] == 15
    assert np.mean(losses) == pytest.approx(expected["loss"], rel=1e-4)
    said = neuscale("export", "a", "--to", "torch", "--json")
    assert said.code == 0, said.err
    assert said.json["check"]["max_abs_difference"] < 1e-4
