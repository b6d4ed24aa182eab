"""Each corruption at each severity against its formula in NumPy and Pillow."""

import colorsys
import io
import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from neuscale.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt

# A picture 21 wide and 13 high with smooth colours, in the middle of the range.
WAVES = np.stack(
    [np.sin(np.arange(21) / (2 + i)) + np.cos(np.arange(13) / (3 + i))[:, None] for i in range(3)]
)
PICTURE = (128 + 50 * WAVES).astype(np.uint8)


def changed(pixels: NDArray[np.uint8], kind: str, severity: int, sample: int = 7) -> NDArray[np.uint8]:
    """Corrupt one image: uint8 [C, H, W] → uint8 [C, H, W]."""
    images = torch.from_numpy(pixels.copy())[None]
    return corrupt(images, np.array([sample]), kind, severity, seed=0)[0].numpy()


def gray(value: int, side: int = 256) -> NDArray[np.uint8]:
    return np.full((3, side, side), value, np.uint8)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_is_as_strong_as_published(severity: int) -> None:
    """The standard deviation of 196,608 values is accurate to a few per mille."""
    noise = changed(gray(100), "gaussian_noise", severity) / 255 - 100 / 255
    assert noise.std() == pytest.approx((0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1], rel=0.02)
    assert noise.mean() == pytest.approx(0, abs=2e-3)
    shot = changed(gray(80), "shot_noise", severity) / 255
    photons = (500, 250, 100, 75, 50)[severity - 1]
    assert shot.mean() == pytest.approx(80 / 255, abs=2e-3)
    assert shot.std() == pytest.approx((80 / 255 / photons) ** 0.5, rel=0.04)
    impulse = changed(gray(100), "impulse_noise", severity)
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[severity - 1] / 2
    for value in (0, 255):
        assert (impulse == value).mean() == pytest.approx(share, rel=0.1)
    assert set(np.unique(impulse)) == {0, 100, 255}
    assert (impulse[0] != impulse[1]).mean() > share, "each colour has its own"


def test_severities_and_channels_have_noise_of_their_own() -> None:
    one, two = (changed(gray(100), "gaussian_noise", severity).astype(float) for severity in (1, 2))
    assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(one[0].ravel(), one[1].ravel())[0, 1]) < 0.02


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_raises_the_value_and_keeps_hue_and_saturation(severity: int) -> None:
    raised = (0.05, 0.10, 0.15, 0.20, 0.30)[severity - 1]
    colours = np.array([[200, 100, 50], [10, 20, 40], [0, 0, 0], [250, 250, 10], [0, 90, 60]], np.uint8)
    found = changed(colours.T[:, None, :], "brightness", severity)[:, 0].T
    for before, after in zip(colours, found, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(before / 255))
        expected = colorsys.hsv_to_rgb(hue, saturation, min(1.0, value + raised))
        assert after / 255 == pytest.approx(np.array(expected), abs=0.51 / 255)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_shrinks_the_distance_to_the_mean_of_each_colour(severity: int) -> None:
    factor = (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1]
    mean = PICTURE.mean((1, 2), keepdims=True)
    expected = mean + factor * (PICTURE - mean)
    assert np.abs(changed(PICTURE, "contrast", severity) - expected).max() < 0.51


@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixels_become_fewer_and_jpeg_is_saved_and_read(severity: int) -> None:
    picture = Image.fromarray(PICTURE.transpose(1, 2, 0))
    scale = (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1]
    small = picture.resize((int(21 * scale), int(13 * scale)), Image.Resampling.BOX)
    expected = np.asarray(small.resize((21, 13), Image.Resampling.BOX)).transpose(2, 0, 1)
    assert np.array_equal(changed(PICTURE, "pixelate", severity), expected)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=(80, 65, 58, 50, 40)[severity - 1])
    expected = np.asarray(Image.open(buffer)).transpose(2, 0, 1)
    assert np.array_equal(changed(PICTURE, "jpeg", severity), expected)


def spot(row: int, column: int) -> NDArray[np.uint8]:
    pixels = np.zeros((1, 23, 31), np.uint8)
    pixels[0, row, column] = 255
    return pixels


def test_defocus_spreads_a_spot_over_a_soft_disk() -> None:
    """Radii below 1 leave only a 3×3 Gaussian; larger ones a disk that is hardly softened."""
    for severity, sigma in ((1, 0.4), (2, 0.5), (3, 0.6)):
        bell = np.exp(-(np.array([-1, 0, 1]) ** 2) / (2 * sigma**2))
        bell = np.outer(bell, bell) / bell.sum() ** 2
        found = changed(spot(11, 15), "defocus_blur", severity)[0]
        assert found[10:13, 14:17] == pytest.approx(255 * bell, abs=0.51)
        assert found.astype(int).sum() == found[10:13, 14:17].astype(int).sum()
    # Radius 1: a pixel and its four neighbours, softened with sigma 0.2. Radius 1.5: all nine pixels.
    plus = changed(spot(11, 15), "defocus_blur", 4)[0, 9:14, 13:18]
    assert plus[2, 2] == plus[1, 2] == plus[2, 1] == plus[3, 2] == plus[2, 3] == 51
    assert plus.astype(int).sum() == 5 * 51
    square = changed(spot(11, 15), "defocus_blur", 5)[0, 9:14, 13:18]
    assert set(square[1:4, 1:4].ravel()) == {28}
    assert square.astype(int).sum() == 9 * 28
    # The border is reflected, so that the pixel next to the border counts twice there.
    assert changed(spot(11, 1), "defocus_blur", 5)[0, 11, :4].tolist() == [57, 28, 28, 0]


@pytest.mark.parametrize("severity", SEVERITIES)
def test_motion_spreads_a_spot_along_a_line_of_its_own_angle(severity: int) -> None:
    radius, sigma = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))[severity - 1]
    steps = np.arange(radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights = 255 * weights / weights.sum()
    expected = []
    angles = np.radians(np.linspace(-45, 45, 361))
    for angle in angles:
        picture = np.zeros((23, 31))
        for step, weight in zip(steps, weights, strict=True):
            picture[11 - round(step * np.sin(angle)), 15 - round(step * np.cos(angle))] += weight
        expected.append(picture)
    fitting = []
    for sample in range(40):
        found = changed(spot(11, 15), "motion_blur", severity, sample)[0]
        distances = np.abs(np.stack(expected) - found).max((1, 2))
        assert distances.min() < 0.51, "no angle gives this"
        fitting.append(float(np.degrees(angles[distances.argmin()])))
    assert min(fitting) < -25
    assert max(fitting) > 25
    assert len(set(fitting)) > 10


@pytest.mark.parametrize("severity", SEVERITIES)
def test_fog_leaves_the_brightest_and_dims_the_rest_by_its_thickness(severity: int) -> None:
    """On uniform gray b, fog of thickness t gives values from b·b / (b + t) (no fog) to b (full fog)."""
    thickness = (0.2, 0.5, 0.75, 1.0, 1.5)[severity - 1]
    b = 160 / 255
    found = changed(np.full((3, 40, 56), 160, np.uint8), "fog", severity)
    assert found.max() == 160
    assert found.min() == pytest.approx(255 * b * b / (b + thickness), abs=0.51)
    assert np.array_equal(found[0], found[1])
    lighter = changed(
        np.stack([np.full((40, 56), value, np.uint8) for value in (160, 20, 20)]), "fog", severity
    )
    clear = (found[0] / 255 * (b + thickness) / b - b) / thickness
    dark = (20 / 255 + thickness * clear) * b / (b + thickness)
    assert np.abs(lighter[1] / 255 - dark).max() < 3 / 255, "the same fog lies over dark colours"


def test_fog_gets_rougher_with_severity() -> None:
    """Octaves decay by 3, 3, 2.5, 2 and 1.75 at the five severities, and reach to the longer side."""

    def roughness(severity: int) -> float:
        found = [changed(gray(128, 64)[:1], "fog", severity, sample)[0] / 255 for sample in range(12)]
        return float(np.mean([np.abs(np.diff(f)).mean() / (f.max() - f.min()) for f in found]))

    rough = [roughness(severity) for severity in SEVERITIES]
    assert rough[0] == pytest.approx(rough[1], rel=0.15)
    assert all(later > 1.1 * before for before, later in itertools.pairwise(rough[1:]))


def test_the_table_names_ten_kinds() -> None:
    assert list(CORRUPTIONS) == [
        "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "motion_blur",
        "fog", "brightness", "contrast", "pixelate", "jpeg",
    ]  # fmt: skip
