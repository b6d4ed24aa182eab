"""ViT-S/4 on Tiny ImageNet, in a run that can be stopped and resumed at any time.

    python examples/vit_tiny_imagenet.py                   # 100 epochs, for a GPU
    python examples/vit_tiny_imagenet.py --small           # a minute on a laptop

The run has a name: Ctrl-C saves it, and the same command resumes it.
"""

import argparse

import neuscale

SMALL = ["model.num_layers=2", "model.hidden_dim=96", "model.num_heads=3", "data.image_size=32"]
SMALL += ["train.global_batch_size=64", "train.max_steps=20", "train.log_every_steps=5"]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--source", help="the official zip, where it is not to be fetched")
parser.add_argument("--name", default="vit", help="of the run")
parser.add_argument("--small", action="store_true", help="a smaller ViT on smaller images, for a few steps")
given = parser.parse_args()

neuscale.load_data("tiny_imagenet", source=given.source, progress=True)
words = ["experiment=tiny_imagenet_vit", f"run.name={given.name}", *(SMALL if given.small else [])]
run = neuscale.train(*words, resume=True, progress=True)

if run.outcome and run.outcome.stopped_by:
    print(f"stopped after step {run.outcome.steps}: run the same command again")
else:
    result = neuscale.evaluate(run)
    print(f"top-1 {result.top1:.2%}, top-5 {result.top5:.2%} on {result.samples:,} images; see {run.path}")
