"""Two real processes that train one model agree on BatchNorm's statistics and on the step to stop at."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from neuscale.evaluation.evaluate import share_running_statistics

PROGRAM = """
import json, os, signal, sys
import torch, torch.distributed as dist
from torch import nn
from neuscale.training.stopping import Deadline
from neuscale.evaluation.evaluate import share_running_statistics
from neuscale.training.stopping import StopRequest

def run(rank):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/meet", rank=rank, world_size=2)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False))
    model.append(nn.Sequential(nn.BatchNorm1d(2)))
    for number, layer in enumerate((model[0], model[3][0])):
        layer.running_mean.fill_(10 * rank + number)
        layer.running_var.fill_(10 * rank + number + 0.5)
        layer.num_batches_tracked.fill_(7 * rank + 3)
        layer.weight.data.fill_(rank)
    share_running_statistics(model)
    state = model.state_dict()
    found = {name: state[name].flatten()[0].item() for name in state if "2." not in name}
    steps = 0
    with StopRequest(torch.device("cpu"), Deadline(None)) as stop:
        while not stop.agreed(steps):
            steps += 1
            if rank == 1 and steps == 23:
                os.kill(os.getpid(), signal.SIGTERM)
            assert steps < 100
    found |= {"steps": steps, "signal": stop.signal}
    open(f"{sys.argv[1]}/{rank}", "w").write(json.dumps(found))

pid = os.fork()
run(1 if pid == 0 else 0)
if pid == 0:
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """Results of the two ranks."""
    folder = tmp_path_factory.mktemp("two")
    app = str(Path(__file__).parents[2] / "app")
    plain = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        env=plain | {"PYTHONPATH": app, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / str(rank)).read_text()) for rank in (0, 1)]


def test_all_evaluate_with_the_statistics_of_process_0_which_are_saved(found: list[dict[str, float]]) -> None:
    for rank in (0, 1):
        for number, layer in enumerate(("0", "3.0")):
            assert found[rank][f"{layer}.running_mean"] == number
            assert found[rank][f"{layer}.running_var"] == number + 0.5
            assert found[rank][f"{layer}.num_batches_tracked"] == 3
    assert [rank["0.weight"] for rank in found] == [0, 1], "weights are no statistics"


def test_a_signal_to_one_process_stops_both_after_the_same_step(found: list[dict[str, float]]) -> None:
    assert [rank["steps"] for rank in found] == [23, 23]
    assert [rank["signal"] for rank in found] == [None, "SIGTERM"]


def test_one_process_has_its_own_statistics() -> None:
    layer = nn.BatchNorm1d(2)
    layer(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    share_running_statistics(layer)
    assert layer.running_mean is not None
    assert torch.allclose(layer.running_mean, torch.tensor([0.2, 0.4]))
