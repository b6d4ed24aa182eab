"""What weights were trained with, where a run folder or an export around them tells."""

import json
from pathlib import Path
from typing import Any

import yaml

from neuscale.config.schema import ModelConfig, SwinConfig, ViTConfig
from neuscale.errors import CheckpointError

_LEVELS = 3  # runs/RUN/checkpoints/STEP/model.safetensors lies this deep in its run


def check_heads(path: Path, config: ModelConfig) -> None:
    """Refuses weights at `path` that were trained with another number of attention heads.

    A transformer's parameters have the same shapes with any number of heads, so that such
    weights would load, and mean something else. Weights of unknown origin pass. Raises
    CheckpointError.
    """
    if not isinstance(config, SwinConfig | ViTConfig):
        return
    trained = _model_section(path)
    heads = trained.get("num_heads")
    if trained.get("name") == config.name and heads is not None and heads != config.num_heads:
        here, there = (str(value).replace(" ", "") for value in (config.num_heads, heads))
        raise CheckpointError(
            f"{path}: trained with model.num_heads={there}, and this model has {here}.",
            f"Add model.num_heads={there}.",
        )


def _model_section(path: Path) -> dict[str, Any]:
    """The stored configuration's `model`, empty where there is none that can be read."""
    path = path.absolute()
    try:
        for folder in [path, *path.parents][: _LEVELS + 1]:
            if (folder / "config.yaml").is_file():
                stored = yaml.safe_load((folder / "config.yaml").read_text())
            elif (folder / "model.json").is_file():
                stored = yaml.safe_load(json.loads((folder / "model.json").read_text())["config"])
            else:
                continue
            model = stored["model"]
            return model if isinstance(model, dict) else {}
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        pass  # somebody else's files of these names
    return {}
