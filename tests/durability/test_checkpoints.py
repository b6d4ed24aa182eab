"""A checkpoint whose save has returned survives a power cut; until then the previous one survives."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from durability.power_cut import recorded
from neuscale.errors import CheckpointError
from neuscale.runs.folder import checkpoint_paths, remove_checkpoint
from neuscale.training.background_saver import BackgroundSaver
from neuscale.training.checkpoint import CheckpointFolder, open_checkpoint

TOP1 = {3: 0.25, 7: 0.75, 12: 0.5, 20: 0.625, 31: 0.125}  # the best is neither the first nor the last


def weights(step: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((4, 3), float(step)), "bias": torch.arange(step)}


def save(folder: CheckpointFolder, step: int, average: bool = True) -> Path:
    best = max(value for key, value in TOP1.items() if key <= step)
    training: dict[str, Any] = {"optimizer": {"moment": torch.full((5,), -float(step))}, "step": step}
    mean = {name: value / 2 for name, value in weights(step).items()} if average else None
    metrics = {"top1": TOP1[step]}
    return folder.save(step, step // 10, weights(step), training, metrics, TOP1[step] == best, mean)


def check_newest(folder: CheckpointFolder, saved: int) -> int:
    """Step of the newest checkpoint, which must be intact; 0 if there is none."""
    newest = folder.newest(lambda problem: pytest.fail(f"damaged: {problem}"))
    if newest is None:
        assert saved == 0
        return 0
    step = newest.step
    assert step >= saved
    assert newest.path.name == f"step-{step:08d}" and newest.metrics == {"top1": TOP1[step]}
    assert torch.equal(newest.weights()["weight"], weights(step)["weight"])
    assert newest.training_state()["step"] == step
    average = newest.average()
    assert average is not None and torch.equal(average["bias"], torch.arange(step) / 2)
    return step


def check_best(folder: CheckpointFolder, saved: int) -> None:
    """Assert that the checkpoint in best.json is intact and not worse than the best that was saved."""
    best = folder.best_path()
    if best is None:
        assert saved == 0
        return
    found = open_checkpoint(best).metrics["top1"]
    assert found == json.loads((folder.folder / "best.json").read_text())["top1"]
    assert found >= max((value for step, value in TOP1.items() if step <= saved), default=0.0)


def test_after_any_power_cut_what_was_saved_and_the_best_are_there(tmp_path: Path) -> None:
    """During five saves, no folder with a checkpoint's name is ever damaged."""
    root = tmp_path / "run"
    root.mkdir()
    with recorded(root) as record:
        folder = CheckpointFolder(root / "checkpoints", keep_last=1, milestones=[3])
        for step in TOP1:
            save(folder, step)
            record.done(str(step))

    def check(after: Path, done: tuple[str, ...]) -> str:
        folder = CheckpointFolder(after / "checkpoints", keep_last=1, milestones=[3])
        saved = int(done[-1]) if done else 0
        step = check_newest(folder, saved)
        check_best(folder, saved)
        for path in folder.paths():
            open_checkpoint(path)
        assert saved < 3 or (folder.folder / "step-00000003").is_dir()
        if (
            list(folder.folder.glob(".partial-*")) and step < 31
        ):  # a later save, here of step 31, removes the leftovers
            save(folder, 31)
            check_newest(folder, 31)
            assert not list(folder.folder.glob(".partial-*"))
        return str(step)

    assert record.replay(tmp_path / "after", check).keys() == {"0", "3", "7", "12", "20", "31"}
    names = sorted(path.name for path in (root / "checkpoints").iterdir())
    assert names == ["best.json", "step-00000003", "step-00000007", "step-00000031"]


def test_a_damaged_one_is_replaced_and_the_one_before_stays_meanwhile(tmp_path: Path) -> None:
    root = tmp_path / "run"
    folder = CheckpointFolder(root, keep_last=2)
    save(folder, 3)
    damaged = save(folder, 7)
    (damaged / "training.pt").write_bytes(b"not a checkpoint")
    with recorded(root) as record:
        save(folder, 7)
        record.done("7")

    def check(after: Path, done: tuple[str, ...]) -> str:
        damages: list[str] = []
        newest = CheckpointFolder(after).newest(damages.append)
        assert newest is not None and newest.step == (3 if damages else newest.step)
        assert newest.step == 7 or not done
        return str(newest.step)

    assert record.replay(tmp_path / "after", check).keys() == {"3", "7"}


@pytest.mark.parametrize("keep_last", [1, 3])
def test_the_files_of_a_checkpoint_go_only_after_its_name(
    keep_last: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changes in two folders reach the disk in any order: an unsynced removal may damage a checkpoint."""
    folder = CheckpointFolder(tmp_path / "run", keep_last=4)
    for step in (3, 7, 12):
        save(folder, step)
    with monkeypatch.context() as patch, recorded(tmp_path / "run") as record:
        patch.setattr(shutil, "rmtree", remove_weights_first)
        if keep_last == 1:
            folder.keep_last = 1
            save(folder, 20)
        else:
            remove_checkpoint(folder.folder / "step-00000003")

    def check(after: Path, done: tuple[str, ...]) -> str:
        paths = checkpoint_paths(after)
        for path in paths:
            try:
                open_checkpoint(path)
            except CheckpointError as error:
                pytest.fail(error.problem)
        return " ".join(str(int(path.name.split("-")[1])) for path in paths)

    said = record.replay(tmp_path / "after", check)
    assert said.keys() >= ({"3 7 12", "7 20"} if keep_last == 1 else {"3 7 12", "7 12"})


def remove_weights_first(folder: Path) -> None:
    """Remove a folder in an order that a file system may use: checkpoint.json, which identifies it, last."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == "checkpoint.json"):
        path.unlink()
    folder.rmdir()


def test_a_save_that_fails_leaves_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CheckpointFolder(tmp_path / "run")
    save(folder, 3)
    monkeypatch.setattr("neuscale.training.checkpoint._torch_bytes", full_disk)
    with pytest.raises(Exception, match="disk is full"):
        save(folder, 7)
    assert sorted(path.name for path in folder.folder.iterdir()) == ["best.json", "step-00000003"]


def full_disk(state: object) -> bytes:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_save_in_the_background_is_durable_once_it_is_waited_for(tmp_path: Path) -> None:
    """The checkpoint has the state at the time of the call, even if training changes it meanwhile."""
    root = tmp_path / "run"
    root.mkdir()
    with recorded(root) as record:
        folder, saver = CheckpointFolder(root / "checkpoints"), BackgroundSaver()
        for step in (3, 7):
            state = {"weights": weights(step)}
            saver.save(lambda copy, step=step: folder.save(step, 0, copy["weights"], {}, {}, False), state)
            state["weights"]["weight"].zero_()
            if step == 7:  # the second call waits for the first save
                record.done("3")
        saver.close()
        record.done("7")

    def check(after: Path, done: tuple[str, ...]) -> str:
        newest = CheckpointFolder(after / "checkpoints").newest(pytest.fail)
        step = newest.step if newest is not None else 0
        assert step >= int(done[-1] if done else 0)
        if newest is not None:
            assert torch.equal(newest.weights()["weight"], weights(step)["weight"])
        return str(step)

    assert record.replay(tmp_path / "after", check).keys() == {"0", "3", "7"}
