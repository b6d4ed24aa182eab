"""Latency and throughput of forward passes, measured with a fake clock."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from conftest import ListeningProgress
from neuscale.evaluation import latency
from neuscale.evaluation.latency import Latency, measure_latency

# Passes alternate between 10 ms and 20 ms, but every tenth takes 30 ms.
PATTERN = [0.010, 0.020] * 4 + [0.010, 0.030]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now


class Timed(nn.Module):
    """Fake model: each warm-up pass takes an hour, later ones `pattern`; the last 4 ms pass in `wait`."""

    def __init__(self, clock: Clock, pattern: list[float]) -> None:
        super().__init__()
        self.clock, self.pattern = clock, pattern
        self.calls: list[Tensor] = []
        self.autocast = False

    def start(self) -> None:
        self.seconds = itertools.chain([3600.0] * 5, itertools.cycle(self.pattern))

    def forward(self, images: Tensor) -> Tensor:
        assert self.autocast and torch.is_inference_mode_enabled()
        if not self.calls or len(images) != len(self.calls[-1]):
            self.start()
        self.calls.append(images)
        self.clock.now += next(self.seconds) - 0.004
        return images

    def wait(self) -> None:
        self.clock.now += 0.004

    @contextmanager
    def context(self) -> Iterator[None]:
        self.autocast = True
        yield
        self.autocast = False


def measure(
    monkeypatch: pytest.MonkeyPatch, pattern: list[float], sizes: list[int], progress: ListeningProgress
) -> tuple[list[Latency], list[Tensor]]:
    clock = Clock()
    model = Timed(clock, pattern)
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    monkeypatch.setattr(latency, "_wait", lambda _: model.wait)
    images = torch.arange(3.0)[:, None, None, None].expand(3, 1, 2, 2)
    return measure_latency(model, images, sizes, model.context, progress), model.calls


def test_median_95th_percentile_and_images_per_second(
    monkeypatch: pytest.MonkeyPatch, listening: ListeningProgress
) -> None:
    """Half of the passes take 10 ms (median between 10 and 20), and a tenth take 30 (95th percentile)."""
    found, calls = measure(monkeypatch, PATTERN, [1, 7], listening)
    for size, result in zip([1, 7], found, strict=True):
        assert result.batch_size == size
        assert result.passes == 126, "120 take 1.92 s, and six more 90 ms"
        assert result.median_ms == pytest.approx(15)
        assert result.p95_ms == pytest.approx(30)
        assert result.images_per_second == pytest.approx(size / result.median_ms * 1000)
    of_size = [len(images) for images in calls]
    assert of_size == [1] * (found[0].passes + 5) + [7] * (found[1].passes + 5)
    assert calls[-1][:, 0, 0, 0].tolist() == [0, 1, 2, 0, 1, 2, 0], "images are repeated"
    (task,) = listening.tasks
    assert (task.total, task.done) == (2, 2)


@pytest.mark.parametrize(
    ("seconds", "passes"), [(1.0, 20), (2**-4, 32), (2**-7, 256), (0.0005 + 0.004, 445), (0.0010, 1000)]
)
def test_it_measures_two_seconds_but_no_less_than_20_passes_and_no_more_than_1000(
    monkeypatch: pytest.MonkeyPatch, listening: ListeningProgress, seconds: float, passes: int
) -> None:
    (found,), _ = measure(monkeypatch, [seconds], [2], listening)
    assert found.passes == pytest.approx(passes, abs=1)
    assert found.median_ms == pytest.approx(seconds * 1e3, rel=1e-6)
    assert found.p95_ms == pytest.approx(seconds * 1e3, rel=1e-6)
    assert found.images_per_second == pytest.approx(2 / seconds, rel=1e-6)


def test_percentiles_of_uneven_times(monkeypatch: pytest.MonkeyPatch, listening: ListeningProgress) -> None:
    """Twenty passes of 101, 102, … 120 ms in mixed order: the median is between the 10th and the 11th."""
    order = [(7 * i) % 20 for i in range(20)]
    (found,), _ = measure(monkeypatch, [0.101 + 0.001 * i for i in order], [4], listening)
    assert found.passes == 20
    assert found.median_ms == pytest.approx(110.5)
    assert found.p95_ms == pytest.approx(119.05)  # 0.95 · 19 = 18.05 ranks above the smallest
    assert found.images_per_second == pytest.approx(4 / 0.1105)


def test_a_gpu_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    latency._wait(torch.device("cpu"))()
    assert waited == []
    latency._wait(torch.device("cuda", 1))()
    assert waited == [torch.device("cuda", 1)]
    assert latency._wait(torch.device("mps")) is torch.mps.synchronize
