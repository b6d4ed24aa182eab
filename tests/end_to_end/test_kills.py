"""A run that is killed repeatedly, also while it saves, ends in the same state as an uninterrupted one."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import TINY_RECIPE
from neuscale.data.prepare import prepare
from neuscale.runs.metrics import TIMINGS
from neuscale.training.checkpoint import CheckpointFolder, open_checkpoint

RECIPE = [
    *TINY_RECIPE,
    "optim=adamw",
    "train.log_every_steps=1",
    "train.ema_decay=0.9",
    "checkpoint.every_steps=3",
    "eval.every_epochs=4",
    "tracking.trackers=[]",
    "model.drop_path_rate=0.2",
    "augment.mixup_alpha=0.4",
]

# Starting Python takes longer than a piece of this training, so the program imports everything once
# and forks for each start. The killed processes are still separate ones.
PROGRAM = """
import json, os, random, signal, socket, sys, time
import neuscale.cli, neuscale.training.run, neuscale.training.tracking.tensorboard
import torch
torch.set_num_threads(1)
words, processes, kills, runs = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]

def start(name):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    children = []
    for rank in range(processes):
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            if processes > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
                os.environ |= {"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}
                os.environ["MASTER_PORT"] = port
            os._exit(neuscale.cli.run(["train", *words, "--resume", f"run.name={name}"]))
        children.append(pid)
    return children

def wait(children):
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]

assert wait(start("whole")) == [0] * processes
metrics, checkpoints = f"{runs}/killed/metrics.jsonl", f"{runs}/killed/checkpoints"
with open(f"{runs}/whole/manifest.json") as file:  # so that half of it is left after the last kill
    longest = min(0.4, json.load(file)["result"]["train_seconds"] / kills)

def lines():
    return os.path.getsize(metrics) if os.path.exists(metrics) else 0

def send(children, number):
    for child in children:
        try:
            os.kill(child, number)
        except ProcessLookupError:
            pass

moments, done, saving, asked = random.Random(7), 0, 0, 0
while done < kills:
    children = start("killed")
    began, before = time.monotonic(), lines()
    if done % 5:  # while it trains; else at any moment of its start
        while lines() <= before and time.monotonic() < began + 30:
            time.sleep(0.005)
    time.sleep(moments.uniform(0.0, longest))
    # Asked to stop, twice as make does it, or once and killed ten seconds later, which are shortened here.
    kind = moments.choice(["kill", "kill", "ask", "ask twice", "ask and kill"])
    if kind != "kill":
        send(children, signal.SIGTERM)
    if kind == "ask twice":
        time.sleep(moments.uniform(0.0, 0.1))
        send(children, signal.SIGTERM)
    if kind == "ask and kill":
        time.sleep(moments.uniform(0.0, 0.2))
    if "kill" in kind:
        send(children, signal.SIGKILL)
    codes = wait(children)
    # In its start, before it could save anything, a request ends it as any program; where it ended one
    # process before that could hear it, the others fail without it.
    ended = {0, 75, -signal.SIGTERM, 143}
    alone = {1, -signal.SIGTERM, 143} if -signal.SIGTERM in codes else set()
    assert "kill" in kind or set(codes) <= ended or set(codes) <= alone, (kind, codes)
    asked += 75 in codes
    done += any(codes)
    if os.path.isdir(checkpoints):
        saving += any(name.startswith(".partial") for name in os.listdir(checkpoints))
assert wait(start("killed")) == [0] * processes
print(json.dumps({"kills": done, "while saving": saving, "saved when asked": asked}))
"""


def final(run: Path) -> dict[str, Any]:
    """Final state of a run: weights, average, optimizer, metrics and curves, without timings."""
    checkpoint = open_checkpoint(CheckpointFolder(run / "checkpoints").paths()[-1])
    state = checkpoint.training_state()
    del state["train_seconds"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for name in TIMINGS:
            line.pop(name, None)
    return {
        "weights": checkpoint.weights(),
        "average": checkpoint.average(),
        "loop": checkpoint.loop,
        "metrics": checkpoint.metrics,
        "state": state,
        "curves": lines,
        "best": json.loads((run / "checkpoints" / "best.json").read_text()),
    }


def same(a: Any, b: Any) -> bool:
    if hasattr(a, "equal"):
        return bool(a.equal(b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


# NEUSCALE_TEST_KILLS=30 multiplies the number of kills and of epochs by 30.
OFTEN = int(os.environ.get("NEUSCALE_TEST_KILLS", "1"))


# DDP may change the order in which four processes are summed: fewer kills and steps suffice to show it.
@pytest.mark.parametrize(("processes", "kills", "epochs"), [(1, 10, 60), (2, 8, 40), (4, 4, 20)])
def test_killed_and_started_again_it_loses_nothing(
    build_image_tree: Callable[..., Path], tmp_path: Path, processes: int, kills: int, epochs: int
) -> None:
    tree = build_image_tree(tmp_path / "tree", train=20, val=7)
    prepare("image_folder", root=tmp_path / "data", source=tree, save_as="tiny")
    environment = os.environ | {
        "NEUSCALE_DATA": str(tmp_path / "data"),
        "NEUSCALE_RUNS": str(tmp_path / "runs"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            PROGRAM,
            json.dumps([*RECIPE, f"train.epochs={epochs * OFTEN}"]),
            str(processes),
            str(kills * OFTEN),
            str(tmp_path / "runs"),
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280 * OFTEN,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["kills"] == kills * OFTEN
    whole, killed = (final(tmp_path / "runs" / name) for name in ("whole", "killed"))
    for name, value in whole.items():
        assert same(value, killed[name]), name
    resumed = json.loads((tmp_path / "runs" / "killed" / "manifest.json").read_text())["resumed"]
    assert len(resumed) >= kills // 2, "most of the kills should have hit a run under way"
