"""From presets and `key=value` overrides to a checked Config, with Hydra's compose API."""

import dataclasses
import difflib
from collections.abc import Mapping
from functools import cache
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from neuscale.config import schema
from neuscale.config.fields import check_ranges, expected_type, takes
from neuscale.config.preset_files import DEFAULT_RECIPE, PRESETS, preset_groups, recipe_presets
from neuscale.errors import UsageError

# Of a stored configuration; one has about a hundred.
_MOST_VALUES = 10_000

# The sections that have a schema of their own for each `name`.
_VARIANTS: dict[str, dict[str, type]] = {
    "model": {
        "swin": schema.SwinConfig,
        "vit": schema.ViTConfig,
        "torchvision": schema.TorchvisionConfig,
        "timm": schema.TimmConfig,
    },
    "optim": {"adamw": schema.AdamWConfig, "sgd": schema.SGDConfig, "muon": schema.MuonConfig},
}


@cache
def _register_schemas() -> None:
    store = ConfigStore.instance()
    store.store(name="config_schema", node=schema.Config)
    for group, variants in _VARIANTS.items():
        for name, node in variants.items():
            store.store(group=group, name=f"{name}_schema", node=node)


def compose_config(overrides: list[str]) -> schema.Config:
    """The configuration that `overrides` (`group=preset` and `section.field=value`) describe.

    A preset that is named here comes with its own values: what the recipe has for another preset of that
    group (a learning rate for another optimizer) does not count. Raises UsageError, in one line with the
    nearest valid name, for an unknown preset or field, a value of the wrong type, and a value out of range.
    """
    _register_schemas()
    presets, fields = split_overrides(overrides)
    recipe = presets.pop("experiment")
    experiment = f"experiment={recipe}" if recipe else "~experiment"
    own = recipe_presets(recipe)
    # What the recipe has for another preset of a group falls away: the group is composed without it.
    others = [group for group, name in presets.items() if recipe and name != own.get(group)]
    words = [f"{group}={name}" for group, name in presets.items()]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(PRESETS), version_base="1.3"):
        try:
            composed = compose("config", overrides=[experiment, *words])
            if others:
                alone = compose("config", overrides=["~experiment", *words])
                for group in others:
                    composed[group] = alone[group]
        except (HydraException, OmegaConfBaseException) as error:
            raise UsageError(f"presets: {_reason(error)}", f"They are in {PRESETS}.") from error
    for key, text in fields.items():
        _apply(composed, key, text)
    return to_config(composed)


def split_overrides(overrides: list[str]) -> tuple[dict[str, str | None], dict[str, str]]:
    """The presets that `overrides` choose, by group, and the texts of the fields, each the last of its name.

    `experiment` is always among the presets: None where there is no recipe. Raises UsageError.
    """
    pairs = [_parse(word) for word in overrides]
    presets: dict[str, str | None] = {"experiment": DEFAULT_RECIPE}
    presets |= {group: _preset(group, text) for group, text in pairs if group in preset_groups()}
    return presets, {key: text for key, text in pairs if key not in preset_groups()}


def preset_overrides(overrides: list[str]) -> list[str]:
    """Those of `overrides` that choose a preset, such as `model=swin_t`."""
    return [word for word in overrides if _parse(word)[0] in preset_groups()]


def config_to_yaml(config: schema.Config) -> str:
    """The configuration as YAML, which `config_from_yaml` reads back."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)


def annotated_yaml(config: schema.Config, sources: Mapping[str, str], rest: str) -> str:
    """The configuration as YAML, with a comment on each value: its source, or `rest` where that has none."""
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
        composed = OmegaConf.structured(schema.Config)
        for section, variants in _VARIANTS.items():
            composed[section] = OmegaConf.structured(variants[stored[section]["name"]])
        merged = OmegaConf.merge(composed, stored)
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        raise UsageError(
            f"{where}: not the configuration of a run ({_reason(error)}).",
            "Restore the file as the run wrote it, or start a new run.",
        ) from error
    assert isinstance(merged, DictConfig)
    try:
        to_config(merged)
    except UsageError as error:
        raise UsageError(f"{where}: {error.problem}", error.fix) from error
    for word in overrides:
        key, text = _parse(word)
        if key in preset_groups():
            raise UsageError(
                f"{word}: a preset cannot be changed in a run that has started.",
                "Change single fields (train.epochs=20), or start a new run.",
            )
        _apply(merged, key, text)
    return to_config(merged)


def _check_values(stored: Any, name: str, left: int = _MOST_VALUES) -> int:
    """Raise ValueError for a reference, which would be replaced by what the reader's environment holds.

    Returns how many more values there may be: aliases in YAML make millions of a few lines.
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


def to_config(composed: DictConfig) -> schema.Config:
    """The typed, range-checked form of a composed configuration."""
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise UsageError(f"{missing[0]} has no value.", f"Add {missing[0]}=VALUE.")
    config = OmegaConf.to_object(composed)
    assert isinstance(config, schema.Config)
    check_ranges(config)
    return config


def nearest(name: str, known: list[str]) -> str:
    """`known` as advice for somebody who wrote `name`."""
    field = name.split(".")[-1]
    namesakes = [k for k in known if k.split(".")[-1] == field]  # in another section
    is_plain = "." in name and any(k.startswith(name.removesuffix(field)) for k in known)
    longer = [k for k in known if k.endswith(f"_{field}")] if is_plain and namesakes else []
    close = difflib.get_close_matches(name, namesakes, n=1, cutoff=0.0)
    close += difflib.get_close_matches(name, longer, n=1, cutoff=0.0)
    close = close or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(repr(each) for each in close)}?"
    if len(known) > 12:
        return "'neuscale train --print-config' shows what there is."
    return f"Known: {', '.join(known)}."


def _parse(word: str) -> tuple[str, str]:
    """(key, text) of `key=text`."""
    key, equals, text = word.partition("=")
    if key.startswith(("+", "~")):
        raise UsageError(f"'{word}': fields can be set, not added or removed.", "Write field=value.")
    if not key or not equals:
        raise UsageError(f"'{word}' is not of the form field=value.", "For example: optim.lr=1e-3.")
    if "${" in text:
        raise UsageError(f"'{word}': a value cannot refer to another one.", "Write the value itself.")
    return key, text


def _preset(group: str, text: str) -> str | None:
    """The preset of `group=text`; None for no recipe."""
    choice, known = _unquoted(text), preset_groups()[group]
    if group == "experiment" and choice == "null":
        return None
    if choice not in known:
        advice = nearest(choice, known)
        listing = "" if advice.startswith("Known") else f" Known: {', '.join(known)}."
        raise UsageError(f"{group}={text}: there is no such {group} preset.", advice + listing)
    return choice


def _fields(node: DictConfig, prefix: str = "") -> list[str]:
    names: list[str] = []
    for key in map(str, node):
        value = None if OmegaConf.is_missing(node, key) else node[key]
        if isinstance(value, DictConfig):
            names += _fields(value, f"{prefix}{key}.")
        else:
            names.append(f"{prefix}{key}")
    return names


def _apply(composed: DictConfig, key: str, text: str) -> None:
    """Set the field `key` to what `text` says."""
    known = _fields(composed)
    section, _, field = key.rpartition(".")
    if key not in known:
        below = [name for name in known if name.startswith(f"{key}.")]
        if below:
            raise UsageError(f"{key} is a section, not a field.", f"Its fields: {', '.join(below)}.")
        owners = [
            name
            for name, variant in _VARIANTS.get(section, {}).items()
            if field in {f.name for f in dataclasses.fields(variant)}
        ]
        if owners:
            raise UsageError(
                f"{key}: {composed[section].name} has no such field.",
                f"It belongs to {' and '.join(owners)}: choose such a preset, {section}=PRESET.",
            )
        raise UsageError(f"{key}: there is no such field.", nearest(key, known + sorted(preset_groups())))
    if field == "name" and section in _VARIANTS and _unquoted(text) != composed[section].name:
        raise UsageError(
            f"{key}={text}: a name changes with its section, which is {composed[section].name}'s.",
            f"Choose a preset: {section}=PRESET, of {', '.join(preset_groups()[section])}.",
        )
    schema_of = OmegaConf.get_type(OmegaConf.select(composed, section) if section else composed)
    wrong = UsageError(f"{key}={text}: expected {expected_type(schema_of, field)}.")
    try:
        value = _value(key, text, takes(schema_of, field))
        OmegaConf.update(composed, key, value)
    except (OmegaConfBaseException, HydraException, ValueError, RecursionError) as error:
        raise wrong from error


def _value(key: str, text: str, kinds: set[Any]) -> Any:
    """The value written as `text`: for a text field as it is, so that paths need no quoting; else Hydra's."""
    if str in kinds:
        return None if text == "null" else _unquoted(text)
    override = OverridesParser.create().parse_override(f"{key}={text}")
    if override.is_sweep_override():
        raise UsageError(
            f"'{key}={text}' gives several values, and one run takes one.", f"A list is written {key}=[1,2]."
        )
    value = override.value()
    if bool in kinds and isinstance(value, int) and value not in (0, 1):
        raise ValueError(value)
    return value.text if isinstance(value, QuotedString) else value


def _unquoted(text: str) -> str:
    """`text` without the quotation marks around it, if it has them."""
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1].replace(f"\\{text[0]}", text[0])
    return text


def _reason(error: Exception) -> str:
    """The first line of an error, after the field that OmegaConf met it at."""
    field = error.full_key if isinstance(error, OmegaConfBaseException) else None
    line = (str(error) or type(error).__name__).strip().splitlines()[0]
    return f"{field}: {line}" if field else line
