"""What several tests share: small real image trees, archives of them, and a progress that listens."""

import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# A training of a few milliseconds a step on 8×8 images of the data set 'tiny'.
TINY_RECIPE = [
    "data=image_folder",
    "data.name=tiny",
    "model.embed_dim=8",
    "model.depths=[2,1]",
    "model.num_heads=[1,2]",
    "model.patch_size=2",
    "model.window_size=2",
    "augment.crop_padding=1",
    "train.global_batch_size=12",
    "run.device=cpu",
]

TreeBuilder = Callable[..., Path]
ArchiveBuilder = Callable[[Path, Path], Path]


@pytest.fixture(scope="session")
def build_image_tree() -> TreeBuilder:
    """A function that writes `train/<class>/NN.png` and `<held_out>/<class>/NN.png` below a folder."""

    def build(
        folder: Path,
        *,
        classes: tuple[str, ...] = ("cat", "dog", "owl"),
        train: int = 4,
        val: int = 2,
        size: tuple[int, int] = (8, 8),
        held_out: str = "val",
        suffix: str = ".png",
        seed: int = 0,
    ) -> Path:
        random = np.random.default_rng(seed)
        for split, count in (("train", train), (held_out, val)):
            for name in classes:
                (folder / split / name).mkdir(parents=True)
                for number in range(count):
                    pixels = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / split / name / f"{number:04}{suffix}")
        return folder

    return build


@pytest.fixture(scope="session")
def build_archive() -> ArchiveBuilder:
    """A function that packs a folder as .zip, .tar or .tar.gz, by the target's name."""

    def build(folder: Path, target: Path) -> Path:
        paths = sorted(path for path in folder.rglob("*"))
        if target.suffix == ".zip":
            with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
                for path in paths:
                    archive.write(path, path.relative_to(folder))
        else:
            with tarfile.open(target, "w:gz" if target.suffix == ".gz" else "w") as tar:
                for path in paths:
                    tar.add(path, path.relative_to(folder), recursive=False)
        return target

    return build


class ListeningTask:
    """Counts what it is told."""

    def __init__(self, title: str, total: int | None, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = 0

    def advance(self, count: int = 1) -> None:
        self.done += count

    def note(self, text: str) -> None:
        pass


class ListeningProgress:
    """Remembers everything that was reported."""

    def __init__(self) -> None:
        self.tasks: list[ListeningTask] = []
        self.messages: list[str] = []
        self.warnings: list[str] = []

    @contextmanager
    def task(self, title: str, total: int | None, unit: str) -> Iterator[ListeningTask]:
        self.tasks.append(ListeningTask(title, total, unit))
        yield self.tasks[-1]

    def message(self, text: str) -> None:
        self.messages.append(text)

    def warning(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def listening() -> ListeningProgress:
    """A progress that remembers what was reported."""
    return ListeningProgress()
