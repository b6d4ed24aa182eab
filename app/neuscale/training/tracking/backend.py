"""Base class of external trackers: start or resume a run there, log metrics, pictures and files."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuscale.distributed.accelerator import create_tracker
from neuscale.project.targets import make
from neuscale.runs.folder import RunFolder

PROJECT = "neuscale"


@dataclass(frozen=True)
class Evaluated:
    """An evaluation in the form that trackers get.

    `picture`: the confusion matrix, uint8 [H, W, 3]; None for multi-label data.
    `per_class`: the metric that `measure` names, by class; None for a class without images.
    """

    values: dict[str, float]
    picture: NDArray[np.uint8] | None
    measure: str
    per_class: dict[str, float | None]


class Backend:
    """One run in one tracker. Created in the main thread; all methods are called in the tracker's thread.

    `identity`: the tracker's ID of this run from an earlier start; None at the first start.
    """

    accelerate_name: str
    variable: str | None = None  # environment variable that names the project
    keeps_settings = True  # False: hyperparameters cannot be stored again on resume

    def __init__(
        self,
        name: str,
        run: RunFolder,
        options: Mapping[str, Any],
        project: str | None,
        identity: str | None,
    ) -> None:
        self.name, self.run, self.options, self.identity = name, run, dict(options), identity
        named = os.environ.get(self.variable) if self.variable is not None else None
        self.project = project or named or PROJECT
        self.tracker: Any = None

    def arguments(self) -> dict[str, Any]:
        """Default arguments of the tracker's start; those in `tracking.options` take precedence."""
        return {}

    def start(self, settings: dict[str, Any]) -> None:
        """Start or resume the run in the tracker; `settings` are its hyperparameters."""
        is_new = self.identity is None
        self.tracker = create_tracker(self.accelerate_name, self.title, self.arguments() | self.options)
        self.before_start()
        self.tracker.start()
        if is_new or self.keeps_settings:
            self.tracker.store_init_configuration(settings)

    @property
    def title(self) -> str:
        """The first argument of Accelerate's tracker class."""
        return self.project

    def before_start(self) -> None:
        """Set what cannot be passed as an argument."""

    @property
    def url(self) -> str | None:
        """URL of the run; None if there is none."""
        return None

    def numbers(self, values: dict[str, float], step: int) -> None:
        """Log points of curves."""
        self.tracker.log(values, step=step)

    def evaluation(self, result: Evaluated, step: int) -> None:
        """Log the metrics, the picture and the per-class table of an evaluation."""
        self.numbers(result.values, step)
        if result.picture is not None and hasattr(self.tracker, "log_images"):
            self.tracker.log_images({"val/confusion": result.picture[None]}, step=step)
        if hasattr(self.tracker, "log_table"):
            rows = [list(row) for row in result.per_class.items()]
            self.tracker.log_table("val/per_class", ["class", result.measure], rows, step=step)

    def file(self, path: Path) -> None:
        """Store a file with the run, if the tracker stores files."""

    def finish(self) -> None:
        """End the run in the tracker."""
        self.tracker.finish()


class Own(Backend):
    """A user-defined tracker, named by `_target_` in its options.

    It must have `log(values, step)`. Optional, as in Accelerate's GeneralTracker: `start()`,
    `store_init_configuration(values)`, `finish()`, `log_table(name, columns, rows, step)` and
    `log_images({name: uint8 [1, H, W, 3]}, step)`.
    """

    def start(self, settings: dict[str, Any]) -> None:
        offered = {"name": self.run.name, "project": self.project, "folder": str(self.run.path)}
        self.tracker = make(self.options, f"tracking.options.{self.name}", offered)
        if hasattr(self.tracker, "start"):
            self.tracker.start()
        if hasattr(self.tracker, "store_init_configuration"):
            self.tracker.store_init_configuration(settings)

    def finish(self) -> None:
        if hasattr(self.tracker, "finish"):
            self.tracker.finish()
