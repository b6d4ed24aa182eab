"""Benchmark of the native ops against eager torch, torch.compile and a plain copy, in one run.

Each case has several sides, functions that do the same work. They take turns for some rounds, so
that a disturbance of the machine affects all of them; a side's time is the median over its rounds.
The copy is the lower limit: it moves the bytes that the case must move, into allocated memory.
"""

import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Side = Callable[[], Any]
SIDES = ("eager", "compile", "ours", "copy")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
TINY = 200  # calls per measurement for a tiny input


@dataclass(frozen=True)
class Measured:
    """One case: milliseconds of each side, and ratios of the others to ours (above 1: ours is faster)."""

    case: str
    milliseconds: dict[str, float]
    spread: dict[str, tuple[float, float]]  # lowest and highest round

    def ratio(self, side: str) -> float | None:
        """Time of `side` divided by ours; None if it was not measured."""
        if side not in self.milliseconds:
            return None
        return self.milliseconds[side] / self.milliseconds["ours"]


def measure_ops(device: torch.device, rounds: int = 15, only: str = "") -> Iterator[Measured]:
    """Measure the cases whose names contain `only`, yielding each result when it is measured."""
    for name, make in _cases(device):
        if only in name:
            torch._dynamo.reset()
            yield _measure(name, make(), device, rounds)


def report(device: torch.device, measured: list[Measured]) -> dict[str, Any]:
    """The results, with the device and the versions they were measured on, for a JSON file."""
    import neuscale_ops

    cuda = device.type == "cuda"
    build = neuscale_ops.build_info()
    for library in ("cpu", "cuda"):
        if build[library] is not None:  # the path on this machine does not belong in the report
            build[library] = {name: value for name, value in build[library].items() if name != "path"}
    return {
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine(),
        "threads": None if cuda else torch.get_num_threads(),
        "torch": torch.__version__,
        "neuscale_ops": build,
        "cases": [
            asdict(m) | {"eager_over_ours": m.ratio("eager"), "compile_over_ours": m.ratio("compile")}
            for m in measured
        ],
    }


def table_lines(measured: list[Measured]) -> list[str]:
    """The results as a text table: milliseconds, then ratios."""
    lines = [
        f"{'case':<46}" + "".join(f"{side:>10}" for side in SIDES) + "   eager/ours  compile/ours  copy/ours"
    ]
    for m in measured:
        times = "".join(f"{m.milliseconds[s]:>10.4f}" if s in m.milliseconds else f"{'':>10}" for s in SIDES)
        ratios = [m.ratio(side) for side in ("eager", "compile", "copy")]
        words = "".join(
            f"{f'{ratio:.2f}×' if ratio else '':>{width}}"
            for ratio, width in zip(ratios, (13, 14, 11), strict=True)
        )
        lines.append(f"{m.case:<46}{times}{words}")
    return lines


def _measure(name: str, sides: dict[str, Side], device: torch.device, rounds: int) -> Measured:
    for side in sides.values():
        for _ in range(3):  # compiles, chooses and fills caches
            side()
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for label, function in sides.items():
            times[label].append(_milliseconds(function, device))
    calls = TINY if name.startswith("tiny") else 1
    return Measured(
        name,
        {side: statistics.median(values) / calls for side, values in times.items()},
        {side: (min(values) / calls, max(values) / calls) for side, values in times.items()},
    )


def _milliseconds(function: Side, device: torch.device) -> float:
    if device.type != "cuda":
        began = time.perf_counter()
        function()
        return (time.perf_counter() - began) * 1e3
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _cases(device: torch.device) -> Iterator[tuple[str, Callable[[], dict[str, Side]]]]:
    rows = 64 * 197 if device.type == "cuda" else 16384
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for approximate in ("none", "tanh"):
            words = f"{str(dtype).removeprefix('torch.')} {approximate}"
            for backward in (False, True):
                yield (
                    f"bias_gelu {'backward' if backward else 'forward'} {words} [{rows}, 1536]",
                    partial(_bias_gelu, device, rows, 1536, dtype, approximate, backward),
                )
    for dtype in (torch.float32, torch.bfloat16):
        name = f"crop_flip_normalize {str(dtype).removeprefix('torch.')} [512, 3, 32, 32]"
        yield name, partial(_crop, device, dtype)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    tokens = 64 * 197 if device.type == "cuda" else 16 * 197
    yield f"mlp forward + backward [{tokens}, 384] x 1536", partial(_mlp, device, tokens, dtype)
    yield "tiny bias_gelu forward [4, 16]", partial(_tiny, device, False)
    yield "tiny bias_gelu forward + backward [4, 16]", partial(_tiny, device, True)


def _gelu(approximate: str) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, bias: F.gelu(x + bias, approximate=approximate)


def _bias_gelu(
    device: torch.device, rows: int, columns: int, dtype: torch.dtype, approximate: str, backward: bool
) -> dict[str, Side]:
    from neuscale_ops import bias_gelu

    torch.manual_seed(0)
    x, grad = (torch.randn(rows, columns, device=device).to(dtype) for _ in range(2))
    bias = torch.randn(columns, device=device).to(dtype)
    kept = torch.empty_like(x)
    functions = {
        "eager": _gelu(approximate),
        "compile": torch.compile(_gelu(approximate), fullgraph=True),
        "ours": lambda x, bias: bias_gelu(x, bias, approximate),
    }
    if not backward:

        def forward(function: Callable[[Tensor, Tensor], Tensor]) -> Side:
            @torch.no_grad()  # type: ignore[untyped-decorator, unused-ignore]
            def side() -> None:
                function(x, bias)

            return side

        return {n: forward(f) for n, f in functions.items()} | {"copy": lambda: kept.copy_(x)}
    leaves = (x.requires_grad_(), bias.requires_grad_())

    def backward_of(function: Callable[[Tensor, Tensor], Tensor]) -> Side:
        y = function(*leaves)
        return lambda: torch.autograd.grad(y, leaves, grad, retain_graph=True)

    half = rows // 2

    def copy() -> None:  # reads x and the gradient, writes x's gradient: 1.5 times the traffic of a copy
        with torch.no_grad():
            kept.copy_(x)
            kept[:half].copy_(grad[:half])

    return {n: backward_of(f) for n, f in functions.items()} | {"copy": copy}


def _crop(device: torch.device, dtype: torch.dtype) -> dict[str, Side]:
    from neuscale.data.augment.crops import CropFlip, Rows, crop_flip, normalize
    from neuscale_ops import crop_flip_normalize

    torch.manual_seed(0)
    images = torch.randint(0, 256, (50000, 3, 32, 32), dtype=torch.uint8, device=device)
    index = torch.randint(0, len(images), (512,), device=device)
    top, left = (torch.randint(0, 9, (512,), device=device) for _ in range(2))
    flip = torch.rand(512, device=device) < 0.5
    mean, std = torch.tensor(MEAN, device=device), torch.tensor(STD, device=device)

    def eager() -> Tensor:
        batch = crop_flip(Rows(images, index), CropFlip(top, left, flip, 4))
        return normalize(batch, mean, std).to(dtype)

    out = eager()
    kept = torch.empty_like(out)
    return {
        "eager": eager,
        "compile": torch.compile(eager, fullgraph=True),
        "ours": lambda: crop_flip_normalize(images, index, top, left, flip, mean, std, 4, dtype),
        "copy": lambda: kept.copy_(out),
    }


def _mlp(device: torch.device, tokens: int, dtype: torch.dtype) -> dict[str, Side]:
    from neuscale_ops import gelu_mlp

    torch.manual_seed(0)
    shapes = ((tokens, 384), (1536, 384), (1536,), (384, 1536), (384,))
    leaves = [(torch.randn(s, device=device) * 0.05).to(dtype).requires_grad_() for s in shapes]
    grad = torch.randn(tokens, 384, device=device).to(dtype)

    def eager(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        return F.linear(F.gelu(F.linear(x, w1, b1), approximate="tanh"), w2, b2)

    def both(function: Callable[..., Tensor]) -> Side:
        return lambda: torch.autograd.grad(function(*leaves), leaves, grad)

    compiled = torch.compile(eager, fullgraph=True)
    return {"eager": both(eager), "compile": both(compiled), "ours": both(gelu_mlp)}


def _tiny(device: torch.device, backward: bool) -> dict[str, Side]:
    """Overhead of a call, measured on a tiny input."""
    from neuscale_ops import bias_gelu

    x, bias = torch.randn(4, 16, device=device), torch.randn(16, device=device)
    if backward:
        x.requires_grad_(), bias.requires_grad_()
    grad = torch.ones(4, 16, device=device)

    def calls(function: Callable[[Tensor, Tensor], Tensor]) -> Side:
        def side() -> None:
            for _ in range(TINY):
                y = function(x, bias)
                if backward:
                    torch.autograd.grad(y, (x, bias), grad)

        return side

    eager = _gelu("none")
    compiled = torch.compile(eager, fullgraph=True)
    return {"eager": calls(eager), "compile": calls(compiled), "ours": calls(bias_gelu)}
