"""A model is restored from its run, on the device and with the weights that were asked for."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from neuscale.config.schema import Config
from neuscale.errors import CheckpointError
from neuscale.inference import restore as restore_module
from neuscale.inference.restore import Restored, restore
from neuscale.progress import Silent
from neuscale.runs.folder import RunFolder
from neuscale.training.checkpoint import CheckpointFolder

from .conftest import Odd

Command = Callable[..., Any]


@pytest.fixture
def copied(command: Command, odd: Odd, tmp_path: Path) -> RunFolder:
    """A copy of the run 'odd' that a test may change."""
    del command
    return RunFolder(shutil.copytree(odd.run, tmp_path / "copied"))


def restored(run: RunFolder, checkpoint: str = "best", weights: str = "auto", **options: bool) -> Restored:
    return restore(run, checkpoint, weights, "cpu", Silent(), **options)


def holds(found: Restored, odd: Odd, step: int, file: str) -> bool:
    tensors = load_file(odd.run / "checkpoints" / f"step-{step:08}" / file)
    state = found.model.state_dict()
    return all(torch.equal(state[name], tensors[name]) for name in tensors)


def test_a_checkpoint_is_found_by_each_of_its_names(
    copied: RunFolder, odd: Odd, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = copied.path.parent / "kept"
    shutil.copytree(copied.checkpoints / "step-00000009", elsewhere)
    monkeypatch.setenv("HOME", str(elsewhere.parent))
    for name, step in (("step-00000006", 6), ("step-00000009", 9), (str(elsewhere), 9), ("~/kept", 9)):
        found = restored(copied, name)
        assert (found.step, found.weights) == (step, "ema")
        assert holds(found, odd, step, "ema.safetensors")
    raw = restored(copied, "~/kept/model.safetensors")
    assert (raw.step, raw.weights, raw.checkpoint) == (None, "file", elsewhere / "model.safetensors")
    assert holds(raw, odd, 9, "model.safetensors")
    monkeypatch.chdir(elsewhere.parent)
    assert restored(copied, "kept").step == 9


def test_without_a_record_of_the_best_it_is_the_last(copied: RunFolder, odd: Odd) -> None:
    assert restored(copied).step == 6
    (copied.checkpoints / "best.json").unlink()
    assert restored(copied).step == 9
    weights_alone = load_file(copied.checkpoints / "step-00000009" / "model.safetensors")
    CheckpointFolder(copied.checkpoints, keep_last=9).save(9, 3, weights_alone, {}, {}, is_best=False)
    for weights in ("auto", "raw"):
        found = restored(copied, "last", weights)
        assert (found.weights, holds(found, odd, 9, "model.safetensors")) == ("raw", True)
    with pytest.raises(CheckpointError, match="holds no average of the weights"):
        restored(copied, "last", "ema")


def test_a_damaged_checkpoint_is_refused_and_the_others_named(copied: RunFolder) -> None:
    with (copied.checkpoints / "step-00000006" / "ema.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    with pytest.raises(CheckpointError) as caught:
        restored(copied)
    assert "damaged" in caught.value.problem
    assert caught.value.fix == "Others of this run: step-00000009, step-00000001."


def test_the_model_does_not_train_and_the_ops_are_fused_only_where_they_may(
    copied: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused: list[tuple[nn.Module, str]] = []
    monkeypatch.setattr(restore_module, "choose_ops", lambda *_: SimpleNamespace(kind="fused"))
    monkeypatch.setattr(restore_module, "fuse", lambda model, device: fused.append((model, str(device))))
    assert not restored(copied, eager=True).model.training
    assert fused == []
    found = restored(copied)
    assert not found.model.training
    assert fused == [(found.model, "cpu")]
    wrapped = found.with_model(nn.Sequential(found.model).train())
    assert not wrapped.model.training
    assert (wrapped.step, wrapped.weights, found.model) == (6, "ema", wrapped.model[0])


def test_a_run_of_a_gpu_in_half_precision_is_evaluated_on_the_cpu_in_single(
    copied: RunFolder, command: Command
) -> None:
    text = copied.config_file.read_text()
    expected = command("eval", copied.path, "--gpus", 0, "--json").json["loss"]
    copied.config_file.write_text(text.replace("precision: fp32", "precision: fp16"))
    assert restored(copied).accelerator.mixed_precision == "no"
    assert command("eval", copied.path, "--gpus", 0, "--json").json["loss"] == expected
    copied.config_file.write_text(text.replace("precision: fp32", "precision: bf16"))
    assert restored(copied).accelerator.mixed_precision == "bf16"
    assert command("eval", copied.path, "--gpus", 0, "--json").json["loss"] == pytest.approx(
        expected, rel=0.1
    )
    assert command("eval", copied.path, "--gpus", 0, "--json").json["loss"] != expected


def test_images_are_staged_for_an_evaluation_and_not_for_a_file_or_two(
    copied: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged: list[str] = []
    right = restore_module.open_run_data

    def opened(config: Config, progress: Any) -> Any:
        staged.append(config.data.stage)
        config.data.stage = "none"
        return right(config, progress)

    monkeypatch.setattr(restore_module, "open_run_data", opened)
    restored(copied)
    restored(copied, stage=False)
    assert staged == ["auto", "none"]
