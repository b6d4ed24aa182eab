"""Progress bars on a terminal, lines elsewhere; only results go to standard output."""

import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neuscale.cli.progress import create_progress
from neuscale.units import duration, quantity

from .conftest import TINY


def test_lines_where_there_is_no_terminal(train: Callable[..., Any]) -> None:
    said = train("train.epochs=2")
    assert "\x1b" not in said.out + said.err
    assert "\r" not in said.err
    assert "epoch 2: top-1" in said.err
    assert "epoch" not in said.out


def test_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The log of a job shows regular progress without being flooded."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with create_progress().task("training", 1000, "img") as task:
        for _ in range(50):
            now[0] += 1
            task.advance(20)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training: 200 of 1,000 img (20%), 20 img/s, 40 s left"
    assert 5 <= len(lines) <= 6
    assert lines[-1].startswith("training: 1,000 of 1,000 img (100%), 20 img/s")


def test_units() -> None:
    assert [quantity(n, "B") for n in (0, 999, 26_421_880, 2.5e9)] == ["0 B", "999 B", "26 MB", "2.5 GB"]
    assert quantity(1234567, "img") == "1,234,567 img"
    assert [duration(s) for s in (0, 59.6, 3599, 16672)] == ["0 s", "1 min 0 s", "59 min 59 s", "4 h 37 min"]


def test_bars_on_a_terminal_and_results_alone_on_standard_output(runs: Path) -> None:
    ours, theirs = pty.openpty()
    words = ["train", *TINY, "train.epochs=4", "run.name=bars", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "neuscale", *words],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "120"},
    )
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # Linux raises this when the other end is closed
        pass
    assert process.stdout is not None
    out = process.stdout.read()
    assert process.wait(60) == 0
    assert b"\x1b[" in shown
    assert "━".encode() in shown
    assert b"img/s" in shown
    assert b"evaluating" in shown
    assert b"\x1b" not in out
    assert out.startswith(b"{")
    assert out.rstrip().endswith(b"}")


@pytest.mark.parametrize("words", [["data", "list"], ["data", "list", "--json"]])
def test_a_reader_that_goes_and_one_that_was_never_there(runs: Path, words: list[str]) -> None:
    """A closed reader (`neuscale … | head -1`) or closed stdout (`neuscale … >&-`) causes no traceback."""
    command = " ".join([sys.executable, "-m", "neuscale", *words])
    for shell in (f"{command} | true", f"{command} >&-", f"{command} <&- >/dev/null"):
        # With buffered output, the usual case, the error appears only at the final flush.
        env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        done = subprocess.run(
            ["sh", "-c", shell], capture_output=True, text=True, timeout=60, check=False, env=env
        )
        assert done.stderr == "", shell


def test_tables_in_a_narrow_terminal_keep_the_names(runs: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "neuscale", "data", "list"],
        env=os.environ | {"COLUMNS": "50"},
        capture_output=True,
        text=True,
        check=True,
    )
    for name in ("fashion_mnist", "tiny_imagenet", "image_folder"):
        assert name in done.stdout
    assert max(map(len, done.stdout.splitlines()[1:])) <= 50  # the title is a path and may be longer
