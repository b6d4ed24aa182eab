"""Latency and throughput of a forward pass."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neuscale.progress import Progress

WARM_UP = 5
LEAST_PASSES, MOST_PASSES = 20, 1000
SECONDS = 2.0  # of measuring per batch size, with at least LEAST_PASSES and at most MOST_PASSES


@dataclass(frozen=True)
class Latency:
    """Times of a forward pass in milliseconds, and images per second at the median."""

    batch_size: int
    passes: int
    median_ms: float
    p95_ms: float
    images_per_second: float


@torch.inference_mode()
def measure_latency(
    model: nn.Module,
    images: Tensor,
    batch_sizes: Sequence[int],
    autocast: Callable[[], AbstractContextManager[Any]],
    progress: Progress,
) -> list[Latency]:
    """Time forward passes of `model` on `images` [N, C, S, S], normalised and on the model's device.

    Batches larger than N repeat images. Warm-up passes are not counted. The device is synchronised after
    each pass.
    """
    wait = _wait(images.device)
    measured = []
    with progress.task("measuring latency", len(batch_sizes), "batch size") as task:
        for size in batch_sizes:
            batch = images[torch.arange(size, device=images.device) % len(images)]

            def seconds(batch: Tensor = batch) -> float:
                start = time.perf_counter()
                with autocast():
                    model(batch)
                wait()
                return time.perf_counter() - start

            for _ in range(WARM_UP):
                seconds()
            times: list[float] = []
            while len(times) < LEAST_PASSES or (sum(times) < SECONDS and len(times) < MOST_PASSES):
                times.append(seconds())
            median = float(np.median(times))
            p95 = float(np.percentile(times, 95))
            measured.append(Latency(size, len(times), median * 1e3, p95 * 1e3, size / median))
            task.advance()
    return measured


def _wait(device: torch.device) -> Callable[[], None]:
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return torch.mps.synchronize if device.type == "mps" else lambda: None
