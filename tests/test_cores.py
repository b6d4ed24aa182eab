"""Number of usable cores. With more threads than cores, training in a container is several times slower."""

import os
from pathlib import Path

import pytest

from neuscale.hardware import available_cores


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("20000 100000", 1),
        ("1600000 100000", 8),
        ("100000 50000", 2),
        ("210000 100000", 3),
    ],
)
def test_quota_of_a_cgroup(tmp_path: Path, quota: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert available_cores(tmp_path) == cores


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(
    ("quota", "period", "cores"), [("-1", 100000, 8), ("300000", 100000, 3), ("90000", 20000, 5)]
)
def test_quota_of_an_old_cgroup(tmp_path: Path, quota: str, period: int, cores: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text(f"{period}\n")
    assert available_cores(tmp_path) == cores


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(("value", "cores"), [("16", 8), ("0", 8), ("4(x2)", 8), ("", 8), ("7", 7)])
def test_an_allocation_larger_than_the_machine_or_that_is_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, cores: int
) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", value)
    assert available_cores(tmp_path) == cores


@pytest.mark.parametrize("content", [None, "", "garbage"])
@pytest.mark.usefixtures("eight")
def test_affinity_alone_where_there_is_no_quota(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "cpu.max").write_text(content)
    assert available_cores(tmp_path) == 8


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_affinity_of_this_process(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert available_cores(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.usefixtures("eight")
def test_what_slurm_allocated_where_nothing_holds_a_task_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "6")
    assert available_cores(tmp_path) == 6
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert available_cores(tmp_path) == 3
    (tmp_path / "cpu.max").write_text("200000 100000\n")
    assert available_cores(tmp_path) == 2
