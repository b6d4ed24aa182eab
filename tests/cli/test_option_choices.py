"""Allowed values of text options, and options that contradict each other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# (command up to an option, values of the option, part of the error message)
CHOICES = [
    ("eval some --split", "train val test", "expected train, val or test."),
    ("eval some --tta", "none flip", "expected none or flip."),
    ("eval some --weights", "auto raw ema", "expected auto, raw or ema."),
    ("predict some image.png --weights", "auto raw ema", "expected auto, raw or ema."),
    ("predict some image.png --device", "auto cpu cuda mps", "expected auto, cpu, cuda or mps."),
    ("export some --to torch --weights", "auto raw ema", "expected auto, raw or ema."),
    ("export some --to", "safetensors torch onnx openvino", "torch, onnx, openvino or hub:OWNER/NAME."),
    ("data prepare image_folder --layout", "packed files folder", "expected packed, files or folder."),
    ("runs list --sort", "started name state experiment top1 loss time speed size", "--sort other: expected"),
]
BENCH = [
    ("bench ops --device", "expected auto, cpu or cuda."),
    ("bench step --device", "expected auto, cpu, cuda or mps."),
    ("bench step --precision", "expected fp32, bf16 or fp16."),
]
CONTRADICTIONS = [
    ("sweep --resume --name s", "--resume continues a sweep as it was started."),
    ("sweep --resume --random 2", "--resume continues a sweep as it was started."),
    ("sweep --resume run.seed=0,1", "--resume continues one sweep"),
    ("sweep --resume one two", "--resume continues one sweep"),
    ("predict some image.png --csv a.csv --json", "--csv and --json contradict each other."),
    ("data prepare image_folder --layout folder --size 8", "--size and --layout folder do not go together."),
    (
        "data prepare image_folder --layout folder --skip-bad",
        "--skip-bad and --layout folder do not go together.",
    ),
    ("train --processes 2 run.device=cuda", "--processes and run.device=cuda contradict each other."),
    ("train --gpus 0 run.device=cuda", "--gpus 0 and run.device=cuda contradict each other."),
    ("runs compare one", "compare takes two runs or more."),
]


@pytest.mark.parametrize(("words", "choices", "says"), CHOICES, ids=[words for words, _, _ in CHOICES])
def test_an_option_takes_its_choices_and_no_other(
    words: str, choices: str, says: str, neuscale: Callable[..., Any], runs: Path
) -> None:
    said = neuscale(*words.split(), "other")
    option = words.split()[-1]
    assert said.code == 2
    assert f"error: {option} other: " in said.words
    assert says in said.words
    for choice in choices.split():  # accepted: the error is then about the missing run or source
        assert f"{option} {choice}:" not in neuscale(*words.split(), choice).words
    assert not runs.exists()


@pytest.mark.parametrize(("words", "says"), BENCH, ids=[words for words, _ in BENCH])
def test_a_measurement_of_what_there_is_not_is_refused(
    words: str, says: str, neuscale: Callable[..., Any]
) -> None:
    said = neuscale(*words.split(), "other")
    assert (said.code, said.words) == (2, f"error: {words.split()[-1]} other: {says}")


@pytest.mark.parametrize(("words", "says"), CONTRADICTIONS, ids=[words for words, _ in CONTRADICTIONS])
def test_options_that_contradict_each_other_are_refused(
    words: str, says: str, neuscale: Callable[..., Any], runs: Path
) -> None:
    said = neuscale(*words.split())
    assert said.code == 2
    assert f"error: {says}" in said.words
    assert not runs.exists()
