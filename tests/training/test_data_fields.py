"""Every field of `data` reaches the loader that training reads from."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neuscale.config import Config, compose_config
from neuscale.config.schema import DataConfig
from neuscale.data.formats.packed import PackedDataset
from neuscale.data.formats.write_image_list import list_images
from neuscale.data.loaders import choose
from neuscale.data.loaders import image_files as file_loader
from neuscale.data.open import open_data
from neuscale.data.prepare import prepare
from neuscale.progress import Silent
from neuscale.training.trainer import Trainer

TrainerBuilder = Callable[..., Trainer]

FIELDS = {
    "name",
    "source",
    "stage",
    "image_size",
    "loader",
    "memory_share",
    "workers",
    "sampler",
    "mean",
    "std",
    "interpolation",
    "crop",
    "dataset",
}


def test_every_field_is_looked_for() -> None:
    assert {field.name for field in dataclasses.fields(DataConfig)} == FIELDS


@pytest.fixture
def tree(build_image_tree: Callable[..., Path], tmp_path: Path) -> Path:
    """Images of another size than the tiny data's, in two classes: 24 for training, 6 for validation."""
    return build_image_tree(tmp_path / "tree", classes=("ant", "bee"), train=12, val=3, size=(10, 10))


@pytest.fixture
def folder(tiny: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty data folder, so that the session's data folder is not changed."""
    monkeypatch.setenv("NEUSCALE_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def opened(*words: str) -> Any:
    return open_data(compose_config(["data=image_folder", *words]), Silent())


def test_the_data_set_is_the_one_that_is_named(folder: Path, tree: Path) -> None:
    prepare("image_folder", root=folder, source=tree, save_as="pets")
    (tree / "train" / "ant").rename(tree / "train" / "asp")
    (tree / "val" / "ant").rename(tree / "val" / "asp")
    prepare("image_folder", root=folder, source=tree, save_as="other")
    assert (opened("data.name=pets").meta.name, opened("data.name=other").meta.name) == ("pets", "other")
    assert opened("data.name=other").meta.classes == ["asp", "bee"]


def test_a_source_is_prepared_under_the_name(folder: Path, tree: Path) -> None:
    data = opened("data.name=fresh", f"data.source={tree}")
    assert isinstance(data, PackedDataset)
    assert data.folder.is_relative_to(folder)
    assert data.meta.name == "fresh"
    assert data.meta.source["given"] == "tree"
    assert (data.meta.counts, data.meta.classes) == ({"train": 24, "val": 6}, ["ant", "bee"])
    listed = opened("data.name=kept", f"data.source={tree}", "data.loader=files", "data.image_size=6")
    assert listed.meta.source["size"] == 6
    assert (listed.meta.name, listed.files_folder) == ("kept", tree.absolute())


def test_data_are_staged_to_the_folder_that_is_named(
    folder: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare("image_folder", root=folder, source=tree, save_as="pets")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "node"))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for asked, below in (
        ("none", folder),
        ("auto", tmp_path / "node"),
        (str(tmp_path / "disk"), tmp_path / "disk"),
    ):
        assert opened("data.name=pets", f"data.stage={asked}").folder.is_relative_to(below), asked


def test_images_have_the_size_that_is_named_in_training_and_in_evaluation(
    build_trainer: TrainerBuilder,
) -> None:
    trainer = build_trainer("data.image_size=12")
    assert (trainer.loader.size, trainer.val_loader.size) == (12, 12)
    ((batch,),) = trainer.loader.training(trainer.config.augment, 0, 0, 0, 1, 12)
    assert batch.images.shape == (12, 3, 12, 12)
    assert next(iter(trainer.val_loader.evaluation(5))).images.shape == (5, 3, 12, 12)
    assert trainer.raw_model(batch.images).shape == (12, 3)
    assert build_trainer().loader.size == 8


def test_the_loader_is_the_one_that_is_named(build_trainer: TrainerBuilder) -> None:
    for kind in ("resident", "stream"):
        trainer = build_trainer(f"data.loader={kind}")
        assert (trainer.choice.kind, trainer.loader.kind, trainer.val_loader.kind) == (kind, kind, kind)
        assert (len(trainer.loader), len(trainer.val_loader)) == (60, 21)


def test_images_stay_on_the_device_within_their_share_of_its_memory(
    build_trainer: TrainerBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = (60 + 21) * 3 * 8 * 8
    monkeypatch.setattr(choose, "device_memory", lambda _device: 10 * images)
    assert build_trainer("data.memory_share=0.09").loader.kind == "stream"
    assert build_trainer("data.memory_share=0.1").loader.kind == "resident"
    assert build_trainer("data.memory_share=0.11").loader.kind == "resident"
    assert "0.09 of the" in build_trainer("data.memory_share=0.09").choice.reason


class Stop(Exception):
    pass


def test_files_are_decoded_by_as_many_processes_as_are_named(
    folder: Path, tree: Path, build_trainer: TrainerBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_images("image_folder", root=folder, source=tree, size=6, save_as="kept")
    monkeypatch.setattr(file_loader, "available_cores", lambda: 5)
    asked: list[Any] = []

    def data_loader(*args: Any, num_workers: int, **options: Any) -> None:
        asked.append(num_workers)
        raise Stop

    monkeypatch.setattr(file_loader, "DataLoader", data_loader)
    for field, workers in (("3", 3), ("0", 0), ("null", 5)):
        trainer = build_trainer("data.name=kept", f"data.workers={field}")
        assert trainer.loader.kind == trainer.val_loader.kind == "files"
        for loader in (trainer.loader, trainer.val_loader):
            with pytest.raises(Stop):
                next(iter(loader.evaluation(6)))
        assert asked[-2:] == [workers, workers]
