"""Time from Tiny ImageNet's zip to an array of decoded images: `neuscale data prepare` against usual ways.

    .venv/bin/python benchmarks/prepare.py tiny-imagenet-200.zip --folder /tmp --folder /dev/shm

Each side runs in its own process, and the sides take turns. Time and peak memory are those of the whole
process, including its start; the table has the median time and the highest memory. The usual ways unpack
with `zipfile` and decode one image after another into an array that is saved; ours also compares
checksums, sorts the validation images into their classes, writes checksums and syncs. The time of
unpacking depends on the file system, so the table names it, and also has a way that unpacks nothing. The
last rows are of a zip with each training image several times, about as many images as all of Tiny
ImageNet has: process start counts less there, and memory growth becomes visible.
Writes `benchmarks/results/prepare.csv`.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from table import cpu_name, write_table

from neuscale.hardware import available_cores

_IN_MEMORY = """
import io, sys, zipfile
from pathlib import Path
import numpy as np
from PIL import Image
archive = zipfile.ZipFile(sys.argv[1])
names = sorted(name for name in archive.namelist() if name.endswith(".JPEG"))
images = np.empty((len(names), 64, 64, 3), np.uint8)
for image, name in zip(images, names):
    image[:] = np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB"))
np.save(Path(sys.argv[2]) / "images.npy", images)
"""
_BEGIN = """
import sys, zipfile
from pathlib import Path
import numpy as np
zipfile.ZipFile(sys.argv[1]).extractall(sys.argv[2])
files = sorted(Path(sys.argv[2]).rglob("*.JPEG"))
images = np.empty((len(files), 64, 64, 3), np.uint8)
"""
_PILLOW = """
from PIL import Image
for image, file in zip(images, files):
    with Image.open(file) as opened:
        image[:] = np.asarray(opened.convert("RGB"))
"""
_TORCHVISION = """
from torchvision.io import ImageReadMode, decode_image
for image, file in zip(images, files):
    image[:] = decode_image(str(file), ImageReadMode.RGB).permute(1, 2, 0).numpy()
"""
_END = """
np.save(Path(sys.argv[2]) / "images.npy", images)
"""
_NEUSCALE = """
import os, sys
os.environ["NEUSCALE_DATA"] = sys.argv[2]
sys.argv = ["neuscale", "data", "prepare", "tiny_imagenet", "--source", sys.argv[1]]
from neuscale.__main__ import main
main()
"""
SIDES = {
    "zipfile.extractall, Pillow": _BEGIN + _PILLOW + _END,
    "zipfile.extractall, torchvision.io": _BEGIN + _TORCHVISION + _END,
    "zipfile in memory, Pillow": _IN_MEMORY,
    "neuscale data prepare": _NEUSCALE,
}

LARGER = ("zipfile.extractall, Pillow", "zipfile in memory, Pillow", "neuscale data prepare")


@dataclass
class Measured:
    """Seconds and peak memory (MB) of each run, and the number of images."""

    images: int
    seconds: list[float] = field(default_factory=list)
    peak_mb: list[float] = field(default_factory=list)


def run(program: str, archive: Path, parent: Path, measured: Measured) -> None:
    """Run and measure one process, in a temporary folder below `parent`."""
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        os.sync()  # write out what the previous side left
        began = time.perf_counter()
        command = [sys.executable, "-c", program, str(archive), folder]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        measured.seconds.append(time.perf_counter() - began)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command[:2])} failed with {process.returncode}")
        # ru_maxrss is in kilobytes on Linux, in bytes on macOS.
        measured.peak_mb.append(usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3))


def image_count(archive: Path) -> int:
    with zipfile.ZipFile(archive) as opened:
        return sum(name.endswith(".JPEG") and "/test/" not in name for name in opened.namelist())


def repeated(archive: Path, target: Path, times: int) -> Path:
    """Write a copy of the archive with each training image `times` times, under different names."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(target, "w") as copy:
        for info in source.infolist():
            if info.is_dir():
                continue
            content = source.read(info)
            copy.writestr(info.filename, content)
            if "/train/" in info.filename and info.filename.endswith(".JPEG"):
                for number in range(1, times):
                    copy.writestr(f"{info.filename.removesuffix('.JPEG')}-{number}.JPEG", content)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path, help="a zip in Tiny ImageNet's layout")
    parser.add_argument("--folder", type=Path, action="append", help="where to unpack and pack (repeatable)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--times", type=int, default=5, help="how often each image is in the larger zip")
    given = parser.parse_args()
    folders = given.folder or [Path(tempfile.gettempdir())]
    rows = []
    for folder in folders:
        rows += measure(given.archive, folder, given.rounds, SIDES)
    with tempfile.TemporaryDirectory(dir=folders[-1]) as scratch:
        larger = repeated(given.archive, Path(scratch) / "larger.zip", given.times)
        chosen = {name: SIDES[name] for name in LARGER}
        for found in measure(larger, folders[-1], given.rounds, chosen):
            rows.append({**found, "way": f"{found['way']}, each training image {given.times} times"})
    write_table("prepare", rows)


def measure(archive: Path, folder: Path, rounds: int, programs: dict[str, str]) -> list[dict[str, str]]:
    """Rows of all sides, which work in temporary folders below `folder`."""
    count = image_count(archive)
    sides = {name: Measured(count) for name in programs}
    for name in programs:  # warm-up: files and bytecode come from the page cache for all sides
        run(programs[name], archive, folder, Measured(count))
    for _ in range(rounds):
        for name, measured in sides.items():
            run(programs[name], archive, folder, measured)
    base = statistics.median(next(iter(sides.values())).seconds)
    return [row(name, folder, measured, base) for name, measured in sides.items()]


def row(name: str, folder: Path, measured: Measured, base: float) -> dict[str, str]:
    """Row of the table; `base` is the median time of the first side."""
    seconds = statistics.median(measured.seconds)
    return {
        "machine": f"{cpu_name()}, {available_cores()} cores",
        "file_system": file_system(folder),
        "way": name,
        "images": str(measured.images),
        "seconds": f"{seconds:.2f}",
        "lowest": f"{min(measured.seconds):.2f}",
        "highest": f"{max(measured.seconds):.2f}",
        "images_per_second": f"{measured.images / seconds:.0f}",
        "ratio": f"{base / seconds:.1f}",
        "peak_memory_mb": f"{max(measured.peak_mb):.0f}",
    }


def file_system(folder: Path) -> str:
    """Type of the file system of `folder`; empty if /proc/mounts cannot be read."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return ""
    return max((len(at), kind) for at, kind in mounts if folder.resolve().is_relative_to(at))[1]


if __name__ == "__main__":
    main()
