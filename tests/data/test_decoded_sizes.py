"""Images that are downscaled while decoding look as if all of their pixels had been filtered."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms.v2 import functional as transforms

from neuscale.config.schema import AugmentConfig
from neuscale.data.augment.crops import draw_windows, window_pixels
from neuscale.data.formats.write_image_list import list_images
from neuscale.data.loaders.image_files import FileLoader
from neuscale.data.sources.decode import Refused, decode_image
from neuscale.data.sources.decoding import Decoding
from neuscale.distributed.rank import Rank

CPU = torch.device("cpu")
HEIGHT, WIDTH = 480, 640


def landscape(seed: int = 0) -> Image.Image:
    """Smooth image of 640×480 pixels with structure at every scale down to about three pixels."""
    random = np.random.default_rng(seed)
    total = np.zeros((HEIGHT, WIDTH, 3))
    for cells in (2, 6, 16, 48):
        noise = random.integers(0, 256, (cells * 3, cells * 4, 3), dtype=np.uint8)
        total += np.asarray(Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) / 4
    return Image.fromarray(total.astype(np.uint8))


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}))
    return buffer.getvalue()


def middle_of(image: Image.Image, size: int) -> NDArray[np.float64]:
    """Return the central square, scaled by Pillow from all of its pixels."""
    box = ((WIDTH - HEIGHT) / 2, 0, (WIDTH + HEIGHT) / 2, HEIGHT)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box), dtype=np.float64)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("size", [16, 30, 59, 61, 119, 400])
def test_the_middle_is_filtered_down_from_a_png_and_from_a_jpeg(kind: str, size: int) -> None:
    """A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that is at least twice the requested size."""
    data = encoded(landscape(), kind)
    with Image.open(io.BytesIO(data)) as image:
        expected = middle_of(image.convert("RGB"), size)
    difference = np.abs(decode_image(data, Decoding((size, size))) - expected)
    assert difference.max() <= (0 if kind == "PNG" else 8)
    assert difference.mean() < 1


def test_a_size_may_be_a_width_and_a_height() -> None:
    pixels = decode_image(encoded(landscape(), "PNG"), Decoding((64, 32)))
    assert pixels.shape == (32, 64, 3)
    box = (0, HEIGHT / 2 - WIDTH / 4, WIDTH, HEIGHT / 2 + WIDTH / 4)
    expected = np.asarray(landscape().resize((64, 32), Image.Resampling.BICUBIC, box=box))
    assert np.abs(pixels.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_random_resized_crops_are_those_of_torchvision_for_the_drawn_windows(
    kind: str, tmp_path: Path
) -> None:
    """For a JPEG, the window is mapped to the image that is decoded at 1/2, 1/4 or 1/8 of its size."""
    count, size = 9, 24
    suffix = kind.lower()
    images = [landscape(seed) for seed in range(count)]
    for split, chosen in (("train", images), ("val", images[:1])):
        (tmp_path / "tree" / split / "one").mkdir(parents=True)
        for number, image in enumerate(chosen):
            path = tmp_path / "tree" / split / "one" / f"{number:02}.{suffix}"
            path.write_bytes(encoded(image, kind))
    data = list_images("image_folder", root=tmp_path / "data", source=tmp_path / "tree", size=size)
    loader = FileLoader(data, "train", None, CPU, Rank(), 0)
    [batch] = next(loader.training(AugmentConfig(resized_crop=0.05), 1, 0, 0, 1, count))
    mean, std = (np.array(values)[:, None, None] for values in (data.meta.mean, data.meta.std))
    scales = set()
    windows = draw_windows(0.05, 1, 0, count)
    for shown, sample, window in zip(batch.images.numpy(), batch.samples.tolist(), windows, strict=True):
        top, left, height, width = window_pixels(window, HEIGHT, WIDTH)
        scales.add(min(height, width) // size)
        with Image.open(data.files_folder / data.files("train")[sample].name) as image:
            cut = transforms.resized_crop(
                image.convert("RGB"),
                top,
                left,
                height,
                width,
                [size, size],
                transforms.InterpolationMode.BICUBIC,
            )
        difference = np.abs((shown * std + mean) * 255 - np.asarray(cut).transpose(2, 0, 1))
        # Half a pixel at 1/8 is 4 pixels, of a window of 200 or more; a wrong window would be 20 off.
        assert difference.max() < (0.51 if kind == "PNG" else 60)
        assert difference.mean() < (0.1 if kind == "PNG" else 6)
    assert len(scales) > 4


def test_a_picture_that_is_too_large_is_refused_before_its_pixels_are_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reading the EXIF block of a PNG loads the whole of it: gigabytes for a file of a megabyte."""
    content = io.BytesIO()
    Image.new("1", (9000, 9000)).save(content, "PNG")

    def load(self: Image.Image) -> None:
        raise AssertionError("its pixels are loaded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(Refused, match="9000×9000 pixels are out of all proportion"):
        decode_image(content.getvalue(), Decoding((32, 32)))


def test_a_plain_ppm_file_of_comments_is_refused_at_once() -> None:
    """Pillow takes minutes for twenty megabytes of them."""
    with pytest.raises(Refused, match="too many comments"):
        decode_image(b"P3\n8 8\n255\n" + b"#\n" * 1000, Decoding((8, 8)))
    few = b"P3\n# made by hand\n1 2\n255\n" + b"7 8 9\n" * 2
    assert decode_image(few, Decoding(None)).tolist() == [[[7, 8, 9]], [[7, 8, 9]]]
