"""Folders that cannot be written, full disks, and damaged data."""

import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """A function that mounts a small tmpfs and returns its folder."""
    folder = tmp_path / "small"
    folder.mkdir()

    def mounted(options: str) -> Path:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=False)
        if done.returncode:
            pytest.skip("only root can mount a small disk")
        return folder

    yield mounted
    subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)


def check(said: Any, *parts: str) -> None:
    assert said.code == 1, said.err
    for part in parts:
        assert part in said.words
    assert "Traceback" not in said.err
    assert "not foreseen" not in said.err
    assert said.out == ""


def test_runs_folder_is_a_file(
    train: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("NEUSCALE_RUNS", str(tmp_path / "file"))
    check(train(), str(tmp_path / "file"), "is a file", "$NEUSCALE_RUNS")
    assert (tmp_path / "file").read_text() == "mine"


def test_runs_folder_is_read_only(
    train: Callable[..., Any], mount: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = mount("ro")
    monkeypatch.setenv("NEUSCALE_RUNS", str(folder))
    check(train(), str(folder), "read-only", "$NEUSCALE_RUNS")


@pytest.mark.parametrize("kilobytes", [4, 8, 12, 40, 64, 100, 140, 200])
def test_disk_fills_up_while_training(
    train: Callable[..., Any],
    neuscale: Callable[..., Any],
    mount: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    kilobytes: int,
) -> None:
    """Whichever write fails, saved checkpoints are intact, and the run resumes once there is space."""
    folder = mount(f"size={kilobytes}k")
    monkeypatch.setenv("NEUSCALE_RUNS", str(folder))
    check(train("train.epochs=3", "run.name=full"), str(folder), "the disk is full", "free some space")
    run = folder / "full"
    subprocess.run(["mount", "-o", "remount,size=9m", str(folder)], check=True)
    if not run.exists():  # not even the manifest fitted: nothing was started, and the name is free
        assert train("run.name=full").code == 0
        return
    json.loads((run / "manifest.json").read_text())
    assert not list(run.rglob("*partial*"))
    for checkpoint in (run / "checkpoints").glob("step-*"):
        assert neuscale("eval", "full", "--checkpoint", checkpoint.name).code == 0
    said = neuscale("train", "--resume", "full", "--json")
    assert (said.code, said.json["steps"]) == (0, 15), said.err


def test_what_fails_in_the_background_is_one_line(
    neuscale: Callable[..., Any], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed background thread, such as TensorBoard's, prints no traceback that would bury the message."""
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # undoes what `run` sets
    neuscale("--version")
    thread = threading.Thread(target=(Path("/nowhere") / "file").read_text)
    thread.start()
    thread.join()
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("warning: in the background: [Errno 2]")


@pytest.fixture
def damaged_data(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the data set 'tiny' to damage."""
    shutil.copytree(tiny_data, tmp_path / "data")
    monkeypatch.setenv("NEUSCALE_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "packed" / "tiny"


@pytest.mark.parametrize("file", ["train_images.npy", "val_labels.npy", "meta.json"])
@pytest.mark.parametrize("how", ["missing", "cut short"])
def test_data_that_are_damaged(
    neuscale: Callable[..., Any], train: Callable[..., Any], damaged_data: Path, file: str, how: str
) -> None:
    content = (damaged_data / file).read_bytes()
    (damaged_data / file).unlink()
    if how == "cut short":
        (damaged_data / file).write_bytes(content[:-9])
    advice = "neuscale data prepare image_folder --source PATH --save-as tiny --force"
    check(train(), str(damaged_data / file), advice)
    check(neuscale("data", "verify", "tiny"), str(damaged_data / file), advice)
    row = [row for row in neuscale("data", "list", "--json").json["datasets"] if row["name"] == "tiny"]
    assert row[0]["state"] == "damaged"


def test_verify_names_what_differs(neuscale: Callable[..., Any], damaged_data: Path) -> None:
    images = damaged_data / "val_images.npy"
    content = bytearray(images.read_bytes())
    content[-1] ^= 1
    images.write_bytes(content)
    check(neuscale("data", "verify", "tiny"), f"{images}: differs from its checksum", "tiny is damaged")
    said = neuscale("data", "verify", "tiny", "--json")
    assert (said.code, said.json["damaged"]) == (1, ["val_images.npy"])
