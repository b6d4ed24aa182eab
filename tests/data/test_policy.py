"""RandAugment and TrivialAugment match torchvision for each image, operation by operation."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandAugment, TrivialAugmentWide

from neuscale.data.augment import policy
from neuscale.data.augment.policy import BINS, OPERATIONS, Policy, apply_policy, strengths

NAMES = {
    policy.SHEAR_X: "ShearX",
    policy.SHEAR_Y: "ShearY",
    policy.TRANSLATE_X: "TranslateX",
    policy.TRANSLATE_Y: "TranslateY",
    policy.ROTATE: "Rotate",
    policy.BRIGHTNESS: "Brightness",
    policy.COLOR: "Color",
    policy.CONTRAST: "Contrast",
    policy.SHARPNESS: "Sharpness",
    policy.POSTERIZE: "Posterize",
    policy.SOLARIZE: "Solarize",
    policy.AUTOCONTRAST: "AutoContrast",
    policy.EQUALIZE: "Equalize",
    policy.IDENTITY: "Identity",
}
PEERS = {"randaugment": RandAugment(), "trivialaugment": TrivialAugmentWide()}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Smooth images, one for each bin: uint8 [31, 3, 32, 28]."""
    noise = torch.rand(BINS, 3, 40, 36, generator=torch.Generator().manual_seed(0))
    smooth = F.avg_pool2d(noise, 9, 1)
    low, high = smooth.amin((1, 2, 3), keepdim=True), smooth.amax((1, 2, 3), keepdim=True)
    return ((smooth - low) / (high - low) * 250).to(torch.uint8)


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("operation", NAMES, ids=NAMES.values())
@pytest.mark.parametrize("negative", [False, True])
def test_every_bin_of_every_operation_is_torchvisions(
    images: torch.Tensor, peer: str, operation: int, negative: bool
) -> None:
    theirs = PEERS[peer]
    name = NAMES[operation]
    magnitudes, signed = theirs._AUGMENTATION_SPACE[name]
    height, width = images.shape[-2:]
    table = magnitudes(BINS, height, width)
    bins = torch.arange(BINS)
    chosen = torch.full((BINS,), operation)
    strength = strengths(peer, chosen, bins, torch.full((BINS,), negative), (height, width))
    ours = apply_policy(images, Policy(chosen, strength))
    for i in range(BINS):
        magnitude = float(table[i]) if table is not None else 0.0
        expected = theirs._apply_image_or_video_transform(
            images[i],
            name,
            -magnitude if signed and negative else magnitude,
            interpolation=InterpolationMode.NEAREST,
            fill=theirs._fill,
        )
        difference = (expected.int() - ours[i].int()).abs()
        # Float32 may round by one in the other direction; at a tie between two pixels (or at a
        # threshold that equals a pixel's value) either result is right.
        allowed = 0.06 if operation <= policy.ROTATE else 0.02
        assert (difference > 1).float().mean() < allowed, f"bin {i}"


def test_a_mixed_batch_is_its_images_one_by_one(images: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(1)
    operation = torch.randint(0, OPERATIONS, (BINS,), generator=generator)
    bins = torch.randint(0, BINS, (BINS,), generator=generator)
    negative = torch.rand(BINS, generator=generator) < 0.5
    layer = Policy(operation, strengths("trivialaugment", operation, bins, negative, (32, 28)))
    together = apply_policy(images, layer)
    for i in range(BINS):
        one = slice(i, i + 1)
        assert torch.equal(apply_policy(images[one], layer.at(one)), together[one])
    assert torch.equal(together[operation == policy.IDENTITY], images[operation == policy.IDENTITY])


def test_grayscale_and_flat_images_pass_through_every_operation() -> None:
    for images in (torch.full((OPERATIONS, 3, 8, 8), 7), torch.randint(0, 256, (OPERATIONS, 1, 8, 8))):
        operation = torch.arange(OPERATIONS)
        bins = torch.full((OPERATIONS,), 15)
        layer = Policy(operation, strengths("randaugment", operation, bins, bins > 20, (8, 8)))
        result = apply_policy(images.to(torch.uint8), layer)
        assert result.shape == images.shape
        assert result.dtype == torch.uint8


def test_an_image_of_one_grey_is_only_changed_by_what_changes_grey() -> None:
    """A flat grey image has no contrast, edges or colour to change, and must not get darker by rounding."""
    flat = torch.full((BINS, 3, 8, 8), 100, dtype=torch.uint8)
    bins = torch.arange(BINS)
    for operation in (policy.COLOR, policy.CONTRAST, policy.SHARPNESS, policy.AUTOCONTRAST, policy.EQUALIZE):
        chosen = torch.full((BINS,), operation)
        for negative in (False, True):
            strength = strengths("randaugment", chosen, bins, torch.full((BINS,), negative), (8, 8))
            changed = apply_policy(flat, Policy(chosen, strength)).int()
            allowed = 0 if operation in (policy.AUTOCONTRAST, policy.EQUALIZE) else 1
            assert (changed - 100).abs().max() <= allowed, NAMES[operation]


def test_posterize_solarize_and_brightness_by_hand() -> None:
    image = torch.tensor([0, 7, 100, 128, 200, 255], dtype=torch.uint8).expand(1, 3, 1, 6)
    for operation, strength, expected in (
        (policy.POSTERIZE, 4.0, [0, 0, 96, 128, 192, 240]),
        (policy.POSTERIZE, 8.0, [0, 7, 100, 128, 200, 255]),
        (policy.SOLARIZE, 128.0, [0, 7, 100, 127, 55, 0]),
        (policy.BRIGHTNESS, -0.5, [0, 3, 50, 64, 100, 127]),
        (policy.BRIGHTNESS, 0.5, [0, 10, 150, 192, 255, 255]),
    ):
        layer = Policy(torch.tensor([operation]), torch.tensor([strength]))
        assert apply_policy(image, layer)[0, 1, 0].tolist() == expected, NAMES[operation]


def test_sharpness_is_by_the_blur_of_the_eight_neighbours_and_spares_the_border() -> None:
    """A dot of 130 on 0 is blurred to 5/13 of its value in the centre and to 1/13 beside it."""
    image = torch.zeros(1, 1, 5, 5, dtype=torch.uint8)
    image[0, 0, 2, 2] = 130
    layer = Policy(torch.tensor([policy.SHARPNESS]), torch.tensor([-1.0]))
    blurred = torch.zeros(5, 5, dtype=torch.uint8)
    blurred[1:4, 1:4] = 10
    blurred[2, 2] = 50
    assert torch.equal(apply_policy(image, layer)[0, 0], blurred)
    corner = torch.zeros(1, 1, 5, 5, dtype=torch.uint8)
    corner[0, 0, 0, 0] = 130
    assert apply_policy(corner, layer)[0, 0, 0, 0] == 130
    for shape in ((3, 3), (2, 9), (9, 2)):
        plain = torch.randint(0, 256, (1, 1, *shape), generator=torch.Generator().manual_seed(0))
        small = plain.to(torch.uint8)
        changed = not torch.equal(apply_policy(small, layer), small)
        assert changed == (min(shape) > 2), "an image that is all border stays as it is"
