"""Every option of the commands that create runs reaches the argument that it sets."""

import sys
import types
from contextlib import nullcontext
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import torch

from neuscale.config import Config, compose_config
from neuscale.distributed.nodes import Nodes
from neuscale.slurm.site import Site
from neuscale.sweep.processes import Swept

from .options import CALLED, NOT_CALLED, Callees, Named, Option, commands, options_of

IMAGE, VENV, OWN, SITE = Path("image.sif"), Path("venv"), Path("own"), Path("site.env")

BASE = {
    "train": ["train", "optim.lr=0.5"],
    "sweep": ["sweep", "run.seed=0,1", "optim.lr=1,2"],
    "submit": ["submit", "optim.lr=0.5"],
    "doctor": ["doctor"],
    "bench ops": ["bench", "ops"],
    "bench step": ["bench", "step"],
}
OPTIONS: dict[str, list[Option]] = {
    "train": [
        Option(["--gpus", "0"], "train.config.run.device", "cpu", "auto"),
        Option(["--gpus", "1"], "train.config.run.device", "cuda", "auto"),
        Option(["--gpus", "1"], "check_gpus.wanted", 1, NOT_CALLED),
        Option(["--gpus", "4"], "launch.processes", 4, NOT_CALLED),
        Option(["--gpus", "4"], "launch.arguments", ["train", "optim.lr=0.5", "run.device=cuda"], NOT_CALLED),
        Option(["--gpus", "4"], "check_gpus.wanted", 4, NOT_CALLED),
        Option(["--gpus", "4"], "train", NOT_CALLED, CALLED),
        Option(["--gpus", "4", "--processes", "4"], "check_gpus.wanted", 4, NOT_CALLED),
        Option(["--processes", "1"], "train.config.run.device", "cpu", "auto"),
        Option(["--processes", "2"], "launch.processes", 2, NOT_CALLED),
        Option(["--processes", "2"], "check_gpus", NOT_CALLED, NOT_CALLED),
        Option(
            ["--processes", "2", "--json"],
            "launch.arguments",
            ["train", "optim.lr=0.5", "run.device=cpu", "--json"],
            NOT_CALLED,
        ),
        Option(["--resume"], "configure.resume", True, False),
        Option(["--resume", "--checkpoint", "7"], "_go_back.name", "7", NOT_CALLED),
        Option(["run.seed=3"], "configure.overrides", ["optim.lr=0.5", "run.seed=3"], ["optim.lr=0.5"]),
        Option(["--config", "c.yaml"], "configure.file", Path("c.yaml"), None),
        Option(["--print-config"], "train", NOT_CALLED, CALLED),
        Option(["--print-config"], "annotated_yaml", CALLED, NOT_CALLED),
        Option(["--json"], "_show_result.as_json", True, False),
    ],
    "sweep": [
        Option(["--name", "mine"], "plan_sweep.name", "mine", None),
        Option(["train.epochs=1"], "plan_sweep.fields", ["run.seed", "optim.lr"], ["run.seed", "optim.lr"]),
        Option(["--random", "3"], "sampled_overrides.count", 3, NOT_CALLED),
        Option(["--random", "3"], "sampled_overrides.seed", 0, NOT_CALLED),
        Option(["--random", "3", "--seed", "7"], "sampled_overrides.seed", 7, NOT_CALLED),
        Option(["--random", "3"], "sweep_overrides", NOT_CALLED, CALLED),
        Option(["--jobs", "3"], "choose_places.jobs", 3, None),
        Option(["--jobs", "3"], "run_sweep.places", ["a place"], ["a place"]),
        Option(["--dry-run"], "_list.as_json", False, NOT_CALLED),
        Option(["--dry-run", "--json"], "_list.as_json", True, NOT_CALLED),
        Option(["--dry-run"], "run_sweep", NOT_CALLED, CALLED),
        Option(["--dry-run"], "store_sweep", NOT_CALLED, CALLED),
        Option(["--json"], "_show.as_json", True, False),
        Option(["run.device=cpu"], "choose_places.on_cpu", True, False),
    ],
    "submit": [
        Option(["--nodes", "2"], "batch_script.job.nodes", 2, 1),
        Option(["--gpus", "4"], "batch_script.job.gpus", 4, 1),
        Option(["--gpus", "4"], "batch_script.job.processes", 4, 1),
        Option(["--gpus", "4"], "batch_script.job.cpus", 16, 4),
        Option(["--gpus", "0"], "batch_script.job.gpus", 0, 1),
        Option(["--gpu-type", "H100"], "batch_script.job.gpu_type", "H100", None),
        Option(["--processes", "8"], "batch_script.job.processes", 8, 1),
        Option(["--processes", "8"], "batch_script.job.gpus", 0, 1),
        Option(["--cpus", "9"], "batch_script.job.cpus", 9, 4),
        Option(["--mem", "64G"], "batch_script.job.memory", "64G", None),
        Option(["--time", "90m"], "batch_script.job.seconds", 5400.0, 28800.0),
        Option(["--lead", "7m"], "batch_script.job.lead", 420.0, 300.0),
        Option(["--partition", "p"], "batch_script.job.partition", "p", "site-p"),
        Option(["-p", "p"], "check_partition.name", "p", "site-p"),
        Option(["--nodes", "2"], "check_partition.nodes", 2, 1),
        Option(["--cpus", "9"], "check_partition.cores", 9, 4),
        Option(["--time", "90m"], "check_partition.seconds", 5400.0, 28800.0),
        Option(["--account", "a"], "batch_script.job.account", "a", "site-a"),
        Option(["-A", "a"], "batch_script.job.account", "a", "site-a"),
        Option(["--sif", str(IMAGE)], "batch_script.job.sif", Named("image.sif"), None),
        Option(["--venv"], "batch_script.job.venv", Named("own"), Named("venv")),
        Option(["--site", str(SITE)], "read_site.file", SITE, None),
        Option(["--sbatch", "--a=1 --b='x y'"], "batch_script.job.sbatch", ["--a=1", "--b=x y"], []),
        Option(["--dry-run"], "submit", NOT_CALLED, CALLED),
        Option(["--dry-run"], "record_submission", NOT_CALLED, CALLED),
        Option(["--dry-run"], "check_sbatch", NOT_CALLED, CALLED),
        Option(["run.name=mine"], "batch_script.job.name", "mine", ANY),
    ],
    "doctor": [
        Option(["--cluster"], "_examine_cluster.as_json", False, NOT_CALLED),
        Option(["--cluster", "--json"], "_examine_cluster.as_json", True, NOT_CALLED),
        Option(["--json"], "print_json", CALLED, NOT_CALLED),
        Option(["--cluster"], "examine", NOT_CALLED, CALLED),
    ],
    "bench ops": [
        Option(["--device", "cpu"], "check_device.device", "cpu", "auto"),
        Option(["--device", "cpu"], "measure_ops.device.type", "cpu", "cuda"),
        Option(["--rounds", "3"], "measure_ops.rounds", 3, 9),
        Option(["--only", "gelu"], "measure_ops.only", "gelu", ""),
        Option(["--json"], "print_json", CALLED, NOT_CALLED),
    ],
    "bench step": [
        Option(["--device", "cpu"], "check_device.device", "cpu", "auto"),
        Option(["--device", "cpu"], "measure_steps.device.type", "cpu", "cuda"),
        Option(["--precision", "fp32"], "measure_steps.precision", "fp32", "bf16"),
        Option(["--precision", "fp32"], "resolve_precision.precision", "fp32", "bf16"),
        Option(["--batch", "7"], "measure_steps.batch", 7, 64),
        Option(["--rounds", "2"], "measure_steps.rounds", 2, 5),
        Option(["--no-compile"], "measure_steps.with_compile", False, True),
        Option(["--compile"], "measure_steps.with_compile", True, True),
        Option(["--no-compile"], "check_compiler", NOT_CALLED, CALLED),
        Option(["--json"], "print_json", CALLED, NOT_CALLED),
    ],
}


@pytest.mark.parametrize("command", OPTIONS)
def test_every_option_is_tried(command: str) -> None:
    tried = {word for option in OPTIONS[command] for word in option.words if word.startswith("--")}
    apart = {"sweep": {"--resume"}}.get(command, set())
    assert tried | apart >= {option.opts[0] for option in options_of(commands()[command])}


@pytest.fixture
def callees(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callees:
    """Fakes for everything that these commands start or call."""
    for name in ("WORLD_SIZE", "NEUSCALE_WORKER_REPORTS", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NEUSCALE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("NEUSCALE_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    IMAGE.touch()
    for folder in (VENV, OWN):
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "neuscale").touch()
    monkeypatch.setattr(sys, "prefix", str(OWN.absolute()))
    monkeypatch.setattr(torch, "set_num_threads", lambda _count: None)
    found = Callees(monkeypatch)
    for where, answer in stand_ins(tmp_path).items():
        found.stand_in(where, answer)
    return found


def stand_ins(folder: Path) -> dict[str, Any]:
    site = {
        "SCRATCH": str(folder / "scratch"),
        "SBATCH_PARTITION": "site-p",
        "SBATCH_ACCOUNT": "site-a",
        "NEUSCALE_VENV": str(VENV.absolute()),
    }
    cached = cache(lambda *words: compose_config(list(words)))

    def composed(overrides: list[str], **_: Any) -> Config:
        return deepcopy(cached(*overrides))

    trained = types.SimpleNamespace(is_main=True, outcome=types.SimpleNamespace(stopped_by=None))

    a_run = types.SimpleNamespace(path=Path("a"), name="a")
    planned = types.SimpleNamespace(finished=True, words=["run.seed=0", "optim.lr=1"])
    sweep = types.SimpleNamespace(name="s", runs=[planned], held=nullcontext)

    def plan(lists: Any, fields: Any, name: Any) -> Any:
        planned.words = lists[0]
        return sweep

    return {
        "neuscale.cli.overrides.configure": lambda **asked: (
            composed(**asked),
            a_run if asked["resume"] else None,
        ),
        "neuscale.cli.train._go_back": None,
        "neuscale.config.compose_config": composed,
        "neuscale.config.compose.annotated_yaml": "",
        "neuscale.hardware.check_gpus": None,
        "neuscale.distributed.launch.launch": 0,
        "neuscale.distributed.nodes.srun_nodes": Nodes(),
        "neuscale.data.open.open_data": None,
        "neuscale.training.run.train": trained,
        "neuscale.cli.train._show_result": None,
        "neuscale.sweep.grid.sampled_overrides": [["run.seed=0"]],
        "neuscale.sweep.grid.sweep_overrides": lambda overrides: [overrides],
        "neuscale.sweep.folder.plan_sweep": plan,
        "neuscale.sweep.folder.store_sweep": None,
        "neuscale.sweep.folder.open_sweep": sweep,
        "neuscale.sweep.processes.choose_places": ["a place"],
        "neuscale.sweep.processes.run_sweep": Swept([], None),
        "neuscale.cli.sweep._show": None,
        "neuscale.cli.sweep._list": None,
        "neuscale.slurm.script.batch_script": "",
        "neuscale.slurm.commands.check_sbatch": None,
        "neuscale.slurm.commands.check_partition": None,
        "neuscale.slurm.commands.submit": "77",
        "neuscale.slurm.site.read_site": Site(None, site),
        "neuscale.slurm.jobs.record_submission": types.SimpleNamespace(names=["mine"]),
        "neuscale.doctor.machine.examine": {"problems": [], "packages": {}},
        "neuscale.cli.doctor._examine_cluster": 0,
        "neuscale.cli.console.print_json": None,
        "neuscale.native_ops.native_ops": (object(), ""),
        "neuscale.hardware.check_compiler": None,
        "neuscale.distributed.accelerator.check_device": None,
        "neuscale.distributed.accelerator.resolve_device": lambda device: (
            "cuda" if device == "auto" else device
        ),
        "neuscale.distributed.accelerator.resolve_precision": "fp32",
        "neuscale.benchmark.ops.measure_ops": [types.SimpleNamespace(case="one")],
        "neuscale.benchmark.ops.report": {},
        "neuscale.benchmark.ops.table_lines": [],
        "neuscale.benchmark.step.measure_steps": [],
    }


@pytest.mark.parametrize("command", OPTIONS)
def test_every_option_reaches_what_it_names(command: str, callees: Callees) -> None:
    callees.check(BASE[command], OPTIONS[command])


def test_a_sweep_that_goes_on_is_the_one_that_is_named(callees: Callees) -> None:
    options = [
        Option(["mine"], "open_sweep.name", "mine", None),
        Option(["mine"], "store_sweep", NOT_CALLED, NOT_CALLED),
        Option(["mine"], "plan_sweep", NOT_CALLED, NOT_CALLED),
        Option(["--jobs", "2"], "choose_places.jobs", 2, None),
    ]
    callees.check(["sweep", "--resume"], options)


def test_a_run_on_several_nodes_has_as_many_processes_on_each(
    callees: Callees, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = Nodes(2, 1, "b", "a", 9)
    callees.stand_in("neuscale.distributed.nodes.srun_nodes", nodes)
    options = [
        Option(["--gpus", "2"], "launch.processes", 2, 1),
        Option(["--gpus", "2"], "launch.nodes", nodes, nodes),
    ]
    callees.check(BASE["train"], options)
    monkeypatch.setenv("WORLD_SIZE", "4")  # this process is now a worker of a launcher
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):  # set by launchers
        monkeypatch.setenv(name, "1")
    options = [
        Option(["--gpus", "2"], "launch", NOT_CALLED, NOT_CALLED),
        Option(["--gpus", "2"], "train.config.run.device", "cuda", "auto"),
    ]
    callees.check(BASE["train"], options)
