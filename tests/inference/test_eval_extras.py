"""Corrupted images, latency and several processes use exactly the images and options that were asked for."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from neuscale import hardware
from neuscale.distributed import launch, rank
from neuscale.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from neuscale.evaluation.evaluate import FlipAveraged
from neuscale.evaluation.latency import Latency
from neuscale.inference import evaluate_run as run_module

from .conftest import Odd

Command = Callable[..., Any]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], int]]:
    """Arguments and number of processes of each launch; the fake launcher returns exit code 3."""
    started: list[tuple[list[str], int]] = []

    def launched(words: list[str], count: int) -> int:
        started.append((words, count))
        return 3

    monkeypatch.setattr(launch, "launch", launched)
    return started


def jpeg(picture: Image.Image, severity: int) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=(80, 65, 58, 50, 40)[severity - 1])
    return Image.open(buffer).convert("RGB")


def contrast(picture: Image.Image, severity: int) -> Image.Image:
    pixels = np.asarray(picture).astype(np.float32) / 255
    mean = pixels.mean((0, 1))
    changed = (pixels - mean) * np.float32((0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1]) + mean
    return Image.fromarray((changed.clip(0, 1) * 255).round().astype(np.uint8))


def test_corrupted_top1_is_of_the_corrupted_files(command: Command, odd: Odd, tmp_path: Path) -> None:
    """JPEG and contrast are recomputed from the files; the same noise is drawn again for each image."""
    words = ["--checkpoint", "last", "--weights", "raw", "--gpus", 0, "--corruptions", "--json"]
    found = command("eval", "odd", *words).json
    labels = odd.labels()
    originals = [Image.open(file).convert("RGB") for file in odd.files()]
    for kind, change in (("jpeg", jpeg), ("contrast", contrast)):
        expected = []
        for severity in SEVERITIES:
            guesses = odd.logits(9, "raw", [change(picture, severity) for picture in originals]).argmax(1)
            expected.append(float((guesses == labels).double().mean()))
        assert found["corruptions"][kind] == pytest.approx(expected), kind
    pixels = torch.from_numpy(np.stack([np.asarray(p).transpose(2, 0, 1) for p in originals]))
    noisy = corrupt(pixels, np.arange(29), "impulse_noise", 4, seed=0).numpy().transpose(0, 2, 3, 1)
    guesses = odd.logits(9, "raw", [Image.fromarray(image) for image in noisy]).argmax(1)
    assert found["corruptions"]["impulse_noise"][3] == pytest.approx(
        float((guesses == labels).double().mean())
    )
    assert len({tuple(row) for row in found["corruptions"].values()}) > 5
    assert list(found["corruptions"]) == list(CORRUPTIONS)
    assert found["corrupted_top1"] == pytest.approx(np.mean(list(found["corruptions"].values())))


def test_corruptions_of_a_limited_evaluation_are_of_the_same_images(
    command: Command, odd: Odd, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int, list[int]]] = []

    def watched(images: Tensor, samples: Any, kind: str, severity: int, seed: int) -> Tensor:
        assert seed == 0
        seen.append((kind, severity, samples.tolist()))
        return images

    monkeypatch.setattr(run_module, "corrupt", watched)
    found = command("eval", "odd", "--limit", 3, "--gpus", 0, "--corruptions", "--json").json
    assert seen == [(kind, severity, [0, 14, 28]) for kind in CORRUPTIONS for severity in SEVERITIES]
    assert found["corrupted_top1"] == pytest.approx(found["top1"])
    del odd


@pytest.mark.parametrize(("asked", "images"), [("3,1", 3), ("2,40,8", 29)])
@pytest.mark.parametrize("tta", ["none", "flip"])
def test_the_model_is_timed_on_images_of_the_split(
    command: Command, odd: Odd, monkeypatch: pytest.MonkeyPatch, asked: str, images: int, tta: str
) -> None:
    timed: list[tuple[nn.Module, Tensor, Any]] = []

    def measure(model: nn.Module, batch: Tensor, sizes: Any, *_: Any) -> list[Latency]:
        timed.append((model, batch, sizes))
        return [Latency(size, 20, 1.0, 2.0, 3.0) for size in sizes]

    monkeypatch.setattr(run_module, "measure_latency", measure)
    found = command("eval", "odd", "--latency", asked, "--tta", tta, "--gpus", 0, "--json").json
    sizes = [int(size) for size in asked.split(",")]
    assert [row["batch_size"] for row in found["latency"]] == sizes
    ((model, batch, given),) = timed
    assert list(given) == sizes
    assert isinstance(model, FlipAveraged) == (tta == "flip")
    expected = odd.model_input([Image.open(file) for file in odd.files()[:images]])
    assert torch.allclose(batch, expected, atol=1e-4)


def test_a_batch_that_does_not_fit_is_named(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(run_module, "measure_latency", full)
    said = command("eval", "odd", "--latency", "8,5000,1", "--gpus", 0)
    assert said.code == 2
    assert "a batch of 5,000 does not fit into the device's memory" in said.words


def test_every_option_reaches_the_processes(
    command: Command,
    odd: Odd,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    started: list[tuple[list[str], int]],
) -> None:
    """The arguments of the processes, run in one process, give the same output as the options do."""
    diagram = tmp_path / "d.png"
    options = ["--checkpoint", "last", "--split", "train", "--weights", "raw", "--tta", "flip", "--limit", 11]
    options += ["--corruptions", "--reliability", diagram]
    expected = command("eval", "odd", *options, "--gpus", 0, "--json")
    assert expected.code == 0, expected.err
    diagram.unlink()
    assert command("eval", "odd", *options, "--processes", 3, "--json").out == ""
    assert command("eval", "odd", *options, "--processes", 3).code == 3, "that of the processes"
    assert [count for _, count in started] == [3, 3]
    monkeypatch.setattr(rank, "started_by_launcher", lambda: True)
    with_json, as_table = (words for words, _ in started)
    assert with_json == [*as_table, "--json"]
    assert with_json[-3:-1] == ["--processes", "3"]
    assert command(*with_json).out == expected.out
    assert diagram.is_file()
    found = expected.json
    assert (found["samples"], found["step"], found["weights"]) == (11, 9, "raw")
    assert (found["split"], found["tta"], "corruptions" in found) == ("train", "flip", True)
    del odd


def test_gpus_are_counted_before_processes_are_started(
    command: Command, monkeypatch: pytest.MonkeyPatch, started: list[tuple[list[str], int]]
) -> None:
    counted: list[int] = []
    monkeypatch.setattr(hardware, "check_gpus", counted.append)
    assert command("eval", "odd", "--gpus", 2).code == 3
    ((words, count),) = started
    assert (words[-2:], count, counted) == (["--gpus", "2"], 2, [2])
    for option, expected in (
        ("--weights", "auto"),
        ("--checkpoint", "best"),
        ("--split", "val"),
        ("--tta", "none"),
    ):
        assert words[words.index(option) + 1] == expected
    assert not {"--limit", "--corruptions", "--reliability", "--json"} & set(words)
