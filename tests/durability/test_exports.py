"""An exported model survives a power cut; before that, the complete older one is there, or none."""

from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import TINY_RECIPE
from durability.power_cut import recorded
from neuscale.config import compose_config
from neuscale.data.prepare import prepare
from neuscale.inference.export import ExportOptions, export
from neuscale.progress import Silent
from neuscale.runs.folder import RunFolder
from neuscale.training.run import train


@pytest.fixture(scope="module")
def run(build_image_tree: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of two steps with a checkpoint after each."""
    folder = tmp_path_factory.mktemp("exported")
    tree = build_image_tree(folder / "tree", train=8, val=2)
    prepare("image_folder", root=folder / "data", source=tree, save_as="tiny")
    words = ["train.epochs=1", "train.max_steps=2", "checkpoint.every_steps=1", "checkpoint.keep_last=2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEUSCALE_DATA", str(folder / "data"))
        patch.setenv("NEUSCALE_RUNS", str(folder / "runs"))
        return train(compose_config([*TINY_RECIPE, *words, "run.name=x"])).run


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("replaced", [False, True])
def test_it_is_whole_or_the_older_one_or_not_there(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    monkeypatch.setenv("NEUSCALE_DATA", str(run.path.parents[1] / "data"))
    root = tmp_path / "root"
    root.mkdir()
    model = root / "models" / "mine"
    older = None
    if replaced:
        export(run, "safetensors", ExportOptions(model, "step-00000001"), Silent())
        older = files(model)
    with recorded(root) as record:
        export(run, "safetensors", ExportOptions(model, "last", force=replaced), Silent())
        record.done("exported")
    newer = files(model)
    assert newer.keys() == {"model.safetensors", "model.json", "README.md"}

    def check(after: Path, done: tuple[str, ...]) -> str:
        folder = after / "models" / "mine"
        if not folder.exists():
            assert older is None and not done
            return "none"
        found = files(folder)
        assert found == newer or (found == older and not done)
        return "newer" if found == newer else "older"

    assert record.replay(tmp_path / "after", check).keys() == {"older" if replaced else "none", "newer"}
