"""A checkpoint is complete and intact or absent, and the older one stays until the newer is safe."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from neuscale.errors import CheckpointError, UserError
from neuscale.training.checkpoint import Checkpoint, CheckpointFolder, open_checkpoint


def weights(step: int) -> dict[str, torch.Tensor]:
    return {"a": torch.full((40, 3), float(step)), "b": torch.arange(step + 1)}


def save(folder: CheckpointFolder, step: int, is_best: bool = False) -> Path:
    training: dict[str, Any] = {"optimizer": {"state": {0: {"step": torch.tensor(step)}}}, "lr": [0.1, step]}
    return folder.save(step, step // 10, weights(step), training, {"top1": step / 100}, is_best)


def assert_is(checkpoint: Checkpoint, step: int) -> None:
    assert checkpoint.step == step
    assert all(torch.equal(value, weights(step)[name]) for name, value in checkpoint.weights().items())
    state = checkpoint.training_state()
    assert state["optimizer"]["state"][0]["step"] == step
    assert state["lr"] == [0.1, step]


def same_json(a: bytes, b: bytes) -> bool:
    try:
        return bool(json.loads(a) == json.loads(b))
    except ValueError:
        return False


def test_what_was_saved_is_read_back(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints")
    path = save(folder, 12)
    assert_is(open_checkpoint(path), 12)
    assert open_checkpoint(path).metrics == {"top1": 0.12}
    assert open_checkpoint(path).epoch == 1


def test_weights_have_the_models_own_names(tmp_path: Path) -> None:
    """Weights load into plain torch code, without this package."""
    from safetensors.torch import load_file

    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    path = CheckpointFolder(tmp_path).save(1, 0, model.state_dict(), {}, {}, False)
    nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)).load_state_dict(load_file(path / "model.safetensors"))


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=2)
    for step in range(10, 70, 10):
        save(folder, step, is_best=step == 20)
    assert [path.name for path in folder.paths()] == ["step-00000020", "step-00000050", "step-00000060"]
    assert folder.best_path() == tmp_path / "step-00000020"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.json",
        "step-00000020",
        "step-00000050",
        "step-00000060",
    ]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255), data=st.data())
def test_a_changed_byte_anywhere_is_noticed(
    tmp_path: Path, place: float, mask: int, data: st.DataObject
) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints")
    path = folder.folder / "step-00000007"
    if not path.exists():
        save(folder, 7)
    name = data.draw(st.sampled_from(["model.safetensors", "training.pt", "checkpoint.json"]))
    content = (path / name).read_bytes()
    damaged = bytearray(content)
    damaged[int(place * len(damaged))] ^= mask
    (path / name).write_bytes(damaged)
    try:
        # Whitespace in the description may change without loss.
        if name != "checkpoint.json" or not same_json(damaged, content):
            with pytest.raises(CheckpointError, match=str(path / name)):
                open_checkpoint(path)
    finally:
        (path / name).write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "training.pt", "checkpoint.json"])
def test_a_missing_or_cut_file_sends_the_run_back_to_the_checkpoint_before(tmp_path: Path, name: str) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=9)
    save(folder, 1)
    path = save(folder, 2)
    (path / name).write_bytes((path / name).read_bytes()[:-5])
    reports: list[str] = []
    found = folder.newest(reports.append)
    assert found is not None
    assert_is(found, 1)
    assert len(reports) == 1
    assert str(path / name) in reports[0]


SAVER = """
import sys, torch
from pathlib import Path
from random import Random
from neuscale.training.checkpoint import CheckpointFolder
folder = CheckpointFolder(Path(sys.argv[1]), keep_last=2)
step = int(sys.argv[2])
print("ready", flush=True)
while True:
    step += 1
    weights = {"a": torch.full((40, 3), float(step)), "b": torch.arange(step + 1)}
    training = {"optimizer": {"state": {0: {"step": torch.tensor(step)}}}, "lr": [0.1, step]}
    folder.save(step, 0, weights, training, {}, step % 3 == 0)
    print(step, flush=True)
"""


def test_a_kill_at_any_moment_leaves_what_was_saved_before(tmp_path: Path) -> None:
    """After each of ten kills, the last reported save or a newer one exists, and all saves are intact."""
    folder = CheckpointFolder(tmp_path / "checkpoints")
    random = Random(0)
    step = 0
    for _ in range(10):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(folder.folder), str(step)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(random.uniform(0.0, 0.25))
        process.send_signal(signal.SIGKILL)
        reported = [int(line) for line in process.stdout if line.strip().isdigit()]
        process.wait()
        reports: list[str] = []
        newest = folder.newest(reports.append)
        assert reports == []
        assert newest is not None or not reported
        if newest is not None:
            assert newest.step >= (reported[-1] if reported else step)
            assert_is(newest, newest.step)
            step = newest.step
        for path in folder.paths():
            open_checkpoint(path)
    assert step > 10
    save(folder, step + 1)
    assert not list(folder.folder.glob(".partial-*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """File system of 200 kB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(mount)], capture_output=True
    )
    if done.returncode:
        pytest.skip("mounting a small file system needs root")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_full_disk_is_said_and_leaves_the_older_checkpoint(small_disk: Path) -> None:
    folder = CheckpointFolder(small_disk / "checkpoints")
    save(folder, 1)
    with pytest.raises(UserError, match="disk is full") as caught:
        folder.save(2, 0, {"a": torch.zeros(100_000)}, {}, {}, False)
    assert "NEUSCALE_RUNS" in caught.value.fix
    newest = folder.newest(pytest.fail)
    assert newest is not None
    assert_is(newest, 1)
    assert not list(folder.folder.glob(".partial-*"))
    save(folder, 3)


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file"):
        save(CheckpointFolder(tmp_path / "file" / "checkpoints"), 1)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
