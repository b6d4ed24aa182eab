"""Frozen command line: the options of each command, their defaults and their minimum values."""

import inspect
import typing
from typing import Any

import pytest

from neuscale.cli import run

from .options import commands, options_of

JSON = {"--json": False}
# Option: its default, or (default, minimum) for a number.
COMMANDS: dict[str, dict[str, Any]] = {
    "init": {},
    "train": {
        "--gpus": (None, 0),
        "--processes": (None, 1),
        "--resume": False,
        "--checkpoint": None,
        "--config": None,
        "--print-config": False,
        **JSON,
    },
    "sweep": {
        "--name": None,
        "--random": (None, 1),
        "--seed": (0, 0),
        "--jobs": (None, 1),
        "--resume": False,
        "--dry-run": False,
        **JSON,
    },
    "eval": {
        "--checkpoint": "best",
        "--split": "val",
        "--weights": "auto",
        "--tta": "none",
        "--corruptions": False,
        "--latency": None,
        "--reliability": None,
        "--limit": (None, 1),
        "--gpus": (None, 0),
        "--processes": (None, 1),
        **JSON,
    },
    "predict": {
        "--checkpoint": "best",
        "--weights": "auto",
        "--top": (3, 1),
        "--device": "auto",
        "--csv": None,
        "--picture": None,
        **JSON,
    },
    "export": {
        "--to": "required",
        "--output": None,
        "--checkpoint": "best",
        "--weights": "auto",
        "--force": False,
        "--opset": None,
        "--precision": "fp32",
        "--max-accuracy-drop": (5.0, 0),
        **JSON,
    },
    "serve": {
        "--checkpoint": "best",
        "--weights": "auto",
        "--device": "auto",
        "--host": "127.0.0.1",
        "--port": (8000, 0),
        "--max-batch": (32, 1),
        "--max-megabytes": (20.0, 0.001),
        "--timeout": (30.0, 0.1),
    },
    "submit": {
        "--nodes": (1, 1),
        "--gpus": (None, 0),
        "--gpu-type": None,
        "--processes": (None, 1),
        "--cpus": (None, 1),
        "--mem": None,
        "--time": "8h",
        "--lead": "5m",
        "--partition -p": None,
        "--account -A": None,
        "--sif": None,
        "--venv": False,
        "--site": None,
        "--sbatch": None,
        "--dry-run": False,
    },
    "doctor": {"--cluster": False, **JSON},
    "data list": JSON,
    "data prepare": {
        "--source": None,
        "--size": None,
        "--save-as": None,
        "--layout": "packed",
        "--force": False,
        "--skip-bad": False,
        **dict.fromkeys(("--fit", "--val-share", "--folds", "--fold", "--split-seed", "--nested")),
        **dict.fromkeys(("--labels", "--image-column", "--label-column", "--split-column")),
        **dict.fromkeys(("--multi-label", "--label-separator", "--label-columns")),
        **dict.fromkeys(("--encoding", "--value-range")),
        **JSON,
    },
    "data verify": JSON,
    "data check": {
        **dict.fromkeys(("--run", "--page", "--val-share", "--nested", "--labels", "--image-column")),
        **dict.fromkeys(("--label-column", "--split-column", "--encoding", "--value-range")),
        **dict.fromkeys(("--multi-label", "--label-separator", "--label-columns")),
        **JSON,
    },
    "data info": {"--picture": None, **JSON},
    "data stage": {"--to": None, **JSON},
    "runs list": {"--sort": "started", **JSON},
    "runs show": JSON,
    "runs compare": {"--png": None, **JSON},
    "runs replay": {"--force": False, **JSON},
    "runs report": {"--output": None, "--checkpoint": None},
    "runs prune": {"--failed": False, "--yes": False, **JSON},
    "bench ops": {"--device": "auto", "--rounds": (9, 3), "--only": "", **JSON},
    "bench step": {
        "--device": "auto",
        "--precision": "bf16",
        "--batch": (64, 1),
        "--rounds": (5, 1),
        "--compile": True,
        **JSON,
    },
}


def test_the_commands_are_these() -> None:
    assert set(commands()) == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_options_of_a_command_are_these(name: str) -> None:
    found: dict[str, Any] = {}
    command = commands()[name]
    hints = typing.get_type_hints(inspect.unwrap(command.callback), include_extras=True)
    for param in options_of(command):
        value = "required" if param.required else param.default
        declared = hints[param.name].__metadata__[0]  # typer.Option(…)
        assert declared.max is None
        if declared.min is not None:
            value = (value, declared.min)
        found[" ".join(param.opts)] = value
    assert found == COMMANDS[name]


@pytest.mark.parametrize(
    ("name", "option", "least"),
    [
        (name, option.split()[0], value[1])
        for name, options in COMMANDS.items()
        for option, value in options.items()
        if isinstance(value, tuple)
    ],
)
def test_a_number_below_the_least_is_bad_usage(
    name: str, option: str, least: int, capfd: pytest.CaptureFixture[str]
) -> None:
    needed = {"eval": ["some"], "predict": ["some", "image.png"]}.get(name, [])
    assert run([*name.split(), *needed, option, str(least - 1)]) == 2
    assert f"'{option}'" in capfd.readouterr().err


def test_version_and_debug_are_options_of_all(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from neuscale import __version__

    assert run(["--version"]) == 0
    assert capfd.readouterr().out == f"neuscale {__version__}\n"
    monkeypatch.delenv("NEUSCALE_DEBUG", raising=False)
    for words, shown in (([], False), (["--debug"], True)):
        with monkeypatch.context() as patch:
            patch.setenv("NEUSCALE_DEBUG", "")  # undoes what the command sets
            assert run(["train", "no.such=field", *words]) == 2
        assert ("Traceback" in capfd.readouterr().err) == shown
