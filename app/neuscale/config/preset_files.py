"""The presets (YAML files in the folder of their group, recipes in `experiment`), and what they set."""

from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

PRESETS = Path(__file__).with_name("presets")

DEFAULT_RECIPE = "quickstart"

DEFAULT, COMMAND_LINE = "default", "command line"  # sources of values, beside presets


@cache
def preset_groups() -> dict[str, list[str]]:
    """The groups and the names of their presets, as they lie in the presets folder."""
    return {
        folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
        for folder in sorted(PRESETS.iterdir())
        if folder.is_dir()
    }


def base_presets() -> dict[str, str]:
    """The presets that count where nothing else chooses one, by group."""
    return _defaults(PRESETS / "config.yaml")


def recipe_presets(recipe: str | None) -> dict[str, str]:
    """The presets that a recipe chooses, by group; none without a recipe."""
    return _defaults(PRESETS / "experiment" / f"{recipe}.yaml") if recipe else {}


def preset_fields(group: str, name: str) -> list[str]:
    """The fields that a preset sets, as `section.field`."""
    stored = yaml.safe_load((PRESETS / group / f"{name}.yaml").read_text(encoding="utf-8"))
    fields = {field: value for field, value in stored.items() if field != "defaults"}
    return _leaves(fields, "" if group == "experiment" else f"{group}.")


def _defaults(path: Path) -> dict[str, str]:
    """The entries `group: preset` and `override /group: preset` of a file's defaults."""
    listed = yaml.safe_load(path.read_text(encoding="utf-8")).get("defaults", [])
    pairs = [pair for entry in listed if isinstance(entry, dict) for pair in entry.items()]
    return {group.removeprefix("override /"): name for group, name in pairs}


def _leaves(values: dict[str, Any], prefix: str) -> list[str]:
    return [
        leaf
        for name, value in values.items()
        for leaf in (_leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"])
    ]


def field_sources(presets: Mapping[str, str | None], fields: Collection[str]) -> dict[str, str]:
    """Where the fields of a configuration have their values from: `section.field` to words.

    `presets` and `fields` are those of the command line, as `split_overrides` tells them. The words are a
    preset (`optim=sgd`), the recipe (`experiment=quickstart`) or "command line"; a field that is not there
    has its default.
    """
    recipe = presets["experiment"]
    own = recipe_presets(recipe)
    found: dict[str, str] = {}
    for group, name in {**base_presets(), **own, **presets}.items():
        if group != "experiment" and name is not None:
            # Of `name` the preset decides by the schema that it has.
            found |= dict.fromkeys([f"{group}.name", *preset_fields(group, name)], f"{group}={name}")
    for field in preset_fields("experiment", recipe) if recipe else ():
        group = field.partition(".")[0]
        if group == field or presets.get(group, own.get(group)) == own.get(group):
            found[field] = f"experiment={recipe}"
    return found | dict.fromkeys(fields, COMMAND_LINE)
