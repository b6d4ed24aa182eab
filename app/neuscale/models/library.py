"""Common parts of torchvision's and timm's models: errors for unknown names, and a trial image."""

import difflib

import torch
from torch import Tensor, nn

from neuscale.errors import UsageError


def unknown_arch(arch: str, library: str, known: list[str], listing: str) -> UsageError:
    """UsageError for a name that `library` does not have; `listing`: the call that lists all names."""
    close = difflib.get_close_matches(arch, known, n=3)
    meant = " or ".join(f"'{name}'" for name in close)
    return UsageError(
        f"model.arch={arch}: {library} has no such classification model.",
        f"Did you mean {meant}?" if close else f"{listing} lists them.",
    )


def unfit(arch: str, reason: object, field: str = "model.arch") -> UsageError:
    """UsageError for a model that cannot be created for these images, with the library's message."""
    said = (str(reason) or type(reason).__name__).splitlines()[0][:200].rstrip(".!")
    return UsageError(
        f"{field}={arch}: {said}.",
        "Give it images that fit, as data.image_size=224 does, or another model.",
    )


@torch.no_grad()
def try_one_image(
    model: nn.Module,
    arch: str,
    image_size: int,
    in_channels: int,
    num_classes: int,
    field: str = "model.arch",
) -> None:
    """Raise UsageError unless `model` returns one score per class for an image; `field` names the model.

    Libraries check sizes only in the forward pass, or not at all; this check runs before anything is written.
    """
    model.eval()
    try:
        scores = model(torch.zeros(1, in_channels, image_size, image_size))
    except Exception as error:  # each architecture has its own way to fail
        reason = f"an image of {image_size}×{image_size} does not go through it ({error})"
        raise unfit(arch, reason, field) from error
    model.train()
    if not isinstance(scores, Tensor) or scores.shape != (1, num_classes):
        what = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise UsageError(
            f"{field}={arch}: gives {what}, not a score for each of {num_classes} classes.",
            f"Choose a model that classifies, or give it its number of classes: num_classes={num_classes}.",
        )


# Names of the classification heads in our models and torchvision's.
_HEADS = ("head", "heads", "fc", "classifier")


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Name prefixes of the head's parameters; those in timm's configuration of the model, if it has one."""
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or _HEADS
    return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))
