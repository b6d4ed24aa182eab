"""Small trained models, and the command line to use them.

The images of 'done' are ten classes of Tiny ImageNet if `NEUSCALE_TEST_DATA` names a folder with
tiny-imagenet-40.zip, else noise. Those of 'odd' are chosen so that no two results coincide.
"""

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from conftest import Said, TreeBuilder
from neuscale.cli import run
from neuscale.models.registry import create_model
from neuscale.runs.folder import RunFolder
from neuscale.training.checkpoint import CheckpointFolder

MODEL = ["model.embed_dim=16", "model.depths=[1,1]", "model.num_heads=[1,2]", "model.window_size=4"]
RECIPE = ["data=image_folder", "data.name=mine", *MODEL, "augment.horizontal_flip=0.5", "run.device=cpu"]
RECIPE += ["train.global_batch_size=50", "train.epochs=4", "train.ema_decay=0.9", "eval.batch_size=64"]


@dataclass(frozen=True)
class Trained:
    """The run 'done' in `runs`, its data folder, and the tree of image files that the data was made from."""

    data: Path
    runs: Path
    tree: Path

    @property
    def val_files(self) -> list[Path]:
        return sorted((self.tree / "val").rglob("*.*"))


def unpack_tiny_imagenet(archive: Path, tree: Path) -> None:
    """Write ten classes as train/<class>/* and val/<class>/*: 50 and 20 images each, some in grayscale."""
    with zipfile.ZipFile(archive) as opened:
        names = sorted(name for name in opened.namelist() if "/train/" in name and name.endswith(".JPEG"))
        by_class: dict[str, list[str]] = {}
        for name in names:
            by_class.setdefault(name.split("/")[2], []).append(name)
        for wnid, members in sorted(by_class.items())[:10]:
            for split, part in (("train", members[:50]), ("val", members[50:70])):
                folder = tree / split / wnid
                folder.mkdir(parents=True)
                for member in part:
                    (folder / Path(member).name).write_bytes(opened.read(member))


@pytest.fixture(scope="session")
def trained(build_image_tree: TreeBuilder, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    found = Trained(folder / "data", folder / "runs", folder / "tree")
    archive = Path(os.environ.get("NEUSCALE_TEST_DATA", ""), "tiny-imagenet-40.zip")
    if archive.is_file():
        unpack_tiny_imagenet(archive, found.tree)
    else:
        build_image_tree(found.tree, train=40, val=20, size=(64, 64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEUSCALE_DATA", str(found.data))
        patch.setenv("NEUSCALE_RUNS", str(found.runs))
        assert run(["train", *RECIPE, f"data.source={found.tree}", "run.name=done", "--json"]) == 0
    return found


@pytest.fixture
def neuscale(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Said]:
    """A function that runs a command line in this process, with the run 'done'."""
    return command_beside(trained, monkeypatch, capfd)


def command_beside(
    trained: "Trained | Odd", monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Said]:
    monkeypatch.setenv("NEUSCALE_DATA", str(trained.data))
    monkeypatch.setenv("NEUSCALE_RUNS", str(trained.runs))
    monkeypatch.delenv("NEUSCALE_DEBUG", raising=False)

    def command(*words: object) -> Said:
        capfd.readouterr()
        code = run([str(word) for word in words])
        return Said(code, *capfd.readouterr())

    return command


# Seven classes of uneven sizes; images are 14 wide and 10 high, and 8×8 for the model.
ODD_CLASSES = ["ape", "bee", "cat", "dog", "eel", "fox", "gnu"]
ODD_COUNTS = {"train": [3, 9, 4, 7, 5, 2, 6], "val": [5, 1, 6, 3, 7, 4, 3]}
ODD_RECIPE = ["data=image_folder", "data.name=odd", "data.image_size=8", "model.embed_dim=8", "run.seed=5"]
ODD_RECIPE += ["model.depths=[1,1]", "model.num_heads=[1,2]", "model.patch_size=2", "model.window_size=2"]
ODD_RECIPE += ["train.epochs=1", "train.max_steps=1", "train.global_batch_size=12", "train.ema_decay=0.5"]
ODD_RECIPE += ["train.precision=fp32", "eval.batch_size=9", "run.device=cpu", "tracking.trackers=[]"]
# Seeds of the weights in the run's checkpoints: step 6 is the best one, step 9 the last one.
ODD_WEIGHTS = {(6, "raw"): 1, (6, "ema"): 0, (9, "raw"): 3, (9, "ema"): 4}
# Metrics recorded in the checkpoints; no evaluation of them gives these values.
ODD_METRICS = {6: {"top1": 0.61, "top5": 0.62, "loss": 0.63}, 9: {"top1": 0.91, "top5": 0.92, "loss": 0.93}}


@dataclass(frozen=True)
class Odd:
    """The run 'odd' in `runs`, and reference values from its image files without the inference code."""

    data: Path
    runs: Path
    tree: Path

    @property
    def run(self) -> Path:
        return self.runs / "odd"

    def files(self, split: str = "val") -> list[Path]:
        return sorted((self.tree / split).rglob("*.png"))

    def labels(self, split: str = "val") -> Tensor:
        return torch.tensor([ODD_CLASSES.index(file.parent.name) for file in self.files(split)])

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each channel over all training pixels, for values in 0 … 1."""
        pixels = np.stack([np.asarray(Image.open(file)) for file in self.files("train")]) / 255
        return pixels.mean((0, 1, 2)), pixels.std((0, 1, 2))

    def model_input(self, pictures: list[Image.Image]) -> Tensor:
        """Normalise 14×10 pictures and resize each channel with Pillow: float32 [N, 3, 8, 8]."""
        mean, std = self.statistics()
        inputs = []
        for picture in pictures:
            colours = ((np.asarray(picture) / 255 - mean) / std).astype(np.float32).transpose(2, 0, 1)
            planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in colours]
            inputs.append(np.stack([plane.resize((8, 8), Image.Resampling.BILINEAR) for plane in planes]))
        return torch.from_numpy(np.stack(inputs))

    def logits(self, step: int, weights: str, pictures: list[Image.Image]) -> Tensor:
        """Logits of a plain forward pass with the weights of a checkpoint: float64 [N, 7]."""
        name = {"raw": "model.safetensors", "ema": "ema.safetensors"}[weights]
        model = create_model(RunFolder(self.run).config().model, 8, 3, 7, 0).eval()
        model.load_state_dict(load_file(self.run / "checkpoints" / f"step-{step:08}" / name))
        with torch.no_grad():
            logits: Tensor = model(self.model_input(pictures))
        return logits.double()

    def split_logits(self, step: int, weights: str, split: str = "val", mirrored: bool = False) -> Tensor:
        pictures = [Image.open(file).convert("RGB") for file in self.files(split)]
        if mirrored:
            pictures = [picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for picture in pictures]
        return self.logits(step, weights, pictures)


def draw_odd_tree(tree: Path) -> None:
    """Write pictures that fade from one colour to another, left to right; channels differ in range."""
    random = np.random.default_rng(3)
    ramp = np.linspace(0, 1, 14)[None, :, None]
    for split, counts in ODD_COUNTS.items():
        for name, count in zip(ODD_CLASSES, counts, strict=True):
            (tree / split / name).mkdir(parents=True)
            for number in range(count):
                left, right = random.uniform([0, 40, 150], [256, 140, 250], (2, 3))
                pixels = left * (1 - ramp) + right * ramp + random.normal(0, 20, (10, 14, 3))
                picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                picture.save(tree / split / name / f"{number:02}.png")


def strong_weights(run_folder: RunFolder, seed: int) -> dict[str, Tensor]:
    """Weights of a model that is sure about some images and not about others, unlike an untrained one."""
    state = create_model(run_folder.config().model, 8, 3, 7, seed).state_dict()
    return {
        name: value * 12 if value.is_floating_point() and value.ndim > 1 else value
        for name, value in state.items()
    }


@pytest.fixture(scope="session")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Odd:
    folder = tmp_path_factory.mktemp("odd")
    found = Odd(folder / "data", folder / "runs", folder / "tree")
    draw_odd_tree(found.tree)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEUSCALE_DATA", str(found.data))
        patch.setenv("NEUSCALE_RUNS", str(found.runs))
        assert run(["train", *ODD_RECIPE, f"data.source={found.tree}", "run.name=odd", "--json"]) == 0
    made = RunFolder(found.run)
    checkpoints = CheckpointFolder(made.checkpoints, keep_last=9)
    for step in (6, 9):
        raw, average = (strong_weights(made, ODD_WEIGHTS[step, weights]) for weights in ("raw", "ema"))
        checkpoints.save(step, step // 3, raw, {}, ODD_METRICS[step], step == 6, average)
    return found


@pytest.fixture
def command(
    odd: Odd, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Said]:
    """A function that runs a command line in this process, with the run 'odd'."""
    return command_beside(odd, monkeypatch, capfd)
