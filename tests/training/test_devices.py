"""Device and precision of a run on each machine, and the environment variables of Accelerate."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from neuscale.distributed import accelerator as devices
from neuscale.distributed.accelerator import (
    asked_device,
    asked_precision,
    check_accelerate_environment,
    check_device,
    create_accelerator,
    device_name,
    resolve_device,
    resolve_precision,
)
from neuscale.distributed.rank import Rank
from neuscale.errors import UsageError
from neuscale.hardware import check_compiler
from neuscale.training.determinism import be_deterministic, seed_generator

Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Function that makes torch report a machine with these GPUs."""
    for name in [name for name in os.environ if name.startswith("ACCELERATE_") or name == "MASTER_PORT"]:
        monkeypatch.delenv(name)

    def make(cuda: bool = False, mps: bool = False, bf16: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

        def supported(including_emulation: bool = True) -> bool:
            return bf16 or including_emulation

        monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)

    make()
    return make


@pytest.mark.parametrize(
    ("asked", "cuda", "mps", "found"),
    [
        ("auto", True, True, "cuda"),
        ("auto", False, True, "mps"),
        ("auto", False, False, "cpu"),
        ("cpu", True, True, "cpu"),
        ("mps", True, True, "mps"),
        ("cuda", True, False, "cuda"),
    ],
)
def test_the_fastest_device_unless_one_is_named(
    machine: Machine, asked: str, cuda: bool, mps: bool, found: str
) -> None:
    machine(cuda=cuda, mps=mps)
    assert resolve_device(asked) == found
    check_device(asked)


@pytest.mark.parametrize(("asked", "says"), [("cuda", "no usable NVIDIA GPU"), ("mps", "no Apple GPU")])
def test_a_device_that_is_not_there(machine: Machine, asked: str, says: str) -> None:
    machine(cuda=asked == "mps", mps=asked == "cuda")
    with pytest.raises(UsageError, match=says):
        check_device(asked)
    with pytest.raises(UsageError, match=says):
        create_accelerator(asked, "auto")


@pytest.mark.parametrize(
    ("asked", "kind", "bf16", "found"),
    [
        ("auto", "cuda", True, "bf16"),
        ("auto", "cuda", False, "fp16"),  # emulated bf16 is slow
        ("auto", "cpu", True, "fp32"),
        ("auto", "mps", True, "fp32"),
        ("tf32", "cuda", True, "tf32"),
        ("fp16", "mps", False, "fp16"),
        ("fp32", "cuda", True, "fp32"),
        ("bf16", "cpu", False, "bf16"),
    ],
)
def test_the_precision_of_each_kind_of_device(
    machine: Machine, asked: str, kind: str, bf16: bool, found: str
) -> None:
    machine(cuda=True, bf16=bf16)
    assert resolve_precision(asked, kind) == found


@pytest.mark.parametrize(
    ("asked", "kind", "says"),
    [
        ("tf32", "cpu", r"train\.precision=tf32 needs an NVIDIA GPU"),
        ("tf32", "mps", r"train\.precision=tf32 needs an NVIDIA GPU"),
        ("fp16", "cpu", r"train\.precision=fp16 needs a GPU"),
    ],
)
def test_a_precision_that_a_device_does_not_have(machine: Machine, asked: str, kind: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        resolve_precision(asked, kind)


@pytest.mark.parametrize(
    ("said", "asked", "found"),
    [
        ({}, "auto", "auto"),
        ({"ACCELERATE_USE_CPU": "true"}, "auto", "cpu"),
        ({"ACCELERATE_USE_CPU": "Yes"}, "cpu", "cpu"),
        ({"ACCELERATE_USE_CPU": "false"}, "cuda", "cuda"),
        ({"ACCELERATE_USE_CPU": "false"}, "auto", "auto"),
    ],
)
def test_accelerate_may_ask_for_the_cpu(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, said: dict[str, str], asked: str, found: str
) -> None:
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert asked_device(asked) == found


@pytest.mark.parametrize(
    ("said", "asked", "found"),
    [
        ("", "auto", "auto"),
        ("no", "auto", "fp32"),
        ("no", "tf32", "tf32"),
        ("BF16", "auto", "bf16"),
        ("fp16", "auto", "fp16"),
        ("fp16", "fp16", "fp16"),
        ("fp16", "bf16", None),
        ("fp8", "auto", None),
    ],
)
def test_accelerate_may_ask_for_a_precision(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, said: str, asked: str, found: str | None
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", said)
    if found is None:
        with pytest.raises(UsageError, match=rf"\(ACCELERATE_MIXED_PRECISION={said}\)"):
            asked_precision(asked)
    else:
        assert asked_precision(asked) == found


@pytest.mark.parametrize(
    ("variable", "harmless", "refused"),
    [
        ("ACCELERATE_USE_FSDP", "False", "true"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1", "0"),
        ("ACCELERATE_GRADIENT_CLIPPING", "auto", "0"),
        ("ACCELERATE_DYNAMO_BACKEND", "NO", "eager"),
        ("ACCELERATE_TORCH_DEVICE", "", "cpu"),
    ],
)
def test_settings_that_change_nothing_are_no_error(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, variable: str, harmless: str, refused: str
) -> None:
    monkeypatch.setenv(variable, harmless)
    check_accelerate_environment()
    monkeypatch.setenv(variable, refused)
    with pytest.raises(UsageError, match=rf"\({variable}={refused}\), which is not supported"):
        check_accelerate_environment()


@pytest.mark.parametrize("started", ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"])
def test_several_processes_on_the_cpu_want_something_that_starts_them(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, started: str
) -> None:
    for name in ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    check_accelerate_environment()
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(UsageError, match="neuscale train --processes N"):
        check_accelerate_environment()
    monkeypatch.setenv(started, "2")
    check_accelerate_environment()


def test_what_ddp_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(devices, "Accelerator", lambda **options: made.append(options))
    create_accelerator("cpu", "fp32")
    (ddp,) = made[0]["kwargs_handlers"]
    assert not ddp.broadcast_buffers, "buffers would be sent before each forward"
    assert ddp.gradient_as_bucket_view
    assert not made[0]["step_scheduler_with_optimizer"]


def test_deterministic_algorithms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    try:
        be_deterministic()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert not torch.backends.cudnn.benchmark
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
        be_deterministic()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("there", "cxx", "found"),
    [
        ("g++", None, True),
        ("clang++", None, True),
        ("c++", None, True),
        ("icpx", "icpx", True),
        ("gcc", None, False),
    ],
)
def test_compiling_wants_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str, cxx: str | None, found: bool
) -> None:
    (tmp_path / there).write_text("")
    (tmp_path / there).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    if cxx:
        monkeypatch.setenv("CXX", cxx)
    if found:
        check_compiler()
        return
    with pytest.raises(UsageError, match=r"needs a C\+\+ compiler"):
        check_compiler()


def test_the_generator_of_the_device_is_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda seed: asked.append(("cuda", seed)))
    monkeypatch.setattr(torch.mps, "manual_seed", lambda seed: asked.append(("mps", seed)))
    seed_generator(torch.device("cuda", 1), 5)
    seed_generator(torch.device("mps"), 6)
    assert asked == [("cuda", 5), ("mps", 6)]
    seed_generator(torch.device("cpu"), 7)
    drawn = torch.rand(3)
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(7)))
    assert len(asked) == 2


def test_rank_and_device_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Rank.current() == Rank(0, 1)
    with monkeypatch.context() as group:
        group.setattr(torch.distributed, "is_initialized", lambda: True)
        group.setattr(torch.distributed, "get_rank", lambda: 2)
        group.setattr(torch.distributed, "get_world_size", lambda: 5)
        assert Rank.current() == Rank(2, 5)
    process: Any = SimpleNamespace(device=torch.device("cpu"))
    for threads, name in ((1, "CPU, 1 thread"), (3, "CPU, 3 threads")):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert device_name(process) == name
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Card {device.index}")
    process.device = torch.device("cuda", 3)
    assert device_name(process) == "Card 3"
    process.device = torch.device("mps")
    assert device_name(process) == "Apple GPU"
