"""GELU and its derivative in float64, and the tolerances for results."""

import math

import torch
from torch import Tensor

# NaN, both infinities, values near the limits of float32, float16 and bfloat16, subnormals, and
# values where the tail underflows.
EXTREMES = [
    math.nan, math.inf, -math.inf, -3e38, 3e38, -65504.0, 65504.0, 1e-40, -1e-40, 6e-8, -6e-8, 0.0, -0.0,
    13.2, -13.2, -13.3, -9.0, 9.0, -0.75179, 100.0, -100.0, 1e19, -1e19,
]  # fmt: skip


def reference_gelu(u: Tensor, approximate: str) -> Tensor:
    """GELU in float64, without the cancellation of 1 + erf and 1 + tanh at negative u."""
    if approximate == "none":
        return u * torch.special.erfc(-u / math.sqrt(2)) / 2
    inner = math.sqrt(8 / math.pi) * (u + 0.044715 * u**3)
    return u * torch.sigmoid(inner)


def reference_derivative(u: Tensor, approximate: str) -> Tensor:
    """Derivative of GELU in float64; the clamp keeps its last term finite at every finite u."""
    if approximate == "none":
        return torch.special.erfc(-u / math.sqrt(2)) / 2 + u * torch.exp(-u * u / 2) / math.sqrt(2 * math.pi)
    inner = math.sqrt(8 / math.pi) * (u + 0.044715 * u**3)
    cdf, other = torch.sigmoid(inner), torch.sigmoid(-inner)
    slope = math.sqrt(8 / math.pi) * (1 + 3 * 0.044715 * u.square().clamp(max=1e200))
    return cdf + u * (cdf * other * slope)


# Error of the float32 arithmetic before the final rounding, relative to the result, in units of
# float32's epsilon. The exponent of the tanh form grows like u³, and its rounding error with it.
FLOAT32_ULPS = {"none": 6, "tanh": 128}


def assert_close(
    found: Tensor, wanted: Tensor, approximate: str = "none", scale: float = 0.0, rounding: float = 0.52
) -> None:
    """Assert |found - wanted| <= rounding of the dtype + float32 arithmetic, and NaN where NaN is wanted.

    `rounding` is 0.5 plus the error of the half types' shorter polynomials, in units of the dtype's
    epsilon. `scale` adds an absolute error in units of float32's epsilon, for results with cancellation.
    """
    finfo = torch.finfo(found.dtype)
    value = found.double()
    eps = torch.finfo(torch.float32).eps
    size = wanted.abs()
    slack = rounding * finfo.eps * size if found.dtype != torch.float32 else 0.0
    allowed = FLOAT32_ULPS[approximate] * eps * size + scale * eps + slack + finfo.smallest_normal * finfo.eps
    allowed = allowed + 2e-37  # the tail may be cut off below float32's smallest normal number
    # A number beyond the largest one of the dtype is rounded to infinity.
    finite_wanted = torch.where(size > finfo.max, torch.sign(wanted) * math.inf, wanted)
    good = (value.isnan() & wanted.isnan()) | (value == finite_wanted) | ((value - wanted).abs() <= allowed)
    assert good.all(), _worst(value, wanted, good)


def derivative_bounds(dtype: torch.dtype, largest_grad: float = 1.0) -> dict[str, float]:
    """Arguments of `assert_close` for gradients, whose error near the derivative's zero is absolute."""
    scale = {torch.float32: 8, torch.float16: 160, torch.bfloat16: 1280}[dtype]
    return {"scale": scale * largest_grad, "rounding": 0.55}


def _worst(found: Tensor, wanted: Tensor, good: Tensor) -> str:
    i = (~good).flatten().nonzero()[0, 0]
    count = int((~good).sum())
    return f"{count} of {good.numel()} are off; first: {found.flatten()[i]!r}, wanted {wanted.flatten()[i]!r}"
