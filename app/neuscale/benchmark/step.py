"""Benchmark of a training step: our models against torchvision's, eager and compiled, in one run.

A step is forward, loss and backward of one batch; the optimizer is the same for all and left out.
The models ("sides") take turns, and the time of each is the median over its rounds.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuscale.config import compose_config
from neuscale.models.fused import choose_ops, fuse
from neuscale.models.registry import create_model
from neuscale.training.flops import peak_tflops, training_flops


@dataclass(frozen=True)
class Case:
    """A model preset, its image size, and torchvision's model with the same sizes and drop path rate."""

    preset: str
    size: int
    drop_path_rate: float
    peer: Callable[[], nn.Module]


@dataclass(frozen=True)
class Row:
    """Result of one side; `ratio`: its throughput relative to torchvision's eager model."""

    model: str
    side: str
    batch: int
    precision: str
    milliseconds: float
    images_per_second: float
    ratio: float
    tflops: float | None
    mfu: float | None


def _torchvision_swin_t() -> nn.Module:
    import torchvision

    return torchvision.models.swin_t(num_classes=10)  # its stochastic depth is 0.2, like the preset's


def _torchvision_vit_s4() -> nn.Module:
    import torchvision

    return torchvision.models.VisionTransformer(
        image_size=64, patch_size=4, num_layers=12, num_heads=6, hidden_dim=384, mlp_dim=1536, num_classes=10
    )


CASES = (Case("swin_t", 32, 0.2, _torchvision_swin_t), Case("vit_s4", 64, 0.0, _torchvision_vit_s4))


def measure_steps(
    device: torch.device, precision: str, batch: int, rounds: int, with_compile: bool
) -> Iterator[Row]:
    """Measure all cases, yielding each row when it is measured."""
    for case in CASES:
        yield from _measure(case, device, precision, batch, rounds, with_compile)


def _measure(
    case: Case, device: torch.device, precision: str, batch: int, rounds: int, with_compile: bool
) -> Iterator[Row]:
    words = [f"model={case.preset}", f"model.drop_path_rate={case.drop_path_rate}"]
    config = compose_config(words).model

    def ours(fused: bool) -> nn.Module:
        model = create_model(config, case.size, 3, 10, 0)
        if fused:
            fuse(model, device)
        return model

    sides: dict[str, nn.Module] = {"torchvision": case.peer(), "ours, eager": ours(False)}
    if choose_ops(config, device).kind == "fused":
        sides["ours, fused ops"] = ours(True)
    if with_compile:
        for name, model in (("torchvision, compiled", case.peer()), ("ours, compiled", ours(False))):
            model.compile()
            sides[name] = model
    flops = training_flops(ours(False), 3, case.size)
    images = torch.randn(batch, 3, case.size, case.size, device=device)
    labels = torch.randint(0, 10, (batch,), device=device)
    steps = {
        name: _step(model.to(device).train(), images, labels, precision) for name, model in sides.items()
    }
    times = _turns(steps, device, rounds)
    base = statistics.median(times["torchvision"])
    peak = peak_tflops(device, precision)
    for name, values in times.items():
        seconds = statistics.median(values)
        tflops = batch * flops / seconds / 1e12 if flops is not None and name.startswith("ours") else None
        yield Row(
            model=f"{case.preset}, {case.size}×{case.size}",
            side=name,
            batch=batch,
            precision=precision,
            milliseconds=seconds * 1e3,
            images_per_second=batch / seconds,
            ratio=base / seconds,
            tflops=tflops,
            mfu=tflops / peak if tflops is not None and peak is not None else None,
        )


def _step(model: nn.Module, images: Tensor, labels: Tensor, precision: str) -> Callable[[], None]:
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}

    def autocast() -> AbstractContextManager[Any]:
        return torch.autocast(images.device.type, kinds.get(precision), enabled=precision in kinds)

    def run() -> None:
        with autocast():
            logits = model(images)
        loss: Tensor = F.cross_entropy(logits.float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter in model.parameters():
            parameter.grad = None

    return run


def _turns(steps: dict[str, Callable[[], None]], device: torch.device, rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(2):  # compiles and fills caches
            step()
    for _ in range(rounds):
        for name, step in steps.items():
            _wait(device)
            began = time.perf_counter()
            step()
            _wait(device)
            times[name].append(time.perf_counter() - began)
    return times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
