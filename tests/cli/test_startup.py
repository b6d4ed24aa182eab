"""Help, lists and usage errors appear at once: they do not import torch, which takes seconds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from neuscale import __version__
from neuscale.cli import run

LIGHT = """
import contextlib, io, sys
from neuscale.cli import run
for words in {commands!r}:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        code = run(words.split())
    heavy = {{"torch", "torchvision", "accelerate", "matplotlib"}} & set(sys.modules)
    assert not heavy, (words, heavy)
    assert code in (0, 2), (words, code, out.getvalue())
"""
COMMANDS = [[], ["data"], ["data", "list"], ["data", "prepare"], ["data", "verify"]]
COMMANDS += [["train"], ["sweep"], ["eval"], ["predict"], ["export"], ["submit"], ["doctor"], ["runs"]]
COMMANDS += [["runs", name] for name in ("list", "show", "compare", "replay", "report", "prune")]


def test_help_lists_and_usage_errors_do_not_wait_for_torch(tmp_path: Path) -> None:
    commands = [" ".join([*words, "--help"]) for words in COMMANDS]
    commands += ["--version", "data list", "data list --json", "trian", "train --nope", "train --resume=x"]
    commands += [
        "train experiment=quikstart",
        "train model.nope=1",
        "train optim.lr=x",
        "train --print-config",
    ]
    commands += ["train --gpus 1 --processes 2", "train --resume nope", "eval nope", "eval x --split y"]
    commands += ["runs list", "runs list --json", "runs show x", "runs compare x y", "runs replay x"]
    commands += ["runs report x", "runs prune"]
    commands += ["predict nope x.png", "predict x y --weights z", "export nope --to onnx", "export x --to y"]
    commands += ["sweep run.seed=0,1 --dry-run", "sweep --resume", "sweep optim.nope=1,2"]
    subprocess.run(
        [sys.executable, "-c", LIGHT.format(commands=commands)],
        env=os.environ | {"NEUSCALE_DATA": str(tmp_path / "data"), "NEUSCALE_RUNS": str(tmp_path / "runs")},
        check=True,
    )


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_and_every_option_has_help(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*words, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Usage: neuscale")
    options = text.partition("Options:")[2].partition("Commands:")[0].strip().splitlines()
    commands = text.partition("Commands:")[2].strip().splitlines()
    for i, line in enumerate(lines := options + commands):
        if line.strip().startswith("-") or line in commands:
            following = lines[i + 1].strip() if i + 1 < len(lines) else ""
            described = len(line.strip().split("  ", 1)) == 2
            assert described or (following and not following.startswith("-")), line


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"neuscale {__version__}\n"
