"""A run may start from the weights of another run, by name, with images normalised to match."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import neuscale
from conftest import ListeningProgress
from neuscale.config import Config, compose_config
from neuscale.data.formats.packed import PackedDataset
from neuscale.errors import CheckpointError, UsageError
from neuscale.inference.classifier import load_exported
from neuscale.inference.evaluate_run import evaluate_run
from neuscale.inference.export import ExportOptions, export
from neuscale.models import weights as module
from neuscale.progress import Silent
from neuscale.runs.manifest import load_manifest
from neuscale.training.build import starting_config
from neuscale.training.checkpoint import CheckpointFolder, open_checkpoint
from neuscale.training.run import train
from neuscale.training.trainer import Trainer

ConfigBuilder = Callable[..., Config]


@pytest.mark.parametrize("name", ["first", "last"])
def test_a_run_is_named_and_its_best_checkpoint_taken(tiny: ConfigBuilder, name: str) -> None:
    first = train(tiny("train.epochs=2", "run.name=first")).run
    best = CheckpointFolder(first.checkpoints).best_path()
    assert best is not None
    run = train(tiny("train.max_steps=1", f"model.weights={name}", "run.name=second", "optim.lr=1e-12")).run
    assert run.config().model.weights == str(best)
    expected = open_checkpoint(best).weights()
    found = open_checkpoint(CheckpointFolder(run.checkpoints).paths()[-1]).weights()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=1e-6, rtol=0)
    with pytest.raises(CheckpointError, match=r"nobody: there is no such file"):
        train(tiny("model.weights=nobody", "run.name=third"))


def test_images_are_normalised_as_for_the_weights_wherever_the_run_is_used(
    tiny: ConfigBuilder, build_trainer: Callable[..., Trainer], tmp_path: Any
) -> None:
    sizes = ["data.image_size=16", "model.window_size=4"]
    shown = ["data.mean=[0.4,0.5,0.6]", "data.std=[0.2,0.3,0.4]", "data.interpolation=bicubic"]
    shown += ["data.crop=0.75", *sizes]
    first = train(tiny("train.epochs=1", "run.name=first", *shown)).run
    manifest = load_manifest(first.manifest_file)
    assert (manifest["data"]["mean"], manifest["data"]["std"]) == ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4])
    listening = ListeningProgress()
    second = train(
        tiny("train.epochs=1", "model.weights=first", "run.name=second", *sizes), None, listening
    ).run
    begins = "images are prepared as for these weights: "
    (said,) = [line for line in listening.messages if line.startswith(begins)]
    assert "data.mean 0.4, 0.5, 0.6" in said and "data.interpolation bicubic, data.crop 0.75" in said
    data = second.config().data
    assert (data.mean, data.std) == ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4])
    assert (data.interpolation, data.crop) == ("bicubic", 0.75)
    # The data set's own fingerprint is the same.
    assert load_manifest(second.manifest_file)["data"]["fingerprint"] == manifest["data"]["fingerprint"]
    measured = evaluate_run(second, "last", "val", "cpu", Silent()).evaluation
    checkpoint = open_checkpoint(CheckpointFolder(second.checkpoints).paths()[-1])
    assert measured.loss == pytest.approx(checkpoint.metrics["loss"], rel=1e-5)
    exported = export(second, "safetensors", ExportOptions(tmp_path / "exported", "last"), Silent())
    record = json.loads((exported.folder / "model.json").read_text())
    assert [record["preprocessing"][name] for name in ("mean", "std", "interpolation", "crop")] == [
        [0.4, 0.5, 0.6],
        [0.2, 0.3, 0.4],
        "bicubic",
        0.75,
    ]
    assert (
        "resized to 21×21 (bicubic, antialiased), of which the middle 16×16 is kept"
        in (exported.folder / "README.md").read_text()
    )
    # The exported model gives the same results from the raw bytes as the run itself.
    tiny_data = neuscale.load_data("tiny")
    pixels = torch.from_numpy(tiny_data.images("val").copy())
    logits = load_exported(exported.folder)(pixels)
    losses = F.cross_entropy(logits, torch.from_numpy(tiny_data.labels("val")))
    assert measured.loss == pytest.approx(losses.item(), rel=1e-4)
    assert neuscale.evaluate(second.name, tiny_data).top1 == measured.top1
    # The run resumes with its settings, and an exported model's record supplies them too.
    assert train(second.config(["train.epochs=2"]), second).outcome.steps == 10
    found, _ = starting_config(tiny(f"model.weights={exported.folder / 'model.safetensors'}"))
    assert found.data.mean == [0.4, 0.5, 0.6]
    assert (found.data.interpolation, found.data.crop) == ("bicubic", 0.75)
    # Settings on the command line take precedence.
    own, _ = starting_config(tiny("model.weights=first", "data.mean=[0,0,0]", "data.std=[1,1,1]"))
    assert own.data.mean == [0, 0, 0] and own.data.crop == 0.75
    own, _ = starting_config(tiny("model.weights=first", "data.interpolation=bilinear", "data.crop=1"))
    assert (own.data.interpolation, own.data.crop) == ("bilinear", 1) and own.data.mean == [0.4, 0.5, 0.6]


def test_pixels_are_those_of_the_mean_and_deviation(build_trainer: Callable[..., Trainer]) -> None:
    trainer = build_trainer("data.mean=[0.1,0.2,0.3]", "data.std=[0.5,1,2]")
    assert isinstance(trainer.data, PackedDataset)
    batch = next(iter(trainer.val_loader.evaluation(4)))
    pixels = torch.from_numpy(trainer.data.images("val")[:4].copy()).float() / 255
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 1.0, 2.0])
    torch.testing.assert_close(batch.images, (pixels - mean[:, None, None]) / std[:, None, None])
    for words in (["data.mean=[0.1]", "data.std=[1]"], ["data.mean=[1,1,1]"], ["data.std=[1,1,1]"]):
        with pytest.raises(UsageError, match="expected 3 numbers each, one for each channel"):
            build_trainer(*words)


def test_a_librarys_own_weights_say_how() -> None:
    swin = replace(compose_config(["model=swin_t"]).model, weights="imagenet")
    imagenet = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    # torchvision's Swin-T: resize to 232, then crop the central 224.
    assert module.weights_preprocessing(swin) == {**imagenet, "interpolation": "bicubic", "crop": 224 / 232}
    model = compose_config(["model=torchvision", "model.arch=efficientnet_v2_l"]).model
    half = {"mean": [0.5] * 3, "std": [0.5] * 3}
    found = module.weights_preprocessing(replace(model, weights="imagenet"))
    assert found == {**half, "interpolation": "bicubic", "crop": 1.0}
    pytest.importorskip("timm")
    model = compose_config(["model=timm", "model.arch=vit_tiny_patch16_224.augreg_in21k_ft_in1k"]).model
    found = module.weights_preprocessing(replace(model, weights="imagenet"))
    assert found == {**half, "interpolation": "bicubic", "crop": 0.9}


@pytest.mark.parametrize("text", ["~nobody-of-this-name/w.pth", "x" * 300, "a/../b", "w\0.pth"])
def test_a_path_that_is_none_is_named(tiny: ConfigBuilder, text: str) -> None:
    config = tiny()
    config.model.weights = text
    assert starting_config(config)[0].model.weights == text
    with pytest.raises(CheckpointError):
        train(config)
