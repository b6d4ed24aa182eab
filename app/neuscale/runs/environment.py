"""Environment of a run: code, packages, image, machine. Fast enough for every start of a training."""

import hashlib
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from neuscale.hardware import available_cores, cpu_name, driver_version, gpu_list, host_memory
from neuscale.native_ops import load_native_ops
from neuscale.untrusted import read_json
from neuscale.version import __version__


def environment() -> tuple[dict[str, Any], bytes]:
    """(manifest fields that describe the environment of a run, uncommitted code changes as a patch)."""
    code, patch = describe_code()
    return {
        "neuscale": __version__,
        "code": code,
        "lock_sha256": lock_hash(),
        "image": image(),
        "python": platform.python_version(),
        "packages": installed_packages(),
        "machine": machine(),
    }, patch


def machine() -> dict[str, Any]:
    """The host, its processor, its GPUs, and the driver and CUDA versions."""
    import torch

    return {
        "host": platform.node(),
        "system": platform.platform(),
        "cpu": cpu_name(),
        "cores": available_cores(),
        "memory_gb": round(host_memory() / 1e9, 1),
        "gpus": gpu_list(),
        "driver": driver_version(),
        "cuda": torch.version.cuda,
    }


def lock_hash() -> str | None:
    """SHA-256 of the requirements.lock of the image or checkout; None if there is none."""
    if (record := image_record()) is not None:
        return record.get("lock_sha256")
    try:
        return hashlib.sha256((PACKAGE.parent.parent / "requirements.lock").read_bytes()).hexdigest()
    except OSError:  # not run from a checkout
        return None


def image() -> dict[str, Any] | None:
    """The image's record and SBOM hash, and its name and digest if they are set; None outside an image."""
    record = image_record()
    if record is None:
        return None
    name = os.environ.get("NEUSCALE_IMAGE") or os.environ.get("APPTAINER_CONTAINER")
    try:
        contents = IMAGE_RECORD.with_name("sbom.spdx.json").read_bytes()
        sbom = hashlib.sha256(contents).hexdigest()
    except OSError:
        sbom = None
    digest = os.environ.get("NEUSCALE_IMAGE_DIGEST") or None
    return {**record, "name": name, "digest": digest, "sbom_sha256": sbom}


def ops_build() -> dict[str, Any] | None:
    """Version of the compiled native ops and sha256 of each library; None without them."""
    ops, _ = load_native_ops()
    if ops is None:
        return None
    info = ops.build_info()
    hashes = {f"{name}_sha256": info[name]["sha256"] if info[name] else None for name in ("cpu", "cuda")}
    return {"version": info["version"], **hashes}


PACKAGE = Path(__file__).parent.parent


def describe_code() -> tuple[dict[str, Any], bytes]:
    """(manifest fields about the code, uncommitted changes as a patch).

    `revision` and `changed` are null if neither git nor an image provides them; `source_sha256`
    is over the package's own files, so that equal code is recognised wherever it is installed.
    """
    known = code_revision() or {"revision": None, "changed": None}
    patch = uncommitted(PACKAGE) if known["changed"] and image_record() is None else b""
    diff = {"file": "code.diff", "sha256": hashlib.sha256(patch).hexdigest()} if patch else None
    return {**known, "source_sha256": source_hash(PACKAGE), "diff": diff}, patch


def source_hash(folder: Path) -> str:
    """SHA-256 of the names and bytes of the files below `folder`, without hidden files and __pycache__."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and "__pycache__" not in inside.parts and not path.name.startswith("."):
            content = path.read_bytes()
            digest.update(f"{inside.as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def uncommitted(folder: Path) -> bytes:
    """Uncommitted changes in `folder` for `git apply`, new files included; empty without git."""

    def git(*words: str) -> bytes:
        command = ["git", "-C", str(folder), "-c", "core.quotepath=off", *words]
        done = subprocess.run(command, capture_output=True, timeout=30, check=False)
        if done.returncode not in (0, 1):  # 1: diff --no-index found differences
            raise subprocess.CalledProcessError(done.returncode, command)
        return done.stdout

    options = ("--binary", "--no-color", "--no-ext-diff")
    try:
        patch = git("diff", *options, "HEAD", "--", ".")
        top = git("rev-parse", "--show-toplevel").decode().rstrip("\n")
        untracked = git("ls-files", "--others", "--exclude-standard", "--full-name", "-z", "--", ".")
        for name in sorted(n for n in untracked.decode().split("\0") if n):
            patch += git("-C", top, "diff", *options, "--no-index", "--", "/dev/null", name)
    except (OSError, subprocess.SubprocessError):
        return b""
    return patch


# Record inside a container image, written by scripts/image/describe.py.
IMAGE_RECORD = Path(sys.prefix) / "share" / "neuscale" / "image.json"


PACKAGES = ("torch", "torchvision", "accelerate", "numpy", "safetensors", "timm")


def installed_packages() -> dict[str, str]:
    """Every installed distribution and its version, sorted by name."""
    versions: dict[str, str] = {}
    for found in distributions():
        # Only two lines are needed: parsing everything with the standard library takes four times as long.
        text = found.read_text("METADATA") or found.read_text("PKG-INFO") or ""
        header = dict(re.findall(r"^(Name|Version): *(.+?)\s*$", text.partition("\n\n")[0], re.MULTILINE))
        if len(header) == 2:  # an interrupted uninstall leaves folders without them
            versions.setdefault(_normal_name(header["Name"]), header["Version"])  # the first is imported
    return dict(sorted(versions.items()))


def _normal_name(name: str) -> str:
    """Normalised name of a distribution (as packaging.utils.canonicalize_name)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def image_record() -> dict[str, Any] | None:
    """Record of the container image: version, revision, hash of the lock; None outside an image."""
    try:
        record = read_json(IMAGE_RECORD)
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def code_revision() -> dict[str, Any] | None:
    """Git revision of this package's checkout or image, and `changed`: with local changes; else None."""
    if (image := image_record()) is not None:
        revision = str(image.get("revision") or "unknown")
        return {"revision": revision.removesuffix("-dirty"), "changed": revision.endswith("-dirty")}
    return revision_of(Path(__file__).parent.parent)  # the whole package


def revision_of(here: Path, *files: Path) -> dict[str, Any] | None:
    """Git revision of the repository of `here`, and `changed`: of `files`, or `here`; None without git."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        return {
            "revision": git("rev-parse", "HEAD"),
            "changed": bool(git("status", "--porcelain", "--", *map(str, files or [here]))),
        }
    except (OSError, subprocess.SubprocessError):
        return None
