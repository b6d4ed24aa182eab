"""The README of an exported model: what it is, how good it is, what it may be used for, how to load it."""

from typing import Any

from neuscale.evaluation.preprocessing import Preprocessing

_MOST_CLASSES = 200


def model_card(kind: str, record: dict[str, Any]) -> str:
    """Markdown from what `model.json` says; its code runs as it stands beside the model and an image.png."""
    preprocessing = Preprocessing(**record["preprocessing"])
    data, metrics, check = record["data"], record["metrics"], record["check"]
    counts = data["counts"]
    shape = (preprocessing.channels, preprocessing.height, preprocessing.width)
    classes: list[str] = record["classes"]
    shown = ", ".join(classes[:_MOST_CLASSES]) + (" …" if len(classes) > _MOST_CLASSES else "")
    colours = "grayscale" if preprocessing.channels == 1 else "RGB"
    size = f"{preprocessing.width}×{preprocessing.height}"
    resized = (
        f", resized to {preprocessing.image_size}×{preprocessing.image_size} (bilinear, antialiased)"
        if (preprocessing.image_size,) * 2 != (preprocessing.width, preprocessing.height)
        else ""
    )
    where = "in the graph" if kind != "safetensors" else "by the loaded model"
    top5 = f", top-5 {metrics['top5']:.2%}" if len(classes) > 5 else ""
    average = {"ema": "the moving average of the weights", "raw": "the weights themselves"}
    return f"""# {record["model"]} on {data["title"]}

An image classifier with {record["parameters"]:,} parameters and {len(classes)} classes, trained with NeuScale
{record["neuscale"]} and exported as {record["file"]}.

## Accuracy

Top-1 **{metrics["top1"]:.2%}**{top5}, loss {metrics["loss"]:.4f}, on the {counts["val"]:,} validation images.
The file was read back and compared with the model that was trained, on {check["images"]} of these images:
the largest difference of a logit is {check["max_abs_difference"]:.2g}.

## Data

{data["title"]} (`{data["name"]}`): {counts["train"]:,} training and {counts["val"]:,} validation images.

- Licence of the data: {data["licence"]}
- Source: {data["homepage"] or "see the owner of the images"}
- Fingerprint: `{data["fingerprint"]}`

## Input and output

- Input `images`: uint8 [batch, {", ".join(map(str, shape))}], {colours}, \
values 0 to 255, any batch.
- An image of another size is scaled to cover {size} (bicubic) and its middle kept.
- Done {where}: values / 255, minus mean {_numbers(preprocessing.mean)}, over deviation \
{_numbers(preprocessing.std)}{resized}.
- Output `logits`: float32 [batch, {len(classes)}]; their softmax are the probabilities.

`model.json` has all of this for programs.

## How to load it

{_NEEDS[kind]}

```python
{_code(kind, preprocessing)}
```

## Classes

{shown}

## Training

Run `{record["run"]}`, {f"step {record['step']:,}" if record["step"] is not None else record["checkpoint"]}, \
{average.get(record["weights"], "a file of weights")}; code revision {record["revision"] or "unknown"}.

```yaml
{record["config"].rstrip()}
```
"""


_NEEDS = {
    "safetensors": "With NeuScale installed, from this folder:",
    "torch": "With torch (NeuScale is not needed), from this folder:",
    "onnx": "With onnxruntime (neither torch nor NeuScale is needed), from this folder:",
}


def _code(kind: str, preprocessing: Preprocessing) -> str:
    if kind == "safetensors":
        return """from pathlib import Path
from neuscale.evaluation.exported import load_exported
model = load_exported(".")
logits = model(model.decode(Path("image.png").read_bytes()))
print(model.classes[logits.argmax()])"""
    mode, order = (
        ("L", "[None, None]") if preprocessing.channels == 1 else ("RGB", ".transpose(2, 0, 1)[None]")
    )
    size = (preprocessing.width, preprocessing.height)
    picture = f'ImageOps.fit(Image.open("image.png").convert("{mode}"), {size})'
    if kind == "torch":
        return f"""import json, numpy, torch
from PIL import Image, ImageOps
images = numpy.array({picture}){order}
logits = torch.export.load("model.pt2").module()(torch.from_numpy(images))
print(json.load(open("model.json"))["classes"][logits.argmax()])"""
    return f"""import json, numpy, onnxruntime
from PIL import Image, ImageOps
images = numpy.array({picture}){order}
logits = onnxruntime.InferenceSession("model.onnx").run(None, {{"images": images}})[0]
print(json.load(open("model.json"))["classes"][logits.argmax()])"""


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)
