"""Pixels that a model sees, value by value: normalised, resized, augmented in order and mixed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from neuscale.config.schema import AugmentConfig
from neuscale.data.augment.color_jitter import Jitter, apply_jitter, turn_hue
from neuscale.data.augment.crops import CropFlip, Normalize, Rows, crop_flip, normalize, resize
from neuscale.data.augment.pipeline import draw_augmentation
from neuscale.data.augment.policy import (
    Policy,
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    apply_policy,
)
from neuscale.data.formats.image_list import ListedDataset
from neuscale.data.formats.packed import PackedDataset
from neuscale.data.formats.write_image_list import list_images
from neuscale.data.loaders.image_files import FileLoader
from neuscale.data.loaders.loader import Loader
from neuscale.data.loaders.resident import ResidentLoader
from neuscale.data.loaders.streaming import StreamLoader
from neuscale.data.prepare import prepare
from neuscale.distributed.rank import Rank
from neuscale.native_ops import native_ops

CPU = torch.device("cpu")
HEIGHT, WIDTH = 10, 6


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 10×6 pixels (height × width): dark in red, bright and flat in green, random in blue."""
    folder = tmp_path_factory.mktemp("tinted") / "tree"
    random = np.random.default_rng(0)
    for split, counts in (("train", {"a": 9, "b": 6}), ("val", {"a": 4, "b": 7})):
        for name, count in counts.items():
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                shape = (HEIGHT, WIDTH)
                channels = [
                    random.integers(0, 60, shape),
                    random.integers(180, 200, shape),
                    random.integers(0, 256, shape),
                ]
                pixels = np.stack(channels, axis=2).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def tinted(tree: Path) -> PackedDataset:
    return prepare("image_folder", root=tree.parent / "data", source=tree, save_as="tinted")


def originals(tree: Path, split: str) -> NDArray[np.uint8]:
    """Return the images as saved, in the order of their names: uint8 [N, C, H, W]."""
    files = sorted((tree / split).rglob("*.png"))
    return np.stack([np.asarray(Image.open(file)).transpose(2, 0, 1) for file in files])


def normalized(tree: Path, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return (x / 255 - mean) / std in numpy, with the statistics of the training images."""
    training = originals(tree, "train") / 255
    mean, std = training.mean((0, 2, 3)), training.std((0, 2, 3))
    return (images / 255 - mean[:, None, None]) / std[:, None, None]


def scaled(image: NDArray[np.float64], size: int) -> NDArray[np.float32]:
    """Resize with Pillow's bilinear filter, which widens when an image is made smaller."""
    channels = [Image.fromarray(channel.astype(np.float32)) for channel in image]
    return np.stack([np.asarray(c.resize((size, size), Image.Resampling.BILINEAR)) for c in channels])


@pytest.mark.parametrize("fused", [False, True])
def test_normalising_by_hand_channel_by_channel(fused: bool) -> None:
    mean, std = torch.tensor([0.1, 0.5, 0.7]), torch.tensor([0.2, 0.3, 0.4])
    images = torch.tensor([[0, 51], [51, 255], [255, 102]], dtype=torch.uint8).reshape(1, 3, 1, 2)
    expected = torch.tensor([[-0.5, 0.5], [-1.0, 5 / 3], [0.75, -0.75]]).reshape(1, 3, 1, 2)
    assert torch.allclose(normalize(images, mean, std), expected, atol=1e-6)
    ops = native_ops(CPU)[0] if fused else None
    zero = torch.zeros(1, dtype=torch.int64)
    crops = CropFlip(zero, zero, torch.tensor([True]), 0)
    mirrored = Normalize(mean, std, ops).cropped(Rows(images), crops)
    assert torch.allclose(mirrored, expected.flip(3), atol=1e-6)


@pytest.mark.parametrize(("shape", "size"), [((20, 12), 8), ((7, 30), 10), ((5, 6), 13)])
def test_resizing_is_bilinear_and_antialiased(shape: tuple[int, int], size: int) -> None:
    """Without a filter a downscaled image would flicker with every pixel that is skipped."""
    image = np.random.default_rng(0).random((2, *shape))
    ours = resize(torch.from_numpy(image.astype(np.float32))[None], size)[0].numpy()
    np.testing.assert_allclose(ours, scaled(image, size), atol=1e-5)


def test_only_an_image_of_exactly_this_size_is_left_as_it_is() -> None:
    assert resize(torch.zeros(1, 3, 10, 8), 8).shape == (1, 3, 8, 8)
    assert resize(torch.zeros(1, 3, 8, 10), 8).shape == (1, 3, 8, 8)


@pytest.mark.parametrize("kind", [ResidentLoader, StreamLoader])
def test_images_that_are_not_square_are_normalised_and_then_resized(
    kind: type[ResidentLoader | StreamLoader], tree: Path, tinted: PackedDataset
) -> None:
    loader = kind(tinted, "val", 8, CPU, Rank())
    assert loader.stored_size == (HEIGHT, WIDTH)
    expected = [scaled(image, 8) for image in normalized(tree, originals(tree, "val"))]
    batches = list(loader.evaluation(4))
    assert [len(batch.images) for batch in batches] == [4, 4, 3]
    np.testing.assert_allclose(torch.cat([b.images for b in batches]).numpy(), expected, atol=1e-4)
    assert torch.cat([b.labels for b in batches]).tolist() == [0] * 4 + [1] * 7
    training = kind(tinted, "train", 8, CPU, Rank()).training(AugmentConfig(), 0, 2, 0, 3, 5)
    for [batch] in training:
        images = originals(tree, "train")[batch.samples.numpy()]
        expected = [scaled(image, 8) for image in normalized(tree, images)]
        np.testing.assert_allclose(batch.images.numpy(), expected, atol=1e-4)
        assert batch.labels.tolist() == [int(sample >= 9) for sample in batch.samples]


def test_an_evaluation_of_chosen_images_changes_their_bytes(tree: Path, tinted: PackedDataset) -> None:
    """`change` gets the images' own numbers, wherever they are in the batch, and its result is shown."""
    chosen = np.array([5, 2, 10, 3, 8, 0, 7])
    images = originals(tree, "val")
    seen: list[int] = []

    def change(pixels: Tensor, numbers: NDArray[np.int64]) -> Tensor:
        assert pixels.dtype == torch.uint8
        assert np.array_equal(pixels.numpy(), images[numbers])
        seen.extend(numbers.tolist())
        return 255 - pixels

    shown = []
    for rank in range(2):
        for batch in ResidentLoader(tinted, "val", HEIGHT, CPU, Rank(rank, 2)).evaluation(2, chosen, change):
            shown += batch.samples.tolist()
            inverted = normalized(tree, 255 - images[batch.samples.numpy()])
            expected = [scaled(image, HEIGHT) for image in inverted]
            np.testing.assert_allclose(batch.images.numpy(), expected, atol=1e-4)
    assert seen == shown == chosen.tolist()


@pytest.mark.parametrize(
    ("listed_at", "image_size", "shown"),
    [(8, None, 8), (8, 5, 5), (None, 7, 7)],
    ids=["list", "model", "own"],
)
def test_files_are_decoded_at_the_size_that_the_model_sees(
    listed_at: int | None, image_size: int | None, shown: int, tree: Path, tmp_path: Path
) -> None:
    data = list_images("image_folder", root=tmp_path, source=tree, size=listed_at)
    loader = FileLoader(data, "val", image_size, CPU, Rank(), 0)
    assert (loader.size, loader.stored_size) == (shown, (shown, shown))
    middle = (0, (HEIGHT - WIDTH) / 2, WIDTH, (HEIGHT + WIDTH) / 2)
    mean, std = (np.array(values)[:, None, None] for values in (data.meta.mean, data.meta.std))
    for batch in loader.evaluation(4):
        for number, image in zip(batch.samples.tolist(), batch.images.numpy(), strict=True):
            original = Image.fromarray(originals(tree, "val")[number].transpose(1, 2, 0))
            fitted = original.resize((shown, shown), Image.Resampling.BICUBIC, box=middle)
            expected = np.asarray(fitted).transpose(2, 0, 1)
            assert np.array_equal(np.rint((image * std + mean) * 255), expected)


def test_files_of_squares_keep_their_pixels_where_no_size_is_given(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 9, 9, 3), dtype=np.uint8)
    for split in ("train", "val"):
        (tmp_path / "tree" / split / "one").mkdir(parents=True)
        for number, image in enumerate(pixels):
            Image.fromarray(image).save(tmp_path / "tree" / split / "one" / f"{number}.png")
    data = list_images("image_folder", root=tmp_path / "data", source=tmp_path / "tree")
    assert isinstance(data, ListedDataset)
    [batch] = FileLoader(data, "val", None, CPU, Rank(), 0).evaluation(5)
    values = pixels.transpose(0, 3, 1, 2) / 255
    mean, std = values.mean((0, 2, 3)), values.std((0, 2, 3))
    expected = (values - mean[:, None, None]) / std[:, None, None]
    np.testing.assert_allclose(batch.images.numpy(), expected, atol=1e-5)


EVERYTHING = AugmentConfig(
    crop_padding=2,
    horizontal_flip=0.5,
    policy="randaugment",
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    erasing=0.7,
    mixup_alpha=0.8,
    cutmix_alpha=1.0,
)


def shown_alone(tree: Path, samples: NDArray[np.int64], positions: NDArray[np.int64]) -> Tensor:
    """Return the images at positions of an epoch, augmented in the documented order and not mixed."""
    drawn = draw_augmentation(EVERYTHING, 4, 3, 15, 5, (HEIGHT, WIDTH), CPU)
    assert drawn.jitter is not None and drawn.erasing is not None
    at, crops, jitter = torch.from_numpy(positions), drawn.crops, drawn.jitter
    crops = CropFlip(crops.top[at], crops.left[at], crops.flip[at], crops.padding)
    images = crop_flip(Rows(torch.from_numpy(originals(tree, "train")[samples])), crops)
    for layer in drawn.policy:
        images = apply_policy(images, Policy(layer.operation[at], layer.strength[at]))
    parts = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    images = apply_jitter(images, Jitter(*(part[at] for part in parts if part is not None)))
    pixels = torch.from_numpy(normalized(tree, images.numpy()))
    for pixel, (top, bottom, left, right) in zip(pixels, drawn.erasing.box[at].tolist(), strict=True):
        pixel[:, top:bottom, left:right] = 0
    return pixels


def test_augmentations_come_in_order_and_the_partner_is_mixed_in_as_it_is_shown_itself(
    tree: Path, tinted: PackedDataset
) -> None:
    """A partner is cropped, jittered and erased as at its own position, not like the image it joins."""
    loader: Loader = ResidentLoader(tinted, "train", HEIGHT, CPU, Rank())
    mix = draw_augmentation(EVERYTHING, 4, 3, 15, 5, (HEIGHT, WIDTH), CPU).mix
    assert mix is not None
    steps = list(loader.training(EVERYTHING, 4, 3, 0, 3, 5))
    order = torch.cat([batch.samples for [batch] in steps]).numpy()
    alone = shown_alone(tree, order, np.arange(15))
    assert {bool(box.any()) for box in mix.box} == {False, True}
    for step, [batch] in enumerate(steps):
        for i, shown in enumerate(batch.images):
            position = 5 * step + i
            partner, share = int(mix.partner[position]), float(mix.weight[position])
            expected = share * alone[position] + (1 - share) * alone[partner]
            top, bottom, left, right = mix.box[position].tolist()
            if bottom > top:
                expected = alone[position].clone()
                expected[:, top:bottom, left:right] = alone[partner][:, top:bottom, left:right]
            squares = scaled(expected.numpy(), HEIGHT)
            np.testing.assert_allclose(shown.numpy(), squares, atol=1e-4)
            assert batch.partner_labels is not None and batch.mix_weights is not None
            assert batch.partner_labels[i] == int(order[partner] >= 9)
            assert batch.mix_weights[i] == pytest.approx(share)


@pytest.mark.parametrize("options", [{}, {"hue": 0.3, "brightness": 0.5}, {"policy": "trivialaugment"}])
def test_jitter_or_a_policy_alone_is_applied_to_the_bytes(
    options: dict[str, object], tree: Path, tinted: PackedDataset
) -> None:
    """Without jitter and policy the images take a shorter path; with one of them they must not."""
    augment = AugmentConfig(crop_padding=1, horizontal_flip=0.5, **options)  # type: ignore[arg-type]
    loader = ResidentLoader(tinted, "train", HEIGHT, CPU, Rank())
    [batch] = next(loader.training(augment, 4, 3, 0, 1, 15))
    drawn = draw_augmentation(augment, 4, 3, 15, 15, (HEIGHT, WIDTH), CPU)
    images = torch.from_numpy(originals(tree, "train")[batch.samples.numpy()])
    images = crop_flip(Rows(images), drawn.crops)
    for layer in drawn.policy:
        images = apply_policy(images, layer)
    if drawn.jitter is not None:
        images = apply_jitter(images, drawn.jitter)
    expected = [scaled(image, HEIGHT) for image in normalized(tree, images.numpy())]
    np.testing.assert_allclose(batch.images.numpy(), expected, atol=1e-4)


def test_jitter_comes_in_the_order_brightness_contrast_saturation_hue() -> None:
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (5, 3, 6, 7), dtype=np.uint8))
    brightness, contrast, saturation, hue = (torch.linspace(-0.4, 0.6, 5).roll(i) for i in range(4))
    expected = adjust_contrast(adjust_brightness(images, brightness), contrast)
    expected = turn_hue(adjust_saturation(expected, saturation), hue / 3)
    assert torch.equal(apply_jitter(images, Jitter(brightness, contrast, saturation, hue / 3)), expected)


def test_a_hue_is_turned_by_hand() -> None:
    """Pure colours move along the colour circle, black and white stay, and half a turn gives the opposite."""
    colors = torch.tensor(
        [[255, 0, 0], [0, 255, 0], [255, 0, 0], [0, 0, 0], [255, 255, 255], [200, 50, 50]], dtype=torch.uint8
    )
    turns = torch.tensor([1 / 3, 1 / 3, -1 / 3, 0.2, 0.2, 0.5])
    turned = turn_hue(colors[:, :, None, None], turns)[:, :, 0, 0]
    expected = [[0, 255, 0], [0, 0, 255], [0, 0, 255], [0, 0, 0], [255, 255, 255], [50, 200, 200]]
    assert turned.tolist() == expected
