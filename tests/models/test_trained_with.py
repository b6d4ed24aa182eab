"""Weights that would fit a model with another number of attention heads, but be wrong there, are refused."""

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from neuscale.config import compose_config, config_to_yaml
from neuscale.errors import CheckpointError
from neuscale.models.registry import create_model
from neuscale.models.weights import check_heads, load_starting_weights

VIT = ["experiment=tiny_imagenet_vit", "model.hidden_dim=12", "model.num_layers=1"]


def written(folder: Path, heads: int, origin: str, name: str = "checkpoints/step-5") -> Path:
    """Write weights and their configuration, as a run or an export does; return the path of the weights."""
    config = compose_config([*VIT, f"model.num_heads={heads}"])
    path = folder / name / "model.safetensors"
    path.parent.mkdir(parents=True)
    save_file(create_model(config.model, 64, 3, 10, 0).state_dict(), path)
    text = config_to_yaml(config)
    (folder / origin).write_text(text if origin == "config.yaml" else json.dumps({"config": text}))
    return path


def start(path: Path, heads: int) -> str:
    config = compose_config([*VIT, f"model.num_heads={heads}", f"model.weights={path}"]).model
    return load_starting_weights(create_model(config, 64, 3, 10, 0), config, 64, 3, 10)


@pytest.mark.parametrize(
    ("origin", "name"), [("config.yaml", "checkpoints/step-5"), ("config.yaml", "."), ("model.json", ".")]
)
def test_another_number_of_heads_is_refused(tmp_path: Path, origin: str, name: str) -> None:
    path = written(tmp_path / "run", 3, origin, name)
    for place in {path, path.parent} if origin == "config.yaml" else {path}:
        with pytest.raises(CheckpointError, match=r"trained with model\.num_heads=3") as caught:
            start(place, 4)
        assert caught.value.fix == "Add model.num_heads=3."
        assert "head included" in start(place, 3)


@pytest.mark.parametrize("content", [b"", b"model: 3", b"{", b"\xff\xfe", b"model:\n  name: vit", b"[1]"])
@pytest.mark.parametrize("origin", ["config.yaml", "model.json"])
def test_files_of_others_beside_the_weights_do_not_matter(
    tmp_path: Path, origin: str, content: bytes
) -> None:
    path = written(tmp_path / "run", 3, origin)
    (tmp_path / "run" / origin).write_bytes(content)
    assert "head included" in start(path, 4)


def check(path: Path, *words: str) -> None:
    check_heads(path, compose_config(list(words)).model)


def stored(folder: Path, *words: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config_to_yaml(compose_config([*VIT[:1], *words])))


SWIN = ["model=swin_nano", "model.embed_dim=48", "model.depths=[2,2]"]


def test_the_heads_of_all_stages_count(tmp_path: Path) -> None:
    stored(tmp_path, *SWIN, "model.num_heads=[3,6]")
    path = tmp_path / "model.safetensors"
    check(path, *SWIN, "model.num_heads=[3,6]")
    with pytest.raises(CheckpointError) as caught:
        check(path, *SWIN, "model.num_heads=[3,12]")
    assert caught.value.problem == f"{path}: trained with model.num_heads=[3,6], and this model has [3,12]."
    assert caught.value.fix == "Add model.num_heads=[3,6]."


def test_another_kind_of_model_is_left_to_the_check_of_its_shapes(tmp_path: Path) -> None:
    """The number of heads of a Swin is no advice for a ViT."""
    stored(tmp_path, *SWIN, "model.num_heads=[3,6]")
    check(tmp_path / "model.safetensors", "model=vit_ti4", "model.num_heads=4")
    check(tmp_path / "model.safetensors", "model=torchvision", "model.arch=resnet18")


def test_the_nearest_configuration_counts_and_none_from_further_up(tmp_path: Path) -> None:
    """The configuration is searched in the folder of the weights and in two folders above it."""
    stored(tmp_path, "model=vit_ti4", "model.num_heads=6")
    for deep in ("a/w.pth", "a/b/w.pth"):
        with pytest.raises(CheckpointError, match=r"trained with model\.num_heads=6"):
            check(tmp_path / deep, "model=vit_ti4", "model.num_heads=4")
    check(tmp_path / "a/b/c/w.pth", "model=vit_ti4", "model.num_heads=4")
    stored(tmp_path / "a", "model=vit_ti4", "model.num_heads=4")
    check(tmp_path / "a/b/w.pth", "model=vit_ti4", "model.num_heads=4")


def test_a_relative_path_is_looked_for_where_we_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(tmp_path, "model=vit_ti4", "model.num_heads=6")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"trained with model\.num_heads=6"):
        check(Path("w.pth"), "model=vit_ti4", "model.num_heads=4")
