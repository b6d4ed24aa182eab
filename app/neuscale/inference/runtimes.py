"""Run an exported model with the library of its format."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from neuscale.errors import UsageError
from neuscale.hardware import available_cores
from neuscale.inference.classifier import FILES, load_exported

# Packages needed to write a format (the last one is enough to run it), and the extra that installs them.
_PACKAGES = {
    "onnx": (("onnx", "onnxscript", "onnxruntime"), "onnx"),
    "openvino": (("onnx", "onnxscript", "onnxruntime", "openvino"), "openvino"),
}


def check_packages(kind: str, running: bool = False) -> None:
    """Raise UsageError if a package needed to write format `kind` (`running`: to run it) is missing."""
    needed, extra = _PACKAGES.get(kind, ((), ""))
    if running:
        needed = needed[-1:]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        verb = "are" if len(missing) > 1 else "is"
        raise UsageError(
            f"{FORMAT_NAMES[kind]}: {' and '.join(missing)} {verb} not installed.",
            f"Install what it needs: pip install 'neuscale[{extra}]'",
        )


FORMAT_NAMES = {"safetensors": "safetensors", "torch": "torch.export", "onnx": "ONNX", "openvino": "OpenVINO"}

Runner = Callable[[Tensor], Tensor]


def reloaded(kind: str, folder: Path) -> Runner:
    """Load the model from its file, on the CPU: uint8 [B, C, H, W] → logits float32 [B, classes]."""
    if kind == "safetensors":
        return load_exported(folder)
    if kind == "torch":
        return torch.export.load(folder / FILES[kind]).module()
    return (_onnx if kind == "onnx" else _openvino)(folder / FILES[kind])


def _onnx(file: Path) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cores()  # its default is all cores of the machine, usable or not
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run(None, {"images": images.numpy()})
        return torch.from_numpy(logits)

    return run


def _openvino(file: Path) -> Runner:
    import openvino

    # By default it computes in bfloat16 on processors that support it, whatever the precision of the file.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": available_cores()}
    compiled = openvino.Core().compile_model(file, "CPU", settings)

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(compiled({"images": images.numpy()})["logits"].copy())

    return run
