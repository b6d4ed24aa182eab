"""Checks of the classes and functions that the configuration of a run or an exported model would call.

A stored configuration may come from anybody, and `os.system` is a possible target, too. Without `trust`, a
configuration may only name classes and functions of known modules of the user, and models and optimizers.
"""

import importlib.util
import os
import sysconfig
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from neuscale.errors import UsageError

TRUST = "NEUSCALE_TRUST"

_LIBRARIES = ("torch.nn", "torch.optim", "torchvision.models")
_IMPORTED = ":"  # suffix of the name of a module that is imported for its side effects


def is_trusted() -> bool:
    """True with `--trust` or $NEUSCALE_TRUST=1."""
    return os.environ.get(TRUST, "") not in ("", "0")


@contextmanager
def trusted() -> Iterator[None]:
    """Enable trust in this process and its subprocesses, for a run folder whose targets were checked."""
    before = os.environ.get(TRUST)
    os.environ[TRUST] = "1"
    try:
        yield
    finally:
        os.environ[TRUST] = before or ""


def check_targets(config: Mapping[str, Any], modules: Collection[str], where: str) -> None:
    """Raise UsageError for a target of a stored configuration that must not be called without trust.

    `modules`: modules of the user that are known to be those used in training.
    """
    if is_trusted():
        return
    for target in _targets(config):
        if not _is_harmless(target, modules, where):
            raise UsageError(
                f"{where}: its configuration names {target}, which would be run.",
                "If you trust it, say `trust`, or set NEUSCALE_TRUST=1.",
            )


def _is_harmless(target: str, modules: Collection[str], where: str) -> bool:
    """True if `modules` or the libraries define it, or if it is a model or optimizer of any package."""
    from neuscale.project.plugins import plugin_modules
    from neuscale.project.targets import import_target

    modules = [*modules, *plugin_modules()]
    if target.endswith(_IMPORTED):
        return target.removesuffix(_IMPORTED) in modules
    if not _starts(target, (*modules, *_LIBRARIES)) and not _is_of_package(target):
        return False
    found = import_target(target, where)
    if isinstance(found, type) and {"torch.nn.modules.module.Module", "torch.optim.optimizer.Optimizer"} & {
        f"{each.__module__}.{each.__qualname__}" for each in found.__mro__
    }:
        return True
    # A dotted name may lead through one module into another: the defining module counts.
    return _starts(f"{getattr(found, '__module__', '')}.", (*modules, *_LIBRARIES))


def _starts(name: str, modules: Collection[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _is_of_package(target: str) -> bool:
    """True for a name in an installed package, which may be imported; False for the standard library."""
    spec = importlib.util.find_spec(target.partition(".")[0])
    packages = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    return spec is not None and any(str(spec.origin).startswith(f"{folder}{os.sep}") for folder in packages)


def _targets(value: Any) -> Iterator[str]:
    """Names of all classes and functions, at any depth, and of modules to import."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name in ("_target_", "target") and isinstance(inner, str):
                yield inner
            elif name == "imports" and isinstance(inner, list):
                yield from (f"{module}{_IMPORTED}" for module in inner)
            else:
                yield from _targets(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _targets(inner)
