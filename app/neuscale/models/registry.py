"""Models by name: from a configuration and the data's shape to a module."""

import torch
from torch import nn

from neuscale.config.schema import ModelConfig, SwinConfig, ViTConfig
from neuscale.errors import UsageError
from neuscale.models.swin import SwinTransformer
from neuscale.models.vit import VisionTransformer


def create_model(
    config: ModelConfig, image_size: int, in_channels: int, num_classes: int, seed: int
) -> nn.Module:
    """The model, initialised from `seed`: [B, in_channels, image_size, image_size] → [B, num_classes].

    Raises UsageError where the model's sizes do not go together or do not fit the image.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU as well
        try:
            return _build(config, image_size, in_channels, num_classes)
        except ValueError as error:
            raise UsageError(
                f"model: {error}.", "Change the model's sizes or data.image_size so that they go together."
            ) from error


def _build(config: ModelConfig, image_size: int, in_channels: int, num_classes: int) -> nn.Module:
    match config:
        case SwinConfig():
            return SwinTransformer(
                image_size,
                num_classes,
                in_channels,
                patch_size=config.patch_size,
                embed_dim=config.embed_dim,
                depths=config.depths,
                num_heads=config.num_heads,
                window_size=config.window_size,
                mlp_ratio=config.mlp_ratio,
                dropout=config.dropout,
                drop_path_rate=config.drop_path_rate,
                gradient_checkpointing=config.gradient_checkpointing,
            )
        case ViTConfig():
            return VisionTransformer(
                image_size,
                num_classes,
                in_channels,
                patch_size=config.patch_size,
                hidden_dim=config.hidden_dim,
                num_layers=config.num_layers,
                num_heads=config.num_heads,
                mlp_ratio=config.mlp_ratio,
                pool=config.pool,
                dropout=config.dropout,
                drop_path_rate=config.drop_path_rate,
                gradient_checkpointing=config.gradient_checkpointing,
            )
    raise AssertionError(f"no builder for {type(config).__name__}")
