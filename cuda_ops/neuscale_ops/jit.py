"""Build of the libraries on first use, for the visible GPUs (NEUSCALE_OPS_JIT=1).

For a cluster whose nodes have a compiler but not the image: a source checkout on PYTHONPATH is
enough. The libraries stay in $NEUSCALE_OPS_CACHE (default ~/.cache/neuscale_ops), in a folder named
after the source hash, the machine, the torch version and the architectures, so a change of any of
them triggers a new build. The build runs in a temporary folder that is renamed at the end, so the
cache never holds a partial build. Libraries are loaded only from folders that nobody but this user
or root can write to.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

SOURCES = Path(__file__).parents[1]
DONE = "neuscale_ops_cpu.so"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def built_folder() -> Path:
    """Return the folder of the libraries, building them if needed; one process builds while others wait.

    Raises ImportError, with the last lines of output if the build fails, and if other users own or
    can write to the files that would be loaded.
    """
    if not (SOURCES / "CMakeLists.txt").is_file():
        raise ImportError(
            "NEUSCALE_OPS_JIT=1 builds from a source checkout, and this is an installed package:"
            " put the checkout's cuda_ops folder on PYTHONPATH, or unset NEUSCALE_OPS_JIT."
        )
    architectures = card_architectures()
    cache = Path(os.environ.get("NEUSCALE_OPS_CACHE") or "~/.cache/neuscale_ops").expanduser()
    # Machines of different architectures may share a home directory.
    kind = f"{platform.system().lower()}-{platform.machine()}"
    cards = "_".join(architectures) or "cpu"
    folder = cache / f"{source_hash()[:16]}-{kind}-torch{torch.__version__}-{cards}"
    if (folder / DONE).is_file():
        _check_own(cache, folder)
        return folder
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.mkdir(mode=0o700, exist_ok=True)
        _check_own(cache)
        # The kernel releases the lock of a process that dies; the empty lock file stays.
        with (cache / f"{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for left in cache.glob(f"building-{folder.name}-*"):  # from a killed build
                shutil.rmtree(left, ignore_errors=True)
            if not (folder / DONE).is_file():
                _build(folder, architectures)
        _check_own(cache, folder)
    except OSError as error:
        raise ImportError(
            f"{cache}: {error.strerror}. Set NEUSCALE_OPS_CACHE to a folder that can be written."
        ) from error
    return folder


def source_hash() -> str:
    """SHA-256 over the names and contents of all files that the build reads."""
    digest = hashlib.sha256()
    files = [SOURCES / "CMakeLists.txt", *SOURCES.glob("cmake/*.cmake"), *SOURCES.glob("csrc/**/*.*")]
    for path in sorted(files):
        digest.update(str(path.relative_to(SOURCES)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def card_architectures() -> list[str]:
    """Architectures of the visible GPUs in CMake's notation, as ["90-real"]; empty without a GPU."""
    if not torch.cuda.is_available():
        return []
    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return [f"{major}{minor}-real" for major, minor in sorted(found)]


def _build(folder: Path, architectures: list[str]) -> None:
    cmake, ninja, make = map(_tool, ("cmake", "ninja", "make"))
    if cmake is None:
        raise ImportError("NEUSCALE_OPS_JIT=1 needs CMake 3.24 or later: pip install cmake.")
    if ninja is None and make is None:
        raise ImportError("NEUSCALE_OPS_JIT=1 needs Ninja or make: pip install ninja.")
    print(f"neuscale_ops: building for {', '.join(architectures) or 'the CPU'} …", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"building-{folder.name}-") as work:
        options = [
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_INSTALL_PREFIX={work}/out",
            f"-DNEUSCALE_OPS_CUDA={'ON' if architectures else 'OFF'}",
            f"-DNEUSCALE_OPS_ARCHITECTURES={';'.join(architectures)}",
            *(["-GNinja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []),
        ]
        _run([cmake, "-S", str(SOURCES), "-B", f"{work}/build", *options])
        _run([cmake, "--build", f"{work}/build", "--parallel", str(len(os.sched_getaffinity(0)))])
        _run([cmake, "--install", f"{work}/build"])
        built = Path(work, "out", "neuscale_ops")
        for path in (built, *built.rglob("*")):  # independent of the umask
            path.chmod(path.stat().st_mode & ~_OTHERS_WRITE)
        built.rename(folder)


def _check_own(cache: Path, *folders: Path) -> None:
    """Raise ImportError unless only this user or root owns, and can write to, the cache and `folders`."""
    for path in (cache, *folders, *(file for folder in folders for file in folder.rglob("*"))):
        # The cache itself may be a symlink; a symlink inside it is refused, because its mode is 777.
        status = path.stat() if path == cache else path.lstat()
        if status.st_uid not in (0, os.getuid()) or status.st_mode & _OTHERS_WRITE:
            raise ImportError(
                f"{path}: others own it, or may write to it, and its code would run as you."
                " Set NEUSCALE_OPS_CACHE to a folder of your own, or remove it and 'chmod go-w' the folder."
            )


def _tool(name: str) -> str | None:
    """Path of a program beside this Python or on PATH, else None."""
    return shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = "\n".join((done.stdout + done.stderr).strip().splitlines()[-30:])
        raise ImportError(f"neuscale_ops could not be built: {' '.join(command[:2])} … failed.\n{words}")
