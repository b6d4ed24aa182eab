"""Plugins: installed packages with an entry point in the group `neuscale.plugins`.

The entry point names a module. Presets lie in the folder `conf` beside it, and it is imported before a timm
model is created, so that it can register models there.
"""

import importlib.util
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from neuscale.errors import UsageError
from neuscale.project.targets import import_modules

GROUP = "neuscale.plugins"


@cache
def _plugins() -> tuple[EntryPoint, ...]:
    return tuple(sorted(entry_points(group=GROUP), key=lambda entry: entry.name))


def plugin_modules() -> list[str]:
    """The modules of the plugins."""
    return [entry.module for entry in _plugins()]


def plugin_presets() -> list[Path]:
    """The plugins' folders with presets. Raises UsageError for a plugin whose module does not exist."""
    folders = []
    for entry in _plugins():
        try:
            spec = importlib.util.find_spec(entry.module)
        except (ImportError, ValueError):
            spec = None
        if spec is None or spec.origin is None:
            package = entry.dist.name if entry.dist is not None else entry.name
            raise UsageError(
                f"the package {package} says that {entry.module} is its plugin, and has no such module.",
                f"Install it again, or remove it: pip uninstall {package}.",
            )
        if (folder := Path(spec.origin).parent / "conf").is_dir():
            folders.append(folder)
    return folders


def import_plugins() -> None:
    """Import the plugins, so that they register their models. Raises UsageError if one of them fails."""
    import_modules(plugin_modules(), f"the entry point {GROUP}")
