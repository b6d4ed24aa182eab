"""Bad archives: the error names the file and the fix, nothing partial remains, and the next run succeeds."""

import io
import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conftest import TreeBuilder
from neuscale.data.datasets import prepared_names
from neuscale.data.formats.packed import PackedDataset, packed_path

TOP = "tiny-imagenet-200"
IMAGE = f"{TOP}/train/n02/images/n02_1.JPEG"
ANNOTATIONS = f"{TOP}/val/val_annotations.txt"

Members = dict[str, bytes]


@pytest.fixture
def members(build_tiny_imagenet: TreeBuilder, tmp_path: Path) -> Members:
    """Members of a valid archive: name to content."""
    top = build_tiny_imagenet(tmp_path / "tree" / TOP)
    files = sorted(path for path in top.rglob("*") if path.is_file())
    return {path.relative_to(top.parent).as_posix(): path.read_bytes() for path in files}


def zip_of(path: Path, members: Members) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def icon() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, format="ICO")
    return buffer.getvalue()


def changed(members: Members, kind: str) -> Members:
    image, annotations = members[IMAGE], members[ANNOTATIONS]
    other = {
        "image cut short": {IMAGE: image[: len(image) // 2]},
        "image of no bytes": {IMAGE: b""},
        "text called JPEG": {IMAGE: b"I am no image"},
        "icon called JPEG": {IMAGE: icon()},
        "annotated image missing": {ANNOTATIONS: annotations.replace(b"val_2", b"val_77")},
        "unknown class": {ANNOTATIONS: annotations.replace(b"n03", b"n55", 1)},
        "no annotations": {ANNOTATIONS: None},
        "an image without annotation": {f"{TOP}/val/images/val_9.JPEG": image},
        "absolute name": {"/etc/evil.JPEG": image},
        "name that leaves": {f"{TOP}/../../evil.JPEG": image},
        "bomb": {IMAGE: bytes(300 << 20)},
    }[kind]
    return {name: content for name, content in {**members, **other}.items() if content is not None}


BAD = {
    "image cut short": ("n02_1.JPEG", "damaged or cut short", "Replace or remove it"),
    "image of no bytes": ("n02_1.JPEG", "the file is empty", "Replace or remove it"),
    "text called JPEG": ("n02_1.JPEG", "not an image", "Replace or remove it"),
    "icon called JPEG": ("n02_1.JPEG", "it is an icon (ICO)", "Replace or remove it"),
    "annotated image missing": ("val_annotations.txt, line 3", "'val_77.JPEG' is missing", "anew"),
    "unknown class": ("val_annotations.txt, line 3", "class 'n55' is not in wnids.txt", "anew"),
    "no annotations": ("val_annotations.txt", "the file is missing", "anew"),
    "an image without annotation": ("val_9.JPEG", "no line in", "anew"),
    "absolute name": ("/etc/evil.JPEG", "outside of the archive", "anew"),
    "name that leaves": ("evil.JPEG", "outside of the archive", "anew"),
    "bomb": ("n02_1.JPEG", "out of all proportion", "Remove it"),
}


@pytest.fixture
def prepare_it(
    neuscale: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """A function that prepares Tiny ImageNet from an archive, in a temporary data folder."""
    monkeypatch.setenv("NEUSCALE_DATA", str(tmp_path / "data"))
    return lambda source, *words: neuscale(
        "data", "prepare", "tiny_imagenet", "--source", str(source), *words
    )


def refused(said: Any, *parts: str) -> None:
    """Check for one error message, exit code 1, and no prepared or partial data set."""
    assert said.code == 1 and said.out == "", said.err
    for part in parts:
        assert part.replace(" ", "") in said.words.replace(" ", ""), said.err  # lines may be wrapped anywhere
    assert "Traceback" not in said.err and "not foreseen" not in said.err
    assert prepared_names() == []
    packed = packed_path("tiny_imagenet").parent
    assert not packed.exists() or {path.name for path in packed.iterdir()} <= {".tiny_imagenet.lock"}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_archive_is_refused_and_a_good_one_repairs(
    kind: str, members: Members, prepare_it: Callable[..., Any], tmp_path: Path
) -> None:
    archive = zip_of(tmp_path / "tiny.zip", changed(members, kind))
    refused(prepare_it(archive), str(archive), *BAD[kind])
    assert prepare_it(zip_of(archive, members)).code == 0
    assert PackedDataset.open(packed_path("tiny_imagenet")).verify() == []


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.999])
def test_a_zip_that_is_cut_short(
    share: float, members: Members, prepare_it: Callable[..., Any], tmp_path: Path
) -> None:
    archive = zip_of(tmp_path / "tiny.zip", members)
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(share * len(whole))])
    refused(prepare_it(archive), str(archive), "not a whole zip archive", "Get or make it anew")
    archive.write_bytes(whole)
    assert prepare_it(archive).code == 0


def test_a_link_in_a_zip(members: Members, prepare_it: Callable[..., Any], tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "tiny.zip", members)
    with zipfile.ZipFile(archive, "a") as opened:
        info = zipfile.ZipInfo(f"{TOP}/train/n02/images/link.JPEG")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        opened.writestr(info, "/etc/passwd")
    refused(prepare_it(archive), str(archive), "link.JPEG", "a link or device", "anew from plain files")


def test_skip_bad_lists_what_it_left_out_in_the_record(
    members: Members, prepare_it: Callable[..., Any], neuscale: Callable[..., Any], tmp_path: Path
) -> None:
    bad = {IMAGE: members[IMAGE][:-200], f"{TOP}/val/images/val_1.JPEG": b""}
    archive = zip_of(tmp_path / "tiny.zip", {**members, **bad})
    said = prepare_it(archive, "--skip-bad", "--json")
    assert said.code == 0 and said.json["counts"] == {"train": 11, "val": 5}
    record = json.loads((packed_path("tiny_imagenet") / "meta.json").read_text())["source"]["left_out"]
    assert record == said.json["left_out"] and len(record) == 2
    for name, reason in zip(bad, record, strict=True):
        assert name in reason
    assert said.err.count("left out") == 2


def test_damaged_afterwards_it_is_named_and_made_again(
    members: Members, prepare_it: Callable[..., Any], neuscale: Callable[..., Any], tmp_path: Path
) -> None:
    archive = zip_of(tmp_path / "tiny.zip", members)
    assert prepare_it(archive).code == 0
    file = packed_path("tiny_imagenet") / "train_images.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    said = neuscale("data", "verify", "tiny_imagenet")
    assert said.code == 1
    assert "train_images.npy" in said.words and "prepare tiny_imagenet --force" in said.words
    assert prepare_it(archive, "--force").code == 0
    assert neuscale("data", "verify", "tiny_imagenet").code == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A disk of 400 kB; mounting it needs root."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(disk)]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("only root on Linux can mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_that_is_full_half_way(
    build_tiny_imagenet: TreeBuilder,
    prepare_it: Callable[..., Any],
    small_disk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Preparation fails cleanly if others use up the space that was free at the start."""
    tree = build_tiny_imagenet(tmp_path / "large", train=30, side=64)
    monkeypatch.setenv("NEUSCALE_DATA", str(small_disk))
    usage = shutil.disk_usage
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: usage("/") if small_disk in path.parents else usage(path)
    )
    refused(prepare_it(tree), str(small_disk), "the disk is full", "free some space", "$NEUSCALE_DATA")
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    assert prepare_it(tree).code == 0
    assert PackedDataset.open(packed_path("tiny_imagenet")).verify() == []
