"""The run that `--resume` chooses, and the settings that may change on resume."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neuscale.cli import run
from neuscale.data.prepare import prepare
from neuscale.runs.folder import RunFolder
from neuscale.runs.manifest import read_manifest, write_manifest


def stop(run: Path, age: int = 0) -> None:
    """Make a finished run look stopped after its first checkpoint, and started `age` seconds earlier."""
    manifest = read_manifest(run / "manifest.json") | {"status": "stopped"}
    write_manifest(run / "manifest.json", manifest)
    for checkpoint in sorted((run / "checkpoints").glob("step-*"))[1:]:
        checkpoint.rename(run / checkpoint.name)
    when = (run / "config.yaml").stat().st_mtime - age
    os.utime(run / "config.yaml", (when, when))


def went_on(said: Any, run: Path, steps: int = 15) -> None:
    assert said.code == 0, said.err
    assert said.json["run"] == str(run)
    assert said.json["steps"] == steps
    assert len(read_manifest(run / "manifest.json")["resumed"]) == 1


def test_a_run_by_name_or_path(neuscale: Callable[..., Any], done: Path) -> None:
    stop(done)
    went_on(neuscale("train", "done", "--resume", "--json"), done)


def test_a_run_elsewhere_by_path(
    neuscale: Callable[..., Any], done: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stop(done)
    monkeypatch.setenv("NEUSCALE_RUNS", str(tmp_path / "other runs"))
    went_on(neuscale("train", "--resume", str(done), "--json"), done)
    # The printed commands have to find the run again.
    assert f"neuscale eval {done}" in neuscale("train", "--resume", str(done)).words


def test_a_run_elsewhere_in_several_processes(
    neuscale: Callable[..., Any], done: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Workers get the path of the run and every changed field."""
    stop(done)
    monkeypatch.setenv("NEUSCALE_RUNS", str(tmp_path / "other"))
    monkeypatch.setattr("neuscale.distributed.launch.launch", lambda words, _processes, _nodes: run(words))
    words = ["train.epochs=4", "--processes", "2", "--json"]
    went_on(neuscale("train", "--resume", str(done), *words), done, 20)


def test_run_name_goes_on_if_it_is_there_and_starts_if_not(train: Callable[..., Any], done: Path) -> None:
    """One command serves a job that is requeued after each time limit: it starts the run or resumes it."""
    stop(done)
    words = ["train.epochs=3", "checkpoint.keep_last=9", "--resume", "--json"]
    went_on(train("run.name=done", *words), done)
    said = train("run.name=fresh", *words)
    assert (said.code, said.json["run"], said.json["steps"]) == (0, str(done.parent / "fresh"), 15)
    assert read_manifest(done.parent / "fresh" / "manifest.json")["resumed"] == []


def test_without_a_name_the_newest_unfinished_run(
    train: Callable[..., Any], neuscale: Callable[..., Any], done: Path
) -> None:
    for name in ("old", "newest"):
        assert train("train.epochs=2", f"run.name={name}", "checkpoint.keep_last=9").code == 0
    stop(done, age=500)
    stop(done.parent / "old", age=100)
    went_on(neuscale("train", "--resume", "--json"), done.parent / "old", 10)
    words = ["experiment=quickstart", "train.epochs=3", "checkpoint.keep_last=9"]
    went_on(train(*words, "--resume", "--json"), done)
    # No unfinished run is left, so a new one starts.
    said = train("--resume", "train.max_steps=1", "--json")
    assert said.code == 0
    assert said.json["run"] not in {str(done.parent / name) for name in ("old", "newest", "done")}


def test_a_run_may_go_on_on_another_device_than_it_began_on(neuscale: Callable[..., Any], done: Path) -> None:
    """A run trained with run.device=cpu resumes with run.device=auto, which uses a GPU if there is one."""
    stop(done)
    for words, device in (([], "auto"), (["run.device=cpu"], "cpu")):
        shown = neuscale("train", "done", "--resume", *words, "--print-config").out
        assert f"device: {device}" in shown.splitlines()[-1]


def test_another_experiment_does_not_go_on_with_it(neuscale: Callable[..., Any], done: Path) -> None:
    stop(done)
    shown = neuscale("train", "--resume", "experiment=cifar10_swin_t", "--print-config").out
    assert "name: cifar10" in shown


def test_a_finished_run_is_left_as_it_is(neuscale: Callable[..., Any], done: Path) -> None:
    before = (done / "manifest.json").read_bytes(), (done / "metrics.jsonl").read_bytes()
    said = neuscale("train", "--resume", "done", "--json")
    assert (said.code, said.json["status"], said.json["steps"]) == (0, "finished", 15)
    assert "finished already; to train longer, raise train.epochs" in said.words
    assert before == ((done / "manifest.json").read_bytes(), (done / "metrics.jsonl").read_bytes())


@pytest.mark.parametrize(
    "word", ["model.embed_dim=16", "train.global_batch_size=6", "run.seed=1", "data.name=single"]
)
def test_what_would_make_it_another_run(neuscale: Callable[..., Any], done: Path, word: str) -> None:
    before = (done / "manifest.json").read_bytes()
    said = neuscale("train", "--resume", "done", "train.epochs=4", word)
    assert said.code == 2
    assert f"{done}: {word.partition('.')[0]}" in said.words
    assert "cannot change in a run that has started" in said.words
    assert (done / "manifest.json").read_bytes() == before


def test_other_data_under_the_same_name(
    neuscale: Callable[..., Any],
    done: Path,
    tmp_path: Path,
    build_image_tree: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tree = build_image_tree(tmp_path / "tree", train=20, val=7, seed=1)
    prepare("image_folder", root=tmp_path / "data", source=tree, save_as="tiny")
    monkeypatch.setenv("NEUSCALE_DATA", str(tmp_path / "data"))
    said = neuscale("train", "--resume", "done", "train.epochs=4")
    assert said.code == 2
    assert f"{done}: was trained on other data" in said.words


def test_more_epochs(neuscale: Callable[..., Any], done: Path) -> None:
    went_on(neuscale("train", "--resume", "done", "train.epochs=4", "--json"), done, 20)


def test_more_epochs_are_remembered(neuscale: Callable[..., Any], done: Path) -> None:
    """A new train.epochs is stored, so that the printed resume command continues to the new end."""
    assert neuscale("train", "--resume", "done", "train.epochs=4").code == 0
    said = neuscale("train", "--resume", "done", "--print-config")
    assert "epochs: 4" in said.out


def test_damaged_newest_checkpoint_is_passed_over(neuscale: Callable[..., Any], done: Path) -> None:
    weights = done / "checkpoints" / "step-00000015" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    said = neuscale("train", "--resume", "done", "--json")
    assert (said.code, said.json["steps"]) == (0, 15)
    assert f"{weights}: damaged" in said.words
    assert "resuming at step 10 of 15" in said.words
    assert len(weights.read_bytes()) > 0


def test_a_stranger_among_the_runs_is_in_nobodys_way(train: Callable[..., Any], done: Path) -> None:
    stop(done, age=100)
    (done.parent / "empty").mkdir()
    (done.parent / "broken").mkdir()
    (done.parent / "broken" / "config.yaml").write_text("{]")
    said = train("--resume", "experiment=quickstart", "train.epochs=3", "checkpoint.keep_last=9", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["run"] == str(done)


def test_fields_are_those_of_the_run_and_not_of_the_usual_recipe(
    train: Callable[..., Any], neuscale: Callable[..., Any], done: Path
) -> None:
    """The default recipe's optimizer has no `nesterov`; overrides apply to the run's own configuration."""
    assert train("optim=sgd", "train.epochs=1", "run.name=other").code == 0
    stop(done, age=500)
    stop(done.parent / "other")
    for words in (["other"], [], ["run.name=other"]):
        shown = neuscale("train", "--resume", *words, "optim.nesterov=false", "--print-config")
        assert shown.code == 0, shown.err
        lines = [line.split("#") for line in shown.out.splitlines() if "nesterov" in line or " lr:" in line]
        assert [(value.strip(), source.strip()) for value, source in lines] == [
            ("lr: 0.1", "run other"),
            ("nesterov: false", "command line"),
        ]


def test_a_run_that_is_being_trained_is_not_gone_on_with(neuscale: Callable[..., Any], done: Path) -> None:
    stop(done)
    with RunFolder(done).held():
        shown = neuscale("train", "--resume", "--print-config")
        assert "# run done" not in shown.out and "experiment=quickstart" in shown.out
    assert "# run done" in neuscale("train", "--resume", "--print-config").out


def checkpoints(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("name", ["5", "step-00000005", "best"])
def test_from_a_chosen_checkpoint(
    train: Callable[..., Any], neuscale: Callable[..., Any], runs: Path, name: str
) -> None:
    """Later checkpoints are set aside, not deleted; training again gives the same weights and metrics."""
    assert train("train.epochs=3", "checkpoint.keep_last=9", "run.name=a").code == 0
    run = runs / "a"
    before = {
        path.relative_to(run): path.read_bytes() for path in run.glob("checkpoints/step-*/*.safetensors")
    }
    lines = (run / "metrics.jsonl").read_text()
    best = int(
        json.loads((run / "checkpoints" / "best.json").read_text())["checkpoint"].removeprefix("step-")
    )
    start = best if name == "best" else 5
    said = neuscale("train", "--resume", "a", "--checkpoint", name, "--json")
    assert (said.code, said.json["steps"]) == (0, 15), said.err
    after = {
        path.relative_to(run): path.read_bytes() for path in run.glob("checkpoints/step-*/*.safetensors")
    }
    assert after == before and checkpoints(run) == [5, 10, 15]
    kept = [
        {n: v for n, v in json.loads(line).items() if n in ("split", "step", "loss", "top1")}
        for text in (lines, (run / "metrics.jsonl").read_text())
        for line in text.splitlines()
    ]
    assert kept[: len(kept) // 2] == kept[len(kept) // 2 :]
    [aside] = (run / "checkpoints").glob("set-aside-*") if start < 15 else [None]
    if aside is not None:
        assert sorted(int(path.name[-2:]) for path in aside.glob("step-*")) == list(range(start + 5, 16, 5))
        assert f"going back to step {start}; later checkpoints are in {aside}" in said.words
    assert json.loads((run / "checkpoints" / "best.json").read_text())["checkpoint"] == f"step-{best:08d}"


def test_a_checkpoint_that_is_not_there(neuscale: Callable[..., Any], done: Path) -> None:
    said = neuscale("train", "--resume", "done", "--checkpoint", "7")
    assert said.code == 1 and "there is no checkpoint 7; there are step-00000005, step-00000010" in said.words
    assert neuscale("train", "--checkpoint", "7").code == 2
    assert checkpoints(done) == [5, 10, 15]
