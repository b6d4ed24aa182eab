"""A run in a tracker outside of this program: how it begins, goes on, and takes pictures and files."""

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
    """An evaluation as trackers get it.

    `picture`: the confusion matrix, uint8 [H, W, 3]; None where images may have several labels.
    `per_class`: the number that `measure` names, by class; None for a class without images.
    """

    values: dict[str, float]
    picture: NDArray[np.uint8] | None
    measure: str
    per_class: dict[str, float | None]


class Backend:
    """One run of one tracker. Made by the main thread; all else is called by the tracker's own thread.

    `identity`: what the tracker knows this run by since an earlier start; None at its first one.
    """

    accelerate_name: str
    variable: str | None = None  # of the environment, that names the project
    keeps_settings = True  # False: they may not change when the run goes on

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
        """Arguments of the tracker's own start; those in `tracking.options` go before them."""
        return {}

    def start(self, settings: dict[str, Any]) -> None:
        """Begin, or go on with, the run there; `settings` are its hyperparameters."""
        is_new = self.identity is None
        self.tracker = create_tracker(self.accelerate_name, self.title, self.arguments() | self.options)
        self.before_start()
        self.tracker.start()
        if is_new or self.keeps_settings:
            self.tracker.store_init_configuration(settings)

    @property
    def title(self) -> str:
        """The first argument of Accelerate's class."""
        return self.project

    def before_start(self) -> None:
        """Set what has no argument."""

    @property
    def url(self) -> str | None:
        """The address at which the run can be looked at."""
        return None

    def numbers(self, values: dict[str, float], step: int) -> None:
        """Points of curves."""
        self.tracker.log(values, step=step)

    def evaluation(self, result: Evaluated, step: int) -> None:
        """The numbers of an evaluation, its picture, and the table of classes."""
        self.numbers(result.values, step)
        if result.picture is not None and hasattr(self.tracker, "log_images"):
            self.tracker.log_images({"val/confusion": result.picture[None]}, step=step)
        if hasattr(self.tracker, "log_table"):
            rows = [list(row) for row in result.per_class.items()]
            self.tracker.log_table("val/per_class", ["class", result.measure], rows, step=step)

    def file(self, path: Path) -> None:
        """Keep a file with the run, where the tracker keeps files."""

    def finish(self) -> None:
        """End the run there."""
        self.tracker.finish()


class Own(Backend):
    """A tracker of the user's own, named by `_target_` in its options.

    It has `log(values, step)`, and what it wants of `start()`, `store_init_configuration(values)`, `finish()`
    and `log_images({name: uint8 [1, H, W, 3]}, step)`, as Accelerate's GeneralTracker.
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
