"""Inner loop of the data loader: a batch of uint8 images to model input in one pass over memory."""

from typing import Any

import torch
from torch import Tensor

from neuscale_ops.arguments import FLOATS, check_device

_op = torch.ops.neuscale_ops.crop_flip_normalize.default

# Cache with one entry: the last CPU table, and the mean, std and dtype that it was computed from.
_last: list[tuple[Tensor, Tensor, torch.dtype, Tensor]] = []


def crop_flip_normalize(
    images_u8: Tensor,
    index: Tensor,
    top: Tensor,
    left: Tensor,
    flip: Tensor,
    mean: Tensor,
    std: Tensor,
    padding: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Gather, zero-pad, crop, flip, normalise and cast: uint8 [N, C, H, W] → dtype [B, C, H, W].

    Output image b is `images_u8[index[b]]`, padded with `padding` zeros on each side, cropped to
    H × W at (`top[b]`, `left[b]`), both in 0 … 2 * padding, flipped horizontally if `flip[b]`, and
    normalised per channel: (x / 255 - mean) / std. `index`, `top` and `left` are int64 [B], `flip`
    bool [B], `mean` and `std` float [C], all on the device of the images.

    A byte has 256 values, so torch normalises these once per channel and the kernel looks them up:
    the result is bit-identical to torch.addcmul(-mean / std, x, 1 / (255 * std)) in float32,
    rounded to `dtype`.

    Raises TypeError or ValueError naming the argument. On the CPU, an `index`, `top` or `left` out
    of range raises ValueError. A GPU cannot report this without synchronising: there, an image
    whose index is out of range is filled with NaN, and a crop beyond the padding reads zeros.
    """
    _check(images_u8, index, top, left, flip, mean, std, padding, dtype)
    table = _table(mean, std, dtype)
    try:
        return _op(images_u8, index, top, left, flip, table, padding)
    except RuntimeError as error:
        message = str(error).splitlines()[0]
        if "at position" in message:  # message of the range check
            raise ValueError(message) from None
        raise


def normalize_table(mean: Tensor, std: Tensor) -> Tensor:
    """Normalised value of every byte in every channel: float [C] and [C] → float32 [C, 256]."""
    mean, std = mean.float(), std.float()
    scale = 1.0 / (255.0 * std)
    shift = -mean / std
    values = torch.arange(256, device=mean.device).float()
    return torch.addcmul(shift[:, None], values, scale[:, None])


def _table(mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    if torch.compiler.is_compiling():
        return normalize_table(mean, std).to(dtype)
    plain = type(mean) is Tensor and type(std) is Tensor and mean.device.type == "cpu"
    if plain and _last:
        # Read the entry once: another thread may replace it. Compare by value: a write to an array that
        # shares the memory of mean or std changes them without increasing their version counters.
        m, s, d, table = _last[0]
        if d is dtype and _same(m, mean) and _same(s, std):
            return table
    with torch.no_grad():
        table = normalize_table(mean, std).to(dtype)
    if plain and type(table) is Tensor and not table.is_inference():  # comparing on a GPU would synchronise
        _last[:] = [(mean.clone(), std.clone(), dtype, table)]
    return table


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def _check(
    images: Any, index: Any, top: Any, left: Any, flip: Any, mean: Any, std: Any, padding: Any, dtype: Any
) -> None:
    _check_tensor("images_u8", images, (torch.uint8,), 4, images)
    for name, value, wanted in (
        ("index", index, torch.int64),
        ("top", top, torch.int64),
        ("left", left, torch.int64),
        ("flip", flip, torch.bool),
    ):
        _check_tensor(name, value, (wanted,), 1, images)
        if value.shape[0] != index.shape[0]:
            raise ValueError(f"{name}: {value.shape[0]} values, but index has {index.shape[0]}")
    for name, value in (("mean", mean), ("std", std)):
        _check_tensor(name, value, (torch.float32, torch.float64), 1, images)
        if value.shape[0] != images.shape[1]:
            raise ValueError(f"{name}: {value.shape[0]} values for {images.shape[1]} channels")
    if not isinstance(padding, int) or isinstance(padding, bool):
        raise TypeError(f"padding: an int, not {type(padding).__name__}")
    if padding < 0:
        raise ValueError(f"padding: 0 or more, not {padding}")
    if dtype not in FLOATS:
        raise TypeError(f"dtype: torch.float32, float16 or bfloat16, not {dtype}")


def _check_tensor(name: str, value: Any, dtypes: tuple[torch.dtype, ...], dims: int, images: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: a tensor, not {type(value).__name__}")
    if value.dtype not in dtypes:
        raise TypeError(f"{name}: {' or '.join(map(str, dtypes))}, not {value.dtype}")
    if value.dim() != dims:
        raise ValueError(f"{name}: {dims} dimension{'s' * (dims > 1)}, not {value.dim()}")
    check_device(value, name, images, "images_u8")
