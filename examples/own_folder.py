"""Train a model on your own images, and classify one of them.

python examples/own_folder.py --source pets            # pets/train/<class>/*, pets/val/<class>/*
python examples/own_folder.py --source pets.zip --size 64 --epochs 20
"""

import argparse

import torch

import neuscale

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--source", required=True, help="a folder, .zip, .tar or .tar.gz of train/ and val/")
parser.add_argument("--name", default="own", help="what the data set is to be called")
parser.add_argument("--size", type=int, default=32, help="side in pixels that the images are made")
parser.add_argument("--epochs", type=int, default=10)
given = parser.parse_args()

data = neuscale.load_data(given.name, source=given.source, size=given.size, progress=True)
run = neuscale.train(
    "data=image_folder",
    f"data.name={given.name}",
    "optim.lr=2e-3",
    f"train.epochs={given.epochs}",
    "train.global_batch_size=16",
    progress=True,
)

# One image in the form the model expects: values in 0 … 1, normalised like the training images.
mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (data.meta.mean, data.meta.std))
image = (torch.from_numpy(data.image("val", 0)) / 255 - mean) / std
with torch.inference_mode():
    probabilities = run.model()(image[None]).softmax(1)[0]
classes = data.meta.classes
print(f"an image of '{classes[data.labels('val')[0]]}' is taken for:")
for probability, i in zip(*probabilities.topk(min(3, len(classes))), strict=True):
    print(f"  {probability:6.1%}  {classes[i]}")
