"""Type checkers accept parts that follow the five public protocols, and refuse others."""

import subprocess
import sys
from pathlib import Path

import pytest

import neuscale
from neuscale import protocols

RIGHT = """
from collections.abc import Iterator
import numpy as np
from torch import Tensor
from neuscale.protocols import Augmentation, DataSource, Loss, Metric, Schedule

def flip(images: Tensor, draws: Tensor) -> Tensor:
    return images.flip(-1)

class Dots:
    classes = ["one", "two"]
    def __init__(self, split: str) -> None: ...
    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        yield np.zeros((8, 8), np.uint8), 1

def squared(logits: Tensor, targets: Tensor) -> Tensor:
    return ((logits - targets) ** 2).mean()

class Worst:
    higher_is_better = False
    def __call__(self, logits: Tensor, targets: Tensor) -> float:
        return 0.5

def half(step: int, total_steps: int, steps_per_epoch: int, low: float = 0.5) -> float:
    return low

parts: tuple[Augmentation, DataSource, Loss, Metric, Schedule] = (flip, Dots("train"), squared, Worst(), half)
"""


def checked(folder: Path, code: str) -> str:
    pytest.importorskip("mypy.api")
    (folder / "parts.py").write_text(code)
    root = Path(neuscale.__file__).parent.parent
    of_checkout = (
        f"mypy_path = {root}\n" if root.name == "app" else ""
    )  # mypy finds an installed package by its py.typed
    (folder / "mypy.ini").write_text(
        f"[mypy]\nstrict = true\ndisallow_any_generics = false\n{of_checkout}"
        "[mypy-torch.*]\nfollow_imports = skip\nfollow_imports_for_stubs = true\n"
        "[mypy-numpy.*]\nfollow_imports = skip\n"
    )
    cache = str(folder.parent / "mypy_cache")  # shared by these tests; the first reads the standard library
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", cache, "parts.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return done.stdout + done.stderr


def test_a_type_checker_takes_parts_of_the_documented_form(tmp_path: Path) -> None:
    assert "no issues found" in checked(tmp_path, RIGHT)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("def flip(images: Tensor, draws: Tensor)", "def flip(images: Tensor)"),
        ("Iterator[tuple[np.ndarray, int]]", "Iterator[int]"),
        (
            "def squared(logits: Tensor, targets: Tensor)",
            "def squared(logits: Tensor, targets: Tensor, x: int)",
        ),
        ("total_steps: int", "steps: int"),
    ],
)
def test_a_type_checker_refuses_another_form(tmp_path: Path, right: str, wrong: str) -> None:
    assert right in RIGHT
    assert "Incompatible types in assignment" in checked(tmp_path, RIGHT.replace(right, wrong))


def test_there_are_five_names_and_each_is_documented() -> None:
    assert len(protocols.__all__) == 5
    document = Path(__file__).parents[2] / "docs" / "own.md"
    if not document.exists():
        pytest.skip("the image does not contain the documentation")
    page = document.read_text()
    for name in protocols.__all__:
        assert f"`{name}`" in page
        assert getattr(protocols, name).__doc__
