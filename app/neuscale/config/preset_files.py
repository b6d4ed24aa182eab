"""The presets (YAML files in one folder per group, recipes in `experiment`) and the fields that they set."""

from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from neuscale.config.own_presets import own_presets, read_own, recipe_choices
from neuscale.errors import UsageError

PRESETS = Path(__file__).with_name("presets")

DEFAULT_RECIPE = "quickstart"

DEFAULT, COMMAND_LINE = "default", "command line"  # sources of values, beside presets


@cache
def _package_presets() -> dict[str, dict[str, Path]]:
    return {
        folder.name: {path.stem: path for path in sorted(folder.glob("*.yaml"))}
        for folder in sorted(PRESETS.iterdir())
        if folder.is_dir()
    }


def preset_groups() -> dict[str, list[str]]:
    """Names of the presets by group: those of the package, the project folder and plugins.

    Raises UsageError if two presets of a group have the same name.
    """
    own = users_presets()
    return {group: sorted({*found, *own.get(group, {})}) for group, found in _package_presets().items()}


def users_presets() -> dict[str, dict[str, Path]]:
    """Files of the project's and plugins' presets by group and name. Raises UsageError on a name clash."""
    known = _package_presets()
    own = own_presets(known)
    for group, found in own.items():
        for name, path in found.items():
            if name in known[group]:
                raise UsageError(
                    f"{path}: {group}={name} is a preset of the package.", "Give it another name."
                )
    return own


def preset_content(group: str, name: str) -> dict[str, Any]:
    """Content of a preset's file, in the form that is composed."""
    own = users_presets()
    if (path := own.get(group, {}).get(name)) is not None:
        return read_own(group, path, own)
    found: dict[str, Any] = yaml.safe_load(_package_presets()[group][name].read_text(encoding="utf-8"))
    return found


def base_presets() -> dict[str, str]:
    """Default preset of each group, used unless another one is chosen."""
    return recipe_choices(yaml.safe_load((PRESETS / "config.yaml").read_text(encoding="utf-8")))


def recipe_presets(recipe: str | None) -> dict[str, str]:
    """The presets that a recipe chooses, by group; empty without a recipe."""
    return recipe_choices(preset_content("experiment", recipe)) if recipe else {}


def preset_fields(group: str, name: str) -> list[str]:
    """The fields that a preset sets, as `section.field`."""
    stored = preset_content(group, name)
    fields = {field: value for field, value in stored.items() if field != "defaults"}
    return _leaves(fields, "" if group == "experiment" else f"{group}.")


def _leaves(values: dict[str, Any], prefix: str) -> list[str]:
    return [
        leaf
        for name, value in values.items()
        for leaf in (_leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"])
    ]


def field_sources(presets: Mapping[str, str | None], fields: Collection[str]) -> dict[str, str]:
    """Source of each field's value in a configuration: `section.field` → source.

    `presets` and `fields` are those of the command line, as `split_overrides` returns them. A source is a
    preset (`optim=sgd`), the recipe (`experiment=quickstart`) or "command line"; a field that is missing here
    has its default value.
    """
    recipe = presets["experiment"]
    own = recipe_presets(recipe)
    found: dict[str, str] = {}
    for group, name in {**base_presets(), **own, **presets}.items():
        if group != "experiment" and name is not None:
            # A preset also sets `name`, through its schema.
            found |= dict.fromkeys([f"{group}.name", *preset_fields(group, name)], f"{group}={name}")
    for field in preset_fields("experiment", recipe) if recipe else ():
        group = field.partition(".")[0]
        if group == field or presets.get(group, own.get(group)) == own.get(group):
            found[field] = f"experiment={recipe}"
    return found | dict.fromkeys(fields, COMMAND_LINE)
