"""Output of Slurm's commands, from fakes: partitions, the number of a job and the states of jobs."""

import json
import os
from pathlib import Path

import pytest

from neuscale.errors import UsageError, UserError
from neuscale.slurm import commands as slurm
from neuscale.slurm import jobs
from neuscale.slurm.commands import Partition, ask, check_partition, check_sbatch, partitions, submit
from neuscale.slurm.jobs import SubmittedJob, record_submission, submitted_jobs
from neuscale.slurm.script import Job
from stand_in import calls, make_programs

SINFO = r"""printf '%s\n' 'cpu*|2-00:00:00|7|16' 'gpu|8:00:00|3|24+' 'gpu|8:00:00|2|64' \
  'short|30:00|1|4' 'free|infinite|5|8'"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fake sinfo of a cluster."""
    return make_programs(tmp_path / "bin", monkeypatch, sinfo=SINFO)


def test_partitions_as_sinfo_lists_them(programs: Path) -> None:
    assert partitions() == [
        Partition("cpu", 172800.0, 7, 16, True),
        Partition("gpu", 28800.0, 3, 24, False),
        Partition("gpu", 28800.0, 2, 64, False),
        Partition("short", 1800.0, 1, 4, False),
        Partition("free", None, 5, 8, False),
    ]
    assert calls(programs, "sinfo") == ["--noheader --format=%P|%l|%D|%c"]


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        ("1-02:03:04", 93784.0),
        ("02:03:04", 7384.0),
        ("03:04", 184.0),
        ("7", 7.0),
        ("3-00:00:00", 259200.0),
        ("infinite", None),
        ("n/a", None),
    ],
)
def test_time_limits_as_sinfo_writes_them(limit: str, seconds: float | None) -> None:
    assert slurm._seconds(limit) == seconds


@pytest.mark.parametrize(
    ("name", "hours", "nodes", "cores", "says"),
    [
        (None, 48, 7, 16, None),
        (None, 49, 1, 1, r"partition cpu: its jobs may take 48 h, and 49 h are asked for"),
        (None, 1, 8, 1, r"partition cpu: it has 7 nodes, and 8 are asked for"),
        (None, 1, 1, 17, r"partition cpu: its nodes have 16 cores, and 17 are asked for"),
        ("gpu", 8, 5, 64, None),
        ("gpu", 1, 6, 1, r"partition gpu: it has 5 nodes"),
        ("gpu", 1, 1, 65, r"partition gpu: its nodes have 64 cores"),
        ("short", 0.75, 1, 1, r"partition short: its jobs may take 0\.5 h, and 0\.75 h"),
        ("free", 1000, 5, 8, None),
        ("gpus", 1, 1, 1, r"partition gpus: (.|\n)*Did you mean 'gpu'\?"),
        ("xyz", 1, 1, 1, r"There are: cpu, free, gpu, short\."),
    ],
)
def test_a_job_that_no_partition_would_take(
    programs: Path, name: str | None, hours: float, nodes: int, cores: int, says: str | None
) -> None:
    if says is None:
        check_partition(name, hours * 3600, nodes, cores)
        return
    with pytest.raises(UsageError, match=says):
        check_partition(name, hours * 3600, nodes, cores)


def test_a_cluster_without_a_default_partition(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_programs(programs, monkeypatch, sinfo="echo 'b|1:00:00|1|4'; echo 'a|1:00:00|1|4'")
    with pytest.raises(UsageError, match=r"no default partition(.|\n)*Set `partition` to one of a, b\."):
        check_partition(None, 60, 1, 1)


def test_a_job_is_handed_to_sbatch_as_it_is_and_without_what_would_override_it(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = f'cat >{programs}/script; env >{programs}/environment; echo "a note"; echo "4711;other"'
    make_programs(programs, monkeypatch, sbatch=sbatch)
    check_sbatch()
    overriding = ("SBATCH_TIMELIMIT", "SBATCH_PARTITION", "SBATCH_SIGNAL", "SBATCH_ACCOUNT", "SBATCH_REQUEUE")
    said = dict.fromkeys(overriding, "x")
    said |= {"SBATCH_NO_REQUEUE": "1", "SBATCH_RESERVATION": "mine", "SCRATCH": "/big"}
    said |= {"SBATCH_EXPORT": "NONE", "SLURM_CONF": "/etc/s.conf", "SLURM_JOB_ID": "9", "SLURM_CPU_BIND": "x"}
    assert submit("#!/bin/bash\ntrue\n", dict(os.environ) | said) == "4711"
    assert calls(programs, "sbatch") == ["--parsable"]
    assert (programs / "script").read_text() == "#!/bin/bash\ntrue\n"
    environment = dict(
        line.split("=", 1) for line in (programs / "environment").read_text().splitlines() if "=" in line
    )
    assert (environment["SBATCH_RESERVATION"], environment["SCRATCH"]) == ("mine", "/big")
    of_slurm = sorted(name for name in environment if name.startswith(("SBATCH_", "SLURM_")))
    assert of_slurm == ["SBATCH_RESERVATION", "SLURM_CONF"], "what an allocation left is not the new job's"


def test_what_sbatch_refuses_is_said_in_its_words(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse = "echo 'sbatch: error: Invalid account' >&2; echo 'sbatch: error: Batch job failed' >&2; exit 1"
    make_programs(programs, monkeypatch, sbatch=refuse, mute="exit 3", slow="exec sleep 5")
    with pytest.raises(UserError, match=r"^sbatch: Invalid account; Batch job failed$"):
        submit("", dict(os.environ))
    with pytest.raises(UserError, match=r"^mute: exit code 3$"):
        ask("mute")
    with pytest.raises(UserError, match=r"^nothing: there is no such command here\.$"):
        ask("nothing")
    assert slurm._PATIENCE == 60
    monkeypatch.setattr(slurm, "_PATIENCE", 0.2)
    with pytest.raises(UserError, match=r"^slow: no answer within 0\.2 s"):
        ask("slow")


@pytest.mark.parametrize(
    ("state", "restarts", "found"),
    [
        ("PENDING", "0", "pending"),
        ("PENDING", "2", "requeued"),
        ("CONFIGURING", "0", "pending"),
        ("RUNNING", "2", "running"),
        ("COMPLETING", "0", "running"),
        ("SUSPENDED", "0", "running"),
        ("REQUEUED", "0", "requeued"),
        ("PREEMPTED", "0", "requeued"),
        ("COMPLETED", "0", "finished"),
        ("CANCELLED by 1000", "0", "cancelled"),
        ("CANCELLED+", "0", "cancelled"),
        ("TIMEOUT", "0", "failed"),
        ("OUT_OF_MEMORY", "0", "failed"),
        ("NODE_FAIL", "0", "failed"),
    ],
)
def test_states_of_slurm(state: str, restarts: str, found: str) -> None:
    assert jobs._state(state, restarts)[0] == found


@pytest.mark.parametrize(
    ("state", "words"),
    [("OUT_OF_MEMORY", "job 5: out of memory"), ("TIMEOUT", "job 5: out of time"), ("FAILED", "job 5")],
)
def test_the_list_says_why_a_job_ended(
    runs: Path, programs: Path, monkeypatch: pytest.MonkeyPatch, state: str, words: str
) -> None:
    record_submission(job(runs, "x"), "5", "")
    make_programs(programs, monkeypatch, squeue="exit 1", sacct=f"echo '5|{state}'", scontrol="exit 1")
    [row] = jobs.with_jobs([])
    assert (row.name, row.state, row.note) == ("x", "failed", words)


def job(folder: Path, *names: str, nodes: int = 2) -> Job:
    return Job(
        name=names[0],
        runs=[["run.seed=0", f"run.name={name}"] for name in names],
        logs=folder / "jobs",
        nodes=nodes,
        gpus=4,
        gpu_type=None,
        processes=3,
        cpus=8,
        seconds=3600,
        lead=300,
        command=["neuscale", "submit"],
    )


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runs folder."""
    monkeypatch.setenv("NEUSCALE_RUNS", str(tmp_path / "runs"))
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def test_what_was_submitted_stands_beside_the_output_of_the_jobs(runs: Path) -> None:
    record = record_submission(job(runs, "one"), "12", "#!/bin/bash\n")
    assert record.log == str(runs / "jobs" / "12.log")
    content = json.loads((runs / "jobs" / "12.json").read_text())
    assert content.pop("submitted")
    assert content == {
        "job": "12",
        "names": ["one"],
        "command": ["neuscale", "submit"],
        "nodes": 2,
        "gpus": 4,
        "processes": 3,
        "log": str(runs / "jobs" / "12.log"),
    }
    assert (runs / "jobs" / "12.sbatch").read_text() == "#!/bin/bash\n"
    assert record_submission(job(runs, "a", "b"), "13", "").log == str(runs / "jobs" / "13-%a.log")


def test_each_run_has_the_state_of_its_own_job(
    runs: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States come from squeue while a job waits or runs, then from sacct or scontrol, else from the run."""
    clock = iter(f"2026-01-0{day}T00:00:00+00:00" for day in (1, 2, 3, 4))
    monkeypatch.setattr(jobs, "now", lambda: next(clock))
    record_submission(job(runs, "first"), "10", "")
    record_submission(job(runs, "a", "b", "c"), "20", "")
    record_submission(job(runs, "third"), "30", "")
    record_submission(job(runs, "fourth"), "40", "")
    squeue = r"""printf '%s\n' '20 1 PENDING 1' '20 0 RUNNING 0' '99 N/A RUNNING 0'"""
    sacct = r"""printf '%s\n' '20_0|FAILED' '20_2|CANCELLED by 7' '30|COMPLETED'"""
    scontrol = '[[ $* == *10 ]] || exit 1; echo "JobId=10 JobName=x JobState=TIMEOUT Restarts=0"'
    make_programs(programs, monkeypatch, squeue=squeue, sacct=sacct, scontrol=scontrol)
    (runs / "fourth").mkdir()
    (runs / "fourth" / "manifest.json").write_text('{"status": "finished"}')
    found = submitted_jobs()
    assert [(each.job, each.index, each.run, each.state) for each in found] == [
        ("40", None, "fourth", "finished"),
        ("30", None, "third", "finished"),
        ("20", 0, "a", "running"),
        ("20", 1, "b", "requeued"),
        ("20", 2, "c", "cancelled"),
        ("10", None, "first", "failed"),
    ]
    assert found[-1] == SubmittedJob(
        "10", None, "first", "failed", "2026-01-01T00:00:00+00:00", "out of time"
    )
    (asked,) = calls(programs, "squeue")
    assert f"--user={os.getuid()}" in asked and "--array" in asked
    assert calls(programs, "sacct") == ["-nPX --jobs=10,20,30,40 --format=JobID,State"]
    assert calls(programs, "scontrol") == ["show job --oneliner 10", "show job --oneliner 40"]


def test_tasks_of_an_array_that_the_controller_remembers(
    runs: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_submission(job(runs, "a", "b"), "20", "")
    lines = "'JobId=21 ArrayJobId=20 ArrayTaskId=1 JobState=COMPLETED Restarts=1' "
    lines += "'JobId=20 ArrayJobId=20 ArrayTaskId=0 JobState=PENDING Restarts=3'"
    fail = "exit 1"
    make_programs(programs, monkeypatch, squeue=fail, sacct=fail, scontrol=rf"printf '%s\n' {lines}")
    assert [each.state for each in submitted_jobs()] == ["requeued", "finished"]


def test_a_job_that_nobody_knows_and_whose_run_has_not_begun(
    runs: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_submission(job(runs, "x"), "5", "")
    fail = "exit 1"
    make_programs(programs, monkeypatch, squeue=fail, sacct=fail, scontrol=fail)
    assert [each.state for each in submitted_jobs()] == ["unknown"]
