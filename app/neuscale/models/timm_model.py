"""timm's models by name, created by its `create_model`; timm is imported only here.

The state dict is timm's: weights trained here load there unchanged, and vice versa.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neuscale.config.model_options import TimmConfig
from neuscale.errors import UsageError
from neuscale.models.library import try_one_image, unfit, unknown_arch
from neuscale.models.weights_file import load_reason, read_weights
from neuscale.untrusted import read_json

_UNFIT = (ValueError, AssertionError, RuntimeError)

_UNKNOWN_ARGUMENT = re.compile(r"unexpected keyword argument '(\w+)'")


def check_arch(arch: str) -> None:
    """Raise UsageError for a name that timm does not have, and if timm is not installed."""
    timm = _timm()
    if (place := local_folder(arch)) is not None and not (place / "config.json").is_file():
        raise UsageError(
            f"model.arch={arch}: there is no config.json in that folder.", "Give one that timm saved."
        )
    if _is_elsewhere(arch):
        return
    name, _, tag = arch.partition(".")
    if not timm.is_model(name):
        raise unknown_arch(arch, "timm", timm.list_models(), "timm.list_models()")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")] if tag else []
    if tag and tag not in tags:
        known = f"It has weights tagged {', '.join(tags)}." if tags else "It has no tagged weights."
        raise UsageError(f"model.arch={arch}: timm's {name} has no tag '{tag}'.", known)


def create_timm_model(
    config: TimmConfig, image_size: int, in_channels: int, num_classes: int, pretrained: bool = False
) -> nn.Module:
    """Create a model, [B, in_channels, image_size, image_size] → [B, num_classes], with random weights.

    With `pretrained`, timm downloads its weights and fits them to these sizes. Raises UsageError
    for an unknown name, an option that the model does not have, and images that it cannot take.
    """
    check_arch(config.arch)
    model = _create(config, image_size, in_channels, num_classes, pretrained)
    if config.gradient_checkpointing:
        _checkpoint_gradients(model, config.arch)
    try_one_image(model, config.arch, image_size, in_channels, num_classes)
    return model


def _is_elsewhere(arch: str) -> bool:
    """True for a name of a model outside timm: on the Hugging Face Hub, or in a folder."""
    return arch.startswith(("hf-hub:", "hf_hub:", "local-dir:"))


def local_folder(arch: str) -> Path | None:
    """The folder of `local-dir:FOLDER`; None for other names."""
    return Path(arch.partition(":")[2]).expanduser() if arch.startswith("local-dir:") else None


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        missing = error.name == "timm"
        raise UsageError(
            f"model=timm: {'timm is not installed' if missing else f'timm cannot be imported ({error})'}.",
            "Install it: pip install timm.",
        ) from error
    return timm


def _create(
    config: TimmConfig, image_size: int, in_channels: int, num_classes: int, pretrained: bool
) -> nn.Module:
    options = {
        "num_classes": num_classes,
        "in_chans": in_channels,
        "img_size": image_size,
        "drop_rate": config.drop_rate,
        "drop_path_rate": config.drop_path_rate,
    }
    start = torch.get_rng_state()
    while True:
        try:
            return _timm().create_model(config.arch, pretrained=pretrained, **options)
        except TypeError as error:
            # Only models for a fixed size take img_size, and timm has no list of them.
            unknown = _UNKNOWN_ARGUMENT.search(str(error))
            name = unknown[1] if unknown else ""
            if name == "img_size" and name in options:
                del options[name]
                torch.set_rng_state(start)
                continue
            if name in ("drop_rate", "drop_path_rate"):
                raise UsageError(
                    f"model.{name}: timm's {config.arch} has no such option.", "Remove it."
                ) from error
            raise unfit(config.arch, error) from error
        except Exception as error:
            if pretrained or not (_is_elsewhere(config.arch) or isinstance(error, _UNFIT)):
                raise
            is_of_hub = _is_elsewhere(config.arch) and local_folder(config.arch) is None
            if is_of_hub or not isinstance(error, _UNFIT):  # no network, no such model, or a missing package
                raise UsageError(
                    f"model.arch={config.arch}: cannot be had ({load_reason(error)}).",
                    "Check its name and the network, or use a folder: model.arch=local-dir:FOLDER.",
                ) from error
            raise unfit(config.arch, f"for {image_size}×{image_size} images: {error}") from error


def _checkpoint_gradients(model: Any, arch: str) -> None:
    if any(getattr(module, "running_mean", None) is not None for module in model.modules()):
        raise UsageError(
            f"model.gradient_checkpointing: {arch} has BatchNorm, which would count each batch twice.",
            "Save memory by smaller parts of a batch, or take a model without BatchNorm.",
        )
    try:
        model.set_grad_checkpointing(True)
    except (AttributeError, AssertionError, RuntimeError, ValueError, NotImplementedError) as error:
        raise UsageError(
            f"model.gradient_checkpointing: timm's {arch} has none.", "Remove it, or choose another model."
        ) from error


def pretrained_timm_state(
    config: TimmConfig, image_size: int, in_channels: int, num_classes: int
) -> tuple[dict[str, Tensor], str]:
    """timm's weights, fitted to these sizes, and their name. Raises the errors of the download.

    The head is timm's if it has the same number of classes, else a new one.
    """
    if (place := local_folder(config.arch)) is not None:
        # Not loaded by timm, which would run code in a pickle file.
        files = [place / name for name in ("model.safetensors", "pytorch_model.bin")]
        found = next((file for file in files if file.is_file()), files[0])
        return read_weights(found), str(found)
    model = _create(config, image_size, in_channels, num_classes, pretrained=True)
    tag = getattr(model, "pretrained_cfg", {}).get("tag")
    return dict(model.state_dict()), f"timm {config.arch.partition('.')[0]}{f'.{tag}' if tag else ''}"


def pretrained_config(arch: str) -> dict[str, Any]:
    """timm's configuration of the weights of `arch`: `mean`, `std`, `input_size`, …; {} if it has none."""
    if (place := local_folder(arch)) is not None:
        stored = read_json(place / "config.json")
        return dict(stored.get("pretrained_cfg") or {})
    if _is_elsewhere(arch):
        return dict(_timm().models.load_model_config_from_hf(arch.partition(":")[2])[0])
    found = _timm().get_pretrained_cfg(arch)
    return dict(found.to_dict()) if found is not None else {}
