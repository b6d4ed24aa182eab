"""A pytest plugin that hides the packages which a plain installation does not have."""

import sys

for name in ("lightning", "onnx", "onnxruntime", "onnxscript", "submitit", "timm", "wandb"):
    sys.modules[name] = None  # type: ignore[assignment]
