"""Photos are decoded upright and in the requested shape, and 16-bit images become 8-bit ones."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from conftest import ListeningProgress
from neuscale.data.augment.crops import window_pixels
from neuscale.data.formats.write_image_list import list_images
from neuscale.data.loaders.image_files import FileLoader
from neuscale.data.prepare import prepare
from neuscale.data.sources.decode import decode_image, image_size
from neuscale.data.sources.decoding import Decoding
from neuscale.data.sources.jpeg import decode_jpeg_into, jpeg_size
from neuscale.data.sources.options import SourceOptions
from neuscale.distributed.rank import Rank

from .trees import as_folder, split_files

# EXIF orientations, and the numpy operation by which a viewer shows each image upright.
TURNS = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: image.transpose(1, 0, 2)[:, ::-1],
    7: lambda image: image.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda image: image.transpose(1, 0, 2)[::-1],
}
FORMS = ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"]


def pixels(height: int = 24, width: int = 40) -> NDArray[np.uint8]:
    """Return an image of four fields that looks different in every rotation and reflection."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2] = (230, 20, 20)
    image[: height // 2, width // 2 :] = (20, 230, 20)
    image[height // 2 :, : width // 2] = (20, 20, 230)
    return image


def stored(turn: int, form: str, image: NDArray[np.uint8] | None = None, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = turn
    stream = io.BytesIO()
    quality = {"quality": 98} if form in ("JPEG", "WEBP", "AVIF") else {}
    Image.fromarray(pixels() if image is None else image).save(stream, form, exif=exif, **quality, **options)
    return stream.getvalue()


def assert_alike(found: NDArray[Any], expected: NDArray[Any]) -> None:
    """Assert equal images, except for compression artefacts at the edges of the fields."""
    assert found.shape == expected.shape
    assert np.mean(np.abs(found.astype(int) - expected.astype(int)).max(-1) > 120) < 0.12


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("turn", TURNS)
def test_every_orientation_of_every_format(form: str, turn: int) -> None:
    data, upright = stored(turn, form), TURNS[turn](pixels())
    assert image_size(Path("a"), "b", data) == upright.shape[1::-1]
    assert_alike(decode_image(data, Decoding()), upright)
    for size in ((12, 12), (10, 20), (8, 4)):
        expected = ImageOps.fit(Image.fromarray(upright), size, Image.Resampling.BICUBIC)
        assert_alike(decode_image(data, Decoding(size)), np.asarray(expected))


@pytest.mark.parametrize("turn", TURNS)
def test_the_fast_decoder_leaves_turned_photos_alone(turn: int) -> None:
    data = stored(turn, "JPEG")
    assert jpeg_size(data) == ((40, 24) if turn == 1 else None)
    assert decode_jpeg_into(data, np.empty((24, 40, 3), np.uint8)) == (turn == 1)


def test_the_fast_decoder_and_pillow_read_the_same_of_xmp() -> None:
    field = b'<rdf:Description tiff:Orientation="6"/>'
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF>' + field + b"</rdf:RDF></x:xmpmeta>"
    segment = b"http://ns.adobe.com/xap/1.0/\0" + xmp
    plain = io.BytesIO()
    Image.fromarray(pixels()).save(plain, "JPEG", quality=98)
    data = b"\xff\xd8\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + plain.getvalue()[2:]
    turned = jpeg_size(data) is None
    assert_alike(decode_image(data, Decoding()), TURNS[6 if turned else 1](pixels()))


@pytest.mark.parametrize("damage", ["cut", "noise", "value", "offset"])
def test_a_broken_exif_block_harms_nothing(damage: str) -> None:
    data = bytearray(stored(6, "JPEG"))
    at = data.index(b"Exif\0\0") + 6
    if damage == "cut":
        data[at + 8 : at + 10] = b"\xff\xff"  # claims 65,535 fields
    elif damage == "noise":
        data[at : at + 8] = bytes(range(200, 208))
    elif damage == "value":
        place = data.index(b"\x01\x12", at) if b"\x01\x12" in data[at:] else data.index(b"\x12\x01", at)
        data[place + 8 : place + 10] = b"\x63\x63"
    else:
        data[at + 4 : at + 8] = b"\xff\xff\xff\xf0"
    # Of a truncated block the first field may still be read.
    turned = jpeg_size(bytes(data)) is None
    assert not turned or damage == "cut"
    assert_alike(decode_image(bytes(data), Decoding()), TURNS[6 if turned else 1](pixels()))
    assert decode_jpeg_into(bytes(data), np.empty((24, 40, 3), np.uint8)) != turned


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("layout", ["packed", "files"])
def test_photos_are_packed_and_listed_upright_and_to_fit(tmp_path: Path, layout: str, fit: str) -> None:
    files = split_files(["cat", "dog"]) | {f"train/cat/t{turn}.jpg": stored(turn, "JPEG") for turn in TURNS}
    folder = as_folder(files, tmp_path / "photos")
    make = prepare if layout == "packed" else list_images
    options = SourceOptions(size=16, fit=fit)
    data = make("image_folder", root=tmp_path, source=folder, save_as="x", options=options)
    assert data.meta.source["fit"] == fit
    names = sorted(name for name in files if name.startswith("train/cat"))
    for turn, turned in TURNS.items():
        upright = Image.fromarray(turned(pixels()))
        expected = {
            "crop": ImageOps.fit(upright, (16, 16), Image.Resampling.BICUBIC),
            "pad": ImageOps.pad(upright, (16, 16), Image.Resampling.BICUBIC),
            "squash": upright.resize((16, 16), Image.Resampling.BICUBIC),
        }[fit]
        found = data.image("train", names.index(f"train/cat/t{turn}.jpg"))
        assert_alike(found.transpose(1, 2, 0), np.asarray(expected))


def test_without_a_size_upright_photos_have_to_be_equal(tmp_path: Path) -> None:
    """Square photos, whose sizes are equal in every orientation, are packed without `size`."""
    files = {
        f"{split}/{name}/{turn}.jpg": stored(turn, "JPEG", pixels(24, 24))
        for split in ("train", "val")
        for name in ("a", "b")
        for turn in TURNS
    }
    data = prepare("image_folder", root=tmp_path, source=as_folder(files, tmp_path / "t"), save_as="x")
    for turn in TURNS:
        assert_alike(data.image("train", turn - 1).transpose(1, 2, 0), TURNS[turn](pixels(24, 24)))


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_random_crops_are_cut_from_the_upright_photo(tmp_path: Path, fit: str) -> None:
    files = split_files(["cat", "dog"]) | {
        f"train/cat/t{turn}.jpg": stored(turn, "JPEG", pixels(96, 160)) for turn in TURNS
    }
    options = SourceOptions(size=16, fit=fit)
    folder = as_folder(files, tmp_path / "photos")
    data = list_images("image_folder", root=tmp_path, source=folder, save_as="x", options=options)
    loader = FileLoader(data, "train", 16, torch.device("cpu"), Rank(), workers=0)
    names = sorted(name for name in files if name.startswith("train/cat"))
    window = np.array([0.4, 1.2, 0.3, 0.8])
    for turn, turned in TURNS.items():
        whole = Image.fromarray(turned(pixels(96, 160)))
        side = max(whole.size)
        if fit == "pad":
            whole = ImageOps.pad(whole, (side, side), Image.Resampling.BICUBIC)
        elif fit == "squash":
            whole = whole.resize((side, side), Image.Resampling.BICUBIC)
        top, left, height, width = window_pixels(window, whole.height, whole.width)
        box = (left, top, left + width, top + height)
        expected = whole.resize((16, 16), Image.Resampling.BICUBIC, box=box)
        found = loader._images[names.index(f"train/cat/t{turn}.jpg"), window]
        assert_alike(np.asarray(found).transpose(1, 2, 0), np.asarray(expected))


def gray_file(values: NDArray[np.uint16], form: str) -> bytes:
    stream = io.BytesIO()
    if form == "PGM":
        header = f"P5 {values.shape[1]} {values.shape[0]} {values.max()}\n".encode()
        return header + values.astype(">u2").tobytes()
    Image.fromarray(values).save(stream, form)
    return stream.getvalue()


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_twelve_bits_in_sixteen_are_warned_of_and_a_range_is_taken(
    tmp_path: Path, form: str, listening: ListeningProgress
) -> None:
    values = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)
    files = {
        f"{split}/{name}/{i}.{form.lower()}": gray_file(values, form)
        for split in ("train", "val")
        for name in "ab"
        for i in range(2)
    }
    folder = as_folder(files, tmp_path / "t")
    dark = prepare("image_folder", root=tmp_path, source=folder, progress=listening)
    assert dark.images("train").max() == 15
    (warning,) = listening.warnings
    assert "8 16-bit images have no value above 4,095" in warning and "`value_range` 0:4095" in warning
    options = SourceOptions(value_range=(0, 4095))
    data = prepare("image_folder", root=tmp_path, source=folder, save_as="x", options=options)
    assert np.array_equal(data.image("train", 0), np.repeat(values[None] >> 4, 3, 0))
    assert data.meta.source["value_range"] == [0, 4095]


def test_the_maximum_of_a_pgm_is_its_white() -> None:
    for most in (100, 255, 1000, 4095, 65535):
        values = np.linspace(0, most, 64).round().astype(np.uint16).reshape(8, 8)
        kind = np.uint8 if most < 256 else ">u2"
        data = f"P5 8 8 {most}\n".encode() + values.astype(kind).tobytes()
        found = decode_image(data, Decoding())[:, :, 0].astype(int)
        assert np.abs(found - values * 255.0 / most).max() <= 1, most


def test_a_photo_of_a_hundred_megapixels_is_decoded_small(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (12_000, 8_200), (200, 30, 30)).save(stream, "JPEG")
    found = decode_image(stream.getvalue(), Decoding((32, 32)))
    assert np.abs(found.astype(int) - (200, 30, 30)).max() < 6
    with pytest.raises(Exception, match="12000×8200 pixels are out of all proportion"):
        decode_image(stream.getvalue(), Decoding())
