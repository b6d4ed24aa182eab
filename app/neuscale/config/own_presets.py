"""User presets: YAML files in the package's groups, from the project folder and from plugins."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from neuscale.config import model_options
from neuscale.errors import UsageError
from neuscale.project.folder import config_folder
from neuscale.project.plugins import plugin_presets
from neuscale.project.targets import TARGET
from neuscale.untrusted import read_record

# In these groups a preset may name a class or function; all keys that are not fields here are its arguments.
_FIELDS = {
    "model": set(model_options.ModelConfig.__dataclass_fields__),
    "optim": set(model_options.OptimConfig.__dataclass_fields__),
}
_OVERRIDE = "override /"


def own_presets(groups: Mapping[str, object]) -> dict[str, dict[str, Path]]:
    """Files of the presets of the project and of plugins, by group and name, for the package's `groups`.

    Raises UsageError if two presets of a group have the same name.
    """
    project = config_folder()
    found: dict[str, dict[str, Path]] = {}
    for folder in [*([project] if project is not None else []), *plugin_presets()]:
        for group in groups:
            for path in sorted((folder / group).glob("*.yaml")):
                other = found.setdefault(group, {}).setdefault(path.stem, path)
                if other != path:
                    raise UsageError(
                        f"{path} and {other}: both are {group}={path.stem}.", "Give one of them another name."
                    )
    return found


def read_own(group: str, path: Path, presets: Mapping[str, Mapping[str, Path]]) -> dict[str, Any]:
    """Read a user preset in the form of the package's: `_target_` as `target`, its arguments in `args`.

    `${oc.env:NAME}` is replaced by its value. `presets`: the user presets, from which a recipe may choose its
    model or optimizer. Raises UsageError, with file and line, for invalid YAML, an invalid reference, or a
    file without fields.
    """
    content = read_fields(path)
    if group in _FIELDS:
        return _translated(group, content)
    if group != "experiment":
        return content
    chosen = recipe_choices(content)
    for section in _FIELDS:
        values = content.get(section)
        if not isinstance(values, dict):
            continue
        own = presets.get(section, {}).get(chosen.get(section, ""))
        if TARGET in values:
            content[section] = _translated(section, values, "defaults")
            content.setdefault("defaults", []).insert(0, {f"{_OVERRIDE}{section}": "target"})
        elif own is not None and TARGET in read_fields(own):
            content[section] = _arguments(section, values)
    return content


def recipe_choices(content: Mapping[str, Any]) -> dict[str, str]:
    """The presets that a file's `defaults` choose, as `group: preset` or `override /group: preset`."""
    pairs = [
        pair for entry in content.get("defaults") or [] if isinstance(entry, dict) for pair in entry.items()
    ]
    return {str(group).removeprefix(_OVERRIDE): str(name) for group, name in pairs}


def line_of(path: Path, field: str) -> int | None:
    """Line number of `field` (or of its deepest part that exists) in a YAML file; None if there is none."""
    node, line = yaml.compose(read_record(path)), None
    for part in field.split("."):
        if not isinstance(node, yaml.MappingNode):
            break
        pairs = {key.value: (key, value) for key, value in node.value}
        if part not in pairs:
            break
        key, node = pairs[part]
        line = key.start_mark.line + 1
    return line


def read_fields(path: Path) -> dict[str, Any]:
    """Fields of a YAML file, with `${oc.env:NAME}` resolved. Raises UsageError, with file and line."""
    try:
        text = read_record(path)
        loaded = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise UsageError(f"{path}{where}: not YAML ({error.problem}).", "Correct it.") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: cannot be read ({error}).", "Correct it.") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict) or not all(isinstance(name, str) for name in loaded):
        raise UsageError(f"{path}: holds no fields.", "Write field: value, a line for each.")
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(loaded), resolve=True)
    except OmegaConfBaseException as error:
        field = error.full_key or ""
        line = line_of(path, field)
        said = str(error).splitlines()[0]
        raise UsageError(
            f"{path}{f', line {line}' if line else ''}: {field}: {said}.", "Correct it."
        ) from None
    assert isinstance(resolved, dict)
    return {str(name): value for name, value in resolved.items()}


def _translated(group: str, content: Mapping[str, Any], *leave_out: str) -> dict[str, Any]:
    if TARGET not in content:
        return dict(content)
    found = {"defaults": ["target_schema", "_self_"], **_arguments(group, content), "target": content[TARGET]}
    return {name: value for name, value in found.items() if name not in leave_out}


def _arguments(group: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the section, with all other keys moved into `args`."""
    known = _FIELDS[group] | {"defaults", "args", "target", TARGET}
    args = {name: value for name, value in content.items() if name not in known}
    own = {name: value for name, value in content.items() if name in known and name not in (TARGET, "args")}
    return {**own, "args": {**(content.get("args") or {}), **args}}
