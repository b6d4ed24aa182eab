"""Checkpoints are saved on schedule; a missing one would be noticed only when it is needed."""

from collections.abc import Callable

import pytest

from neuscale.config import Config
from neuscale.training.checkpoint import CheckpointFolder
from neuscale.training.run import train


@pytest.mark.parametrize(("every", "steps"), [(5, [5, 10, 15, 20]), (10, [10, 20]), (4, [4, 8, 12, 16, 20])])
def test_every_steps_also_where_an_epoch_ends_there(
    tiny: Callable[..., Config], every: int, steps: list[int]
) -> None:
    """An epoch has five steps, and only the last epoch is evaluated."""
    words = [
        "train.epochs=4",
        "eval.every_epochs=4",
        f"checkpoint.every_steps={every}",
        "checkpoint.keep_last=9",
    ]
    run = train(tiny(*words)).run
    assert [int(path.name.split("-")[1]) for path in CheckpointFolder(run.checkpoints).paths()] == steps
