"""Parse `key=value` overrides and apply them to a composed configuration; errors suggest the nearest name."""

import dataclasses
import difflib
import typing
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from neuscale.config import schema
from neuscale.config.fields import expected_type, takes
from neuscale.config.preset_files import preset_groups
from neuscale.errors import UsageError

# The sections whose schema depends on their field `name`.
VARIANTS: dict[str, dict[str, type]] = {
    "model": {
        "swin": schema.SwinConfig,
        "vit": schema.ViTConfig,
        "torchvision": schema.TorchvisionConfig,
        "timm": schema.TimmConfig,
        "target": schema.TargetModelConfig,
    },
    "optim": {
        "adamw": schema.AdamWConfig,
        "sgd": schema.SGDConfig,
        "muon": schema.MuonConfig,
        "target": schema.TargetOptimConfig,
    },
}


def nearest(name: str, known: list[str]) -> str:
    """Advice for a user who wrote the unknown `name`: the nearest of `known`, or all of them."""
    field = name.split(".")[-1]
    namesakes = [k for k in known if k.split(".")[-1] == field]  # also in other sections
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


def parse_override(word: str) -> tuple[str, str]:
    """Split `key=text` into key and text. Raises UsageError."""
    key, equals, text = word.partition("=")
    if key.startswith(("+", "~")):
        raise UsageError(f"'{word}': fields can be set, not added or removed.", "Write field=value.")
    if not key or not equals:
        raise UsageError(f"'{word}' is not of the form field=value.", "For example: optim.lr=1e-3.")
    if "${" in text:
        raise UsageError(f"'{word}': a value cannot refer to another one.", "Write the value itself.")
    return key, text


def preset_of(group: str, text: str) -> str | None:
    """The preset that `group=text` chooses; None for `experiment=null`. Raises UsageError."""
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


def apply_override(composed: DictConfig, key: str, text: str) -> None:
    """Set the field `key` to the value written as `text`. Raises UsageError."""
    known = _fields(composed)
    section, _, field = key.rpartition(".")
    if section in VARIANTS and key not in known and f"{section}.args.{field}" in known:
        key = f"{section}.args.{field}"  # in presets, arguments stand beside `_target_`
    if (mapping := _mapping_of(composed, key)) is not None and key != mapping:
        _set_argument(composed, key, text)
        return
    if key not in known:
        below = [name for name in known if name.startswith(f"{key}.")]
        if below:
            raise UsageError(f"{key} is a section, not a field.", f"Its fields: {', '.join(below)}.")
        owners = [
            name
            for name, variant in VARIANTS.get(section, {}).items()
            if field in {f.name for f in dataclasses.fields(variant)}
        ]
        if owners:
            raise UsageError(
                f"{key}: {composed[section].name} has no such field.",
                f"It belongs to {' and '.join(owners)}: choose such a preset, {section}=PRESET.",
            )
        advice = nearest(key, known + sorted(preset_groups()))
        if section in VARIANTS and "args" in composed[section]:
            advice = f"An argument of {composed[section].target}: {section}.args.{field}={text}."
        raise UsageError(f"{key}: there is no such field.", advice)
    if field == "name" and section in VARIANTS and _unquoted(text) != composed[section].name:
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


def _mapping_of(composed: DictConfig, key: str) -> str | None:
    """The dict field (with arguments of any name) that contains `key` or is `key`; None if there is none."""
    section, _, rest = key.partition(".")
    if section not in composed or not isinstance(composed[section], DictConfig):
        return None
    field = rest.partition(".")[0]
    schema_of = OmegaConf.get_type(composed[section])
    if schema_of is None or field not in typing.get_type_hints(schema_of):
        return None
    kinds = {typing.get_origin(kind) or kind for kind in takes(schema_of, field)}
    return f"{section}.{field}" if dict in kinds else None


def _set_argument(composed: DictConfig, key: str, text: str) -> None:
    """Set an argument of a target, of any name and type; the target's signature is checked later."""
    mapping = _mapping_of(composed, key)
    try:
        if mapping is not None and OmegaConf.select(composed, mapping) is None:
            section, _, field = mapping.partition(".")
            composed[section][field] = {}
        OmegaConf.update(composed, key, _value(key, text, set()), force_add=True)
    except (OmegaConfBaseException, HydraException, ValueError, RecursionError) as error:
        raise UsageError(
            f"{key}={text}: {reason_of_config(error)}.", "Write a value such as 3, true, [1,2] or text."
        ) from error


def _value(key: str, text: str, kinds: set[Any]) -> Any:
    """Parse `text`: as it is for a text field, so that paths need no quoting, else with Hydra's grammar."""
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


def reason_of_config(error: Exception) -> str:
    """First line of an error, preceded by the field for which OmegaConf raised it."""
    field = error.full_key if isinstance(error, OmegaConfBaseException) else None
    line = (str(error) or type(error).__name__).strip().splitlines()[0]
    return f"{field}: {line}" if field else line
