"""A user's tracker gets all values; one that fails, hangs or raises SystemExit does not stop training."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neuscale.runs.manifest import read_manifest

Files = dict[str, str]

WORDS = ["data=image_folder", "data.name=photos", "model.embed_dim=8", "model.depths=[1,1]"]
WORDS += ["model.num_heads=[1,1]", "model.patch_size=2", "model.window_size=2", "augment.crop_padding=1"]
WORDS += ["train.global_batch_size=12", "run.device=cpu", "train.log_every_steps=1", "run.name=tracked"]
MINE = ["tracking.trackers=[mine]", "tracking.options.mine._target_=lines.Lines"]

LINES = """
import json

class Lines:
    def __init__(self, folder, name, project, note="none"):
        self.file = open(f"{folder}/lines.jsonl", "a")
        self.write(began=name, project=project, note=note)

    def write(self, **values):
        print("noise")
        print(json.dumps(values), file=self.file, flush=True)

    def store_init_configuration(self, values):
        self.write(lr=values["optim.lr"])

    def log(self, values, step):
        self.write(step=step, **values)

    def log_images(self, images, step):
        self.write(step=step, **{name: list(image.shape) for name, image in images.items()})

    def finish(self):
        self.write(ended=True)
"""


def test_a_tracker_of_ones_own_gets_everything(
    project: Callable[[Files], Path], command: Callable[..., Any]
) -> None:
    runs = project({"lines.py": LINES}).parent / "runs"
    said = command("train", *WORDS, *MINE, "tracking.options.mine.note=hello", "train.epochs=2", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["status"] == "finished"
    lines = [json.loads(line) for line in (runs / "tracked" / "lines.jsonl").read_text().splitlines()]
    assert lines[0] == {"began": "tracked", "project": "neuscale", "note": "hello"}
    assert lines[1].keys() == {"lr"} and lines[-1] == {"ended": True}
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [line["step"] for line in lines if "val/top1" in line] == [4, 8]
    [first, _] = [line["val/confusion"] for line in lines if "val/confusion" in line]
    assert first[0] == 1 and first[3] == 3
    manifest = read_manifest(runs / "tracked" / "manifest.json")
    assert [file["file"] for file in manifest["own_code"]["files"]] == ["lines.py"]
    # A replay runs without the tracker.
    said = command("runs", "replay", "tracked", "--trust")
    assert said.code == 0, said.err
    assert not (runs / "tracked-replay" / "lines.jsonl").exists()


@pytest.mark.parametrize(
    ("fault", "missing"),
    [
        ("def __init__(self): raise OSError('no room')", 7),
        ("def __init__(self): raise SystemExit(3)", 7),
        ("def start(self): raise RuntimeError('not today')", 7),
        ("def log(self, values, step):\n        if step == 2: raise KeyError('two')", 1),
        ("def log(self, values, step): raise KeyboardInterrupt", 5),
        ("def finish(self): raise OSError('no end')", 0),
        ("absent = True", 5),
    ],
)
def test_a_tracker_that_fails_is_told_and_stops_nothing(
    project: Callable[[Files], Path], command: Callable[..., Any], fault: str, missing: int
) -> None:
    code = f"class Lines:\n    {fault}\n"
    if "def log" not in fault and "absent" not in fault:
        code += "    def log(self, values, step): pass\n"
    runs = project({"lines.py": code}).parent / "runs"
    said = command("train", *WORDS, *MINE, "train.max_steps=4", "train.epochs=2", "eval.every_epochs=1")
    assert said.code == 0, said.err
    assert said.err.count("warning: mine: ") == 1 + (missing > 0)
    told = read_manifest(runs / "tracked" / "manifest.json")
    assert told["status"] == "finished"
    assert told["trackers"]["mine"]["missing"] == missing
    assert told["trackers"]["mine"]["error"]
    assert len((runs / "tracked" / "metrics.jsonl").read_text().splitlines()) == 5


def test_a_tracker_that_hangs_holds_up_neither_a_stop_nor_the_end_of_the_process(
    project: Callable[[Files], Path],
) -> None:
    """The tracker also leaves a non-daemon thread behind, for which Python waits at exit."""
    hanging = """
import threading, time

class Lines:
    def log(self, values, step):
        threading.Thread(target=time.sleep, args=(600,), daemon=False).start()
        time.sleep(600)
"""
    runs = project({"lines.py": hanging}).parent / "runs"
    process = subprocess.Popen(
        [sys.executable, "-m", "neuscale", "train", *WORDS, *MINE, "train.epochs=100000"],
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = runs / "tracked" / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 20:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "mine: no answer in 4 s" in err.replace("\n", " ")
    manifest = read_manifest(runs / "tracked" / "manifest.json")
    assert manifest["status"] == "stopped"
    assert manifest["trackers"]["mine"]["missing"] > 10
