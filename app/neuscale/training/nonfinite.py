"""A loss that is no number: which step it was, which images were in it, and where to go on from."""

import json

from torch import Tensor

from neuscale.config import Config
from neuscale.data.sampling import permutation
from neuscale.errors import UserError
from neuscale.fs import write_atomically
from neuscale.training.checkpoint import CheckpointFolder

FILE = "nonfinite.json"


def check_finite(
    bad: Tensor, config: Config, count: int, steps_per_epoch: int, checkpoints: CheckpointFolder, write: bool
) -> None:
    """Raise UserError where a step's loss was not finite.

    `bad`: the first such step of each process, -1 without; `count`: training images. With
    `write`, the images' numbers go to a file of the run folder, as a step may have thousands.
    """
    steps = [int(step) for step in bad.flatten().tolist() if step >= 0]
    if not steps:
        return
    step = min(steps)  # steps count from 0
    epoch, place = divmod(step, steps_per_epoch)
    size = config.train.global_batch_size
    samples = permutation(config.run.seed, epoch, count)[place * size : (place + 1) * size].tolist()
    folder = checkpoints.folder.parent
    if write:
        write_atomically(folder / FILE, json.dumps({"step": step + 1, "epoch": epoch, "samples": samples}))
    paths = checkpoints.paths()
    last = f"The last good checkpoint is {paths[-1].name}." if paths else "There is no checkpoint yet."
    shown = ", ".join(map(str, samples[:8]))
    raise UserError(
        f"the training loss is not finite at step {step + 1}, epoch {epoch + 1}."
        f" Its images: {shown}{', …' if len(samples) > 8 else ''} (all in {folder / FILE}). {last}",
        f"Lower optim.lr (now {config.optim.lr:g}), or set optim.clip_grad_norm or train.precision=fp32.",
    )
