"""Import classes and functions by name, as in Hydra's `_target_`, from installed packages or the project."""

import importlib
import inspect
import logging
import os
import site
import sys
import sysconfig
import traceback
from collections.abc import Callable, Collection, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any, ParamSpec, TypeVar

from hydra.utils import get_object, instantiate

from neuscale.errors import UsageError, UserError
from neuscale.project.folder import project_root

TARGET, PARTIAL = "_target_", "_partial_"  # as Hydra calls them

P = ParamSpec("P")
R = TypeVar("R")

_OWN_PACKAGE = Path(__file__).resolve().parent.parent

# The folder of a run's saved code, used in place of the project's; and modules imported for targets.
_of_run: Path | None = None
_brought: dict[str, Path] = {}
_added: list[str] = []  # folders added to the import path
_left: set[Path] = set()  # all folders that were searched for modules so far


def use_root(folder: Path, modules: Collection[str]) -> None:
    """Import the user's `modules` from `folder`, a run's saved code, from now on.

    Raises UsageError if one of them was imported from elsewhere: a process can use only one version of it.
    """
    global _of_run
    for name in modules:
        if (there := _file(sys.modules.get(name))) is not None and not there.is_relative_to(folder):
            raise UsageError(
                f"{folder}: its module {name} is in use already, from {there}.",
                "Use a process of its own for each of the two.",
            )
    _of_run = folder


def code_root() -> Path | None:
    """Folder of the user's modules: that of a run's saved code, else the project's."""
    root = _of_run or project_root()
    return root.resolve() if root is not None else None


def imported_modules() -> dict[str, Path]:
    """Files of the user's modules that this process has imported, by module name."""
    root = code_root()
    found = {name: file for name, file in _brought.items() if _file(sys.modules.get(name)) == file}
    if root is None:
        return found
    beginning = f"{root}{os.sep}"
    for name, module in list(sys.modules.items()):
        # There are thousands of modules: access the disk only for those below `root`.
        if str(getattr(module, "__file__", "")).startswith(beginning):
            file = _file(module)
            if file is not None and not _is_installed(file):
                found[name] = file
    return {name: file for name, file in found.items() if not _is_of_another(file, root)}


def import_target(target: str, field: str) -> Any:
    """Import the object named `target`, such as `mynet.MyNet`; `field` names it in errors.

    Installed packages come first, then the project folder. Raises UsageError with the last line of the
    error in the module and its location.
    """
    _add_root()
    before = set(sys.modules)
    logging.getLogger("hydra.utils").disabled = True  # it would log the same error again
    _check_version(target.partition(".")[0], field)
    try:
        return get_object(target)
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"{field}={target}: cannot be imported: {words_of(error)}.", _hint(target)
        ) from error
    finally:
        _remember(before)


def import_modules(names: list[str], field: str) -> None:
    """Import modules for their side effects. Raises UsageError as `import_target` does."""
    _add_root()
    before = set(sys.modules)
    for name in names:
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:
            raise UsageError(
                f"{field}: {name} cannot be imported: {words_of(error)}.", _hint(name)
            ) from error
        finally:
            _remember(before)


def call_target(target: str, args: Mapping[str, Any], field: str, offered: Mapping[str, Any]) -> Any:
    """Call `target` with `args`, and with those of the `offered` arguments that its signature has.

    Arguments that have a `_target_` of their own are instantiated first. Raises UsageError.
    """
    found = import_target(target, field)
    known = _parameters(found)
    given = {name: value for name, value in offered.items() if name in known and name not in args}
    if unknown := [name for name in args if known and name not in known and not _takes_all(found)]:
        raise UsageError(
            f"{field}={target}: it has no argument '{unknown[0]}'.", f"It has {', '.join(known) or 'none'}."
        )
    try:
        return found(**_made(args), **given)
    except (Exception, SystemExit) as error:
        fix = "Change its arguments, or its code."
        if inspect.isfunction(found) and isinstance(error, TypeError):
            fix = f"A function that is called later wants `{PARTIAL}: true` beside its `{TARGET}`."
        raise UsageError(f"{field}={target}: {words_of(error)}.", fix) from error


def make(spec: Mapping[str, Any], field: str, offered: Mapping[str, Any] | None = None) -> Any:
    """Instantiate a mapping with `_target_`; with `_partial_`, return a function with its arguments bound.

    Raises UsageError as `call_target` does.
    """
    target = spec.get(TARGET)
    if not isinstance(target, str):
        raise UsageError(
            f"{field}: it has no `{TARGET}`.", f"Name a class or function: {TARGET}: module.Name."
        )
    args = {name: value for name, value in spec.items() if name not in (TARGET, PARTIAL)}
    if spec.get(PARTIAL):
        return partial(import_target(target, field), **_made(args))
    return call_target(target, args, field, offered or {})


def call(function: Callable[P, R], field: str, /, *given: P.args, **named: P.kwargs) -> R:
    """Call a user's function. Raises UsageError that describes the function's error."""
    try:
        return function(*given, **named)
    except Exception as error:
        if isinstance(error, UserError) or type(error).__name__ == "OutOfMemoryError":
            raise
        raise UsageError(f"{field}: {words_of(error)}.", "Change its arguments, or its code.") from error


def words_of(error: BaseException) -> str:
    """The innermost error in one line, with file and line of the user's code if it was raised there."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    line = (str(error) or type(error).__name__).strip().splitlines()[-1].rstrip(".")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})"
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {line}{where}"


def is_of_own_code(error: BaseException) -> bool:
    """True if the traceback of an error contains a line of the user's code."""
    seen: BaseException | None = error
    while seen is not None:
        if any(_is_users(frame.filename) for frame in traceback.extract_tb(seen.__traceback__)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _add_root() -> None:
    """Append the folder of the user's modules to the import path, in place of one appended before."""
    root = code_root()
    if root is None:
        return
    if str(root) in sys.path and str(root) not in _added:
        return  # keep the position that the user chose
    for folder in _added:
        if folder in sys.path:
            sys.path.remove(folder)
    _added[:] = [str(root)]
    _left.add(root)
    sys.path.append(str(root))
    importlib.invalidate_caches()


def project_modules() -> list[str]:
    """Names of the modules and packages in the project folder."""
    root = project_root()
    if root is None:
        return []
    packages = [path.parent.name for path in root.glob("*/__init__.py")]
    return sorted([path.stem for path in root.glob("*.py")] + packages)


def module_path(name: str) -> Path | None:
    """Path of the file `name` ("mynet.py", "birds/nets.py") in the project folder, or in a package that lies
    elsewhere, such as an editable install; None if there is no such file. Imports nothing.
    """
    root = project_root()
    if root is not None and (root / name).is_file():
        return root / name
    try:
        spec = find_spec(PurePosixPath(name).parts[0].removesuffix(".py"))  # only of the first part
    except (ImportError, ValueError, IndexError):
        return None
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).resolve().parent
    path = (folder.parent if spec.submodule_search_locations else folder) / name
    return path if path.is_file() and not any(map(path.is_relative_to, _left)) else None


def _remember(before: set[str]) -> None:
    for name in set(sys.modules) - before:
        file = _file(sys.modules[name])
        if file is not None and not _is_installed(file):
            _brought[name] = file


def _check_version(module: str, field: str) -> None:
    """Raise UsageError for a module that was imported from another project's folder."""
    root, file = code_root(), _file(sys.modules.get(module))
    if root is not None and file is not None and _is_of_another(file, root):
        raise UsageError(
            f"{field}: the module {module} is in use already, from {file}.",
            "Use a process of its own for each project.",
        )


def _is_of_another(file: Path, root: Path) -> bool:
    """True for a module of a project that this process used before."""
    return not file.is_relative_to(root) and any(map(file.is_relative_to, _left))


def _file(module: Any) -> Path | None:
    file = getattr(module, "__file__", None)
    # The __file__ of torch.classes is a relative name of a file that does not exist.
    return Path(file).resolve() if isinstance(file, str) and Path(file).is_absolute() else None


def _is_installed(file: Path) -> bool:
    folders = [Path(path) for path in (*sysconfig.get_paths().values(), *site.getsitepackages())]
    return file.is_relative_to(_OWN_PACKAGE) or any(file.is_relative_to(each.resolve()) for each in folders)


def _is_users(file: str) -> bool:
    root = code_root()
    return root is not None and Path(file).resolve().is_relative_to(root)


def _hint(target: str) -> str:
    root = code_root()
    if root is None:
        return "Install its package, or run this in the project folder (with conf/), or set `config_dir`."
    name = target.partition(".")[0]
    there = _file(sys.modules.get(name))
    here = root / f"{name}.py"
    if there is not None and here.exists() and there != here.resolve():
        return f"{name} is {there}, which comes before {here}: give that file another name."
    return f"Modules of one's own are looked for in {root}, behind installed packages."


def _parameters(found: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):  # a function written in C
        return []
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [parameter.name for parameter in parameters if parameter.kind in kinds]


def _takes_all(found: Callable[..., Any]) -> bool:
    parameters = inspect.signature(found).parameters.values()
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def _made(args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, with those that have a `_target_` instantiated."""
    made = instantiate({"args": dict(args)}, _convert_="all")
    return dict(made["args"])
