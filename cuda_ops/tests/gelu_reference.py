"""GELU in float64, and how far from it a result may be."""

import math

import torch
from torch import Tensor

# NaN and both infinities, both ends of float32, of float16 and of bfloat16, subnormals of each,
# and where the tail underflows.
EXTREMES = [
    math.nan, math.inf, -math.inf, -3e38, 3e38, -65504.0, 65504.0, 1e-40, -1e-40, 6e-8, -6e-8, 0.0, -0.0,
    13.2, -13.2, -13.3, -9.0, 9.0, -0.75179, 100.0, -100.0, 1e19, -1e19,
]  # fmt: skip


def reference_gelu(u: Tensor, approximate: str) -> Tensor:
    """GELU of float64 without the cancellation of 1 + erf and 1 + tanh at negative u."""
    if approximate == "none":
        return u * torch.special.erfc(-u / math.sqrt(2)) / 2
    inner = math.sqrt(8 / math.pi) * (u + 0.044715 * u**3)
    return u * torch.sigmoid(inner)


def reference_derivative(u: Tensor, approximate: str) -> Tensor:
    """The derivative in float64; the limit of its last term is 0 at every finite u."""
    if approximate == "none":
        return torch.special.erfc(-u / math.sqrt(2)) / 2 + u * torch.exp(-u * u / 2) / math.sqrt(2 * math.pi)
    inner = math.sqrt(8 / math.pi) * (u + 0.044715 * u**3)
    cdf, other = torch.sigmoid(inner), torch.sigmoid(-inner)
    slope = math.sqrt(8 / math.pi) * (1 + 3 * 0.044715 * u.square().clamp(max=1e200))
    return cdf + u * (cdf * other * slope)


# Relative to the result; what float32 arithmetic adds in front of the final rounding, in units of
# float32's. The tanh form's exponent grows like u³, and with it what its rounding costs.
FLOAT32_ULPS = {"none": 6, "tanh": 128}


def assert_close(
    found: Tensor, wanted: Tensor, approximate: str = "none", scale: float = 0.0, rounding: float = 0.52
) -> None:
    """|found - wanted| <= a rounding of the type + the float32 arithmetic, and NaN where NaN is wanted.

    `rounding` is 0.5 and what the shorter polynomials of the half types add to it, in units of
    the type. `scale` adds that many float32 units of an absolute size 1, for results with cancellation.
    """
    finfo = torch.finfo(found.dtype)
    value = found.double()
    eps = torch.finfo(torch.float32).eps
    size = wanted.abs()
    slack = rounding * finfo.eps * size if found.dtype != torch.float32 else 0.0
    allowed = FLOAT32_ULPS[approximate] * eps * size + scale * eps + slack + finfo.smallest_normal * finfo.eps
    allowed = allowed + 2e-37  # the tail may be cut off where it leaves float32's normal numbers
    # Beyond the largest number of the type, infinity is the nearest.
    finite_wanted = torch.where(size > finfo.max, torch.sign(wanted) * math.inf, wanted)
    good = (value.isnan() & wanted.isnan()) | (value == finite_wanted) | ((value - wanted).abs() <= allowed)
    assert good.all(), _worst(value, wanted, good)


def derivative_bounds(dtype: torch.dtype, largest_grad: float = 1.0) -> dict[str, float]:
    """`scale` and `rounding` for gradients, whose error near the derivative's zero is absolute."""
    scale = {torch.float32: 8, torch.float16: 160, torch.bfloat16: 1280}[dtype]
    return {"scale": scale * largest_grad, "rounding": 0.55}


def _worst(found: Tensor, wanted: Tensor, good: Tensor) -> str:
    i = (~good).flatten().nonzero()[0, 0]
    count = int((~good).sum())
    return f"{count} of {good.numel()} are off; first: {found.flatten()[i]!r}, wanted {wanted.flatten()[i]!r}"
