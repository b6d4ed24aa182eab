"""What a run says about itself: what was asked for, on what, by which code, and how it ended."""

import json
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any

from neuscale import __version__
from neuscale.data.packed import PackedMeta
from neuscale.files import write_atomically

# What an image says of itself; written by scripts/image/describe.py.
IMAGE_RECORD = Path(sys.prefix) / "share" / "neuscale" / "image.json"
PACKAGES = ("torch", "torchvision", "accelerate", "numpy", "safetensors", "torchmetrics", "timm")


def first_manifest(
    data: PackedMeta, seed: int, device: str, precision: str, processes: int
) -> dict[str, Any]:
    """The manifest of a run that is about to begin."""
    return {
        "command": sys.argv,
        "started": now(),
        "status": "running",
        "neuscale": __version__,
        "code": code_revision(),
        "image": image_record(),
        "python": platform.python_version(),
        "packages": package_versions(),
        "machine": {"system": platform.platform(), "device": device, "processes": processes},
        "precision": precision,
        "seed": seed,
        "data": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "counts": data.counts,
            "source": data.source,
        },
        "resumed": [],
    }


def package_versions() -> dict[str, str | None]:
    """The installed versions of what the numbers depend on; None for what is not installed."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def installed_packages() -> dict[str, str]:
    """Every installed distribution and its version, sorted by name."""
    versions: dict[str, str] = {}
    for found in distributions():
        versions.setdefault(_normal_name(found.name), found.version)  # the first is what is imported
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
    here = Path(__file__).parent

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


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Replaces the manifest at `path`."""
    write_atomically(path, json.dumps(manifest, indent=2) + "\n")


def now() -> str:
    """The time, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
