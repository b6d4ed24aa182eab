"""User data sources: exactly their pixels and labels are trained on, or a clear error rejects them."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from conftest import Said
from neuscale.data.formats.packed import PackedDataset

from .foreign_models import CONVOLUTIONAL

Command = Callable[..., Said]
Project = Callable[[dict[str, str]], Path]

MODEL = {"mynet.py": CONVOLUTIONAL, "conf/model/mine.yaml": "_target_: mynet.Net\n"}

DATA = """
import numpy as np
import torch
from PIL import Image

def pixels(i):
    return np.random.default_rng(i).integers(0, 256, (8, 8, 3)).astype(np.uint8)

class Arrays:
    classes = ["oak", "ash"]
    def __init__(self, split, count=6):
        self.first, self.count = (0, count) if split == "train" else (100, 4)
    def __len__(self):
        return self.count
    def __iter__(self):
        return ((pixels(self.first + i), i % 2) for i in range(self.count))

def pictures(split):
    for i in range(6 if split == "train" else 4):
        yield Image.fromarray(pixels(i + 100 * (split != "train"))), ["oak", "ash"][i % 2]

class Indexed:
    def __init__(self, split):
        self.first, self.count = (0, 6) if split == "train" else (100, 4)
    def __getitem__(self, i):
        if i == self.count:
            raise IndexError
        return pixels(self.first + i), ["oak", "ash"][i % 2]

class Gray(Arrays):
    def __iter__(self):
        return ((pixels(self.first + i)[:, :, 0], i % 2) for i in range(self.count))

class Torchs(torch.utils.data.Dataset):
    classes = ["oak", "ash"]
    def __init__(self, split):
        self.first, self.count = (0, 6) if split == "train" else (100, 4)
    def __len__(self):
        return self.count
    def __getitem__(self, i):
        return Image.fromarray(pixels(self.first + i)), i % 2

class Short(Arrays):
    def __iter__(self):
        return ((pixels(i), 0) for i in range(self.count - 1))

class Broken(Arrays):
    def __iter__(self):
        yield pixels(0), 0
        raise RuntimeError("the disk is gone")

def floats(split):
    return [(pixels(0) / 255, "a")]

def no_pairs(split):
    return [pixels(0)]

def empty(split):
    return []

def no_split(count=3):
    return []

class Beyond(Arrays):
    def __iter__(self):
        return ((pixels(i), 2) for i in range(self.count))
"""


@pytest.mark.parametrize("name", ["Arrays", "pictures", "Indexed", "Gray", "Torchs"])
def test_a_data_source_is_what_is_trained_on(
    name: str, project: Project, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project(
        {
            **MODEL,
            "own_data.py": DATA,
            "conf/data/own.yaml": f"name: own\ndataset:\n  _target_: own_data.{name}\n",
        }
    )
    monkeypatch.setenv("NEUSCALE_DATA", str(tmp_path / "data"))
    words = ["data=own", "model=mine", "train.global_batch_size=3", "train.epochs=1", "run.device=cpu"]
    said = command("train", *words, "run.name=a")
    assert said.code == 0, said.err
    data = PackedDataset.open(tmp_path / "data" / "packed" / "own")
    assert data.meta.counts == {"train": 6, "val": 4} and data.meta.classes == ["ash", "oak"]
    pixels = [
        np.random.default_rng(i).integers(0, 256, (8, 8, 3)).astype(np.uint8) for i in (1, 3, 5, 0, 2, 4)
    ]
    if name == "Gray":
        pixels = [np.repeat(each[:, :, :1], 3, 2) for each in pixels]
    np.testing.assert_array_equal(data.images("train"), np.stack(pixels).transpose(0, 3, 1, 2))
    assert data.labels("train").tolist() == [0, 0, 0, 1, 1, 1]
    assert data.meta.source["dataset"] == {"_target_": f"own_data.{name}"}
    assert command("train", *words, "run.name=b").code == 0
    assert command("eval", "a").code == 0
    if name == "Arrays":
        said = command("train", *words, "data.dataset.count=8", "run.name=c")
        assert said.code == 1 and "was made by other arguments" in said.err
        (tmp_path / "project" / "own_data.py").write_text(DATA + "\n")
        said = command("train", *words, "run.name=c")
        assert said.code == 1 and "was made by other code" in said.err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Short", "train ended after 5 images of 6"),
        ("Broken", r"train, image 1: RuntimeError: the disk is gone \(.*own_data.py, line"),
        ("floats", r"train, image 0: float64 \[8, 8, 3\] is no image"),
        ("no_pairs", "train, image 0: ndarray is no pair of image and label"),
        ("empty", "train ended after 0 images"),
        ("no_split", "it has no argument `split`"),
        ("Beyond", "label 2 of 2 classes"),
        ("Missing", "has no attribute 'Missing'"),
    ],
)
def test_a_data_source_that_does_not_work_leaves_nothing(
    name: str,
    words: str,
    project: Project,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:

    project(
        {
            **MODEL,
            "own_data.py": DATA,
            "conf/data/own.yaml": f"name: own\ndataset:\n  _target_: own_data.{name}\n",
        }
    )
    monkeypatch.setenv("NEUSCALE_DATA", str(tmp_path / "data"))
    said = command("train", "data=own", "model=mine", "train.global_batch_size=3", "run.device=cpu")
    assert said.code == 2 and re.search(words, said.err), said.err
    assert "not foreseen" not in said.err
    assert not (tmp_path / "data" / "packed" / "own").exists()


def test_a_run_on_own_data_is_used_where_its_code_is_not(
    project: Project, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prepared images are used: neither evaluating nor resuming calls the data source again."""
    preset = "name: own\ndataset:\n  _target_: own_data.Arrays\n"
    folder = project({**MODEL, "own_data.py": DATA, "conf/data/own.yaml": preset})
    monkeypatch.setenv("NEUSCALE_DATA", str(tmp_path / "data"))
    words = ["data=own", "model=mine", "train.global_batch_size=3", "run.device=cpu", "run.name=a"]
    assert command("train", *words, "train.epochs=2", "checkpoint.every_steps=1").code == 0
    (folder / "own_data.py").write_text("raise RuntimeError('it was asked')\n")
    said = command("train", "--resume", "a", "train.epochs=3")
    assert said.code == 0, said.err
    assert command("eval", "a").code == 2, "the run imported that module: it has to be the same one"
    (folder / "own_data.py").write_text(DATA)
    monkeypatch.chdir(tmp_path)
    said = command("eval", "a")
    assert said.code == 2 and "brings code of its own (mynet.py, own_data.py)" in said.err
    shutil.rmtree(tmp_path / "data" / "packed" / "own")
    monkeypatch.chdir(folder)
    said = command("eval", "a")
    assert said.code == 1 and "is not prepared; it was made by own_data.Arrays" in said.err
