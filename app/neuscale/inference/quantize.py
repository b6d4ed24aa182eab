"""Export in lower precision: half-precision floats, and 8-bit integers with ONNX Runtime.

int8 is dynamic quantisation: weights are quantised per channel at export, activations per batch at run
time. int8-static also quantises activations with fixed ranges, measured on training images.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from neuscale.data.augment.crops import center_crop, normalize, side_before_crop
from neuscale.errors import UsageError, UserError
from neuscale.inference.classifier import Classifier
from neuscale.inference.graph_formats import LARGEST_ONNX, first_line
from neuscale.inference.runtimes import FORMAT_NAMES

# ONNX Runtime does not support bfloat16 on the CPU, and OpenVINO no dynamic quantisation of activations.
PRECISIONS = {
    "safetensors": ("fp32", "fp16", "bf16"),
    "torch": ("fp32", "fp16", "bf16"),
    "onnx": ("fp32", "fp16", "int8", "int8-static"),
    "openvino": ("fp32", "fp16", "int8-static"),
}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}

# Matrix products have nearly all of the weights and take nearly all of the time; quantising the rest costs
# more than it gains. Few versions of ONNX Runtime have a dynamically quantised convolution.
_QUANTISED = {"int8": ["MatMul", "Gemm"], "int8-static": ["MatMul", "Gemm", "Conv"]}

# ONNX Runtime 1.23, the oldest that reads operator set 23, cannot quantise models that use it.
LARGEST_INT8_OPSET = 22

CALIBRATION_IMAGES = 256


def check_precision(kind: str, precision: str) -> None:
    """Raise UsageError if format `kind` does not support `precision`."""
    if precision in PRECISIONS[kind]:
        return
    others = [FORMAT_NAMES[other] for other, known in PRECISIONS.items() if precision in known]
    raise UsageError(
        f"`precision` {precision}: {FORMAT_NAMES[kind]} has {', '.join(PRECISIONS[kind])}.",
        f"Formats that have it: {', '.join(others)}." if others else "",
    )


class HalfPrecision(nn.Module):
    """`classifier` with its model in fp16 or bf16: uint8 [B, C, H, W] → logits float32 [B, classes].

    Images are normalised and resized in float32.
    """

    def __init__(self, classifier: Classifier, dtype: torch.dtype) -> None:
        super().__init__()
        self.classifier, self.dtype = deepcopy(classifier), dtype
        self.classifier.model.to(dtype)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier.model(self.classifier.model_input(images).to(self.dtype))
        return logits.float()


class ProductResize(Classifier):
    """`classifier`, whose images are resized by two matrix products.

    OpenVINO ignores the antialiasing of ONNX's Resize when an image becomes smaller.
    """

    resize_rows: Tensor
    resize_columns: Tensor

    def __init__(self, classifier: Classifier) -> None:
        super().__init__(classifier.model, classifier.preprocessing, classifier.classes)
        wanted = self.preprocessing
        side = side_before_crop(wanted.image_size, wanted.crop)
        # Resizing is linear and separable: the unit vectors, resized, are the columns of its matrix.
        rows, columns = (
            F.interpolate(
                torch.eye(length)[None, None], (side, length), mode=wanted.interpolation, antialias=True
            )[0, 0]
            for length in (wanted.height, wanted.width)
        )
        self.register_buffer("resize_rows", rows)
        self.register_buffer("resize_columns", columns.T.contiguous())

    def model_input(self, images: Tensor) -> Tensor:
        normalized = normalize(images, self.mean, self.std)
        return center_crop(self.resize_rows @ normalized @ self.resize_columns, self.preprocessing.image_size)


def rounded(state: dict[str, Tensor], precision: str) -> dict[str, Tensor]:
    """State dict with its floats cast to the dtype of `precision`.

    Raises UserError if a value is out of range of that dtype.
    """
    if precision not in DTYPES:
        return state
    dtype = DTYPES[precision]
    cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    for name, value in cast.items():
        if not torch.equal(value.isfinite(), state[name].isfinite()):
            raise UserError(
                f"{name}: holds numbers beyond the range of {precision}.", "Export it as bf16, or as fp32."
            )
    return cast


class _Calibration:
    """Batches of training images, as a calibration data reader of ONNX Runtime."""

    def __init__(self, batches: Sequence[NDArray[Any]]) -> None:
        self._batches: Iterator[NDArray[Any]] = iter(batches)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch}


def quantize_onnx(source: Path, path: Path, calibration: Tensor | None) -> None:
    """Quantise the ONNX model at `source` to 8 bits and write it to `path`.

    `calibration`: images, uint8 [N, C, H, W], for measuring the ranges of activations; None for dynamic
    quantisation. Raises UserError if ONNX Runtime cannot quantise the model.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

    model = onnx.load(source)
    # Remove the shapes recorded by the exporter: the quantiser's transposed weights contradict them.
    del model.graph.value_info[:]
    weights = sum(math.prod(tensor.dims) for tensor in model.graph.initializer)
    operators = _QUANTISED["int8" if calibration is None else "int8-static"]
    if not any(node.op_type in operators for node in model.graph.node):
        raise UserError(
            f"this model has no operator that can be quantised so ({', '.join(operators)}).",
            "Export it as int8-static, or as fp16.",
        )
    resizing = [
        node.name for node in model.graph.node if any(name.startswith("resize_") for name in node.input)
    ]
    options = {
        "nodes_to_exclude": resizing,
        "per_channel": True,
        "weight_type": QuantType.QInt8,
        "op_types_to_quantize": operators,
        # While it is calibrated, the model is stored in float32.
        "use_external_data_format": weights * (1 if calibration is None else 4) > LARGEST_ONNX,
    }
    try:
        with _quiet_root_logger():
            if calibration is None:
                quantize_dynamic(model, path, **options)
            else:
                reader = _Calibration([part.numpy() for part in torch.split(calibration, 32)])
                quantize_static(
                    model,
                    path,
                    reader,
                    quant_format=QuantFormat.QDQ,
                    activation_type=QuantType.QUInt8,
                    **options,
                )
    except Exception as error:  # unsupported operators raise various errors
        raise UserError(
            f"ONNX Runtime cannot quantise this model ({first_line(error)}).",
            "Export it as fp16, or as fp32.",
        ) from error


@contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """Hide the quantiser's advice, which is meant for direct callers."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
