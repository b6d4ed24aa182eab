"""A user's model, optimizer, schedule, loss and augmentation work under Lightning's Trainer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Said
from neuscale.errors import UsageError
from neuscale.runs.metrics import read_metrics

from .foreign_models import CONVOLUTIONAL

pytest.importorskip("lightning")

Project = Callable[[dict[str, str]], Path]
Command = Callable[..., Said]

PARTS = """
import torch

def squared(logits, targets):
    return ((logits - targets) ** 2).mean(1)

def ramp(step, total_steps, steps_per_epoch):
    return (step + 1) / total_steps

def shift(images, draws):
    return (images.int() + (draws * 40).int()[:, :, None, None]).clamp(0, 255).to(torch.uint8)
"""
FILES = {
    "mynet.py": CONVOLUTIONAL,
    "parts.py": PARTS,
    "conf/model/mine.yaml": "_target_: mynet.Net\n",
    "conf/optim/mine.yaml": "_target_: torch.optim.RAdam\nlr: 0.01\nbetas: [0.8, 0.9]\n",
}
WORDS = ["data=image_folder", "data.name=photos", "model=mine", "optim=mine", "train.global_batch_size=16"]
WORDS += ["run.device=cpu", "train.epochs=2", "train.log_every_steps=1", "augment.function_draws=1"]
WORDS += [f"{field}._target_=parts.{name}" for field, name in (("train.loss", "squared"),)]
WORDS += ["train.loss._partial_=true", "optim.function._target_=parts.ramp", "optim.function._partial_=true"]
WORDS += ["augment.function._target_=parts.shift", "augment.function._partial_=true"]


def test_it_trains_as_without_lightning_and_its_checkpoint_brings_the_model_back(
    project: Project, command: Command, tmp_path: Path
) -> None:
    from lightning import Callback, Trainer

    from neuscale.integrations.lightning import ImageClassifier, ImageDataModule, trainer_options

    project(FILES)
    said = command("train", *WORDS, "run.name=ours")
    assert said.code == 0, said.err
    points = list(read_metrics(tmp_path / "runs" / "ours" / "metrics.jsonl"))
    losses: list[float] = []

    class Record(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            losses.append(float(outputs["loss"]))

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(**trainer_options(WORDS), **quiet, callbacks=[Record()], default_root_dir=tmp_path)
    model = ImageClassifier(WORDS)
    trainer.fit(model, ImageDataModule(WORDS))
    assert losses == pytest.approx([p["loss"] for p in points if p["split"] == "train"], abs=1e-5)
    assert float(trainer.callback_metrics["val/top1"]) == pytest.approx(
        [p["top1"] for p in points if p["split"] == "val"][-1]
    )
    assert (
        type(
            trainer.optimizers[0].optimizer
            if hasattr(trainer.optimizers[0], "optimizer")
            else trainer.optimizers[0]
        )
        is torch.optim.RAdam
    )

    path = tmp_path / "model.ckpt"
    trainer.save_checkpoint(path)
    again = ImageClassifier.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(again.eval()(images), model.cpu().eval()(images))


def test_a_checkpoint_names_nothing_that_is_run_without_trust(project: Project, tmp_path: Path) -> None:
    from dataclasses import asdict

    from neuscale.config import compose_config
    from neuscale.integrations.lightning.recipe import recipe_config

    project(FILES)
    config = asdict(compose_config(WORDS))
    assert recipe_config(config).model.name == "target"
    for target in ("os.system", "subprocess.run", "mynet.torch.os.system"):
        config["model"]["target"] = target
        with pytest.raises(UsageError, match="which would be run"):
            recipe_config(config)
