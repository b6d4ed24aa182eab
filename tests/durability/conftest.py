"""Two small trees of images, of which one replaces the other."""

from pathlib import Path

import pytest

from conftest import TreeBuilder


@pytest.fixture(scope="session")
def trees(build_image_tree: TreeBuilder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of images: three classes, and two others with more images."""
    folder = tmp_path_factory.mktemp("trees")
    first = build_image_tree(folder / "a", train=2, val=1, size=(5, 4), seed=1)
    second = build_image_tree(folder / "b", classes=("ant", "bee"), train=3, val=2, size=(5, 4), seed=2)
    return first, second
