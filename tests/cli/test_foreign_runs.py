"""A run folder from somebody else is only data: it can neither read nor change anything outside itself."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import Said
from fuzzing import WRONG, leaves, replaced
from neuscale.runs.manifest import read_manifest, write_manifest

Command = Callable[..., Said]
SECRET = "the reader's own secret"


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of the user with a secret text, which the environment variable TOKEN holds as well."""
    monkeypatch.setenv("TOKEN", SECRET)
    path = tmp_path / "secret.txt"
    path.write_text(SECRET)
    return path


def texts_below(folder: Path) -> str:
    return "".join(p.read_bytes().decode(errors="replace") for p in folder.rglob("*") if p.is_file())


def change_manifest(run: Path, **fields: Any) -> None:
    write_manifest(run / "manifest.json", read_manifest(run / "manifest.json") | fields)


def with_diff(run: Path, file: str) -> None:
    code = read_manifest(run / "manifest.json")["code"]
    change_manifest(run, code=code | {"diff": {"file": file, "sha256": "0" * 64}})


@pytest.mark.parametrize("kind", ["absolute", "above", "link", "pipe", "folder", "other content"])
def test_the_report_shows_no_file_but_the_recorded_patch(
    neuscale: Command, done: Path, secret: Path, tmp_path: Path, kind: str
) -> None:
    patch = done / "code.diff"
    patch.unlink(missing_ok=True)
    if kind == "link":
        patch.symlink_to(secret)
    elif kind == "pipe":
        os.mkfifo(patch)
    elif kind == "folder":
        patch.mkdir()
    elif kind == "other content":
        patch.write_text(SECRET)
    with_diff(done, {"absolute": str(secret), "above": "../../secret.txt"}.get(kind, "code.diff"))
    page = tmp_path / "page.html"
    said = neuscale("runs", "report", "done", "--output", str(page))
    assert said.code == 0, said.err
    assert SECRET not in page.read_text()


@pytest.mark.parametrize(
    "record", ["config.yaml", "manifest.json", "metrics.jsonl", "evaluation.json", "checkpoints/best.json"]
)
@pytest.mark.parametrize("kind", ["pipe", "link", "folder", "of endless depth", "not text"])
def test_a_record_that_is_no_plain_file_hangs_and_breaks_nothing(
    neuscale: Command, done: Path, secret: Path, record: str, kind: str
) -> None:
    path = done / record
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(secret)
    elif kind == "folder":
        path.mkdir()
    elif kind == "of endless depth":
        path.write_text("[" * 200_000)
    else:
        path.write_bytes(b"\xff\x00" * 1000)
    for command in (["runs", "list"], ["runs", "show", "done"], ["runs", "prune"], ["eval", "done"]):
        said = neuscale(*command)
        assert "not foreseen" not in said.err, (command, said.err)
        assert SECRET not in said.out + said.err


@pytest.mark.parametrize("where", ["config.yaml", "manifest.json"])
@pytest.mark.parametrize("reference", ["${oc.env:TOKEN}", "a ${oc.env:TOKEN}", "${run.seed}"])
def test_no_stored_value_refers_to_the_readers_environment(
    neuscale: Command, done: Path, runs: Path, secret: Path, tmp_path: Path, where: str, reference: str
) -> None:
    del secret
    if where == "config.yaml":
        config = yaml.safe_load((done / where).read_text())
        config["tracking"]["project"] = reference
        (done / where).write_text(yaml.safe_dump(config))
        commands = [
            ["export", "done", "--to", "safetensors", "--output", str(tmp_path / "out")],
            ["train", "--resume", "done", "train.epochs=4"],
            ["eval", "done"],
        ]
    else:
        config = read_manifest(done / where)["config"]
        config["tracking"]["project"] = reference
        change_manifest(done, config=config)
        commands = [["runs", "replay", "done"]]
    for command in commands:
        said = neuscale(*command)
        assert said.code == 2, (command, said.err)
        assert "tracking.project" in said.err
    assert SECRET not in texts_below(runs)
    assert not (tmp_path / "out").exists()


def test_names_of_checkpoints_stay_inside(neuscale: Command, done: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.move(next(iter(sorted((done / "checkpoints").glob("step-*")))), other)
    (done / "checkpoints" / "best.json").write_text(json.dumps({"checkpoint": str(other)}))
    said = neuscale("eval", "done", "--json")
    assert said.code == 0, said.err
    assert str(other) not in said.out
    newest = sorted((done / "checkpoints").glob("step-*"))[-1]
    meta = json.loads((newest / "checkpoint.json").read_text())
    meta["sha256"]["../../../secret.txt"] = "0" * 64
    meta.pop("sha256_of_this")
    from neuscale.training.checkpoint import _meta_sum

    (newest / "checkpoint.json").write_text(json.dumps(meta | {"sha256_of_this": _meta_sum(meta)}))
    said = neuscale("eval", "done", "--checkpoint", "last")
    assert said.code == 1
    assert "is not the name of a file in the checkpoint" in said.err


def test_training_state_with_more_in_it_than_tensors_is_refused_without_torchs_advice(
    neuscale: Command, done: Path, tmp_path: Path
) -> None:
    import hashlib
    import pickle

    from neuscale.training.checkpoint import _meta_sum

    class Planted:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    for folder in (done / "checkpoints").glob("step-*"):
        content = pickle.dumps(Planted())
        (folder / "training.pt").write_bytes(content)
        meta = json.loads((folder / "checkpoint.json").read_text())
        meta["sha256"]["training.pt"] = hashlib.sha256(content).hexdigest()
        meta.pop("sha256_of_this")
        (folder / "checkpoint.json").write_text(json.dumps(meta | {"sha256_of_this": _meta_sum(meta)}))
    said = neuscale("train", "--resume", "done", "train.epochs=4")
    assert said.code == 1
    assert "training.pt: not readable" in said.err
    assert "weights_only" not in said.err
    assert not (tmp_path / "ran").exists()


def test_an_evaluation_reads_no_source_and_makes_no_folder_that_a_run_names(
    neuscale: Command, done: Path, tmp_path: Path
) -> None:
    config = yaml.safe_load((done / "config.yaml").read_text())
    config["data"] |= {"source": str(tmp_path / "the reader's photos"), "stage": str(tmp_path / "staged")}
    (done / "config.yaml").write_text(yaml.safe_dump(config))
    assert neuscale("eval", "done").code == 0
    config["data"]["name"] = "theirs"
    (done / "config.yaml").write_text(yaml.safe_dump(config))
    said = neuscale("eval", "done")
    assert said.code == 1
    assert "the data set 'theirs' of this run is not prepared" in said.words
    assert f"--source '{tmp_path}/the reader'\"'\"'s photos' --save-as theirs" in said.words
    assert not (tmp_path / "staged").exists()


@pytest.mark.parametrize("link", ["checkpoints", "run", "checkpoint"])
def test_prune_follows_no_link_to_another_run(neuscale: Command, done: Path, runs: Path, link: str) -> None:
    kept = sorted(p.name for p in (done / "checkpoints").iterdir())
    foreign = runs / "foreign"
    if link == "run":
        foreign.symlink_to(done)
    else:
        foreign.mkdir()
        for name in ("config.yaml", "manifest.json", "metrics.jsonl"):
            shutil.copy(done / name, foreign)
        if link == "checkpoints":
            (foreign / "checkpoints").symlink_to(done / "checkpoints")
        else:
            (foreign / "checkpoints").mkdir()
            for path in (done / "checkpoints").glob("step-*"):
                (foreign / "checkpoints" / path.name).symlink_to(path)
    said = neuscale("runs", "prune", "foreign", "--yes", "--json")
    assert said.code == 0, said.err
    assert sorted(p.name for p in (done / "checkpoints").iterdir()) == kept


def test_a_sweep_list_names_runs_in_the_runs_folder_only(
    neuscale: Command, runs: Path, tmp_path: Path, tiny_words: list[str]
) -> None:
    folder = runs / "s"
    folder.mkdir(parents=True)
    good = {"name": "s-1", "words": [*tiny_words, "train.max_steps=1"]}
    for bad in (
        {"name": "../../out"},
        {"name": str(tmp_path / "out")},
        {"name": "a\x00b"},
        {"name": 3.5},
        {"words": ["--resume"]},
        {"words": ["run.name=../out"]},
        {"words": "text"},
        {"words": [7]},
        {"words": [str(tmp_path)]},
    ):
        content = {"command": [], "created": "", "fields": [], "runs": [good, good | bad]}
        (folder / "sweep.json").write_text(json.dumps(content))
        said = neuscale("sweep", "--resume", "s")
        assert said.code == 1, (bad, said.err)
        assert "not the list of a sweep" in said.err
        assert "not foreseen" not in said.err
    assert not list(tmp_path.glob("out*"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_in_a_manifest_is_shown_or_refused(
    neuscale: Command, done: Path, data: st.DataObject
) -> None:
    whole = done / "whole.json"
    if not whole.exists():
        shutil.copy(done / "manifest.json", whole)
    manifest = json.loads(whole.read_text())
    manifest["packages"] = {"torch": "2.15"}
    path = data.draw(st.sampled_from(leaves(manifest)))
    (done / "manifest.json").write_text(json.dumps(replaced(manifest, path, data.draw(WRONG))))
    commands = (
        ["runs", "list"],
        ["runs", "show", "done"],
        ["runs", "prune"],
        ["runs", "compare", "done", "done"],
    )
    said = neuscale(*data.draw(st.sampled_from(commands)))
    assert said.code in (0, 1, 2)
    assert "not foreseen" not in said.err, (path, said.err)
    assert "\x1b" not in said.out + said.err
