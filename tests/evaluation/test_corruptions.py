"""Corruptions do not depend on the batch, grow with severity, and keep uint8."""

import itertools
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from neuscale.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt

KINDS = list(CORRUPTIONS)
RANDOM = {"gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "fog"}


@pytest.fixture(scope="session", params=["colour", "gray", "tiny"])
def images(request: pytest.FixtureRequest) -> Tensor:
    """24 images of 64×64, or 8×8 for 'tiny': real ones if NEUSCALE_TEST_DATA has them, else gradients."""
    archive = Path(os.environ.get("NEUSCALE_TEST_DATA", ""), "tiny-imagenet-40.zip")
    if archive.is_file():
        with zipfile.ZipFile(archive) as opened:
            names = [name for name in opened.namelist() if "/val/" in name and name.endswith(".JPEG")][:24]
            loaded = [Image.open(opened.open(name)).convert("RGB") for name in names]
    else:
        ramp = np.linspace(0, 255, 64).astype(np.uint8)
        loaded = [
            Image.fromarray(np.roll(np.stack([ramp[:, None] + 0 * ramp, 0 * ramp[:, None] + ramp, 255 - ramp +
            0 * ramp[:, None]], -1), 5 * i, axis=i % 2)) for i in range(24)
        ]  # fmt: skip
    if request.param == "gray":
        return torch.from_numpy(np.stack([np.asarray(image.convert("L"))[None] for image in loaded]))
    if request.param == "tiny":
        loaded = [image.resize((8, 8)) for image in loaded]
    return torch.from_numpy(np.stack([np.asarray(image).transpose(2, 0, 1) for image in loaded]))


SAMPLES = np.arange(100, 124)


@pytest.mark.parametrize("kind", KINDS)
def test_neither_batch_nor_order_matters(images: Tensor, kind: str) -> None:
    """Results do not depend on the batch, and therefore not on the number of processes."""
    whole = corrupt(images, SAMPLES, kind, 3, seed=0)
    assert whole.dtype == torch.uint8
    assert whole.shape == images.shape
    parts = [corrupt(images[i : i + 5], SAMPLES[i : i + 5], kind, 3, 0) for i in range(0, 24, 5)]
    assert torch.equal(torch.cat(parts), whole)
    backwards = corrupt(images.flip(0), SAMPLES[::-1].copy(), kind, 3, 0).flip(0)
    assert torch.equal(backwards, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_it_changes_images_more_with_severity(images: Tensor, kind: str) -> None:
    def distance(severity: int) -> float:
        return float((corrupt(images, SAMPLES, kind, severity, 0).float() - images.float()).abs().mean())

    distances = [distance(severity) for severity in SEVERITIES]
    assert distances[0] > 0.05, "of 255"
    # For pixelate at similar scales, the order of the distances depends on the picture.
    assert all(later > 0.97 * before for before, later in itertools.pairwise(distances))
    assert distances[-1] > 1.15 * distances[0], "of noise JPEG leaves little at any severity"
    assert distances[-1] < 110, "something is left of the images"


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_random_depends_on_seed_and_image(images: Tensor, kind: str) -> None:
    first = corrupt(images, SAMPLES, kind, 5, seed=0)
    other_seed = corrupt(images, SAMPLES, kind, 5, seed=1)
    same_twice = corrupt(images[:1].repeat(2, 1, 1, 1), np.array([1, 2]), kind, 5, 0)
    assert torch.equal(first, other_seed) == (kind not in RANDOM)
    assert torch.equal(same_twice[0], same_twice[1]) == (kind not in RANDOM)


def test_strengths_are_those_of_the_paper() -> None:
    gray = torch.full((1, 3, 256, 256), 128, dtype=torch.uint8)
    one = np.array([7])
    noisy = corrupt(gray, one, "gaussian_noise", 5, 0).float() / 255
    assert float(noisy.std()) == pytest.approx(0.10, rel=0.02)
    assert float(noisy.mean()) == pytest.approx(128 / 255, abs=2e-3)
    shot = corrupt(gray, one, "shot_noise", 5, 0).float() / 255
    assert float(shot.std()) == pytest.approx((128 / 255 / 50) ** 0.5, rel=0.02)
    impulse = corrupt(gray, one, "impulse_noise", 4, 0)
    assert float((impulse == 0).float().mean()) == pytest.approx(0.025, rel=0.1)
    assert float((impulse == 255).float().mean()) == pytest.approx(0.025, rel=0.1)
    assert int(corrupt(gray, one, "brightness", 3, 0)[0, 0, 0, 0]) == round(128 + 0.15 * 255)


def test_blurs_keep_the_mean() -> None:
    spot = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    spot[0, 0, 12:20, 12:20] = 200
    for kind in ("defocus_blur", "motion_blur"):
        for severity in SEVERITIES:
            after = corrupt(spot, np.array([3]), kind, severity, 0).float()
            assert float(after.sum()) == pytest.approx(float(spot.float().sum()), rel=0.06), (kind, severity)
