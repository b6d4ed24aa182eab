"""Whether going on with a run would still be the same run."""

from dataclasses import asdict

from neuscale.config import Config
from neuscale.data.prepared import Dataset
from neuscale.errors import UsageError
from neuscale.runs.folder import RunFolder
from neuscale.runs.manifest import read_manifest

# What may differ in the model of a run that goes on: it changes no number.
_FREE = ("gradient_checkpointing", "weights")


def check_same_run(config: Config, run: RunFolder) -> None:
    """Raises UsageError for a field that cannot change in a run that has begun."""
    before = run.config()
    model_now, model_then = asdict(config.model), asdict(before.model)
    names = [name for name in {**model_then, **model_now} if name not in _FREE]
    fixed: dict[str, tuple[object, object]] = {
        **{f"model.{name}": (model_now.get(name), model_then.get(name)) for name in names},
        "data.name": (config.data.name, before.data.name),
        "data.image_size": (config.data.image_size, before.data.image_size),
        "optim.name": (config.optim.name, before.optim.name),
        "train.global_batch_size": (config.train.global_batch_size, before.train.global_batch_size),
        "run.seed": (config.run.seed, before.run.seed),
    }
    for name, (value, then) in fixed.items():
        if value != then:
            raise UsageError(
                f"{run.path}: {name} cannot change in a run that has begun (it was {then}).",
                "Leave it as it was, or start a new run.",
            )


def check_same_data(data: Dataset, run: RunFolder) -> None:
    """Raises UsageError where the prepared data is not what the run was trained on."""
    fingerprint = read_manifest(run.manifest_file).get("data", {}).get("fingerprint")
    if fingerprint is not None and fingerprint != data.meta.fingerprint:
        raise UsageError(
            f"{run.path}: was trained on other data than what is now prepared as '{data.meta.name}'.",
            "Prepare the same data again, or start a new run.",
        )
