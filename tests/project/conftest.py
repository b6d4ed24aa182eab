"""Fixtures for a user's project folder, with modules and presets of its own."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import Said
from neuscale.cli import run
from neuscale.data.prepare import prepare
from neuscale.project import targets
from neuscale.project.folder import VARIABLE
from neuscale.project.trust import TRUST

Files = dict[str, str]


@pytest.fixture(scope="session")
def photos_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data folder with 'photos': 48 and 12 noise images of 16×16 in three classes, tinted by class."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 4)):
        for label, name in enumerate(("cat", "dog", "owl")):
            (folder / "tree" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 120, (16, 16, 3)).astype(np.uint8)
                pixels[:, :, label] += 100
                Image.fromarray(pixels).save(folder / "tree" / split / name / f"{number}.png")
    prepare("image_folder", root=folder / "data", source=folder / "tree", save_as="photos")
    return folder / "data"


@pytest.fixture
def as_fresh() -> Iterator[None]:
    """Forget all imported user code before and after the test, as in a new process."""

    def forget() -> None:
        targets._of_run = None
        for folder in targets._added:
            if folder in sys.path:
                sys.path.remove(folder)
        for name, module in list(sys.modules.items()):
            file = targets._file(module)
            if file is not None and any(map(file.is_relative_to, targets._left)):
                del sys.modules[name]
        targets._added.clear()
        targets._left.clear()
        targets._brought.clear()

    forget()
    yield
    forget()


@pytest.fixture
def project(
    as_fresh: None, photos_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Files], Path]:
    """A function that writes a project of these files and makes it the current folder."""
    del as_fresh
    monkeypatch.setenv("NEUSCALE_DATA", str(photos_data))
    monkeypatch.setenv("NEUSCALE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in (VARIABLE, TRUST):  # the command line sets these for its subprocesses
        monkeypatch.setenv(name, "")

    def write(files: Files) -> Path:
        folder = tmp_path / "project"
        (folder / "conf").mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)
        monkeypatch.chdir(folder)
        return folder

    return write


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """A function that runs a command line in this process."""

    def say(*words: str) -> Said:
        capfd.readouterr()
        monkeypatch.setenv(TRUST, "")
        code = run(list(words))
        said = capfd.readouterr()
        return Said(code, said.out, said.err)

    return say


def module_of(source: str) -> dict[str, Any]:
    """Names that a module's source text defines."""
    names: dict[str, Any] = {}
    exec(source, names)
    return names
