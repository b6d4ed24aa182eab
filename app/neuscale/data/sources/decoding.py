"""Options for decoding image files to the pixels of a data set, and statistics about it."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from neuscale.errors import UsageError

FITS = ("crop", "pad", "squash")


@dataclass(frozen=True)
class Decoding:
    """Size of a data set's images, and conversion of 16-bit images to 8 bits.

    `size`: width and height; None keeps the size of every image. `fit`: "crop" scales the image to
    cover that size and keeps the middle, "pad" scales it to fit inside and fills with black,
    "squash" changes its aspect ratio. `low`, `high`: the values of 16-bit images that become 0 and 255.
    `observed` collects statistics of all images.
    """

    size: tuple[int, int] | None = None
    fit: str = "crop"
    low: int = 0
    high: int = 65535
    observed: "Observed | None" = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise UsageError(f"`fit` {self.fit}: expected {', '.join(FITS[:-1])} or {FITS[-1]}.")
        if not 0 <= self.low < self.high <= 65535:
            raise UsageError(
                f"`value_range` {self.low}:{self.high}: the values of 16-bit images lie between 0 and 65535.",
                "Give the lowest and the highest, as 0:4095.",
            )

    @property
    def size_words(self) -> str:
        """The size as text."""
        return "{}×{}".format(*self.size) if self.size is not None else "one size"

    @classmethod
    def recorded(cls, source: Mapping[str, Any], size: tuple[int, int] | None) -> "Decoding":
        """Decoding options from the field `source` of a record. Raises ValueError for invalid values."""
        low, high = source.get("value_range", (0, 65535))
        try:
            return cls(size, source.get("fit", "crop"), low, high)
        except UsageError as error:
            raise ValueError(error.problem) from None


def square(size: int | None) -> tuple[int, int] | None:
    """Width and height of `size`×`size` pixels; None for None."""
    return None if size is None else (size, size)


class Observed:
    """Thread-safe statistics about the decoded images of a data set."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.images = 0
        self.cropped = 0  # images of which a crop kept less than half
        self._kept = 0.0
        self.sixteen_bit = 0
        self.highest = 0  # highest value in 16-bit images

    def fitted(self, kept: float) -> None:
        """Count an image that was fitted to the size, of which the share `kept` is left."""
        with self._lock:
            self.images += 1
            self._kept += kept
            self.cropped += kept < 0.5

    def values(self, highest: int) -> None:
        """Count a 16-bit image with this highest value."""
        with self._lock:
            self.sixteen_bit += 1
            self.highest = max(self.highest, highest)

    def warnings(self, decoding: Decoding) -> list[str]:
        """Warnings about results that are probably not intended."""
        found = []
        if self.images and self.cropped > 0.05 * self.images:
            found.append(
                f"of {self.cropped:,} of {self.images:,} images a crop to {decoding.size_words} keeps less"
                f" than half (of the average image {self._kept / self.images:.0%}); `fit` pad keeps all"
            )
        if self.sixteen_bit and (decoding.low, decoding.high) == (0, 65535) and self.highest < 4096 * 4:
            bits = max(1, self.highest.bit_length())
            found.append(
                f"the {self.sixteen_bit:,} 16-bit images have no value above {self.highest:,} of 65,535 and"
                f" become nearly black; `value_range` 0:{2**bits - 1} takes {bits} bits for all"
            )
        return found
