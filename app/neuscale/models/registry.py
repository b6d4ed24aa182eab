"""Create models by name, from a configuration and the shape of the data."""

from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import nn

from neuscale.config.model_options import ModelConfig, TargetModelConfig, TimmConfig, TorchvisionConfig
from neuscale.errors import UsageError
from neuscale.models.swin import SwinTransformer
from neuscale.models.target_model import create_target_model
from neuscale.models.vit import VisionTransformer
from neuscale.project.plugins import import_plugins
from neuscale.project.targets import import_modules, import_target

_OWN: dict[str, Callable[..., nn.Module]] = {"swin": SwinTransformer, "vit": VisionTransformer}


def check_arch(config: ModelConfig) -> None:
    """Raise UsageError for an architecture that its library does not have, without touching data."""
    match config:
        case TargetModelConfig():
            import_target(config.target, "model.target")
        case TorchvisionConfig():
            from neuscale.models import torchvision_model

            torchvision_model.check_arch(config.arch)
        case TimmConfig():
            from neuscale.models import timm_model

            import_plugins()
            import_modules(config.imports, "model.imports")
            timm_model.check_arch(config.arch)


def create_model(
    config: ModelConfig, image_size: int, in_channels: int, num_classes: int, seed: int
) -> nn.Module:
    """Create a model initialised from `seed`: [B, in_channels, image_size, image_size] → [B, num_classes].

    Raises UsageError if the model's sizes are not compatible or do not fit the image.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU as well
        match config:
            case TargetModelConfig():
                return create_target_model(config, image_size, in_channels, num_classes)
            case TorchvisionConfig():
                from neuscale.models.torchvision_model import create_torchvision_model

                return create_torchvision_model(config.arch, image_size, in_channels, num_classes)
            case TimmConfig():
                from neuscale.models.timm_model import create_timm_model

                import_plugins()
                import_modules(config.imports, "model.imports")
                return create_timm_model(config, image_size, in_channels, num_classes)
        return _create_own(config, image_size, in_channels, num_classes)


def _create_own(config: ModelConfig, image_size: int, in_channels: int, num_classes: int) -> nn.Module:
    # A field of the schema is an argument of the same name.
    sizes = {name: value for name, value in asdict(config).items() if name not in ("name", "weights", "ops")}
    try:
        return _OWN[config.name](image_size, num_classes, in_channels, **sizes)
    except ValueError as error:
        raise UsageError(
            f"model: {error}.", "Change the model's sizes or data.image_size so that they go together."
        ) from error
