"""The batch script itself, run by bash with fake Slurm commands that record their arguments."""

import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from neuscale.slurm.script import TEMPLATE, Job, batch_script
from stand_in import calls, make_programs, until

PREPARE = Path(__file__).parents[2] / "slurm" / "prepare.sbatch"
# Fake `neuscale`: the launcher of a node, which records its arguments and environment.
NEUSCALE = """#!/bin/bash
printf '%s\\n' "$@" >"$HERE/words"
env >"$HERE/environment"
echo "$TMPDIR" >>"$HERE/local"
exit "${CODE:-0}"
"""
SCONTROL = r"""case $1-$2 in
  show-hostnames) echo gpu-03; echo gpu-04 ;;
  show-node) printf 'NodeName=%s Arch=x86_64\n   NodeAddr=10.1.2.3 NodeHostName=x\n' "$3" ;;
  requeue-*) exit "${REQUEUE:-0}" ;;
esac"""

Batch = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fake Slurm commands; srun runs its command once, as on one node."""
    run = 'while [[ $1 == --* ]]; do shift; done; exec "$@"'
    return make_programs(
        tmp_path / "bin",
        monkeypatch,
        srun=run,
        scontrol=SCONTROL,
        squeue='echo "${STATE:-RUNNING}"',
        scancel="true",
    )


@pytest.fixture
def environment(tmp_path: Path, programs: Path) -> dict[str, str]:
    """Environment variables of a job's batch script; the fake program is in a virtual environment."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "neuscale").write_text(NEUSCALE)
    (tmp_path / "venv" / "bin" / "neuscale").chmod(0o755)
    return {
        "PATH": f"{programs}:/usr/bin:/bin",
        "HERE": str(tmp_path),
        "SCRATCH": str(tmp_path / "scratch"),
        "NEUSCALE_SIF": "",
        "NEUSCALE_VENV": str(tmp_path / "venv"),
        "TMPDIR": str(tmp_path / "local" / "disk"),
        "SLURM_JOB_ID": "31007",
        "SLURM_JOB_NAME": "pets",
        "SLURM_JOB_NODELIST": "gpu-[03-04]",
        "SLURM_CPUS_PER_TASK": "6",
        "SLURM_GPUS_ON_NODE": "3",
    }


@pytest.fixture
def batch(tmp_path: Path, environment: dict[str, str]) -> Batch:
    """A function that runs the tracked script with arguments and changed environment variables."""

    def run(
        *words: str, script: Path = TEMPLATE, **changes: str | None
    ) -> "subprocess.CompletedProcess[str]":
        changed = {k: v for k, v in (environment | changes).items() if v is not None}
        command = ["bash", str(script), *words]
        return subprocess.run(
            command, env=changed, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
        )

    return run


def told(folder: Path) -> dict[str, str]:
    """Environment variables of the launcher."""
    lines = (folder / "environment").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def test_a_job_trains_what_it_is_given_and_resumes_its_run_by_name(
    batch: Batch, tmp_path: Path, programs: Path
) -> None:
    done = batch("optim.lr=0.5", "model.weights=a b")
    assert done.returncode == 0, done.stderr
    words = (tmp_path / "words").read_text().splitlines()
    asked = ["optim.lr=0.5", "model.weights=a b", "run.name=pets-31007", "--resume", "--gpus", "3"]
    assert words == ["train", *asked]
    (srun,) = calls(programs, "srun")
    assert srun.startswith("--kill-on-bad-exit=0 --wait=30 bash -c"), "a failed rank is for the launcher"
    env = told(tmp_path)
    assert env["NEUSCALE_DATA"] == f"{tmp_path}/scratch/neuscale/data"
    assert env["NEUSCALE_RUNS"] == f"{tmp_path}/scratch/neuscale/runs"
    assert env["SRUN_CPUS_PER_TASK"] == "6"
    assert env["MASTER_ADDR"] == "10.1.2.3"
    assert env["MASTER_PORT"] == "27007"
    assert calls(programs, "scontrol")[:2] == ["show hostnames gpu-[03-04]", "show node gpu-03"]
    for folder in ("scratch/neuscale/data", "scratch/neuscale/runs", "local/disk"):
        assert (tmp_path / folder).is_dir(), folder


def test_a_run_with_a_name_keeps_it_and_tasks_of_an_array_have_their_own(
    batch: Batch, tmp_path: Path
) -> None:
    batch("run.name=mine", "optim.lr=1")
    assert (tmp_path / "words").read_text().split()[:3] == ["train", "run.name=mine", "optim.lr=1"]
    batch(SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="3")
    assert "run.name=pets-7-3" in (tmp_path / "words").read_text().splitlines()


def test_the_site_file_is_read_on_the_nodes_too(batch: Batch, tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "site.env").write_text(
        f"NEUSCALE_RUNS={tmp_path}/results\nTMPDIR={tmp_path}/local/$SLURM_JOB_ID\nNCCL_SOCKET_IFNAME=ib0\n"
    )
    assert batch().returncode == 0
    env = told(tmp_path)
    assert (env["NEUSCALE_RUNS"], env["NCCL_SOCKET_IFNAME"]) == (f"{tmp_path}/results", "ib0")
    assert env["TMPDIR"] == f"{tmp_path}/local/31007"
    assert Path(env["TMPDIR"]).is_dir()


def test_without_a_place_for_data_the_job_fails_and_says_so(batch: Batch, tmp_path: Path) -> None:
    done = batch(SCRATCH=None)
    assert done.returncode != 0
    assert "set it in slurm/site.env" in done.stderr
    assert not (tmp_path / "words").exists()


def test_an_image_sees_the_folders(
    batch: Batch, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_programs(programs, monkeypatch, apptainer="true")
    assert batch("a=1", NEUSCALE_SIF="my image.sif").returncode == 0
    (call,) = calls(programs, "apptainer")
    bound = f"{tmp_path}/scratch/neuscale/data,{tmp_path}/scratch/neuscale/runs,{tmp_path}/local/disk"
    assert call == f"run --nv --bind {bound} my image.sif train a=1 run.name=pets-31007 --resume --gpus 3"
    batch("a=1", NEUSCALE_SIF="i.sif", TMPDIR=None)
    assert f"--bind {bound.rpartition(',')[0]} i.sif" in calls(programs, "apptainer")[1]


def test_a_port_that_somebody_listens_on_is_passed_over(batch: Batch, tmp_path: Path) -> None:
    with socket.socket() as taken:
        for job in range(31007, 31107):
            try:
                taken.bind(("127.0.0.1", 20000 + job % 12000))
                break
            except OSError:
                continue
        taken.listen()
        batch(SLURM_JOB_ID=str(job))
    assert int(told(tmp_path)["MASTER_PORT"]) > 20000 + job % 12000


@pytest.mark.parametrize(
    ("code", "state", "requeue", "requeued", "says"),
    [
        ("0", "RUNNING", "0", False, False),
        ("1", "RUNNING", "0", False, False),
        ("2", "RUNNING", "0", False, False),
        ("75", "RUNNING", "0", True, True),
        ("75", "COMPLETING", "0", False, False),  # the job was cancelled
        ("75", "RUNNING", "1", True, False),
        ("143", "RUNNING", "0", False, False),
    ],
)
def test_a_saved_job_goes_back_into_the_queue_and_each_exit_code_is_the_jobs(
    batch: Batch, programs: Path, code: str, state: str, requeue: str, requeued: bool, says: bool
) -> None:
    done = batch(CODE=code, STATE=state, REQUEUE=requeue)
    assert done.returncode == int(code)
    asked = [call for call in calls(programs, "scontrol") if call.startswith("requeue")]
    assert asked == (["requeue 31007"] if requeued else [])
    assert ("job 31007 is back in the queue" in done.stdout) == says


@pytest.mark.parametrize(
    "signals",
    [(signal.SIGUSR2, signal.SIGTERM), (signal.SIGTERM, signal.SIGUSR2)],
    ids=["save", "end"],
)
def test_the_signal_to_save_goes_to_the_processes_and_the_script_waits_for_them(
    environment: dict[str, str],
    programs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signals: tuple[int, int],
) -> None:
    """Both are passed on; they differ, because bash merges two pending signals of the same kind."""
    step = f"trap ':' USR2 TERM; touch {tmp_path}/training"
    step += f"; while [[ ! -e {tmp_path}/saved ]]; do sleep 0.02; done; exit 75"
    make_programs(programs, monkeypatch, srun=step)
    command = ["bash", str(TEMPLATE), "a=1"]
    script = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        until((tmp_path / "training").exists)
        for count, number in enumerate(signals, 1):
            script.send_signal(number)
            until(lambda count=count: len(calls(programs, "scancel")) == count)
        assert script.poll() is None
        (tmp_path / "saved").touch()
        out, _ = script.communicate(timeout=30)
    finally:
        (tmp_path / "saved").touch()
        script.kill()
    assert script.returncode == 75
    assert calls(programs, "scancel") == ["--signal=USR2 31007.0"] * 2
    assert "is back in the queue" in out


def test_a_submitted_script_trains_the_run_of_its_task(
    batch: Batch, tmp_path: Path, environment: dict[str, str]
) -> None:
    site = tmp_path / "a site.env"
    site.write_text("FROM_SITE=yes\n")
    job = Job(
        name="x",
        runs=[["optim.lr=0.5", "run.name=x-0"], ["model.weights=it's $HOME", "run.name=x-1"]],
        logs=tmp_path / "jobs",
        nodes=2,
        gpus=0,
        gpu_type=None,
        processes=5,
        cpus=6,
        seconds=93784,
        lead=90.4,
        partition="a b",
        memory="64G",
        venv=tmp_path / "venv",
        site=site,
        command=["neuscale", "submit", "a b"],
    )
    text = batch_script(job)
    options = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert sorted(options) == sorted(
        [
            "job-name=x",
            f"output={tmp_path}/jobs/%A-%a.log",
            "nodes=2",
            "ntasks-per-node=1",
            "cpus-per-task=6",
            "time=1-02:03:04",
            "signal=B:USR2@90",
            "requeue",
            "open-mode=append",
            "array=0-1",
            "partition='a b'",
            "mem=64G",
        ]
    )
    first_command = next(i for i, line in enumerate(text.splitlines()) if not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in text.splitlines()[first_command:]), (
        "Slurm reads no more"
    )
    script = tmp_path / "script"
    script.write_text(text)
    task = {
        "SLURM_ARRAY_JOB_ID": "7",
        "SLURM_ARRAY_TASK_ID": "1",
        "NEUSCALE_SIF": "other",
        "NEUSCALE_VENV": "x",
    }
    assert batch(script=script, **task).returncode == 0
    words = ["train", "model.weights=it's $HOME", "run.name=x-1", "--resume", "--processes", "5"]
    assert (tmp_path / "words").read_text().splitlines() == words
    assert told(tmp_path)["FROM_SITE"] == "yes"


@pytest.mark.parametrize(
    ("words", "asked", "code"),
    [
        (["cifar10", "pets"], ["data prepare cifar10", "data prepare pets"], "0"),
        (["cifar10", "pets"], ["data prepare cifar10"], "3"),
        (["image_folder", "--size", "64"], ["data prepare image_folder --size 64"], "0"),
    ],
)
def test_data_is_prepared_on_the_shared_disk_one_set_after_the_other(
    batch: Batch,
    programs: Path,
    tmp_path: Path,
    words: list[str],
    asked: list[str],
    code: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copy(PREPARE, tmp_path / "prepare")
    make_programs(programs, monkeypatch, apptainer=f"exit {code}")
    done = batch(*words, script=tmp_path / "prepare", NEUSCALE_SIF="i.sif")
    assert done.returncode == int(code)
    bind = f"--bind {tmp_path}/scratch/neuscale/data,{tmp_path}/local/disk"
    assert calls(programs, "apptainer") == [f"run {bind} i.sif {each}" for each in asked]
    if code == "0":
        assert batch(*words, script=tmp_path / "prepare").returncode == 0
        assert (tmp_path / "words").read_text().split() == asked[-1].split()
        assert told(tmp_path)["NEUSCALE_DATA"] == f"{tmp_path}/scratch/neuscale/data"
