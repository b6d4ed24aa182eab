"""A model as a graph that runs without this package: torch.export, ONNX and OpenVINO.

The batch is dynamic. Attention is traced in its plain form: the strides that a fast kernel of this
machine happens to return would otherwise be written into the graph.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from neuscale.errors import UsageError, UserError

# An ONNX file is one protobuf message, of 2 GB at most; weights of more lie beside it.
LARGEST_ONNX = 1_800_000_000

# Of each operator set the oldest ONNX Runtime that ran a vision transformer exported with it, of 1.15 to 1.23
# (the files are of ONNX's IR version 10, which none before 1.18 reads).
RUNTIMES = {18: "1.18", 19: "1.18", 20: "1.18", 21: "1.18", 22: "1.21", 23: "1.23"}
OPSET = 20


def write_torch(classifier: nn.Module, example: Tensor, path: Path, record: dict[str, Any]) -> None:
    """Write a `torch.export` program; `record` lies in it as the extra file model.json."""
    with _tracing("torch.export"):
        batch = torch.export.Dim("batch")
        program = torch.export.export(classifier, (example,), dynamic_shapes={"images": {0: batch}})
    torch.export.save(program, path, extra_files={"model.json": json.dumps(record)})


def check_opset(opset: int, largest: int) -> None:
    """Raise UsageError for an operator set that is not known to work."""
    if opset not in RUNTIMES or opset > largest:
        raise UsageError(f"`opset` {opset}: expected {min(RUNTIMES)} to {largest}.")


def write_onnx(classifier: nn.Module, example: Tensor, path: Path, record: dict[str, Any]) -> None:
    """Write an ONNX model from "images" to "logits"; `record` lies in its metadata, a key for each field.

    `record["opset"]` is its operator set.
    """
    size = sum(value.nbytes for value in classifier.state_dict().values())
    with _tracing("torch.onnx"):
        program = torch.onnx.export(
            classifier,
            (example,),
            dynamo=True,
            dynamic_shapes={"images": {0: "batch"}},
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
            opset_version=record["opset"],
        )
        assert program is not None
        for name, value in record.items():
            program.model.metadata_props[name] = value if isinstance(value, str) else json.dumps(value)
    program.save(path, external_data=size > LARGEST_ONNX)


def write_openvino(source: Path, path: Path, precision: str) -> None:
    """Convert the ONNX model at `source` to OpenVINO's model.xml and model.bin; fp16: the weights' type."""
    import openvino

    try:
        openvino.save_model(openvino.convert_model(source), path, compress_to_fp16=precision == "fp16")
    except Exception as error:  # each operator has its own way to resist
        raise UserError(
            f"OpenVINO cannot read this model ({first_line(error)}).", "Export it as ONNX."
        ) from error


def first_line(error: Exception) -> str:
    """The first line of a library's message that is not empty, 200 characters at most."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:200]


@contextmanager
def _tracing(tool: str) -> Iterator[None]:
    """Plain attention, no warnings of the tool's own about itself, and its failure in a line."""
    try:
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # each model has its own way to resist
        raise UserError(
            f"{tool} cannot make a graph of this model ({first_line(error)}).",
            "Export its weights as safetensors.",
        ) from error
