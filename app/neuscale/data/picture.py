"""A picture of a data set: a row of images for each class."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from neuscale.data.prepared import Dataset
from neuscale.errors import disk_error
from neuscale.files import make_folder, replacing

LABEL_WIDTH = 150
GAP = 2
LARGEST_SIDE = 96
SMALLEST_SIDE = 40


def sample_grid(data: Dataset, split: str = "train", columns: int = 10, rows: int = 40) -> Image.Image:
    """The first `columns` images of each class, the classes' names beside them.

    Of a data set with more than `rows` classes, `rows` of them spread evenly are shown.
    Small images are enlarged by whole factors, large ones made smaller.
    """
    meta, labels = data.meta, data.labels(split)
    chosen = np.unique(np.linspace(0, meta.num_classes - 1, min(rows, meta.num_classes)).astype(int))
    height, width = _shown_size(meta.height, meta.width)
    grid = Image.new(
        "RGB", (LABEL_WIDTH + columns * (width + GAP), len(chosen) * (height + GAP) + GAP), "white"
    )
    draw = ImageDraw.Draw(grid)
    font = ImageFont.load_default(13)
    for row, label in enumerate(chosen):
        top = GAP + row * (height + GAP)
        name = shortened(meta.classes[label], font, LABEL_WIDTH - 12)
        draw.text((LABEL_WIDTH - 8, top + height // 2), name, "black", font, anchor="rm")
        for column, index in enumerate(np.flatnonzero(labels == label)[:columns]):
            pixels = data.image(split, int(index))
            picture = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
            enlarged = height >= meta.height
            resampling = Image.Resampling.NEAREST if enlarged else Image.Resampling.BICUBIC
            picture = picture.convert("RGB").resize((width, height), resampling)
            grid.paste(picture, (LABEL_WIDTH + column * (width + GAP), top))
    return grid


def save_picture(picture: Image.Image, path: Path) -> None:
    """Writes a PNG. Raises UserError where it cannot be written."""
    try:
        make_folder(path.parent)
        with replacing(path) as part:
            picture.save(part, format="PNG")
    except OSError as error:
        raise disk_error(error, path) from error


def _shown_size(height: int, width: int) -> tuple[int, int]:
    largest = max(height, width)
    if largest < SMALLEST_SIDE:
        factor: float = -(-SMALLEST_SIDE // largest)
    else:
        factor = min(1.0, LARGEST_SIDE / largest)
    return max(1, round(height * factor)), max(1, round(width * factor))


def shortened(name: str, font: "ImageFont.FreeTypeFont | ImageFont.ImageFont", room: int) -> str:
    """`name`, its end replaced by an ellipsis where it is wider than `room` pixels."""
    if font.getlength(name) <= room:
        return name
    while name and font.getlength(name + "…") > room:
        name = name[:-1]
    return name + "…"
