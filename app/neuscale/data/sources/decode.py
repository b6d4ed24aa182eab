"""One image file to its pixels: upright, as 8-bit RGB, and of the size that was asked for."""

import io
import warnings
from pathlib import Path
from posixpath import splitext
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from neuscale.data.sources.decoding import Decoding
from neuscale.errors import DataError

try:
    from PIL import AvifImagePlugin  # noqa: F401 - Pillow 11.3 and later
except ImportError:
    _AVIF: tuple[str, ...] = ()
else:
    _AVIF = ("AVIF",)

# What is tried on a file, whatever its name; Pillow would hand some other formats to other programs.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF", *_AVIF)


SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".ppm", ".pgm", ".pbm"),
        *(".bmp", ".tif", ".tiff", ".webp", ".gif", ".avif"),
    }
)


def is_image(name: str) -> bool:
    """True for a name that ends as an image's."""
    return splitext(name)[1].lower() in SUFFIXES


MAX_PIXELS = 64_000_000  # to decode: a decompression bomb, or a picture that one does not train on


# Pillow warns of large images, which are decoded small here or refused in words.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", message="Corrupt EXIF data")  # such an image counts as upright


class Refused(Exception):
    """A file that may be intact is not used; the message says why."""


def image_size(archive: Path, name: str, data: bytes) -> tuple[int, int]:
    """Width and height of an image file, upright, as its header gives them; DataError where it is none."""
    try:
        with open_image(data) as image:
            return upright_size(image, orientation(image))
    except MemoryError:
        raise
    except Exception as error:
        raise unusable(archive, name, error) from None


def decode_image(data: bytes, decoding: Decoding) -> NDArray[np.uint8]:
    """An image file's pixels, upright, uint8 [H, W, 3]; see `decode_sized`."""
    return decode_sized(data, decoding)[0]


def decode_sized(data: bytes, decoding: Decoding) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """An image file's pixels, upright, uint8 [H, W, 3], and the width and height that it has there.

    Scaled bicubic and antialiased. Grayscale becomes RGB; transparency is dropped; of several frames
    the first is taken. Raises nearly anything where the file is damaged.
    """
    with open_image(data) as image:
        turn = orientation(image)
        size = image.size if turn < _SIDEWAYS else image.size[::-1]
        if decoding.size is not None:
            width, height = decoding.size if turn < _SIDEWAYS else decoding.size[::-1]
            # JPEG can be decoded at 1/2, 1/4 or 1/8; twice the target leaves the filter enough.
            image.draft(None, (2 * width, 2 * height))
        rgb = upright(to_rgb(image, decoding), turn)
    return np.asarray(fitted(rgb, decoding)), size


def fitted(rgb: Image.Image, decoding: Decoding) -> Image.Image:
    """The image at the size that was asked for."""
    if decoding.size is None:
        return rgb
    if decoding.observed is not None and decoding.fit == "crop":
        ratio = rgb.width / rgb.height * decoding.size[1] / decoding.size[0]
        decoding.observed.fitted(min(ratio, 1 / ratio))
    if decoding.fit == "squash":
        return rgb.resize(decoding.size, Image.Resampling.BICUBIC)
    fit = ImageOps.pad if decoding.fit == "pad" else ImageOps.fit
    return fit(rgb, decoding.size, method=Image.Resampling.BICUBIC)


def open_image(data: bytes) -> Image.Image:
    """An image file, its header read; raises nearly anything where it is none."""
    if not data:
        raise Refused("the file is empty")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise Refused("its number of pixels is out of all proportion") from None
    except UnidentifiedImageError:
        raise Refused(_identified(data)) from None


# EXIF 2.32, tag 0x0112: how the stored image is turned to stand upright. From _SIDEWAYS on its sides change.
_TURNS = MappingProxyType(
    {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
)


_SIDEWAYS = 5


def orientation(image: Image.Image) -> int:
    """1 (upright) to 8, as EXIF counts; 1 where the image does not say, or its EXIF block is damaged."""
    if image.format == "TIFF":  # Pillow turns them itself, when they are loaded
        return 1
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # its parser raises nearly anything
        return 1
    return found if found in _TURNS else 1


def upright_size(image: Image.Image, turn: int) -> tuple[int, int]:
    """Width and height of the image once it is turned."""
    if image.format == "TIFF" and image.getexif().get(ExifTags.Base.Orientation, 1) >= _SIDEWAYS:
        image.load()  # which of the two its size is before depends on Pillow's version
    width, height = image.size
    return (width, height) if turn < _SIDEWAYS else (height, width)


def upright(image: Image.Image, turn: int) -> Image.Image:
    """The image, turned."""
    return image.transpose(_TURNS[turn]) if turn in _TURNS else image


def to_rgb(image: Image.Image, decoding: Decoding) -> Image.Image:
    """The image as 8-bit RGB."""
    if image.width * image.height > MAX_PIXELS:
        raise Refused(f"{image.width}×{image.height} pixels are out of all proportion")
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise Refused(f"pixels of type '{image.mode}' have no fixed range: save it with 8 bits a channel")
    if image.mode.startswith("I"):  # 16-bit grayscale, which convert() would clip at 255
        return Image.fromarray(_eight_bits(np.asarray(image), decoding)).convert("RGB")
    return image.convert("RGB")


def _eight_bits(gray: NDArray[Any], decoding: Decoding) -> NDArray[np.uint8]:
    if decoding.observed is not None:
        decoding.observed.values(int(gray.max()))
    values = gray.astype(np.int64).clip(decoding.low, decoding.high) - decoding.low
    span = decoding.high - decoding.low + 1  # so that 16 bits become the upper 8 of them
    return (values * 256 // span).astype(np.uint8)


def unusable(archive: Path, name: str, error: Exception) -> DataError:
    """The error for an image file that cannot be decoded, with the reason in words."""
    reason = (
        str(error) if isinstance(error, Refused) else f"the image is damaged or cut short ({_said(error)})"
    )
    return DataError(f"{archive}: {name}: {reason}.", "Replace or remove it and run the command again.")


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


# Formats that people have and that are not read: how their files begin, after the given number of bytes.
_OTHERS = (
    (4, b"ftyphei", "HEIC"),
    (4, b"ftyphev", "HEIC"),
    (4, b"ftypavif", "AVIF, for which Pillow is too old"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"ftypmsf1", "HEIF"),
    (4, b"ftyp", "video (MP4 or the like)"),
    (4, b"JXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"jP  \r\n", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"%PDF", "PDF"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\x00\x00\x01\x00", "icon (ICO)"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"\x89HDF", "HDF5"),
    (0, b"PK\x03\x04", "zip archive"),
    (0, b"\x1f\x8b", "gzip file"),
    (0, b"<svg", "SVG"),
    (0, b"<?xml", "XML"),
    (0, b"<!DOCTYPE", "web page"),
    (0, b"<html", "web page"),
    (0, b"version https://git-lfs", "pointer of Git LFS, whose file was not fetched"),
    (128, b"DICM", "DICOM"),
)


def _identified(data: bytes) -> str:
    """Words for a file that is no image of a format that is read."""
    for offset, beginning, name in _OTHERS:
        article = "an" if name[0] in "aeiouAEIOUHX" and name not in ("HEIC", "HEIF", "HDF5") else "a"
        if data[offset : offset + len(beginning)].lower() == beginning.lower():
            return f"it is {article} {name}, which is not read: convert it to JPEG or PNG"
    return "not an image, or its beginning is damaged"
