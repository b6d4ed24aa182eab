"""Predictions of image files agree with validation, for any kind of file."""

import csv
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from neuscale.data.sources.decode import decode_image
from neuscale.data.sources.decoding import Decoding

from .conftest import Trained

Command = Callable[..., Any]


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_files_get_the_classes_that_validation_counts(
    neuscale: Command, trained: Trained, weights: str
) -> None:
    """Normalisation, crop and channel order are those of validation; others would silently cost accuracy."""
    expected = neuscale("eval", "done", "--weights", weights, "--checkpoint", "last", "--json").json
    said = neuscale(
        "predict", "done", trained.tree / "val", "--weights", weights, "--checkpoint", "last", "--json"
    )
    assert said.code == 0, said.err
    found = said.json
    assert (found["weights"], found["step"]) == (weights, expected["step"])
    files = [Path(image["file"]) for image in found["images"]]
    assert files == trained.val_files, "every file once, sorted"
    hits: dict[str, list[bool]] = {}
    loss = 0.0
    everything = neuscale(
        "predict", "done", trained.tree / "val", "--weights", weights, "--checkpoint", "last",
        "--top", "99", "--json",
    ).json  # fmt: skip
    for image in everything["images"]:
        shares = {p["class"]: p["probability"] for p in image["predictions"]}
        true = Path(image["file"]).parent.name
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
        hits.setdefault(true, []).append(image["predictions"][0]["class"] == true)
        loss -= float(np.log(shares[true]))
    assert loss / len(files) == pytest.approx(expected["loss"], rel=1e-4)
    assert {name: np.mean(right) for name, right in hits.items()} == pytest.approx(expected["per_class"])
    if os.environ.get("NEUSCALE_TEST_DATA"):  # on noise the model may predict one class for all images
        assert len({image["predictions"][0]["class"] for image in found["images"]}) > 1


def png(path: Path, image: Image.Image, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def test_any_picture_is_made_to_fit(neuscale: Command, trained: Trained, tmp_path: Path) -> None:
    """Large, wide, gray, 16-bit, transparent and CMYK images are decoded as by `prepare`."""
    photo = Image.open(trained.val_files[0]).convert("RGB")
    wide = photo.resize((320, 200))
    depth = Image.fromarray(np.asarray(photo.convert("L"), np.uint16) * 257)
    files = [
        png(tmp_path / "wide.png", wide),
        png(tmp_path / "wide.jpg", wide, quality=95),
        png(tmp_path / "gray.png", photo.convert("L")),
        png(tmp_path / "16bit.png", depth),
        png(tmp_path / "alpha.png", photo.convert("RGBA")),
        png(tmp_path / "cmyk.jpg", photo.convert("CMYK"), quality=100, subsampling=0),
    ]
    said = neuscale("predict", "done", *files, "--top", 99, "--json")
    assert said.code == 0, said.err
    found = [{p["class"]: p["probability"] for p in image["predictions"]} for image in said.json["images"]]
    for file, shares in zip(files, found, strict=True):
        prepared = Image.fromarray(decode_image(file.read_bytes(), Decoding((64, 64))))
        as_prepared = png(tmp_path / "prepared" / f"{file.name}.png", prepared)
        (again,) = neuscale("predict", "done", as_prepared, "--top", 99, "--json").json["images"]
        expected = {p["class"]: p["probability"] for p in again["predictions"]}
        assert shares == pytest.approx(expected, abs=1e-5), file.name
    assert found[2] == pytest.approx(found[3], abs=1e-5), "16 bits are the same gray"


def test_what_is_no_image_is_named_and_the_rest_predicted(
    neuscale: Command, trained: Trained, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    good = [shutil.copy(file, png(folder / f"b{i}.jpg", Image.new("L", (1, 1)))) for i, file in
            enumerate(trained.val_files[:3])]  # fmt: skip
    cut = trained.val_files[3].read_bytes()
    (folder / "a.jpg").write_bytes(cut[: len(cut) // 2])
    (folder / "c.png").write_text("hello")
    (folder / "notes.txt").write_text("not looked at: its name says that it is no image")
    (folder / ".hidden.jpg").write_text("")
    (folder / "deep").symlink_to(folder)
    (tmp_path / "empty").mkdir()
    said = neuscale("predict", "done", folder, tmp_path / "nope.jpg", tmp_path / "empty", "--json")
    assert said.code == 1
    assert [image["file"] for image in said.json["images"]] == [str(file) for file in good]
    reasons = {Path(item["file"]).name: item["reason"] for item in said.json["failed"]}
    assert list(reasons) == ["a.jpg", "c.png", "nope.jpg", "empty"]
    assert "cut short" in reasons["a.jpg"]
    assert reasons["c.png"] == "not an image, or its beginning is damaged"
    assert reasons["nope.jpg"] == "cannot be read (No such file or directory)"
    assert "no image file in this folder" in reasons["empty"]
    assert f"error: {folder / 'c.png'}: not an image, or its beginning is damaged." in said.words
    assert "Traceback" not in said.err


def test_nothing_is_written_where_there_is_no_image(neuscale: Command, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("hello")
    for option in (["--csv", tmp_path / "out.csv"], ["--picture", tmp_path / "out.png"], ["--json"]):
        said = neuscale("predict", "done", tmp_path / "x.png", *option)
        assert (said.code, said.out) == (1, "")
        assert "there is no image to predict" in said.words
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_csv_and_picture(neuscale: Command, trained: Trained, tmp_path: Path) -> None:
    files = trained.val_files
    csv_file, picture = tmp_path / "new" / "out.csv", tmp_path / "grid.png"
    said = neuscale(
        "predict", "done", trained.tree / "val", "--top", 2, "--csv", csv_file, "--picture", picture
    )
    assert said.code == 0, said.err
    assert f"{len(files)} images predicted" in said.out
    rows = list(csv.DictReader(io.StringIO(csv_file.read_text())))
    assert list(rows[0]) == ["file", "class_1", "probability_1", "class_2", "probability_2"]
    expected = neuscale("predict", "done", trained.tree / "val", "--json").json["images"]
    for row, image in zip(rows, expected, strict=True):
        assert row["file"] == image["file"]
        assert row["class_2"] == image["predictions"][1]["class"]
        assert float(row["probability_1"]) == pytest.approx(image["predictions"][0]["probability"], abs=1e-6)
    grid = np.asarray(Image.open(picture))
    shown = min(100, len(files))
    cell = (grid.shape[0] // -(-shown // 10), grid.shape[1] // 10)
    for i in (0, 11, shown - 1):
        top, left = i // 10 * cell[0] + 2, i % 10 * cell[1] + 2 + (112 - 64) // 2
        pixels = np.asarray(Image.open(files[i]).convert("RGB"))
        assert np.array_equal(grid[top : top + 64, left : left + 64], pixels)


def test_other_data_under_the_name_is_refused(
    neuscale: Command, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other data are refused; predictions would get class names that the model was not trained with."""
    monkeypatch.setenv("NEUSCALE_DATA", str(tmp_path))
    tree = tmp_path / "tree"
    for folder in (trained.tree / "train").iterdir():
        for split in ("train", "val"):
            png(tree / split / folder.name / "0.png", Image.new("RGB", (64, 64)))
    assert neuscale("data", "prepare", "image_folder", "--source", tree, "--save-as", "mine").code == 0
    said = neuscale("predict", "done", trained.val_files[0])
    assert said.code == 2
    assert "was trained on other data than what is now prepared as 'mine'" in said.words
