"""A small model that was trained, and the command line to do something with it.

Its images are ten classes of Tiny ImageNet where `NEUSCALE_TEST_DATA` names a folder with
tiny-imagenet-40.zip, else noise.
"""

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import Said, TreeBuilder
from neuscale.cli import run

MODEL = ["model.embed_dim=16", "model.depths=[1,1]", "model.num_heads=[1,2]", "model.window_size=4"]
RECIPE = ["data=image_folder", "data.name=mine", *MODEL, "augment.horizontal_flip=0.5", "run.device=cpu"]
RECIPE += ["train.global_batch_size=50", "train.epochs=4", "train.ema_decay=0.9", "eval.batch_size=64"]


@dataclass(frozen=True)
class Trained:
    """The run 'done' in `runs`, its data folder, and the tree of image files that it was made from."""

    data: Path
    runs: Path
    tree: Path

    @property
    def val_files(self) -> list[Path]:
        return sorted((self.tree / "val").rglob("*.*"))


def unpack_tiny_imagenet(archive: Path, tree: Path) -> None:
    """Ten classes as train/<class>/* and val/<class>/*: 50 and 20 images each, some of them grayscale."""
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
    """A function that runs a command line in this process, beside the run 'done'."""
    monkeypatch.setenv("NEUSCALE_DATA", str(trained.data))
    monkeypatch.setenv("NEUSCALE_RUNS", str(trained.runs))
    monkeypatch.delenv("NEUSCALE_DEBUG", raising=False)

    def command(*words: object) -> Said:
        capfd.readouterr()
        code = run([str(word) for word in words])
        return Said(code, *capfd.readouterr())

    return command
