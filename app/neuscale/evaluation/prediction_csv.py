"""Predictions as a CSV file: a line for each image."""

import csv
from collections.abc import Iterable
from pathlib import Path

from neuscale.errors import disk_error
from neuscale.evaluation.predict import Prediction
from neuscale.files import make_folder, replacing


def write_csv(path: Path, predictions: Iterable[Prediction], top: int) -> int:
    """Writes file, class_1, probability_1, class_2, … as they come; returns the number of images.

    The file is there when all of it is. Raises UserError where it cannot be written.
    """
    count = 0
    header = [f"{column}_{rank}" for rank in range(1, top + 1) for column in ("class", "probability")]
    try:
        make_folder(path.parent)
        with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["file", *header])
            for prediction in predictions:
                cells = [cell for name, share in prediction.top for cell in (name, f"{share:.6f}")]
                writer.writerow([prediction.file, *cells])
                count += 1
    except OSError as error:
        raise disk_error(error, path) from error
    return count
