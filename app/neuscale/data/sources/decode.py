"""Decode an image file to pixels: upright, as 8-bit RGB, at the requested size."""

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

# Formats that are tried on a file, whatever its name; Pillow would pass some others to external programs.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF", *_AVIF)


SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".ppm", ".pgm", ".pbm"),
        *(".bmp", ".tif", ".tiff", ".webp", ".gif", ".avif"),
    }
)


def is_image(name: str) -> bool:
    """True for a file name with the suffix of an image."""
    return splitext(name)[1].lower() in SUFFIXES


MAX_PIXELS = 64_000_000  # limit for decoding: larger files are decompression bombs or not useful for training


# Pillow warns about large images, which are decoded at a small size here or rejected with a message.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", message="Corrupt EXIF data")  # such an image is treated as upright


# Pillow takes a time that is quadratic in the comments of a PPM file whose pixels are text.
_PLAIN, _MOST_COMMENTS = (b"P1", b"P2", b"P3"), 100


class Refused(Exception):
    """An image file that may be intact but is not supported; the message gives the reason."""


def image_size(archive: Path, name: str, data: bytes) -> tuple[int, int]:
    """Width and height of an image file, upright, from its header. Raises DataError if it is not an image."""
    try:
        with open_image(data) as image:
            return upright_size(image, orientation(image))
    except MemoryError:
        raise
    except Exception as error:
        raise unusable(archive, name, error) from None


def decode_image(data: bytes, decoding: Decoding) -> NDArray[np.uint8]:
    """Pixels of an image file, upright, uint8 [H, W, 3]; see `decode_sized`."""
    return decode_sized(data, decoding)[0]


def decode_sized(data: bytes, decoding: Decoding) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Pixels of an image file, upright, uint8 [H, W, 3], and its original width and height.

    Scaling is bicubic and antialiased. Grayscale becomes RGB, transparency is dropped, and only the first
    of several frames is used. A damaged file can raise almost any exception.
    """
    with open_image(data) as image:
        turn = orientation(image)
        size = image.size if turn < _SIDEWAYS else image.size[::-1]
        if decoding.size is not None:
            width, height = decoding.size if turn < _SIDEWAYS else decoding.size[::-1]
            # JPEG can be decoded at 1/2, 1/4 or 1/8; twice the target size is enough for the filter.
            image.draft(None, (2 * width, 2 * height))
        rgb = upright(to_rgb(image, decoding), turn)
    return np.asarray(fitted(rgb, decoding)), size


def fitted(rgb: Image.Image, decoding: Decoding) -> Image.Image:
    """The image scaled to the size of `decoding`."""
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
    """Open an image file and read its header; a file that is not an image can raise almost any exception."""
    if not data:
        raise Refused("the file is empty")
    if data[:2] in _PLAIN and data.count(b"#") > _MOST_COMMENTS:
        raise Refused("it has too many comments")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise Refused("its number of pixels is out of all proportion") from None
    except UnidentifiedImageError:
        raise Refused(_identified(data)) from None
    # Before the pixels are loaded, as by reading a PNG's EXIF block. A JPEG is decoded smaller than it is.
    if image.format not in ("JPEG", "MPO"):
        check_pixels(image)
    return image


def check_pixels(image: Image.Image) -> None:
    """Raise Refused for an image of more than MAX_PIXELS."""
    if image.width * image.height > MAX_PIXELS:
        raise Refused(f"{image.width}×{image.height} pixels are out of all proportion")


# EXIF 2.32, tag 0x0112: transpositions that make a stored image upright. From _SIDEWAYS on, width and height
# are swapped.
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
    """EXIF orientation, 1 (upright) to 8; 1 if there is none, or if the EXIF block is damaged."""
    if image.format == "TIFF":  # Pillow rotates TIFFs itself on loading
        return 1
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # the EXIF parser can raise almost any error
        return 1
    return found if found in _TURNS else 1


def upright_size(image: Image.Image, turn: int) -> tuple[int, int]:
    """Width and height of the image when upright."""
    if image.format == "TIFF" and image.getexif().get(ExifTags.Base.Orientation, 1) >= _SIDEWAYS:
        image.load()  # the size before loading depends on Pillow's version
    width, height = image.size
    return (width, height) if turn < _SIDEWAYS else (height, width)


def upright(image: Image.Image, turn: int) -> Image.Image:
    """The image transposed to upright."""
    return image.transpose(_TURNS[turn]) if turn in _TURNS else image


def to_rgb(image: Image.Image, decoding: Decoding) -> Image.Image:
    """The image as 8-bit RGB."""
    check_pixels(image)  # a JPEG is smaller here than its file says
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise Refused(f"pixels of type '{image.mode}' have no fixed range: save it with 8 bits a channel")
    if image.mode.startswith("I"):  # 16-bit grayscale, which convert() would clip at 255
        return Image.fromarray(_eight_bits(np.asarray(image), decoding)).convert("RGB")
    return image.convert("RGB")


def _eight_bits(gray: NDArray[Any], decoding: Decoding) -> NDArray[np.uint8]:
    if decoding.observed is not None:
        decoding.observed.values(int(gray.max()))
    # A table, since integers of 64 bits would be eight times the image.
    values = np.arange(1 << 16, dtype=np.int64).clip(decoding.low, decoding.high) - decoding.low
    span = decoding.high - decoding.low + 1  # so that 16-bit values become their upper 8 bits
    table = (values * 256 // span).astype(np.uint8)
    return table[gray if gray.dtype == np.uint16 else gray.clip(0, (1 << 16) - 1)]


def unusable(archive: Path, name: str, error: Exception) -> DataError:
    """DataError for an image file that cannot be decoded, with the reason."""
    reason = (
        str(error) if isinstance(error, Refused) else f"the image is damaged or cut short ({_said(error)})"
    )
    return DataError(f"{archive}: {name}: {reason}.", "Replace or remove it and run the command again.")


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


# Common formats that are not supported: offset and bytes at the beginning of their files.
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
    """Message for a file that is not an image in a supported format."""
    for offset, beginning, name in _OTHERS:
        article = "an" if name[0] in "aeiouAEIOUHX" and name not in ("HEIC", "HEIF", "HDF5") else "a"
        if data[offset : offset + len(beginning)].lower() == beginning.lower():
            return f"it is {article} {name}, which is not read: convert it to JPEG or PNG"
    return "not an image, or its beginning is damaged"
