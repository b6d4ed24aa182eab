"""Python API: the commands as functions, for scripts and notebooks. Use it as `import neuscale`.

    data = neuscale.load_data("cifar10")
    run = neuscale.train("experiment=cifar10_swin_t", "train.epochs=30", progress=True)
    print(run.metrics[-1], neuscale.evaluate(run).top1)
    model = neuscale.load_run("last").model()

A configuration is given as overrides, as on the command line, or as a Config followed by overrides that
change it. Errors that a user can fix are `neuscale.UserError`, with the messages of the command line. No
function exits the process. Started by torchrun or `accelerate launch`, `train` and `evaluate` are
distributed over all ranks, like the commands.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from neuscale.config import Config, compose_config, config_from_yaml, config_to_yaml
from neuscale.config.schema import DataConfig
from neuscale.data.catalog import CATALOG
from neuscale.data.datasets import Dataset, check_split, is_prepared, open_prepared, prepared_names
from neuscale.data.loaders.loader import model_size
from neuscale.data.open import open_data
from neuscale.data.prepare import prepare
from neuscale.data.sources.options import SourceOptions
from neuscale.distributed.accelerator import resolve_device
from neuscale.errors import UsageError
from neuscale.evaluation.evaluate import AnyEvaluation, evaluate_module, normalized_as
from neuscale.hardware import available_cores
from neuscale.inference.evaluate_run import evaluate_run
from neuscale.inference.restore import restore
from neuscale.models.registry import check_arch
from neuscale.models.registry import create_model as create_from_sizes
from neuscale.models.weights import load_starting_weights
from neuscale.paths import data_root
from neuscale.progress import Progress, Silent
from neuscale.runs.differences import check_same_run
from neuscale.runs.folder import RunFolder, all_runs, find_run
from neuscale.runs.manifest import read_manifest
from neuscale.runs.metrics import read_metrics
from neuscale.training.outcome import Outcome
from neuscale.training.run import train as train_config

__all__ = ["Run", "create_model", "evaluate", "load_data", "load_run", "train"]


class Run:
    """A training run and the contents of its folder.

    `outcome`: the result of the training, with its last evaluation; None for a run from `load_run`.
    """

    def __init__(self, folder: RunFolder, outcome: Outcome | None = None) -> None:
        self._folder = folder
        self.outcome = outcome

    def __repr__(self) -> str:
        return f"<Run {self.name}: {self.manifest.get('status', 'not started')}>"

    @property
    def path(self) -> Path:
        """The run folder."""
        return self._folder.path

    @property
    def name(self) -> str:
        """Name of the run folder, as used by `load_run` and the commands."""
        return self._folder.name

    @property
    def config(self) -> Config:
        """The configuration of the run."""
        return self._folder.config()

    @property
    def manifest(self) -> dict[str, Any]:
        """`manifest.json`: command, code, packages, machine, data, status and result."""
        return read_manifest(self._folder.manifest_file)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Points of the curves: dicts with `split` ("train" or "val"), `step`, `loss` and more."""
        file = self._folder.metrics_file
        return list(read_metrics(file)) if file.exists() else []

    def model(self, checkpoint: str = "best", device: str = "cpu") -> nn.Module:
        """Return the trained model on `device`, in eval mode: [B, C, S, S] → logits [B, classes].

        `checkpoint`: "best", "last", or the name of a folder in `checkpoints`. For a run with
        `train.ema_decay`, the weights are the moving average. Raises CheckpointError, and DataError or
        UsageError if the run's data set, which determines the number of classes, is missing.
        """
        restored = restore(self._folder, checkpoint, "auto", device, Silent(), stage=False, eager=True)
        return restored.model

    def resume(self, *overrides: str, progress: bool | Progress = False) -> "Run":
        """Resume from the newest checkpoint, with fields changed by `overrides`; return the updated Run."""
        config = self._folder.config(list(overrides))
        if not any(word.startswith("run.device=") for word in overrides):
            config.run.device = "auto"  # it may be resumed on another machine
        return _train(config, self._folder, progress)


def load_data(
    name: str,
    *,
    source: str | Path | None = None,
    size: int | None = None,
    progress: bool | Progress = False,
    **options: Any,
) -> Dataset:
    """Open the data set `name`. If it is not prepared yet, it is downloaded or made from `source` first.

    `source`: a file or folder of images; `size`: side in pixels to which they are scaled; `options`: options
    of `SourceOptions` (`fit`, `val_share`, `nested` and others). In a packed data set,
    `data.images("train")` is uint8 [N, C, H, W]. `data.labels("train")` is int64 [N], and
    `data.meta.classes` contains the class names. Raises UsageError, or DataError, for example if the
    existing data set of this name was made from another source.
    """
    given = Path(source) if source is not None else None
    asked = SourceOptions(size=size, **options)
    if source is None and is_prepared(name) and not asked.names:
        return open_prepared(name)
    if source is None and name not in CATALOG:
        raise UsageError(
            f"{name}: no such data set is prepared in {data_root()}"
            f" (there: {', '.join(prepared_names()) or 'none'}).",
            f'Say where its images are: load_data("{name}", source=FOLDER).',
        )
    entry = name if name in CATALOG else "image_folder"
    return prepare(entry, source=given, options=asked, save_as=name, progress=_progress(progress))


def create_model(*config: str | Config, data: Dataset | None = None) -> nn.Module:
    """Create the untrained model of a configuration, with the weights of `model.weights` if that is set.

    `config`: as for `train`. `data`: the data set that determines image size, channels and classes; by
    default that of the configuration. Raises UsageError, and CheckpointError or DataError for weights or
    data that cannot be read.
    """
    composed = _config(config)
    check_arch(composed.model)
    data = data if data is not None else open_data(composed, Silent())
    sizes = (model_size(data.meta, composed.data.image_size), data.meta.channels, data.meta.num_classes)
    model = create_from_sizes(composed.model, *sizes, composed.run.seed)
    if composed.model.weights is not None:
        load_starting_weights(model, composed.model, *sizes)
    return model


def train(*config: str | Config, resume: bool = False, progress: bool | Progress = False) -> Run:
    """Train a configuration in a new run folder; without overrides, train the recipe experiment=quickstart.

    `config`: overrides, or a Config followed by overrides. `resume`: resume the run called `run.name` if it
    exists. If interrupted (Ctrl-C, or the stop button of a notebook), the run is saved and returned:
    `run.outcome.stopped_by` names the signal or limit, and `run.resume()` continues it. Outside the main
    thread no signals are received, and only `run.time_limit` can interrupt it. Raises UserError.
    """
    composed = _config(config)
    if not resume:
        return _train(composed, None, progress)
    name = composed.run.name
    if name is None:
        raise UsageError(
            "resume=True needs the name of a run, and none is given.",
            'Give it, "run.name=NAME", or resume a given run: neuscale.load_run(NAME).resume().',
        )
    found = next((run for run in all_runs() if run.name == name), None)
    if found is not None:
        check_same_run(composed, found)
    return _train(composed, found, progress)


def load_run(name: str | Path) -> Run:
    """Open the run with this name in the runs folder, or at this path; "last" is the newest.

    Raises UsageError if there is no such run.
    """
    return Run(find_run(str(name)))


def evaluate(
    model: Run | str | nn.Module,
    data: Dataset | None = None,
    *,
    split: str = "val",
    batch_size: int | None = None,
    image_size: int | None = None,
    progress: bool | Progress = False,
) -> AnyEvaluation:
    """Evaluate a run (its best weights), or any module, on a split of `data`.

    Without `data`, a run is evaluated on its own data set, like `neuscale eval`, with its own batch size.
    Otherwise `batch_size` is 500 by default. Other data must have the same classes, and are normalised like
    the training data of the run. A module gets images that are normalised with the mean and standard
    deviation of `data`, resized to `image_size` (for modules only) if that is given, and on the module's
    device. Raises UsageError, also for an argument that would have no effect, DataError or CheckpointError.
    """
    if data is not None:
        check_split(data, split)
    shown = _progress(progress)
    section = DataConfig(name=data.meta.name if data is not None else "", image_size=image_size)
    if isinstance(model, str):
        model = load_run(model)
    if isinstance(model, Run):
        _check_arguments(model, data, batch_size, image_size)
        if data is None:
            return evaluate_run(model._folder, "best", split, None, shown).evaluation
        config = model.config
        trained_on = open_data(config, shown)
        data = normalized_as(data, trained_on)
        # Only the preprocessing is taken from the run: the data may be stored elsewhere, in another form.
        section.image_size = model_size(trained_on.meta, config.data.image_size)
        section.interpolation, section.crop = config.data.interpolation, config.data.crop
        model = model.model(device=resolve_device("auto"))
    elif data is None:
        raise UsageError("evaluate(model) needs data.", 'For example: evaluate(model, load_data("cifar10")).')
    return evaluate_module(model, data, split, 500 if batch_size is None else batch_size, section, shown)


def _check_arguments(run: Run, data: Dataset | None, batch_size: int | None, image_size: int | None) -> None:
    """Raise UsageError for an argument of `evaluate` that has no effect on a run."""
    if image_size is not None:
        raise UsageError(
            "`image_size`: a run is evaluated on images of the size that it was trained on.",
            f"Remove it, or evaluate the model: evaluate(run.model(), data, image_size={image_size}).",
        )
    if data is None and batch_size is not None:
        raise UsageError(
            f"`batch_size`: without `data` a run has its own, eval.batch_size={run.config.eval.batch_size}.",
            f"Remove it, or give the data: evaluate(run, data, batch_size={batch_size}).",
        )


def _config(given: tuple[str | Config, ...]) -> Config:
    """Compose a Config from overrides, or from a Config followed by overrides that change it."""
    overrides = [word for word in given if isinstance(word, str)]
    if given and isinstance(given[0], Config):
        return config_from_yaml(config_to_yaml(given[0]), overrides, "the Config")
    if len(overrides) < len(given):
        raise UsageError(
            f"{next(word for word in given if not isinstance(word, str))!r} is not of the form field=value.",
            'Give overrides ("optim.lr=1e-3"), or a Config first and overrides behind it.',
        )
    return compose_config(overrides)


def _train(config: Config, resume: RunFolder | None, progress: bool | Progress) -> Run:
    if torch.get_num_threads() > available_cores():  # torch ignores a container's CPU quota
        torch.set_num_threads(available_cores())
    trained = train_config(config, resume, _progress(progress))
    return Run(trained.run, trained.outcome)


def _progress(wanted: bool | Progress) -> Progress:
    if isinstance(wanted, bool):
        if not wanted:
            return Silent()
        from neuscale.cli.progress import create_progress

        return create_progress()
    return wanted
