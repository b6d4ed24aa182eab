"""Models by name: from a configuration and the data's shape to a module."""

from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import nn

from neuscale.config.schema import ModelConfig
from neuscale.errors import UsageError
from neuscale.models.swin import SwinTransformer
from neuscale.models.vit import VisionTransformer

_MODELS: dict[str, Callable[..., nn.Module]] = {"swin": SwinTransformer, "vit": VisionTransformer}


def create_model(
    config: ModelConfig, image_size: int, in_channels: int, num_classes: int, seed: int
) -> nn.Module:
    """The model, initialised from `seed`: [B, in_channels, image_size, image_size] → [B, num_classes].

    Raises UsageError where the model's sizes do not go together or do not fit the image.
    """
    # A field of the schema is an argument of the same name.
    sizes = {name: value for name, value in asdict(config).items() if name not in ("name", "weights", "ops")}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU as well
        try:
            return _MODELS[config.name](image_size, num_classes, in_channels, **sizes)
        except ValueError as error:
            raise UsageError(
                f"model: {error}.", "Change the model's sizes or data.image_size so that they go together."
            ) from error
