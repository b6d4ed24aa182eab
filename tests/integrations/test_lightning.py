"""A recipe under Lightning's Trainer: images, losses and accuracies are those of `neuscale train`."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import TINY_RECIPE
from neuscale import load_data
from neuscale.config import compose_config
from neuscale.data.prepare import prepare
from neuscale.data.sampling import balanced_order, permutation
from neuscale.errors import UsageError
from neuscale.runs.metrics import read_metrics
from neuscale.training.run import train

pytest.importorskip("lightning")

SCRIPT = Path(__file__).with_name("under_lightning.py")
# Two epochs of five steps, with random drop path and Mixup, and uneven shares in evaluation.
RECIPE = [*TINY_RECIPE, "model.drop_path_rate=0.4", "augment.mixup_alpha=0.5", "train.label_smoothing=0.1"]
RECIPE += ["train.epochs=2", "train.log_every_steps=1", "eval.batch_size=5", "optim.clip_grad_norm=1"]
# Not Muon: it computes in bfloat16 and amplifies rounding differences, which are not tested here.
RECIPE += ["optim=sgd", "optim.lr=0.05", "tracking.trackers=[]"]


@pytest.fixture(scope="module")
def folder(build_image_tree: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder whose 'data' holds the data set 'tiny': 60 and 21 images in three classes."""
    folder = tmp_path_factory.mktemp("lightning")
    tree = build_image_tree(folder / "tree", train=20, val=7)
    prepare("image_folder", root=folder / "data", source=tree, save_as="tiny")
    return folder


@pytest.fixture(autouse=True)
def places(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUSCALE_DATA", str(folder / "data"))
    monkeypatch.setenv("NEUSCALE_RUNS", str(folder / "runs"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def ours(folder: Path) -> list[dict[str, Any]]:
    """Metrics of the same recipe without Lightning."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEUSCALE_DATA", str(folder / "data"))
        patch.setenv("NEUSCALE_RUNS", str(folder / "runs"))
        torch.set_num_threads(1)
        run = train(compose_config([*RECIPE, "run.name=ours"])).run
    return list(read_metrics(run.metrics_file))


def under_lightning(
    folder: Path, devices: int, *words: str, steps: int = -1, checkpoint: str = "-"
) -> list[dict[str, Any]]:
    """Train with Lightning in a subprocess; return the record of each process, in the order of the ranks."""
    folder.mkdir(exist_ok=True)
    command = [
        sys.executable,
        str(SCRIPT),
        str(folder),
        str(devices),
        str(steps),
        checkpoint,
        *RECIPE,
        *words,
    ]
    done = subprocess.run(command, env=os.environ.copy(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(devices)]


def losses(ranks: list[dict[str, Any]]) -> list[float]:
    """Mean loss of each global batch."""
    found: dict[int, list[float]] = {}
    for rank in ranks:
        for line in rank["lines"]:
            found.setdefault(line["step"], []).append(line["loss"])
    return [float(np.mean(found[step])) for step in sorted(found)]


@pytest.mark.parametrize(("devices", "micro_batch"), [(1, "4"), (2, "auto")])
def test_it_trains_as_we_do(folder: Path, ours: list[dict[str, Any]], devices: int, micro_batch: str) -> None:
    ranks = under_lightning(folder / f"l{devices}", devices, f"train.micro_batch={micro_batch}")
    parts = 3 if micro_batch == "4" else 1
    for step in range(10):
        seen = [i for r in ranks for line in r["lines"] if line["step"] == step for i in line["samples"]]
        epoch, place = divmod(step, 5)
        assert seen == permutation(0, epoch, 60)[place * 12 : place * 12 + 12].tolist()
    assert {len(rank["lines"]) for rank in ranks} == {10 * parts}
    expected = [point["loss"] for point in ours if point["split"] == "train"]
    assert losses(ranks) == pytest.approx(expected, abs=1e-5)
    last = [point for point in ours if point["split"] == "val"][-1]
    for rank in ranks:
        for name in ("top1", "top5", "loss"):
            assert rank["metrics"][f"val/{name}"] == pytest.approx(last[name], abs=1e-4), name


def test_it_goes_on_from_the_middle_of_an_epoch(folder: Path) -> None:
    """The resumed training sees the remaining images and ends with the same weights."""
    (whole,) = under_lightning(folder / "whole", 1, "model.dropout=0.1")
    middle = folder / "whole" / "checkpoints" / "step=8.ckpt"
    (rest,) = under_lightning(folder / "rest", 1, "model.dropout=0.1", checkpoint=str(middle))
    assert rest["lines"] == whole["lines"][8:]
    assert rest["weight"] == whole["weight"]
    assert rest["metrics"]["val/loss"] == whole["metrics"]["val/loss"]


def test_a_checkpoint_holds_all_that_the_model_needs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from neuscale.integrations.lightning.classifier import ImageClassifier

    under_lightning(folder / "kept", 1, steps=1)
    monkeypatch.setenv("NEUSCALE_DATA", str(folder / "elsewhere"))
    path = folder / "kept" / "checkpoints" / "step=1.ckpt"
    model = ImageClassifier.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    assert model.config == compose_config(RECIPE)
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert all(value.equal(saved[name]) for name, value in model.state_dict().items())
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize(
    ("word", "way"),
    [
        ("train.ema_decay=0.9", "EMAWeightAveraging"),
        ("train.patience=2", "EarlyStopping"),
        ("run.time_limit=8h", "max_time"),
        ("checkpoint.every_steps=2", "ModelCheckpoint"),
    ],
)
def test_what_only_we_do_is_refused_by_name(word: str, way: str) -> None:
    from neuscale.integrations.lightning.classifier import ImageClassifier

    with pytest.raises(UsageError, match=rf"^{word.partition('=')[0]} (.|\n)*{way}"):
        ImageClassifier([*RECIPE, word])


@pytest.mark.parametrize(
    ("options", "words", "problem"),
    [
        ({"gradient_clip_val": 1.0}, [], "the recipe clips"),
        ({"accumulate_grad_batches": 5}, [], "12 images of a step do not divide into"),
        ({}, ["train.micro_batch=4"], r"Trainer\(accumulate_grad_batches=3\)"),
        ({}, ["train.precision=bf16"], 'precision="bf16-mixed"'),
    ],
)
def test_a_trainer_that_would_train_something_else_is_refused(
    tmp_path: Path, options: dict[str, Any], words: list[str], problem: str
) -> None:
    from lightning import Trainer

    from neuscale.integrations.lightning.classifier import ImageClassifier
    from neuscale.integrations.lightning.data import ImageDataModule

    words = [*RECIPE, *words]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", max_epochs=1, default_root_dir=tmp_path, **quiet, **options)
    with pytest.raises(UsageError, match=problem):
        trainer.fit(ImageClassifier(words), ImageDataModule(words))


def test_both_halves_have_one_recipe(tmp_path: Path) -> None:
    from lightning import Trainer

    from neuscale.integrations.lightning.classifier import ImageClassifier
    from neuscale.integrations.lightning.data import ImageDataModule

    trainer = Trainer(accelerator="cpu", max_epochs=1, default_root_dir=tmp_path, logger=False)
    with pytest.raises(UsageError, match="of the same recipe"):
        trainer.fit(ImageClassifier(RECIPE), ImageDataModule([*RECIPE, "run.seed=1"]))


def test_weights_of_classes_and_the_balanced_order_are_the_programs(folder: Path) -> None:
    words = ["train.class_weights=[1,2,4]", "data.sampler=balanced", "augment.mixup_alpha=0"]
    (found,) = under_lightning(folder / "balanced", 1, *words, steps=3)
    run = train(compose_config([*RECIPE, *words, "train.max_steps=3", "run.name=balanced"])).run
    expected = [line["loss"] for line in read_metrics(run.metrics_file) if line["split"] == "train"]
    assert losses([found])[0] == pytest.approx(expected[0], abs=1e-5)
    order = balanced_order(0, 0, load_data("tiny").labels("train"))
    assert [i for line in found["lines"] for i in line["samples"]] == order[:36].tolist()
