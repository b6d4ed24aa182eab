"""Content of an export's model.json and card; the card's code gives the same results as eval."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import Tensor

from neuscale.inference import export as export_module
from neuscale.inference import verify
from neuscale.inference.classifier import Preprocessing, load_exported
from neuscale.inference.model_card import _picture
from neuscale.inference.runtimes import reloaded

from .conftest import ODD_CLASSES, ODD_METRICS, Odd
from .test_model_card import run_code

Command = Callable[..., Any]


def pictures(odd: Odd) -> list[Image.Image]:
    return [Image.open(file).convert("RGB") for file in odd.files()]


def pixels(odd: Odd) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(p).transpose(2, 0, 1) for p in pictures(odd)]))


def card_code(folder: Path) -> str:
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert code is not None
    return code[1]


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_the_file_gives_the_plain_logits_and_the_code_the_plain_class(
    command: Command, odd: Odd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The last raw weights are exported; the images are uint8, not square, and not of the model's size."""
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
        del beside["check"]  # added after the file is written
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
    sizes = {"channels": 3, "height": 10, "width": 14, "image_size": 8}
    resized = {"interpolation": "bilinear", "crop": 1.0}
    assert made == {**sizes, "fit": "crop", "value_range": [0, 65535], **resized}
    data = record["data"]
    assert (data["name"], data["counts"]) == ("odd", {"train": 36, "val": 29})
    manifest = json.loads((odd.run / "manifest.json").read_text())
    assert data["fingerprint"] == manifest["data"]["fingerprint"]
    assert "embed_dim: 8" in record["config"]
    assert record["check"]["images"] == 29


def test_what_is_printed_and_what_is_put_together_for_it(
    command: Command, odd: Odd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is restored on the CPU, without staging the data and with eager ops."""
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
    """Checkpoints record the metrics of the averaged weights; raw weights and weight files are evaluated."""

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

    monkeypatch.setattr(verify, "reloaded", watched)
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


def draw(kind: str) -> tuple[Image.Image, dict[str, Any]]:
    """A picture of 60×40 (600×400 as JPEG) without symmetry, and the options to save it with."""
    ramp = np.add.outer(np.arange(40) * 3, np.arange(60) * 2).astype(np.uint8)
    rgb = Image.fromarray(np.stack([ramp, ramp.T.reshape(40, 60), 255 - ramp], -1))
    turned = Image.Exif()
    turned[0x0112] = 6
    sideways = {"exif": turned.tobytes()}
    return {
        "16 bits": (Image.fromarray(ramp.astype(np.uint16) * 200), {"format": "PNG"}),
        "turned JPEG": (rgb.resize((600, 400)), {"format": "JPEG", **sideways}),
        "turned PNG": (rgb, {"format": "PNG", **sideways}),
        "turned TIFF": (rgb, {"format": "TIFF", **sideways}),
        "gray": (rgb.convert("L"), {"format": "PNG"}),
        "palette": (rgb.convert("P"), {"format": "PNG"}),
        "transparent": (rgb.convert("RGBA"), {"format": "PNG"}),
        "CMYK": (rgb.convert("CMYK"), {"format": "JPEG"}),
    }[kind]


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "kind", ["16 bits", "turned JPEG", "turned PNG", "turned TIFF", "gray", "palette", "transparent", "CMYK"]
)
def test_the_cards_code_prepares_a_picture_as_predict_does(
    kind: str, channels: int, fit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statistics = {"mean": [0.5] * channels, "std": [0.5] * channels}
    preprocessing = Preprocessing(channels, 10, 14, 8, **statistics, fit=fit, value_range=(1000, 30000))
    monkeypatch.chdir(tmp_path)
    image, options = draw(kind)
    image.save("image.png", **options)
    names: dict[str, Any] = {"json": json, "numpy": np, "Image": Image, "ImageOps": ImageOps}
    run_code(_picture(preprocessing), names)
    np.testing.assert_array_equal(names["images"][0], preprocessing.decode(Path("image.png").read_bytes()))


@pytest.mark.parametrize("umask", [0o022, 0o027])
@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_others_may_read_an_export_as_the_umask_says(
    command: Command, odd: Odd, tmp_path: Path, kind: str, umask: int
) -> None:
    before = os.umask(umask)
    try:
        assert command("export", "odd", "--to", kind, "--output", tmp_path / "model").code == 0
    finally:
        os.umask(before)
    for path in (tmp_path / "model").iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask, path.name
