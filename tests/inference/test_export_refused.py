"""An export whose numbers differ from those of the trained model is refused, and no file of it is left."""

from collections.abc import Callable
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from neuscale.inference import export as export_module
from neuscale.inference import verify
from neuscale.inference.classifier import Classifier, load_exported

from .conftest import Odd

Command = Callable[..., Any]


def swapped(model: Classifier, images: Tensor) -> Tensor:
    """Logits with mean and standard deviation swapped."""
    other = copy(model)
    other._buffers = {"mean": model.std, "std": model.mean}
    logits: Tensor = other(images)
    return logits


def one_wrong(model: Classifier, images: Tensor) -> Tensor:
    """Logits of which only one is wrong: 0.01 too low for the last image, in batches of more than three."""
    logits: Tensor = model(images)
    if len(images) > 3:
        logits[-1, 2] -= 0.01
    return logits


WRONG: dict[str, tuple[Callable[[Classifier, Tensor], Tensor], str]] = {
    "NaN": (lambda m, x: m(x) * torch.nan, "(by nan)"),
    "one NaN": (lambda m, x: m(x).index_fill(1, torch.tensor(6), torch.nan), "(by nan)"),
    "infinity": (lambda m, x: m(x) + torch.inf, "(by inf)"),
    "a class too many": (lambda m, x: m(x)[:, [0, *range(7)]], "29×8 numbers instead of 29×7"),
    "a class too few": (lambda m, x: m(x)[:, :6], "29×6 numbers instead of 29×7"),
    "one column": (lambda m, x: m(x)[:, :1], "29×1 numbers instead of 29×7"),
    "classes in another order": (lambda m, x: m(x).roll(1, 1), "other numbers"),
    "a constant": (lambda m, x: m(x) * 0, "other numbers"),
    "mean and deviation swapped": (swapped, "other numbers"),
    "blue before red": (lambda m, x: m(x.flip(1)), "other numbers"),
    "a batch's first image for all": (lambda m, x: m(x[:1]).expand(len(x), 7), "other numbers"),
    "probabilities": (lambda m, x: m(x).softmax(1), "other numbers"),
    "one logit of one image": (one_wrong, "(by 0.01)"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_it_is_refused(
    command: Command, odd: Odd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    change, said = WRONG[wrong]
    monkeypatch.setattr(verify, "reloaded", lambda _, folder: partial(change, load_exported(folder)))
    found = command("export", "odd", "--to", "safetensors", "--output", tmp_path / "new" / "model")
    assert (found.code, found.out) == (1, "")
    assert "the exported model.safetensors gives" in found.words
    assert said in found.words
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(("factor", "code"), [(0.5, 0), (2.0, 1)])
@pytest.mark.parametrize("scale", [0.1, 30.0], ids=["logits below one", "large logits"])
def test_the_tolerance_is_a_ten_thousandth_of_the_largest_logit_or_of_one(
    command: Command,
    odd: Odd,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    factor: float,
    code: int,
    scale: float,
) -> None:
    largest = scale * float(odd.split_logits(6, "ema").abs().max())
    step = factor * 1e-4 * max(1.0, largest)
    assert (largest < 1) == (scale == 0.1)

    class Plain(Classifier):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) * scale

    monkeypatch.setattr(export_module, "Classifier", Plain)
    monkeypatch.setattr(
        verify,
        "reloaded",
        lambda _, folder: lambda images: load_exported(folder)(images) * scale + step,
    )
    found = command("export", "odd", "--to", "safetensors", "--output", tmp_path / "model", "--json")
    assert found.code == code
    if code == 0:
        check = found.json["check"]
        assert check == {"images": 29, "max_abs_difference": pytest.approx(step, rel=0.1)}
