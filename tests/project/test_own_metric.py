"""User metrics appear wherever a run shows numbers, and can choose the best checkpoint."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import Said
from neuscale.errors import UsageError
from neuscale.evaluation.own_metrics import OwnMetrics
from neuscale.runs.manifest import read_manifest
from neuscale.runs.metrics import read_metrics

from .foreign_models import CONVOLUTIONAL

Command = Callable[..., Said]
Project = Callable[[dict[str, str]], Path]

WORDS = ["data=image_folder", "data.name=photos", "model=mine", "train.global_batch_size=16"]
WORDS += ["run.device=cpu", "train.epochs=3", "eval.batch_size=5", "run.name=a"]
CODE = """
import torch

class Cohen:
    def __init__(self, scale=1.0):
        self.scale = scale

    def __call__(self, logits, targets):
        assert logits.dtype == torch.float32 and targets.dtype == torch.int64 and len(logits) == len(targets)
        said = logits.argmax(1)
        agreed = (said == targets).float().mean()
        classes = range(logits.shape[1])
        chance = sum((said == c).float().mean() * (targets == c).float().mean() for c in classes)
        return self.scale * (agreed - chance) / (1 - chance)

class Brier:
    higher_is_better = False

    def __call__(self, logits, targets):
        self.images = len(targets)
        return ((logits.softmax(1) - torch.eye(logits.shape[1])[targets]) ** 2).sum(1).mean()

def count(logits, targets):
    return len(targets)

def nothing(logits, targets):
    return float("nan") if len(targets) > 6 else 0.0

def wrong(logits, targets):
    return logits

def broken(logits, targets):
    return logits[:, 99]
"""
FILES = {"mynet.py": CONVOLUTIONAL, "conf/model/mine.yaml": "_target_: mynet.Net\n", "scores.py": CODE}
METRICS = ["eval.functions.kappa._target_=scores.Cohen", "eval.functions.brier._target_=scores.Brier"]
METRICS += ["eval.functions.seen._target_=scores.count", "eval.functions.seen._partial_=true"]


def test_its_numbers_are_shown_and_kept_and_choose_the_best(
    project: Project, command: Command, tmp_path: Path
) -> None:
    project(FILES)
    said = command("train", *WORDS, *METRICS, "eval.metric=brier", "optim.lr=0.01")
    assert said.code == 0, said.err
    run = tmp_path / "runs" / "a"
    points = [line for line in read_metrics(run / "metrics.jsonl") if line["split"] == "val"]
    assert [point["seen"] for point in points] == [12.0] * 3
    best = min(points, key=lambda point: point["brier"])
    told = read_manifest(run / "manifest.json")["result"]
    assert told["best"] == {"metric": "brier", "value": best["brier"]}

    found = command("eval", "a", "--json").json
    assert found["step"] == best["step"]
    assert {name: found[name] for name in ("kappa", "brier", "seen")} == pytest.approx(
        {name: best[name] for name in ("kappa", "brier", "seen")}
    )
    # With equally many images of three classes, kappa is (3 top-1 - 1) / 2.
    assert found["kappa"] == pytest.approx((3 * found["top1"] - 1) / 2)
    assert f"kappa {found['kappa']:.4f}" in command("eval", "a").out
    assert command("runs", "report", "a").code == 0
    assert "brier" in (run / "report.html").read_text()
    replayed = command("runs", "replay", "a")
    assert replayed.code == 0, replayed.err


def test_two_processes_get_the_numbers_of_one(project: Project, command: Command, tmp_path: Path) -> None:
    project(FILES)
    assert command("train", *WORDS, *METRICS, "train.epochs=1").code == 0
    one = command("eval", "a", "--json").json
    two = command("eval", "a", "--processes", "2", "--json").json
    for name in ("kappa", "brier", "seen"):
        assert two[name] == pytest.approx(one[name], rel=1e-6), name


def test_a_process_without_images_takes_part(project: Project, command: Command) -> None:
    """An evaluation of fewer images than processes would fail if a rank had to have one."""
    project(FILES)
    assert command("train", *WORDS, *METRICS, "train.epochs=1").code == 0
    one = command("eval", "a", "--limit", "1", "--json").json
    said = command("eval", "a", "--limit", "1", "--processes", "2", "--json")
    assert said.code == 0, said.err
    assert said.json["seen"] == 1
    assert said.json["brier"] == pytest.approx(one["brier"], rel=1e-6)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["eval.functions.top1._target_=scores.Cohen"], "eval.functions.top1: is a name of the program"),
        (["eval.functions.step._target_=scores.Cohen"], "eval.functions.step: is a name of the program"),
        (["eval.metric=kapa", *METRICS], "eval.metric=kapa: expected one of"),
        (["eval.functions.a._target_=scores.Missing"], "eval.functions.a=scores.Missing: cannot be imported"),
        (
            ["eval.functions.a._target_=scores.count"],
            "A function that is called later wants `_partial_",
        ),
        (["eval.functions.a._target_=scores.Cohen", "eval.functions.a.x=1"], "it has no argument 'x'"),
        (
            ["eval.functions.a._target_=scores.wrong", "eval.functions.a._partial_=true"],
            "gave Tensor",
        ),
        (["eval.functions.a._target_=scores.broken", "eval.functions.a._partial_=true"], "scores.py, line"),
    ],
)
def test_a_bad_metric_is_refused_before_anything_is_written(
    project: Project, command: Command, tmp_path: Path, words: list[str], problem: str
) -> None:
    project(FILES)
    said = command("train", *WORDS, *words)
    assert said.code == 2
    assert problem in said.words
    assert not (tmp_path / "runs").exists()


def test_a_number_that_is_not_finite_is_named_and_left_out(
    project: Project, command: Command, tmp_path: Path
) -> None:
    project(FILES)
    words = ["eval.functions.none._target_=scores.nothing", "eval.functions.none._partial_=true"]
    said = command("train", *WORDS, *words, "eval.metric=none", "train.patience=2")
    assert said.code == 0, said.err
    assert "eval.functions.none is nan here, and is left out" in said.words
    manifest = read_manifest(tmp_path / "runs" / "a" / "manifest.json")
    assert manifest["result"]["epochs"] == 2, "no evaluation was better"
    assert "none" not in manifest["result"]["last"]


def test_a_metric_of_torchmetrics_starts_anew_at_each_evaluation() -> None:
    torchmetrics = pytest.importorskip("torchmetrics")
    spec = {"_target_": "torchmetrics.classification.MulticlassCohenKappa", "num_classes": 3}
    metrics = OwnMetrics({"kappa": spec}, 3, several_labels=False)
    generator = torch.Generator().manual_seed(1)
    for count in (40, 30):
        logits = torch.randn(count, 3, generator=generator)
        targets = torch.randint(3, (count,), generator=generator)
        expected = torchmetrics.functional.cohen_kappa(logits, targets, "multiclass", num_classes=3)
        [value] = metrics.values(logits, targets, None).values()  # type: ignore[arg-type]
        assert value == pytest.approx(float(expected))
    assert metrics.falling == []


def test_several_labels_come_as_a_table() -> None:
    spec = {"_target_": "torchmetrics.functional.classification.multilabel_f1_score", "num_labels": 3}
    pytest.importorskip("torchmetrics")
    with pytest.raises(UsageError, match="_partial_"):
        OwnMetrics({"f1": spec}, 3, several_labels=True)
    metrics = OwnMetrics({"f1": {**spec, "_partial_": True}}, 3, several_labels=True)
    logits = torch.tensor([[9.0, -9, -9], [9, 9, -9], [-9, -9, 9]])
    targets = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 1]]).bool()
    assert metrics.values(logits, targets, None) == {"f1": 1.0}  # type: ignore[arg-type]
