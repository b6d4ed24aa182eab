"""Formatting of numbers in progress, data info and doctor, and of NaN and infinity in JSON."""

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.progress import Progress as RichProgress

from conftest import Said, TreeBuilder
from neuscale.cli import console, progress
from neuscale.cli.doctor import _words
from neuscale.cli.progress import Bars, Lines, _part
from neuscale.data.formats.packed import PackedDataset
from neuscale.data.prepare import prepare
from neuscale.units import duration, quantity

Command = Callable[..., Said]


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (999.4, "999 B"),
        (1000, "1 kB"),
        (12_345, "12 kB"),
        (999_000, "999 kB"),
        (1_000_000, "1 MB"),
        (999_000_000, "999 MB"),
        (1_000_000_000, "1.0 GB"),
        (123_456_000_000, "123.5 GB"),
    ],
)
def test_bytes_are_scaled_by_thousands(count: float, words: str) -> None:
    assert quantity(count, "B") == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(59.4, "59 s"), (61, "1 min 1 s"), (3600, "1 h 0 min"), (3661, "1 h 1 min"), (90_061, "25 h 1 min")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_part_of_a_whole() -> None:
    assert _part(1500, 20_000, "img") == "1,500 of 20,000 img"
    assert _part(1500, 20_000, "B") == "2 kB of 20 kB"
    assert _part(1500, None, "img") == "1,500 img"


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: seconds[0])
    return seconds


def test_lines_tell_the_speed_since_the_beginning_and_what_is_left(
    now: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Lines().task("training", 40_000, "img") as task:
        now[0] += 4
        task.advance(3000)  # less than 10 s: no line yet
        task.note("epoch 2 of 3, loss 1.234")
        now[0] += 8
        task.advance(3000)
    with Lines().task("short", 10, "img") as task:
        now[0] += 9.9
        task.advance(10)
    with Lines().task("copying", None, "B") as task:
        now[0] += 20
        task.advance(5_000_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "training: 6,000 of 40,000 img (15%), 500 img/s, 1 min 8 s left, epoch 2 of 3, loss 1.234",
        "training: 6,000 of 40,000 img (15%), 500 img/s, 1 min 8 s left, epoch 2 of 3, loss 1.234",
        "copying: 5 MB, 250 kB/s",
        "copying: 5 MB, 250 kB/s",
    ]


def test_a_bar_shows_its_share_its_speed_and_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(force_terminal=True, width=120, color_system=None, file=io.StringIO())
    monkeypatch.setattr(progress, "err", terminal)
    seconds = [0.0]
    made: list[RichProgress] = []
    real = RichProgress.__init__

    def begin(self: RichProgress, *columns: Any, **options: Any) -> None:
        real(self, *columns, **options, get_time=lambda: seconds[0], auto_refresh=False)
        made.append(self)

    monkeypatch.setattr(RichProgress, "__init__", begin)
    with Bars().task("training", 40_000, "img") as task:
        for _ in range(10):
            seconds[0] += 2.0
            task.advance(1000)
        task.note("loss 1.234")
        picture = Console(width=120, color_system=None)
        with picture.capture() as shown:
            picture.print(made[0].make_tasks_table(made[0].tasks))
        with Bars().task("copying", None, "B") as other:
            other.advance(7_000_000)
    words = shown.get().split()
    assert words[0] == "training"
    assert words[2:] == ["25%", "500", "img/s", "01:00", "loss", "1.234"]


def test_json_has_null_for_what_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    value = {
        "a": [1.5, float("nan"), {"b": float("inf")}],
        "c": -float("inf"),
        "d": "nan",
        "e": 10**20,
        "f": True,
    }
    console.print_json(value)
    out = capsys.readouterr().out
    assert json.loads(out) == {"a": [1.5, None, {"b": None}], "c": None, "d": "nan", "e": 10**20, "f": True}


@pytest.mark.parametrize(
    ("called", "program"),
    [
        (".venv/bin/neuscale", ".venv/bin/tensorboard"),
        ("/opt/bin/neuscale", "tensorboard"),
        ("neuscale", "tensorboard"),
        ("scripts/other.py", "tensorboard"),
    ],
)
def test_programs_are_called_as_this_one_was(
    monkeypatch: pytest.MonkeyPatch, called: str, program: str
) -> None:
    monkeypatch.setattr(sys, "argv", [called])
    assert console.beside("tensorboard") == program


def test_findings_in_words() -> None:
    assert (
        _words({"a": True, "b": False, "c": None, "d": ["x", {"e": 1.5}], "f": 0})
        == "a, c none, d x; e 1.5, f 0"
    )
    assert _words({"a": False}) == _words([]) == "none"


@pytest.fixture
def uneven(
    build_image_tree: TreeBuilder, tmp_path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Training: 5 cats, 2 dogs; validation: 1 cat, 3 dogs; images 9 high and 6 wide."""
    del runs
    tree = build_image_tree(tmp_path / "tree", classes=("cat", "dog"), train=5, val=3, size=(6, 9))
    for name in (
        "train/dog/0002.png",
        "train/dog/0003.png",
        "train/dog/0004.png",
        "val/cat/0001.png",
        "val/cat/0002.png",
    ):
        (tree / name).unlink()
    prepare("image_folder", root=tmp_path / "data", source=tree, save_as="uneven")
    monkeypatch.setenv("NEUSCALE_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "packed" / "uneven"


def test_info_has_the_numbers_of_the_data(uneven: Path, neuscale: Command) -> None:
    images = PackedDataset.open(uneven).images("train").astype(np.float64) / 255
    mean, std = images.mean((0, 2, 3)), images.std((0, 2, 3))
    found = neuscale("data", "info", "uneven", "--json").json
    assert found["images"] == {"train": 7, "val": 4}
    assert found["shape"] == [3, 9, 6]
    assert found["classes"] == {"cat": {"train": 5, "val": 1}, "dog": {"train": 2, "val": 3}}
    assert found["bytes"] == sum(path.stat().st_size for path in uneven.iterdir())
    assert found["mean"] == pytest.approx(list(mean), abs=1e-4)
    assert found["std"] == pytest.approx(list(std), abs=1e-4)

    said = neuscale("data", "info", "uneven")
    cells = [re.split(r"\s*[│┃]\s*", line.strip("│┃ ")) for line in said.out.splitlines()]
    rows = {row[0]: row[1:] for row in cells if len(row) > 1}
    assert rows["images"] == ["7 training, 4 validation"]
    assert rows["pixels"] == ["9×6, colour"]
    pairs = zip(mean, std, strict=True)
    assert rows["mean ± deviation"] == ["; ".join(f"{m:.3f} ± {s:.3f}" for m, s in pairs)]
    assert rows["where"] == [f"{uneven} ({quantity(found['bytes'], 'B')})"]
    assert rows["fingerprint"] == [found["fingerprint"][:16] + "…"]
    assert (rows["class"], rows["cat"], rows["dog"]) == (["training", "validation"], ["5", "1"], ["2", "3"])
    assert "2 classes" in said.out
