"""Checks of this machine: devices, memory, folders, packages."""

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from neuscale.contention import other_load
from neuscale.data.datasets import prepared_names
from neuscale.fs import existing_parent
from neuscale.hardware import available_cores, driver_version, host_memory
from neuscale.native_ops import load_native_ops
from neuscale.paths import data_root, runs_root
from neuscale.runs.environment import code_revision, image_record, installed_packages
from neuscale.version import __version__

# NCCL on several GPUs fails with less shared memory (Docker's default is 64 MB).
SHM_NEEDED = 1 << 30


DISK_NEEDED = 2 << 30


def examine() -> dict[str, Any]:
    """Findings by name; `problems` is a list of sentences that say what to do."""
    problems: list[str] = []
    return {
        "neuscale": __version__,
        "code": code_revision(),
        "image": image_record(),
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        "packages": installed_packages(),
        "cores": available_cores(),
        "other_load": _other_load(),
        "memory": f"{host_memory() / 2**30:.1f} GiB",
        "devices": _devices(problems),
        "native_ops": _native_ops(),
        "shared_memory": _shared_memory(problems),
        "data_folder": _folder(data_root(), "NEUSCALE_DATA", problems, read_only=bool(prepared_names())),
        "runs_folder": _folder(runs_root(), "NEUSCALE_RUNS", problems),
        "data_sets": prepared_names(),
        "problems": problems,
    }


def _other_load() -> str:
    """Cores that other programs use; training is slower then, which is no fault of the machine."""
    load = other_load()
    return "unknown" if load is None else f"other programs use {load:.1f} cores"


def _devices(problems: list[str]) -> list[str]:
    """Descriptions of the GPUs, or "CPU"."""
    import torch

    if torch.cuda.is_available():
        found = []
        for i in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(i)
            found.append(f"{p.name}, {p.total_memory / 2**30:.0f} GiB, sm_{p.major}{p.minor}")
        return [f"{name} (CUDA {torch.version.cuda}, driver {driver_version()})" for name in found]
    if torch.backends.mps.is_available():
        return ["Apple GPU (MPS)"]
    driver = driver_version()
    if driver is not None:
        problems.append(
            f"There is an NVIDIA driver ({driver}), but torch {torch.__version__} cannot use it:"
            f" update the driver to one for CUDA {torch.version.cuda}, or give the container its GPUs"
            " (docker run --gpus all, apptainer --nv)."
        )
    return ["CPU"]


def _native_ops() -> dict[str, Any] | str:
    """Build information of the native ops, or the reason why they are not used."""
    ops, reason = load_native_ops()
    return ops.build_info() if ops is not None else f"none: {reason}"


def _shared_memory(problems: list[str]) -> str | None:
    shm = Path("/dev/shm")
    if not shm.is_dir():
        return None
    import torch

    size = shutil.disk_usage(shm).total
    if torch.cuda.device_count() > 1 and size < SHM_NEEDED:
        problems.append(
            f"/dev/shm has only {size / 2**20:.0f} MiB: several GPUs need 1 GiB or more"
            " (docker run --shm-size 1g)."
        )
    return f"{size / 2**30:.1f} GiB"


def _folder(folder: Path, variable: str, problems: list[str], read_only: bool = False) -> str:
    """The folder and its free space as text; it must be writable unless `read_only`."""
    there = existing_parent(folder)
    free = shutil.disk_usage(there).free
    if not there.is_dir():
        problems.append(f"{folder}: {there} is not a folder. Set ${variable} to another one.")
    elif not os.access(there, os.W_OK | os.X_OK):
        if read_only and os.access(there, os.R_OK | os.X_OK):
            return f"{folder.absolute()} (read-only)"
        problems.append(f"{folder}: cannot be written to. Set ${variable} to a folder that can.")
    elif free < DISK_NEEDED:
        problems.append(
            f"{folder}: only {free / 2**30:.1f} GiB free. Free some, or set ${variable} to another disk."
        )
    return f"{folder.absolute()} ({free / 2**30:.0f} GiB free)"
