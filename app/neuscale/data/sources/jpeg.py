"""Fast JPEG decoding with libjpeg-turbo, for files that need neither rotation nor scaling."""

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from neuscale.data.sources.decode import open_image, orientation

_START_OF_IMAGE = b"\xff\xd8\xff"


_MARK, _APP1, _START_OF_SCAN = 0xFF, 0xE1, 0xDA


_PLAIN = frozenset({"YCbCr", "Gray", "RGB"})


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height from a JPEG's header; None if the file must be decoded by Pillow."""
    if not data.startswith(_START_OF_IMAGE):
        return None
    if _has_app1(data) and _is_turned(data):
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return (width, height) if colorspace in _PLAIN else None


def _has_app1(data: bytes) -> bool:
    """True if there is an EXIF or XMP block, which may contain an orientation."""
    at = 2
    try:
        while data[at] == _MARK and data[at + 1] != _START_OF_SCAN:
            if data[at + 1] == _APP1:
                return True
            at += 2 + (data[at + 2] << 8 | data[at + 3])
    except IndexError:  # truncated: decoding will raise the error
        pass
    return False


def _is_turned(data: bytes) -> bool:
    try:
        with open_image(data) as image:
            return orientation(image) != 1
    except Exception:  # decoding will raise the error
        return False


def decode_jpeg_into(data: bytes, pixels: NDArray[np.uint8]) -> bool:
    """Decode into `pixels`, uint8 [H, W, 3] and contiguous; return False if Pillow must decode the file.

    That includes files of another size or orientation. After False, the content of `pixels` is undefined.
    """
    if jpeg_size(data) != (pixels.shape[1], pixels.shape[0]):
        return False
    try:
        simplejpeg.decode_jpeg(data, buffer=pixels)
    except ValueError:
        return False
    return True
