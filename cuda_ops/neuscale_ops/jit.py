"""Builds the libraries on first use, for the cards at hand: NEUSCALE_OPS_JIT=1.

For a cluster whose nodes have a compiler but not the image: a source checkout on PYTHONPATH is
enough. What is built stays in $NEUSCALE_OPS_CACHE (else ~/.cache/neuscale_ops), in a folder named
after the sources, the machine, torch and the architectures, so that a change of any of them builds again and
nothing is ever half there: it is built under another name and renamed. A library is loaded only from
a folder that nobody but this user, or root, can write to.
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
    """The folder of the libraries, built if need be; one process builds while others wait.

    Raises ImportError with the compiler's last words where the build fails, and where others own or
    may write to what would be loaded.
    """
    if not (SOURCES / "CMakeLists.txt").is_file():
        raise ImportError(
            "NEUSCALE_OPS_JIT=1 builds from a source checkout, and this is an installed package:"
            " put the checkout's cuda_ops folder on PYTHONPATH, or unset NEUSCALE_OPS_JIT."
        )
    architectures = card_architectures()
    cache = Path(os.environ.get("NEUSCALE_OPS_CACHE") or "~/.cache/neuscale_ops").expanduser()
    # Machines of several kinds may share a home.
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
        # The system frees the lock of a process that dies; the empty file stays.
        with (cache / f"{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for left in cache.glob(f"building-{folder.name}-*"):  # by a build that was killed
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
    """SHA-256 over the names and contents of everything the build reads."""
    digest = hashlib.sha256()
    files = [SOURCES / "CMakeLists.txt", *SOURCES.glob("cmake/*.cmake"), *SOURCES.glob("csrc/**/*.*")]
    for path in sorted(files):
        digest.update(str(path.relative_to(SOURCES)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def card_architectures() -> list[str]:
    """Of the cards this process sees, as CMake names them: ["90-real"]; none without a card."""
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
        for path in (built, *built.rglob("*")):  # whatever the umask is
            path.chmod(path.stat().st_mode & ~_OTHERS_WRITE)
        built.rename(folder)


def _check_own(cache: Path, *folders: Path) -> None:
    """Raise ImportError unless the cache, and all in `folders`, belongs to this user or root alone."""
    for path in (cache, *folders, *(file for folder in folders for file in folder.rglob("*"))):
        # The cache itself may be a link; one inside is refused, since its mode is 777.
        status = path.stat() if path == cache else path.lstat()
        if status.st_uid not in (0, os.getuid()) or status.st_mode & _OTHERS_WRITE:
            raise ImportError(
                f"{path}: others own it, or may write to it, and its code would run as you."
                " Set NEUSCALE_OPS_CACHE to a folder of your own, or remove it and 'chmod go-w' the folder."
            )


def _tool(name: str) -> str | None:
    """A program beside this Python, or on PATH."""
    return shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = "\n".join((done.stdout + done.stderr).strip().splitlines()[-30:])
        raise ImportError(f"neuscale_ops could not be built: {' '.join(command[:2])} … failed.\n{words}")
