"""Steps on three processes, with micro-batches, match training written out by hand (`tests/reference`)."""

import itertools
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from neuscale.config import compose_config
from neuscale.models.registry import create_model
from reference.images import Augment, normalize
from reference.models import vit
from reference.optimizers import SGD
from reference.training import Photos, Recipe, Reference, Updates, assert_close

RECIPE = Recipe(
    forward=partial(vit, heads=3, dropout=0.1),
    optimizers=lambda: (sgd := SGD(0.0, nesterov=False), sgd),
    lr=0.1,
    weight_decay=0.05,
    batch=12,
    steps_per_epoch=3,
    total_steps=5,
    clip=None,
    smoothing=0.1,
    accumulation=2,
    processes=3,
    seed=3,
    drop_path=(0.0, 0.15, 0.3),
    augment=Augment(crop_padding=2, horizontal_flip=0.5, erasing=0.5, mixup_alpha=0.5),
)
WORDS = ["model=vit_ti4", "model.hidden_dim=12", "model.num_heads=3", "model.num_layers=3"]
WORDS += ["model.mlp_ratio=2", "model.dropout=0.1", "model.drop_path_rate=0.3"]
WORDS += ["optim=sgd", "optim.lr=0.1", "optim.momentum=0", "optim.weight_decay=0.05", "optim.warmup_epochs=0"]
WORDS += ["optim.clip_grad_norm=null", "train.label_smoothing=0.1", "train.micro_batch=2", "run.seed=3"]
WORDS += ["augment=crop_flip", "augment.crop_padding=2", "augment.erasing=0.5", "augment.mixup_alpha=0.5"]
WORDS += ["data=image_folder", "data.name=photos", "train.global_batch_size=12", "train.max_steps=5"]
WORDS += ["train.epochs=2", "train.ema_decay=0", "tracking.trackers=[]", "run.name=three"]
WORDS += ["run.device=cpu", "checkpoint.every_steps=1", "checkpoint.keep_last=99", "eval.every_epochs=9"]
WORDS += ["train.log_every_steps=1"]


def test_three_processes_make_the_steps_of_one(photos: Photos, tmp_path: Path) -> None:
    """Gradients are means over all images, dropout differs by rank, and the weights match at each step."""
    environment = {
        **os.environ,
        "NEUSCALE_DATA": str(photos.folder.parent / "data"),
        "NEUSCALE_RUNS": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "neuscale", "train", "--processes", "3", *WORDS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    folders = sorted((tmp_path / "three" / "checkpoints").glob("step-*"))
    model = create_model(compose_config(WORDS).model, 16, 3, 3, RECIPE.seed)
    weights = [{name: p.detach() for name, p in model.named_parameters()}]
    weights += [load_file(folder / "model.safetensors") for folder in folders]
    assert len(weights) == RECIPE.total_steps + 1
    lines = [json.loads(line) for line in (tmp_path / "three" / "metrics.jsonl").read_text().splitlines()]
    points = [line for line in lines if line["split"] == "train"]
    reference, updates = Reference(RECIPE, photos), Updates(RECIPE)
    for step, (before, after) in enumerate(itertools.pairwise(weights)):
        gradients, loss, accuracy = reference.gradients(before, step)
        assert points[step]["loss"] == pytest.approx(loss, abs=5e-6)
        assert points[step]["accuracy"] == pytest.approx(accuracy, abs=1e-6)
        for name, expected in updates(before, gradients, step).items():
            assert_close(after[name], expected, 1e-6, f"step {step}, {name}")
    assert json.loads((tmp_path / "three" / "manifest.json").read_text())["machine"]["processes"] == 3

    # The ranks evaluate two, two and three of the seven images, normalised like the training images.
    held_out = Photos(photos.folder.parent / "val")
    images = torch.stack([normalize(pixels, *photos.mean_and_std) for pixels in held_out.pixels])
    logits, labels = vit(weights[-1], images, heads=3, keep=lambda *_: 1.0), torch.tensor(held_out.labels)
    (evaluation,) = [line for line in lines if line["split"] == "val"]
    assert len(images) == 7
    assert evaluation["top1"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()), abs=1e-6)
    losses = -logits.log_softmax(1)[torch.arange(7), labels]
    assert evaluation["loss"] == pytest.approx(float(losses.mean()), abs=5e-6)
