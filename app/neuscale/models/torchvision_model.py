"""torchvision's classification models by name, created by their own constructors.

The state dict is torchvision's: weights trained here load there unchanged, and vice versa.
"""

import re
from collections import OrderedDict
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models.vision_transformer import interpolate_embeddings

from neuscale.errors import UsageError
from neuscale.models.library import try_one_image, unfit, unknown_arch

# Their auxiliary heads, used only in training, are removed: in training mode the models would
# return several outputs. The state dict is that of torchvision's aux_logits=False.
_WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")
_AUXILIARY_HEADS = ("aux1.", "aux2.", "AuxLogits.")
_POSITIONS = "encoder.pos_embedding"
_OLD_DENSENET = re.compile(r"\b(norm|conv)\.([12])\.")


def check_arch(arch: str) -> None:
    """Raise UsageError for a name that torchvision does not have."""
    known = torchvision.models.list_models(module=torchvision.models)
    if arch not in known:
        raise unknown_arch(arch, "torchvision", known, "torchvision.models.list_models()")


def create_torchvision_model(arch: str, image_size: int, in_channels: int, num_classes: int) -> nn.Module:
    """Create a model, [B, in_channels, image_size, image_size] → [B, num_classes], with random weights.

    All models take three channels; grayscale images are repeated three times. Raises
    UsageError for an unknown name and for images that the model cannot take.
    """
    check_arch(arch)
    options: dict[str, Any] = {"num_classes": num_classes}
    if arch in _WITH_AUXILIARY_HEADS:
        options |= {"aux_logits": False, "init_weights": True}
    if arch.startswith("vit_"):
        options["image_size"] = image_size
    if arch.startswith("maxvit_"):
        options["input_size"] = (image_size, image_size)
    try:
        model: nn.Module = torchvision.models.get_model(arch, weights=None, **options)
    except (ValueError, AssertionError, RuntimeError) as error:
        raise unfit(arch, f"for {image_size}×{image_size} images: {error}") from error
    if in_channels == 1:
        # A hook is not a module, so the names in the state dict stay torchvision's.
        model.register_forward_pre_hook(_in_three_colours)
    elif in_channels != 3:
        raise UsageError(f"model.arch={arch}: takes colour images, and these have {in_channels} channels.")
    try_one_image(model, arch, image_size, in_channels, num_classes)
    return model


def published_weights(arch: str) -> Any:
    """torchvision's enum entry for the best published weights of `arch`."""
    return torchvision.models.get_model_weights(arch).DEFAULT


def as_now(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Convert a published state dict to the parameter names and the image size of `model`.

    Old DenseNet files have `norm.1` for `norm1`; auxiliary heads are removed; the position
    embeddings of a ViT are interpolated.
    """
    if isinstance(model, torchvision.models.DenseNet):
        state = {_OLD_DENSENET.sub(r"\1\2.", name): value for name, value in state.items()}
    own = model.state_dict()
    state = {n: v for n, v in state.items() if n in own or not n.startswith(_AUXILIARY_HEADS)}
    there, here = state.get(_POSITIONS), own.get(_POSITIONS)
    if there is not None and here is not None and there.shape[1] != here.shape[1]:
        patch = model.patch_size
        assert isinstance(patch, int)
        side = round((here.shape[1] - 1) ** 0.5) * patch
        return dict(interpolate_embeddings(side, patch, OrderedDict(state)))
    return state


def _in_three_colours(_model: nn.Module, images: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (images[0].expand(-1, 3, -1, -1), *images[1:])
