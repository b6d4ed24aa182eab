"""Train under Lightning's Trainer as its users do; write what each process saw to rankN.json.

python under_lightning.py FOLDER DEVICES MAX_STEPS CHECKPOINT|- FIELD=VALUE …
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from neuscale.integrations.lightning import ImageClassifier, ImageDataModule, trainer_options


class Record(Callback):
    """Record the step, loss and image indices of each micro-batch."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.lines.append(
            {
                "step": batch.epoch * pl_module._steps_per_epoch
                + batch.positions.start // pl_module.config.train.global_batch_size,
                "loss": outputs["loss"].item() * trainer.accumulate_grad_batches,
                "samples": batch.samples.tolist(),
            }
        )


def main() -> None:
    folder, devices, steps, checkpoint, *words = sys.argv[1:]
    torch.set_num_threads(1)
    record = Record()
    options = trainer_options(words, devices=int(devices)) | {"max_steps": int(steps)}
    every = ModelCheckpoint(Path(folder) / "checkpoints", "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = Trainer(
        **options,
        callbacks=[record, every],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    model = ImageClassifier(words)
    given = None if checkpoint == "-" else checkpoint
    trainer.fit(model, ImageDataModule(words), ckpt_path=given)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    weight = sum(p.detach().double().sum().item() for p in model.parameters())
    content = {"lines": record.lines, "metrics": metrics, "weight": weight}
    Path(folder, f"rank{trainer.global_rank}.json").write_text(json.dumps(content))


if __name__ == "__main__":
    main()
