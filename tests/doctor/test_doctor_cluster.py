"""`neuscale doctor --cluster` examines each node once and reports each number under the right name."""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from neuscale.cli import run
from neuscale.distributed import launch, nodes
from neuscale.doctor import cluster as doctor_cluster
from neuscale.doctor.cluster import examine_cluster, start_on_nodes
from neuscale.errors import UsageError
from stand_in import calls, make_programs


@pytest.fixture(autouse=True)
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Environment of a job on three nodes without problems."""
    for name in [name for name in os.environ if name.startswith(("SLURM", "NEUSCALE_"))]:
        monkeypatch.delenv(name)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    settings = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NUM_NODES": "3",
        "SLURM_CPUS_PER_TASK": "6",
        "SLURMD_NODENAME": "n1",
        "NEUSCALE_DATA": str(tmp_path / "shared" / "data"),
        "NEUSCALE_RUNS": str(tmp_path / "other" / "runs"),
        "TMPDIR": str(tmp_path / "local"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(doctor_cluster, "available_cores", lambda: 6)
    monkeypatch.setattr(doctor_cluster, "driver_version", lambda: "550.1")
    monkeypatch.setattr(doctor_cluster, "host_memory", lambda: 3 << 29)
    monkeypatch.setattr(doctor_cluster, "_DISK_BYTES", 2 << 20)
    return monkeypatch


@pytest.mark.parametrize("code", [0, 1])
def test_one_task_is_started_on_each_node_with_all_its_cores(
    tmp_path: Path, cluster: pytest.MonkeyPatch, code: int
) -> None:
    programs = make_programs(tmp_path / "bin", cluster, srun=f"exit {code}")
    assert start_on_nodes(["doctor", "--cluster", "--json"]) == code
    (call,) = calls(programs, "srun")
    options, _, words = call.partition(" -P -m neuscale ")
    assert words == "doctor --cluster --json"
    expected = {"--nodes=3", "--ntasks=3", "--ntasks-per-node=1", "--wait=30", "--cpus-per-task=6"}
    assert set(options.split()[:-1]) == expected


def test_outside_of_an_allocation_the_way_in_is_said(tmp_path: Path, cluster: pytest.MonkeyPatch) -> None:
    cluster.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="no srun here"):
        start_on_nodes([])
    cluster.delenv("SLURM_JOB_ID")
    with pytest.raises(UsageError, match=r"not a Slurm allocation(.|\n)*salloc"):
        start_on_nodes([])


def test_the_facts_of_one_node(tmp_path: Path, cluster: pytest.MonkeyPatch) -> None:
    cluster.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 7265))
    free = SimpleNamespace(total=100 << 30, free=7_400_000_000)
    cluster.setattr(doctor_cluster.shutil, "disk_usage", lambda _path: free)
    speeds = {"data": (5e6, 2e9), "runs": (3e6, 4e6), "local": (7e8, 8e6)}
    asked: list[tuple[str, int]] = []

    def measured(file: Path, size: int) -> tuple[float, float]:
        asked.append((str(file.parent.relative_to(tmp_path)), size))
        return list(speeds.values())[len(asked) - 1]

    cluster.setattr(doctor_cluster, "_speeds", measured)
    found = examine_cluster()
    assert found is not None
    left = found.pop("time_left")
    assert left in ("2:01:05", "2:01:04", "2:01:03")
    assert found == {
        "nodes": 1,
        "processes": 1,
        "n1": {
            "gpus": "none",
            "driver": "550.1",
            "cores": 6,
            "memory": "1.5 GiB",
            "data": f"{tmp_path}/shared/data, 7 GB free, writes 5 MB/s, reads 2,000 MB/s",
            "runs": f"{tmp_path}/other/runs, 7 GB free, writes 3 MB/s, reads 4 MB/s",
            "local": f"{tmp_path}/local, 7 GB free, writes 700 MB/s, reads 8 MB/s",
        },
        "network": "one process: nothing to ask",
        "problems": [],
    }
    assert asked == [(".", 2 << 20)] * 3, "the nearest folder that is there"


def test_a_disk_is_measured_with_a_file_that_does_not_stay(tmp_path: Path) -> None:
    problems: list[str] = []
    said = doctor_cluster._disk(tmp_path, problems)
    assert "MB/s" in said and problems == []
    assert list(tmp_path.iterdir()) == []
    file = tmp_path / "file"
    write, read = doctor_cluster._speeds(file, 3 << 20)
    assert file.stat().st_size == 3 << 20
    assert write > 0 and read > 0


def test_speed_is_bytes_by_seconds_of_writing_and_of_reading(
    tmp_path: Path, cluster: pytest.MonkeyPatch
) -> None:
    seconds = iter([0.5, 0.25])
    synced: list[int] = []
    cluster.setattr(doctor_cluster.os, "fsync", lambda _fd: synced.append((tmp_path / "file").stat().st_size))
    cluster.setattr(doctor_cluster, "_seconds", lambda work: (work(), next(seconds))[1])
    assert doctor_cluster._speeds(tmp_path / "file", 4 << 20) == (8 << 20, 16 << 20)
    assert synced == [4 << 20], "what is in memory only is not written"


def test_a_small_disk_is_not_filled(tmp_path: Path, cluster: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    cluster.setattr(doctor_cluster, "_speeds", lambda _file, size: (asked.append(size), (1.0, 1.0))[1])
    cluster.setattr(doctor_cluster, "_DISK_BYTES", 256 << 20)
    for free in (40 << 20, 4 << 30):
        cluster.setattr(
            doctor_cluster.shutil, "disk_usage", lambda _path, free=free: SimpleNamespace(free=free)
        )
        doctor_cluster._disk(tmp_path, [])
    assert asked == [10 << 20, 256 << 20]


def test_what_is_wrong_on_a_node_is_said_with_its_name(tmp_path: Path, cluster: pytest.MonkeyPatch) -> None:
    cluster.setenv("LOCAL_WORLD_SIZE", "7")
    cluster.setenv("NEUSCALE_RUNS", str(tmp_path / "shared" / "runs"))
    cluster.delenv("TMPDIR")

    def closed(file: Path, _size: int) -> tuple[float, float]:
        raise PermissionError(13, "Permission denied")

    cluster.setattr(doctor_cluster, "_speeds", closed)
    found = examine_cluster()
    assert found is not None
    assert found["problems"] == [
        "n1: 7 processes share 6 cores: ask for more, --cpus-per-task.",
        f"n1: {tmp_path}/shared/data: cannot be written to (Permission denied).",
        "n1: $TMPDIR is not set, so data is read from where it is. Set it in slurm/site.env.",
    ]
    assert "runs" not in found["n1"], "the same disk is not measured twice"
    cluster.setenv("LOCAL_WORLD_SIZE", "6")
    found = examine_cluster()
    assert found is not None
    assert not any("share 6 cores" in problem for problem in found["problems"])


def test_several_processes_and_nodes_are_gathered(cluster: pytest.MonkeyPatch) -> None:
    """One process of each node reports its facts; the second node has another driver."""
    cluster.setattr(doctor_cluster, "_node", lambda: {"name": "n1", "driver": "1", "problems": ["wrong"]})
    cluster.setattr(doctor_cluster, "_all_reduce", lambda backend, world: f"{backend} {world}")
    cluster.setattr(doctor_cluster, "_time_left", lambda: "1:00")
    cluster.setattr(doctor_cluster, "join_process_group", lambda *_: None)
    sent: list[Any] = []

    def gather(own: Any, device: torch.device) -> list[Any]:
        sent.append(own)
        return [own, None, {"name": "n2", "driver": "2", "problems": []}, None]

    cluster.setattr(doctor_cluster, "gather_values", gather)
    cluster.setenv("WORLD_SIZE", "4")
    cluster.setenv("RANK", "0")
    cluster.setenv("LOCAL_RANK", "0")
    assert examine_cluster() == {
        "nodes": 2,
        "processes": 4,
        "n1": {"driver": "1"},
        "n2": {"driver": "2"},
        "network": "gloo 4",
        "time_left": "1:00",
        "problems": ["n1: wrong", "The nodes have different drivers: n1 1, n2 2"],
    }
    for rank, local in (("1", "1"), ("2", "0")):
        cluster.setenv("RANK", rank)
        cluster.setenv("LOCAL_RANK", local)
        assert examine_cluster() is None
    assert [own is not None for own in sent] == [True, False, True]


def test_the_bandwidth_is_that_of_nccl_tests(cluster: pytest.MonkeyPatch) -> None:
    """Bus bandwidth is 2 (n - 1) / n bytes per byte of the result, over the median of five times."""
    now, times = [0.0], iter([99.0, 0.5, 0.25, 4.0, 0.125, 2.0])

    def reduce(values: torch.Tensor) -> None:
        if values[0] == 1:
            values *= 4
        now[0] += next(times)

    cluster.setattr(doctor_cluster.dist, "all_reduce", reduce)
    cluster.setattr(doctor_cluster.dist, "barrier", lambda: None)
    cluster.setattr(doctor_cluster, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    cluster.setattr(doctor_cluster, "_ALL_REDUCE_BYTES", {"gloo": 64 << 20})
    # 1.5 × 67,108,864 bytes in 0.5 s
    said = "gloo all-reduce of 64 MiB over 4 processes: 500.0 ms, 0.20 GB/s bus bandwidth"
    assert doctor_cluster._all_reduce("gloo", 4) == said


def test_the_time_left_is_asked_of_slurm_where_the_environment_does_not_say(
    tmp_path: Path, cluster: pytest.MonkeyPatch
) -> None:
    programs = make_programs(tmp_path / "bin", cluster, squeue="echo ' 1-02:03:04 '")
    assert doctor_cluster._time_left() == "1-02:03:04"
    assert calls(programs, "squeue") == ["--noheader --jobs=7 --format=%L"]
    cluster.setenv("PATH", str(tmp_path))
    assert doctor_cluster._time_left() == "unknown"
    cluster.setenv("SLURM_JOB_END_TIME", str(int(time.time()) - 5))
    assert doctor_cluster._time_left() == "0:00:00"


@pytest.mark.parametrize(("problems", "code"), [([], 0), (["n1: no disk"], 1)])
def test_the_command_says_what_it_found(
    cluster: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], problems: list[str], code: int
) -> None:
    cluster.setenv(launch.REPORTS, "folder")
    cluster.setattr(doctor_cluster, "examine_cluster", lambda: {"nodes": 1, "problems": problems})
    assert run(["doctor", "--cluster", "--json"]) == code
    assert json.loads(capfd.readouterr().out) == {"nodes": 1, "problems": problems}
    assert run(["doctor", "--cluster"]) == code
    assert ("Ready to train" in capfd.readouterr().err) == (code == 0)
    cluster.setattr(doctor_cluster, "examine_cluster", lambda: None)
    assert run(["doctor", "--cluster"]) == 0
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("gpus", "processes"), [(0, 1), (3, 3)])
def test_each_node_starts_a_process_for_each_of_its_gpus(
    cluster: pytest.MonkeyPatch, gpus: int, processes: int
) -> None:
    called: list[Any] = []
    cluster.setattr(doctor_cluster, "start_on_nodes", lambda words: (called.append(words), 4)[1])
    cluster.setattr(launch, "launch", lambda *given: (called.append(given), 5)[1])
    cluster.setattr(nodes, "srun_nodes", lambda: "the nodes")
    cluster.setattr(torch.cuda, "device_count", lambda: gpus)
    assert run(["doctor", "--cluster", "--json"]) == 4
    cluster.setenv("SLURM_STEP_ID", "0")
    assert run(["doctor", "--cluster"]) == 5
    assert called == [["doctor", "--cluster", "--json"], (["doctor", "--cluster"], processes, "the nodes")]
