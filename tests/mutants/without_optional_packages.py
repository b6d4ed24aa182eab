"""A pytest plugin that hides optional packages, which a plain installation does not have."""

import sys

for name in (
    *("backports.zstd", "lightning", "onnx", "onnxruntime", "onnxscript"),
    *("openvino", "playwright", "pyarrow", "submitit", "timm", "wandb"),
):
    sys.modules[name] = None  # type: ignore[assignment]
