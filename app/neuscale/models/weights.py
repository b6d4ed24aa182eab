"""Load starting weights, a library's or from a file, into a model with its own head."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from neuscale.config.model_options import ModelConfig, SwinConfig, TimmConfig, TorchvisionConfig, ViTConfig
from neuscale.errors import CheckpointError, UsageError, UserError
from neuscale.hub import fetch_weights, hub_name, origin_of
from neuscale.models.library import head_names
from neuscale.models.positions import fit_positions
from neuscale.models.weights_file import fitting_names, load_reason, read_weights
from neuscale.untrusted import read_json, read_record

# torchvision's Swin models, by embed_dim and depths.
_TORCHVISION_SWIN = {
    (96, (2, 2, 6, 2)): "Swin_T_Weights",
    (96, (2, 2, 18, 2)): "Swin_S_Weights",
    (128, (2, 2, 18, 2)): "Swin_B_Weights",
}


def weights_path(text: str) -> Path:
    """Path of `model.weights`; for a model on the Hub, the path that it was fetched to.

    "~name" is kept as it is if there is no user of that name. Raises UsageError as `fetch_weights` does.
    """
    if (name := hub_name(text)) is not None:
        return fetch_weights(name)
    with suppress(RuntimeError):
        return Path(text).expanduser()
    return Path(text)


def load_starting_weights(
    model: nn.Module, config: ModelConfig, image_size: int, in_channels: int, num_classes: int
) -> str:
    """Load the weights that `config.weights` names into `model`; return a message about them.

    A head for another number of classes keeps its initial weights; for grayscale images the
    first layer is summed over colours. Raises UsageError or CheckpointError.
    """
    assert config.weights is not None
    if config.weights == "imagenet" and isinstance(config, TimmConfig):
        state, where = _timm_weights(config, image_size, in_channels, num_classes)
    elif config.weights == "imagenet":
        state, where = _torchvision_weights(config)
    else:
        path = weights_path(config.weights)
        state, where = read_weights(path), config.weights if hub_name(config.weights) else str(path)
        check_heads(path, config)
    if isinstance(config, TorchvisionConfig):
        from neuscale.models.torchvision_model import as_now

        state = as_now(fitting_names(state, model.state_dict()), model)
    state, fitted = fit_positions(fitting_names(state, model.state_dict()), model)
    left = load_weights(model, state, where, adapt=True)
    resized = f", {fitted} tables of positions interpolated" if fitted else ""
    return f"weights from {where}, {'with a new head' if left else 'head included'}{resized}"


def load_weights(model: nn.Module, state: dict[str, Tensor], where: str, adapt: bool = False) -> list[str]:
    """Load a state dict into `model`; `where` names it in errors.

    With `adapt`, a head for another number of classes keeps its initial weights (their
    names are returned), a first layer for colour images is summed over colours if the
    model takes grayscale, and BatchNorm's batch counter may be missing, as in old files.
    Raises CheckpointError if names or shapes differ otherwise.
    """
    own = model.state_dict()
    state = fitting_names(state, own)
    left: list[str] = []
    if adapt:
        uncounted = [n for n in own if n.endswith("num_batches_tracked") and n not in state]
        state |= {name: own[name].clone() for name in uncounted}
        heads = head_names(model)
        for name in [n for n in state if n in own and state[n].shape != own[n].shape]:
            if name.startswith(heads):
                del state[name]
                left.append(name)
            elif _takes_grayscale(own[name]) and state[name].shape == _in_colour(own[name]):
                state[name] = state[name].sum(1, keepdim=True)
    problems = [
        f"{name} is {_shape(state[name])} there and {_shape(own[name])} here"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems += [f"{name} is missing there" for name in own if name not in state and name not in left]
    problems += [f"{name} is unknown here" for name in state if name not in own]
    if problems:
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise CheckpointError(
            f"{where}: weights of another model ({problems[0]}{more}).",
            "Use the model preset and sizes that these weights were trained with.",
        )
    try:
        model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # a sparse or quantised tensor
        raise CheckpointError(
            f"{where}: its tensors cannot be copied into the model.", "Save them as plain dense tensors."
        ) from error
    return left


def weights_preprocessing(config: ModelConfig) -> dict[str, Any]:
    """Image preprocessing for `config.weights`: the fields `mean`, `std`, `interpolation`, `crop` of `data`.

    For a library's weights they come from the library, for weights in the folder of a run or an exported
    model from there. Unknown fields are missing, as for a plain file.
    """
    if config.weights is None:
        return {}
    if config.weights == "imagenet" and isinstance(config, TimmConfig):
        from neuscale.models.timm_model import pretrained_config

        said = pretrained_config(config.arch)
        found = {name: said.get(name) for name in ("mean", "std", "interpolation")}
        if said.get("crop_mode") in (None, "center"):
            found["crop"] = said.get("crop_pct")
        return _known(found)
    if config.weights == "imagenet":
        preset = _torchvision_entry(config).transforms()
        crop = min(1.0, preset.crop_size[0] / preset.resize_size[0])
        how = getattr(preset.interpolation, "value", None)
        return _known({"mean": preset.mean, "std": preset.std, "interpolation": how, "crop": crop})
    return _known(_stored_record(weights_path(config.weights)))


def _known(said: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with valid, supported values."""
    found: dict[str, Any] = {}
    mean, std = said.get("mean"), said.get("std")
    lists = [list(each) for each in (mean, std) if isinstance(each, list | tuple)]
    numbers = all(isinstance(number, int | float) for each in lists for number in each)
    if numbers and len(lists) == 2 and len(lists[0]) == len(lists[1]):
        found |= {"mean": lists[0], "std": lists[1]}
    if said.get("interpolation") in ("bilinear", "bicubic"):
        found["interpolation"] = said["interpolation"]
    crop = said.get("crop")
    if isinstance(crop, int | float) and 0 < crop <= 1:
        found["crop"] = float(crop)
    return found


def _timm_weights(
    config: TimmConfig, image_size: int, in_channels: int, num_classes: int
) -> tuple[dict[str, Tensor], str]:
    from neuscale.models.timm_model import pretrained_timm_state

    try:
        with torch.random.fork_rng(devices=[]):
            return pretrained_timm_state(config, image_size, in_channels, num_classes)
    except UserError:
        raise
    except Exception as error:  # no weights of that name, no network, or no disk space
        raise UsageError(
            f"model.weights=imagenet: timm's weights of {config.arch} cannot be had ({load_reason(error)}).",
            f"timm.list_pretrained('{config.arch.partition('.')[0]}*') lists what there is;"
            " or get a file of weights elsewhere: model.weights=PATH.",
        ) from error


def _torchvision_weights(config: ModelConfig) -> tuple[dict[str, Tensor], str]:
    weights = _torchvision_entry(config)
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # no network, no disk space, or a damaged file in the cache
        cached = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
        raise UsageError(
            f"model.weights=imagenet: {weights.url} cannot be had ({load_reason(error)}).",
            f"Delete {cached} if it is there and damaged, or get that file elsewhere: model.weights=PATH.",
        ) from error
    return dict(state), f"torchvision {weights}"


def _torchvision_entry(config: ModelConfig) -> Any:
    """torchvision's enum entry for its weights of a model. Raises UsageError if it has none."""
    import torchvision

    if isinstance(config, TorchvisionConfig):
        from neuscale.models.torchvision_model import published_weights

        return published_weights(config.arch)
    key = (config.embed_dim, tuple(config.depths)) if isinstance(config, SwinConfig) else None
    if key not in _TORCHVISION_SWIN:
        raise UsageError(
            "model.weights=imagenet: torchvision has no weights for this model.",
            "It has them for model=swin_t, swin_s and swin_b; others start from a file.",
        )
    return getattr(torchvision.models, _TORCHVISION_SWIN[key]).DEFAULT


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a single number"


def _takes_grayscale(weight: Tensor) -> bool:
    return weight.dim() == 4 and weight.shape[1] == 1


def _in_colour(grayscale: Tensor) -> tuple[int, ...]:
    """Shape of a first layer for three channels, from that for one."""
    return (grayscale.shape[0], 3, *grayscale.shape[2:])


_LEVELS = 3  # runs/RUN/checkpoints/STEP/model.safetensors lies this deep in the run folder


def check_heads(path: Path, config: ModelConfig) -> None:
    """Raise CheckpointError for weights at `path` that were trained with another number of attention heads.

    The parameters of a transformer have the same shapes for any number of heads, so such weights
    would load but compute something else. Weights of unknown origin pass.
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


def _folders_above(path: Path) -> list[Path]:
    """Folders that may be the run or the exported model that contains a weights file."""
    path = path.absolute()
    return [path, *path.parents][: _LEVELS + 1]


def _model_section(path: Path) -> dict[str, Any]:
    """Section `model` of the stored configuration; empty if there is none that can be read."""
    try:
        for folder in _folders_above(path):
            if (folder / "config.yaml").is_file():
                stored = yaml.safe_load(read_record(folder / "config.yaml"))
            elif (folder / "model.json").is_file():
                stored = yaml.safe_load(read_json(_record_in(folder))["config"])
            else:
                continue
            model = stored["model"]
            return model if isinstance(model, dict) else {}
    except (OSError, ValueError, TypeError, KeyError, RecursionError, yaml.YAMLError):
        pass  # files with these names but other content
    return {}


def _record_in(folder: Path) -> Path:
    """Path of the model.json in a folder; links are followed only in the cache of the Hub."""
    path = folder / "model.json"
    return path.resolve() if origin_of(path) is not None else path


def _stored_record(path: Path) -> dict[str, Any]:
    """Image preprocessing stored in the run or exported model that contains the weights; {} if none."""
    try:
        for folder in _folders_above(path):
            if (folder / "manifest.json").is_file():
                manifest = read_json(folder / "manifest.json")
                config = manifest["config"]["data"]
                of_config = {name: config.get(name) for name in ("interpolation", "crop")}
                return {**of_config, **{name: manifest["data"].get(name) for name in ("mean", "std")}}
            if (folder / "model.json").is_file():
                record = read_json(_record_in(folder))["preprocessing"]
                return record if isinstance(record, dict) else {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass  # files with these names but other content
    return {}


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names, dtypes, shapes and bytes of a state dict, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {str(value.dtype).removeprefix('torch.')} {list(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
