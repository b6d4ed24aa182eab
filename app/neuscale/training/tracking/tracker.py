"""Record metrics and pictures of a run: metrics.jsonl always, TensorBoard and other trackers on request."""

import sys
import warnings
from collections.abc import Iterable
from contextlib import ExitStack, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuscale.config import Config, config_to_yaml
from neuscale.config.schema import TENSORBOARD
from neuscale.data.loaders.loader import Loader
from neuscale.errors import UserError
from neuscale.evaluation.evaluate import AnyEvaluation, Evaluation
from neuscale.progress import Progress, Silent
from neuscale.runs.evaluation_file import store_evaluation
from neuscale.runs.folder import RunFolder
from neuscale.runs.metrics import REST, TIMINGS, MetricsFile
from neuscale.training.tracking.accelerate_trackers import create_backend
from neuscale.training.tracking.backend import Evaluated
from neuscale.training.tracking.external import ExternalTracker
from neuscale.untrusted import read_record, reason_of


def _group(name: str) -> str:
    """Group of curves that a value belongs to."""
    if name in TIMINGS:
        return "speed"
    return "optim" if name == "lr" else "train"


class Tracker:
    """Records a run from `step` on; does nothing unless this is the main process.

    `evaluation_due`: the run resumes with the evaluation of `step`, which may have been recorded before.
    """

    def __init__(
        self,
        run: RunFolder,
        config: Config,
        classes: list[str],
        step: int,
        is_main: bool,
        evaluation_due: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self._file: MetricsFile | None = None
        self._board: Any = None
        self._external: list[ExternalTracker] = []
        self._progress = progress or Silent()
        self._classes = classes
        self._run = run
        self._images_wanted = config.tracking.sample_images
        self._opened = ExitStack()
        if not is_main:
            return
        self._file = MetricsFile(run.metrics_file, step, evaluation_due)
        if TENSORBOARD in config.tracking.trackers:
            from neuscale.training.tracking.tensorboard import TensorBoard

            self._board = TensorBoard(run.path, step)
            if step == 0:
                self._board.text("config", config_to_yaml(config))
                self._board.hyperparameters(hyperparameters(config))
        others = [name for name in dict.fromkeys(config.tracking.trackers) if name != TENSORBOARD]
        if others:  # stdout is for the result, and some trackers print
            self._opened.enter_context(redirect_stdout(sys.stderr))
        for name in others:
            file = run.path / f"{name}-id"
            backend = create_backend(name, run, config.tracking, _identity(file))
            self._external.append(ExternalTracker(backend, hyperparameters(config), file))
        self.files([run.config_file])

    def train(self, step: int, values: dict[str, float], rest: int | None = None) -> None:
        """Record a point of the training curves: means since the previous point, by name.

        `rest`: for the last point, the number of steps since the last regular point.
        """
        if self._file is None:
            return
        self._file.write("train", step, values if rest is None else {**values, REST: rest})
        named = {f"{_group(name)}/{name}": value for name, value in values.items()}
        if self._board is not None:
            self._board.scalars(named, step)
        for tracker in self._external:
            tracker.numbers(named, step)
            tracker.tell(self._progress)

    def evaluation(self, step: int, result: AnyEvaluation) -> None:
        """Record the metrics of an evaluation, its confusion matrix and the results of each class."""
        if self._file is None:
            return
        self._file.write("val", step, result.scalars())
        store_evaluation(self._run.path, step, self._classes, result)
        if self._board is None and not self._external:
            return
        named = {f"val/{name}": value for name, value in result.scalars().items()}
        picture, measure = None, "average precision"
        if isinstance(result, Evaluation):
            picture, measure = confusion_picture(result.confusion, self._classes), "accuracy"
        per_class = list(zip(self._classes, result.per_class(), strict=True))
        if self._board is not None:
            self._board.evaluation(named, picture, per_class, step)
        pixels = None if picture is None else picture.permute(1, 2, 0).numpy()
        for tracker in self._external:
            tracker.evaluation(Evaluated(named, pixels, measure, dict(per_class)), step)
            tracker.tell(self._progress)

    def sync(self) -> None:
        """Make the curves so far durable (fsync), as a checkpoint does with the rest of the run."""
        if self._file is not None:
            self._file.sync()

    def images(self, images: Tensor, loader: Loader) -> None:
        """Record the first training images as the model sees them."""
        if self._board is not None and self._images_wanted:
            self._board.images("train/images", images[: self._images_wanted], loader.mean, loader.std, 0)

    @property
    def takes_files(self) -> bool:
        """True if a tracker may store files of the run."""
        return bool(self._external)

    def files(self, paths: Iterable[Path]) -> None:
        """Store files of the run in the trackers that support it."""
        for path in paths:
            for tracker in self._external:
                tracker.file(path)

    def close(self, patience: float = 60.0) -> dict[str, Any]:
        """Close everything, waiting at most `patience` seconds for each tracker; return their records."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()
        for tracker in self._external:
            tracker.close(self._progress, patience)
        self._opened.close()
        return {tracker.name: tracker.record() for tracker in self._external}


def _identity(file: Path) -> str | None:
    """ID that a tracker gave this run at an earlier start; None if there is none."""
    try:
        return read_record(file).strip() or None
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file}: not readable ({reason_of(error)}).",
            "Remove it: the run begins anew in that tracker.",
        ) from error


def hyperparameters(config: Config) -> dict[str, bool | int | float | str]:
    """Hyperparameters for a table: `section.field` → plain value, without null values."""
    sections = {
        name: asdict(getattr(config, name)) for name in ("data", "augment", "model", "optim", "train")
    }
    named = {f"{section}.{n}": v for section, fields in sections.items() for n, v in fields.items()}
    named |= {"experiment": config.experiment, "run.seed": config.run.seed}
    return {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in named.items()
        if value is not None
    }


def confusion_picture(confusion: Tensor, classes: list[str]) -> Tensor:
    """Draw a confusion matrix, counts [true, predicted], as uint8 [3, H, W]; up to 40 classes are named."""
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
    with warnings.catch_warnings():  # characters missing from the font are shown as boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)
