"""A tiny but real training: small images on disk, a small Swin with all its randomness switched on."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import TINY_RECIPE
from neuscale.config import Config, compose_config
from neuscale.data.prepare import prepare

TINY = [*TINY_RECIPE, "model.dropout=0.1", "model.drop_path_rate=0.2", "train.log_every_steps=2"]

ConfigBuilder = Callable[..., Config]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """More threads than one only get in each other's way at this size."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_data(build_image_tree: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder in which 'tiny' is prepared: 60 training and 21 validation images of 8×8 in 3 classes."""
    folder = tmp_path_factory.mktemp("tiny")
    tree = build_image_tree(folder / "tree", train=20, val=7)
    prepare("image_folder", root=folder / "data", source=tree, save_as="tiny")
    return folder / "data"


@pytest.fixture
def tiny(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ConfigBuilder:
    """A function that composes the tiny training, changed by words; its runs go to a temporary folder."""
    monkeypatch.setenv("NEUSCALE_DATA", str(tiny_data))
    monkeypatch.setenv("NEUSCALE_RUNS", str(tmp_path / "runs"))

    def build(*words: str) -> Config:
        return compose_config([*TINY, *words])

    return build
