"""Weights & Biases: a run's configuration, curves and confusion matrix; wandb is imported only here."""

import os
import uuid
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from neuscale.config import Config
from neuscale.config.schema import TrackingConfig
from neuscale.errors import UsageError, UserError, disk_error
from neuscale.fs import write_atomically
from neuscale.runs.folder import RunFolder

_ID_FILE = "wandb-id"


def check_wandb(config: TrackingConfig) -> None:
    """Raise UsageError where Weights & Biases is asked for and not installed."""
    if config.wandb and find_spec("wandb") is None:
        raise UsageError("tracking.wandb=true: wandb is not installed.", "Install it: pip install wandb.")


class WandbRun:
    """The Weights & Biases run of a run folder: the same one each time that the run goes on.

    Points carry their step as a value: W&B's own counter takes no step again, which a run does
    that goes on from a checkpoint behind its last point.
    """

    def __init__(self, run: RunFolder, config: Config) -> None:
        import wandb

        # What is left out, W&B takes from the environment ($WANDB_ENTITY, $WANDB_TAGS, …).
        tracking = config.tracking
        mode: Any = tracking.wandb_mode or os.environ.get("WANDB_MODE")  # it reads that once a process
        try:
            self._run: Any = wandb.init(
                project=tracking.wandb_project or os.environ.get("WANDB_PROJECT") or "neuscale",
                entity=tracking.wandb_entity,
                group=tracking.wandb_group,
                tags=tracking.wandb_tags or None,
                name=run.name,
                id=_run_id(run),
                resume="allow",
                dir=str(run.path),
                mode=mode,
                config=asdict(config),
                settings=wandb.Settings(silent=True, console="off"),
            )
        except Exception as error:  # no account, no network, no room
            first = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"tracking.wandb=true: Weights & Biases cannot be used ({first}).",
                "Log in ('wandb login'), or write for a later 'wandb sync': tracking.wandb_mode=offline.",
            ) from error
        self._run.define_metric("*", step_metric="step")

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Points of curves."""
        self._run.log({**values, "step": step})

    def evaluation(
        self,
        values: dict[str, float],
        picture: Tensor | None,
        per_class: list[tuple[str, float | None]],
        step: int,
    ) -> None:
        """The numbers of an evaluation, its confusion matrix [3, H, W], and a table of classes.

        Without a picture, as of several labels an image, the table has the classes' average precision.
        """
        import wandb

        what = "accuracy" if picture is not None else "average_precision"
        logged: dict[str, Any] = {**values, "step": step}
        logged["val/per_class"] = wandb.Table(columns=["class", what], data=[list(row) for row in per_class])
        if picture is not None:
            logged["val/confusion"] = wandb.Image(picture.permute(1, 2, 0).numpy())
        self._run.log(logged)

    def close(self) -> None:
        self._run.finish()


def _run_id(run: RunFolder) -> str:
    path = run.path / _ID_FILE
    try:
        if path.exists():
            return path.read_text().strip()
        identifier = uuid.uuid4().hex[:12]
        write_atomically(path, identifier + "\n")
    except OSError as error:
        raise disk_error(error, path) from error
    return identifier
