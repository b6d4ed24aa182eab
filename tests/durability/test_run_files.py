"""Files of a run, a sweep and a job survive a power cut; until then a reader sees the previous state."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from durability.power_cut import recorded
from neuscale.analysis.prune import Removal, remove
from neuscale.config import compose_config
from neuscale.errors import UserError
from neuscale.evaluation.calibration import Calibration
from neuscale.evaluation.evaluate import Evaluation
from neuscale.runs.evaluation_file import store_evaluation, stored_evaluation
from neuscale.runs.folder import RunFolder, all_runs, create_run
from neuscale.runs.manifest import read_manifest
from neuscale.runs.metrics import MetricsFile, read_metrics
from neuscale.slurm.jobs import record_submission, submitted_jobs
from neuscale.slurm.script import Job
from neuscale.sweep.folder import PlannedRun, Sweep, open_sweep, store_sweep
from neuscale.training.manifest_writer import ManifestWriter


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Path of a runs folder that does not exist yet."""
    (tmp_path / "root").mkdir()
    monkeypatch.setenv("NEUSCALE_RUNS", str(tmp_path / "root" / "runs"))
    return tmp_path / "root" / "runs"


def test_a_run_that_was_begun_is_there_with_its_configuration(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose configuration is rewritten has the older or the newer one."""
    with recorded(runs.parent) as record:
        run = create_run(compose_config(["run.name=mine", "run.seed=3"]))
        record.done("3")
        run.store(compose_config(["run.name=mine", "run.seed=17"]))
        record.done("17")

    def check(after: Path, done: tuple[str, ...]) -> str:
        monkeypatch.setenv("NEUSCALE_RUNS", str(after / "runs"))
        found = all_runs()
        if not found:
            assert not done
            return "none"
        assert [run.name for run in found] == ["mine"]
        seed = found[0].config().run.seed
        assert seed == 17 or (seed == 3 and "17" not in done)
        return str(seed)

    assert record.replay(tmp_path / "after", check).keys() == {"none", "3", "17"}


def recorder_of(run: RunFolder, patch: bytes, number: int) -> ManifestWriter:
    """ManifestWriter of a fake trainer, with this patch and a manifest whose seed is `number`."""
    trainer: Any = SimpleNamespace(accelerator=SimpleNamespace(is_main_process=False))
    record = ManifestWriter(run, trainer)
    record._is_main, record._patch = True, patch
    diff = {"file": "code.diff", "sha256": hashlib.sha256(patch).hexdigest()}
    record.manifest = {"status": "running", "seed": number, "code": {"diff": diff}}
    return record


def test_a_manifest_names_a_patch_that_is_there(runs: Path, tmp_path: Path) -> None:
    """This also holds if the code was changed again before the run was resumed."""
    runs.mkdir()
    run = RunFolder(runs)
    with recorded(runs) as record:
        for number, patch in enumerate((b"the first patch", b"another patch, of another size")):
            recorder_of(run, patch, number).on_start()
            record.done(str(number))

    def check(after: Path, done: tuple[str, ...]) -> str:
        manifest = read_manifest(after / "manifest.json")
        assert len(done) <= manifest.get("seed", -1) + 1
        if manifest:
            diff = manifest["code"]["diff"]
            assert hashlib.sha256((after / diff["file"]).read_bytes()).hexdigest() == diff["sha256"]
        return str(manifest.get("seed"))

    assert record.replay(tmp_path / "after", check).keys() == {"None", "0", "1"}


def lines(steps: list[int]) -> str:
    return "".join(json.dumps({"split": "train", "step": step, "loss": step / 8}) + "\n" for step in steps)


def test_curves_that_were_synced_stay_also_while_they_are_cut_back(tmp_path: Path) -> None:
    """Six steps with a save after the fourth, from which the run is resumed."""
    root = tmp_path / "root"
    root.mkdir()
    path = root / "metrics.jsonl"
    with recorded(root) as record:
        metrics = MetricsFile(path, 0)
        for step in range(1, 7):
            metrics.write("train", step, {"loss": step / 8})
            if step == 4:
                metrics.sync()
                record.done("saved")
        metrics.close()
        assert path.read_text() == lines([1, 2, 3, 4, 5, 6])
        metrics = MetricsFile(path, 4)
        record.done("resumed")
        metrics.write("train", 5, {"loss": 5 / 8})
        metrics.sync()
        record.done("saved again")
        metrics.close()

    def check(after: Path, done: tuple[str, ...]) -> str:
        file = after / "metrics.jsonl"
        steps = [line["step"] for line in read_metrics(file)] if file.exists() else []
        assert steps == list(range(1, len(steps) + 1))
        assert len(steps) >= {"": 0, "saved": 4, "resumed": 4, "saved again": 5}[done[-1] if done else ""]
        assert len(steps) <= 5 or "resumed" not in done
        return str(len(steps))

    said = record.replay(tmp_path / "after", check)
    assert {"0", "4", "5", "6"} <= said.keys()


def evaluation(images: int) -> Evaluation:
    confusion = torch.tensor([[images, 0], [2, 1]])
    return Evaluation(0.5, 1.0, 0.25, images + 3, confusion, Calibration([images], [0.5], [1]))


def test_the_stored_evaluation_is_the_older_or_the_newer(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with recorded(root) as record:
        for step in (5, 9):
            store_evaluation(root, step, ["cat", "dog"], evaluation(step))
            record.done(str(step))

    def check(after: Path, done: tuple[str, ...]) -> str:
        found = stored_evaluation(after)
        assert ((after / "evaluation.json").exists()) == (found is not None)
        step = found.step if found is not None else 0
        assert step >= int(done[-1] if done else 0)
        if found is not None:
            assert found.evaluation.confusion.tolist() == [[step, 0], [2, 1]]
        return str(step)

    assert record.replay(tmp_path / "after", check).keys() == {"0", "5", "9"}


def test_a_sweep_that_was_planned_can_be_gone_on_with(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = [PlannedRun("lr-0", ["optim.lr=1"]), PlannedRun("lr-1", ["optim.lr=2"])]
    with recorded(runs.parent) as record:
        store_sweep(Sweep(runs / "lr", ["optim.lr"], planned), ["neuscale", "sweep"])
        record.done("planned")

    def check(after: Path, done: tuple[str, ...]) -> str:
        monkeypatch.setenv("NEUSCALE_RUNS", str(after / "runs"))
        try:
            found = open_sweep("lr")
        except UserError as error:
            assert "there is no such sweep" in error.problem and not done
            return "none"
        assert (found.fields, found.runs) == (["optim.lr"], planned)
        return "there"

    assert record.replay(tmp_path / "after", check).keys() == {"none", "there"}


def test_a_job_that_was_submitted_is_known_with_its_script(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm
    words = [["run.seed=1", "run.name=a"], ["run.seed=2", "run.name=b"]]
    job = Job("mine", words, runs / "jobs", 1, 0, None, 2, 4, 3600.0, 300.0, command=["neuscale", "submit"])
    with recorded(runs.parent) as record:
        record_submission(job, "123", "#!/bin/bash\n")
        record.done("submitted")

    def check(after: Path, done: tuple[str, ...]) -> str:
        monkeypatch.setenv("NEUSCALE_RUNS", str(after / "runs"))
        names = [found.run for found in submitted_jobs()]
        assert names == ["a", "b"] or (not names and not done)
        if names:
            assert (after / "runs" / "jobs" / "123.sbatch").read_text() == "#!/bin/bash\n"
        return " ".join(names)

    assert record.replay(tmp_path / "after", check).keys() == {"", "a b"}


def test_a_checkpoint_that_is_removed_to_free_space_loses_its_name_first(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    path = run.checkpoints / "step-00000005"
    path.mkdir(parents=True)
    for name in ("checkpoint.json", "model.safetensors"):
        (path / name).write_text(name)
    with recorded(run.path, lock=run.path / ".lock") as record:
        remove(Removal(run, path, "spare", 1))
    found = [
        {name for name in cut.tree if name.startswith("checkpoints/step-")} for cut in record.power_cuts()
    ]
    whole = {f"checkpoints/{path.name}{end}" for end in ("", "/checkpoint.json", "/model.safetensors")}
    assert all(names in (set(), whole) for names in found) and set() in found
    assert record.changes_without_the_lock() == []
