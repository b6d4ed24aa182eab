"""Tiny but real training: small images on disk and a small Swin with all its randomness enabled."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import TINY_RECIPE
from neuscale.config import Config, compose_config
from neuscale.data.open import open_data
from neuscale.data.prepare import prepare
from neuscale.distributed.accelerator import create_accelerator
from neuscale.progress import Silent
from neuscale.training.trainer import Trainer
from reference.training import Photos

TINY = [*TINY_RECIPE, "model.dropout=0.1", "model.drop_path_rate=0.2", "train.log_every_steps=2"]

ConfigBuilder = Callable[..., Config]
TrainerBuilder = Callable[..., Trainer]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Use one thread; at this size more threads only slow each other down."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_data(build_image_tree: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data folder with 'tiny' prepared: 60 training and 21 validation images of 8×8 in 3 classes."""
    folder = tmp_path_factory.mktemp("tiny")
    tree = build_image_tree(folder / "tree", train=20, val=7)
    prepare("image_folder", root=folder / "data", source=tree, save_as="tiny")
    return folder / "data"


@pytest.fixture
def tiny(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ConfigBuilder:
    """Function that composes the tiny config with overrides; its runs go to a temporary folder."""
    monkeypatch.setenv("NEUSCALE_DATA", str(tiny_data))
    monkeypatch.setenv("NEUSCALE_RUNS", str(tmp_path / "runs"))

    def build(*words: str) -> Config:
        return compose_config([*TINY, *words])

    return build


@pytest.fixture
def build_trainer(tiny: ConfigBuilder) -> TrainerBuilder:
    """Function that builds the Trainer of the tiny config with overrides, and does not train.

    An override that selects a model (`model=vit_ti4`) also brings that model's own sizes.
    """
    del tiny  # requested for the environment that it sets

    def build(*words: str) -> Trainer:
        other = any(word.startswith("model=") for word in words)
        config = compose_config([word for word in TINY if not (other and "model." in word)] + list(words))
        accelerator = create_accelerator(config.run.device, config.train.precision)
        return Trainer(config, open_data(config, Silent()), accelerator, Silent())

    return build


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Photos:
    """40 smooth images of 16×16 in three classes of different sizes and colours.

    Prepared as 'photos' in the folder `data` beside them: an epoch has 3 steps of 12 images, and 4 are left.
    """
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(3)
    for split, share in (("train", 1), ("val", 5)):
        for number, (name, count) in enumerate({"cat": 13, "dog": 17, "owl": 10}.items()):
            (folder / split / name).mkdir(parents=True)
            for image in range(count // share):
                coarse = random.integers(0, 200, (4, 4, 3), dtype=np.uint8)
                coarse[..., number] //= 2
                picture = Image.fromarray(coarse).resize((16, 16), Image.Resampling.BICUBIC)
                picture.save(folder / split / name / f"{image:03}.png")
    prepare("image_folder", root=folder / "data", source=folder, save_as="photos")
    return Photos(folder / "train")
