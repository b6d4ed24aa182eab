"""Colour jitter matches torchvision image by image; erasing blanks exactly the boxes that it draws."""

import pytest
import torch
from torchvision.transforms.v2 import functional as peer

from neuscale.data.augment.color_jitter import Jitter, apply_jitter, draw_jitter
from neuscale.data.augment.erasing import apply_erasing, draw_erasing

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (16, 3, 9, 7), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_image_is_changed_as_torchvision_would(images: torch.Tensor, name: str) -> None:
    change = torch.linspace(-0.5, 0.5, 16) if name == "hue" else torch.linspace(-1.0, 1.5, 16)
    parts = {
        part: change if part == name else None for part in ("brightness", "contrast", "saturation", "hue")
    }
    ours = apply_jitter(images, Jitter(**parts))
    adjust = getattr(peer, f"adjust_{name}")
    for image, amount, result in zip(images, change.tolist(), ours, strict=True):
        expected = adjust(image, amount if name == "hue" else 1 + amount)
        assert (expected.int() - result.int()).abs().max() <= 1


def test_jitter_covers_its_range_and_no_more() -> None:
    jitter = draw_jitter((0.4, 2.0, 0.0, 0.1), 0, 0, 20_000, CPU)
    assert jitter.saturation is None
    for values, low, high in (
        (jitter.brightness, -0.4, 0.4),
        (jitter.contrast, -1, 2),
        (jitter.hue, -0.1, 0.1),
    ):
        assert values is not None
        assert low <= values.min() < low + 0.01
        assert high - 0.01 < values.max() <= high


def test_gray_images_have_no_hue(images: torch.Tensor) -> None:
    gray = images[:, :1]
    turn = torch.full((16,), 0.3)
    assert torch.equal(apply_jitter(gray, Jitter(None, None, turn, turn)), gray)


def test_erasing_takes_its_share_of_images_and_area() -> None:
    erasing = draw_erasing(0.25, 0, 0, 4000, (32, 24), CPU)
    erased = apply_erasing(torch.ones(4000, 2, 32, 24), erasing) == 0
    assert torch.equal(erased[:, 0], erased[:, 1])
    area = erased[:, 0].float().mean((1, 2))
    chosen = area > 0
    assert 0.22 < chosen.float().mean() < 0.28
    assert area[chosen].min() > 0.01
    assert area[chosen].max() < 0.37
    for image, box in zip(erased[chosen][:50, 0], erasing.box[chosen][:50].tolist(), strict=True):
        top, bottom, left, right = box
        assert image[top:bottom, left:right].all()
        assert image.sum() == (bottom - top) * (right - left)


def test_every_place_can_be_erased() -> None:
    erasing = draw_erasing(1.0, 0, 0, 3000, (8, 8), CPU)
    share = (apply_erasing(torch.ones(3000, 1, 8, 8), erasing) == 0).float().mean(0)
    assert share.min() > 0.02
