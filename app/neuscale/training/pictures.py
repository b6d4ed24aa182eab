"""A confusion matrix as a picture."""

import warnings

import numpy as np
import torch
from torch import Tensor


def confusion_picture(confusion: Tensor, classes: list[str]) -> Tensor:
    """Counts [true, predicted] drawn as uint8 [3, H, W]; classes are named while there is room for it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shares = confusion.double() / confusion.sum(1, keepdim=True).clamp(min=1)
    count = len(classes)
    named = count <= 40
    side = min(12.0, 3.0 + 0.45 * count) if named else 9.0
    figure = Figure(figsize=(side + 1, side), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    picture = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, fraction=0.046, label="share of the class")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if named:
        axes.set_xticks(range(count), classes, rotation=90)
        axes.set_yticks(range(count), classes)
    if count <= 12:
        for i in range(count):
            for j in range(count):
                if confusion[i, j]:
                    color = "white" if shares[i, j] > 0.5 else "black"
                    axes.text(
                        j, i, str(int(confusion[i, j])), ha="center", va="center", color=color, fontsize=8
                    )
    with warnings.catch_warnings():  # scripts that the font does not have are shown as boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)
