"""torchrun and `accelerate launch`: their settings are applied or refused, and an error is printed once."""

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neuscale.runs.manifest import read_manifest

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "neuscale")
ACCELERATE = ("-m", "accelerate.commands.launch")


def torchrun(_path: Path) -> tuple[str, ...]:
    return TORCHRUN


def config_file(path: Path, **settings: object) -> tuple[str, ...]:
    """Write a config file like that of `accelerate config`; return Python's arguments to launch with it."""
    answers = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "MULTI_GPU",
        "num_machines": 1,
        "num_processes": 2,
        "mixed_precision": "no",
        "use_cpu": False,
    }
    path.write_text(json.dumps(answers | settings))  # JSON is valid YAML
    return (*ACCELERATE, "--config_file", str(path), "-m", "neuscale")


def test_accelerate_launch_trains_in_two_processes_as_its_config_file_says(
    start: Callable[..., Any], runs: Path, tmp_path: Path, tiny_words: list[str]
) -> None:
    program = config_file(tmp_path / "accelerate.yaml", mixed_precision="bf16")
    said = start("train", *tiny_words, "train.max_steps=2", "run.name=two", program=program).end(120)
    assert said.code == 0, said.err
    manifest = read_manifest(runs / "two" / "manifest.json")
    assert manifest["status"] == "finished"
    assert manifest["machine"]["processes"] == 2
    assert manifest["precision"] == "bf16"
    assert [path.name for path in runs.iterdir()] == ["two"]


@pytest.mark.parametrize("program", [torchrun, config_file])
def test_an_error_of_both_processes_is_said_once(
    start: Callable[..., Any],
    tmp_path: Path,
    tiny_words: list[str],
    program: Callable[[Path], tuple[str, ...]],
) -> None:
    words = [*tiny_words, "model.patch_size=3"]
    said = start("train", *words, program=program(tmp_path / "accelerate.yaml")).end(120)
    assert said.code != 0
    assert said.err.count("an image of 8 pixels does not divide into patches of 3") == 1
    assert said.err.count("error: ") == 1


def test_fsdp_in_a_config_file_is_refused_by_name(
    start: Callable[..., Any], runs: Path, tmp_path: Path, tiny_words: list[str]
) -> None:
    program = config_file(
        tmp_path / "accelerate.yaml", distributed_type="FSDP", fsdp_config={"fsdp_version": 2}
    )
    said = start("train", *tiny_words, program=program).end(120)
    assert said.code != 0
    assert said.err.count("accelerate asks for FSDP (ACCELERATE_USE_FSDP=true), which is not supported") == 1
    assert not runs.exists()


@pytest.mark.parametrize(
    ("environment", "words", "says"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, [], "accelerate asks for DeepSpeed"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, [], "accelerate asks for Megatron-LM"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, [], "accelerate asks for parallelism_config"),
        ({"ACCELERATE_USE_SAGEMAKER": "true"}, [], "accelerate asks for SageMaker"),
        ({"ACCELERATE_IN_TPU_POD": "1"}, [], "accelerate asks for a TPU"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, [], "gradient_accumulation_steps"),
        ({"ACCELERATE_GRADIENT_CLIPPING": "1.0"}, [], "optim.clip_grad_norm"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, [], "dynamo_backend"),
        ({"ACCELERATE_TORCH_DEVICE": "meta"}, [], "use run.device"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, [], "mixed_precision fp8"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, [], "accelerate's mixed_precision fp16 needs a GPU"),
        (
            {"ACCELERATE_MIXED_PRECISION": "bf16"},
            ["train.precision=fp32"],
            "train.precision=fp32 and accelerate's mixed_precision (ACCELERATE_MIXED_PRECISION=bf16) contra",
        ),
        (
            {"ACCELERATE_USE_CPU": "True"},
            ["run.device=cuda"],
            "run.device=cuda and accelerate's use_cpu (ACCELERATE_USE_CPU=True) contradict",
        ),
        ({"ACCELERATE_USE_CPU": "True", "MASTER_PORT": "29500"}, [], "neuscale train --processes N"),
    ],
)
def test_what_accelerate_asks_for_and_cannot_have_is_named(
    train: Callable[..., Any],
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    words: list[str],
    says: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    said = train(*words)
    assert said.code == 2
    assert says in said.words
    assert not runs.exists()


@pytest.mark.parametrize(
    ("asked", "words", "precision"),
    [
        ("bf16", [], "bf16"),
        ("no", [], "fp32"),
        ("no", ["train.precision=bf16"], "bf16"),  # "no" is also accelerate's default
        ("bf16", ["train.precision=bf16"], "bf16"),
    ],
)
def test_the_precision_that_accelerate_asks_for_is_taken(
    train: Callable[..., Any],
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    words: list[str],
    precision: str,
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    said = train("run.device=auto", "train.epochs=1", "train.max_steps=1", "run.name=one", *words)
    assert said.code == 0, said.err
    manifest = read_manifest(runs / "one" / "manifest.json")
    assert manifest["precision"] == precision
    assert manifest["machine"]["device"].startswith("CPU")


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_torchrun_ends_when_a_process_is_killed(start_endless: Callable[..., Any]) -> None:
    process = start_endless(program=TORCHRUN)
    workers = process.workers()
    workers[0].send_signal(signal.SIGKILL)
    said = process.end(30)
    assert said.code != 0
    assert said.err.count("error: ") <= 1
    assert not [worker for worker in workers if worker.is_running()]
