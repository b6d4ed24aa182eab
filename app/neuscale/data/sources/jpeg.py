"""The fast way to a JPEG's pixels: libjpeg-turbo, for those that need nothing but decoding."""

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from neuscale.data.sources.decode import open_image, orientation

_START_OF_IMAGE = b"\xff\xd8\xff"


_MARK, _APP1, _START_OF_SCAN = 0xFF, 0xE1, 0xDA


_PLAIN = frozenset({"YCbCr", "Gray", "RGB"})


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height that a JPEG's header gives; None where it is to be left to Pillow."""
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
    """True where there is a block of EXIF or of XMP, either of which may say how the image is turned."""
    at = 2
    try:
        while data[at] == _MARK and data[at + 1] != _START_OF_SCAN:
            if data[at + 1] == _APP1:
                return True
            at += 2 + (data[at + 2] << 8 | data[at + 3])
    except IndexError:  # cut short, which decoding will say
        pass
    return False


def _is_turned(data: bytes) -> bool:
    try:
        with open_image(data) as image:
            return orientation(image) != 1
    except Exception:  # decoding it will say so
        return False


def decode_jpeg_into(data: bytes, pixels: NDArray[np.uint8]) -> bool:
    """Fill `pixels`, uint8 [H, W, 3] and contiguous; False where the file is to be left to Pillow.

    A file of another size, or one that is turned, is left to it too. After False, `pixels` may hold
    anything.
    """
    if jpeg_size(data) != (pixels.shape[1], pixels.shape[0]):
        return False
    try:
        simplejpeg.decode_jpeg(data, buffer=pixels)
    except ValueError:
        return False
    return True
