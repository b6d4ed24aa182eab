"""Train a run again from its manifest, and compare the results."""

import os
import shutil
from dataclasses import asdict, dataclass
from typing import Any

import torch
import yaml

from neuscale.analysis.equality import Verdict, compare_results, final_weights
from neuscale.analysis.listing import metrics_of
from neuscale.config import Config, config_from_yaml
from neuscale.config.schema import TENSORBOARD
from neuscale.data.datasets import is_prepared, remedy
from neuscale.data.open import open_run_data
from neuscale.distributed.accelerator import check_device
from neuscale.distributed.launch import launch
from neuscale.distributed.rank import started_by_launcher
from neuscale.errors import UsageError
from neuscale.paths import runs_root
from neuscale.progress import Progress
from neuscale.project.trust import trusted
from neuscale.runs.differences import Difference, changing_fields, differences, short
from neuscale.runs.folder import RunFolder, create_run, numbered_names
from neuscale.runs.manifest import load_manifest, write_manifest
from neuscale.runs.own_code import use_code
from neuscale.training.run import train


@dataclass(frozen=True)
class Replayed:
    """The new run, the verdict of the comparison, and differences in data and environment.

    `verdict` is None if the new run was stopped before its end. `forced`: accepted differences of the data.
    """

    run: RunFolder
    verdict: Verdict | None
    changed: list[Difference]
    forced: list[str]


def replay(run: RunFolder, overrides: list[str], force: bool, progress: Progress) -> Replayed:
    """Train `run` again in a new folder, with its configuration changed by `overrides`.

    The numbers of processes and threads are those of the run. Raises UsageError if the data are not
    those of the run, unless `force` is true, and if there is nothing to compare with.
    """
    if started_by_launcher():
        raise UsageError("replay starts its processes itself.", "Call it without torchrun or accelerate.")
    manifest = load_manifest(run.manifest_file)
    if not metrics_of(run) and final_weights(run) is None:
        raise UsageError(
            f"{run.path}: has nothing to compare with: no curves, no checkpoint and no hash of its weights.",
            "Train its configuration anew: neuscale train --resume RUN.",
        )
    config = _config(run, manifest, overrides, progress)
    use_code(run, config=config)
    damage = _data_differences(config, manifest, progress)
    if damage and not force:
        raise UsageError(
            f"{run.path}: was trained on other data than what is there now ({damage[0]}).",
            "Prepare the same data again; or use `force`, which marks the result.",
        )
    for resume in manifest["resumed"]:
        for change in resume["changed"]:
            progress.warning(
                f"{run.name} resumed at step {resume['step']} with another {change['area']}"
                f" ({Difference(**change)}); it is trained again as it ended"
            )
    again = create_run(config)
    try:
        with trusted():  # its configuration was checked
            stopped = _train(again, config, manifest["machine"], progress)
    except BaseException:
        if not again.manifest_file.exists():
            shutil.rmtree(again.path, ignore_errors=True)  # it has not started
        raise
    new = load_manifest(again.manifest_file)
    forced = [found.what for found in damage]
    # Damaged files under the same fingerprint: the manifests do not show them.
    changed = [*(d for d in damage if d.what != "data"), *differences(manifest, new)]
    verdict = None if stopped else compare_results(run, again)
    new["replay"] = {
        "of": run.name,
        "forced": forced,
        "equal": verdict.equal if verdict else None,
        "verdict": verdict.words if verdict else "stopped before its end",
        "first": asdict(verdict.first) if verdict and verdict.first else None,
        "changed": [asdict(found) for found in changed],
    }
    write_manifest(again.manifest_file, new)
    return Replayed(again, verdict, changed, forced)


def _config(run: RunFolder, manifest: dict[str, Any], overrides: list[str], progress: Progress) -> Config:
    """The configuration that was trained, with a new run name, on the same kind of device."""
    if manifest["config"] is None:  # written by a version whose manifests did not contain it
        config = run.config(overrides)
    else:
        config = config_from_yaml(yaml.safe_dump(manifest["config"]), overrides, str(run.manifest_file))
        then, now = changing_fields(manifest["config"]) or {}, changing_fields(asdict(run.config())) or {}
        for name in then:
            if then[name] != now.get(name):
                progress.warning(
                    f"{run.config_file} says {name}={now.get(name)}, which is not what was trained"
                    f" ({name}={then[name]}, by the manifest): the manifest holds"
                )
    names = numbered_names(f"{run.name}-replay")
    config.run.name = next(name for name in names if not (runs_root() / name).exists())
    config.run.time_limit = None
    config.tracking.trackers = [name for name in config.tracking.trackers if name == TENSORBOARD]
    config.tracking.options = {}
    if is_prepared(config.data.name):
        # The source may be gone or have changed; the prepared data is compared instead.
        config.data.source = config.data.dataset = None
    if config.data.stage not in ("none", "auto") and not _sets(overrides, "data.stage"):
        config.data.stage = "auto"  # may be a folder of another machine or user
    if not _sets(overrides, "run.device"):
        config.run.device = manifest["machine"]["kind"]
    check_device(config.run.device)
    if config.run.device != "cpu" and not config.run.deterministic:
        progress.warning("run.deterministic was off: on a GPU, equal bits are then not to be expected")
    return config


def _sets(overrides: list[str], field: str) -> bool:
    return any(override.startswith(f"{field}=") for override in overrides)


def _data_differences(config: Config, manifest: dict[str, Any], progress: Progress) -> list[Difference]:
    """Differences between the prepared data and the run's: another fingerprint, or damaged files."""
    data = open_run_data(config, progress)
    then, now = manifest["data"]["fingerprint"], data.meta.fingerprint
    if not data.meta.is_recorded_as(then):
        return [Difference("data", "data", short(then), short(now))]
    damaged = data.verify(progress)
    if damaged:
        progress.warning(f"damaged data: {', '.join(damaged)}. To mend it: {remedy(data)}")
    return [Difference("data", name, "as prepared", "damaged") for name in damaged]


def _train(run: RunFolder, config: Config, machine: dict[str, Any], progress: Progress) -> bool:
    """Train in the folder of `run`; return True if it was stopped before its end."""
    processes, threads = machine["processes"], machine["threads"]
    if processes == 1:
        if threads is not None:
            torch.set_num_threads(threads)
        return train(config, run, progress).outcome.stopped_by is not None
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    arguments = ["train", str(run.path), "--resume", f"run.device={config.run.device}"]
    return launch(arguments, processes, quiet=True) != 0
