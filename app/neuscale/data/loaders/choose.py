"""Choose the loader of a run, and give the reason."""

from dataclasses import dataclass

import torch

from neuscale.config.schema import AugmentConfig, DataConfig
from neuscale.data.datasets import Dataset
from neuscale.data.formats.image_list import ListedDataset
from neuscale.data.formats.meta import SPLITS
from neuscale.data.loaders.image_files import FileLoader
from neuscale.data.loaders.loader import Loader
from neuscale.data.loaders.resident import ResidentLoader
from neuscale.data.loaders.streaming import StreamLoader
from neuscale.distributed.rank import Rank
from neuscale.errors import UsageError
from neuscale.hardware import device_memory


@dataclass(frozen=True)
class Choice:
    """`kind`: resident, stream or files; `reason`: as text."""

    kind: str
    reason: str


def choose_loader(config: DataConfig, data: Dataset, device: torch.device) -> Choice:
    """Choose the loader for `data.loader`. Raises UsageError if the data set is not prepared for it."""
    wanted = config.loader
    if isinstance(data, ListedDataset):
        if wanted in ("auto", "files"):
            return Choice("files", f"{data.meta.name} is kept as image files")
        raise UsageError(
            f"data.loader={wanted}: {data.meta.name} is kept as image files.",
            f"Pack it: neuscale data prepare image_folder --source {data.files_folder}"
            f" --size {data.meta.height} --save-as {data.meta.name}",
        )
    size = sum(data.images(split).nbytes for split in SPLITS)
    memory = device_memory(device)
    allowed = config.memory_share * memory
    where = "this machine" if device.type == "cpu" else "the device"
    sizes = (
        f"{_gigabytes(size)} of images, {_gigabytes(allowed)} allowed"
        f" ({config.memory_share:g} of the {_gigabytes(memory)} on {where})"
    )
    if wanted in ("resident", "stream"):
        return Choice(wanted, f"data.loader={wanted}; {sizes}")
    return Choice("resident" if size <= allowed else "stream", sizes)


def create_loader(
    choice: Choice,
    config: DataConfig,
    data: Dataset,
    split: str,
    device: torch.device,
    rank: Rank,
) -> Loader:
    """Create the chosen loader of a split. Raises UsageError for settings that do not fit the data."""
    loader: Loader
    if isinstance(data, ListedDataset):
        loader = FileLoader(data, split, config.image_size, device, rank, config.workers)
    else:
        kind = ResidentLoader if choice.kind == "resident" else StreamLoader
        loader = kind(data, split, config.image_size, device, rank)
    if config.sampler == "balanced" and data.meta.label_sets is not None:
        raise UsageError(
            f"data.sampler=balanced: an image of {data.meta.name} may be of several classes.",
            "Use train.class_weights=balanced, or data.sampler=uniform.",
        )
    loader.sampler = config.sampler
    loader.interpolation = config.interpolation or loader.interpolation
    loader.crop = config.crop or loader.crop
    return loader


def check_augment(augment: AugmentConfig, choice: Choice) -> None:
    """Raise UsageError for an augmentation that needs more pixels than the loader has."""
    if augment.resized_crop and choice.kind != "files":
        raise UsageError(
            "augment.resized_crop cuts from whole image files, and this data set is packed at one size.",
            "Keep the files (neuscale data prepare image_folder --layout files …, data.loader=files),"
            " or use augment.crop_padding.",
        )


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
