"""Read the state dict from a weights file, in the formats of common programs."""

import argparse
import pickle
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from neuscale.errors import CheckpointError

_GOOD_FILE = "Get the file again, or save it with torch.save(model.state_dict(), PATH)."

# Types that checkpoints contain beside tensors, and that hold only numbers and strings: the arguments of
# torchvision's and timm's scripts, and metrics as NumPy scalars.
_ALLOWED: list[Any] = [argparse.Namespace, np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.float32))]
_SCALAR = import_module("numpy._core.multiarray" if hasattr(np, "_core") else "numpy.core.multiarray").scalar
# Under the names that NumPy 1 and NumPy 2 write.
_ALLOWED += [(_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]

# Keys under which programs store weights; averages, which they evaluate, come first.
_AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
_WEIGHTS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")

# Prefixes of DistributedDataParallel, torch.compile, torch's AveragedModel and Lightning.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")


def read_weights(path: Path, averaged: bool | None = None) -> dict[str, Tensor]:
    """Read the state dict from a .safetensors or torch file, or from a checkpoint folder.

    `averaged`, for a folder: True for the moving average, False for the weights themselves, None for the
    average if there is one. torch files are read with `weights_only`; if one contains both weights and
    their average, the average is used. Raises CheckpointError.
    """
    try:
        if path.is_dir():
            average = path / "ema.safetensors"
            if averaged and not average.exists():
                raise CheckpointError(
                    f"{path}: holds no average of the weights.",
                    "The run was trained without train.ema_decay.",
                )
            use_average = averaged is not False and average.exists()
            path = average if use_average else path / "model.safetensors"
        reason = "" if path.exists() else "there is no such file"
        if not reason and not path.is_file():
            reason = "it is not a regular file"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise CheckpointError(
            f"{path}: {reason}.", "Give a file of weights, or the name of a run: model.weights=PATH."
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_ALLOWED):
            loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise almost any error
        raise CheckpointError(
            f"{path}: not a readable file of weights ({load_reason(error)}).", _GOOD_FILE
        ) from error
    state = _unwrapped(loaded)
    if state is None:
        raise CheckpointError(f"{path}: holds no state dict (names with tensors).", _GOOD_FILE)
    return state


def fitting_names(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` without the prefixes that wrappers add to the names of the model's state dict `own`."""
    found = dict(state)
    while True:
        known = sum(name in own for name in found)
        for prefix in _PREFIXES:
            bare = {
                name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)
            }
            # Entries of the wrapper itself, such as the count of an average, have no prefix. A prefix that
            # is part of the model's own names must stay.
            if bare and (
                sum(name in own for name in bare) > known or (not known and len(bare) == len(found))
            ):
                found = bare
                break
        else:
            return found


def load_reason(error: Exception) -> str:
    """Short reason why a file could not be loaded."""
    if isinstance(error, pickle.UnpicklingError):  # torch's message advises weights_only=False
        return "damaged, or more in it than tensors"
    return str(error).splitlines()[0][:150] if str(error) else type(error).__name__


def _unwrapped(loaded: Any) -> dict[str, Tensor] | None:
    """The state dict inside a loaded object; None if there is none."""
    if not isinstance(loaded, dict):
        return None
    for name in (*_AVERAGES, *_WEIGHTS):
        inner = loaded.get(name)
        if isinstance(inner, dict) and inner and (found := _unwrapped(inner)) is not None:
            return found
    if not loaded or not all(isinstance(name, str) for name in loaded):
        return None
    tensors = {name: value for name, value in loaded.items() if isinstance(value, Tensor)}
    # A state dict contains only tensors, but a file may have a few numbers or strings beside them.
    others = {name: value for name, value in loaded.items() if name not in tensors}
    plain = all(value is None or isinstance(value, bool | int | float | str) for value in others.values())
    return tensors if tensors and plain and len(tensors) > len(others) else None


def separate_tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict on the CPU whose tensors are contiguous and share no memory, as safetensors asks.

    Tied weights are stored once for each of their names.
    """
    separate: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in state.items():
        tensor = value.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return separate
