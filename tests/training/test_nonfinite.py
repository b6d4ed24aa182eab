"""A non-finite loss is reported with the first bad step of any process and that step's images."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from neuscale.config import Config
from neuscale.data.loaders.loader import Loader
from neuscale.errors import UserError
from neuscale.training.checkpoint import CheckpointFolder
from neuscale.training.loss import check_finite
from neuscale.training.trainer import Trainer
from reference.draws import order


@pytest.fixture
def sixty(build_trainer: Callable[..., Trainer]) -> Loader:
    """Loader of 60 training images."""
    return build_trainer().loader


@pytest.mark.parametrize(
    ("bad", "step", "epoch"), [([7, -1, 4], 4, 0), ([-1, 8, 8], 8, 1), ([13], 13, 2), ([0, -1], 0, 0)]
)
def test_the_first_bad_step_of_any_process_and_its_images_are_named(
    tiny: Callable[..., Config], sixty: Loader, tmp_path: Path, bad: list[int], step: int, epoch: int
) -> None:
    """60 images make 5 steps of 12; steps and epochs are reported counting from 1."""
    checkpoints = CheckpointFolder(tmp_path / "checkpoints")
    with pytest.raises(UserError, match=rf"not finite at step {step + 1}, epoch {epoch + 1}\.") as caught:
        check_finite(torch.tensor(bad), tiny("run.seed=9"), sixty, 5, checkpoints, write=True)
    first = (step - 5 * epoch) * 12
    images = order(9, epoch, 60)[first : first + 12]
    assert json.loads((tmp_path / "nonfinite.json").read_text())["samples"] == images
    assert f"Its images: {', '.join(map(str, images[:8]))}, …" in caught.value.problem


def test_finite_losses_raise_nothing(tiny: Callable[..., Config], sixty: Loader, tmp_path: Path) -> None:
    check_finite(torch.tensor([-1, -1]), tiny(), sixty, 5, CheckpointFolder(tmp_path), write=True)
    assert not (tmp_path / "nonfinite.json").exists()
