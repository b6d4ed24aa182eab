"""Compose presets and `key=value` overrides into a checked Config, with Hydra's compose API."""

import dataclasses
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from neuscale.config import schema
from neuscale.config.fields import check_ranges
from neuscale.config.own_presets import line_of, read_fields
from neuscale.config.preset_files import (
    DEFAULT_RECIPE,
    PRESETS,
    preset_content,
    preset_groups,
    recipe_presets,
    users_presets,
)
from neuscale.config.set_fields import VARIANTS, apply_override, parse_override, preset_of, reason_of_config
from neuscale.errors import UsageError

# Largest number of values in a stored configuration, which usually has about a hundred.
_MOST_VALUES = 10_000


@cache
def _register_schemas() -> None:
    store = ConfigStore.instance()
    store.store(name="config_schema", node=schema.Config)
    for group, variants in VARIANTS.items():
        for name, node in variants.items():
            store.store(group=group, name=f"{name}_schema", node=node)


def compose_config(overrides: list[str]) -> schema.Config:
    """Compose the configuration that `overrides` (`group=preset` and `section.field=value`) describe.

    A preset that is chosen here brings its own values: the recipe's values for another preset of that group
    (such as a learning rate for another optimizer) are ignored. Raises UsageError, in one line with the
    nearest valid name, for an unknown preset or field, a value of the wrong type, and a value out of range.
    """
    _register_schemas()
    presets, fields = split_overrides(overrides)
    recipe = presets.pop("experiment")
    experiment = f"experiment={recipe}" if recipe else "~experiment"
    own = recipe_presets(recipe)
    # The recipe's values for another preset of a group are dropped: the group is composed without the recipe.
    others = [group for group, name in presets.items() if recipe and name != own.get(group)]
    words = [f"{group}={name}" for group, name in presets.items()]
    own_files = _store_own_presets(own, {**presets, "experiment": recipe})
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(PRESETS), version_base="1.3"):
        try:
            composed = compose("config", overrides=[experiment, *words])
            if others:
                alone = compose("config", overrides=["~experiment", *words])
                for group in others:
                    composed[group] = alone[group]
        except (HydraException, OmegaConfBaseException) as error:
            raise _preset_error(error, own_files) from error
    for key, text in fields.items():
        apply_override(composed, key, text)
    return to_config(composed)


def _store_own_presets(recipe: Mapping[str, str], chosen: Mapping[str, str | None]) -> list[Path]:
    """Register the user presets with Hydra; return the files of those that are used."""
    own = users_presets()
    for group, found in own.items():
        package = "_global_" if group == "experiment" else None
        for name in found:
            node = preset_content(group, name)
            if group == "experiment":  # drop its values for another preset of a group
                apart = [g for g, preset in chosen.items() if g in node and preset != recipe.get(g)]
                node = {field: value for field, value in node.items() if field not in apart}
            ConfigStore.instance().store(group=group, name=name, node=node, package=package)
    used = {**recipe, **chosen}
    return [path for group, found in own.items() for name, path in found.items() if used.get(group) == name]


def _preset_error(error: HydraException | OmegaConfBaseException, own_files: list[Path]) -> UsageError:
    """UsageError for an error of Hydra, with file and line of the user preset that causes it, if any."""
    cause: Exception = error
    while not isinstance(cause, OmegaConfBaseException):
        inner_error = cause.__cause__ or cause.__context__
        if not isinstance(inner_error, Exception):
            break
        cause = inner_error
    field = getattr(cause, "full_key", None) or ""
    for path in own_files:
        inner = field if path.parent.name == "experiment" else field.partition(".")[2]
        if inner and (line := line_of(path, inner)) is not None:
            return UsageError(f"{path}, line {line}: {reason_of_config(cause)}", "Correct it.")
    where = f"They are in {PRESETS}" + "".join(f" and in {path}" for path in own_files)
    return UsageError(f"presets: {reason_of_config(cause)}", f"{where}.")


def split_overrides(overrides: list[str]) -> tuple[dict[str, str | None], dict[str, str]]:
    """Split `overrides` into presets by group and texts by field; the last one of a name counts.

    `experiment` is always among the presets: None means no recipe. Raises UsageError.
    """
    pairs = [parse_override(word) for word in overrides]
    presets: dict[str, str | None] = {"experiment": DEFAULT_RECIPE}
    presets |= {group: preset_of(group, text) for group, text in pairs if group in preset_groups()}
    return presets, {key: text for key, text in pairs if key not in preset_groups()}


def preset_overrides(overrides: list[str]) -> list[str]:
    """The overrides that choose a preset, such as `model=swin_t`."""
    return [word for word in overrides if parse_override(word)[0] in preset_groups()]


def config_to_yaml(config: schema.Config) -> str:
    """The configuration as YAML, which `config_from_yaml` reads back."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)


def annotated_yaml(config: schema.Config, sources: Mapping[str, str], rest: str) -> str:
    """The configuration as YAML, with the source of each value (`rest` if it has none) as a comment."""
    lines = []
    for name, value in dataclasses.asdict(config).items():
        if not isinstance(value, dict):
            lines.append(_yaml_line(name, value, sources.get(name, rest)))
            continue
        lines.append((f"{name}:", ""))
        for field, inner in value.items():
            text, source = _yaml_line(field, inner, sources.get(f"{name}.{field}", rest))
            lines.append((f"  {text}", source))
    width = max(len(text) for text, _ in lines if len(text) <= 44)
    return "".join(f"{text.ljust(width)}  # {source}\n" if source else f"{text}\n" for text, source in lines)


def _yaml_line(name: str, value: Any, source: str) -> tuple[str, str]:
    text = yaml.safe_dump([value], default_flow_style=True, width=float("inf"), allow_unicode=True)
    return f"{name}: {text.strip()[1:-1]}", source


def config_from_yaml(text: str, overrides: list[str], where: str) -> schema.Config:
    """The configuration stored in `text`, with fields changed by `overrides`; `where` names it in errors."""
    _register_schemas()
    try:
        stored = yaml.safe_load(text)
        _check_values(stored, "")
        _rename_tracking(stored)
        composed = OmegaConf.structured(schema.Config)
        for section, variants in VARIANTS.items():
            composed[section] = OmegaConf.structured(variants[stored[section]["name"]])
        merged = OmegaConf.merge(composed, stored)
    except Exception as error:  # a damaged file can raise almost any error
        raise UsageError(
            f"{where}: not the configuration of a run ({reason_of_config(error)}).",
            "Restore the file as the run wrote it, or start a new run.",
        ) from error
    assert isinstance(merged, DictConfig)
    try:
        to_config(merged)
    except UsageError as error:
        raise UsageError(f"{where}: {error.problem}", error.fix) from error
    for word in overrides:
        key, text = parse_override(word)
        if key in preset_groups():
            raise UsageError(
                f"{word}: a preset cannot be changed in a run that has started.",
                "Change single fields (train.epochs=20), or start a new run.",
            )
        apply_override(merged, key, text)
    return to_config(merged)


def config_of_file(path: Path, overrides: list[str]) -> schema.Config:
    """The configuration in a YAML file (see `config_to_yaml`), with fields changed by `overrides`.

    `${oc.env:NAME}` is replaced by its value. Raises UsageError, with file and line.
    """
    content = read_fields(path)
    if presets := preset_overrides(overrides):
        raise UsageError(
            f"{presets[0]}: {path} has a whole configuration.", "Change single fields, such as optim.lr=1e-3."
        )
    return config_from_yaml(yaml.safe_dump(content), overrides, str(path))


def _check_values(stored: Any, name: str, left: int = _MOST_VALUES) -> int:
    """Raise ValueError for a reference (`${…}`), which would be resolved from the reader's environment.

    Return how many more values are allowed: a few lines of YAML with aliases can expand to millions.
    """
    if left <= 0:
        raise ValueError(f"it has more than {_MOST_VALUES:,} values")
    if isinstance(stored, str) and "${" in stored:
        raise ValueError(f"{name}: {stored[:60]!r} refers to something else, and a stored value cannot")
    pairs = (
        stored.items()
        if isinstance(stored, dict)
        else enumerate(stored)
        if isinstance(stored, list | tuple | set)
        else ()
    )
    for key, value in pairs:
        left = _check_values(key, name, left - 1)
        left = _check_values(value, f"{name}.{key}" if name else str(key), left)
    return left


def _rename_tracking(stored: Any) -> None:
    """Convert tracking fields of an older version (`tensorboard`, `wandb`, `wandb_…`) to today's form."""
    tracking = stored.get("tracking") if isinstance(stored, dict) else None
    if not isinstance(tracking, dict) or "trackers" in tracking:
        return
    used = [name for name, usual in (("tensorboard", True), ("wandb", False)) if tracking.pop(name, usual)]
    options = {
        name: value
        for name in ("entity", "group", "tags", "mode")
        if (value := tracking.pop(f"wandb_{name}", None)) and "wandb" in used
    }
    project = tracking.pop("wandb_project", None)
    tracking |= {"trackers": used, "project": project, "options": {"wandb": options} if options else {}}


def to_config(composed: DictConfig) -> schema.Config:
    """The typed, range-checked form of a composed configuration."""
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise UsageError(f"{missing[0]} has no value.", f"Add {missing[0]}=VALUE.")
    config = OmegaConf.to_object(composed)
    assert isinstance(config, schema.Config)
    check_ranges(config)
    return config
