"""Each mistake is one message with the problem, its location and the fix; exit code 2, nothing started."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

NOT_FOUND = [
    (["trian"], ["No such command 'trian'", "'train'"]),
    (["train", "--nope"], ["No such option", "--nope"]),
    (["train", "qickstart"], ["'qickstart' is not of the form field=value", "experiment=quickstart"]),
    (["train", "experiment=quikstart"], ["experiment=quikstart", "Did you mean 'quickstart'?"]),
    (["train", "model.embed_dims=8"], ["model.embed_dims", "Did you mean 'model.embed_dim'?"]),
    (["train", "train.epochs=many"], ["train.epochs=many", "expected a whole number"]),
    (["train", "train.epochs=0"], ["train.epochs=0", "at least 1"]),
    (["train", "train.precision=fp8"], ["train.precision=fp8", "bf16"]),
    (["train", "--processes", "0"], ["--processes", "1"]),
    (["train", "--gpus", "2", "--processes", "3"], ["--gpus and --processes contradict"]),
    (["train", "--gpus", "1", "run.device=cpu"], ["--gpus 1 and run.device=cpu contradict"]),
    (["train", "--resume", "one", "two"], ["one run, not one and two"]),
    (["train", "--resume", "nope"], ["nope: there is no such run in", "Runs there: none"]),
    (["eval", "nope"], ["nope: there is no such run in", "Runs there: none"]),
    (["eval", "last"], ["there are no runs yet", "neuscale train"]),
    (["eval", "last", "--split", "tset"], ["--split tset: expected train, val or test"]),
    (["data", "prepare", "fashion-mnist"], ["fashion-mnist", "Did you mean 'fashion_mnist'?"]),
    (["data", "prepare", "image_folder"], ["image_folder needs images", "--source"]),
    (["data", "verify", "a/b"], ["'a/b' cannot be the name"]),
]
MISFITS = [
    (["train.precision=fp16"], ["train.precision=fp16 needs a GPU", "bf16 or fp32"]),
    (["train.global_batch_size=1000"], ["=1000 is more than the 60 training images"]),
    (["model.patch_size=3"], ["image of 8 pixels does not divide into patches of 3"]),
    (["--processes", "5"], ["train.global_batch_size=12 does not divide into 5 processes", "_size=10"]),
    (["data.name=nope"], ["data.name=nope", "there: single, tiny", "--source FOLDER --save-as nope"]),
    (["run.name=a/b"], ["run.name=a/b", "letters, digits"]),
]


@pytest.mark.parametrize(("words", "parts"), NOT_FOUND, ids=lambda x: " ".join(x)[:40])
def test_mistyped(neuscale: Callable[..., Any], runs: Path, words: list[str], parts: list[str]) -> None:
    check(neuscale(*words), parts)
    assert not runs.exists()


@pytest.mark.parametrize(("words", "parts"), MISFITS, ids=lambda x: " ".join(x)[:40])
def test_what_does_not_go_together(
    train: Callable[..., Any], runs: Path, words: list[str], parts: list[str]
) -> None:
    check(train(*words), parts)
    assert not runs.exists() or not list(runs.iterdir()), "a run that never began is in the way of --resume"


def check(said: Any, parts: list[str]) -> None:
    assert said.code == 2, said.err
    for part in parts:
        assert part in said.words
    assert said.out == ""
    assert "Traceback" not in said.err
    assert len(said.err.strip().splitlines()) <= 4


@pytest.mark.parametrize(("there", "found"), [(0, "there is none"), (1, "there is 1"), (2, "there are 2")])
@pytest.mark.parametrize("command", ["train", "eval"])
def test_fewer_gpus_than_asked_for(
    neuscale: Callable[..., Any],
    done: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    there: int,
    found: str,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: there > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: there)
    said = neuscale(command, *(["done"] if command == "eval" else []), "--gpus", "4")
    assert said.code == 2
    assert f"4 GPUs asked for, and {found} that can be used here" in said.words
    assert [path.name for path in done.parent.iterdir()] == ["done"]


def test_the_nearest_run_is_named(neuscale: Callable[..., Any], done: Path) -> None:
    assert done.is_dir()
    said = neuscale("eval", "dome")
    assert (said.code, "Did you mean 'done'?" in said.words) == (2, True)
    said = neuscale("train", "done")
    assert (said.code, "neuscale train --resume done" in said.words) == (2, True)


def test_a_run_name_that_is_taken(train: Callable[..., Any], done: Path) -> None:
    before = sorted(path.stat().st_mtime_ns for path in done.rglob("*"))
    said = train("run.name=done")
    assert said.code == 2
    assert f"{done}: there is a run of this name. Use --resume" in said.words
    assert sorted(path.stat().st_mtime_ns for path in done.rglob("*")) == before


def test_only_debug_shows_the_traceback(
    neuscale: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEUSCALE_DEBUG", "")  # undoes what --debug sets
    said = neuscale("eval", "nope", "--debug")
    assert "Traceback" in said.err
    assert "error: nope: there is no such run" in said.err
    assert said.code == 2
