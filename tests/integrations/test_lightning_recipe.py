"""Trainer arguments from a recipe, and settings that are refused; Lightning need not be installed."""

from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import TINY_RECIPE
from neuscale.config import compose_config
from neuscale.errors import UsageError

RECIPE = [*TINY_RECIPE, "train.epochs=5", "train.log_every_steps=7", "eval.every_epochs=3"]
OPTIONS = {
    "accelerator": "cpu",
    "devices": 1,
    "strategy": "auto",
    "precision": "32-true",
    "max_epochs": 5,
    "max_steps": -1,
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 3,
    "log_every_n_steps": 7,
    "deterministic": None,
}


def test_the_trainers_arguments_are_the_recipes(under_stand_ins: Any) -> None:
    assert under_stand_ins.recipe.trainer_options(RECIPE) == OPTIONS


@pytest.mark.parametrize(
    ("word", "devices", "changed"),
    [
        ("train.max_steps=9", 1, {"max_steps": 9}),
        ("run.deterministic=true", 1, {"deterministic": True}),
        ("train.precision=bf16", 1, {"precision": "bf16-mixed"}),
        ("train.precision=auto", 2, {"devices": 2, "strategy": "ddp"}),
        # 12 images per step: 4 per rank, in micro-batches of 2; a micro-batch of 50 is one part
        ("train.micro_batch=2", 3, {"devices": 3, "strategy": "ddp", "accumulate_grad_batches": 2}),
        ("train.micro_batch=2", 1, {"accumulate_grad_batches": 6}),
        ("train.micro_batch=50", 1, {"accumulate_grad_batches": 1}),
    ],
)
def test_a_changed_word_changes_its_argument(
    under_stand_ins: Any, word: str, devices: int, changed: dict[str, Any]
) -> None:
    assert under_stand_ins.recipe.trainer_options([*RECIPE, word], devices) == {**OPTIONS, **changed}


def test_precisions_have_lightnings_names(under_stand_ins: Any) -> None:
    assert under_stand_ins.recipe.PRECISIONS == {
        "fp32": "32-true",
        "tf32": "32-true",
        "bf16": "bf16-mixed",
        "fp16": "16-mixed",
    }


def test_devices_that_do_not_divide_the_batch_are_refused(under_stand_ins: Any) -> None:
    with pytest.raises(UsageError, match="does not divide into 5 processes"):
        under_stand_ins.recipe.trainer_options(RECIPE, devices=5)


def test_a_recipe_is_a_config_words_a_word_or_what_a_checkpoint_holds(under_stand_ins: Any) -> None:
    recipe_config = under_stand_ins.recipe.recipe_config
    config = compose_config(RECIPE)
    assert recipe_config(config) is config
    assert recipe_config(RECIPE) == recipe_config(tuple(RECIPE)) == config
    assert recipe_config(asdict(config)) == config
    assert recipe_config("experiment=cifar10_swin_t") == compose_config(["experiment=cifar10_swin_t"])


@pytest.mark.parametrize(
    ("word", "way"),
    [
        ("train.ema_decay=0.9", "its callback EMAWeightAveraging"),
        ("train.patience=2", "its callback EarlyStopping"),
        ("train.profile=true", "Trainer(profiler=…)"),
        ("run.time_limit=8h", "Trainer(max_time=…)"),
        ("tracking.trackers=[wandb]", "Trainer(logger=WandbLogger())"),
        ("checkpoint.every_steps=2", "its callback ModelCheckpoint"),
        ("checkpoint.milestones=[2]", "its callback ModelCheckpoint"),
    ],
)
def test_what_only_we_do_is_refused_with_lightnings_own_way(
    under_stand_ins: Any, word: str, way: str
) -> None:
    check = under_stand_ins.recipe.check_config
    check(compose_config(RECIPE))
    with pytest.raises(UsageError) as caught:
        check(compose_config([*RECIPE, word]))
    assert caught.value.problem == f"{word.partition('=')[0]} is followed by 'neuscale train' only."
    assert caught.value.fix == f"Remove it; under Lightning use {way}."


def trainer(modules: Any, **changed: Any) -> Any:
    usual = {
        "strategy": modules.recipe.SingleDeviceStrategy(),
        "precision": "32-true",
        "gradient_clip_val": None,
        "callbacks": [],
        "world_size": 1,
        "accumulate_grad_batches": 1,
    }
    return SimpleNamespace(**{**usual, **changed})


def test_trainers_that_train_the_recipe_pass(under_stand_ins: Any) -> None:
    check = under_stand_ins.recipe.check_trainer
    ddp = under_stand_ins.recipe.DDPStrategy()
    for words, changed in (
        ([], {}),
        ([], {"precision": "bf16-mixed", "accumulate_grad_batches": 4, "callbacks": [object()]}),
        (["train.precision=bf16"], {"precision": "bf16-mixed"}),
        (["train.micro_batch=2"], {"strategy": ddp, "world_size": 3, "accumulate_grad_batches": 2}),
    ):
        check(compose_config([*RECIPE, *words]), trainer(under_stand_ins, **changed))


@pytest.mark.parametrize(
    ("words", "changed", "problem", "fix"),
    [
        ([], {"strategy": "FSDP"}, "str: one device and DDP", 'strategy="ddp"'),
        (["train.precision=bf16"], {}, "train.precision=bf16, and the Trainer's is 32-true", '"bf16-mixed"'),
        ([], {"gradient_clip_val": 2.0}, "gradient_clip_val=2.0", "optim.clip_grad_norm=2.0"),
        ([], {"accumulate_grad_batches": 5}, "12 images of a step do not divide into", "divides them"),
        ([], {"world_size": 3, "accumulate_grad_batches": 3}, "process's 4 images of a step", "divides"),
        ([], {"world_size": 5}, "does not divide into 5 processes", "global_batch_size=10"),
        (
            ["train.micro_batch=2"],
            {"world_size": 3},
            "train.micro_batch=2 cuts a process's 4 images into 2 parts, and the Trainer accumulates 1",
            "accumulate_grad_batches=2",
        ),
    ],
)
def test_a_trainer_that_would_train_something_else_is_refused(
    under_stand_ins: Any, words: list[str], changed: dict[str, Any], problem: str, fix: str
) -> None:
    with pytest.raises(UsageError) as caught:
        under_stand_ins.recipe.check_trainer(
            compose_config([*RECIPE, *words]), trainer(under_stand_ins, **changed)
        )
    assert problem in caught.value.problem
    assert fix in caught.value.fix


def test_a_schedule_of_accumulation_is_refused(under_stand_ins: Any) -> None:
    callbacks = [under_stand_ins.recipe.GradientAccumulationScheduler()]
    with pytest.raises(UsageError, match="one global batch throughout"):
        under_stand_ins.recipe.check_trainer(
            compose_config(RECIPE), trainer(under_stand_ins, callbacks=callbacks)
        )
