"""Evaluation of any module on any prepared data, without a run."""

from contextlib import nullcontext
from copy import copy
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import nn

from neuscale.config.schema import DataConfig
from neuscale.data.choose import choose_loader, create_loader
from neuscale.data.loader import Share
from neuscale.data.prepared import Dataset
from neuscale.errors import UsageError
from neuscale.evaluation.evaluate import Evaluation, evaluate
from neuscale.progress import Progress


def evaluate_module(
    model: nn.Module, data: Dataset, split: str, batch_size: int, image_size: int | None, progress: Progress
) -> Evaluation:
    """Evaluates `model` where it is, on normalised images of `data`, resized to `image_size` if given.

    Between initialised processes each takes its share. Raises UsageError where the model does not make a
    number for each class.
    """
    place = next((p.device for p in model.parameters()), torch.device("cpu"))
    section = DataConfig(name=data.meta.name, image_size=image_size)
    share = Share(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Share()
    loader = create_loader(choose_loader(section, data, place), section, data, split, place, share)
    _check_logits(model, data, loader.size, place)
    return evaluate(
        model,
        loader.evaluation(batch_size),
        data.meta.num_classes,
        place,
        nullcontext,
        progress,
        total=len(loader) // share.processes,
    )


def normalized_as(data: Dataset, trained_on: Dataset) -> Dataset:
    """`data`, normalised like what a model was trained on. Raises UsageError where the classes differ."""
    if (data.meta.classes, data.meta.channels) != (trained_on.meta.classes, trained_on.meta.channels):
        raise UsageError(
            f"{data.meta.name} has other classes or channels than {trained_on.meta.name},"
            " which the run was trained on.",
            "Evaluate it on data with the same classes, in the same order.",
        )
    view = copy(data)
    view.meta = replace(data.meta, mean=trained_on.meta.mean, std=trained_on.meta.std)
    return view


def _check_logits(model: nn.Module, data: Dataset, size: int, place: torch.device) -> None:
    """Raises UsageError for a module that does not classify into the classes of `data`."""
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        shape = tuple(model(torch.zeros(1, data.meta.channels, size, size, device=place)).shape)
    model.train(was_training)
    if shape != (1, data.meta.num_classes):
        raise UsageError(
            f"the model makes {'×'.join(map(str, shape))} numbers of an image,"
            f" and {data.meta.name} has {data.meta.num_classes} classes.",
            "Give it a head for that many classes: create_model(…, data=data).",
        )
