"""Every field of `run` and `tracking` takes effect on the run and on its trackers."""

import dataclasses
import importlib.machinery
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from neuscale.config import Config, compose_config, schema
from neuscale.data.sampling import derived_seed
from neuscale.distributed import accelerator as device
from neuscale.models.registry import create_model
from neuscale.runs.folder import create_run
from neuscale.training import run as train_module
from neuscale.training import stopping as limit
from neuscale.training import trainer as trainer_module
from neuscale.training.drop_path import DropPathDraws
from neuscale.training.run import TrainedRun, train
from neuscale.training.tracking import tensorboard
from neuscale.training.trainer import Trainer

ConfigBuilder = Callable[..., Config]
TrainerBuilder = Callable[..., Trainer]

# The fields that the tests below check.
FIELDS: dict[type, str] = {
    schema.RunConfig: "name seed time_limit deterministic device",
    schema.TrackingConfig: "trackers sample_images project options",
}
QUICK = ["train.epochs=2", "train.max_steps=6", "tracking.trackers=[]"]


@pytest.mark.parametrize("section", FIELDS)
def test_every_field_is_looked_for(section: type) -> None:
    assert set(FIELDS[section].split()) == {field.name for field in dataclasses.fields(section)}


def test_a_run_has_its_name_or_one_of_its_recipe(tiny: ConfigBuilder) -> None:
    def name(*words: str) -> str:
        return create_run(compose_config(list(words))).name

    assert name("run.name=mine") == "mine"
    assert name().startswith("quickstart-2"), "and the time"
    assert name("experiment=cifar10_swin_t", "model=vit_ti4").startswith("cifar10_swin_t-2")
    bare = ["experiment=null", "train.epochs=1", "train.global_batch_size=1"]
    assert name(*bare, "model=vit_ti4").startswith("vit-2")
    assert name(*bare, "model=torchvision", "model.arch=resnet18").startswith("resnet18-2")


def test_the_seed_is_that_of_the_model_of_drop_path_and_of_dropout(
    build_trainer: TrainerBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(trainer_module, "seed_generator", lambda _device, seed: drawn.append(seed))
    for seed in (5, 6):
        trainer = build_trainer(f"run.seed={seed}")
        expected = create_model(trainer.config.model, 8, 3, 3, seed).state_dict()
        own = trainer.raw_model.state_dict()
        assert all(torch.equal(own[name], value) for name, value in expected.items())
        (batches,) = trainer.loader.training(trainer.config.augment, seed, 0, 2, 3, 12)
        trainer.step = 7
        trainer.train_step(batches)
        assert drawn[-1] == derived_seed(seed, 7, "dropout 0")
        layers = [module for module in trainer.raw_model.modules() if hasattr(module, "rate")]
        scales = [layer.scale.clone() for layer in layers if layer.rate > 0]
        DropPathDraws(trainer.raw_model, seed, torch.device("cpu")).set(0, slice(24, 36))
        again = [layer.scale for layer in layers if layer.rate > 0]
        assert all(torch.equal(one, other) for one, other in zip(scales, again, strict=True))
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize(("asked", "ends"), [("90m", False), ("2h", True), ("null", True)])
def test_a_run_is_stopped_at_its_time_limit(
    asked: str, ends: bool, tiny: ConfigBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is 90 minutes less 50 s old, and a minute is reserved for saving."""
    monkeypatch.setattr(limit, "_BEGAN", time.monotonic() - 90 * 60 + 50)
    outcome = train(tiny(*QUICK, f"run.time_limit={asked}", "run.name=limited")).outcome
    assert (outcome.steps, outcome.stopped_by) == ((6, None) if ends else (1, "run.time_limit"))


@pytest.mark.parametrize("asked", [True, False])
def test_a_deterministic_run_uses_such_algorithms_only(
    asked: bool, tiny: ConfigBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    found: list[bool] = []
    in_run = train_module._train_in

    def look(*args: Any) -> TrainedRun:
        found.append(torch.are_deterministic_algorithms_enabled())
        return in_run(*args)

    monkeypatch.setattr(train_module, "_train_in", look)
    try:
        train(tiny(*QUICK, f"run.deterministic={asked}", "run.name=same"))
    finally:
        torch.use_deterministic_algorithms(False)
    assert found == [asked]


@pytest.mark.parametrize(
    ("asked", "precision", "cuda", "cpu", "mixed", "matmul"),
    [
        ("cpu", "auto", True, True, "no", "highest"),
        ("cpu", "bf16", True, True, "bf16", "highest"),
        ("auto", "auto", False, True, "no", "highest"),
        ("auto", "auto", True, False, "bf16", "highest"),
        ("cuda", "fp16", True, False, "fp16", "highest"),
        ("cuda", "fp32", True, False, "no", "highest"),
        ("cuda", "tf32", True, False, "no", "high"),
    ],
)
def test_device_and_precision_are_what_accelerate_is_asked_for(
    asked: str,
    precision: str,
    cuda: bool,
    cpu: bool,
    mixed: str,
    matmul: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(device, "Accelerator", lambda **options: made.append(options))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        device.create_accelerator(asked, precision)
        assert (made[0]["cpu"], made[0]["mixed_precision"]) == (cpu, mixed)
        assert torch.get_float32_matmul_precision() == matmul
        assert torch.backends.cudnn.allow_tf32 == (matmul == "high")
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def test_a_run_asks_for_the_device_and_the_precision_of_its_fields(
    tiny: ConfigBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []
    create = train_module.create_accelerator

    def look(device: str, precision: str) -> Any:
        asked.append((device, precision))
        return create("cpu", "fp32")

    monkeypatch.setattr(train_module, "create_accelerator", look)
    train(tiny(*QUICK, "run.device=auto", "train.precision=bf16", "run.name=asked"))
    assert asked == [("auto", "bf16")]


class Board:
    """Fake TensorBoard that counts images."""

    def __init__(self, folder: Path, step: int) -> None:
        self.shown: list[tuple[str, int]] = []
        boards.append(self)

    def images(self, name: str, images: torch.Tensor, *_: Any) -> None:
        self.shown.append((name, len(images)))

    def __getattr__(self, name: str) -> Any:
        return lambda *_args: None


boards: list[Board] = []


@pytest.mark.parametrize(
    ("trackers", "images", "shown"),
    [
        ("[tensorboard]", 5, [("train/images", 5)]),
        ("[tensorboard]", 40, [("train/images", 12)]),
        ("[tensorboard]", 0, []),
        ("[]", 5, None),
    ],
)
def test_tensorboard_has_as_many_images_as_are_asked_for(
    trackers: str, images: int, shown: Any, tiny: ConfigBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most as many images as a batch has are shown; without TensorBoard there are none."""
    monkeypatch.setattr(tensorboard, "TensorBoard", Board)
    boards.clear()
    fields = [f"tracking.trackers={trackers}", f"tracking.sample_images={images}"]
    train(tiny("train.epochs=1", "train.max_steps=1", *fields, "run.name=shown"))
    assert [board.shown for board in boards] == ([] if shown is None else [shown])


@pytest.fixture
def stand_in_wandb(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Calls to the fake Weights & Biases: the options of `init`, the config, each point, then "finished"."""
    said: list[Any] = []
    module: Any = types.ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    module.Settings = lambda **options: options
    module.Image = module.Table = lambda *_args, **_options: None
    module.config = types.SimpleNamespace(update=lambda values, **_: said.append({"config": values}))

    def init(**options: Any) -> Any:
        said.append(options)
        return types.SimpleNamespace(
            log=lambda values, **_: said.append(values),
            finish=lambda: said.append("finished"),
            define_metric=lambda *_, **__: None,
            save=lambda *_, **__: None,
            offline=True,
        )

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in ("MODE", "PROJECT", "ENTITY", "TAGS", "RUN_GROUP"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    return said


def test_weights_and_biases_is_told_the_run_the_project_and_its_options(
    tiny: ConfigBuilder, stand_in_wandb: list[Any]
) -> None:
    options = "tracking.options.wandb"
    fields = ["tracking.project=mine", f"{options}.mode=offline", "run.seed=23"]
    fields += [f"{options}.entity=team", f"{options}.group=first", f"{options}.tags=[a,b]"]
    run = train(tiny(*QUICK, "tracking.trackers=[wandb]", *fields, "run.name=told")).run
    begun, settings, *points = stand_in_wandb
    assert (begun["project"], begun["mode"], begun["name"]) == ("mine", "offline", "told")
    assert (begun["entity"], begun["group"], begun["tags"]) == ("team", "first", ["a", "b"])
    assert begun["dir"] == str(run.path)
    assert settings["config"]["run.seed"] == 23
    assert [point["step"] for point in points[:-1]] == [2, 4, 5, 6, 6]
    assert points[-1] == "finished"
    assert {"train/loss", "train/accuracy", "optim/lr", "step"} <= points[0].keys()
    assert "val/top1" in points[2] and "val/top1" in points[4]


def test_weights_and_biases_is_told_nothing_where_nobody_asks(
    tiny: ConfigBuilder, stand_in_wandb: list[Any]
) -> None:
    train(tiny(*QUICK, "run.name=quiet"))
    assert stand_in_wandb == []
    train(tiny(*QUICK, "tracking.trackers=[wandb]", "run.name=plain"))
    assert stand_in_wandb[0]["project"] == "neuscale"
    # Unless they are set here, entity, group and tags are left to W&B's environment variables.
    assert not {"entity", "group", "tags"} & stand_in_wandb[0].keys()
    assert stand_in_wandb[0]["mode"] is None


def test_the_environments_project_is_beaten_by_no_default(
    tiny: ConfigBuilder, stand_in_wandb: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "ours")
    train(tiny(*QUICK, "tracking.trackers=[wandb]", "run.name=plain"))
    assert stand_in_wandb[0]["project"] == "ours"
    train(tiny(*QUICK, "tracking.trackers=[wandb]", "tracking.project=mine", "run.name=chosen"))
    projects = [said["project"] for said in stand_in_wandb if isinstance(said, dict) and "project" in said]
    assert projects == ["ours", "mine"]
