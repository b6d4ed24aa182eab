"""From presets and `key=value` words to a checked Config, with Hydra's compose API."""

import dataclasses
import difflib
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from neuscale.config import schema
from neuscale.config.check import check_ranges, expected_type
from neuscale.errors import UsageError

PRESETS = Path(__file__).with_name("presets")

# The sections that have a schema of their own for each `name`.
_VARIANTS: dict[str, dict[str, type]] = {
    "model": {"swin": schema.SwinConfig, "vit": schema.ViTConfig},
    "optim": {"adamw": schema.AdamWConfig, "sgd": schema.SGDConfig, "muon": schema.MuonConfig},
}


@cache
def preset_groups() -> dict[str, list[str]]:
    """The groups and the names of their presets, as they lie in the presets folder."""
    return {
        folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
        for folder in sorted(PRESETS.iterdir())
        if folder.is_dir()
    }


@cache
def _register_schemas() -> None:
    store = ConfigStore.instance()
    store.store(name="config_schema", node=schema.Config)
    for group, variants in _VARIANTS.items():
        for name, node in variants.items():
            store.store(group=group, name=f"{name}_schema", node=node)


def compose_config(words: list[str]) -> schema.Config:
    """The configuration that `words` (`group=preset` and `section.field=value`) describe.

    Raises UsageError, in one line with the nearest valid name, for an unknown preset or
    field, a value of the wrong type, and a value out of range.
    """
    _register_schemas()
    overrides = [_parse(word) for word in words]
    groups = [o for o in overrides if o.key_or_group in preset_groups()]
    for override in groups:
        _check_preset(override)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(PRESETS), version_base="1.3"):
        try:
            composed = compose("config", overrides=[o.input_line or "" for o in groups])
        except (HydraException, OmegaConfBaseException) as error:
            raise UsageError(f"presets: {_first_line(error)}", f"They are in {PRESETS}.") from error
    for override in overrides:
        if override not in groups:
            _apply(composed, override)
    return to_config(composed)


def preset_words(words: list[str]) -> list[str]:
    """Those of `words` that choose a preset, such as `model=swin_t`."""
    return [word for word in words if _parse(word).key_or_group in preset_groups()]


def config_to_yaml(config: schema.Config) -> str:
    """The configuration as YAML, which `config_from_yaml` reads back."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)


def config_from_yaml(text: str, words: list[str], where: str) -> schema.Config:
    """The configuration stored in `text`, with fields changed by `words`; `where` names it in errors."""
    _register_schemas()
    try:
        stored = yaml.safe_load(text)
        composed = OmegaConf.structured(schema.Config)
        for section, variants in _VARIANTS.items():
            composed[section] = OmegaConf.structured(variants[stored[section]["name"]])
        composed = OmegaConf.merge(composed, stored)
    except (yaml.YAMLError, KeyError, TypeError, OmegaConfBaseException) as error:
        raise UsageError(f"{where}: not the configuration of a run ({_first_line(error)}).") from error
    assert isinstance(composed, DictConfig)
    for word in words:
        override = _parse(word)
        if override.key_or_group in preset_groups():
            raise UsageError(
                f"{word}: a preset cannot be changed in a run that has begun.",
                "Change single fields (train.epochs=20), or start a new run.",
            )
        _apply(composed, override)
    return to_config(composed)


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
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not close:  # the right field in the wrong section
        close = [k for k in known if k.split(".")[-1] == name.split(".")[-1]][:1]
    if close:
        return f"Did you mean '{close[0]}'?"
    if len(known) > 12:
        return "'neuscale train --print-config' shows what there is."
    return f"Known: {', '.join(known)}."


def _parse(word: str) -> Override:
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException as error:
        raise UsageError(
            f"'{word}' is not of the form field=value.", "For example: optim.lr=1e-3."
        ) from error
    if not override.is_add() and not override.is_delete() and override.package is None:
        if not override.is_sweep_override():
            return override
        raise UsageError(
            f"'{word}' gives several values, and one run takes one.",
            f"A list is written {override.key_or_group}=[1,2].",
        )
    raise UsageError(f"'{word}': fields can be set, not added or removed.", "Write field=value.")


def _check_preset(override: Override) -> None:
    group, choice = override.key_or_group, _plain(override.value())
    known = preset_groups()[group]
    if choice not in known and not (group == "experiment" and choice is None):
        advice = nearest(str(choice), known)
        listing = "" if advice.startswith("Known") else f" Known: {', '.join(known)}."
        raise UsageError(f"{group}={choice}: there is no such {group} preset.", advice + listing)


def _fields(node: DictConfig, prefix: str = "") -> list[str]:
    names: list[str] = []
    for key in map(str, node):
        value = None if OmegaConf.is_missing(node, key) else node[key]
        if isinstance(value, DictConfig):
            names += _fields(value, f"{prefix}{key}.")
        else:
            names.append(f"{prefix}{key}")
    return names


def _apply(composed: DictConfig, override: Override) -> None:
    key, value = override.key_or_group, _plain(override.value())
    known = _fields(composed)
    if key not in known:
        section = [name for name in known if name.startswith(f"{key}.")]
        if section:
            raise UsageError(f"{key} is a section, not a field.", f"Its fields: {', '.join(section)}.")
        raise UsageError(f"{key}: there is no such field.", nearest(key, known + sorted(preset_groups())))
    try:
        OmegaConf.update(composed, key, value)
    except OmegaConfBaseException as error:
        parent = OmegaConf.select(composed, key.rpartition(".")[0]) if "." in key else composed
        wanted = expected_type(OmegaConf.get_type(parent), key.rpartition(".")[2])
        shown = "null" if value is None else value
        raise UsageError(f"{key}={shown}: expected {wanted}.") from error


def _plain(value: Any) -> Any:
    """Hydra's parsed value without its quotation marks."""
    if isinstance(value, QuotedString):
        return value.text.replace("\\'", "'") if value.quote is Quote.single else value.text
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
