"""Native ops of NeuScale for torch: fused bias and GELU, and the loader's inner loop.

    from neuscale_ops import LinearGELU, bias_gelu, crop_flip_normalize, gelu_mlp, linear_gelu

The import loads the compiled libraries. It raises ImportError, with the reason and a fix, if they
are missing or incompatible with this machine or its torch.
"""

from neuscale_ops.fakes import register
from neuscale_ops.libraries import build_info, load

load()
register()

# torch.ops.neuscale_ops exists only after load().
from neuscale_ops.augment import crop_flip_normalize  # noqa: E402
from neuscale_ops.gelu import bias_gelu  # noqa: E402
from neuscale_ops.linear import LinearGELU, gelu_mlp, linear_gelu  # noqa: E402

__version__ = build_info()["version"]

__all__ = [
    "LinearGELU",
    "__version__",
    "bias_gelu",
    "build_info",
    "crop_flip_normalize",
    "gelu_mlp",
    "linear_gelu",
]
