"""Runs are found by the names that users gave them, and are never overwritten."""

import dataclasses
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from neuscale.config import compose_config
from neuscale.errors import UsageError
from neuscale.runs.folder import RunFolder, all_runs, create_run, find_run


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEUSCALE_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def begin(name: str | None = None) -> RunFolder:
    return create_run(compose_config([f"run.name={name}"] if name else []))


@pytest.mark.parametrize("name", ["a", "A-1", "swin_t.2026", "0"])
def test_names_that_are_taken_as_they_are(root: Path, name: str) -> None:
    assert begin(name).path == root / name


@pytest.mark.parametrize("name", ["a/b", "../a", ".hidden", "-x", "a b", "ä", "."])
def test_names_that_would_lead_elsewhere(root: Path, name: str) -> None:
    config = compose_config([])
    config.run.name = name
    with pytest.raises(UsageError, match="is not a valid folder name"):
        create_run(config)
    assert not root.exists()


def test_runs_begun_in_the_same_second_are_different_runs() -> None:
    config = compose_config([])
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: create_run(config), range(16)))
    assert len({run.path for run in runs}) == 16
    assert all(run.name.startswith("quickstart-") for run in runs)
    assert len(all_runs()) == 16


def test_a_name_is_given_once() -> None:
    first = begin("mine")
    before = first.config_file.read_bytes()
    with pytest.raises(UsageError, match=r"there is a run of this name(?s:.*)Use `resume`"):
        begin("mine")
    assert first.config_file.read_bytes() == before


def test_the_configuration_comes_back_as_it_was() -> None:
    words = [
        "experiment=tiny_imagenet_vit",
        "optim.lr=3e-4",
        "run.seed=9007199254740993",
        "data.source='a b'",
    ]
    config = compose_config([*words, "model.weights=null", "optim.clip_grad_norm=null"])
    run = create_run(config)
    assert dataclasses.asdict(run.config()) == dataclasses.asdict(config)
    assert type(run.config().model) is type(config.model)
    assert run.config(["train.epochs=7"]).train.epochs == 7
    assert run.config().train.epochs == config.train.epochs


def test_found_by_name_by_path_and_as_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no runs yet"):
        find_run("last")
    one, two = begin("one"), begin("two")
    assert find_run("one").path == one.path
    assert find_run("last").path == two.path
    assert [run.name for run in all_runs()] == ["two", "one"]
    assert one.argument == "one"

    monkeypatch.setenv("NEUSCALE_RUNS", str(tmp_path / "others"))
    assert find_run(str(one.path)).path == one.path
    assert find_run(one.argument).path == one.path  # so that commands in printed messages find the run
    monkeypatch.chdir(tmp_path)
    assert find_run("runs/one").path.samefile(one.path)


def test_not_found_names_the_nearest() -> None:
    for name in ("baseline", "wide"):
        begin(name)
    with pytest.raises(UsageError, match="Did you mean 'baseline'"):
        find_run("basline")
    with pytest.raises(UsageError, match="Runs there: wide, baseline"):
        find_run("xyz")


def test_what_is_no_run_is_not_listed(root: Path) -> None:
    begin("one")
    (root / "notes").mkdir()
    (root / "notes.txt").write_text("")
    assert [run.name for run in all_runs()] == ["one"]


def test_a_run_in_training_is_not_trained_by_another_process(tmp_path: Path) -> None:
    """Two processes would overwrite each other's checkpoints."""
    run = RunFolder(tmp_path)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UsageError, match="another process is training this run"), run.held():
        pass
    holder.kill()
    holder.wait()
    with run.held():  # the lock of a killed process is free
        pass


HOLD = """
import sys
from pathlib import Path
from neuscale.runs.folder import RunFolder
with RunFolder(Path(sys.argv[1])).held():
    print("held", flush=True)
    sys.stdin.read()
"""
