"""The user's code that a run imported: its copy in the run folder, its record, and the choice between them.

If the project folder has identical files, these are imported. The copy is only used with `--trust` or
$NEUSCALE_TRUST=1, since a run may come from anybody.
"""

import difflib
import hashlib
import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from neuscale.config import Config
from neuscale.errors import UsageError, disk_error
from neuscale.fs import make_folder, write_atomically
from neuscale.project.folder import project_root
from neuscale.project.targets import code_root, imported_modules, module_path, use_root
from neuscale.project.trust import check_targets, is_trusted
from neuscale.runs.environment import revision_of
from neuscale.runs.folder import RunFolder
from neuscale.runs.manifest import read_manifest
from neuscale.untrusted import printable, read_regular, reason_of

FOLDER = "code"

_SHOWN_LINES, _LONGEST_LINE = 4, 60  # shown of a difference


def describe_own_code(copy_to: Path | None = None) -> dict[str, Any]:
    """Record of the user's modules that this process imported, for a manifest; empty without any.

    It contains their folder, its git revision, and the path in it and sha256 of each file; for a file from
    elsewhere (an editable install) the path is made from the module name. The files are copied to the run
    folder `copy_to`; a different file that is there already is moved to a folder named after its sha256.
    Raises UserError if the disk cannot be written.
    """
    modules, root = imported_modules(), code_root()
    if not modules:
        return {}
    files = []
    for module, path in sorted(modules.items()):
        name = path.relative_to(root).as_posix() if root is not None and path.is_relative_to(root) else ""
        name = name or f"{module.replace('.', '/')}{'/__init__' * (path.stem == '__init__')}.py"
        content = _content(path, id(sys.modules.get(module)))
        if copy_to is not None:
            _copy(copy_to, name, content)
        files.append({"module": module, "file": name, "sha256": hashlib.sha256(content).hexdigest()})
    repository = revision_of(root, *modules.values()) if root is not None else None
    return {
        "own_code": {
            "root": str(root) if root is not None else None,
            "repository": repository,
            "files": files,
        }
    }


@cache
def _content(path: Path, _module: int) -> bytes:
    """Content of a module's file when first read, soon after its import: it may be edited later."""
    return path.read_bytes()


def _copy(run: Path, name: str, content: bytes) -> None:
    target = run / FOLDER / name
    try:
        before = target.read_bytes() if target.is_file() else content
        if before != content:  # the run was resumed with other code
            earlier = run / f"{FOLDER}-{hashlib.sha256(before).hexdigest()[:8]}" / name
            make_folder(earlier.parent)
            write_atomically(earlier, before)
        make_folder(target.parent)
        write_atomically(target, content)
    except OSError as error:
        raise disk_error(error, target) from error


def has_own_code(run: RunFolder) -> bool:
    """True for a run that imported code of the user."""
    return bool((read_manifest(run.manifest_file).get("own_code") or {}).get("files"))


def use_code(run: RunFolder, resume: bool = False, config: Config | None = None) -> list[str]:
    """Choose where the code of a run is imported from, before its model is created; also check its targets.

    `config`: default, the run's own. The project folder is used if it has the same files, or, with `resume`,
    changed ones: descriptions of the changes are returned. Otherwise the run's copy is used, if it is
    trusted. Raises UsageError if it is not, or if the copy differs from the manifest's record.
    """
    recorded = read_manifest(run.manifest_file).get("own_code")
    fields = asdict(config if config is not None else run.config())
    if not isinstance(recorded, Mapping) or not recorded.get("files"):
        check_targets(fields, (), str(run.path))
        return []
    modules = [str(file["module"]) for file in recorded["files"]]
    changes = _changes(run, recorded["files"])
    if not changes:
        check_targets(fields, modules, str(run.path))
        return []
    if is_trusted():
        use_root(_checked_copy(run, recorded["files"]), modules)
        return []
    names = ", ".join(sorted({printable(str(file["file"])) for file in recorded["files"]})[:5])
    if project_root() is None:
        raise UsageError(
            f"{run.path}: this run brings code of its own ({names}), which would be run.",
            f"If you trust it (see {run.path / FOLDER}), say `trust`; or call this in its project folder.",
        )
    if resume and all(change is not None for change in changes.values()):
        check_targets(fields, modules, str(run.path))
        return [f"{name} has changed: {change}" for name, change in changes.items()]
    first, change = next(iter(changes.items()))
    raise UsageError(
        f"{run.path}: was trained with other code than that of {project_root()}: {first}"
        f" {f'has changed: {change}' if change else 'is not there'}.",
        "Say `trust` to use the run's own copy of it, or bring the file back.",
    )


def _changes(run: RunFolder, files: list[Mapping[str, Any]]) -> dict[str, str | None]:
    """The recorded files that differ from those that would be imported, with changed lines; None: missing."""
    found: dict[str, str | None] = {}
    for file in files:
        name = str(file["file"])
        here = module_path(name)
        if here is None:
            found[name] = None
            continue
        content = here.read_bytes()
        if hashlib.sha256(content).hexdigest() != file["sha256"]:
            found[name] = _difference(run.path / FOLDER / name, content)
    return found


def _difference(copy: Path, content: bytes) -> str:
    try:
        before = read_regular(copy).decode(errors="replace").splitlines()
    except OSError:
        return "the run's copy of it is gone"
    lines = difflib.unified_diff(before, content.decode(errors="replace").splitlines(), lineterm="", n=0)
    changed = [line for line in lines if not line.startswith(("---", "+++", "@@"))]
    more = f" and {len(changed) - _SHOWN_LINES} lines more" if len(changed) > _SHOWN_LINES else ""
    shown = (f"{line[0]} {line[1:].strip()[:_LONGEST_LINE]}" for line in changed[:_SHOWN_LINES])
    return printable("; ".join(shown)) + more


def _checked_copy(run: RunFolder, files: list[Mapping[str, Any]]) -> Path:
    """Folder of the verified copy. Raises UsageError if a file differs from its record or lies outside."""
    folder = run.path / FOLDER
    for file in files:
        name = PurePosixPath(str(file["file"]))
        if name.is_absolute() or ".." in name.parts:
            raise UsageError(f"{run.path}: its manifest names {printable(str(name))}, outside of the run.")
        try:
            content = read_regular(folder / name)
        except OSError as error:
            raise UsageError(
                f"{folder / name}: the run's copy of its code cannot be read ({reason_of(error)}).",
                "Call this in the project folder that it was trained in.",
            ) from error
        if hashlib.sha256(content).hexdigest() != file["sha256"]:
            raise UsageError(
                f"{folder / name}: is not the code that the run was trained with: its sha256 differs.",
                "Restore it from a copy of the run.",
            )
    return folder.resolve()
