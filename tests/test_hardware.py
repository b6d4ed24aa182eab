"""Memory, GPUs and driver version of a machine, read from fakes with known numbers."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from neuscale import hardware as memory
from neuscale.hardware import device_memory, driver_version, free_gpus, gpu_count, gpu_list, host_memory

GIB = 1 << 30


@pytest.fixture
def sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 16 GiB of memory."""
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 4 << 20}
    monkeypatch.setattr(memory.os, "sysconf", sizes.__getitem__)


@pytest.mark.usefixtures("sixteen")
@pytest.mark.parametrize(
    ("files", "gib"),
    [
        ({}, 16),
        ({"memory.max": "max\n"}, 16),
        ({"memory.max": f"{3 * GIB}\n"}, 3),
        ({"memory.max": f"{64 * GIB}\n"}, 16),
        ({"memory/memory.limit_in_bytes": f"{5 * GIB}\n"}, 5),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, 16),
        ({"memory.max": f"{3 * GIB}\n", "memory/memory.limit_in_bytes": f"{5 * GIB}\n"}, 3),
        ({"memory.max": "max\n", "memory/memory.limit_in_bytes": f"{5 * GIB}\n"}, 5),
    ],
)
def test_memory_is_what_the_cgroup_gives_of_the_machines(
    tmp_path: Path, files: dict[str, str], gib: int
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert host_memory(tmp_path) == gib * GIB


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="this system has no /proc/meminfo")
def test_memory_of_this_machine(tmp_path: Path) -> None:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    assert host_memory(tmp_path) == int(lines["MemTotal"].split()[0]) * 1024


def test_memory_of_a_gpu_is_what_others_leave_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: ((device.index + 1) * GIB, 80 * GIB))
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 7 * GIB)
    monkeypatch.setattr(memory, "host_memory", lambda: 5 * GIB)
    assert device_memory(torch.device("cuda", 2)) == 3 * GIB
    assert device_memory(torch.device("mps")) == 7 * GIB
    assert device_memory(torch.device("cpu")) == 5 * GIB


def test_gpus_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = [
        SimpleNamespace(name="Big", total_memory=85_000_000_000, major=9, minor=0),
        SimpleNamespace(name="Small", total_memory=15_960_000_000, major=7, minor=5),
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", cards.__getitem__)
    assert gpu_list() == [
        {"name": "Big", "memory_gb": 85.0, "capability": "9.0"},
        {"name": "Small", "memory_gb": 16.0, "capability": "7.5"},
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_list() == []


class NVMLError(Exception):
    pass


class Driver:
    """Fake pynvml: GPUs with the processes that compute on each."""

    NVMLError = NVMLError

    def __init__(self, **processes: list[int]) -> None:
        self.gpus = list(processes.items())
        self.open = 0
        self.fails = ""

    def _call(self, name: str) -> None:
        if name == self.fails:
            raise NVMLError(name)

    def nvmlInit(self) -> None:
        self._call("nvmlInit")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        self._call("nvmlDeviceGetCount")
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{self.gpus[handle][0]}"

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[int]:
        return self.gpus[handle][1]

    def nvmlSystemGetDriverVersion(self) -> str:
        return "550.1"


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """Four GPUs; the first and the third are in use."""
    driver = Driver(aa1=[7], bb2=[], cc3=[8, 9], dd4=[])
    monkeypatch.setitem(sys.modules, "pynvml", driver)  # type: ignore[arg-type]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return driver


def test_a_gpu_on_which_somebody_computes_is_not_free(four: Driver) -> None:
    assert free_gpus() == ["GPU-bb2", "GPU-dd4"]
    assert gpu_count() == 4
    assert four.open == 0


@pytest.mark.parametrize(
    ("visible", "free", "count"),
    [
        ("3", ["GPU-dd4"], 1),
        ("0,2", [], 2),
        ("3, 1", ["GPU-bb2", "GPU-dd4"], 2),
        ("GPU-bb2,GPU-cc3", ["GPU-bb2"], 2),
        ("GPU-d", ["GPU-dd4"], 1),  # a prefix of a UUID that is unique
        ("", [], 0),
        ("7", [], 0),
    ],
)
def test_only_gpus_that_are_visible_count(
    four: Driver, monkeypatch: pytest.MonkeyPatch, visible: str, free: list[str], count: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert (free_gpus(), gpu_count()) == (free, count)


@pytest.mark.parametrize("fails", ["nvmlInit", "nvmlDeviceGetCount"])
def test_without_a_driver_there_is_no_gpu(four: Driver, fails: str) -> None:
    four.fails = fails
    assert (free_gpus(), gpu_count()) == ([], 0)
    assert four.open == 0


def test_the_drivers_version(four: Driver) -> None:
    assert driver_version() == "550.1"
    assert four.open == 0
    four.fails = "nvmlInit"
    assert driver_version() is None


@pytest.fixture
def run_places(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, str]]]:
    """`choose_places` on a machine with 9 cores."""
    from neuscale.sweep import processes

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(processes, "available_cores", lambda: 9)
    return processes.choose_places


def test_each_run_of_a_sweep_has_a_free_gpu_of_its_own_and_its_share_of_the_cores(
    four: Driver, run_places: Callable[..., list[dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_places(None, on_cpu=False) == [
        {"CUDA_VISIBLE_DEVICES": "GPU-bb2", "OMP_NUM_THREADS": "4"},
        {"CUDA_VISIBLE_DEVICES": "GPU-dd4", "OMP_NUM_THREADS": "4"},
    ]
    assert run_places(1, on_cpu=False) == [{"CUDA_VISIBLE_DEVICES": "GPU-bb2", "OMP_NUM_THREADS": "9"}]
    assert run_places(None, on_cpu=True) == [{"OMP_NUM_THREADS": "9"}]
    assert run_places(4, on_cpu=True) == [{"OMP_NUM_THREADS": "2"}] * 4
    assert run_places(20, on_cpu=True)[0] == {"OMP_NUM_THREADS": "1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert run_places(4, on_cpu=True) == [{"OMP_NUM_THREADS": "3"}] * 4


def test_a_sweep_takes_no_gpu_that_is_in_use(
    four: Driver, run_places: Callable[..., list[dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from neuscale.errors import UsageError

    with pytest.raises(UsageError, match=r"`jobs` 3: 2 of this machine's 4 GPUs are free(.|\n)*`jobs` to 2"):
        run_places(3, on_cpu=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    with pytest.raises(UsageError, match=r"use the 2 GPUs of this machine"):
        run_places(None, on_cpu=False)
    assert len(run_places(None, on_cpu=True)) == 1
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,2"
