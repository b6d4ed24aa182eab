"""Out of memory, time limits, non-finite losses and disk errors."""

import json
import re
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import ListeningProgress
from neuscale.config import Config
from neuscale.data.loaders.loader import Batch
from neuscale.data.sampling import permutation
from neuscale.errors import UsageError, UserError
from neuscale.models.swin import SwinTransformer
from neuscale.runs.manifest import SCHEMA, read_manifest
from neuscale.training.accumulation import accumulation_steps, next_accumulation_steps
from neuscale.training.background_saver import BackgroundSaver
from neuscale.training.checkpoint import CheckpointFolder, open_checkpoint
from neuscale.training.run import train
from neuscale.training.trainer import Trainer
from neuscale.units import limit_seconds

ConfigBuilder = Callable[..., Config]


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches given to a model that runs out of memory above 3 images in training."""
    forward = SwinTransformer.forward
    sizes: list[int] = []

    def limited(self: SwinTransformer, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            sizes.append(len(images))
            if len(images) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, images)

    monkeypatch.setattr(SwinTransformer, "forward", limited)
    return sizes


def test_the_micro_batch_is_halved_until_it_fits_and_the_training_is_the_same(
    tiny: ConfigBuilder, small_memory: list[int], listening: ListeningProgress
) -> None:
    words = ["train.epochs=2", "augment.mixup_alpha=0.5"]
    halved = train(tiny(*words, "run.name=halved"), None, listening).run
    assert small_memory[:4] == [12, 6, 3, 3]
    assert set(small_memory[3:]) == {3}, "it is not tried again"
    assert [re.findall(r"\d+", text) for text in listening.warnings] == [["12", "6", "12"], ["6", "3", "12"]]
    given_so = train(tiny(*words, "train.micro_batch=3", "run.name=given")).run
    states = [open_checkpoint(CheckpointFolder(run.checkpoints).paths()[-1]) for run in (halved, given_so)]
    for name, value in states[0].weights().items():
        assert value.equal(states[1].weights()[name]), name
    assert states[0].training_state()["parts"] == 4

    small_memory.clear()
    train(tiny("train.epochs=3", "augment.mixup_alpha=0.5"), halved)
    assert set(small_memory) == {3}, "a run that goes on knows what fits"


def test_a_given_micro_batch_that_does_not_fit_is_an_error(
    tiny: ConfigBuilder, small_memory: list[int]
) -> None:
    with pytest.raises(UserError, match=r"(?s)memory ran out with 6 images.*train\.micro_batch=3"):
        train(tiny("train.epochs=1", "train.micro_batch=6", "run.name=given"))


def test_memory_is_tried_before_training_where_processes_must_agree(
    tiny: ConfigBuilder, small_memory: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory trial of a GPU run, here on the CPU, leaves no gradients and no change of the weights."""

    def with_trial(self: Trainer, batches: list[Batch]) -> None:
        if self.step == 0:
            self.accumulation.fit_memory(partial(self.forward_backward, batches))
            assert self.accumulation.steps == 4
            assert all(p.grad is None for p in self.model.parameters())
        train_step(self, batches)

    train_step = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", with_trial)
    tried = train(tiny("train.epochs=1", "run.name=tried")).run
    monkeypatch.setattr(Trainer, "train_step", train_step)
    plain = train(tiny("train.epochs=1", "train.micro_batch=3", "run.name=plain")).run
    a, b = (
        open_checkpoint(CheckpointFolder(run.checkpoints).paths()[-1]).weights() for run in (tried, plain)
    )
    assert all(value.equal(b[name]) for name, value in a.items())


@given(share=st.integers(1, 600), parts=st.integers(1, 600))
def test_smaller_micro_batches_divide_the_share(share: int, parts: int) -> None:
    if share % parts:
        return
    more = next_accumulation_steps(share, parts)
    if more is None:
        assert share == parts
    else:
        assert more > parts
        assert share % more == 0 == more % parts


@pytest.mark.parametrize(
    ("micro_batch", "message"),
    [("5", "micro_batch=4"), ("0", "at least 1"), ("many", "expected auto"), ("-2", "expected auto")],
)
def test_micro_batches_that_cannot_be(micro_batch: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        accumulation_steps(micro_batch, 24, 2)
    assert accumulation_steps("4", 24, 2) == 3
    assert accumulation_steps("500", 24, 2) == 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("45s", 45), ("1.5m", 90), ("8h", 28800), ("2d", 172800), ("7:45:00", 27900), ("1-00:00:10", 86410)],
)
def test_time_limits_in_the_forms_that_people_write(text: str, seconds: float) -> None:
    assert limit_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "8", "8 h", "h", "0s", "0:00:00", "1:2:3", "soon"])
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"run\.time_limit"):
        limit_seconds(text)


def test_a_loss_that_is_no_number_is_traced_to_its_step_and_images(
    tiny: ConfigBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neuscale.training import loss as step

    real = step.batch_loss
    calls = iter(range(1, 100))

    def broken(logits: torch.Tensor, *rest: Any) -> torch.Tensor:
        loss = real(logits, *rest)
        return loss * float("nan") if next(calls) == 8 else loss

    monkeypatch.setattr(step, "batch_loss", broken)
    config = tiny("train.epochs=3", "train.log_every_steps=5", "run.name=nan", "checkpoint.keep_last=9")
    with pytest.raises(UserError) as caught:
        train(config)
    text = str(caught.value)
    assert "not finite at step 8, epoch 2" in text
    assert "step-00000005" in text, "the last good checkpoint"
    [run] = Path(text.split("all in ")[1].split(")")[0]).parents[:1]
    expected = permutation(config.run.seed, 1, 60)[24:36].tolist()
    assert json.loads((run / "nonfinite.json").read_text()) == {"step": 8, "epoch": 1, "samples": expected}
    assert ", ".join(map(str, expected[:8])) in text
    assert [open_checkpoint(p).step for p in CheckpointFolder(run / "checkpoints").paths()] == [5]
    manifest = read_manifest(run / "manifest.json")
    assert (manifest["status"], manifest["exit_code"]) == ("failed", 1)
    jsonschema.validate(manifest, json.loads(SCHEMA.read_text()))


def test_a_checkpoint_is_never_of_a_model_that_is_no_number(tiny: ConfigBuilder, tmp_path: Path) -> None:
    """Saves may be more frequent than logged points, so the loss is checked before each save as well."""
    config = tiny(
        "train.epochs=2",
        "train.log_every_steps=1000",
        "checkpoint.every_steps=1",
        "optim=sgd",
        "optim.lr=1e30",
    )
    with pytest.raises(UserError, match="not finite at step"):
        train(config)
    for path in (tmp_path / "runs").glob("*/checkpoints/step-*"):
        assert all(
            bool(v.isfinite().all())
            for v in open_checkpoint(path).weights().values()
            if v.is_floating_point()
        )


def test_what_is_saved_is_the_state_of_its_moment() -> None:
    """Training goes on while the thread writes, but the copy must not change."""
    saver, gate = BackgroundSaver(), threading.Event()
    state = {"weights": {"a": torch.zeros(1000)}, "list": [torch.ones(2), 3], "text": "x"}
    seen: list[Any] = []

    def write(copy: Any) -> None:
        gate.wait(10)
        seen.append((copy["weights"]["a"].clone(), copy["list"][0].clone(), copy["list"][1], copy["text"]))

    for value in (1.0, 2.0):
        saver.save(write, state)
        state["weights"]["a"].fill_(value)  # type: ignore[index, call-overload]
        gate.set()
    saver.close()
    assert [float(entry[0][0]) for entry in seen] == [0.0, 1.0]
    assert seen[0][2:] == (3, "x")


def test_an_error_while_saving_stops_the_training(
    tiny: ConfigBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise UserError("the disk is full.", "Free some space.")

    monkeypatch.setattr(CheckpointFolder, "save", full)
    with pytest.raises(UserError, match="disk is full"):
        train(tiny("train.epochs=1", "run.name=full"))


def test_a_profile_is_written_and_told(tiny: ConfigBuilder, listening: ListeningProgress) -> None:
    run = train(tiny("train.epochs=3", "train.profile=true", "run.name=profiled"), None, listening).run
    trace = json.loads((run.path / "profile" / "trace.json").read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert "aten::addmm" in names
    table = [text for text in listening.messages if " ms × " in text]
    assert len(table) == 10
    shares = [float(text.split("%")[0]) for text in table]
    assert shares == sorted(shares, reverse=True)
    assert "aten::" in (run.path / "profile" / "ops.txt").read_text()
    listening.warnings.clear()
    train(tiny("train.epochs=1", "train.profile=true", "run.name=short"), None, listening)
    assert any("ended after 5 of the 8 steps" in text for text in listening.warnings)
