"""Small trees of images, as folders, zips and tars of the same files."""

import io
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from neuscale.data.formats.packed import PackedDataset
from neuscale.data.prepare import prepare
from neuscale.data.sources.options import SourceOptions

Files = Mapping[str, bytes]


def picture(seed: int, form: str = "PNG", size: tuple[int, int] = (8, 8), **options: Any) -> bytes:
    """An image file whose pixels follow from the seed."""
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form, **options)
    return stream.getvalue()


def split_files(classes: Iterable[str], train: int = 3, val: int = 2) -> dict[str, bytes]:
    """`train/<class>/*.png` and `val/<class>/*.png`."""
    return {
        f"{split}/{name}/{i}.png": picture(zlib.crc32(f"{split}/{name}/{i}".encode()))
        for split, count in (("train", train), ("val", val))
        for name in classes
        for i in range(count)
    }


def as_folder(files: Files, path: Path) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def as_zip(files: Files, path: Path) -> Path:
    path = path.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def as_tar(files: Files, path: Path, mode: str = "w:gz") -> Path:
    path = path.with_suffix(f".tar.{mode[2:]}".rstrip("."))
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def ready(root: Path, source: Path, name: str = "pets", **options: Any) -> PackedDataset:
    return prepare("image_folder", root=root, source=source, save_as=name, options=SourceOptions(**options))


def set_time(path: Path, seconds: int) -> None:
    """Make a file look as if it had been written then."""
    os.utime(path, (seconds, seconds))
