"""`neuscale doctor` reports what would keep a machine from training, each problem with its fix."""

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from neuscale.cli import run
from neuscale.doctor import machine as doctor


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without problems: folders that can be created, and enough disk space."""
    monkeypatch.setenv("NEUSCALE_DATA", str(tmp_path / "new" / "data"))
    monkeypatch.setenv("NEUSCALE_RUNS", str(tmp_path / "new" / "runs"))
    plenty = SimpleNamespace(total=100 << 30, free=50 << 30)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _path: plenty)
    monkeypatch.setattr(doctor, "driver_version", lambda: None)


def test_a_machine_without_a_gpu_is_ready(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    said = capsys.readouterr()
    assert "Ready to train" in said.err
    assert "torch" in said.out
    assert str(tmp_path / "new" / "runs") in said.out
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("variable", ["NEUSCALE_DATA", "NEUSCALE_RUNS"])
@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_where_a_folder_should_be(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    below: str,
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(variable, str(tmp_path / "file" / below))
    assert run(["doctor", "--json"]) == 1
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert str(tmp_path / "file") in problem
    assert "is not a folder" in problem
    assert f"${variable}" in problem


def test_folders_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o500)
    if os.access(closed, os.W_OK):  # permissions do not stop root, but a read-only mount does
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(closed)], check=False)
        if done.returncode:
            pytest.skip("this user may write everywhere, and may not mount a read-only disk")
    try:
        monkeypatch.setenv("NEUSCALE_RUNS", str(closed / "runs"))
        problems = doctor.examine()["problems"]
    finally:
        subprocess.run(["umount", str(closed)], check=False, capture_output=True)
        closed.chmod(0o700)
    assert problems == [f"{closed / 'runs'}: cannot be written to. Set $NEUSCALE_RUNS to a folder that can."]


def test_a_disk_nearly_full(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    little = SimpleNamespace(total=100 << 30, free=1 << 30)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _path: little)
    assert run(["doctor"]) == 1
    said = capsys.readouterr()
    assert said.err.count("only 1.0 GiB free") == 2
    assert "$NEUSCALE_DATA" in said.err
    assert "Ready" not in said.err


def test_a_driver_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a container without its GPUs would train on the CPU, unnoticed until the bill arrives."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr(doctor, "driver_version", lambda: "550.1")
    (problem,) = doctor.examine()["problems"]
    assert "550.1" in problem
    assert "--gpus all" in problem
    assert "--nv" in problem


@pytest.mark.parametrize(("free", "count"), [((2 << 30) - 1, 2), (2 << 30, 0)])
def test_two_gigabytes_of_disk_are_enough(monkeypatch: pytest.MonkeyPatch, free: int, count: int) -> None:
    monkeypatch.setattr(
        doctor.shutil, "disk_usage", lambda _path: SimpleNamespace(total=100 << 30, free=free)
    )
    assert len(doctor.examine()["problems"]) == count


def test_each_fact_is_under_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    cards = [
        SimpleNamespace(name="Big", total_memory=80 << 30, major=9, minor=0),
        SimpleNamespace(name="Small", total_memory=16 << 30, major=7, minor=5),
    ]
    monkeypatch.setattr("torch.cuda.get_device_properties", cards.__getitem__)
    monkeypatch.setattr(doctor, "driver_version", lambda: "550.1")
    monkeypatch.setattr(doctor, "available_cores", lambda: 6)
    monkeypatch.setattr(doctor, "other_load", lambda: 1.26)
    monkeypatch.setattr(doctor, "host_memory", lambda: 3 << 29)
    monkeypatch.setattr(doctor, "prepared_names", lambda: ["pets"])
    monkeypatch.setattr(doctor, "load_native_ops", lambda: (None, "not built"))
    found = doctor.examine()
    assert found["devices"] == [
        "Big, 80 GiB, sm_90 (CUDA 13.0, driver 550.1)",
        "Small, 16 GiB, sm_75 (CUDA 13.0, driver 550.1)",
    ]
    assert (found["cores"], found["memory"]) == (6, "1.5 GiB")
    assert found["other_load"] == "other programs use 1.3 cores"
    assert found["native_ops"] == "none: not built"
    assert found["data_sets"] == ["pets"]
    assert found["data_folder"] == f"{tmp_path}/new/data (50 GiB free)"
    assert found["runs_folder"] == f"{tmp_path}/new/runs (50 GiB free)"
    assert found["shared_memory"] in ("100.0 GiB", None)
    assert found["problems"] == []


def test_an_apple_gpu_is_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert doctor.examine()["devices"] == ["Apple GPU (MPS)"]


@pytest.mark.parametrize(("size", "count"), [((1 << 30) - 1, 1), (1 << 30, 0)])
def test_a_gigabyte_of_shared_memory_is_enough(
    monkeypatch: pytest.MonkeyPatch, size: int, count: int
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _path: SimpleNamespace(total=size, free=50 << 30))
    if not Path("/dev/shm").is_dir():
        pytest.skip("this system has no /dev/shm")
    assert len(doctor.examine()["problems"]) == count


@pytest.mark.parametrize(("gpus", "count"), [(0, 0), (1, 0), (2, 1)])
def test_little_shared_memory_matters_to_several_gpus(
    monkeypatch: pytest.MonkeyPatch, gpus: int, count: int
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)  # some libraries make it call device_count
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    little = SimpleNamespace(total=64 << 20, free=50 << 30)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _path: little)
    if not Path("/dev/shm").is_dir():
        pytest.skip("this system has no /dev/shm")
    assert len([p for p in doctor.examine()["problems"] if "--shm-size" in p]) == count


def test_a_read_only_data_folder_is_enough_for_the_data_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container without a writable disk trains on the data in the image."""
    data = tmp_path / "data"
    (data / "packed" / "fashion_mnist").mkdir(parents=True)
    monkeypatch.setenv("NEUSCALE_DATA", str(data))
    closed = os.W_OK | os.X_OK
    access = os.access
    monkeypatch.setattr(
        doctor.os, "access", lambda path, mode: (Path(path) != data or mode != closed) and access(path, mode)
    )
    found = doctor.examine()
    assert found["problems"] == []
    assert found["data_folder"] == f"{data} (read-only)"


def test_every_installed_package_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """The list tells two environments apart, whichever package differs."""
    assert run(["doctor", "--json"]) == 0
    packages = json.loads(capsys.readouterr().out)["packages"]
    assert {"torch", "pillow", "omegaconf", "antlr4-python3-runtime", "pytest"} <= set(packages)
    assert list(packages) == sorted(packages)
    assert run(["doctor"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "safetensors" in said and "omegaconf" not in said
