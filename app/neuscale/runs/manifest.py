"""What a run says about itself: what was asked for, on what, by which code, and how it ended.

`manifest.schema.json` beside this file says every field of it.
"""

import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from neuscale.errors import UserError
from neuscale.files import write_atomically

VERSION = 2
SCHEMA = Path(__file__).with_name("manifest.schema.json")

# What an image says of itself; written by scripts/image/describe.py.
IMAGE_RECORD = Path(sys.prefix) / "share" / "neuscale" / "image.json"
PACKAGES = ("torch", "torchvision", "accelerate", "numpy", "safetensors", "torchmetrics", "timm")


def installed_packages() -> dict[str, str]:
    """Every installed distribution and its version, sorted by name."""
    versions: dict[str, str] = {}
    for found in distributions():
        # Two lines of it: the standard library would parse the whole, at four times the time.
        text = found.read_text("METADATA") or found.read_text("PKG-INFO") or ""
        header = dict(re.findall(r"^(Name|Version): *(.+?)\s*$", text.partition("\n\n")[0], re.MULTILINE))
        if len(header) == 2:  # an uninstall cut short leaves folders without them
            versions.setdefault(_normal_name(header["Name"]), header["Version"])  # the first is imported
    return dict(sorted(versions.items()))


def _normal_name(name: str) -> str:
    """The one spelling of a distribution's name (as packaging.utils.canonicalize_name)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def image_record() -> dict[str, Any] | None:
    """What the container image says of itself: version, revision, lock's hash; None outside of one."""
    return read_manifest(IMAGE_RECORD) or None


def code_revision() -> dict[str, Any] | None:
    """The git revision of this package's checkout or image, and whether it was changed; else None."""
    if (image := image_record()) is not None:
        revision = str(image.get("revision") or "unknown")
        return {"revision": revision.removesuffix("-dirty"), "changed": revision.endswith("-dirty")}
    here = Path(__file__).parent.parent  # the whole package

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        return {
            "revision": git("rev-parse", "HEAD"),
            "changed": bool(git("status", "--porcelain", "--", str(here))),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest at `path`; empty where there is none that can be read."""
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def load_manifest(path: Path) -> dict[str, Any]:
    """The manifest at `path`, in today's form. Raises UserError where it is missing, damaged or too new."""
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{path}: there is no manifest: this run has not begun to train.",
            "Start it: neuscale train --resume RUN.",
        ) from None
    except (OSError, ValueError) as error:
        raise damaged(path, str(error)) from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("status"), str):
        raise damaged(path, "it says nothing of a run")
    version = manifest.get("version", 1)
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise UserError(
            f"{path}: is of version {version}, and this program reads 1 to {VERSION}.",
            "Use the version of neuscale that wrote it.",
        )
    return migrated(manifest)


def damaged(path: Path, reason: str) -> UserError:
    """The error for a manifest that cannot be read."""
    return UserError(
        f"{path}: damaged ({reason}).",
        "Restore it from a copy; the run's config.yaml, metrics.jsonl and checkpoints do not need it.",
    )


def migrated(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest of any version in today's form; what an older one did not say is null."""
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
    """Replaces the manifest at `path`."""
    write_atomically(path, json.dumps(manifest, indent=2) + "\n")


def now() -> str:
    """The time, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
