"""README of an exported model: description, accuracy, data and its licence, and code to load it."""

import re
from typing import Any

from neuscale.data.augment.crops import side_before_crop
from neuscale.inference.classifier import Preprocessing
from neuscale.untrusted import printable

_MOST_CLASSES = 200


def model_card(kind: str, record: dict[str, Any]) -> str:
    """Markdown for the `record` of model.json; its code runs unchanged beside the model and an image.png."""
    preprocessing = Preprocessing(**record["preprocessing"])
    data, metrics, check = record["data"], record["metrics"], record["check"]
    counts = data["counts"]
    shape = (preprocessing.channels, preprocessing.height, preprocessing.width)
    classes: list[str] = record["classes"]
    shown = _text(", ".join(classes[:_MOST_CLASSES])) + (" …" if len(classes) > _MOST_CLASSES else "")
    colours = "grayscale" if preprocessing.channels == 1 else "RGB"
    size = f"{preprocessing.width}×{preprocessing.height}"
    resized = _resized(preprocessing)
    fit = _FITS[preprocessing.fit].format(size=size)
    if tuple(preprocessing.value_range) != (0, 65535):
        fit += ". Of 16-bit images the values {} to {} become 0 to 255".format(*preprocessing.value_range)
    where = "in the graph" if kind != "safetensors" else "by the loaded model"
    top5 = f", top-5 {metrics['top5']:.2%}" if len(classes) > 5 and "top5" in metrics else ""
    several = record.get("several_labels", False)
    accuracy = f"Top-1 **{metrics['top1']:.2%}**{top5}" if not several else f"mAP **{metrics['map']:.2%}**"
    probabilities = "their sigmoids are the probabilities, of each class by itself: an image may have several"
    if not several:
        probabilities = "their softmax are the probabilities"
    average = {"ema": "the moving average of the weights", "raw": "the weights themselves"}
    checkpoint = f"step {record['step']:,}" if record["step"] is not None else _text(record["checkpoint"])
    config = printable(record["config"].rstrip(), lines=True)
    return f"""---
library_name: neuscale
pipeline_tag: image-classification
tags: [image-classification, neuscale, {kind}]
---

# {_text(record["model"])} on {_text(data["title"])}

An image classifier with {record["parameters"]:,} parameters and {len(classes)} classes, trained with NeuScale
{record["neuscale"]} and exported as {record["file"]}.

## Accuracy

{accuracy}, loss {metrics["loss"]:.4f}, on the {counts["val"]:,} validation images.
The file was read back and compared with the model that was trained, on {check["images"]} of these images:
the largest difference of a logit is {check["max_abs_difference"]:.2g}.
{_precision(record)}
## Data

{_text(data["title"])} ({_code_span(data["name"])}): \
{counts["train"]:,} training and {counts["val"]:,} validation images.

- Licence of the data: {_text(data["licence"])}
- Source: {data["homepage"] or "see the owner of the images"}
- Fingerprint: {_code_span(data["fingerprint"])}

## Input and output

- Input `images`: uint8 [batch, {", ".join(map(str, shape))}], {colours}, \
values 0 to 255, any batch of one image or more.
- An image is turned upright, as its EXIF block says. One of another size {fit}.
- Done {where}: values / 255, minus mean {_numbers(preprocessing.mean)}, over deviation \
{_numbers(preprocessing.std)}{resized}.
- Output `logits`: float32 [batch, {len(classes)}]; {probabilities}.

`model.json` has all of this for programs.

## How to load it

{_NEEDS[kind].format(**record)}

```python
{_code(kind, preprocessing, several)}
```

## Classes

{shown}

## Training

Run {_code_span(record["run"])}, {checkpoint}, \
{average.get(record["weights"], "a file of weights")}; code revision {_text(record["revision"] or "unknown")}.

{_fence(config)}yaml
{config}
{_fence(config)}
"""


_PRECISIONS = {
    "fp16": "The model is in half precision (float16)",
    "bf16": "The model is in half precision (bfloat16)",
    "int8": "Weights are 8-bit integers (per channel), and activations are quantised when the model is run,"
    " by their range in the batch: an image's logits depend a little on the others in its batch",
    "int8-static": "Weights are 8-bit integers (per channel), and activations have ranges that were"
    " measured on training images",
}


def _precision(record: dict[str, Any]) -> str:
    """Section on the accuracy, size and latency of a precision below fp32; empty for fp32."""
    if "measured" not in record:
        return ""
    found, metrics = record["measured"], record["measured"]["metrics"]
    name, metric = ("mAP", "map") if record["several_labels"] else ("Top-1", "top1")
    drop = 100 * (metrics[metric] - record["metrics"][metric])
    rows = [
        (name, f"{record['metrics'][metric]:.2%}", f"{metrics[metric]:.2%} ({drop:+.2f} points)"),
        ("Loss", f"{record['metrics']['loss']:.4f}", f"{metrics['loss']:.4f}"),
        ("Size", _megabytes(found["fp32_bytes"]), _megabytes(found["bytes"])),
    ]
    for before, after in zip(found.get("fp32_latency", []), found.get("latency", []), strict=True):
        size = before["batch_size"]
        title = f"Latency, {size} image{'s' if size > 1 else ''}"
        rows.append((title, f"{before['median_ms']:.2f} ms", f"{after['median_ms']:.2f} ms"))
    if "latency" in found:
        machine = f"{_text(found['processor'])}, {found['cores']} cores"
        where = f"Times are medians on the CPU ({machine})."
    else:
        where = "It is computed in fp32: the loaded model is as fast as before."
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"""
## Precision

{_PRECISIONS[record["precision"]]}. On all validation images:

| | fp32 | this file |
|---|---|---|
{table}

{where}
"""


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _resized(preprocessing: Preprocessing) -> str:
    side = preprocessing.image_size
    if (side, side) == (preprocessing.width, preprocessing.height):
        return ""
    larger = side_before_crop(side, preprocessing.crop)
    words = f", resized to {larger}×{larger} ({preprocessing.interpolation}, antialiased)"
    if (larger, larger) == (preprocessing.width, preprocessing.height):
        words = ""
    return words if larger == side else f"{words}, of which the middle {side}×{side} is kept"


_FITS = {
    "crop": "is scaled to cover {size} (bicubic) and its middle kept",
    "pad": "is scaled to fit into {size} (bicubic), the rest of which is black",
    "squash": "is scaled to {size} (bicubic), whatever its proportions",
}


_NEEDS = {
    "safetensors": "With NeuScale installed, from this folder:",
    "torch": "With torch (NeuScale is not needed), from this folder:",
    "openvino": "With openvino (neither torch nor NeuScale is needed), from this folder:",
    "onnx": "With onnxruntime {onnxruntime} or later (operator set {opset}; neither torch nor NeuScale is"
    " needed), from this folder:",
}


def _code(kind: str, preprocessing: Preprocessing, several_labels: bool) -> str:
    # For multi-label data, print all labels with a probability of at least 0.5.
    if several_labels:
        code = _code(kind, preprocessing, False)
        answer = code.splitlines()[-1]
        names = answer.removeprefix("print(").removesuffix("[logits.argmax()])")
        return code.replace(answer, f"print([name for name, logit in zip({names}, logits[0]) if logit >= 0])")
    if kind == "safetensors":
        return """from pathlib import Path
from neuscale.inference.classifier import load_exported
model = load_exported(".")
logits = model(model.decode(Path("image.png").read_bytes()))
print(model.classes[logits.argmax()])"""
    run = {
        "torch": 'logits = torch.export.load("model.pt2").module()(torch.from_numpy(images))',
        "onnx": 'logits = onnxruntime.InferenceSession("model.onnx").run(None, {"images": images})[0]',
        "openvino": 'settings = {"INFERENCE_PRECISION_HINT": "f32"}'
        '\nmodel = openvino.Core().compile_model("model.xml", "CPU", settings)'
        '\nlogits = model({"images": images})["logits"]',
    }[kind]
    library = {"torch": "torch", "onnx": "onnxruntime", "openvino": "openvino"}[kind]
    return f"""import json, numpy, {library}
from PIL import Image, ImageOps
{_picture(preprocessing)}
{run}
print(json.load(open("model.json", encoding="utf-8"))["classes"][logits.argmax()])"""


def _picture(preprocessing: Preprocessing) -> str:
    """Code that reads image.png into `images`, with the same pixels as `Preprocessing.decode`."""
    size = (preprocessing.width, preprocessing.height)
    low, high = preprocessing.value_range
    fit = {
        "crop": f"ImageOps.fit(image, {size})",
        "pad": f"ImageOps.pad(image, {size})",
        "squash": f"image.resize({size}, Image.Resampling.BICUBIC)",
    }[preprocessing.fit]
    gray = preprocessing.channels == 1
    array = 'image.convert("L"))[None, None]' if gray else "image).transpose(2, 0, 1)[None]"
    return f"""image = Image.open("image.png")
sides = {(2 * size[0], 2 * size[1])}[:: -1 if image.getexif().get(0x0112, 1) > 4 else 1]
image.draft(None, sides)  # of a JPEG: no more of it than is needed
image.load()
image = ImageOps.exif_transpose(image)
if image.mode.startswith("I"):  # 16 bits
    values = numpy.asarray(image).astype("int64").clip({low}, {high})
    image = Image.fromarray(((values - {low}) * 256 // {high - low + 1}).astype("uint8"))
image = image.convert("RGB")
image = {fit}
images = numpy.array({array}"""


def _text(value: str) -> str:
    """`value` escaped for Markdown, so that no class name becomes a heading, a link or a tag.

    Escaped are the special characters of CommonMark 0.31, section 2.4, and the bare URLs of GitHub's dialect.
    """
    escaped = re.sub(r"[\\`*_\[\]<>#&~|!$]|:(?=//)|(?<=www)\.", r"\\\g<0>", printable(value))
    # At the start of a line: list markers, heading underlines, and the indentation of a code block.
    escaped = re.sub(r"^([-+=]|\d+(?=[.)]))", lambda found: _escaped_start(found[0]), escaped)
    return re.sub(r"^ ", "&#32;", escaped)


def _escaped_start(start: str) -> str:
    return f"\\{start}" if not start.isdigit() else f"{start}\\"


def _code_span(value: str) -> str:
    text = printable(value)
    ticks = "`" * (_longest_run(text) + 1)
    padding = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{padding}{text}{padding}{ticks}"


def _fence(text: str) -> str:
    return "`" * max(3, _longest_run(text) + 1)


def _longest_run(text: str) -> int:
    return max((len(ticks) for ticks in re.findall("`+", text)), default=0)


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)
