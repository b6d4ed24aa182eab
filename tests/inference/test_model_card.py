"""The card of an exported model: correct numbers, names as they are, and code that runs."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image

from neuscale.inference.classifier import Preprocessing
from neuscale.inference.model_card import model_card
from neuscale.untrusted import printable


def run_code(code: str, names: dict[str, Any] | None = None) -> str:
    said = io.StringIO()
    with redirect_stdout(said):
        exec(code, names if names is not None else {})
    return said.getvalue().strip()


RECORD: dict[str, Any] = {
    "file": "model.pt2", "model": "Swin", "parameters": 1234567, "classes": [f"c{i}" for i in range(205)],
    "preprocessing": {"channels": 3, "height": 10, "width": 14, "image_size": 8,
                      "mean": [0.1, 0.2, 0.31234], "std": [0.4, 0.5, 0.6]},
    "metrics": {"top1": 0.12345, "top5": 0.56789, "loss": 1.23456},
    "data": {"name": "odd", "title": "Odd pets", "counts": {"train": 12345, "val": 6789}, "licence": "CC0",
             "homepage": "", "fingerprint": "f1f2"},
    "run": "r", "checkpoint": "step-00001200", "step": 1200, "weights": "raw", "revision": "abc with changes",
    "neuscale": "9.8.7", "opset": 20, "onnxruntime": "1.18",
    "check": {"images": 64, "max_abs_difference": 1.26e-6}, "config": "a: 1\nb: 2\n",
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
        "- Input `images`: uint8 [batch, 3, 10, 14], RGB, values 0 to 255, any batch of one image or more.",
        "- An image is turned upright, as its EXIF block says. One of another size is scaled to cover 14×10"
        " (bicubic) and its middle kept.",
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


def block_tokens(card: str) -> list[str]:
    return [token.type for token in MarkdownIt("gfm-like", {"linkify": False}).parse(card)]


def shown(card: str) -> str:
    """Visible text of a card without code blocks; links, pictures and tags appear as their token names."""
    found = []
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(card):
        for child in token.children or []:
            visible = (
                child.content if child.type in ("text", "code_inline", "softbreak") else f"<{child.type}>"
            )
            found.append(visible or " ")
    return "".join(found)


NASTY = [
    "# x", "- x", "1. x", "1) x", "===", "---", "+ x", "    code", "> x", "<script>x</script>",
    "![x](http://e)", "[x](y)", "`x", "a``b", "*x*", "__x__", "~~x~~", "| a | b |", "&copy;", "\\",
    "x\n\n# y", "a\n```", "\x1b[2J", "http://e.org", "=1+1", "$x$", "```", "~~~", "[a]: http://e", " x",
]  # fmt: skip


@pytest.mark.parametrize("name", NASTY)
def test_no_name_writes_into_the_card(name: str) -> None:
    data = {**RECORD["data"], "title": name, "licence": name, "name": name}
    other = {"data": data, "classes": [name, "b"], "run": name, "model": name, "revision": name}
    config = f"a: |\n  {name}\n  ```\n  # not a heading\n```\n# nor this\n"
    card = model_card("torch", {**RECORD, **other, "config": config})
    plain = model_card("torch", {**RECORD, "classes": ["a", "b"]})
    assert block_tokens(card) == block_tokens(plain)
    text, expected = shown(card), printable(name).strip()
    assert text.count(expected) >= 7, (
        "the heading, the title, the licence, the names, the run and the revision"
    )
    usual = set(re.findall("<[a-z_]+>", shown(plain)))
    assert set(re.findall("<[a-z_]+>", text.replace(expected, ""))) <= usual
    assert "\x1b" not in card


@given(names=st.lists(st.text(min_size=1), min_size=1, max_size=4))
def test_classes_are_shown_as_they_are_called(names: list[str]) -> None:
    card = model_card("torch", {**RECORD, "classes": names})
    assert block_tokens(card) == block_tokens(model_card("torch", {**RECORD, "classes": ["a"]}))
    assert ", ".join(map(printable, names)).strip() in shown(card)


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
    """A 45×20 picture for a model of 14×10 images; only the lines that read the picture are run."""
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
    run_code("\n".join(line for line in lines[:-1] if not line.startswith("logits")), names)
    expected = Preprocessing(**made).decode(Path("image.png").read_bytes())
    assert names["images"].shape == (1, channels, 10, 14)
    assert names["images"].dtype == np.uint8
    assert np.abs(names["images"][0].astype(int) - expected).max() <= 1, "of gray values one may be rounded"
