"""`predict --csv`: allowed output files, and names that are not plain text."""

import csv
import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Said

from .conftest import Odd

Command = Callable[..., Said]
CPU = ["--device", "cpu"]


def rows(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


def test_standard_output_gets_the_lines_and_nothing_else(command: Command, odd: Odd) -> None:
    files = odd.files()[:3]
    for place in ("-", "/dev/stdout"):
        said = command("predict", "odd", *files, *CPU, "--csv", place)
        assert said.code == 0, said.err
        header, *lines = rows(said.out)
        assert header[0] == "file" and [line[0] for line in lines] == [str(file) for file in files]


def test_a_pipe_and_a_link_are_written_to_and_stay(command: Command, odd: Odd, tmp_path: Path) -> None:
    pipe, link, target = tmp_path / "pipe", tmp_path / "link.csv", tmp_path / "elsewhere" / "out.csv"
    os.mkfifo(pipe)
    link.symlink_to(target)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    assert command("predict", "odd", odd.files()[0], *CPU, "--csv", pipe).code == 0
    reader.join(20)
    assert pipe.is_fifo() and len(rows(read[0])) == 2
    assert command("predict", "odd", odd.files()[0], *CPU, "--csv", link).code == 0
    assert link.is_symlink() and rows(target.read_text()) == rows(read[0])


def test_a_folder_is_refused_and_a_reader_that_leaves_is_no_error(odd: Odd, tmp_path: Path) -> None:
    environment = os.environ | {"NEUSCALE_DATA": str(odd.data), "NEUSCALE_RUNS": str(odd.runs)}
    program = [sys.executable, "-m", "neuscale", "predict", "odd", str(odd.tree), *CPU, "--csv"]
    done = subprocess.run([*program, str(tmp_path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "Is a directory" in done.stderr and "Traceback" not in done.stderr
    command = " ".join([*program, "-", "|", "head", "-1"])
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("file,class_1") and "error" not in done.stderr


def test_a_name_that_is_no_text_or_a_formula_is_written_as_one(
    command: Command, odd: Odd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [b"caf\xe9.png", b"=1+1.png", b"-x.png", b"@a.png", b"+b.png", b"two\nlines.png", b"plain.png"]
    for name in names:
        Path(os.fsdecode(name)).write_bytes(odd.files()[0].read_bytes())
    said = command("predict", "odd", "--csv", "out.csv", *CPU, "--", *map(os.fsdecode, names))
    assert said.code == 0, said.err
    found = [line[0] for line in rows(Path("out.csv").read_text(encoding="utf-8"))[1:]]
    assert found == [
        "caf\\xe9.png",
        "'=1+1.png",
        "'-x.png",
        "'@a.png",
        "'+b.png",
        "two\nlines.png",
        "plain.png",
    ]
    for option in ([], ["--json"]):
        said = command("predict", "odd", *option, *CPU, "--", *map(os.fsdecode, names))
        assert said.code == 0 and "not foreseen" not in said.err, said.err
        assert "two\nlines" not in said.out
