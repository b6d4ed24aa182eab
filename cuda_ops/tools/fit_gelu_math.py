"""Fit the polynomials of `csrc/gelu_math.h` and `csrc/float_math.h`, and print them as written there.

    .venv/bin/python cuda_ops/tools/fit_gelu_math.py

The upper tail of the normal distribution, Q(a) = erfc(a / sqrt 2) / 2, is exp(-a² / 2) times a
factor that falls like 1 / a. With w = 1 / (a + k) that factor is w times a smooth function of w,
which a short polynomial approximates with a bounded *relative* error, where 1 + erf loses all
digits. The form, a rational change of variable before a Chebyshev series, is that of Schonfelder,
"Chebyshev expansions for the error and related functions", Math. Comp. 32 (1978); the
coefficients are fitted here by least squares, reweighted towards equal extremes of the error
(Lawson 1961).

For results of 11 bits or fewer (float16, bfloat16) there are shorter forms without a division.
log2 Q(a) is so close to a parabola that a polynomial in a approximates it (it is -1 at 0, where Q
is 1/2). Another polynomial approximates the derivative's tail, Q(a) - a phi(a), divided by
exp(-a² / 2).
"""

from collections.abc import Callable
from math import log, pi, sqrt

import torch
from numpy.polynomial import Polynomial
from torch import Tensor

LARGEST = 14.5  # the tail is below float32's smallest subnormal from here on
NODES = 4000


def minimax(
    function: Callable[[Tensor], Tensor],
    low: float,
    high: float,
    degree: int,
    size: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, float]:
    """Coefficients in t = (x - middle) / half, lowest degree first, and the largest error / size(x).

    Without `size`, the error is relative.
    """
    t = torch.cos(torch.pi * (torch.arange(NODES, dtype=torch.float64) + 0.5) / NODES)
    x = (low + high) / 2 + (high - low) / 2 * t
    values = function(x)
    sizes = size(x) if size else values.abs()
    powers = t[:, None] ** torch.arange(degree + 1, dtype=torch.float64)
    weights = torch.ones(NODES, dtype=torch.float64)
    for _ in range(100):
        rows = weights.sqrt() / sizes
        found = torch.linalg.lstsq(powers * rows[:, None], (values * rows)[:, None], driver="gelsd").solution[
            :, 0
        ]
        error = (powers @ found - values).abs() / sizes
        weights = weights * (error / error.mean() + 1e-12)
        weights = weights / weights.mean()
    return found, float(error.max())


def tail_factor(k: float, degree: int) -> tuple[Tensor, float, float, float]:
    """Polynomial of the tail's factor in t = scale * w - offset, scale, offset, and its relative error."""
    low, high = 1 / (LARGEST + k), 1 / k

    def over_w(w: Tensor) -> Tensor:
        return torch.special.erfcx((1 / w - k) / 2**0.5) / 2 / w

    found, error = minimax(over_w, low, high, degree)
    return found, 2 / (high - low), (high + low) / (high - low), error


def exponential(degree: int) -> tuple[Tensor, float]:
    """Polynomial q in exp(r) = 1 + r + r² q(r) for |r| up to slightly over ln 2 / 2, and exp's error."""
    half = 0.3475
    found, error = minimax(
        lambda r: torch.where(r.abs() < 1e-3, 0.5 + r / 6 + r * r / 24, (torch.expm1(r) - r) / r**2),
        -half,
        half,
        degree,
    )
    return found / half ** torch.arange(degree + 1, dtype=torch.float64), error * half**2 / 2


def power_of_two(degree: int) -> tuple[Tensor, float]:
    """Polynomial q in 2^r = 1 + r q(r) for |r| up to slightly over 1/2, and the error of 2^r."""
    half = 0.5015
    found, error = minimax(
        lambda r: torch.expm1(r * log(2)) / r, -half, half, degree, lambda r: torch.exp2(r) / r.abs()
    )
    return found / half ** torch.arange(degree + 1, dtype=torch.float64), error


def log2_tail(largest: float, degree: int) -> tuple[Tensor, float]:
    """Polynomial (1 + log2 Q(a)) / a in powers of a, 0 <= a <= largest, and the relative error of Q."""
    found, error = minimax(
        lambda a: torch.special.erfcx(a / sqrt(2)).log2() / a - a / 2 / log(2),
        0,
        largest,
        degree,
        lambda a: 1 / a,
    )
    return in_powers(found, largest), error * log(2)


def derivative_factor(largest: float, degree: int) -> tuple[Tensor, float]:
    """Polynomial (Q(a) - a phi(a)) / exp(-a² / 2) in powers of a, 0 <= a <= largest, and its error.

    The error is absolute near the function's zero, else relative.
    """

    def factor(a: Tensor) -> Tensor:
        return torch.special.erfcx(a / sqrt(2)) / 2 - a / sqrt(2 * pi)

    found, error = minimax(factor, 0, largest, degree, lambda a: factor(a).abs().clamp(min=0.3))
    return in_powers(found, largest), error


def in_powers(coefficients: Tensor, largest: float) -> Tensor:
    """Convert a polynomial in t = 2 a / largest - 1 to one in a."""
    shifted = Polynomial(coefficients.numpy())(Polynomial([-1, 2 / largest]))
    return torch.tensor(shifted.coef)


def show(title: str, coefficients: Tensor, error: float) -> None:
    print(f"{title}: error {error:.1e}")
    print("  " + ", ".join(f"{float(c):.10g}f" for c in coefficients))


def main() -> None:
    k = 3.75
    found, scale, offset, error = tail_factor(k, 8)
    show(f"float32's tail: k = {k}, scale = {scale:.10g}, offset = {offset:.10g}", found, error)
    show("exp", *exponential(4))
    show("power of two", *power_of_two(3))
    show("power of two, bfloat16", *power_of_two(2))
    for name, tail, derivative in (("float16", 8.0, 8.0), ("bfloat16", 13.0, 13.27)):
        show(f"{name}: log2 of the tail up to {tail}", *log2_tail(tail, 7))
        factor = derivative_factor(derivative, 10)
        show(f"{name}: factor of the derivative's tail up to {derivative}", *factor)


if __name__ == "__main__":
    main()
