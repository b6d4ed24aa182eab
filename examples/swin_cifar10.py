"""Swin-T on CIFAR-10, from the images to a trained and evaluated model.

    python examples/swin_cifar10.py                        # 100 epochs, for a GPU
    python examples/swin_cifar10.py --small                # a minute on a laptop
    torchrun --nproc-per-node 4 examples/swin_cifar10.py   # on four GPUs

CIFAR-10 is downloaded on first use, or prepared from the archive given as --source.
"""

import argparse

import neuscale

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--source", help="the official archive, or CIFAR-10 as a tree of image files")
parser.add_argument("--small", action="store_true", help="a smaller Swin, for a few steps")
given = parser.parse_args()

data = neuscale.load_data("cifar10", source=given.source, progress=True)
small = ["model=swin_nano", "train.max_steps=20", "train.log_every_steps=10"] if given.small else []
run = neuscale.train("experiment=cifar10_swin_t", *small, progress=True)

for point in run.metrics:
    print(f"step {point['step']:6}  {point['split']:5}  loss {point['loss']:.3f}")
if run.outcome and run.outcome.last:
    accuracies = zip(data.meta.classes, run.outcome.last.per_class(), strict=True)
    print(", ".join(f"{name} {accuracy:.1%}" for name, accuracy in accuracies if accuracy is not None))
print(f"best top-1 {neuscale.evaluate(run).top1:.2%}; everything is in {run.path}")
