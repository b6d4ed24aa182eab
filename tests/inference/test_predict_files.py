"""`predict` gives the results of a plain forward pass over the files, each with its own file."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from torch import Tensor

from conftest import ListeningProgress
from neuscale.data.sources import file_tree
from neuscale.inference.classifier import Preprocessing
from neuscale.inference.predict import Prediction, Unreadable, find_images, predict, prediction_grid
from neuscale.inference.restore import restore
from neuscale.progress import Silent
from neuscale.runs.folder import RunFolder

from .conftest import ODD_CLASSES, Odd

Command = Callable[..., Any]
CPU = ["--device", "cpu"]


def best(logits: Tensor, top: int) -> list[list[tuple[str, Any]]]:
    """Likeliest classes of each row, and their probabilities within 1e-5."""
    values = np.exp(logits.numpy())
    shares = values / values.sum(1, keepdims=True)
    order = np.argsort(-shares, axis=1)[:, :top]
    return [
        [(ODD_CLASSES[i], pytest.approx(row[i], abs=1e-5)) for i in ranks]
        for ranks, row in zip(order, shares, strict=True)
    ]


def answers(said: Any) -> list[list[tuple[str, float]]]:
    return [[(p["class"], p["probability"]) for p in image["predictions"]] for image in said.json["images"]]


def test_the_classes_of_the_validation_files(command: Command, odd: Odd) -> None:
    said = command("predict", "odd", odd.tree / "val", *CPU, "--json")
    assert answers(said) == best(odd.split_logits(6, "ema"), 3)
    assert [image["file"] for image in said.json["images"]] == [str(file) for file in odd.files()]
    assert {name: said.json[name] for name in ("run", "step", "weights", "failed", "picture")} == {
        "run": "odd", "step": 6, "weights": "ema", "failed": [], "picture": None,
    }  # fmt: skip
    assert Path(said.json["checkpoint"]).name == "step-00000006"
    words = ["--checkpoint", "last", "--weights", "raw", "--top", 99, "--json"]
    said = command("predict", "odd", odd.tree / "val", *CPU, *words)
    assert answers(said) == best(odd.split_logits(9, "raw"), 7)
    assert (said.json["step"], said.json["weights"]) == (9, "raw")


def test_pictures_of_any_form_are_cut_in_the_middle_to_that_of_the_data(
    command: Command, odd: Odd, tmp_path: Path
) -> None:
    """For a 14×10 model, wide pictures lose their sides, and high ones top and bottom."""
    rows, columns = np.mgrid[0:40, 0:90]
    colours = np.stack([2 * columns, 5 * rows, 250 - 2 * columns], -1).clip(0, 255).astype(np.uint8)
    wide = Image.fromarray(colours)
    high = wide.crop((0, 0, 21, 40))
    alpha = wide.convert("RGBA")
    alpha.putalpha(Image.fromarray((columns % 2 * 255).astype(np.uint8)))
    gray = Image.fromarray(colours[..., 0])
    for name, picture in {"a": wide, "b": high, "c": alpha, "d": gray}.items():
        picture.save(tmp_path / f"{name}.png")

    def cut(picture: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
        return picture.convert("RGB").resize((14, 10), Image.Resampling.BICUBIC, box=box)

    middle = (17, 0, 73, 40)  # 56 of 90 columns
    lost = (40 - 21 / 1.4) / 2  # 15 of 40 rows remain
    expected = [cut(wide, middle), cut(high, (0, lost, 21, 40 - lost)), cut(wide, middle), cut(gray, middle)]
    said = command("predict", "odd", tmp_path, *CPU, "--top", 7, "--json")
    assert answers(said) == best(odd.logits(6, "ema", expected), 7)


def test_grayscale_is_the_weighted_mean_of_the_colours() -> None:
    made = Preprocessing(1, 2, 2, 2, [0.5], [0.25])
    picture = Image.new("RGB", (2, 2), (200, 100, 50))
    picture.putpixel((1, 0), (0, 0, 255))
    path = io.BytesIO()
    picture.save(path, "PNG")
    found = made.decode(path.getvalue())
    assert found.shape == (1, 2, 2)
    assert found[0].tolist() == [[124, 29], [124, 124]]  # 0.299 R + 0.587 G + 0.114 B


def test_each_answer_stands_by_its_own_file(
    command: Command, odd: Odd, tmp_path: Path, listening: ListeningProgress
) -> None:
    """Unreadable files shift no result: first and last in a batch of nine, and a whole batch of them."""
    del command
    files: list[Path | Unreadable] = list(odd.files())
    bad = {0: tmp_path / "gone.png", 8: odd.run / "config.yaml", **dict.fromkeys(range(9, 18), tmp_path)}
    for place, path in bad.items():
        files[place] = path
    files[20] = Unreadable(tmp_path / "empty", "there is nothing")
    restored = restore(RunFolder(odd.run), "best", "auto", "cpu", Silent(), stage=False)
    expected = best(odd.split_logits(6, "ema"), 2)
    with listening.task("predicting", len(files), "img") as task:
        found = list(predict(restored, files, 2, task))
    assert task.done == 29
    for place, answer in enumerate(found):
        if place in bad or place == 20:
            assert isinstance(answer, Unreadable)
            assert answer.file == (bad[place] if place in bad else tmp_path / "empty")
        else:
            assert isinstance(answer, Prediction)
            assert (answer.file, answer.top) == (files[place], expected[place])
            pixels = np.asarray(Image.open(odd.files()[place])).transpose(2, 0, 1)
            assert np.array_equal(answer.pixels, pixels)
    for count in (1, 9, 10):
        with listening.task("predicting", count, "img") as task:
            assert [a.file for a in predict(restored, odd.files()[:count], 1, task)] == odd.files()[:count]
    assert not restored.model.training


def test_a_file_that_is_far_too_large_is_not_read(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(file_tree.MAX_MEMBER_BYTES + 1)
    read = Path.read_bytes
    monkeypatch.setattr(
        Path, "read_bytes", lambda path: pytest.fail("read") if path.name == "huge.png" else read(path)
    )
    said = command("predict", "odd", tmp_path / "huge.png", *CPU, "--json")
    assert said.code == 1
    assert "huge.png: 268 MB for one file is out of all proportion" in said.words


def test_files_stand_in_the_order_given_and_folders_are_sorted(tmp_path: Path) -> None:
    for name in (
        "in/b/2.PNG",
        "in/b/10.jpeg",
        "in/a.webp",
        "in/.hidden/x.png",
        "in/z.png",
        "in/notes.txt",
        "z.data",
        "y.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "other").symlink_to(tmp_path / "linked")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "c.bmp").touch()
    given = [tmp_path / "z.data", tmp_path / "in", tmp_path / "y.png", tmp_path / "z.data"]
    names = [
        "z.data",
        "in/a.webp",
        "in/b/10.jpeg",
        "in/b/2.PNG",
        "in/other/c.bmp",
        "in/z.png",
        "y.png",
        "z.data",
    ]
    assert find_images(given) == [tmp_path / name for name in names]


def test_csv_has_a_line_for_each_file_in_order(command: Command, odd: Odd, tmp_path: Path) -> None:
    files = [odd.files()[i] for i in (28, 3, 11)]
    said = command("predict", "odd", *files, *CPU, "--top", 3, "--csv", tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["file"] + [f"{column}_{i}" for i in (1, 2, 3) for column in ("class", "probability")]
    logits = odd.split_logits(6, "ema")[[28, 3, 11]]
    for line, path, top in zip(lines, files, best(logits, 3), strict=True):
        assert line[0] == str(path)
        assert [(name, float(share)) for name, share in zip(line[1::2], line[2::2], strict=True)] == top
        assert all(len(share.partition(".")[2]) == 6 for share in line[2::2])
    assert "3 images predicted, in" in said.out
    assert command("predict", "odd", files[0], *CPU, "--top", 99, "--csv", tmp_path / "all.csv").code == 0
    with (tmp_path / "all.csv").open(newline="") as file:
        assert [len(line) for line in csv.reader(file)] == [15, 15], "seven classes, and no more columns"


def test_the_table_names_the_likeliest_class_and_then_the_others(command: Command, odd: Odd) -> None:
    out = command("predict", "odd", odd.files()[4], odd.files()[17], *CPU).out
    assert "odd, step-00000006" in out
    logits = odd.split_logits(6, "ema")[[4, 17]].softmax(1)
    for file, shares in zip((odd.files()[4], odd.files()[17]), logits, strict=True):
        (first, second, third), names = shares.topk(3)
        line = next(line for line in out.splitlines() if str(file) in line)
        cells = [cell.strip() for cell in line.strip("│ ").split("│")]
        one, two, three = (ODD_CLASSES[i] for i in names.tolist())
        assert cells == [str(file), one, f"{first:.1%}", f"{two} {second:.1%}, {three} {third:.1%}"]


class Texts:
    """Fake ImageDraw that records each text with its position and colour."""

    def __init__(self) -> None:
        self.written: list[tuple[tuple[float, float], str, str]] = []

    def text(self, place: tuple[float, float], text: str, color: str, *_: Any, anchor: str) -> None:
        assert anchor == "ma"
        self.written.append((place, text, color))


@pytest.mark.parametrize(("side", "shown"), [((10, 14), (80, 112)), ((150, 200), (84, 112))])
def test_under_each_picture_stand_its_own_class_and_probability(
    monkeypatch: pytest.MonkeyPatch, side: tuple[int, int], shown: tuple[int, int]
) -> None:
    """Twelve pictures, ten in a row: small ones are enlarged eight times, large ones reduced."""
    texts = Texts()
    monkeypatch.setattr(ImageDraw, "Draw", lambda _: texts)
    made = [
        Prediction(
            Path(f"{i}.png"),
            [(f"class {i}", 0.05 * i), ("other", 0.01)],
            np.broadcast_to(np.array([20 * i, 0, 250], np.uint8)[:, None, None], (3, *side)),
        )
        for i in range(12)
    ]
    grid = np.asarray(prediction_grid(made))
    width, height = 112 + 2 * 2, shown[0] + 2 * 16 + 3 * 2
    assert grid.shape == (2 * height, 10 * width, 3)
    for i in range(12):
        top, left = i // 10 * height + 2, i % 10 * width + 2
        picture = grid[top : top + shown[0], left : left + shown[1]]
        assert (picture == [20 * i, 0, 250]).all()
        (name_at, name, name_color), (share_at, share, share_color) = texts.written[2 * i : 2 * i + 2]
        assert (name, name_color, share) == (f"class {i}", "black", f"{5 * i}.0%")
        assert share_color == ("black" if i >= 10 else "#a04000")
        assert name_at == (left + 56, top + shown[0] + 2)
        assert share_at == (left + 56, top + shown[0] + 2 + 16)
    assert (grid[:, -1] == 255).all(), "white between them"


def test_a_picture_shows_the_first_hundred_and_gray_as_gray(tmp_path: Path) -> None:
    gray = [Prediction(tmp_path, [("a", 0.9)], np.full((1, 4, 8), 77, np.uint8)) for _ in range(2)]
    grid = np.asarray(prediction_grid(gray))
    assert (grid[2 : 2 + 56, 2 : 2 + 112] == 77).all()
    assert grid.shape == (56 + 32 + 6, 2 * 116, 3)


def test_the_first_images_are_pictured_and_those_that_failed_are_not(
    command: Command, odd: Odd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neuscale.inference import predict as module

    drawn: list[list[Path]] = []

    def grid(predictions: list[Prediction]) -> Image.Image:
        drawn.append([prediction.file for prediction in predictions])
        return prediction_grid(predictions)

    monkeypatch.setattr(module, "prediction_grid", grid)
    assert module.MOST_SHOWN == 100
    monkeypatch.setattr(module, "MOST_SHOWN", 5)
    files = odd.files()[:8]
    said = command(
        "predict", "odd", tmp_path / "no.png", *files, *CPU, "--picture", tmp_path / "p.png", "--json"
    )
    assert said.code == 1
    assert drawn == [files[:5]]
    assert said.json["picture"] == str(tmp_path / "p.png")
    assert [item["file"] for item in said.json["failed"]] == [str(tmp_path / "no.png")]
    assert [image["file"] for image in said.json["images"]] == [str(file) for file in files]
