"""Damaged files of a run folder are read as valid values, or rejected with a clear error."""

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from fuzzing import changed_json, damaged, fuzz
from neuscale.analysis.listing import metrics_of, run_row
from neuscale.analysis.prune import removals
from neuscale.analysis.report import write_report
from neuscale.cli.runs_show import _facts
from neuscale.config import compose_config, config_from_yaml, config_to_yaml
from neuscale.errors import UserError
from neuscale.models.weights_file import read_weights
from neuscale.progress import Silent
from neuscale.runs.evaluation_file import stored_evaluation
from neuscale.runs.folder import RunFolder, best_checkpoint
from neuscale.runs.manifest import load_manifest
from neuscale.slurm.jobs import _records
from neuscale.sweep.folder import open_sweep
from neuscale.training.checkpoint import _meta_sum, open_checkpoint
from runs.conftest import manifest_of, train_lines, val_lines


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunFolder]:
    """A run folder with a configuration, a manifest, curves and an evaluation."""
    monkeypatch.setenv("NEUSCALE_RUNS", str(tmp_path))
    monkeypatch.setenv("NEUSCALE_DATA", str(tmp_path / "data"))
    folder = RunFolder(tmp_path / "r")
    folder.path.mkdir()
    folder.path.joinpath("config.yaml").write_text(CONFIG)
    folder.manifest_file.write_text(json.dumps(manifest_of("r")))
    lines = [*train_lines(), *val_lines()]
    folder.path.joinpath("metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    yield folder


CONFIG = config_to_yaml(compose_config(["run.seed=7", "train.epochs=5"]))


def or_refused(read: Callable[[], object]) -> None:
    """Call `read`, whose only error may be a UserError that names the problem."""
    try:
        read()
    except UserError as error:
        assert error.problem


def write(path: Path, text: str) -> None:
    path.write_bytes(text.encode(errors="surrogateescape"))


@fuzz
@given(data=st.data())
def test_manifests(run: RunFolder, data: st.DataObject) -> None:
    write(run.manifest_file, data.draw(changed_json(manifest_of("r"))))
    row = run_row(run)
    or_refused(lambda: _facts(run, row, load_manifest(run.manifest_file)))
    if data.draw(st.integers(0, 4)) == 0:  # rendering the page is slow
        or_refused(lambda: write_report(run, run.path / "page.html", None, Silent()))
    removals([run])


@fuzz
@given(data=st.data())
def test_configurations(data: st.DataObject) -> None:
    text = data.draw(damaged(CONFIG.encode())).decode(errors="replace")
    or_refused(lambda: config_to_yaml(config_from_yaml(text, [], "config.yaml")))


@fuzz
@given(data=st.data())
def test_values_of_configurations(data: st.DataObject) -> None:
    import yaml

    text = data.draw(changed_json(yaml.safe_load(CONFIG)))  # JSON is YAML
    or_refused(lambda: config_to_yaml(config_from_yaml(text, [], "config.yaml")))


@fuzz
@given(data=st.data())
def test_lists_of_sweeps(run: RunFolder, data: st.DataObject) -> None:
    folder = run.path.with_name("s")
    folder.mkdir(exist_ok=True)
    runs = [{"name": f"s-{i}", "words": [f"optim.lr=0.{i}", "train.epochs=1"]} for i in range(2)]
    sweep = {"command": ["neuscale"], "created": "now", "fields": ["optim.lr"], "runs": runs}
    write(folder / "sweep.json", data.draw(changed_json(sweep)))

    def read() -> None:
        for planned in open_sweep("s").runs:
            assert planned.folder.path.parent == folder.parent
            assert all("=" in word for word in planned.words)

    or_refused(read)


@fuzz
@given(data=st.data())
def test_curves(run: RunFolder, data: st.DataObject) -> None:
    path = run.path / "metrics.jsonl"
    line = data.draw(changed_json(train_lines()[0]))
    content = line.encode(errors="surrogateescape") + b"\n"
    content += data.draw(damaged(b"".join(f"{json.dumps(each)}\n".encode() for each in val_lines())))
    path.write_bytes(content)
    for found in metrics_of(run):
        assert isinstance(found["step"], int)
        assert all(isinstance(v, int | float | str) for v in found.values())
    run_row(run)
    if data.draw(st.integers(0, 4)) == 0:  # rendering the page is slow
        or_refused(lambda: write_report(run, run.path / "page.html", None, Silent()))


EVALUATION = {
    "step": 5,
    "classes": ["a", "b"],
    "top1": 0.5,
    "top5": 1.0,
    "loss": 0.7,
    "images": 4,
    "confusion": [[1, 1], [1, 1]],
    "calibration": {"counts": [4], "confidences": [0.5], "correct": [2]},
}


@fuzz
@given(data=st.data())
def test_evaluations(run: RunFolder, data: st.DataObject) -> None:
    write(run.path / "evaluation.json", data.draw(changed_json(EVALUATION)))
    found = stored_evaluation(run.path)
    if found is not None:
        assert found.evaluation.confusion.shape == (len(found.classes),) * 2
        assert math.isfinite(found.evaluation.top1)
        or_refused(lambda: write_report(run, run.path / "page.html", None, Silent()))


@fuzz
@given(data=st.data())
def test_records_of_checkpoints(run: RunFolder, data: st.DataObject) -> None:
    """The damaged record gets a correct checksum, as if edited on purpose."""
    folder = run.path / "checkpoints" / "step-00000005"
    folder.mkdir(parents=True, exist_ok=True)
    files = {"model.safetensors": b"weights", "training.pt": b"state"}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    meta: dict[str, Any] = {"step": 5, "epoch": 1, "metrics": {"top1": 0.5}, "sha256": sums}
    text = data.draw(changed_json(meta))
    with contextlib.suppress(ValueError, TypeError):
        text = json.dumps({**json.loads(text), "sha256_of_this": _meta_sum(json.loads(text))})
    write(folder / "checkpoint.json", text)
    or_refused(lambda: open_checkpoint(folder).training_state())
    write(folder.parent / "best.json", data.draw(changed_json({"checkpoint": folder.name, "top1": 0.5})))
    best = best_checkpoint(folder.parent)
    assert best is None or best.parent == folder.parent
    removals([run])


@pytest.fixture(scope="module")
def weight_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("weights")
    state = {"head.weight": torch.ones(2, 3), "head.bias": torch.zeros(2)}
    save_file(state, folder / "w.safetensors")
    torch.save(state, folder / "w.pt")
    return {path.suffix: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@fuzz
@given(data=st.data())
def test_weights(suffix: str, weight_files: dict[str, bytes], tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(data.draw(damaged(weight_files[suffix])))

    def read() -> None:
        for name, tensor in read_weights(path).items():
            assert isinstance(name, str) and tensor.numel() < 1 << 20

    or_refused(read)


@fuzz
@given(data=st.data())
def test_records_of_jobs(run: RunFolder, data: st.DataObject) -> None:
    folder = run.path.parent / "jobs"
    folder.mkdir(exist_ok=True)
    record = {"job": "12", "submitted": "2026", "names": ["a", "b"], "command": ["x"], "nodes": 1, "gpus": 2,
              "processes": 2, "log": "l"}  # fmt: skip
    write(folder / "12.json", data.draw(changed_json(record)))
    for found in _records():
        assert found.job.isdigit() and all("/" not in name for name in found.names)
