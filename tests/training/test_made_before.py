"""A run folder that an earlier version of the program wrote is resumed, replayed and evaluated by this one.

`made_before/run` was written before the package's folders became layers: seven steps, in one thread and
without native ops. `expected.json` has that version's results of evaluating the run and of resuming it to
step 12. On another processor or version of torch the last bits of the results differ; there the numbers are
compared, and not the hashes.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from neuscale.analysis.replay import replay
from neuscale.hardware import cpu_name
from neuscale.inference.evaluate_run import evaluate_run
from neuscale.progress import Silent
from neuscale.runs.folder import RunFolder
from neuscale.runs.manifest import load_manifest
from neuscale.runs.metrics import read_metrics
from neuscale.training.run import train

TORCH = torch.__version__.partition("+")[0]  # a manifest has the version without its CUDA suffix

MADE_BEFORE = Path(__file__).with_name("made_before")


@pytest.fixture
def run(tiny: Callable[..., Any], tmp_path: Path) -> RunFolder:
    """Copy of the run in the runs folder, with its data set prepared."""
    del tiny  # requested for the environment and the data that it sets up
    return RunFolder(Path(shutil.copytree(MADE_BEFORE / "run", tmp_path / "runs" / "made_before")))


@pytest.fixture
def expected() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((MADE_BEFORE / "expected.json").read_text())
    return found


def same_machine(manifest: dict[str, Any]) -> bool:
    """Return True where results must be bit-identical; CPU flags count, as many processors share a name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    same_flags = json.loads((MADE_BEFORE / "expected.json").read_text())["cpu_flags_sha256"]
    then = (manifest["machine"]["cpu"], manifest["packages"]["torch"], same_flags)
    return then == (cpu_name(), TORCH, hashlib.sha256(" ".join(sorted(flags)).encode()).hexdigest())


@pytest.mark.parametrize("weights", ["average", "weights"])
def test_it_is_evaluated_as_then(run: RunFolder, expected: dict[str, Any], weights: str) -> None:
    kind = {"average": "auto", "weights": "raw"}[weights]
    found = evaluate_run(run, "last", "val", "cpu", Silent(), kind).evaluation.scalars()
    wanted = expected["evaluation"][weights]  # fewer metrics than there are today
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-5)


def test_it_is_resumed_to_what_it_would_have_become(run: RunFolder, expected: dict[str, Any]) -> None:
    before = load_manifest(run.manifest_file)
    lines = list(read_metrics(run.metrics_file))
    train(run.config(["train.max_steps=12"]), run)
    manifest, wanted = load_manifest(run.manifest_file), expected["resumed_to_step_12"]
    assert manifest["resumed"][0]["step"] == 7
    assert list(read_metrics(run.metrics_file))[: len(lines)] == lines, "the points of then are kept"
    assert manifest["result"]["steps"] == 12
    assert manifest["result"]["last"]["loss"] == pytest.approx(wanted["last"]["loss"], abs=1e-3)
    if same_machine(before):
        for name in ("weights_sha256", "average_sha256", "last"):
            assert manifest["result"][name] == wanted[name]


def test_it_is_replayed(run: RunFolder) -> None:
    replayed = replay(run, [], False, Silent())
    assert replayed.verdict is not None
    # Fields that the old config lacks have defaults that match what was done then.
    assert [str(change) for change in replayed.changed if change.area == "config"] == []
    if same_machine(load_manifest(run.manifest_file)):
        assert replayed.verdict.equal, replayed.verdict.words
    if load_manifest(run.manifest_file)["packages"]["torch"] != TORCH:
        # Another version may draw other initial weights (`trunc_normal_` of 2.11 does): it is named.
        assert any("torch" in str(change) for change in replayed.changed)
        return
    then, now = (
        {(line["step"], line["split"]): line["loss"] for line in read_metrics(each.metrics_file)}
        for each in (run, replayed.run)
    )
    assert {at: now[at] for at in then} == pytest.approx(then, abs=1e-3)
    assert now.keys() - then.keys() == {(7, "train")}, "the rest after the last regular point"
