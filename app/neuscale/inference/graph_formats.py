"""Export of a model as a graph that runs without this package: torch.export, ONNX and OpenVINO.

The batch size is dynamic. Attention is traced with the plain math implementation; with a fast kernel, the
strides of its output on this machine would become part of the graph.
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

# An ONNX file is one protobuf message of at most 2 GB; above this size, weights go into a file beside it.
LARGEST_ONNX = 1_800_000_000

# For each operator set, the oldest ONNX Runtime that ran a vision transformer exported with it; 1.15 to 1.23
# were tested. (The files have ONNX IR version 10, which no version before 1.18 reads.)
RUNTIMES = {18: "1.18", 19: "1.18", 20: "1.18", 21: "1.18", 22: "1.21", 23: "1.23"}
OPSET = 20


def write_torch(classifier: nn.Module, example: Tensor, path: Path, record: dict[str, Any]) -> None:
    """Write a `torch.export` program that contains `record` as the extra file model.json."""
    with _tracing("torch.export"):
        batch = torch.export.Dim("batch")
        program = torch.export.export(classifier, (example,), dynamic_shapes={"images": {0: batch}})
    torch.export.save(program, path, extra_files={"model.json": json.dumps(record)})


def check_opset(opset: int, largest: int) -> None:
    """Raise UsageError for an operator set that is not known to work, or is above `largest`."""
    if opset not in RUNTIMES or opset > largest:
        raise UsageError(f"`opset` {opset}: expected {min(RUNTIMES)} to {largest}.")


def write_onnx(classifier: nn.Module, example: Tensor, path: Path, record: dict[str, Any]) -> None:
    """Write an ONNX model with input "images" and output "logits".

    Each field of `record` becomes a key of its metadata. `record["opset"]` is the operator set.
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
    """Convert the ONNX model at `source` to OpenVINO (.xml, .bin); with fp16, weights are stored in fp16."""
    import openvino

    try:
        openvino.save_model(openvino.convert_model(source), path, compress_to_fp16=precision == "fp16")
    except Exception as error:  # unsupported operators raise various errors
        raise UserError(
            f"OpenVINO cannot read this model ({first_line(error)}).", "Export it as ONNX."
        ) from error


def first_line(error: Exception) -> str:
    """First non-empty line of an error message, at most 200 characters."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:200]


@contextmanager
def _tracing(tool: str) -> Iterator[None]:
    """Trace with plain attention and without warnings; raise UserError if `tool` fails."""
    try:
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # untraceable models raise various errors
        raise UserError(
            f"{tool} cannot make a graph of this model ({first_line(error)}).",
            "Export its weights as safetensors.",
        ) from error
