"""Where a run takes place: code, packages, image, machine. Cheap enough for every start of a training."""

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

from neuscale import __version__
from neuscale.cluster.cores import available_cores
from neuscale.cluster.gpus import driver_version, gpu_list
from neuscale.cluster.memory import host_memory
from neuscale.native_ops import load_native_ops
from neuscale.runs import manifest
from neuscale.runs.code import PACKAGE, describe_code
from neuscale.runs.manifest import image_record, installed_packages


def environment() -> tuple[dict[str, Any], bytes]:
    """(the fields of a manifest that say where a run takes place, the uncommitted changes of the code)."""
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
    """The host, its processor, its GPUs and what drives them."""
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


def cpu_name() -> str:
    """The processor as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def lock_hash() -> str | None:
    """sha256 of the requirements.lock that this environment is made from, where that is known."""
    if (record := image_record()) is not None:
        return record.get("lock_sha256")
    try:
        return hashlib.sha256((PACKAGE.parent.parent / "requirements.lock").read_bytes()).hexdigest()
    except OSError:  # not run from a checkout
        return None


def image() -> dict[str, Any] | None:
    """The image's record, the hash of its contents, and its name and digest where these were passed in."""
    record = image_record()
    if record is None:
        return None
    name = os.environ.get("NEUSCALE_IMAGE") or os.environ.get("APPTAINER_CONTAINER")
    try:
        contents = manifest.IMAGE_RECORD.with_name("sbom.spdx.json").read_bytes()
        sbom = hashlib.sha256(contents).hexdigest()
    except OSError:
        sbom = None
    digest = os.environ.get("NEUSCALE_IMAGE_DIGEST") or None
    return {**record, "name": name, "digest": digest, "sbom_sha256": sbom}


def ops_build() -> dict[str, Any] | None:
    """The compiled native ops: their version and the sha256 of each library; None without them."""
    ops, _ = load_native_ops()
    if ops is None:
        return None
    info = ops.build_info()
    hashes = {f"{name}_sha256": info[name]["sha256"] if info[name] else None for name in ("cpu", "cuda")}
    return {"version": info["version"], **hashes}
