"""JPEG files are decoded fast, to exactly Pillow's pixels; files that Pillow refuses are refused."""

import io
import os
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from neuscale.data.sources.decode_blocks import check_image, decode_blocks
from neuscale.data.sources.decoding import Decoding
from neuscale.data.sources.jpeg import decode_jpeg_into
from neuscale.errors import DataError

SHAPES = [(64, 64), (63, 61), (17, 8), (1, 1)]


def picture(width: int, height: int) -> Image.Image:
    """Image of edges and noise, which reveals any difference in transform or upsampling."""
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.NEAREST)


def jpeg(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def by_pillow(data: bytes) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        return np.asarray(image.convert("RGB"))


def packed(data: bytes, shape: tuple[int, int]) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """Return the image that `prepare` would pack, as [H, W, 3]."""
    (block,) = decode_blocks(Path("a.zip"), [(0, 0, "x.jpg", data)], (3, *shape), Decoding())
    return block.images[0].transpose(1, 2, 0)


PLAIN = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "low quality": {"quality": 10},
    "progressive": {"progressive": True},
    "optimized": {"optimize": True},
    "RGB inside": {"keep_rgb": True},
    "restart markers": {"restart_marker_blocks": 3},
}


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_are_those_of_pillow(kind: str, shape: tuple[int, int]) -> None:
    data = jpeg(picture(*shape), **PLAIN[kind])
    pixels = np.empty((shape[1], shape[0], 3), np.uint8)
    assert decode_jpeg_into(data, pixels)  # otherwise the slow decoder would be used without notice
    assert np.array_equal(pixels, by_pillow(data))
    assert np.array_equal(packed(data, shape[::-1]), by_pillow(data))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colours_are_those_of_pillow(mode: str) -> None:
    data = jpeg(picture(64, 64).convert(mode))
    assert np.array_equal(packed(data, (64, 64)), by_pillow(data))


def test_a_jpeg_that_is_cut_short_is_refused_at_any_length() -> None:
    """A truncated JPEG is refused, although libjpeg only warns and fills the rest with gray."""
    for progressive in (False, True):
        data = jpeg(picture(64, 64), progressive=progressive)
        for length in range(0, len(data) - 2, 7):
            with pytest.raises(DataError, match=r"a\.zip: x\.jpg: "):
                packed(data[:length], (64, 64))
            with pytest.raises(DataError):
                check_image(Path("a.zip"), "x.jpg", data[:length], Decoding())


def test_damage_that_the_fast_decoder_takes_is_what_pillow_takes() -> None:
    """A damaged file may be a valid image, but the fast decoder never accepts one that Pillow refuses."""
    dice = random.Random(0)
    whole = [jpeg(picture(32, 32), **options) for options in PLAIN.values()]
    whole += [jpeg(picture(32, 32).convert(mode)) for mode in ("L", "CMYK")]
    taken = 0
    pixels = np.empty((32, 32, 3), np.uint8)
    for _ in range(4000):
        data = bytearray(dice.choice(whole))
        at = dice.randrange(len(data)) if dice.random() < 0.5 else dice.randrange(200)
        match dice.choice(("flip", "remove", "insert")):
            case "flip":
                data[at] ^= dice.randrange(1, 256)
            case "remove":
                del data[at : at + dice.randrange(1, 40)]
            case "insert":
                data[at:at] = dice.randbytes(dice.randrange(1, 9))
        if decode_jpeg_into(bytes(data), pixels):
            taken += 1
            assert np.array_equal(pixels, by_pillow(bytes(data)))
    assert taken > 300


def test_a_header_out_of_all_proportion_takes_no_memory() -> None:
    data = bytearray(jpeg(picture(8, 8)))
    sizes = data.index(b"\xff\xc0") + 5
    data[sizes : sizes + 4] = b"\xff\xff\xff\xff"
    with pytest.raises(DataError, match="out of all proportion"):
        packed(bytes(data), (8, 8))
    with pytest.raises(DataError, match="out of all proportion"):
        check_image(Path("a.zip"), "x.jpg", bytes(data), Decoding())


@pytest.mark.parametrize(
    ("content", "name"), [(b"GIF89a", "a text"), (jpeg(picture(9, 8)), "another size"), (b"", "nothing")]
)
def test_what_is_no_jpeg_of_this_size_is_left_to_pillow(content: bytes, name: str) -> None:
    assert not decode_jpeg_into(content, np.empty((8, 8, 3), np.uint8))


def test_a_png_that_is_called_jpeg_is_packed_as_the_image_that_it_is() -> None:
    buffer = io.BytesIO()
    picture(8, 8).save(buffer, format="PNG")
    assert np.array_equal(packed(buffer.getvalue(), (8, 8)), np.asarray(picture(8, 8)))


@pytest.mark.skipif(
    not os.environ.get("NEUSCALE_TEST_DATA"),
    reason="NEUSCALE_TEST_DATA names no folder with tiny-imagenet-40.zip",
)
def test_every_real_image_has_the_pixels_of_pillow() -> None:
    pixels = np.empty((64, 64, 3), np.uint8)
    count = 0
    with zipfile.ZipFile(Path(os.environ["NEUSCALE_TEST_DATA"]) / "tiny-imagenet-40.zip") as archive:
        for name in archive.namelist():
            if name.endswith(".JPEG"):
                data = archive.read(name)
                assert decode_jpeg_into(data, pixels) and np.array_equal(pixels, by_pillow(data)), name
                count += 1
    assert count == 22_000
