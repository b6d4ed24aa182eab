"""A picture of predictions: each image above its likeliest class and the probability."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from neuscale.data.picture import GAP, shortened
from neuscale.evaluation.predict import Prediction

# More images than these are not shown.
MOST_SHOWN = 100
COLUMNS = 10
CELL_SIDE = 112
LINE_HEIGHT = 16


def prediction_grid(predictions: Sequence[Prediction]) -> Image.Image:
    """The images as the model gets them, `COLUMNS` a row, with class and probability below.

    Small images are enlarged by whole factors, large ones made smaller.
    """
    _, height, width = predictions[0].pixels.shape
    largest = max(height, width)
    factor: float = CELL_SIDE // largest or CELL_SIDE / largest
    shown = (max(1, round(width * factor)), max(1, round(height * factor)))
    columns = min(COLUMNS, len(predictions))
    rows = -(-len(predictions) // columns)
    cell = (CELL_SIDE + 2 * GAP, shown[1] + 2 * LINE_HEIGHT + 3 * GAP)
    grid = Image.new("RGB", (columns * cell[0], rows * cell[1]), "white")
    draw = ImageDraw.Draw(grid)
    font = ImageFont.load_default(13)
    for place, prediction in enumerate(predictions):
        left, top = place % columns * cell[0] + GAP, place // columns * cell[1] + GAP
        pixels = prediction.pixels
        picture = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
        resampling = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.BICUBIC
        grid.paste(
            picture.convert("RGB").resize(shown, resampling), (left + (CELL_SIDE - shown[0]) // 2, top)
        )
        name, share = prediction.top[0]
        middle, below = left + CELL_SIDE // 2, top + shown[1] + GAP
        draw.text((middle, below), shortened(name, font, CELL_SIDE), "black", font, anchor="ma")
        draw.text((middle, below + LINE_HEIGHT), f"{share:.1%}", _color(share), font, anchor="ma")
    return grid


def _color(share: float) -> str:
    """Pale where the model is not sure."""
    return "black" if share >= 0.5 else "#a04000"
