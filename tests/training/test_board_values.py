"""TensorBoard shows the values of metrics.jsonl, the training images and the true confusion matrix."""

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata as hparams_metadata
from torch import Tensor

from conftest import TINY_RECIPE
from neuscale.config import compose_config, config_to_yaml
from neuscale.data.formats.packed import PackedDataset
from neuscale.evaluation.calibration import Calibration
from neuscale.evaluation.evaluate import Evaluation
from neuscale.runs.folder import RunFolder
from neuscale.runs.metrics import TIMINGS
from neuscale.training.run import train
from neuscale.training.tracking.tensorboard import TensorBoard
from neuscale.training.tracking.tracker import Tracker, confusion_picture, hyperparameters

from .watched import Watched, watch

WORDS = ["train.epochs=2", "train.log_every_steps=2", "train.micro_batch=6", "tracking.sample_images=5"]
WORDS += ["run.name=board", "run.seed=3", "optim.lr=0.02", "experiment=quickstart"]


@pytest.fixture(scope="module")
def board(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunFolder, Watched]]:
    """Run of ten steps, and what it computed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEUSCALE_DATA", str(tiny_data))
        patch.setenv("NEUSCALE_RUNS", str(tmp_path_factory.mktemp("board")))
        watched = watch(patch)
        run = train(compose_config([WORDS[-1], *TINY_RECIPE, *WORDS[:-1]])).run
    yield run, watched


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0, "images": 0}).Reload()


def decoded(png: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def group(split: str, name: str) -> str:
    """Return the TensorBoard tag of a value."""
    if split == "val":
        return f"val/{name}"
    return f"speed/{name}" if name in TIMINGS else f"optim/{name}" if name == "lr" else f"train/{name}"


def test_every_number_of_the_curves_is_on_the_board_at_its_step(board: tuple[RunFolder, Watched]) -> None:
    run, _ = board
    expected: dict[str, list[tuple[int, float]]] = {}
    for text in run.metrics_file.read_text().splitlines():
        line = json.loads(text)
        split, step = line.pop("split"), line.pop("step")
        for name, value in line.items():
            expected.setdefault(group(split, name), []).append((step, value))
    found = events(run.path)
    names = {"train/loss", "train/accuracy", "optim/lr", "val/top1", "val/top5", "val/loss", "speed/tflops"}
    names |= {"val/balanced_accuracy", "val/macro_f1"}
    names |= {"speed/images_per_second", "speed/data_wait", "speed/memory_gb"}
    assert set(found.Tags()["scalars"]) == set(expected) == names
    for name, points in expected.items():
        shown = [(point.step, point.value) for point in found.Scalars(name)]
        assert [step for step, _ in shown] == [step for step, _ in points]
        assert [value for _, value in shown] == pytest.approx([value for _, value in points], rel=1e-6)
    assert len(expected["train/loss"]) == 5
    assert len(expected["val/top1"]) == 2


def test_the_first_images_are_shown_as_they_were_before_they_were_normalised(
    board: tuple[RunFolder, Watched], tiny_data: Path
) -> None:
    run, watched = board
    found = events(run.path)
    [shown] = found.Images("train/images")
    assert shown.step == 0
    grid = decoded(shown.encoded_image_string)
    assert grid.shape == (8 + 2, 5 * 9 + 1, 3), "five of 8×8 in a row, a pixel between them"
    meta = PackedDataset.open(tiny_data / "packed" / "tiny").meta
    mean, std = np.array(meta.mean), np.array(meta.std)
    assert len(set(meta.mean)) == len(set(meta.std)) == 3
    [images] = watched.images
    assert len(images) == 6, "those of the first micro-batch"
    for i in range(5):
        pixels = images[i].permute(1, 2, 0).double().numpy() * std + mean
        tile = grid[1:9, 1 + 9 * i : 9 + 9 * i]
        assert np.abs(tile - 255 * pixels).max() <= 1.01


def test_images_keep_their_brightness(tmp_path: Path) -> None:
    """Dull images stay dull: their values are not stretched to the full range."""
    mean, std = torch.tensor([0.5, 0.25, 0.125]), torch.tensor([0.5, 0.25, 2.0])
    images = torch.zeros(2, 3, 4, 5)
    images[1, :, 2, 3] = torch.tensor([-0.5, 1.0, 9.0])
    shown = TensorBoard(tmp_path, 0)
    shown.images("x", images, mean, std, 7)
    shown.close()
    [picture] = events(tmp_path).Images("x")
    grid = decoded(picture.encoded_image_string)
    assert (picture.step, grid.shape) == (7, (4 + 2, 2 * 6 + 1, 3))
    assert np.abs(grid[1:5, 1:6] - 255 * mean.numpy()).max() <= 1
    assert np.abs(grid[3, 10] - 255 * np.array([0.25, 0.5, 1.0])).max() <= 1


def test_the_configuration_stands_there_whole(board: tuple[RunFolder, Watched]) -> None:
    run, _ = board
    found = events(run.path)
    [text] = found.Tensors("config/text_summary")
    words = text.tensor_proto.string_val[0].decode()
    assert (text.step, words) == (0, f"<pre>{config_to_yaml(run.config())}</pre>")
    content = found.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    told = hparams_metadata.parse_session_start_info_plugin_data(content).hparams
    assert told["run.seed"].number_value == 3
    assert told["experiment"].string_value == "quickstart"
    assert told["train.micro_batch"].string_value == "6"


def test_hyperparameters_are_the_fields_that_tell_runs_apart() -> None:
    values = hyperparameters(compose_config(["run.seed=5", "model.depths=[2,1]", "train.patience=null"]))
    assert (values["run.seed"], values["model.depths"]) == (5, "[2, 1]")
    assert "train.patience" not in values
    sections = {name.partition(".")[0] for name in values} - {"experiment"}
    assert sections == {"data", "augment", "model", "optim", "train", "run"}
    assert all(isinstance(value, bool | int | float | str) for value in values.values())


# Rows are true classes: 6 of 8 cats are right; there are no dogs; 10 of 40 owls are taken for cats.
COUNTS = torch.tensor([[6, 2, 0], [0, 0, 0], [10, 0, 30]])
CLASSES = ["cat", "do|g", "owl"]


def drawn(
    monkeypatch: pytest.MonkeyPatch, counts: Tensor, classes: list[str], paint: bool = True
) -> tuple[Any, Tensor]:
    """Return the figure and its picture; `paint=False` skips the slow painting."""
    figures: list[matplotlib.figure.Figure] = []
    real = FigureCanvasAgg.draw

    def draw(canvas: Any) -> None:
        figures.append(canvas.figure)
        if paint:
            real(canvas)
        else:
            canvas.get_renderer()

    with monkeypatch.context() as patch:
        patch.setattr(FigureCanvasAgg, "draw", draw)
        picture = confusion_picture(counts, classes)
    return figures[0], picture


def test_the_picture_of_the_matrix_has_true_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    figure, picture = drawn(monkeypatch, COUNTS, CLASSES)
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    [image] = axes.images
    assert image.get_array().tolist() == [[0.75, 0.25, 0], [0, 0, 0], [0.25, 0, 0.75]]
    assert image.get_clim() == (0, 1)
    assert [text.get_text() for text in axes.get_xticklabels()] == CLASSES
    assert [text.get_text() for text in axes.get_yticklabels()] == CLASSES
    written = {text.get_text(): (*text.get_position(), text.get_color()) for text in axes.texts}
    assert written == {
        "6": (0, 0, "white"),
        "2": (1, 0, "black"),
        "10": (0, 2, "black"),
        "30": (2, 2, "white"),
    }
    assert picture.dtype == torch.uint8
    height, width = picture.shape[1:]  # within a pixel: versions of matplotlib round differently
    assert (height, width) == pytest.approx((100 * (3 + 0.45 * 3), 100 * (4 + 0.45 * 3)), abs=1)

    def color(row: float, column: float) -> int:
        """Return the red value at a cell of the matrix; it falls as the share grows."""
        x, y = axes.transData.transform((column, row))
        return int(picture[0, picture.shape[1] - 1 - round(y), round(x)])

    off = 0.35  # from the centre of a cell, to miss its number
    assert (
        color(0 - off, 0 - off) < color(0 - off, 1 - off) < color(0 - off, 2 - off) == color(1 - off, 1 - off)
    )
    assert color(2 - off, 0 - off) < 255 - 30
    assert color(0 - off, 2 - off) > 240, "no cat was taken for an owl"


def test_a_larger_matrix_has_no_figures_and_the_largest_no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for count, figures, names in ((12, True, True), (13, False, True), (40, False, True), (41, False, False)):
        counts = torch.eye(count, dtype=torch.int64) * 5
        classes = [f"class {i}" for i in range(count)]
        axes = drawn(monkeypatch, counts, classes, paint=False)[0].axes[0]
        assert bool(axes.texts) == figures, count
        assert ([text.get_text() for text in axes.get_yticklabels()] == classes) == names, count


def test_an_evaluation_on_the_board(tmp_path: Path) -> None:
    """The matrix is shown at its step, and the classes in a table, worst first; names may contain a '|'."""
    evaluation = Evaluation(0.75, 0.875, 1.5, 48, COUNTS, Calibration([], [], []))
    config = compose_config([])
    tracker = Tracker(RunFolder(tmp_path), config, CLASSES, 0, is_main=True)
    tracker.evaluation(15, evaluation)
    tracker.close()
    found = events(tmp_path)
    values = {name: found.Scalars(f"val/{name}")[0].value for name in ("top1", "top5", "loss")}
    assert values == {"top1": 0.75, "top5": 0.875, "loss": 1.5}
    [picture] = found.Images("val/confusion")
    assert picture.step == 15
    assert np.array_equal(
        decoded(picture.encoded_image_string), confusion_picture(COUNTS, CLASSES).permute(1, 2, 0)
    )
    [table] = found.Tensors("val/per_class/text_summary")
    assert table.step == 15
    assert table.tensor_proto.string_val[0].decode().splitlines() == [
        "| class | accuracy |",
        "|---|---|",
        "| cat | 75.0% |",
        "| owl | 75.0% |",
        "| do\\|g | no images |",
    ]
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "split": "val",
        "step": 15,
        "top1": 0.75,
        "top5": 0.875,
        "loss": 1.5,
        "balanced_accuracy": 0.75,
        "macro_f1": pytest.approx((12 / 24 + 0 / 2 + 60 / 70) / 3),
    }


def test_another_process_than_the_main_one_writes_nothing(tmp_path: Path) -> None:
    tracker = Tracker(RunFolder(tmp_path), compose_config([]), CLASSES, 0, is_main=False)
    tracker.train(5, {"loss": 1.0})
    tracker.evaluation(5, Evaluation(0.75, 0.875, 1.5, 48, COUNTS, Calibration([], [], [])))
    tracker.close()
    assert list(tmp_path.iterdir()) == []


def test_a_board_that_goes_on_has_one_text_and_loses_what_lies_beyond(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, began = compose_config([]), time.time()
    for start, steps in ((0, (2, 4, 6)), (4, (6, 8))):
        # Event files are read in the order of the seconds in their names.
        monkeypatch.setattr(time, "time", lambda start=start: began + 10 * start)
        tracker = Tracker(RunFolder(tmp_path), config, CLASSES, start, is_main=True)
        for step in steps:
            tracker.train(step, {"loss": step + start / 10, "lr": 0.5, "mfu": 0.25})
        tracker.close()
    found = events(tmp_path)
    points = [(point.step, round(point.value, 5)) for point in found.Scalars("train/loss")]
    assert points == [(2, 2.0), (4, 4.0), (6, 6.4), (8, 8.4)]
    assert {name.partition("/")[0] for name in found.Tags()["scalars"]} == {"train", "optim", "speed"}
    assert len(found.Tensors("config/text_summary")) == 1
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == points
