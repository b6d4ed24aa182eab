"""`eval` gives the numbers of a plain forward pass over the image files, summed by hand."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import neuscale
from neuscale.runs.evaluation_file import stored_evaluation

from .conftest import ODD_CLASSES, ODD_COUNTS, Odd

Command = Callable[..., Any]
CPU = ["--gpus", 0]


def by_hand(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Expected `eval --json` of these logits; `bins`: (images, confidence, accuracy), -1 for empty bins."""
    values = np.exp(logits.numpy() - logits.numpy().max(1, keepdims=True))
    shares = values / values.sum(1, keepdims=True)
    true, predicted, confidence = labels.numpy(), shares.argmax(1), shares.max(1)
    own = shares[np.arange(len(true)), true]
    rank = (shares > own[:, None]).sum(1)
    right = predicted == true
    bins: list[tuple[float, float, float]] = []
    ece = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if not inside.any():
            bins.append((0, -1, -1))
            continue
        bins.append((int(inside.sum()), float(confidence[inside].mean()), float(right[inside].mean())))
        ece += inside.sum() / len(true) * abs(confidence[inside].mean() - right[inside].mean())
    classes = range(len(ODD_CLASSES))
    hits = [int((right & (true == i)).sum()) for i in classes]
    named = [int((predicted == i).sum()) + int((true == i).sum()) for i in classes]
    return {
        "balanced_accuracy": float(np.mean([right[true == i].mean() for i in classes if i in true])),
        "macro_f1": float(np.mean([2 * h / n for h, n in zip(hits, named, strict=True) if n])),
        "samples": len(true),
        "top1": float((rank < 1).mean()),
        "top5": float((rank < 5).mean()),
        "loss": float(-np.log(own).mean()),
        "ece": float(ece),
        "per_class": {n: float(right[true == i].mean()) for i, n in enumerate(ODD_CLASSES) if i in true},
        "bins": bins,
    }


SCALARS = ("top1", "top5", "loss", "balanced_accuracy", "macro_f1")


def check(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in ("samples", "top1", "top5", "per_class"):
        assert found[name] == pytest.approx(expected[name]), name
    for name in ("loss", "ece"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4), name
    names = ("images", "confidence", "accuracy")
    bins = [tuple(-1 if b[name] is None else b[name] for name in names) for b in found["calibration"]]
    for one, other in zip(bins, expected["bins"], strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    edges = [(b["from"], b["to"]) for b in found["calibration"]]
    assert edges == [
        (pytest.approx(i / 15, abs=1e-6), pytest.approx((i + 1) / 15, abs=1e-6)) for i in range(15)
    ]


ASKED = {
    "the average of the best, by default": ([], 6, "ema"),
    "raw": (["--weights", "raw"], 6, "raw"),
    "last": (["--checkpoint", "last"], 9, "ema"),
    "last, raw": (["--checkpoint", "last", "--weights", "raw"], 9, "raw"),
    "by name": (["--checkpoint", "step-00000006", "--weights", "ema"], 6, "ema"),
}


@pytest.mark.parametrize("asked", ASKED)
def test_checkpoint_and_weights_are_those_asked_for(command: Command, odd: Odd, asked: str) -> None:
    words, step, weights = ASKED[asked]
    found = command("eval", "odd", *words, *CPU, "--json").json
    check(found, by_hand(odd.split_logits(step, weights), odd.labels()))
    assert (found["step"], found["weights"], found["split"], found["tta"]) == (step, weights, "val", "none")
    assert Path(found["checkpoint"]).samefile(odd.run / "checkpoints" / f"step-{step:08}")
    others = [by_hand(odd.split_logits(s, w), odd.labels()) for s in (6, 9) for w in ("raw", "ema")]
    assert len({(round(o["top1"], 9)) for o in others}) == len({round(o["loss"], 3) for o in others}) == 4


def test_a_file_of_weights_is_evaluated_as_it_is(command: Command, odd: Odd, tmp_path: Path) -> None:
    file = shutil.copy(odd.run / "checkpoints" / "step-00000009" / "model.safetensors", tmp_path)
    found = command("eval", "odd", "--checkpoint", file, *CPU, "--json").json
    check(found, by_hand(odd.split_logits(9, "raw"), odd.labels()))
    assert (found["step"], found["weights"], found["checkpoint"]) == (None, "file", str(file))


def test_the_training_split_and_the_mirrored_images(command: Command, odd: Odd) -> None:
    found = command("eval", "odd", "--split", "train", *CPU, "--json").json
    check(found, by_hand(odd.split_logits(6, "ema", "train"), odd.labels("train")))
    assert (found["samples"], found["split"]) == (36, "train")

    found = command("eval", "odd", "--tta", "flip", *CPU, "--json").json
    here, there = (odd.split_logits(6, "ema", mirrored=m).softmax(1) for m in (False, True))
    check(found, by_hand(((here + there) / 2).log(), odd.labels()))
    of_logits = by_hand(((here.log() + there.log()) / 2).log_softmax(1), odd.labels())
    assert abs(of_logits["loss"] - found["loss"]) > 1e-3, "else a mean of logits would pass as well"


def test_a_limit_takes_images_from_the_first_to_the_last(command: Command, odd: Odd) -> None:
    chosen = [0, 4, 9, 14, 18, 23, 28]  # seven of 29 at equal distances, rounded down
    found = command("eval", "odd", "--limit", 7, *CPU, "--json").json
    expected = by_hand(odd.split_logits(6, "ema")[chosen], odd.labels()[chosen])
    assert len(expected["per_class"]) == 6
    expected["per_class"] = dict.fromkeys(ODD_CLASSES) | expected["per_class"]
    assert found.pop("per_class") == expected.pop("per_class")
    check({**found, "per_class": {}}, {**expected, "per_class": {}})


def test_two_processes_evaluate_what_one_was_asked_for(command: Command, odd: Odd) -> None:
    """One process takes 15 images and one 14; an option lost on the way would change the numbers."""
    words = ["--weights", "raw", "--checkpoint", "last", "--tta", "flip", "--processes", 2, "--json"]
    found = command("eval", "odd", *words).json
    shares = sum(odd.split_logits(9, "raw", mirrored=mirrored).softmax(1) for mirrored in (False, True))
    assert isinstance(shares, Tensor)
    check(found, by_hand((shares / 2).log(), odd.labels()))
    assert (found["weights"], found["step"], found["tta"]) == ("raw", 9, "flip")


@pytest.mark.parametrize("batch_size", [1, 29, 500])
def test_the_batch_size_changes_no_number(
    odd: Odd, command: Command, tmp_path: Path, batch_size: int
) -> None:
    run = shutil.copytree(odd.run, tmp_path / "run")
    config = (run / "config.yaml").read_text()
    assert "batch_size: 9" in config
    (run / "config.yaml").write_text(config.replace("batch_size: 9", f"batch_size: {batch_size}"))
    check(command("eval", run, *CPU, "--json").json, by_hand(odd.split_logits(6, "ema"), odd.labels()))


def test_evaluate_from_python_says_what_the_command_does(command: Command, odd: Odd) -> None:
    del command  # for the environment that it sets
    logits, labels = odd.split_logits(6, "ema"), odd.labels()
    expected = by_hand(logits, labels)
    confusion = np.zeros((7, 7), int)
    for true, predicted in zip(labels.tolist(), logits.argmax(1).tolist(), strict=True):
        confusion[true, predicted] += 1
    assert (confusion != confusion.T).any()
    data = neuscale.load_data("odd")
    run = neuscale.load_run("odd")
    for found in (
        neuscale.evaluate(run),
        neuscale.evaluate("odd", data),
        neuscale.evaluate("odd", data, batch_size=4),
        neuscale.evaluate(run.model(), data, image_size=8, batch_size=30),
    ):
        assert found.scalars() == pytest.approx({n: expected[n] for n in SCALARS}, rel=1e-4)
        assert found.confusion.tolist() == confusion.tolist()
        assert found.per_class() == pytest.approx(list(expected["per_class"].values()))
        assert found.calibration.ece == pytest.approx(expected["ece"], rel=1e-4)
    train = by_hand(odd.split_logits(6, "ema", "train"), odd.labels("train"))
    for found in (neuscale.evaluate("odd", split="train"), neuscale.evaluate(run, data, split="train")):
        assert (found.samples, found.loss) == (36, pytest.approx(train["loss"], rel=1e-4))
    last = by_hand(odd.split_logits(9, "ema"), labels)
    found = neuscale.evaluate(run.model("last"), data, image_size=8)
    assert found.loss == pytest.approx(last["loss"], rel=1e-4)


def test_other_data_are_normalised_as_those_of_the_run(command: Command, odd: Odd, tmp_path: Path) -> None:
    """Brighter images with another mean are normalised with the statistics of the run, not with their own."""
    for split in ("train", "val"):
        for file in odd.files(split):
            target = tmp_path / "bright" / file.relative_to(odd.tree)
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.open(file).point([(value + 255) // 2 for value in range(256)] * 3).save(target)
    del command
    bright = neuscale.load_data("bright", source=tmp_path / "bright")
    pictures = [Image.open(tmp_path / "bright" / file.relative_to(odd.tree)) for file in odd.files()]
    expected = by_hand(odd.logits(6, "ema", pictures), odd.labels())
    found = neuscale.evaluate("odd", bright)
    assert found.loss == pytest.approx(expected["loss"], rel=1e-4)
    assert bright.meta.mean[0] > odd.statistics()[0][0] + 0.1, "the caller's data set stays as it was"
    own = neuscale.evaluate(neuscale.load_run("odd").model(), bright, image_size=8)
    assert abs(own.loss - expected["loss"]) > 1e-2, "a module gets them normalised by their own"


def test_a_module_is_left_as_it_was_and_the_shares_of_classes_do_not_matter(
    command: Command, odd: Odd
) -> None:
    del command

    class Guess(nn.Module):
        """Model that always predicts 'cat', with 'gnu' second."""

        def forward(self, images: Tensor) -> Tensor:
            assert not self.training
            assert images.shape[1:] == (3, 5, 5)
            return torch.tensor([0.0, 0, 3, 0, 0, 0, 2]).expand(len(images), 7)

    model = Guess().train()
    found = neuscale.evaluate(model, neuscale.load_data("odd"), image_size=5)
    assert model.training
    assert found.top1 == pytest.approx(6 / 29)
    assert found.confusion.sum(0).tolist() == [0, 0, 29, 0, 0, 0, 0]
    assert found.confusion.sum(1).tolist() == ODD_COUNTS["val"]
    assert found.per_class() == [0, 0, 1, 0, 0, 0, 0]


def test_the_run_folder_keeps_the_last_evaluation_of_its_training(odd: Odd) -> None:
    """evaluation.json holds the results of the averaged weights in the checkpoint of the only step."""
    stored = stored_evaluation(odd.run)
    assert stored is not None
    logits, labels = odd.split_logits(1, "ema"), odd.labels()
    expected = by_hand(logits, labels)
    assert (stored.step, stored.classes) == (1, ODD_CLASSES)
    assert stored.evaluation.scalars() == pytest.approx({name: expected[name] for name in SCALARS}, rel=1e-4)
    pairs = torch.stack([labels, logits.argmax(1)]).T.tolist()
    assert stored.evaluation.confusion.tolist() == [[pairs.count([i, j]) for j in range(7)] for i in range(7)]
    counts = [bin["images"] for bin in stored.evaluation.calibration.record()]
    assert counts == [images for images, _, _ in expected["bins"]]
    point = json.loads((odd.run / "metrics.jsonl").read_text().splitlines()[-1])
    assert point["loss"] == stored.evaluation.loss
