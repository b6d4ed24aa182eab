"""What an export says of itself in model.json and its card, and that the card's code does what eval does."""

import io
import json
import re
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from neuscale.evaluation import export as export_module
from neuscale.evaluation.exported import load_exported, reloaded
from neuscale.evaluation.model_card import model_card
from neuscale.evaluation.preprocessing import Preprocessing

from .conftest import ODD_CLASSES, ODD_METRICS, Odd

Command = Callable[..., Any]


def pictures(odd: Odd) -> list[Image.Image]:
    return [Image.open(file).convert("RGB") for file in odd.files()]


def pixels(odd: Odd) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(p).transpose(2, 0, 1) for p in pictures(odd)]))


def card_code(folder: Path) -> str:
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert code is not None
    return code[1]


def run_code(code: str, names: dict[str, Any] | None = None) -> str:
    said = io.StringIO()
    with redirect_stdout(said):
        exec(code, names if names is not None else {})
    return said.getvalue().strip()


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_the_file_gives_the_plain_logits_and_the_code_the_plain_class(
    command: Command, odd: Odd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Of the last raw weights, on bytes that are neither square nor of the model's size."""
    words = ["--checkpoint", "last", "--weights", "raw", "--output", tmp_path / "model"]
    assert command("export", "odd", "--to", kind, *words).code == 0
    logits = odd.logits(9, "raw", pictures(odd))
    with torch.no_grad():
        found = reloaded(kind, tmp_path / "model")(pixels(odd))
    assert found.dtype == torch.float32
    if kind == "safetensors":
        assert not load_exported(tmp_path / "model").training
    assert torch.allclose(found.double(), logits, atol=1e-4)
    monkeypatch.chdir(tmp_path / "model")
    guesses = logits.argmax(1).tolist()
    first, other = 0, next(i for i, guess in enumerate(guesses) if guess != guesses[0])
    for i in (first, other):
        pictures(odd)[i].save("image.png")
        assert run_code(card_code(tmp_path / "model")) == ODD_CLASSES[guesses[i]]
    if kind == "torch":
        inside = {"model.json": ""}
        torch.export.load("model.pt2", extra_files=inside)
        beside = json.loads(Path("model.json").read_text())
        del beside["check"]  # which is made with the file
        assert json.loads(inside["model.json"]) == beside


def test_the_record_says_which_model_it_is(command: Command, odd: Odd, tmp_path: Path) -> None:
    said = command("export", "odd", "--to", "safetensors", "--output", tmp_path / "model", "--json").json
    record = json.loads((tmp_path / "model" / "model.json").read_text())
    file = tmp_path / "model" / "model.safetensors"
    assert said == {
        "folder": str(tmp_path / "model"),
        "path": str(file),
        "bytes": file.stat().st_size,
        **record,
    }
    tensors = load_file(odd.run / "checkpoints" / "step-00000006" / "ema.safetensors")
    assert record["parameters"] == sum(t.numel() for t in tensors.values() if t.is_floating_point())
    saved = load_file(file)
    assert set(saved) == set(tensors)
    assert all(torch.equal(saved[name], tensors[name]) for name in tensors)
    assert (record["run"], record["checkpoint"], record["step"], record["weights"]) == (
        "odd", "step-00000006", 6, "ema",
    )  # fmt: skip
    assert (record["file"], record["classes"]) == ("model.safetensors", ODD_CLASSES)
    assert (record["input"], record["input_dtype"]) == ({"images": ["batch", 3, 10, 14]}, "uint8")
    assert record["output"] == {"logits": ["batch", 7]}
    mean, std = odd.statistics()
    made = record["preprocessing"]
    assert made.pop("mean") == pytest.approx(list(mean), rel=1e-5)
    assert made.pop("std") == pytest.approx(list(std), rel=1e-5)
    assert made == {"channels": 3, "height": 10, "width": 14, "image_size": 8}
    data = record["data"]
    assert (data["name"], data["counts"]) == ("odd", {"train": 36, "val": 29})
    manifest = json.loads((odd.run / "manifest.json").read_text())
    assert data["fingerprint"] == manifest["data"]["fingerprint"]
    assert "embed_dim: 8" in record["config"]
    assert record["check"]["images"] == 29


def test_what_is_printed_and_what_is_put_together_for_it(
    command: Command, odd: Odd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU, from the data where they are, without ops that no other program has."""
    asked: list[dict[str, Any]] = []
    right = export_module.restore

    def restore(*words: Any, **options: Any) -> Any:
        asked.append({"device": words[3], **options})
        return right(*words, **options)

    monkeypatch.setattr(export_module, "restore", restore)
    out = command("export", "odd", "--to", "safetensors", "--output", tmp_path / "model").out
    assert asked == [{"device": "cpu", "stage": False, "eager": True}]
    first, second, third = out.splitlines()
    record = json.loads((tmp_path / "model" / "model.json").read_text())
    assert first == f"{record['model']} of odd, step-00000006 (ema weights): top-1 61.00%"
    difference = record["check"]["max_abs_difference"]
    assert second.startswith(
        f"Read back, it differs by {difference:.2g} at most from the trained model, on 29 "
    )
    assert third.startswith(f"It is {tmp_path / 'model' / 'model.safetensors'}; README.md beside it")
    copied = shutil.copytree(odd.run, tmp_path / "copied")
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["data"]["fingerprint"] = "0" * 64
    (copied / "manifest.json").write_text(json.dumps(manifest))
    said = command("export", copied, "--to", "safetensors", "--output", tmp_path / "other")
    assert (said.code, "was trained on other data" in said.words) == (2, True)


def test_its_accuracy_is_the_recorded_one_only_where_it_is_of_these_weights(
    command: Command, odd: Odd, tmp_path: Path
) -> None:
    """Checkpoints record what the average reached; of the raw weights and of a file it is measured."""

    def metrics(name: str, *words: object) -> dict[str, float]:
        said = command("export", "odd", "--to", "safetensors", "--output", tmp_path / name, *words, "--json")
        found: dict[str, float] = said.json["metrics"]
        return found

    assert metrics("a") == ODD_METRICS[6]
    assert metrics("b", "--checkpoint", "last") == ODD_METRICS[9]
    average = odd.run / "checkpoints" / "step-00000009" / "ema.safetensors"
    measured = {
        "c": (metrics("c", "--weights", "raw"), 6, "raw"),
        "d": (metrics("d", "--checkpoint", average), 9, "ema"),
    }
    for found, step, weights in measured.values():
        logits, labels = odd.split_logits(step, weights), odd.labels()
        rank = (logits > logits.gather(1, labels[:, None])).sum(1)
        assert found["top1"] == pytest.approx(float((rank == 0).double().mean()))
        assert found["top5"] == pytest.approx(float((rank < 5).double().mean()))
        assert found["loss"] == pytest.approx(
            float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-4
        )
    card = (tmp_path / "d" / "README.md").read_text()
    assert f"Top-1 **{measured['d'][0]['top1']:.2%}**, top-5 {measured['d'][0]['top5']:.2%}" in card
    assert "Run `odd`, ema.safetensors, a file of weights" in card


def test_compared_are_images_spread_over_the_split_in_batches_of_three_sizes(
    command: Command, odd: Odd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def watched(kind: str, folder: Path) -> Callable[[Tensor], Tensor]:
        del kind
        model = load_exported(folder)

        def run(images: Tensor) -> Tensor:
            seen.append(images)
            logits: Tensor = model(images)
            return logits

        return run

    monkeypatch.setattr(export_module, "reloaded", watched)
    assert command("export", "odd", "--to", "safetensors", "--output", tmp_path / "a").code == 0
    assert [len(images) for images in seen] == [1, 3, 25]
    assert torch.equal(torch.cat(seen), pixels(odd))
    for count, sizes, chosen in ((8, [1, 3, 4], [0, 4, 8, 12, 16, 20, 24, 28]), (3, [1, 1, 1], [0, 14, 28])):
        seen.clear()
        monkeypatch.setattr(export_module, "CHECKED_IMAGES", count)
        words = ["--output", tmp_path / "a", "--force", "--json"]
        assert command("export", "odd", "--to", "safetensors", *words).json["check"]["images"] == count
        assert [len(images) for images in seen] == sizes
        assert torch.equal(torch.cat(seen), pixels(odd)[chosen])


RECORD: dict[str, Any] = {
    "file": "model.pt2", "model": "Swin", "parameters": 1234567, "classes": [f"c{i}" for i in range(205)],
    "preprocessing": {"channels": 3, "height": 10, "width": 14, "image_size": 8,
                      "mean": [0.1, 0.2, 0.31234], "std": [0.4, 0.5, 0.6]},
    "metrics": {"top1": 0.12345, "top5": 0.56789, "loss": 1.23456},
    "data": {"name": "odd", "title": "Odd pets", "counts": {"train": 12345, "val": 6789}, "licence": "CC0",
             "homepage": "", "fingerprint": "f1f2"},
    "run": "r", "checkpoint": "step-00001200", "step": 1200, "weights": "raw", "revision": "abc with changes",
    "neuscale": "9.8.7", "check": {"images": 64, "max_abs_difference": 1.26e-6}, "config": "a: 1\nb: 2\n",
}  # fmt: skip


def test_each_number_of_the_card() -> None:
    card = model_card("torch", RECORD)
    for line in (
        "# Swin on Odd pets",
        "An image classifier with 1,234,567 parameters and 205 classes, trained with NeuScale",
        "9.8.7 and exported as model.pt2.",
        "Top-1 **12.35%**, top-5 56.79%, loss 1.2346, on the 6,789 validation images.",
        "compared with the model that was trained, on 64 of these images:",
        "the largest difference of a logit is 1.3e-06.",
        "Odd pets (`odd`): 12,345 training and 6,789 validation images.",
        "- Licence of the data: CC0",
        "- Source: see the owner of the images",
        "- Fingerprint: `f1f2`",
        "- Input `images`: uint8 [batch, 3, 10, 14], RGB, values 0 to 255, any batch.",
        "- An image of another size is scaled to cover 14×10 (bicubic) and its middle kept.",
        "- Done in the graph: values / 255, minus mean 0.1000, 0.2000, 0.3123, over deviation 0.4000, 0.5000,"
        " 0.6000, resized to 8×8 (bilinear, antialiased).",
        "- Output `logits`: float32 [batch, 205]; their softmax are the probabilities.",
        "Run `r`, step 1,200, the weights themselves; code revision abc with changes.",
        "```yaml\na: 1\nb: 2\n```",
        "c0, c1, c2,",
        "c198, c199 …",
    ):
        assert line in card, line
    assert "c200" not in card
    averaged = model_card(
        "safetensors", {**RECORD, "weights": "ema", "revision": None, "classes": ["a", "b", "c"]}
    )
    assert "the moving average of the weights; code revision unknown." in averaged
    assert "a, b, c\n" in averaged
    assert "top-5" not in averaged
    assert "Done by the loaded model:" in averaged


@pytest.mark.parametrize(
    ("height", "width", "size", "resized"),
    [(8, 8, 8, False), (10, 14, 10, True), (14, 10, 10, True), (8, 8, 16, True)],
)
def test_the_card_names_a_resize_wherever_there_is_one(
    height: int, width: int, size: int, resized: bool
) -> None:
    made = {**RECORD["preprocessing"], "height": height, "width": width, "image_size": size}
    assert (f"resized to {size}×{size}" in model_card("torch", {**RECORD, "preprocessing": made})) == resized


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_the_code_of_the_card_reads_an_image_as_predict_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int, kind: str
) -> None:
    """A picture of 45×20 for a model of 14×10; of the code only the lines that read it."""
    monkeypatch.chdir(tmp_path)
    ramp = np.add.outer(4 * np.arange(20), 3 * np.arange(45))
    Image.fromarray(np.stack([ramp, 255 - ramp, ramp // 2], -1).astype(np.uint8)).save("image.png")
    made = {
        **RECORD["preprocessing"],
        "channels": channels,
        "mean": [0.5] * channels,
        "std": [0.5] * channels,
    }
    code = re.search(r"```python\n(.*?)```", model_card(kind, {**RECORD, "preprocessing": made}), re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    lines = code[1].replace(", onnxruntime", "").splitlines()
    run_code("\n".join(lines[:3]), names)
    expected = Preprocessing(**made).decode(Path("image.png").read_bytes())
    assert names["images"].shape == (1, channels, 10, 14)
    assert names["images"].dtype == np.uint8
    assert np.abs(names["images"][0].astype(int) - expected).max() <= 1, "of gray values one may be rounded"
