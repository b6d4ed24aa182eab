"""The compiled libraries: where they are, loading them, and what they say of themselves."""

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
TORCH_TARGET = "2.11"  # of the stable ABI the libraries are built for

# ELF's numbers of processors, by the names that the kernel has for them.
_MACHINES = {"x86_64": 62, "aarch64": 183, "ppc64le": 21, "riscv64": 243}

_loaded: dict[str, Path] = {}


def load() -> None:
    """Load the CPU's library, and the CUDA library where torch is a build for CUDA.

    A CUDA library is loaded without a GPU too, so that a program that only looks (`neuscale
    doctor`, an image's build) sees the same ops. Raises ImportError in words.
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
    """The reason why a library cannot be loaded here, whatever torch there is, and what to do; else None."""
    try:
        head = path.read_bytes()[:20]
        no_exec = bool(os.statvfs(path).f_flag & os.ST_NOEXEC)
    except (OSError, AttributeError):  # os.ST_NOEXEC is Linux's
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
    """What was built and loaded, for people and for reports.

    `version`; `torch_target`, the lowest torch that fits; `cpu` and `cuda`, each None where that
    library is not loaded, else its `path` and `sha256`, and for CUDA the `architectures` it has
    code for; `source`: "jit" or "installed".
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
    """As CMake names them: "90-real" is machine code, "100" machine code and PTX for later cards."""
    function = ctypes.CDLL(str(path)).neuscale_ops_cuda_architectures
    function.restype = ctypes.c_char_p
    return str(function().decode()).split()


def _version() -> str:
    try:
        return metadata.version("neuscale_ops")
    except metadata.PackageNotFoundError:  # a source checkout on the path
        return "0+source"
