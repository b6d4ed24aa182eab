"""Two small image trees, of which the second replaces the first."""

from pathlib import Path

import pytest

from conftest import TreeBuilder


@pytest.fixture(scope="session")
def trees(build_image_tree: TreeBuilder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two image folders: one of three classes, one of two other classes with more images each."""
    folder = tmp_path_factory.mktemp("trees")
    first = build_image_tree(folder / "a", train=2, val=1, size=(5, 4), seed=1)
    second = build_image_tree(folder / "b", classes=("ant", "bee"), train=3, val=2, size=(5, 4), seed=2)
    return first, second
