"""Time that saving a checkpoint costs training, in the background and blocking.

    .venv/bin/python benchmarks/checkpoint.py [--device cuda]

Trains Swin-T with AdamW on CIFAR-10 (which must be prepared) and saves it. `blocking` is the time of a
save that training waits for; `stall`, the time that training is blocked by a save in the background;
`lost`, the total delay of the steps during that save, including the stall. Times are medians.
Writes `benchmarks/results/checkpoint.csv`, or `checkpoint-<gpu>.csv`.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from table import cpu_name, named_for, write_table

from neuscale.config import compose_config
from neuscale.data.formats.packed import PackedDataset, packed_path
from neuscale.data.loaders.loader import Batch
from neuscale.distributed.accelerator import create_accelerator
from neuscale.hardware import available_cores
from neuscale.progress import Silent
from neuscale.runs.folder import RunFolder
from neuscale.training.checkpoint import CheckpointFolder
from neuscale.training.tracking.tracker import Tracker
from neuscale.training.trainer import Trainer

BATCH = 32
PLAIN_STEPS = 8


class Measurement:
    """Trainer whose steps and saves are timed one by one."""

    def __init__(self, device: str, folder: Path) -> None:
        words = ["experiment=cifar10_swin_t", f"train.global_batch_size={BATCH}", f"run.device={device}"]
        config = compose_config([*words, "train.precision=bf16"])
        data = PackedDataset.open(packed_path("cifar10"))
        self.trainer = Trainer(config, data, create_accelerator(device, "bf16"), Silent())
        self.trainer._checkpoints = CheckpointFolder(folder)
        self.trainer._tracker = Tracker(RunFolder(folder), config, data.meta.classes, 0, is_main=False)
        self.trainer.model.train()
        self._batches = self._endless()

    def _endless(self) -> Iterator[list[Batch]]:
        trainer = self.trainer
        while True:
            yield from trainer.loader.training(
                trainer.config.augment, 0, 0, 0, trainer.steps_per_epoch, BATCH, 1
            )

    def step(self) -> float:
        batches = next(self._batches)
        began = time.perf_counter()
        trainer = self.trainer
        trainer.train_step(batches)
        if trainer.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def blocking(self) -> float:
        began = time.perf_counter()
        self.trainer.save({}, is_best=False)
        self.trainer._saver.wait()
        return time.perf_counter() - began

    def background(self) -> tuple[float, float]:
        """Seconds that training was blocked, and seconds lost in total until the save finished."""
        plain = statistics.median(self.step() for _ in range(PLAIN_STEPS))
        began = time.perf_counter()
        self.trainer.save({}, is_best=False)
        stall = time.perf_counter() - began
        pending = self.trainer._saver._pending
        lost = stall
        while pending is not None and not pending.done():
            lost += self.step() - plain
        return stall, lost


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(), help="a folder on the disk to write to")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(available_cores())
    blocking, stalls, losses = [], [], []
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        measured = Measurement(given.device, Path(folder))
        for _ in range(3):
            measured.step()
        measured.blocking()  # warm-up: allocates the memory that later saves reuse
        for _ in range(given.rounds):
            measured.step()
            blocking.append(measured.blocking())
            stall, lost = measured.background()
            stalls.append(stall)
            losses.append(lost)
        newest = measured.trainer._checkpoints.paths()[-1]
        size = sum(file.stat().st_size for file in newest.iterdir())
    device = torch.device(given.device)
    whole = statistics.median(blocking)
    row = {
        "machine": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{cpu_name()}, {available_cores()} cores",
        "torch": torch.__version__,
        "megabytes": f"{size / 1e6:.0f}",
        "blocking_s": f"{whole:.3f}",
        "stall_s": f"{statistics.median(stalls):.4f}",
        "stall_share": f"{statistics.median(stalls) / whole:.3f}",
        "lost_s": f"{statistics.median(losses):.3f}",
        "lost_share": f"{statistics.median(losses) / whole:.3f}",
    }
    write_table(named_for("checkpoint", device), [row])


if __name__ == "__main__":
    main()
