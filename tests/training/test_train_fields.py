"""Every field of `train`, `eval` and `checkpoint` takes effect in training."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from neuscale.config import Config
from neuscale.config.schema import CheckpointConfig, EvalConfig, TrainConfig
from neuscale.data.loaders.loader import Loader
from neuscale.models.swin import SwinTransformer
from neuscale.runs.metrics import read_metrics
from neuscale.training import trainer as trainer_module
from neuscale.training.checkpoint import CheckpointFolder
from neuscale.training.run import train
from neuscale.training.trainer import Trainer

ConfigBuilder = Callable[..., Config]
TrainerBuilder = Callable[..., Trainer]

# The fields that the tests below check.
FIELDS: dict[type, str] = {
    TrainConfig: "epochs max_steps global_batch_size micro_batch loss class_weights label_smoothing "
    "focal_gamma precision freeze_layers linear_probe ema_decay patience compile channels_last "
    "log_every_steps profile",
    EvalConfig: "batch_size every_epochs metric functions min_delta",
    CheckpointConfig: "every_steps keep_last milestones",
}
WORDS = [
    *("train.epochs=3", "train.global_batch_size=12", "train.micro_batch=4", "train.log_every_steps=2"),
    *("train.precision=bf16", "train.channels_last=true", "eval.batch_size=5", "eval.every_epochs=2"),
    *("checkpoint.every_steps=2", "checkpoint.keep_last=3", "checkpoint.milestones=[1]"),
    *("run.name=seen", "run.seed=11", "tracking.trackers=[]", "augment.horizontal_flip=0.25"),
]


@pytest.mark.parametrize("schema", FIELDS)
def test_every_field_is_looked_for(schema: type) -> None:
    assert set(FIELDS[schema].split()) == {field.name for field in dataclasses.fields(schema)}


@dataclasses.dataclass
class Seen:
    """Record of a training: shapes of each forward pass by mode, calls of the loader, and saves."""

    train: list[torch.Size] = dataclasses.field(default_factory=list)
    eval: list[torch.Size] = dataclasses.field(default_factory=list)
    layouts: set[bool] = dataclasses.field(default_factory=set)
    kinds: set[tuple[bool, torch.dtype]] = dataclasses.field(default_factory=set)
    asked: list[tuple[Any, ...]] = dataclasses.field(default_factory=list)
    saved: list[int] = dataclasses.field(default_factory=list)
    left: list[int] = dataclasses.field(default_factory=list)
    metrics: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    config: Config | None = None


@pytest.fixture(scope="module")
def seen(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Training of 15 steps with non-default fields."""
    from .conftest import TINY, compose_config

    found = Seen()
    training, save, forward = Loader.training, CheckpointFolder.save, SwinTransformer.forward

    def look_at_order(self: Loader, *args: Any) -> Iterator[Any]:
        found.asked.append(args)
        return training(self, *args)

    def look_at_save(self: CheckpointFolder, step: int, *args: Any) -> Path:
        found.saved.append(step)
        return save(self, step, *args)

    def look_at_images(self: SwinTransformer, images: torch.Tensor) -> torch.Tensor:
        if self.features[0][0].weight.device.type != "meta":
            (found.train if self.training else found.eval).append(images.shape)
            if self.training:
                found.layouts.add(images.is_contiguous(memory_format=torch.channels_last))
            if not self.head._forward_hooks:
                self.head.register_forward_hook(
                    lambda module, _args, out: found.kinds.add((module.training, out.dtype))
                )
        return forward(self, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEUSCALE_DATA", str(tiny_data))
        patch.setenv("NEUSCALE_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setattr(Loader, "training", look_at_order)
        patch.setattr(CheckpointFolder, "save", look_at_save)
        patch.setattr(SwinTransformer, "forward", look_at_images)
        found.config = compose_config([*TINY, *WORDS])
        run = train(found.config).run
    found.left = [int(path.name.removeprefix("step-")) for path in CheckpointFolder(run.checkpoints).paths()]
    found.metrics = list(read_metrics(run.metrics_file))
    return found


def test_every_epoch_is_asked_for_with_the_runs_own_fields(seen: Seen) -> None:
    assert seen.config is not None
    asked = [(seen.config.augment, 11, epoch, 0, 5, 12, 3) for epoch in range(3)]
    assert seen.asked == asked, "augmentation, seed, epoch, steps 0 … 4, batch of 12 in 3 parts"


def test_a_forward_pass_has_the_images_of_a_micro_batch_or_of_an_evaluation_batch(seen: Seen) -> None:
    assert [len(images) for images in map(torch.empty, seen.train)] == [4] * (3 * 15)
    assert [shape[0] for shape in seen.eval] == [5, 5, 5, 5, 1] * 2, "21 images, after epochs 2 and 3"
    assert {shape[1:] for shape in seen.train} == {torch.Size([3, 8, 8])}


def test_images_are_channels_last_where_that_is_asked_for(seen: Seen) -> None:
    assert seen.layouts == {True}


def test_the_precision_is_that_of_training_and_of_evaluation(seen: Seen) -> None:
    assert seen.kinds == {(True, torch.bfloat16), (False, torch.bfloat16)}


def test_points_evaluations_and_checkpoints_come_as_often_as_is_asked_for(seen: Seen) -> None:
    steps = {
        split: [line["step"] for line in seen.metrics if line["split"] == split] for split in ("train", "val")
    }
    assert steps == {"train": [2, 4, 6, 8, 10, 12, 14, 15], "val": [10, 15]}
    assert seen.saved == [2, 4, 5, 6, 8, 10, 12, 14, 15], "every two steps, the milestone, and the last"
    best = max((line for line in seen.metrics if line["split"] == "val"), key=lambda line: line["top1"])
    assert seen.left == sorted({5, 12, 14, 15, best["step"]}), "the milestone, the last three, the best"


def first_step(trainer: Trainer) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Take step 0 and return the mean loss that was summed, the logits [12, 3] and the labels."""
    logits: list[torch.Tensor] = []
    trainer.raw_model.head.register_forward_hook(
        lambda _module, _args, out: logits.append(out.detach().clone())
    )
    (batches,) = trainer.loader.training(trainer.config.augment, 0, 0, 0, 1, 12, trainer.accumulation.steps)
    trainer.train_step(batches)
    sums = trainer.metrics.running.sums
    return sums[0].item() / 12, torch.cat(logits), torch.cat([batch.labels for batch in batches])


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_is_smoothed_by_the_share_that_is_asked_for(
    smoothing: float, build_trainer: TrainerBuilder
) -> None:
    trainer = build_trainer(f"train.label_smoothing={smoothing}", "train.precision=fp32")
    loss, logits, labels = first_step(trainer)
    assert logits.dtype == torch.float32
    logs = logits.double() - logits.double().exp().sum(1, keepdim=True).log()
    own = logs[torch.arange(12), labels]
    expected = -((1 - smoothing) * own + smoothing * logs.mean(1)).mean()
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def test_steps_follow_from_epochs_the_batch_and_the_most_that_are_asked_for(
    build_trainer: TrainerBuilder,
) -> None:
    trainer = build_trainer("train.epochs=7", "train.global_batch_size=8")
    assert (trainer.steps_per_epoch, trainer.total_steps) == (7, 49), "60 images"
    assert build_trainer("train.epochs=7", "train.max_steps=11").total_steps == 11
    assert build_trainer("train.epochs=2", "train.max_steps=11").total_steps == 10
    assert build_trainer("train.epochs=2", "train.micro_batch=2").accumulation.steps == 6


def test_patience_is_over_after_as_many_evaluations(build_trainer: TrainerBuilder) -> None:
    trainer = build_trainer("train.epochs=9", "train.patience=2")
    for stale, over in ((1, False), (2, True), (3, True)):
        trainer.best.stale = stale
        assert trainer.should_stop() == over
    trainer = build_trainer("train.epochs=9")
    trainer.best.stale = 1000
    assert not trainer.should_stop()


def test_what_is_frozen_is_what_is_asked_for(build_trainer: TrainerBuilder) -> None:
    def trained(*words: str) -> set[str]:
        model = build_trainer(*words).raw_model
        return {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    every = trained()
    assert "features.0.0.weight" in every
    frozen = ("features.0.", "features.1.0.")
    assert trained("train.freeze_layers=2") == {name for name in every if not name.startswith(frozen)}
    assert trained("train.linear_probe=true") == {"head.weight", "head.bias"}


def test_the_average_has_the_decay_that_is_asked_for(build_trainer: TrainerBuilder) -> None:
    trainer = build_trainer("train.ema_decay=0.15", "optim.lr=0.1", "optim.warmup_epochs=0")
    ema = trainer.ema
    assert ema is not None
    before = trainer.raw_model.head.weight.detach().clone()
    first_step(trainer)
    now = trainer.raw_model.head.weight.detach()
    assert not torch.equal(before, now)
    torch.testing.assert_close(ema.average["head.weight"], 0.15 * before + 0.85 * now)
    assert build_trainer().ema is None


@pytest.mark.parametrize("asked", [True, False])
def test_a_model_is_compiled_and_in_channels_last_where_that_is_asked_for(
    asked: bool, build_trainer: TrainerBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    monkeypatch.setattr("neuscale.training.build.check_compiler", lambda: None)
    trainer = build_trainer(f"train.compile={asked}", f"train.channels_last={asked}")
    assert compiled == ([trainer.raw_model] if asked else [])
    weight = trainer.raw_model.features[0][0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == asked


def test_steps_are_profiled_into_the_run_where_that_is_asked_for(
    tiny: ConfigBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[Any, ...]] = []
    profiler = trainer_module.StepProfiler

    def make(folder: Path, device: torch.device, enabled: bool, progress: Any) -> Any:
        made.append((folder, device.type, enabled))
        return profiler(folder, device, False, progress)

    monkeypatch.setattr(trainer_module, "StepProfiler", make)
    words = ["train.epochs=1", "train.max_steps=1", "tracking.trackers=[]"]
    for asked in (True, False):
        run = train(tiny(*words, f"train.profile={asked}", f"run.name=profile-{asked}")).run
        assert made[-1] == (run.path / "profile", "cpu", asked)
