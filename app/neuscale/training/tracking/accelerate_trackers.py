"""Backends for the trackers that Accelerate supports, by name.

Accelerate starts each tracker and passes metrics on. Each class here defines what differs: name and ID of a
resumed run, the default folder, pictures, tables and files.
"""

import inspect
import os
import uuid
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from neuscale.config.schema import TENSORBOARD, TrackingConfig
from neuscale.errors import UsageError
from neuscale.project.targets import TARGET
from neuscale.runs.folder import RunFolder
from neuscale.training.tracking.backend import Backend, Evaluated, Own
from neuscale.untrusted import is_plain_name


class _OnePicture(Backend):
    """A tracker that takes a single picture, without a batch dimension, and no tables."""

    def evaluation(self, result: Evaluated, step: int) -> None:
        self.numbers(result.values, step)
        if result.picture is not None:
            self.tracker.log_images({"val/confusion": result.picture}, step=step)


class Aim(_OnePicture):
    accelerate_name = "aim"

    @property
    def title(self) -> str:
        return self.run.name

    def arguments(self) -> dict[str, Any]:
        where = os.environ.get("AIM_REPO") or str(self.run.path.parent)
        quiet = {"capture_terminal_logs": False, "system_tracking_interval": None}
        return {"logging_dir": where, "experiment": self.project, "run_hash": self.identity, **quiet}

    def start(self, settings: dict[str, Any]) -> None:
        super().start(settings)
        self.identity = self.tracker.tracker.hash


class ClearML(_OnePicture):
    accelerate_name, variable = "clearml", "CLEARML_PROJECT"

    def arguments(self) -> dict[str, Any]:
        known = self.identity if self.identity and not self.identity.startswith("offline") else None
        again = {"continue_last_task": known} if known else {"reuse_last_task_id": False}
        alone = {"auto_connect_frameworks": False, "auto_connect_arg_parser": False}
        return {"project_name": self.project, "task_name": self.run.name, **again, **alone}

    def start(self, settings: dict[str, Any]) -> None:
        super().start(settings)
        self.identity = self.tracker.tracker.id

    @property
    def url(self) -> str | None:
        return self.tracker.tracker.get_output_log_web_page()

    def file(self, path: Path) -> None:
        self.tracker.tracker.upload_artifact(path.name, str(path))


class Comet(Backend):
    accelerate_name, variable = "comet_ml", "COMET_PROJECT_NAME"

    def arguments(self) -> dict[str, Any]:
        self.identity = self.identity or uuid.uuid4().hex
        return {"experiment_key": self.identity, "mode": "get_or_create"}

    def before_start(self) -> None:
        os.environ.setdefault("COMET_OFFLINE_DIRECTORY", str(self.run.path / "comet"))
        os.environ.setdefault("COMET_DISPLAY_SUMMARY_LEVEL", "0")

    def start(self, settings: dict[str, Any]) -> None:
        super().start(settings)
        self.tracker.tracker.set_name(self.run.name)

    @property
    def url(self) -> str | None:
        return self.tracker.tracker.url

    def evaluation(self, result: Evaluated, step: int) -> None:
        self.numbers(result.values, step)
        if result.picture is not None:
            self.tracker.tracker.log_image(result.picture, name="val/confusion", step=step)

    def file(self, path: Path) -> None:
        self.tracker.tracker.log_asset(str(path), overwrite=True)


class DVCLive(Backend):
    accelerate_name = "dvclive"

    def arguments(self) -> dict[str, Any]:
        folder = self.run.path / "dvclive"
        return {"dir": str(folder), "resume": folder.exists(), "dvcyaml": None, "save_dvc_exp": False}

    def evaluation(self, result: Evaluated, step: int) -> None:
        self.tracker.tracker.step = step
        if result.picture is not None:
            self.tracker.tracker.log_image("val/confusion.png", result.picture)
        self.numbers(result.values, step)


class MLflow(Backend):
    accelerate_name, variable, keeps_settings = "mlflow", "MLFLOW_EXPERIMENT_NAME", False

    def arguments(self) -> dict[str, Any]:
        return {"run_name": self.run.name, "run_id": self.identity}

    def before_start(self) -> None:
        import mlflow

        self._is_default = not os.environ.get("MLFLOW_TRACKING_URI")
        if self._is_default:  # MLflow's own default depends on its version
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            mlflow.set_tracking_uri((self.run.path.parent / "mlruns").as_uri())
        # In Accelerate's class, environment variables take precedence over arguments.
        self.tracker.experiment_name = self.project
        self.tracker.run_id = self.options.get("run_id", self.identity or os.environ.get("MLFLOW_RUN_ID"))

    def start(self, settings: dict[str, Any]) -> None:
        super().start(settings)
        self.identity = self.tracker.tracker.info.run_id

    @property
    def url(self) -> str | None:
        import mlflow

        return mlflow.get_tracking_uri()

    def evaluation(self, result: Evaluated, step: int) -> None:
        import mlflow
        from PIL import Image

        self.numbers(result.values, step)
        if result.picture is not None:
            mlflow.log_image(Image.fromarray(result.picture), f"val/confusion/step-{step:08}.png")
        mlflow.log_dict(result.per_class, f"val/per_class/step-{step:08}.json")

    def file(self, path: Path) -> None:
        self.tracker.log_artifact(str(path))

    def finish(self) -> None:
        import mlflow

        super().finish()
        if self._is_default:  # the next run in this process may have another runs folder
            reset: Any = mlflow.set_tracking_uri
            reset(None)


class SwanLab(Backend):
    accelerate_name, variable = "swanlab", "SWANLAB_PROJECT"

    def arguments(self) -> dict[str, Any]:
        self.identity = self.identity or uuid.uuid4().hex[:21]
        parameters = inspect.signature(import_module("swanlab").init).parameters
        folder = "log_dir" if "log_dir" in parameters else "logdir"
        name = "name" if "name" in parameters else "experiment_name"
        known = {"id": self.identity, "resume": "allow"}
        return {name: self.run.name, folder: str(self.run.path / "swanlab"), **known}


class Trackio(Backend):
    accelerate_name, variable = "trackio", "TRACKIO_PROJECT"

    def arguments(self) -> dict[str, Any]:
        self.identity = self.identity or self.run.name
        return {"name": self.identity, "resume": "allow", "embed": False}

    def evaluation(self, result: Evaluated, step: int) -> None:
        import trackio

        shown = {"val/confusion": trackio.Image(result.picture)} if result.picture is not None else {}
        self.tracker.log({**result.values, **shown}, step=step)


class Wandb(Backend):
    """Weights & Biases. Points carry their step as a value, since W&B's own step cannot go back, as it does
    when a run resumes from a checkpoint before its last point."""

    accelerate_name, variable = "wandb", "WANDB_PROJECT"

    def arguments(self) -> dict[str, Any]:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        self.identity = self.identity or uuid.uuid4().hex[:12]
        mode = os.environ.get("WANDB_MODE")  # wandb reads it only once per process
        known = {"name": self.run.name, "id": self.identity, "resume": "allow", "mode": mode}
        quiet = wandb.Settings(silent=True, console="off")
        return {"dir": str(self.run.path), "settings": quiet, **known}

    def start(self, settings: dict[str, Any]) -> None:
        super().start(settings)
        self.tracker.tracker.define_metric("*", step_metric="step")

    @property
    def url(self) -> str | None:
        return None if self.tracker.tracker.offline else self.tracker.tracker.url

    def numbers(self, values: dict[str, float], step: int) -> None:
        self.tracker.log({**values, "step": step})

    def evaluation(self, result: Evaluated, step: int) -> None:
        import wandb

        rows = [list(row) for row in result.per_class.items()]
        shown = {"val/per_class": wandb.Table(columns=["class", result.measure], data=rows), "step": step}
        if result.picture is not None:
            shown["val/confusion"] = wandb.Image(result.picture)
        self.tracker.log({**result.values, **shown})

    def file(self, path: Path) -> None:
        self.tracker.tracker.save(str(path), base_path=str(path.parent), policy="now")


BACKENDS: dict[str, type[Backend]] = {
    "aim": Aim,
    "clearml": ClearML,
    "comet": Comet,
    "dvclive": DVCLive,
    "mlflow": MLflow,
    "swanlab": SwanLab,
    "trackio": Trackio,
    "wandb": Wandb,
}


def create_backend(name: str, run: RunFolder, config: TrackingConfig, identity: str | None) -> Backend:
    """The backend of the tracker `name`; call `check_trackers` first."""
    return BACKENDS.get(name, Own)(name, run, config.options.get(name, {}), config.project, identity)


def check_trackers(config: TrackingConfig) -> None:
    """Raise UsageError for an unknown or not installed tracker, and for options of an unused one."""
    for name in config.trackers:
        if name == TENSORBOARD or (is_plain_name(name) and TARGET in _options(config, name)):
            continue
        if name not in BACKENDS:
            known = ", ".join(sorted([*BACKENDS, TENSORBOARD]))
            raise UsageError(
                f"tracking.trackers: there is no tracker '{name}'.",
                f"Known: {known}; one of your own needs tracking.options.{name}.{TARGET}=MODULE.CLASS.",
            )
        package = BACKENDS[name].accelerate_name
        if find_spec(package) is None:
            raise UsageError(
                f"tracking.trackers: {name} is not installed.", f"Install it: pip install {package}."
            )
    if unused := [name for name in config.options if name not in config.trackers]:
        raise UsageError(
            f"tracking.options.{unused[0]}: that tracker is not among tracking.trackers"
            f" ({', '.join(config.trackers) or 'none'}).",
            "Add it there, or remove its options.",
        )


def _options(config: TrackingConfig, name: str) -> Mapping[str, Any]:
    options = config.options.get(name, {})
    if not isinstance(options, Mapping):
        raise UsageError(
            f"tracking.options.{name}={options}: expected arguments by name.",
            f"For example: tracking.options.{name}.tags=[a,b].",
        )
    return options
