"""Manifest of a run: configuration, data, code, machine, and outcome.

`manifest.schema.json` beside this file defines every field.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from neuscale.errors import UserError
from neuscale.fs import write_atomically
from neuscale.untrusted import read_json, reason_of

VERSION = 2


SCHEMA = Path(__file__).with_name("manifest.schema.json")


_LONGEST_REASON = 200


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest at `path` leniently, for access to single fields: each has its type, or is missing.

    Empty if the manifest is missing or cannot be read.
    """
    try:
        manifest = read_json(path)
        if isinstance(manifest, dict) and manifest.get("version", 1) == 1 and "machine" in manifest:
            manifest = migrated(manifest)
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return {}
    return manifest if isinstance(manifest, dict) and _wrong(manifest, whole=False) is None else {}


def load_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest at `path` in today's form. Raises UserError if it is missing, damaged or too new."""
    try:
        manifest = read_json(path)
    except FileNotFoundError:
        raise UserError(
            f"{path}: there is no manifest: this run has not started to train.",
            "Start it: neuscale train --resume RUN.",
        ) from None
    except (OSError, ValueError) as error:
        raise damaged(path, reason_of(error)) from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("status"), str):
        raise damaged(path, "it says nothing of a run")
    version = manifest.get("version", 1)
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise UserError(
            f"{path}: is of version {version}, and this program reads 1 to {VERSION}.",
            "Use the version of neuscale that wrote it.",
        )
    try:
        manifest = migrated(manifest)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise damaged(path, reason_of(error)) from error
    if (wrong := _wrong(manifest, whole=True)) is not None:
        raise damaged(path, wrong)
    return manifest


def _wrong(manifest: dict[str, Any], whole: bool) -> str | None:
    """First violation of the schema, None if valid; `whole`: missing fields count as well."""
    error = next(_validator(whole).iter_errors(manifest), None)
    if error is None:
        return None
    where = ".".join(map(str, error.absolute_path))
    return f"{where + ': ' if where else ''}{error.message[:_LONGEST_REASON]}"


@cache
def _validator(whole: bool) -> Any:
    from jsonschema import Draft202012Validator

    schema = json.loads(SCHEMA.read_text())
    return Draft202012Validator(schema if whole else _optional(schema))


def _optional(schema: Any) -> Any:
    """The schema without its lists of required fields."""
    if isinstance(schema, dict):
        return {name: _optional(value) for name, value in schema.items() if name != "required"}
    return [_optional(item) for item in schema] if isinstance(schema, list) else schema


def damaged(path: Path, reason: str) -> UserError:
    """UserError for a manifest that cannot be read."""
    return UserError(
        f"{path}: damaged ({reason}).",
        "Restore it from a copy; the run's config.yaml, metrics.jsonl and checkpoints do not need it.",
    )


def migrated(manifest: dict[str, Any]) -> dict[str, Any]:
    """Convert a manifest of any version to today's form; fields that an older one lacks are null."""
    if manifest.get("version", 1) == VERSION:
        return manifest
    machine = manifest.get("machine") or {}
    device = str(machine.get("device") or "")
    threads = re.search(r"(\d+) thread", device)
    code, ops = manifest.get("code"), manifest.get("ops") or {}
    return {
        **dict.fromkeys(("name", "config", "lock_sha256", "determinism", "result", "ended", "error")),
        **manifest,
        "version": VERSION,
        "exit_code": 0 if manifest.get("status") == "finished" else None,
        "code": {"source_sha256": None, "diff": None, **code} if code is not None else None,
        "packages": {name: v for name, v in (manifest.get("packages") or {}).items() if v is not None},
        "machine": {
            **dict.fromkeys(("host", "cpu", "cores", "memory_gb", "gpus", "driver", "cuda")),
            **machine,
            "kind": "cpu" if device.startswith("CPU") else "mps" if device.startswith("Apple") else "cuda",
            "threads": int(threads[1]) if threads else None,
        },
        "loader": manifest.get("loader"),
        "ops": {"kind": ops.get("kind"), "reason": ops.get("reason", ""), "build": None},
        "resumed": [{"changed": [], **resume} for resume in manifest.get("resumed") or []],
        "migrated_from": 1,
    }


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Replace the manifest at `path`."""
    write_atomically(path, json.dumps(manifest, indent=2) + "\n")
