"""Shared fixtures: small real image trees, archives of them, and a fake progress that records reports."""

import json
import os
import signal
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

# Overrides for a training on 8×8 images of the data set 'tiny'; a step takes a few milliseconds.
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

# pytest-xdist sets COLUMNS for its workers, but commands under test do not print to a terminal.
os.environ.pop("COLUMNS", None)

# Background jobs of a shell script ignore SIGINT; subprocesses of the tests would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
_BLOCKED = signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.fixture(autouse=True)
def signals_as_they_were() -> None:
    """Restore the signal mask: training leaves SIGUSR2 blocked, and subprocesses would inherit that."""
    signal.pthread_sigmask(signal.SIG_SETMASK, _BLOCKED)


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


# WordNet ids as in words.txt; two classes share their first name.
WORDS = {"n03": "crane, derrick", "n01": "crane", "n02": "Labrador retriever, Labrador", "n99": "entity"}
ANNOTATED = ["n02", "n01", "n03", "n01", "n02", "n03"]


@pytest.fixture(scope="session")
def build_tiny_imagenet() -> TreeBuilder:
    """A function that writes Tiny ImageNet's official layout with three classes.

    Red encodes the class, green the number of a training image. The first training image of each
    class is grayscale, as some are in the original.
    """

    def save(path: Path, color: tuple[int, int, int], side: int, mode: str = "RGB") -> None:
        Image.new("RGB", (side, side), color).convert(mode).save(path, quality=100, subsampling=0)

    def build(top: Path, *, train: int = 4, side: int = 16) -> Path:
        for label, wnid in enumerate(["n01", "n02", "n03"]):
            images = top / "train" / wnid / "images"
            images.mkdir(parents=True)
            for number in range(train):
                mode = "L" if number == 0 else "RGB"
                save(images / f"{wnid}_{number}.JPEG", (80 * label, 10 * number % 256, 0), side, mode)
            (images.parent / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t1\t1\n")
        (top / "val" / "images").mkdir(parents=True)
        lines = []
        for number, wnid in enumerate(ANNOTATED):
            save(top / "val" / "images" / f"val_{number}.JPEG", (80 * int(wnid[2:]) - 80, 0, 200), side)
            lines.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t15\t15\n")
        (top / "val" / "val_annotations.txt").write_text("".join(lines))
        (top / "test" / "images").mkdir(parents=True)
        (top / "test" / "images" / "test_0.JPEG").write_bytes(b"never read")
        (top / "wnids.txt").write_text("n03\nn01\nn02\n")
        (top / "words.txt").write_text("".join(f"{wnid}\t{names}\n" for wnid, names in WORDS.items()))
        return top

    return build


@pytest.fixture(scope="session")
def build_archive() -> ArchiveBuilder:
    """A function that packs a folder as .zip, .tar or .tar.gz, depending on the target's suffix."""

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


@dataclass
class Said:
    """Result of a command; `words` is stderr on one line."""

    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        return " ".join(self.err.split())

    @property
    def json(self) -> Any:
        """Standard output, which must be one JSON object and nothing else."""
        return json.loads(self.out)


class ListeningTask:
    """Fake progress task that adds up the counts passed to `advance`."""

    def __init__(self, title: str, total: int | None, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = 0

    def advance(self, count: int = 1) -> None:
        self.done += count

    def note(self, text: str) -> None:
        pass


class ListeningProgress:
    """Fake progress that records all tasks, messages and warnings."""

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
    """A fake progress that records what is reported."""
    return ListeningProgress()
