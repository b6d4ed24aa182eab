"""Overview pictures of images: rows with labels and grids with captions, written as PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from neuscale.errors import disk_error
from neuscale.fs import make_folder, replacing

Pixels = NDArray[np.uint8]
Caption = tuple[str, str]  # text and colour

GAP = 2
LABEL_WIDTH = 150
COLUMNS = 10
CELL_SIDE = 112
LINE_HEIGHT = 16
FONT_SIZE = 13


def to_image(pixels: Pixels) -> Image.Image:
    """uint8 [C, H, W] with 1 or 3 channels → a PIL image."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def labelled_rows(
    rows: Sequence[tuple[str, Sequence[Pixels]]], columns: int, size: tuple[int, int]
) -> Image.Image:
    """Rows of images, each with its label on the left; images are resized to `size` (width, height)."""
    extent = (LABEL_WIDTH + columns * (size[0] + GAP), len(rows) * (size[1] + GAP) + GAP)
    grid, draw, font = _canvas(extent)
    for number, (label, images) in enumerate(rows):
        top = GAP + number * (size[1] + GAP)
        shown = shortened(label, font, LABEL_WIDTH - 12)
        draw.text((LABEL_WIDTH - 8, top + size[1] // 2), shown, "black", font, anchor="rm")
        for column, pixels in enumerate(images):
            grid.paste(_resized(pixels, size), (LABEL_WIDTH + column * (size[0] + GAP), top))
    return grid


def captioned_grid(images: Sequence[tuple[Pixels, Sequence[Caption]]], size: tuple[int, int]) -> Image.Image:
    """Grid of images with captions below, `COLUMNS` per row; images are resized to `size` (width, height)."""
    lines = len(images[0][1])
    columns = min(COLUMNS, len(images))
    cell = (CELL_SIDE + 2 * GAP, size[1] + lines * LINE_HEIGHT + 3 * GAP)
    grid, draw, font = _canvas((columns * cell[0], -(-len(images) // columns) * cell[1]))
    for number, (pixels, captions) in enumerate(images):
        left, top = number % columns * cell[0] + GAP, number // columns * cell[1] + GAP
        grid.paste(_resized(pixels, size), (left + (CELL_SIDE - size[0]) // 2, top))
        for line, (text, color) in enumerate(captions):
            middle, below = left + CELL_SIDE // 2, top + size[1] + GAP + line * LINE_HEIGHT
            draw.text((middle, below), shortened(text, font, CELL_SIDE), color, font, anchor="ma")
    return grid


def scaled_size(height: int, width: int, factor: float) -> tuple[int, int]:
    """Width and height of an image shown `factor` times as large."""
    return max(1, round(width * factor)), max(1, round(height * factor))


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG. Raises UserError if it cannot be written."""
    try:
        make_folder(path.parent)
        with replacing(path) as part:
            picture.save(part, format="PNG")
    except OSError as error:
        raise disk_error(error, path) from error


def shortened(text: str, font: Any, room: int) -> str:
    """`text`, its end replaced by an ellipsis if it is wider than `room` pixels."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "…") > room:
        text = text[:-1]
    return text + "…"


def _canvas(size: tuple[int, int]) -> tuple[Image.Image, ImageDraw.ImageDraw, Any]:
    canvas = Image.new("RGB", size, "white")
    return canvas, ImageDraw.Draw(canvas), ImageFont.load_default(FONT_SIZE)


def _resized(pixels: Pixels, size: tuple[int, int]) -> Image.Image:
    """Resize with nearest neighbour to enlarge, bicubic to shrink."""
    enlarged = size[1] >= pixels.shape[1]
    resampling = Image.Resampling.NEAREST if enlarged else Image.Resampling.BICUBIC
    return to_image(pixels).convert("RGB").resize(size, resampling)
