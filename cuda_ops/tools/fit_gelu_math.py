"""Fits the polynomials of `csrc/gelu_math.h` and prints them as they stand there.

    .venv/bin/python cuda_ops/tools/fit_gelu_math.py

The upper tail of the normal distribution, Q(a) = erfc(a / sqrt 2) / 2, is exp(-a² / 2) times a
factor that falls like 1 / a. With w = 1 / (a + k) that factor is w times a smooth function of w,
which a short polynomial meets with a bounded *relative* error, where 1 + erf loses every digit.
The form, a rational change of variable in front of a Chebyshev series, is that of Schonfelder,
"Chebyshev expansions for the error and related functions", Math. Comp. 32 (1978); the
coefficients are fitted here, by weighted least squares driven towards equal extremes
(Lawson 1961).
"""

from collections.abc import Callable

import torch
from torch import Tensor

LARGEST = 14.5  # the tail is below float32's smallest subnormal from here on
NODES = 4000


def minimax(
    function: Callable[[Tensor], Tensor], low: float, high: float, degree: int
) -> tuple[Tensor, float]:
    """Coefficients in t = (x - middle) / half, lowest first, and the largest relative error."""
    t = torch.cos(torch.pi * (torch.arange(NODES, dtype=torch.float64) + 0.5) / NODES)
    values = function((low + high) / 2 + (high - low) / 2 * t)
    powers = t[:, None] ** torch.arange(degree + 1, dtype=torch.float64)
    weights = torch.ones(NODES, dtype=torch.float64)
    for _ in range(100):
        rows = weights.sqrt() / values.abs()
        found = torch.linalg.lstsq(powers * rows[:, None], (values * rows)[:, None], driver="gelsd").solution[
            :, 0
        ]
        error = (powers @ found / values - 1).abs()
        weights = weights * (error / error.mean() + 1e-12)
        weights = weights / weights.mean()
    return found, float(error.max())


def tail_factor(k: float, degree: int) -> tuple[Tensor, float, float, float]:
    """The polynomial of the tail's factor, t = scale * w - offset, and its relative error."""
    low, high = 1 / (LARGEST + k), 1 / k

    def over_w(w: Tensor) -> Tensor:
        return torch.special.erfcx((1 / w - k) / 2**0.5) / 2 / w

    found, error = minimax(over_w, low, high, degree)
    return found, 2 / (high - low), (high + low) / (high - low), error


def exponential(degree: int) -> tuple[Tensor, float]:
    """q of exp(r) = 1 + r + r² q(r) for |r| <= ln 2 / 2 and a little; the error is that of exp."""
    half = 0.3475
    found, error = minimax(
        lambda r: torch.where(r.abs() < 1e-3, 0.5 + r / 6 + r * r / 24, (torch.expm1(r) - r) / r**2),
        -half,
        half,
        degree,
    )
    return found / half ** torch.arange(degree + 1, dtype=torch.float64), error * half**2 / 2


def main() -> None:
    for name, k, degree in (("fine", 3.75, 8), ("coarse", 3.25, 5)):
        found, scale, offset, error = tail_factor(k, degree)
        print(
            f"tail, {name}: k = {k}, scale = {scale:.10g}, offset = {offset:.10g}, relative error {error:.1e}"
        )
        print("  " + ", ".join(f"{float(c):.10g}f" for c in found))
    for name, degree in (("fine", 4), ("coarse", 2)):
        found, error = exponential(degree)
        print(f"exp, {name}: relative error {error:.1e}")
        print("  " + ", ".join(f"{float(c):.10g}f" for c in found))


if __name__ == "__main__":
    main()
