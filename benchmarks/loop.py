"""Overhead of our training loop, compared with other loops.

    .venv/bin/python benchmarks/loop.py

The loops train one small model on batches of one shape from memory, with AdamW: a bare PyTorch loop,
Accelerate's as in its documentation, Lightning's Trainer, and ours with its schedule, logging and
weight average. The inputs differ: ours gathers bytes of CIFAR-10 in random order and normalises them,
while the others collate random float32 images with a DataLoader. Each loop's time includes its input, so
the ratios compare these two input pipelines as well. Each loop runs in its own process, because ours
configures the C library's allocator, and in one thread, because the work around the model is compared.
The loops take turns in random order; times are medians, and ratios are medians of the ratios within each
round. Writes `benchmarks/results/loop.csv`.
"""

import argparse
import importlib.util
import logging
import operator
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from table import cpu_name, write_table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from neuscale.config import Config, compose_config
from neuscale.data.formats.packed import PackedDataset, packed_path
from neuscale.distributed.accelerator import create_accelerator
from neuscale.models.registry import create_model
from neuscale.progress import Silent
from neuscale.runs.folder import RunFolder
from neuscale.training.checkpoint import CheckpointFolder
from neuscale.training.tracking.tracker import Tracker
from neuscale.training.trainer import Trainer

STEPS, BATCH, REPEATS = 100, 32, 3
MODEL = ["model=swin_nano", "data=cifar10", "augment=none", "optim=adamw", "model.ops=eager"]
PLAIN = [
    *MODEL,
    "experiment=null",
    "train.epochs=1",
    f"train.max_steps={STEPS}",
    f"train.global_batch_size={BATCH}",
    "run.device=cpu",
    "train.precision=fp32",
    "optim.clip_grad_norm=null",
]


def small_model() -> nn.Module:
    return create_model(compose_config(MODEL).model, 32, 3, 10, 0)


def batches() -> DataLoader[Any]:
    torch.manual_seed(0)
    images = torch.randn(STEPS * BATCH, 3, 32, 32)
    return DataLoader(TensorDataset(images, torch.randint(0, 10, (len(images),))), BATCH)


def bare() -> float:
    model, data = small_model(), batches()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    began = time.perf_counter()
    for images, labels in data:
        loss: Tensor = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - began


def accelerate_loop() -> float:
    accelerator = Accelerator(cpu=True)
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    model, optimizer, data, scheduler = accelerator.prepare(model, optimizer, batches(), scheduler)
    began = time.perf_counter()
    for images, labels in data:
        with accelerator.accumulate(model):
            loss = F.cross_entropy(model(images), labels)
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return time.perf_counter() - began


def lightning_loop() -> float:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = small_model()

        def training_step(self, batch: Any, _: int) -> Tensor:
            images, labels = batch
            return F.cross_entropy(self.model(images), labels)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-3, fused=True)

        def on_train_start(self) -> None:
            self.began = time.perf_counter()

        def on_train_end(self) -> None:
            self.seconds = time.perf_counter() - self.began

    module = Module()
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(module, batches())
    return module.seconds


def ours(config: Config) -> float:
    """Seconds of the trainer's timer, with loader, schedule, logging and average, without evaluation."""
    data = PackedDataset.open(packed_path("cifar10"))
    trainer = Trainer(config, data, create_accelerator("cpu", "fp32"), Silent())
    with tempfile.TemporaryDirectory() as folder:
        trainer.val_loader = type("None_", (), {"evaluation": lambda *_: iter(()), "__len__": lambda _: 0})()
        trainer._end_epoch = lambda *_: None  # type: ignore[method-assign]
        run = RunFolder(Path(folder))
        tracker = Tracker(run, config, data.meta.classes, 0, True)
        trainer.fit(CheckpointFolder(Path(folder) / "checkpoints"), tracker)
        tracker.close()
    return trainer.metrics.timer.seconds


SIDES = {
    "bare PyTorch": bare,
    "accelerate": accelerate_loop,
    "lightning": lightning_loop,
    "neuscale": lambda: ours(compose_config([*PLAIN, "tracking.trackers=[]"])),
    "neuscale, logging every 10 steps, TensorBoard, weight average": lambda: ours(
        compose_config([*PLAIN, "train.log_every_steps=10", "train.ema_decay=0.999"])
    ),
}


def measure_here(name: str) -> float:
    """Seconds per step in this process: the median of REPEATS short trainings after a warm-up."""
    torch.set_num_threads(1)
    side = SIDES[name]
    side()
    return statistics.median(side() for _ in range(REPEATS)) / STEPS


def measure(rounds: int) -> list[dict[str, str]]:
    names = [name for name in SIDES if name != "lightning" or importlib.util.find_spec("lightning")]
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        order = list(names)
        random.Random(turn).shuffle(order)
        for name in order:
            command = [sys.executable, __file__, "--side", name]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            times[name].append(float(done.stdout.split()[-1]))
            print(f"round {turn + 1}: {name} {times[name][-1] * 1e3:.2f} ms", flush=True)
    base = times["bare PyTorch"]
    return [
        {
            "machine": f"{cpu_name()}, 1 thread",
            "torch": torch.__version__,
            "loop": name,
            "ms_per_step": f"{statistics.median(values) * 1e3:.2f}",
            "lowest": f"{min(values) * 1e3:.2f}",
            "highest": f"{max(values) * 1e3:.2f}",
            "over_bare": f"{statistics.median(map(operator.truediv, values, base)):.3f}",
        }
        for name, values in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--side", choices=SIDES, help="measure this one here, and print its seconds a step")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if given.side:
        print(measure_here(given.side))
    else:
        write_table("loop", measure(given.rounds))


if __name__ == "__main__":
    main()
