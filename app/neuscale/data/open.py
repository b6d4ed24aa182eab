"""Open the data set of a configuration; prepare and stage it first if necessary."""

import dataclasses
import shlex
from copy import copy
from dataclasses import replace
from pathlib import Path

from neuscale.config import Config
from neuscale.data.catalog import CATALOG
from neuscale.data.datasets import Dataset, is_prepared, prepared_names
from neuscale.data.formats.image_list import ListedDataset, listed_path
from neuscale.data.formats.meta import PackedMeta, RenormalisedMeta
from neuscale.data.formats.packed import PackedDataset, packed_path
from neuscale.data.formats.write_image_list import list_images
from neuscale.data.own_dataset import own_dataset
from neuscale.data.prepare import prepare
from neuscale.data.staging import staged_for_training
from neuscale.errors import DataError, UsageError
from neuscale.hub import hub_name
from neuscale.paths import data_root
from neuscale.progress import Progress
from neuscale.project.targets import TARGET


def open_data(config: Config, progress: Progress) -> Dataset:
    """Open the data set of a configuration; prepare and stage it first if necessary.

    It is packed, unless only image files are listed or `data.loader=files` asks for them.
    Raises UsageError or DataError with advice on how to get it.
    """
    data = _prepared_data(config, progress)
    if data.meta.num_classes < 2:
        raise DataError(
            f"{data.folder}: there is one class, '{data.meta.classes[0]}', and nothing to tell it from.",
            "Add images of another class, and prepare it again.",
        )
    if not isinstance(data, ListedDataset):
        data = staged_for_training(data, config.data.stage, progress)
    return normalised(data, config)


def normalised(data: Dataset, config: Config) -> Dataset:
    """`data` with mean and std from `data.mean` and `data.std` of the configuration, if they are set.

    Raises UsageError if they are not one number per channel.
    """
    mean, std = config.data.mean, config.data.std
    if not mean and not std:
        return data
    if data.meta.channels == 1 and len(mean) == len(std) == 3:  # from weights for colour images
        mean, std = [sum(mean) / 3], [sum(std) / 3]
    if not len(mean) == len(std) == data.meta.channels:
        raise UsageError(
            f"data.mean={mean} and data.std={std}: expected {data.meta.channels} numbers each, one for each"
            f" channel of {data.meta.name}.",
            "Give both, or none of them.",
        )
    view = copy(data)
    fields = {field.name: getattr(data.meta, field.name) for field in dataclasses.fields(PackedMeta)}
    view.meta = RenormalisedMeta(**{**fields, "mean": list(mean), "std": list(std)}, own=data.meta)
    return view


def open_run_data(config: Config, progress: Progress) -> Dataset:
    """Open the data set of an existing run in its prepared form, whatever has become of its source.

    The run may be another user's, so its source is not read, nor is its staging folder created.
    Raises DataError if the data set is not prepared and not in the catalogue.
    """
    name, source = config.data.name, config.data.source
    if source is not None and not is_prepared(name):
        entry = name if name in CATALOG else "image_folder"
        raise DataError(
            f"{data_root()}: the data set '{name}' of this run is not prepared; it was made from {source}.",
            f"Prepare it from there or from your own copy: neuscale data prepare {entry}"
            f" --source {shlex.quote(source)} --save-as {name}",
        )
    if config.data.dataset is not None and not is_prepared(name):
        raise DataError(
            f"{data_root()}: the data set '{name}' of this run is not prepared; it was made by"
            f" {config.data.dataset.get(TARGET)}.",
            "Make it in the project folder of that: neuscale train, with the words that the run began with.",
        )
    stage = config.data.stage if config.data.stage in ("none", "auto") else "auto"
    section = replace(config.data, source=None, dataset=None, stage=stage)
    return open_data(replace(config, data=section), progress)


def _is_prepared_from_hub(name: str, source: str) -> bool:
    """True if the data set was made from the Hub data set that `source` names, so no network is needed."""
    wanted = hub_name(source)
    if wanted is None or not packed_path(name).is_dir():
        return False
    given = str(PackedDataset.open(packed_path(name)).meta.source.get("given", ""))
    made_of = hub_name(given) if given.startswith("hf:") else None
    if made_of is None or (made_of.repo, made_of.path) != (wanted.repo, wanted.path):
        return False
    return wanted.revision in (None, made_of.revision)


def _prepared_data(config: Config, progress: Progress) -> Dataset:
    name, loader = config.data.name, config.data.loader
    if config.data.dataset is not None:
        return own_dataset(name, config.data.dataset, progress)
    source = Path(config.data.source) if config.data.source is not None else None
    if source is not None and _is_prepared_from_hub(name, str(source)):
        source = None
    listed = listed_path(name)
    if loader == "files" or (loader == "auto" and not packed_path(name).is_dir() and listed.is_dir()):
        if source is None and listed.is_dir():
            return ListedDataset.open(listed)
        if source is not None:
            entry = name if name in CATALOG else "image_folder"
            size = config.data.image_size if not listed.is_dir() else None
            return list_images(entry, source=source, size=size, save_as=name, progress=progress)
        raise UsageError(
            f"data.loader=files: the images of {name} are not kept as files in {data_root()}.",
            f"List them: neuscale data prepare image_folder --layout files --source FOLDER --save-as {name}",
        )
    if source is None and packed_path(name).is_dir():
        return PackedDataset.open(packed_path(name))
    try:
        if name in CATALOG and (source is not None or CATALOG[name].files):
            return prepare(name, source=source, save_as=name, progress=progress)
        if source is not None:
            return prepare("image_folder", source=source, save_as=name, progress=progress)
    except DataError as error:
        if packed_path(name).is_dir() and source is not None:  # made from another source
            raise DataError(error.problem, "Give this data another name: data.name=NAME.") from error
        if source is not None:
            command = (
                f"neuscale data prepare image_folder --source {shlex.quote(str(source))} --save-as {name}"
            )
            raise DataError(error.problem, f"{error.fix} Options belong to: {command}".strip()) from error
        raise
    raise UsageError(
        f"data.name={name}: no such data set is prepared in {data_root()}"
        f" (there: {', '.join(prepared_names()) or 'none'}).",
        f"Prepare it: neuscale data prepare image_folder --source FOLDER --save-as {name};"
        " or name the folder here: data.source=FOLDER.",
    )
