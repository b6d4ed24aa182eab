"""Weights that would load into a model with other attention heads, and mean something else there."""

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from neuscale.config import compose_config, config_to_yaml
from neuscale.errors import CheckpointError
from neuscale.models.registry import create_model
from neuscale.models.weights import load_starting_weights

VIT = ["experiment=tiny_imagenet_vit", "model.hidden_dim=12", "model.num_layers=1"]


def written(folder: Path, heads: int, origin: str, name: str = "checkpoints/step-5") -> Path:
    """A file of weights as a run or an export leaves it."""
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
