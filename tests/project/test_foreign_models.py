"""Ten models from outside the package can do everything that the package's own models can."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import Said
from neuscale.data.formats.packed import PackedDataset
from neuscale.data.loaders.loader import Batch
from neuscale.training.trainer import Trainer

from .foreign_models import BLOCK, CONVOLUTIONAL, DROPOUT, MODELS

Command = Callable[..., Said]
Project = Callable[[dict[str, str]], Path]

WORDS = [
    "data=image_folder",
    "data.name=photos",
    "model=mine",
    "train.global_batch_size=16",
    "run.device=cpu",
]
WORDS += ["augment=crop_flip", "train.epochs=2", "checkpoint.every_steps=1", "checkpoint.keep_last=9"]


def result(run: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((run / "manifest.json").read_text())["result"]
    return found


@pytest.mark.parametrize("name", MODELS)
def test_it_trains_resumes_evaluates_replays_predicts_and_exports(
    name: str,
    project: Project,
    command: Command,
    photos_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    foreign = MODELS[name]
    if foreign.package:
        pytest.importorskip(foreign.package)
    project({**foreign.files, "conf/model/mine.yaml": foreign.preset})
    torch.set_num_threads(1)
    run = tmp_path / "runs" / "a"
    said = command("train", *WORDS, *foreign.words, "run.name=a")
    assert said.code == 0, said.err
    before = result(run)
    said = command("train", "--resume", "a", "--checkpoint", "step-00000002")
    assert said.code == 0, said.err
    assert result(run)["weights_sha256"] == before["weights_sha256"], "to the last bit"
    found = command("eval", "a", "--checkpoint", "last", "--json").json
    assert found["top1"] == before["last"]["top1"]  # type: ignore[index]
    said = command("runs", "replay", "a")
    assert said.code == 0 and "bitwise equal" in said.out, said.err + said.out
    image = photos_data.parent / "tree" / "val" / "cat" / "0.png"
    (predicted,) = command("predict", "a", str(image), "--json").json["images"]
    assert sum(one["probability"] for one in predicted["predictions"]) == pytest.approx(1, abs=1e-5)
    manifest = json.loads((run / "manifest.json").read_text())
    files = [file["file"] for file in manifest.get("own_code", {}).get("files", [])]
    kept = {file: (run / "code" / file).read_text() for file in files}
    assert kept == foreign.files
    said = command("export", "a", "--to", "torch")
    assert said.code == 0, said.err
    # Load it without the user's code: its modules are removed and cannot be imported again.
    with torch.inference_mode():
        images = PackedDataset.open(photos_data / "packed" / "photos").images("val")[:3]
        pixels = torch.from_numpy(images.copy())
        for module in [module for module in sys.modules if module.split(".")[0] in ("mynet", "parts")]:
            del sys.modules[module]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path / "project")])
        program = torch.export.load(run / "export" / "torch" / "model.pt2")
        assert program.module()(pixels).shape == (3, 3)
    assert "mynet" not in sys.modules


# Each takes about twenty seconds; NEUSCALE_TEST_MODELS=all tests all ten.
KILLED = list(MODELS) if os.environ.get("NEUSCALE_TEST_MODELS") == "all" else ["dropout", "batch norm"]


@pytest.mark.parametrize("name", KILLED)
def test_two_processes_and_a_kill_give_the_same_bits(name: str, project: Project, tmp_path: Path) -> None:
    """The run is killed with SIGKILL, then resumed by two processes that import the module themselves."""
    foreign = MODELS[name]
    if foreign.package:
        pytest.importorskip(foreign.package)
    project({**foreign.files, "conf/model/mine.yaml": foreign.preset})
    words = [*WORDS, *foreign.words, "train.epochs=20", "tracking.trackers=[]"]
    program = [sys.executable, "-P", "-m", "neuscale", "train", *words, "--processes", "2"]
    whole = subprocess.run([*program, "run.name=whole"], capture_output=True, text=True, timeout=200)
    assert whole.returncode == 0, whole.stderr
    killed = subprocess.Popen(
        [*program, "run.name=killed"], stderr=subprocess.DEVNULL, start_new_session=True
    )
    checkpoints = tmp_path / "runs" / "killed" / "checkpoints"
    deadline = time.monotonic() + 120
    while len(list(checkpoints.glob("step-*"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert result(tmp_path / "runs" / "killed") is None, "it was under way"
    resumed = [*program[:5], "--resume", "killed", "--processes", "2"]
    again = subprocess.run(resumed, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0, again.stderr
    found = [result(tmp_path / "runs" / run)["weights_sha256"] for run in ("whole", "killed")]
    assert found[0] == found[1]


def test_onnx_needs_none_of_the_users_code(project: Project, command: Command, tmp_path: Path) -> None:
    if importlib.util.find_spec("onnxscript") is None:
        pytest.skip("ONNX is not installed")
    project({"mynet.py": CONVOLUTIONAL, "conf/model/mine.yaml": "_target_: mynet.Net\n"})
    assert command("train", *WORDS, "run.name=a").code == 0
    said = command("export", "a", "--to", "onnx")
    assert said.code == 0, said.err
    assert "Net of a" in said.out


def test_a_sweep_runs_it_and_lists_and_reports_do_not(
    project: Project, command: Command, tmp_path: Path
) -> None:
    preset = "_target_: mynet.Net\nrate: 0.1\n"
    folder = project({"mynet.py": DROPOUT, "parts/blocks.py": BLOCK, "conf/model/mine.yaml": preset})
    said = command("sweep", *WORDS, "model.rate=0,0.5")
    assert said.code == 0, said.err
    names = sorted(path.parent.name for path in (tmp_path / "runs").glob("*/config.yaml"))
    assert len(names) == 2
    # Listing, comparing and reporting run no line of the user's code.
    (folder / "mynet.py").write_text("raise SystemExit('it was run')\n")
    assert command("runs", "list").code == 0
    said = command("runs", "compare", *names)
    assert said.code == 0 and "model.args" in said.out
    assert command("runs", "show", names[0]).code == 0
    said = command("runs", "report", names[0])
    assert said.code == 0 and "code of its own, which a report does not run" in said.err


def test_the_copy_is_what_was_imported_though_the_file_is_edited_meanwhile(
    project: Project, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project({"mynet.py": CONVOLUTIONAL, "conf/model/mine.yaml": "_target_: mynet.Net\n"})
    real = Trainer.train_step

    def edited(self: Trainer, batches: list[Batch]) -> None:
        (folder / "mynet.py").write_text("# another idea\n")
        real(self, batches)

    monkeypatch.setattr(Trainer, "train_step", edited)
    assert command("train", *WORDS, "run.name=a").code == 0
    assert (tmp_path / "runs" / "a" / "code" / "mynet.py").read_text() == CONVOLUTIONAL
    said = command("eval", "a")
    assert said.code == 2 and "mynet.py has changed" in said.err
