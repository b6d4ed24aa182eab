"""Figures of the report: charts as SVG, sample images and large matrices as embedded pictures.

Charts use the colours of the page, so that they are readable in light and in dark mode.
"""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from neuscale.errors import UsageError
from neuscale.evaluation.evaluate import Evaluation
from neuscale.inference.evaluate_run import evaluation_loader
from neuscale.inference.predict import predict_split
from neuscale.inference.restore import restore
from neuscale.pictures import to_image
from neuscale.progress import Progress
from neuscale.project.trust import is_trusted
from neuscale.runs.folder import RunFolder
from neuscale.runs.own_code import has_own_code

Points = Sequence[tuple[int, float]]


WIDTH, HEIGHT = 460, 240


LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 30


MOST_POINTS = 600


@dataclass(frozen=True)
class Series:
    """A curve: `style` is a CSS class of the page ("a" or "b"); `dots`: mark the points on the line."""

    name: str
    points: Points
    style: str = "a"
    dots: bool = False


def line_chart(series: Sequence[Series], percent: bool = False, from_zero: bool = True) -> str:
    """Line chart of curves over the steps. Values that are not finite are left out. Empty without points."""
    finite = [[p for p in one.points if math.isfinite(p[1])] for one in series]
    everything = [p for points in finite for p in points]
    if not everything:
        return ""
    last = max(step for step, _ in everything)
    low = 0.0 if from_zero else min(value for _, value in everything)
    values = _ticks(low, max(value for _, value in everything))
    bottom, top = values[0], values[-1]

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / max(last, 1)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - bottom) / ((top - bottom) or 1)

    parts = []
    for value in values:
        at = f"{y(value):.1f}"
        words = (
            f"{100 * value:.4g}%" if percent else f"{value:,.4g}" if value < 1e4 else f"{value / 1e3:,.6g}k"
        )
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at}" dy="4" text-anchor="end">{words}</text>')
    below = f'y="{HEIGHT - BOTTOM + 18}" text-anchor="middle"'
    parts += [
        f'<text x="{x(step):.1f}" {below}>{step:,.0f}</text>'
        for step in _ticks(0, last)
        if step <= last and step.is_integer()
    ]
    for one, points in zip(series, finite, strict=True):
        shown = _thinned(points)
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in shown)
        parts.append(f'<polyline class="{one.style}" points="{path}"/>')
        if one.dots:
            for step, value in shown:
                words = f"{value:.2%}" if percent else f"{value:.4g}"
                title = f"<title>{escape(one.name)}, step {step:,}: {words}</title>"
                place = f'cx="{x(step):.1f}" cy="{y(value):.1f}" r="4"'
                parts.append(f'<circle class="{one.style}" {place}>{title}</circle>')
    drawing = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'
    if len(series) == 1:
        return drawing
    legend = "".join(f'<span class="{one.style}">{escape(one.name)}</span>' for one in series if one.points)
    return f'{drawing}<p class="legend">{legend}</p>'


def _thinned(points: Points) -> Points:
    """At most MOST_POINTS of the points, including the first and the last."""
    if len(points) <= MOST_POINTS:
        return points
    last = len(points) - 1
    return [points[round(i * last / (MOST_POINTS - 1))] for i in range(MOST_POINTS)]


def _ticks(low: float, high: float) -> list[float]:
    """Tick values: round numbers that span `low` to `high`."""
    from matplotlib.ticker import MaxNLocator

    if not low < high:
        high = low + (abs(low) or 1.0)
    values = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(value) for value in values]


def confusion_chart(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """SVG of a small confusion matrix: rows true, columns predicted, shaded by the share of the row."""
    count, longest = len(classes), max(map(len, classes))
    cell = max(16, min(44, 560 // count))
    left = top = min(150, 8 + int(6.6 * longest))
    size = cell * count
    parts = []
    for i, name in enumerate(classes):
        middle = i * cell + cell / 2
        label = escape(_cut(name))
        parts.append(f'<text x="{left - 6}" y="{top + middle + 4:.1f}" text-anchor="end">{label}</text>')
        across = f"translate({left + middle + 4:.1f} {top - 6}) rotate(-90)"
        parts.append(f'<text transform="{across}">{label}</text>')
        total = sum(counts[i]) or 1
        for j, number in enumerate(counts[i]):
            if not number:
                continue
            share = number / total
            title = f"{escape(name)} taken for {escape(classes[j])}: {number:,} of {total:,}"
            if i == j:
                title = f"{escape(name)}: {number:,} of {total:,} right"
            kind = "right" if i == j else "wrong"
            place = f'x="{left + j * cell}" y="{top + i * cell}" width="{cell - 1}" height="{cell - 1}"'
            # Mistakes are rare; the square root of the share makes them visible.
            shade = f'class="{kind}" fill-opacity="{math.sqrt(share):.3f}"'
            parts.append(f"<rect {shade} {place}><title>{title}</title></rect>")
            if cell >= 26:
                tone = " class='on'" if i == j and share > 0.3 else ""
                at = f'x="{left + j * cell + cell / 2 - 0.5:.1f}" y="{top + middle + 4:.1f}"'
                parts.append(f"<text{tone} {at} text-anchor='middle'>{number}</text>")
    return (
        f'<svg class="confusion" viewBox="0 0 {left + size} {top + size}" role="img">{"".join(parts)}</svg>'
    )


def _cut(name: str) -> str:
    return name if len(name) <= 20 else name[:19] + "…"


LARGEST_SIDE = 96


WORST = 24


PAIRS = 6


OF_A_PAIR = 8


BLUE = (37, 99, 168)


@dataclass(frozen=True)
class SeenImages:
    """An evaluation and wrongly classified images, ready for the page."""

    evaluation: Evaluation
    classes: list[str]
    words: str
    worst: list[dict[str, str]]
    pairs: list[dict[str, Any]]
    rendering: str


def seen_images(run: RunFolder, manifest: dict[str, Any], checkpoint: str, progress: Progress) -> SeenImages:
    """Evaluate a checkpoint on the run's validation images. Raises UserError if either is missing."""
    if has_own_code(run) and not is_trusted():
        raise UsageError(
            "its model is made by code of its own, which a report does not run.", "Say `trust` to run it."
        )
    restored = restore(run, checkpoint, "auto", None, progress)
    data, meta = restored.data, restored.data.meta
    if not meta.is_recorded_as(manifest["data"]["fingerprint"]):
        raise UsageError(
            f"{run.path}: was trained on other data than what is now prepared as '{meta.name}'.",
            "Prepare the same data again.",
        )
    found = predict_split(restored, evaluation_loader(restored, "val"), progress)

    def shown(sample: int) -> dict[str, str]:
        return {
            "source": picture_source(data.image("val", sample)),
            "true": meta.classes[int(found.labels[sample])],
            "predicted": meta.classes[int(found.predicted[sample])],
            "confidence": f"{float(found.confidence[sample]):.1%}",
        }

    pairs = [
        {
            "true": meta.classes[i],
            "predicted": meta.classes[j],
            "words": f"{count:,} of {total:,} images",
            "images": [shown(sample) for sample in found.mistaken(i, j, OF_A_PAIR)],
        }
        for i, j, count, total in confused_pairs(found.evaluation.confusion)
    ]
    step = f", after step {restored.step:,}" if restored.step is not None else ""
    return SeenImages(
        found.evaluation,
        meta.classes,
        f"Of {restored.checkpoint.name}{step}, on {found.evaluation.samples:,} validation images.",
        [shown(sample) for sample in found.worst(WORST)],
        pairs,
        "pixelated" if max(meta.height, meta.width) < LARGEST_SIDE // 2 else "auto",
    )


def confused_pairs(confusion: Tensor) -> list[tuple[int, int, int, int]]:
    """(true, predicted, count, images of the true class) of the most frequent mistakes."""
    wrong = confusion.clone()
    wrong.fill_diagonal_(0)
    counts, places = wrong.flatten().sort(descending=True, stable=True)
    classes = len(confusion)
    return [
        (place // classes, place % classes, count, int(confusion[place // classes].sum()))
        for count, place in zip(counts[:PAIRS].tolist(), places[:PAIRS].tolist(), strict=True)
        if count
    ]


def picture_source(pixels: NDArray[np.uint8]) -> str:
    """Image uint8 [C, H, W] as a data URL for an <img>; a large one is scaled down."""
    picture = to_image(pixels)
    small = max(picture.size) <= LARGEST_SIDE
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return _address(picture, "PNG" if small else "JPEG")


def confusion_picture(confusion: Tensor) -> str:
    """Large confusion matrix as an <img> with transparency, for any background."""
    shares = confusion.double() / confusion.sum(1, keepdim=True).clamp(min=1)
    alpha = (shares.sqrt() * 255).round().to(torch.uint8)
    color = torch.tensor(BLUE, dtype=torch.uint8).expand(*alpha.shape, 3)
    picture = Image.fromarray(torch.cat([color, alpha[..., None]], 2).numpy(), "RGBA")
    style = "width: 100%; max-width: 680px; display: block; margin: auto; image-rendering: pixelated"
    return f'<img style="{style}" alt="confusion matrix" src="{_address(picture, "PNG")}">'


def _address(picture: Image.Image, form: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format=form, optimize=True)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{form.lower()};base64,{encoded}"
