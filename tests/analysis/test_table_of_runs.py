"""`runs list` and `runs show` print each number for its own run and in its own column."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import Said
from neuscale.analysis.listing import SORTS, folder_size, run_row, run_rows, sorted_rows
from neuscale.runs.folder import RunFolder
from neuscale.slurm.jobs import SubmittedJob, with_jobs

from .conftest import RunWriter, train_lines, val_lines

Command = Callable[..., Said]


def cells(table: str, name: str) -> list[str]:
    """Cells of the row of a printed table that begins with `name`."""
    rows = [re.split(r"\s*[│┃]\s*", line.strip().strip("│┃").strip()) for line in table.splitlines()]
    [row] = [row for row in rows if row[0] == name]
    return row


def lone(**changes: Any) -> dict[str, Any]:
    """A single validation point, with `changes`."""
    return val_lines((0.5,))[0] | changes


def test_a_row_has_the_best_top1_and_the_last_loss(neuscale: Command, write_run: RunWriter) -> None:
    run = write_run("pets", experiment="vit", checkpoints={10: 3_000_000, 25: 1_400_000})
    size = sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file())
    [row] = neuscale("runs", "list", "--json").json["runs"]
    assert row == {
        "name": "pets",
        "state": "finished",
        "experiment": "vit",
        "data": "pets",
        "seed": 7,
        "steps": 25,
        "top1": 0.75,
        "map": None,
        "loss": 2.125,
        "time": 3754.4,
        "speed": 12345.6,
        "device": "NVIDIA H100",
        "started": "2026-11-21T12:34:56+00:00",
        "size": size,
        "note": "",
    }
    assert size > 4_400_000
    table = neuscale("runs", "list").out
    head = [
        "run",
        "state",
        "top-1",
        "loss",
        "time",
        "experiment",
        "seed",
        "steps",
        "img/s",
        "size",
        "started",
    ]
    assert cells(table, "run") == head
    shown = ["pets", "finished", "75.00%", "2.125", "1 h 2 min", "vit", "7", "25", "12,346"]
    assert cells(table, "pets") == [*shown, "4 MB", "11-21 12:34"]


def test_without_evaluations_in_the_curves_the_manifest_has_them(write_run: RunWriter) -> None:
    row = run_row(write_run(lines=train_lines()))
    assert (row.top1, row.loss) == (0.75, 2.125)
    row = run_row(write_run("going", lines=train_lines()[:4], result=None, status="stopped"))
    assert (row.steps, row.top1, row.loss, row.time, row.speed) == (8, None, None, None, None)
    assert run_row(write_run("new", lines=[], result=None)).steps == 0


def test_the_size_is_that_of_all_files_and_of_no_target_of_a_link(
    tmp_path: Path, write_run: RunWriter
) -> None:
    run = write_run(lines=[], checkpoints={5: 1000})
    before = folder_size(run)
    (run.path / "deep" / "er").mkdir(parents=True)
    (run.path / "deep" / "er" / "file").write_bytes(bytes(77))
    (tmp_path / "large").write_bytes(bytes(10_000))
    (run.path / "link").symlink_to(tmp_path / "large")
    assert folder_size(run) == before + 77 + (run.path / "link").lstat().st_size


@pytest.fixture
def three(write_run: RunWriter) -> None:
    """Runs a, b and c, which columns sort differently, and d, which has no results."""
    results = {
        # name: (status, top1, loss, seconds, speed, size, month, recipe)
        "a": ("stopped", 0.25, 1.5, 20.0, 300.0, 900, "03", "wide"),
        "b": ("failed", 0.75, 2.5, 10.0, 200.0, 100, "05", "vit"),
        "c": ("finished", 0.5, 0.5, 30.0, 100.0, 5000, "04", "fashion"),
    }
    for name, (status, top1, loss, seconds, speed, size, month, recipe) in results.items():
        write_run(
            name,
            experiment=recipe,
            lines=[lone(top1=top1, loss=loss)],
            checkpoints={5: size},
            status=status,
            started=f"2026-{month}-01T00:00:00+00:00",
            result={"steps": 5, "train_seconds": seconds, "images_per_second": speed},
        )
    write_run("d", lines=[], result=None, started=None, config=None, status="stopped")


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("started", "bcad"),
        ("name", "abcd"),
        ("state", "bcda"),
        ("experiment", "cbad"),
        ("top1", "bcad"),
        ("loss", "cabd"),
        ("time", "bacd"),
        ("speed", "abcd"),
        ("size", "cabd"),
    ],
)
def test_every_column_sorts_its_own_way_and_what_lacks_it_is_last(sort: str, order: str) -> None:
    assert sort in SORTS
    assert "".join(row.name for row in sorted_rows(with_jobs(run_rows()), sort)) == order


def test_a_loss_that_is_no_number_is_not_among_the_best(write_run: RunWriter) -> None:
    for name, loss in (("a", 3.0), ("b", float("nan")), ("c", 1.0)):
        write_run(name, lines=[lone(loss=loss)])
    assert "".join(row.name for row in sorted_rows(with_jobs(run_rows()), "loss")) == "cab"


def test_only_the_newest_job_of_a_run_is_told_and_none_that_is_over(
    write_run: RunWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("stopped", "done", "soon", "lost", "over", "broken")
    for name in names[:2]:
        write_run(name, status="stopped" if name == "stopped" else "finished", error="it broke")
    jobs = [
        SubmittedJob("30", None, "stopped", "pending", "2026-01-03"),
        SubmittedJob("20", 1, "stopped", "failed", "2026-01-02"),
        SubmittedJob("19", None, "done", "finished", "2026-01-01"),
        SubmittedJob("18", None, "soon", "requeued", "2026-02-01"),
        SubmittedJob("17", 0, "broken", "failed", "2026-02-02"),
        SubmittedJob("16", None, "lost", "unknown", "2026-02-03"),
        SubmittedJob("15", None, "over", "cancelled", "2026-02-04"),
    ]
    monkeypatch.setattr("neuscale.slurm.jobs.submitted_jobs", lambda: jobs)
    found = {row.name: (row.state, row.note) for row in sorted_rows(with_jobs(run_rows()), "name")}
    assert found == {
        "stopped": ("pending", "job 30; it broke"),
        "done": ("finished", "job 19; it broke"),
        "soon": ("requeued", "job 18"),
        "broken": ("failed", "job 17_0"),
    }
    assert [row.started for row in sorted_rows(with_jobs(run_rows()), "name") if row.name == "soon"] == [
        "2026-02-01"
    ]


def test_a_run_in_training_is_not_called_pending(
    write_run: RunWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(status="running", result=None)
    jobs = [SubmittedJob("1", None, "pets", "requeued", "2026-01-01")]
    monkeypatch.setattr("neuscale.slurm.jobs.submitted_jobs", lambda: jobs)
    with run.held():
        assert [row.state for row in with_jobs(run_rows())] == ["running"]
    assert [row.state for row in with_jobs(run_rows())] == ["requeued"]


def facts(said: Said) -> dict[str, str]:
    """Name and value of each row of the table that `runs show` prints."""
    rows = (
        re.split(r"\s*│\s*", line.strip().strip("│").strip(), maxsplit=1) for line in said.out.splitlines()
    )
    return {row[0]: row[1].strip() for row in rows if len(row) == 2 and row[0]}


def test_show_says_each_thing_of_the_run(
    neuscale: Command, write_run: RunWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuscale.cli.console.out.width", 300)
    run = write_run("pets", experiment="vit", checkpoints={10: 3_000_000, 25: 9}, best=10)
    said = neuscale("runs", "show", "pets")
    assert said.out.splitlines()[0] == "pets: finished"
    assert facts(said) == {
        "command": "neuscale train 'run.name=a b'",
        "experiment": "vit",
        "seed": "7, bf16",
        "data": "pets, 60 training images (fingerprint ffffffffffff)",
        "top-1": "75.00% at best",
        "training": "25 steps in 1 h 2 min at 12,346 img/s",
        "weights": "sha256 " + "e" * 64,
        "started, ended": "2026-11-21T12:34:56+00:00, 2026-11-21T13:45:07+00:00",
        "code": "cccccccccccc with changes (55555555)",
        "packages": "torch 2.15.0 and 3 more, Python 3.11.7, lock 111111111111",
        "ops": "fused, neuscale_ops 0.4",
        "image": "neuscale:9",
        "machine": "NVIDIA H100; 2 processes, 6 threads each; EPYC, host node7",
        "driver": "550.1, CUDA 12.4",
        "checkpoints": "step-00000010 (best), step-00000025",
        "folder": f"{run.path} (3 MB)",
    }
    assert said.out.splitlines()[-5:] == [
        "step 5: top-1 25.00%, loss 2.2500",
        "step 10: top-1 75.00%, loss 1.7500",
        "step 15: top-1 50.00%, loss 2.0000",
        "step 20: top-1 12.50%, loss 2.3750",
        "step 25: top-1 37.50%, loss 2.1250",
    ]
    shown = neuscale("runs", "show", "pets", "--json").json
    best = [Path(one["path"]).name for one in shown["checkpoints"] if one["best"]]
    assert (best, shown["state"], shown["seed"]) == (["step-00000010"], "finished", 7)


def test_show_tells_every_resume_with_its_step_and_what_changed(
    neuscale: Command, write_run: RunWriter
) -> None:
    lr = {"area": "config", "what": "optim.lr", "before": 0.1, "now": 0.2}
    code = {"area": "code", "what": "code", "before": "aa", "now": None}
    resumed = [
        {"time": "2026-11-21T13:00:00+00:00", "step": 1005, "changed": []},
        {"time": "2026-11-21T14:00:00+00:00", "step": 2010, "changed": [lr, code]},
    ]
    replay = {"of": "dogs", "forced": ["x"], "verdict": "bitwise equal", "equal": True, "changed": []}
    eleven = [lone(step=5 * i) for i in range(1, 12)]
    write_run(resumed=resumed, status="stopped", lines=eleven, replay=replay)
    lines = neuscale("runs", "show", "pets").out.splitlines()
    assert "resumed at step 1,005 (2026-11-21T13:00:00+00:00), nothing changed" in lines
    assert (
        "resumed at step 2,010 (2026-11-21T14:00:00+00:00) with config: optim.lr 0.1 → 0.2;"
        " code aa → none" in lines
    )
    assert [line.split(":")[0] for line in lines[-9:-1]] == [f"step {5 * i}" for i in range(4, 12)]
    assert lines[-1] == "replay of dogs, made with --force: bitwise equal"


def test_a_line_cut_short_and_a_file_of_no_text_are_no_end_of_the_world(write_run: RunWriter) -> None:
    run = write_run(lines=val_lines()[:2])
    with run.metrics_file.open("a") as file:
        file.write('[1]\n{"step": "x"}\n{"split": "val", "st')
    assert run_row(run).loss == 1.75
    run.metrics_file.write_bytes(b"\xff\xfe\x00")
    assert run_row(RunFolder(run.path)).loss == 2.125, "that of the manifest"


def test_a_manifest_that_is_json_but_older_has_what_it_had(write_run: RunWriter) -> None:
    run = write_run(lines=[])
    old = json.loads(run.manifest_file.read_text())
    del old["version"]
    old["machine"] = {"system": "Linux", "device": "NVIDIA H100", "processes": 3}
    old["result"] = {
        "steps": 17,
        "train_seconds": 9.5,
        "images_per_second": 8.0,
        "best_top1": 0.3,
        "last": None,
    }
    run.manifest_file.write_text(json.dumps(old))
    row = run_row(run)
    assert (row.steps, row.time, row.speed, row.top1, row.loss) == (17, 9.5, 8.0, 0.3, None)
