"""Compiled libraries: location, loading, and build info."""

import ctypes
import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

CPU = "neuscale_ops_cpu.so"
CUDA = "neuscale_ops_cuda.so"
TORCH_TARGET = "2.11"  # torch version of the stable ABI that the libraries are built for

# ELF machine numbers by the kernel's machine names (uname -m).
_MACHINES = {"x86_64": 62, "aarch64": 183, "ppc64le": 21, "riscv64": 243}

_loaded: dict[str, Path] = {}


def load() -> None:
    """Load the CPU library, and the CUDA library if it exists and torch is a CUDA build.

    The CUDA library is loaded even without a GPU, so that programs that only inspect it (`neuscale
    doctor`, the image build) see the same ops. Raises ImportError with the reason and a fix.
    """
    folder = _folder()
    if not (folder / CPU).is_file():
        raise ImportError(
            f"neuscale_ops is not built: there is no {CPU} in {folder}. Run 'make ops', or set"
            " NEUSCALE_OPS_JIT=1 to build it now."
        )
    _load_library(folder / CPU)
    if torch.version.cuda and (folder / CUDA).is_file():
        _load_library(folder / CUDA)


def _folder() -> Path:
    if os.environ.get("NEUSCALE_OPS_JIT", "0") not in ("", "0"):
        from neuscale_ops.jit import built_folder

        return built_folder()
    return Path(__file__).parent


def _load_library(path: Path) -> None:
    try:
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError) as error:
        raise ImportError(_why_not(path) or _not_with_torch(path, error)) from error
    _loaded[path.name] = path


def _why_not(path: Path) -> str | None:
    """Reason why this machine cannot load the library with any torch, and a fix; None if there is none."""
    try:
        head = path.read_bytes()[:20]
        no_exec = bool(os.statvfs(path).f_flag & os.ST_NOEXEC)
    except (OSError, AttributeError):  # os.ST_NOEXEC exists on Linux only
        return None
    if head[:4] != b"\x7fELF":
        return f"{path} is damaged, or of another system than Linux: build it here with 'make ops'."
    machine = int.from_bytes(head[18:20], "little")
    if (here := _MACHINES.get(platform.machine())) is not None and machine != here:
        names = {number: name for name, number in _MACHINES.items()}
        return (
            f"{path} is for {names.get(machine, f'another processor ({machine})')}, and this machine is"
            f" {platform.machine()}: build it here with 'make ops'."
        )
    if no_exec:
        return (
            f"{path} lies on a file system that is mounted noexec, from which no library can be loaded."
            " Install the package elsewhere, or set NEUSCALE_OPS_JIT=1 and NEUSCALE_OPS_CACHE to a folder on"
            " another one."
        )
    return None


def _not_with_torch(path: Path, error: Exception) -> str:
    return (
        f"{path} does not load with torch {torch.__version__}: {error}. It needs torch"
        f" {TORCH_TARGET} or later{_cuda_words(path)}; build it again beside this torch with 'make ops'."
    )


def _cuda_words(path: Path) -> str:
    if path.name != CUDA:
        return ""
    return f", built for CUDA 13 (this one: {torch.version.cuda}), and its CUDA libraries"


def build_info() -> dict[str, Any]:
    """Description of the loaded libraries, for users and reports.

    Keys: `version`; `torch_target`, the lowest supported torch; `source`, "jit" or "installed";
    `cpu` and `cuda`, each None if that library is not loaded, else its `path` and `sha256`, and for
    CUDA the `architectures` that it is compiled for.
    """
    found = {name: _describe(_loaded[name]) if name in _loaded else None for name in (CPU, CUDA)}
    cuda = found[CUDA]
    if cuda is not None:
        cuda["architectures"] = _architectures(_loaded[CUDA])
    return {
        "version": _version(),
        "torch_target": TORCH_TARGET,
        "source": "installed" if _loaded.get(CPU, Path()).parent == Path(__file__).parent else "jit",
        "cpu": found[CPU],
        "cuda": cuda,
    }


def _describe(path: Path) -> dict[str, Any]:
    return {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _architectures(path: Path) -> list[str]:
    """Architectures in CMake's notation: "90-real" is machine code, "100" adds PTX for later GPUs."""
    function = ctypes.CDLL(str(path)).neuscale_ops_cuda_architectures
    function.restype = ctypes.c_char_p
    return str(function().decode()).split()


def _version() -> str:
    try:
        return metadata.version("neuscale_ops")
    except metadata.PackageNotFoundError:  # a source checkout on the path
        return "0+source"
