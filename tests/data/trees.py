"""Small trees of images, as folders, zips, tars, shards and Parquet files."""

import io
import json
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from neuscale.data.formats.packed import PackedDataset
from neuscale.data.prepare import prepare
from neuscale.data.sources.options import SourceOptions

Files = Mapping[str, bytes]


def picture(seed: int, form: str = "PNG", size: tuple[int, int] = (8, 8), **options: Any) -> bytes:
    """Return an image file whose pixels follow from the seed."""
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form, **options)
    return stream.getvalue()


def split_files(classes: Iterable[str], train: int = 3, val: int = 2) -> dict[str, bytes]:
    """Return images named `train/<class>/*.png` and `val/<class>/*.png`."""
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
    if mode == "w:zst":
        from backports import zstd

        path.write_bytes(zstd.compress(as_tar(files, path.with_suffix(""), "w:").read_bytes()))
        return path
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def as_shards(files: Files, folder: Path, per_shard: int = 3) -> Path:
    """Write WebDataset shards of a class tree: train-0000.tar with 000000.png, 000000.cls and so on."""
    folder.mkdir()
    for split in sorted({name.split("/")[0] for name in files}):
        names = sorted(name for name in files if name.startswith(f"{split}/"))
        for first in range(0, len(names), per_shard):
            members = {}
            for place in range(first, min(first + per_shard, len(names))):
                suffix = names[place].rpartition(".")[2]
                members[f"{place:06}.{suffix}"] = files[names[place]]
                members[f"{place:06}.cls"] = names[place].split("/")[1].encode()
            as_tar(members, folder / f"{split}-{first // per_shard:04}", "w:")
    return folder


def as_parquet(files: Files, folder: Path, names: Sequence[str] | None = None, **columns: Any) -> Path:
    """Write a class tree as Parquet files, one for each split, as Hugging Face's `datasets` writes them.

    `names`: the classes, whose indices are the labels; without it, the labels are texts.
    """
    import pyarrow as pa
    from pyarrow import parquet

    folder.mkdir()
    for split in sorted({name.split("/")[0] for name in files}):
        inside = sorted(name for name in files if name.startswith(f"{split}/"))
        classes = [name.split("/")[1] for name in inside]
        table = pa.table(
            {
                "image": [{"bytes": files[name], "path": name.partition("/")[2]} for name in inside],
                "label": classes if names is None else [names.index(name) for name in classes],
                **columns,
            }
        )
        if names is not None:
            features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
            table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
        parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet", row_group_size=3)
    return folder


def ready(root: Path, source: Path, name: str = "pets", **options: Any) -> PackedDataset:
    return prepare("image_folder", root=root, source=source, save_as=name, options=SourceOptions(**options))


def set_time(path: Path, seconds: int) -> None:
    """Set the modification time of a file, in seconds since the epoch."""
    os.utime(path, (seconds, seconds))
