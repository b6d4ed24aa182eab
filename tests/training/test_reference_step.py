"""Each recipe at a small size matches, step by step, training written out by hand (`tests/reference`).

The parts of a step are compared separately, each starting from the program's own values, so that rounding
does not add up: the images; their loss, accuracy and gradients; the update by those gradients; the average.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from neuscale.config import compose_config
from neuscale.runs.metrics import read_metrics
from neuscale.training.run import train
from reference.images import Augment
from reference.models import swin, vit
from reference.optimizers import SGD, AdamW, Muon
from reference.recording import Recording, recorded
from reference.training import Photos, Recipe, Reference, Updates, assert_close, average

SMALL_SWIN = ["model.patch_size=2", "model.embed_dim=8", "model.window_size=4", "model.depths=[2,2]"]
SMALL_SWIN += ["model.num_heads=[1,2]"]
SMALL_VIT = ["model.hidden_dim=12", "model.num_heads=3", "model.num_layers=3", "model.mlp_ratio=2"]
EPS = 1e-5  # Adam's epsilon, so that gradients that are only rounding errors do not decide an update


def swin_layer(name: str) -> int:
    """Return the layer: 0 embedding, 1 to 4 blocks (a merging with the block before it), 5 norm and head."""
    if name.startswith("features.0."):
        return 0
    if not name.startswith("features."):
        return 5
    stage, block = name.split(".")[1:3]
    return {"1": 1, "2": 2, "3": 3}[stage] + (int(block) if stage != "2" else 0)


@dataclass(frozen=True)
class Case:
    """Recipe as configured by overrides, and as written out by hand."""

    words: tuple[str, ...]
    recipe: Recipe
    pixels_off: float = 0.0  # share of pixels that a policy may round differently


CASES = {
    "quickstart": Case(
        (
            "experiment=quickstart",
            *SMALL_SWIN,
            "train.micro_batch=4",
            "optim.momentum=0.9",
            f"optim.eps={EPS}",
        ),
        Recipe(
            forward=partial(swin, heads=(1, 2), window=4),
            optimizers=lambda: (Muon(0.9), AdamW(0.9, 0.999, EPS)),
            lr=8e-3,
            weight_decay=0.05,
            batch=12,
            steps_per_epoch=3,
            total_steps=6,
            warmup_steps=1,  # a quarter of three steps, rounded
            accumulation=3,
            augment=Augment(crop_padding=1, horizontal_flip=0.5),
        ),
    ),
    "cifar10_swin_t": Case(
        ("experiment=cifar10_swin_t", *SMALL_SWIN, "optim.warmup_epochs=1", f"optim.eps={EPS}"),
        Recipe(
            forward=partial(swin, heads=(1, 2), window=4),
            optimizers=lambda: (adamw := AdamW(0.9, 0.999, EPS), adamw),
            lr=1e-3,
            weight_decay=0.05,
            batch=12,
            steps_per_epoch=3,
            total_steps=6,
            warmup_steps=3,
            smoothing=0.1,
            drop_path=tuple(0.2 * i / 3 for i in range(4)),
            augment=Augment(crop_padding=4, horizontal_flip=0.5),
        ),
    ),
    "tiny_imagenet_vit": Case(
        (
            "experiment=tiny_imagenet_vit",
            *SMALL_VIT,
            "model.dropout=0.1",
            "optim.warmup_epochs=0",
            "optim.beta1=0.8",
            "optim.beta2=0.99",
            f"optim.eps={EPS}",
            "augment.mixup_alpha=0.5",
            "train.ema_decay=0.3",
            "run.seed=5",
        ),
        Recipe(
            forward=partial(vit, heads=3, dropout=0.1),
            optimizers=lambda: (adamw := AdamW(0.8, 0.99, EPS), adamw),
            lr=1e-3,
            weight_decay=0.05,
            batch=12,
            steps_per_epoch=3,
            total_steps=6,
            smoothing=0.1,
            seed=5,
            drop_path=(0.0, 0.05, 0.1),
            ema_decay=0.3,
            augment=Augment(8, 0.5, "randaugment", erasing=0.25, mixup_alpha=0.5, cutmix_alpha=1.0),
        ),
        pixels_off=0.03,
    ),
    "sgd": Case(
        (
            "optim=sgd",
            "model=swin_nano",
            *SMALL_SWIN,
            "model.drop_path_rate=0.3",
            "model.gelu_approximate=tanh",
            "optim.lr=0.05",
            "optim.momentum=0.8",
            "optim.weight_decay=0.01",
            "optim.layer_decay=0.7",
            "optim.schedule=step",
            "optim.step_epochs=[1]",
            "optim.step_factor=0.5",
            "optim.warmup_epochs=0.67",
            "optim.clip_grad_norm=null",
            "augment=none",
            "augment.crop_padding=0",
            "augment.cutmix_alpha=1.0",
            "train.micro_batch=6",
            "run.seed=7",
        ),
        Recipe(
            forward=partial(swin, heads=(1, 2), window=4, approximate="tanh"),
            optimizers=lambda: (sgd := SGD(0.8, nesterov=True), sgd),
            lr=0.05,
            weight_decay=0.01,
            layer_decay=0.7,
            layer=swin_layer,
            batch=12,
            steps_per_epoch=3,
            total_steps=6,
            warmup_steps=2,
            schedule=lambda _, step: 0.5 if step >= 3 else 1.0,
            clip=None,
            accumulation=2,
            seed=7,
            drop_path=tuple(0.3 * i / 3 for i in range(4)),
            augment=Augment(cutmix_alpha=1.0),
        ),
    ),
    "sgd without Nesterov": Case(
        (
            "optim=sgd",
            "model=vit_ti4",
            *SMALL_VIT,
            "model.patch_size=8",
            "optim.lr=0.02",
            "optim.momentum=0.6",
            "optim.nesterov=false",
            "optim.weight_decay=0.02",
            "optim.schedule=linear",
            "optim.final_lr_ratio=0.2",
            "optim.warmup_epochs=0",
            "optim.clip_grad_norm=0.05",
            "augment=crop_flip",
            "augment.crop_padding=2",
            "augment.horizontal_flip=0.3",
            "augment.policy=trivialaugment",
            "train.label_smoothing=0.2",
        ),
        Recipe(
            forward=partial(vit, heads=3),
            optimizers=lambda: (sgd := SGD(0.6, nesterov=False), sgd),
            lr=0.02,
            weight_decay=0.02,
            batch=12,
            steps_per_epoch=3,
            total_steps=6,
            schedule=lambda progress, _: 1 - 0.8 * progress,
            clip=0.05,
            smoothing=0.2,
            augment=Augment(2, 0.3, "trivialaugment"),
        ),
        pixels_off=0.03,
    ),
}


@dataclass(frozen=True)
class Trained:
    case: Case
    recording: Recording
    reference: Reference
    folder: Path


@pytest.fixture(scope="module", params=CASES)
def trained(request: pytest.FixtureRequest, photos: Photos) -> Trained:
    """Each recipe, trained for two epochs under torch hooks, with a checkpoint after each step."""
    case = CASES[request.param]
    words = ["data=image_folder", "data.name=photos", "data.image_size=null", "run.device=cpu"]
    words += ["train.global_batch_size=12", "train.max_steps=6", "train.epochs=2"]
    words += ["train.log_every_steps=1", "checkpoint.every_steps=1", "checkpoint.keep_last=99"]
    words += ["tracking.trackers=[]", f"run.name={request.param.split()[-1]}"]
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEUSCALE_DATA", str(photos.folder.parent / "data"))
        patch.setenv("NEUSCALE_RUNS", str(photos.folder.parent / "runs"))
        config = compose_config([case.words[0], *words, *case.words[1:]])
        with recorded() as recording:
            run = train(config).run
    return Trained(case, recording, Reference(case.recipe, photos), run.path)


def steps(trained: Trained) -> range:
    assert len(trained.recording.gradients) == trained.case.recipe.total_steps
    return range(trained.case.recipe.total_steps)


def test_the_images_of_each_step_are_these(trained: Trained) -> None:
    off = total = 0
    for step in steps(trained):
        found, expected = trained.recording.images_of(step), trained.reference.batches(step)
        assert len(found) == len(expected) == trained.case.recipe.accumulation
        for images, batch in zip(found, expected, strict=True):
            assert images.shape == batch.images.shape
            differences = (images - batch.images).abs()
            off += int((differences > 2e-6).sum())
            total += differences.numel()
    # A policy's operations may round a pixel the other way, or choose another of two equally near pixels.
    assert off <= trained.case.pixels_off * total


def test_loss_and_gradients_of_each_step_are_these(trained: Trained) -> None:
    lines = [line for line in read_metrics(trained.folder / "metrics.jsonl") if line["split"] == "train"]
    for step in steps(trained):
        weights = trained.recording.weights[step]
        found = trained.recording.gradients[step]
        gradients, loss, accuracy = trained.reference.gradients(
            weights, step, trained.recording.images_of(step)
        )
        assert lines[step]["loss"] == pytest.approx(loss, abs=2e-6)
        assert lines[step]["accuracy"] == pytest.approx(accuracy, abs=1e-6)
        assert lines[step]["lr"] == pytest.approx(trained.case.recipe.lr_at(step), rel=1e-9)
        assert found.keys() == gradients.keys()
        largest = max(float(g.abs().max()) for g in gradients.values())
        assert largest > 1e-3
        for name, expected in gradients.items():
            assert_close(found[name], expected, 2e-6 * largest, f"step {step}, {name}")


def test_the_update_of_each_step_is_this(trained: Trained) -> None:
    recording, updates = trained.recording, Updates(trained.case.recipe)
    for step in steps(trained):
        expected = updates(recording.weights[step], recording.gradients[step], step)
        for name, after in recording.weights[step + 1].items():
            assert_close(after, expected[name], 1e-6, f"step {step}, {name}")


def test_the_checkpoint_of_each_step_has_the_weights_and_their_average(trained: Trained) -> None:
    folders = sorted((trained.folder / "checkpoints").glob("step-*"))
    assert [int(folder.name.removeprefix("step-")) for folder in folders] == [1, 2, 3, 4, 5, 6]
    for step, folder in enumerate(folders):
        saved = load_file(folder / "model.safetensors")
        after = trained.recording.weights[: step + 2]
        for name, weights in after[-1].items():
            assert torch.equal(saved[name], weights), name
        if not trained.case.recipe.ema_decay:
            assert not (folder / "ema.safetensors").exists()
            continue
        averages = load_file(folder / "ema.safetensors")
        for name, expected in average(after, trained.case.recipe.ema_decay).items():
            assert_close(averages[name], expected, 1e-6, f"step {step}, {name}")
