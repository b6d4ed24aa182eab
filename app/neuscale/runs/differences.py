"""Differences between two runs in configuration, code, data and environment."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from neuscale.config import Config, config_from_yaml
from neuscale.data.datasets import Dataset
from neuscale.errors import UsageError
from neuscale.runs.folder import RunFolder
from neuscale.runs.manifest import read_manifest

# Fields that are not compared: a run's name, limits, tracking and checkpoints change no result, the
# device is compared as part of the machine, and the data by its fingerprint.
FREE = frozenset({"run.name", "run.time_limit", "run.device", "data.source", "data.dataset", "data.stage"})


FREE_SECTIONS = ("tracking.", "checkpoint.")


@dataclass(frozen=True)
class Difference:
    """A difference: `area` (config, code, packages, …), `what` in it, and both values (None: missing)."""

    area: str
    what: str
    before: Any
    now: Any

    def __str__(self) -> str:
        name = self.area if self.area == self.what else f"{self.area}: {self.what}"
        return f"{name} {_words(self.before)} → {_words(self.now)}"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Differences between two manifests of the current version; unknown values are not differences."""
    found = _code_differences(before.get("code"), now.get("code"))
    complete = not ("migrated_from" in before or "migrated_from" in now)
    facts_before, facts_now = _facts(before), _facts(now)
    version = 1 if 1 in (_fingerprint_version(before), _fingerprint_version(now)) else 2
    facts_before["data"], facts_now["data"] = _data_facts(before, version), _data_facts(now, version)
    for area, values in facts_now.items():
        then = facts_before[area]
        if then is None or values is None:
            continue
        for what in {**then, **values}:
            a, b = then.get(what), values.get(what)
            known = a is not None and b is not None
            if a != b and (known or (complete and area in ("config", "own code", "packages"))):
                found.append(Difference(area, what, a, b))
    return found


def _code_differences(before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> list[Difference]:
    """Code is equal if the hashes of its files are; without hashes, if revision and `changed` are equal."""
    if before is None or now is None:
        return []
    then, since = before.get("source_sha256"), now.get("source_sha256")
    if then is not None and since is not None:
        return [Difference("code", "code", code_words(before), code_words(now))] if then != since else []
    if all(before.get(name) == now.get(name) for name in ("revision", "changed")):
        return []
    return [Difference("code", "code", code_words(before), code_words(now))]


def code_words(code: Mapping[str, Any] | None) -> str:
    """Description of the code: revision, a note on changes, and the start of the files' hash."""
    if code is None:
        return "unknown"
    source = f" ({code['source_sha256'][:8]})" if code.get("source_sha256") else ""
    changes = " with changes" if code.get("changed") else ""
    return f"{short(code.get('revision')) or 'no revision'}{changes}{source}"


def _facts(manifest: Mapping[str, Any]) -> dict[str, dict[str, Any] | None]:
    """Facts of a manifest that affect a run's results, by area; None if unknown."""
    machine = manifest["machine"]
    ops = manifest.get("ops") or {}
    build = ops.get("build") or {}
    return {
        "config": changing_fields(manifest.get("config")),
        "own code": {
            file["file"]: short(file["sha256"]) for file in (manifest.get("own_code") or {}).get("files", [])
        },
        "packages": _packages(manifest),
        "python": {"python": manifest.get("python")},
        "ops": {"kind": ops.get("kind"), **{name: short(build.get(name)) for name in _LIBRARIES}},
        "precision": {"precision": manifest.get("precision")},
        "determinism": manifest.get("determinism"),
        "threads": {"threads": machine.get("threads")},
        "processes": {"processes": machine.get("processes")},
        "machine": {
            **{name: machine.get(name) for name in ("host", "system", "cpu", "kind", "driver", "cuda")},
            "gpus": ", ".join(gpu["name"] for gpu in machine["gpus"]) if machine.get("gpus") else None,
        },
    }


def _fingerprint_version(manifest: Mapping[str, Any]) -> int:
    """2 if the fingerprint covers everything that training reads; 1 if only checksums and classes."""
    return 2 if (manifest.get("data") or {}).get("fingerprint_v1") else 1


def _data_facts(manifest: Mapping[str, Any], version: int) -> dict[str, Any]:
    data = manifest.get("data") or {}
    fingerprint = data.get("fingerprint")
    return {"data": short(data.get("fingerprint_v1", fingerprint) if version == 1 else fingerprint)}


_LIBRARIES = ("cpu_sha256", "cuda_sha256")


def changing_fields(config: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The fields of a configuration that a run's results depend on, as `section.field`."""
    if config is None:
        return None
    fields = {
        f"{section}.{name}": value
        for section, values in _completed(config).items()
        if isinstance(values, Mapping)
        for name, value in values.items()
    }
    return {n: v for n, v in fields.items() if n not in FREE and not n.startswith(FREE_SECTIONS)}


def _completed(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A recorded configuration, with fields of later versions at their defaults, which keep the behaviour."""
    try:
        return asdict(config_from_yaml(yaml.safe_dump(dict(config)), [], "the manifest"))
    except (UsageError, yaml.YAMLError):  # a later version, or changed by hand
        return config


def _packages(manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    packages = manifest.get("packages")
    # The program's own packages are compared by its code and the hash of its ops.
    return {n: v for n, v in packages.items() if n not in ("neuscale", "neuscale-ops")} if packages else None


def short(digest: str | None) -> str | None:
    """The first 12 characters of a hash; None without one."""
    return digest[:12] if digest else None


def _words(value: Any) -> str:
    return "none" if value is None else str(value)


# Model fields that may change on resume, since they change no result.
_FREE = ("gradient_checkpointing", "weights")


def check_same_run(config: Config, run: RunFolder) -> None:
    """Raise UsageError for a field that must not change in a run that has started."""
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
                f"{run.path}: {name} cannot change in a run that has started (it was {then}).",
                "Leave it as it was, or start a new run.",
            )


def check_same_data(data: Dataset, run: RunFolder) -> None:
    """Raise UsageError if the prepared data is not the data that the run was trained on."""
    fingerprint = read_manifest(run.manifest_file).get("data", {}).get("fingerprint")
    if fingerprint is not None and not data.meta.is_recorded_as(fingerprint):
        raise UsageError(
            f"{run.path}: was trained on other data than what is now prepared as '{data.meta.name}'.",
            "Prepare the same data again, or start a new run.",
        )
