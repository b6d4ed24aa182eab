"""Helpers to test options: fakes for the functions that a command calls, which record their arguments."""

import inspect
from collections.abc import Iterator
from importlib import import_module
from itertools import groupby
from pathlib import Path
from pkgutil import walk_packages
from typing import Any, NamedTuple

import pytest
import typer

import neuscale
from neuscale.cli import run
from neuscale.cli.app import app

CALLED, NOT_CALLED = "called", "not called"


class Option(NamedTuple):
    """With `words`, `where` (FUNCTION or FUNCTION.argument[.attribute]) is `value`, otherwise `default`."""

    words: list[str]
    where: str
    value: Any
    default: Any


class Named:
    """Equal to any absolute path whose last part is this name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Path) and other.is_absolute() and other.name == self.name

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"…/{self.name}"


def commands() -> dict[str, Any]:
    """All commands as click objects, by their full names ("data list")."""

    def below(group: Any, path: list[str]) -> Iterator[tuple[str, Any]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from below(command, [*path, name])
            else:
                yield " ".join([*path, name]), command

    return dict(below(typer.main.get_command(app), []))


def options_of(command: Any) -> list[Any]:
    """Options of a command as click objects, without --help."""
    return [p for p in command.params if p.param_type_name == "option" and "--help" not in p.opts]


class Callees:
    """Fakes for functions; `arguments` holds those of the last call, by function name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # A module that is first imported while a fake is installed would keep the fake.
        for module in walk_packages(neuscale.__path__, "neuscale."):
            if not module.name.startswith(("neuscale.integrations", "neuscale.serving", "neuscale.__main__")):
                import_module(module.name)
        self._monkeypatch = monkeypatch
        self.arguments: dict[str, dict[str, Any]] = {}

    def stand_in(self, where: str, answer: Any = None) -> None:
        """Fake `where` (module.function); `answer`: its result, or a function of its arguments by name."""
        module, _, name = where.rpartition(".")
        signature = inspect.signature(getattr(import_module(module), name))

        def function(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            self.arguments[name] = dict(bound.arguments)
            return answer(**bound.arguments) if callable(answer) else answer

        self._monkeypatch.setattr(import_module(module), name, function)

    def found(self, where: str) -> Any:
        """Value at an Option's `where` in the recorded calls."""
        function, *path = where.split(".")
        if function not in self.arguments or not path:
            return CALLED if function in self.arguments else NOT_CALLED
        value = self.arguments[function][path[0]]
        for name in path[1:]:
            value = getattr(value, name)
        return value

    def check(self, base: list[str], options: list[Option]) -> None:
        """Run the command without the options and with the words of each; compare the recorded arguments."""
        without = Option([], "", None, None)
        for _, group in groupby([without, *options], key=lambda option: option.words):
            self.arguments.clear()
            chosen = list(group)
            command = [*base, *chosen[0].words]
            assert run(command) == 0, command
            for option in chosen if chosen[0].words else options:
                expected = option.value if chosen[0].words else option.default
                assert self.found(option.where) == expected, f"neuscale {' '.join(command)}: {option.where}"
