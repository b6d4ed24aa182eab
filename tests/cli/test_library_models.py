"""torchvision and timm models on the command line: trained, resumed and evaluated."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file

from neuscale.runs.manifest import read_manifest, write_manifest

RECIPE = [
    "data=image_folder",
    "data.name=tiny",
    "optim=sgd",
    "optim.lr=0.01",
    "augment.crop_padding=1",
    "train.global_batch_size=12",
    "train.log_every_steps=1",
    "tracking.trackers=[]",
    "run.device=cpu",
    "run.name=library",
]
# Has BatchNorm, and about 30 times fewer parameters than ResNet-18.
SMALL = ["model=torchvision", "model.arch=shufflenet_v2_x0_5"]


def validation(run: Path) -> dict[str, Any]:
    """Metrics of the last evaluation during training."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == "val"][-1]


def check_evaluation(neuscale: Callable[..., Any], run: Path) -> None:
    said = neuscale("eval", "library", "--checkpoint", "last", "--json")
    assert said.code == 0, said.err
    for name, value in validation(run).items():
        if name not in ("split", "step"):
            assert said.json[name] == pytest.approx(value, rel=1e-6), name


@pytest.mark.parametrize(
    ("words", "plain"),
    [
        (
            ["model=torchvision", "model.arch=resnet18"],
            lambda: torchvision.models.resnet18(num_classes=3),
        ),
        (
            [
                *["model=timm", "model.arch=test_vit", "model.drop_path_rate=0.2"],
                *["model.gradient_checkpointing=true", "data.image_size=32", "optim=muon"],
            ],
            lambda: timm.create_model("test_vit", num_classes=3, img_size=32),
        ),
    ],
    ids=["torchvision", "timm"],
)
def test_it_trains_is_evaluated_and_loads_into_the_plain_library(
    neuscale: Callable[..., Any], runs: Path, words: list[str], plain: Callable[[], torch.nn.Module]
) -> None:
    said = neuscale("train", *RECIPE, *words, "train.epochs=1", "train.max_steps=2")
    assert said.code == 0, said.err
    arch = words[1].removeprefix("model.arch=")
    assert f"{arch} with" in said.words
    assert read_manifest(runs / "library" / "manifest.json")["packages"]["timm"] == timm.__version__
    check_evaluation(neuscale, runs / "library")
    state = load_file(runs / "library" / "checkpoints" / "step-00000002" / "model.safetensors")
    model = plain()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state, strict=True)
    assert any(not torch.equal(before[name], value) for name, value in state.items())


def test_a_run_with_batchnorm_goes_on_to_the_same_bits(neuscale: Callable[..., Any], runs: Path) -> None:
    """Running statistics are part of the checkpoint, so that a resumed run ends with identical weights."""
    words = [*RECIPE, *SMALL, "train.epochs=2", "checkpoint.every_steps=3", "checkpoint.keep_last=9"]
    assert neuscale("train", *words).code == 0
    whole = runs / "library"
    shutil.copytree(whole, runs / "again")
    for path in sorted((runs / "again" / "checkpoints").glob("step-*"))[1:]:
        shutil.rmtree(path)
    manifest = read_manifest(runs / "again" / "manifest.json")
    write_manifest(runs / "again" / "manifest.json", manifest | {"status": "stopped"})
    assert neuscale("train", "again", "--resume").code == 0
    last = "checkpoints/step-00000010"
    one, other = (load_file(run / last / "model.safetensors") for run in (whole, runs / "again"))
    assert any(name.endswith("running_var") for name in one)
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
    assert validation(whole) == validation(runs / "again")


def test_two_processes_evaluate_the_model_that_they_save(neuscale: Callable[..., Any], runs: Path) -> None:
    """Each process collects its own running statistics; all must evaluate with those that are saved."""
    said = neuscale("train", *RECIPE, *SMALL, "train.epochs=3", "--processes", "2")
    assert said.code == 0, said.err
    check_evaluation(neuscale, runs / "library")


def test_a_misspelt_architecture_is_said_once_before_anything_is_prepared(
    neuscale: Callable[..., Any], runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NEUSCALE_DATA", str(tmp_path / "no data"))
    for more in ([], ["--processes", "2"]):
        said = neuscale("train", *RECIPE, "model=torchvision", "model.arch=resnet81", *more)
        assert said.code == 2
        assert said.err.count("error:") == 1
        assert "Did you mean 'resnet18'" in said.words
        assert not (tmp_path / "no data").exists()
        assert not runs.exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["model=torchvision"], "model.arch has no value"),
        ([*SMALL, "model.patch_size=4"], "model.patch_size: torchvision has no such field"),
        ([*SMALL, "model.drop_path_rate=0.1"], "It belongs to swin and vit and timm"),
        ([*SMALL, "model.gradient_checkpointing=true"], "model.gradient_checkpointing: torchvision has no"),
        (["model=swin_t", "model.arch=resnet18"], "It belongs to torchvision and timm"),
    ],
)
def test_an_option_that_would_do_nothing_is_no_option(
    neuscale: Callable[..., Any], words: list[str], says: str
) -> None:
    said = neuscale("train", *words)
    assert said.code == 2
    assert says in said.words
