"""A model of the user, or of any package, from the name of its class or function."""

from typing import Any

from torch import Tensor, nn

from neuscale.config.model_options import TargetModelConfig
from neuscale.errors import UsageError
from neuscale.models.library import try_one_image
from neuscale.project.targets import call_target


def create_target_model(
    config: TargetModelConfig, image_size: int, in_channels: int, num_classes: int
) -> nn.Module:
    """Create a model, [B, in_channels, image_size, image_size] → [B, num_classes], with random weights.

    `num_classes`, `in_channels` and `image_size` are passed if the signature has them and the arguments do
    not. If a model returns several outputs, the first one is the logits. Raises UsageError if the target
    cannot be imported or called, is not a module, has no parameters, or does not return one score per class.
    """
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    model = call_target(config.target, config.args, "model.target", sizes)
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"model.target={config.target}: gives {type(model).__name__}, which is no torch.nn.Module.",
            "Name a class of modules, or a function that makes one.",
        )
    if not any(True for _ in model.parameters()):
        raise UsageError(
            f"model.target={config.target}: the model has no parameters.", "Give it some to train."
        )
    model.register_forward_hook(_first_output)
    try_one_image(model, config.target, image_size, in_channels, num_classes, field="model.target")
    return model


def _first_output(_model: nn.Module, _images: Any, output: Any) -> Tensor | None:
    """Logits from a tuple, a list or a field `logits` (as in Hugging Face models); None: output unchanged."""
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        return output[0]
    logits = getattr(output, "logits", None)
    return logits if isinstance(logits, Tensor) else None
