"""Speed, memory and FLOPs are measured in the units in which they are reported."""

import resource
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuscale.config import compose_config
from neuscale.data.loaders.loader import Batch
from neuscale.errors import UsageError
from neuscale.models.registry import create_model
from neuscale.training import metrics_logger
from neuscale.training import stopping as limit
from neuscale.training.flops import peak_tflops, training_flops
from neuscale.training.loss import batch_sums
from neuscale.training.metrics_logger import MetricsLogger, RunningSums, Timer, memory_gigabytes
from neuscale.training.stopping import Deadline
from neuscale.units import limit_seconds

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def test_sums_of_a_micro_batch_are_of_images_and_not_of_batches() -> None:
    logits = torch.tensor(
        [[0.0, 2.0, 1.0], [3.0, 0.0, 1.0], [0.0, 1.0, 2.0], [9.0, 0.0, 0.0], [0.0, 1.0, 0.5]]
    )
    batch = Batch(torch.zeros(5, 1, 1, 1), torch.tensor([1, 0, 1, 2, 1]), torch.arange(5), 0, slice(0, 5))
    sums = batch_sums(logits, batch, torch.tensor(0.75))
    assert sums.tolist() == [3.75, 3.0]
    half = batch_sums(logits.bfloat16(), batch, torch.tensor(1.0 + 2**-10))
    assert half.dtype == torch.float32
    assert half[0] == 5 * (1.0 + 2**-10)
    partners, weights = torch.tensor([0, 0, 2, 0, 2]), torch.tensor([0.75, 0.5, 0.875, 0.25, 1.0])
    mixed = batch_sums(
        logits, replace(batch, partner_labels=partners, mix_weights=weights), torch.tensor(0.75)
    )
    # Predicted label: own; own and partner's (equal); partner's; partner's; own.
    assert mixed.tolist() == [3.75, 0.75 + 1.0 + 0.125 + 0.75 + 1.0]


def test_a_window_adds_up_and_remembers_its_first_bad_step() -> None:
    window = RunningSums(CPU)
    for step, loss in ((7, 1.5), (8, float("nan")), (9, float("inf"))):
        window.add(step, torch.tensor([loss, 2.0]))
    assert (window.sums[1], window.steps, int(window.bad)) == (6.0, 3, 8)
    window.clear()
    assert (window.sums.tolist(), window.steps, int(window.bad)) == ([0.0, 0.0], 0, 8)


def test_the_clock_counts_waiting_and_the_whole_of_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(metrics_logger, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def batches() -> Any:
        for batch in range(4):
            now[0] += 1.0 + batch
            yield batch
        now[0] += 500.0  # the time at the end of an epoch is not waiting for a batch

    clock, seen = Timer(), []
    clock.start(10)
    for batch in clock.timed(batches()):
        now[0] += 10.0
        seen.append((batch, clock.since(10 + batch)))
    assert seen == [(0, (0.0, 0.0, 0)), (1, (11.0, 1.0, 1)), (2, (12.0, 2.0, 1)), (3, (13.0, 3.0, 1))]
    assert (clock.seconds, clock.waited) == (50.0, 10.0)
    assert clock.since(15) == (14.0, 4.0, 2)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> MetricsLogger:
    """Logger of two processes whose fake `reduce` triples the sums, with batches of 40 images."""

    def reduce(sums: Tensor, how: str) -> Tensor:
        assert how == "sum"
        return sums * 3

    accelerator: Any = SimpleNamespace(device=CPU, num_processes=2, reduce=reduce)
    monkeypatch.setattr(metrics_logger, "memory_gigabytes", lambda _device: 1.25)
    return MetricsLogger(accelerator, 40, 3e9, 8.0)


def test_a_point_has_means_speed_operations_and_utilisation(log: MetricsLogger) -> None:
    log.timer.start(20)
    for step in range(20, 25):
        log.running.add(step, torch.tensor([8.0, 4.0]))
    log.timer.seconds, log.timer.waited = 0.5, 0.2
    point = log.values(25, 0.125, pytest.fail)
    assert point == pytest.approx(
        {
            "loss": 3 * 5 * 8.0 / (5 * 40),
            "accuracy": 3 * 5 * 4.0 / (5 * 40),
            "lr": 0.125,
            "memory_gb": 1.25,
            "images_per_second": 4 * 40 / 0.5,  # the fifth step has not ended
            "data_wait": 0.4,
            "tflops": 320 * 3e9 / 1e12 / 2,  # per process
            "mfu": 0.48 / 8.0,
        }
    )
    assert log.running.sums.tolist() == [0.0, 0.0]
    log.running.add(25, torch.tensor([1.0, 1.0]))
    log.timer.seconds = 1.5
    assert log.values(26, 0.1, pytest.fail)["images_per_second"] == 40.0


def test_what_is_not_known_is_left_out(log: MetricsLogger) -> None:
    log.running.add(0, torch.tensor([8.0, 4.0]))
    assert set(log.values(1, 0.1, pytest.fail)) == {"loss", "accuracy", "lr", "memory_gb"}, (
        "no step has ended"
    )
    log.peak = None
    log.timer.seconds = 2.0
    log.running.add(1, torch.tensor([8.0, 4.0]))
    assert set(log.values(2, 0.1, pytest.fail)) >= {"tflops", "images_per_second"}
    log.flops, log.peak = None, 9.0
    log.timer.seconds = 3.0
    log.running.add(2, torch.tensor([8.0, 4.0]))
    point = log.values(3, 0.1, pytest.fail)
    assert {"tflops", "mfu"}.isdisjoint(point)
    assert point["data_wait"] == 0.0


def test_a_loss_that_is_no_number_is_looked_into(log: MetricsLogger) -> None:
    called: list[int] = []
    log.running.add(0, torch.tensor([float("nan"), 4.0]))
    log.values(1, 0.1, lambda: called.append(1))
    assert called == [1]


@pytest.mark.parametrize(("platform", "peak"), [("linux", 2_097_152), ("darwin", 2_097_152 * 1024)])
def test_memory_of_a_process_is_its_peak_in_gigabytes(
    monkeypatch: pytest.MonkeyPatch, platform: str, peak: int
) -> None:
    """getrusage counts KiB on Linux and bytes on macOS; 2 GiB are 2.147 GB."""
    monkeypatch.setattr(sys, "platform", platform)
    usage = SimpleNamespace(ru_maxrss=peak)
    monkeypatch.setattr(resource, "getrusage", lambda who: usage if who == resource.RUSAGE_SELF else None)
    assert memory_gigabytes(CPU) == pytest.approx(2.147483648)


def test_memory_of_a_gpu_is_the_most_that_tensors_took(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.cuda, "max_memory_allocated", lambda device: 7_500_000_000 + (device.index or 0)
    )
    assert memory_gigabytes(CUDA) == 7.5


class Attention(nn.Module):
    """Attention over the 16 pixels of 3 channels: two products of 16·16·3 multiply-adds."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return F.scaled_dot_product_attention(tokens, tokens, tokens)


class Refuses(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError(f"not without memory: {x.device}")


@pytest.mark.parametrize(
    ("model", "multiply_adds"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(48, 10)), 48 * 10),
        (nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU()), 16 * 8 * 3 * 9),
        (nn.Conv2d(3, 6, 2, stride=2, groups=3), 4 * 6 * 1 * 4),
        (Attention(), 2 * 16 * 16 * 3),
    ],
    ids=["linear", "convolution", "groups", "attention"],
)
def test_operations_of_training_are_three_times_those_of_forward(
    model: nn.Module, multiply_adds: int
) -> None:
    """A multiply-add counts as two operations; backward takes twice as many as forward."""
    assert training_flops(model, 3, 4) == 3 * 2 * multiply_adds


def test_operations_of_a_published_model_are_the_published_ones() -> None:
    """ViT-S/16 has 4.6 billion multiply-adds at 224 pixels (DeiT, Touvron et al. 2021, table 5)."""
    sizes = ["model.patch_size=16", "model.hidden_dim=384", "model.num_layers=12", "model.num_heads=6"]
    config = compose_config(["model=vit_s4", *sizes]).model
    flops = training_flops(create_model(config, 224, 3, 1000, 0), 3, 224)
    assert flops is not None
    assert flops / 6 == pytest.approx(4.6e9, rel=0.02)


def test_a_model_that_cannot_be_counted_has_no_count_and_is_left_as_it_was() -> None:
    assert training_flops(Refuses(), 3, 4) is None
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(48, 10)).train()
    training_flops(model, 3, 4)
    assert model.training
    assert model[2].weight.device == CPU


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10G", 125.0),
        ("NVIDIA A40", 149.7),
        ("NVIDIA A30", 165.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L40", 181.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA B200", 2250.0),
        ("Tesla V100-SXM2-16GB", 125.0),
        ("Tesla T4", 65.0),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_peaks_are_those_of_the_makers_data_sheets(
    monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: name)
    assert peak_tflops(CUDA, "bf16") == peak_tflops(CUDA, "fp16") == peak
    assert peak_tflops(CUDA, "tf32") == (peak / 2 if peak is not None else None)
    assert peak_tflops(CUDA, "fp32") is None
    assert peak_tflops(CPU, "bf16") is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1.5h", 5400), ("0.5d", 43200), ("10:09:08", 36548), ("3-01:02:03", 262923), ("0-00:00:07", 7)],
)
def test_more_forms_of_a_time_limit(text: str, seconds: float) -> None:
    assert limit_seconds(text) == seconds
    with pytest.raises(UsageError, match="--time=1y"):
        limit_seconds("1y", "--time=")


@pytest.mark.parametrize(
    ("text", "save", "stops_after"),
    [
        ("2h", 0.0, 7140.0),  # a minute is reserved for saving
        ("100s", 0.0, 90.0),  # but at most a tenth
        ("2h", 45.0, 7050.0),  # plus twice the slowest save
        ("600s", 5.0, 530.0),
    ],
)
def test_a_run_stops_early_enough_to_save(
    monkeypatch: pytest.MonkeyPatch, text: str, save: float, stops_after: float
) -> None:
    now = [0.0]
    monkeypatch.setattr(limit, "_BEGAN", 1000.0)
    monkeypatch.setattr(limit, "time", SimpleNamespace(monotonic=lambda: now[0]))
    deadline = Deadline(text)
    now[0] = 1000.0 + stops_after - 0.25
    assert not deadline.passed(save)
    now[0] = 1000.0 + stops_after
    assert deadline.passed(save)
    assert not Deadline(None).passed(1e9)
