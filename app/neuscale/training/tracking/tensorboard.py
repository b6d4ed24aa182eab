"""TensorBoard: curves, the images that the model sees, and the confusion matrix as a picture."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams


class TensorBoard:
    """Writes the events of a run from `step` on; later events of an interrupted run are purged."""

    def __init__(self, folder: Path, step: int) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None, flush_secs=10)

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Write points of curves; the part of the name before '/' groups them."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def images(self, name: str, images: Tensor, mean: Tensor, std: Tensor, step: int) -> None:
        """Write a grid of normalised images [B, C, H, W], as they were before normalisation."""
        pixels = images.float() * std[:, None, None] + mean[:, None, None]
        grid = image_grid(pixels.clamp(0, 1).cpu())
        self._writer.add_image(name, grid, step)

    def text(self, name: str, text: str) -> None:
        """Write a page of preformatted text."""
        self._writer.add_text(name, f"<pre>{text}</pre>", 0)

    def hyperparameters(self, values: dict[str, bool | int | float | str]) -> None:
        """Write a row of the HPARAMS page, with the metrics of the last evaluation.

        SummaryWriter.add_hparams would write it into a separate run folder, with a copy of the metrics.
        """
        metrics = dict.fromkeys(("val/top1", "val/top5", "val/loss"))
        writer: Any = self._writer.file_writer
        for summary in hparams(values, metrics):  # type: ignore[no-untyped-call]
            writer.add_summary(summary)

    def evaluation(
        self,
        values: dict[str, float],
        picture: Tensor | None,
        per_class: list[tuple[str, float | None]],
        step: int,
    ) -> None:
        """Write the metrics of an evaluation, its confusion matrix [3, H, W], and a table, worst class first.

        Without a picture (multi-label data) the table contains the average precision of each class.
        """
        self.scalars(values, step)
        if picture is not None:
            self._writer.add_image("val/confusion", picture, step)
        worst_first = sorted(per_class, key=lambda item: (item[1] is None, item[1] or 0.0))
        rows = [
            f"| {name.replace('|', chr(92) + '|')} | {'no images' if share is None else f'{share:.1%}'} |"
            for name, share in worst_first
        ]
        what = "accuracy" if picture is not None else "average precision"
        self._writer.add_text("val/per_class", "\n".join([f"| class | {what} |", "|---|---|", *rows]), step)

    def close(self) -> None:
        self._writer.close()


def image_grid(images: Tensor, columns: int = 8) -> Tensor:
    """Grid of images [B, C, H, W] with a black line around each: [3, H', W'].

    Like torchvision's make_grid, which takes a second to import.
    """
    images = images.expand(-1, 3, -1, -1)
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    missing = rows * columns - len(images)
    cells = torch.cat(
        [F.pad(images, (1, 0, 1, 0)), images.new_zeros(missing, 3, *(s + 1 for s in images.shape[2:]))]
    )
    _, channels, height, width = cells.shape
    grid = cells.view(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    return F.pad(grid.reshape(channels, rows * height, columns * width), (0, 1, 0, 1))
