"""Fields of the schema: their defaults, help texts, ranges and choices, and the checks of their values."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable
from dataclasses import field
from typing import Any

from neuscale.errors import UsageError


def option(
    default: Any,
    help: str,
    *,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A dataclass field with its help text and the allowed values (for a list, those of each item)."""
    metadata = {"help": help, "gt": gt, "ge": ge, "lt": lt, "le": le, "choices": choices}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def expected_type(section: Any, field: str) -> str:
    """The type of a field as text."""
    return _describe(typing.get_type_hints(section)[field])


def takes(section: Any, field: str) -> set[Any]:
    """The types that a field accepts."""
    hint = typing.get_type_hints(section)[field]
    return set(typing.get_args(hint)) if isinstance(hint, types.UnionType) else {hint}


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        named = [_describe(a) for a in arguments if a is not type(None)]
        return " or ".join([*named, "null"] if type(None) in arguments else named)
    if origin is list:
        return f"a list of {_describe(arguments[0]).removeprefix('a ')}s, as in [2,2]"
    return _NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def check_ranges(config: Any, prefix: str = "") -> None:
    """Raise UsageError for the first field whose value its schema does not allow."""
    for declared in dataclasses.fields(config):
        value, name = getattr(config, declared.name), prefix + declared.name
        if dataclasses.is_dataclass(value):
            check_ranges(value, f"{name}.")
        elif value is not None and not isinstance(value, dict):  # a dict holds arguments of any type
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, list | dict):  # OmegaConf accepts these in a list of numbers
                    wanted = expected_type(type(config), declared.name)
                    raise UsageError(f"{name}={value}: expected {wanted}.")
                _check_value(name, item, declared.metadata)


def _check_value(name: str, value: Any, metadata: Any) -> None:
    choices = metadata.get("choices")
    if choices and value not in choices:
        close = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"Did you mean '{close[0]}'?" if close else ""
        raise UsageError(f"{name}={value}: expected one of {', '.join(choices)}.", hint)
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{name}={value}: expected a finite number.")
    bounds: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
        "gt": ("more than", lambda x, y: x > y),
        "ge": ("at least", lambda x, y: x >= y),
        "lt": ("less than", lambda x, y: x < y),
        "le": ("at most", lambda x, y: x <= y),
    }
    wanted = [
        f"{words} {metadata[key]:g}" for key, (words, _) in bounds.items() if metadata.get(key) is not None
    ]
    for key, (_, holds) in bounds.items():
        bound = metadata.get(key)
        if bound is not None and not holds(value, bound):
            raise UsageError(f"{name}={value}: expected {' and '.join(wanted)}.")
