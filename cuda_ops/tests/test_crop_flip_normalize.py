"""crop_flip_normalize on the CPU is bit-identical to a sequence of torch's own operations."""

import pytest
import torch
import torch.nn.functional as F

from neuscale_ops import crop_flip_normalize


def one_by_one(images, index, top, left, flip, mean, std, padding, dtype):
    """Reference that crops images one by one and normalises like `neuscale.data.augment.crops.normalize`."""
    _, _, H, W = images.shape
    out = []
    for i, y, x, mirrored in zip(index.tolist(), top.tolist(), left.tolist(), flip.tolist(), strict=True):
        image = F.pad(images[i], (padding,) * 4)[:, y : y + H, x : x + W]
        out.append(image.flip(-1) if mirrored else image)
    batch = torch.stack(out) if out else images[:0]
    scale, shift = 1.0 / (255.0 * std), -mean / std
    return torch.addcmul(shift[:, None, None], batch.float(), scale[:, None, None]).to(dtype)


def draws(images, batch, padding, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randint(0, images.shape[0], (batch,), generator=g),
        torch.randint(0, 2 * padding + 1, (batch,), generator=g),
        torch.randint(0, 2 * padding + 1, (batch,), generator=g),
        torch.rand(batch, generator=g) < 0.5,
    )


def bytes_of(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(9))


MEAN, STD = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.247, 0.2435, 0.2616])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "padding"),
    [((20, 3, 32, 32), 4), ((5, 3, 7, 13), 2), ((4, 3, 5, 3), 9), ((6, 3, 64, 64), 0), ((3, 3, 1, 1), 1)],
)
def test_same_bits_as_torch(shape, padding, dtype):
    images = bytes_of(*shape)
    given = draws(images, 33, padding)
    found = crop_flip_normalize(images, *given, MEAN, STD, padding, dtype)
    assert found.dtype == dtype
    assert torch.equal(found, one_by_one(images, *given, MEAN, STD, padding, dtype))


def test_every_byte_of_every_channel():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    zero, no = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.bool)
    found = crop_flip_normalize(images, zero, zero, zero, no, MEAN, STD, 0)
    assert torch.equal(found, one_by_one(images, zero, zero, zero, no, MEAN, STD, 0, torch.float32))


def test_the_loaders_own_functions_agree():
    """The loader's fallback without this package gives identical results, so a run does not change."""
    augment = pytest.importorskip("neuscale.data.augment.crops")
    images = bytes_of(40, 3, 32, 32)
    index, top, left, flip = draws(images, 128, 4)
    crops = augment.CropFlip(top, left, flip, 4)
    wanted = augment.normalize(augment.crop_flip(augment.Rows(images, index), crops), MEAN, STD)
    assert torch.equal(crop_flip_normalize(images, index, top, left, flip, MEAN, STD, 4), wanted)


def test_new_statistics_are_noticed():
    """A changed mean replaces the table that is cached between calls."""
    images = bytes_of(4, 3, 8, 8)
    given = draws(images, 6, 1)
    mean, std = MEAN.clone(), STD.clone()
    crop_flip_normalize(images, *given, mean, std, 1)
    mean += 0.25
    found = crop_flip_normalize(images, *given, mean, std, 1)
    assert torch.equal(found, one_by_one(images, *given, mean, std, 1, torch.float32))


@pytest.mark.parametrize("how", ["in place", "by .data", "through NumPy", "by another tensor"])
def test_statistics_that_change_in_place_are_noticed(how):
    images, mean, std = bytes_of(2, 3, 4, 4), MEAN.clone(), STD.clone()
    drawn = draws(images, 2, 1)
    crop_flip_normalize(images, *drawn, mean, std, 1)
    if how == "in place":
        mean.add_(1)
    elif how == "by .data":
        mean.data.add_(1)
    elif how == "through NumPy":
        mean.numpy()[:] += 1
    else:
        torch.from_numpy(mean.numpy()).add_(1)
    found = crop_flip_normalize(images, *drawn, mean, std, 1)
    assert torch.equal(found, one_by_one(images, *drawn, mean, std, 1, torch.float32))


def test_empty_batch_and_empty_set():
    images = bytes_of(4, 3, 8, 8)
    given = draws(images, 0, 1)
    assert crop_flip_normalize(images, *given, MEAN, STD, 1).shape == (0, 3, 8, 8)
    assert crop_flip_normalize(images[:0], *given, MEAN, STD, 1).shape == (0, 3, 8, 8)


def test_threads_do_not_matter(threads):
    images = bytes_of(64, 3, 32, 32)
    given = draws(images, 256, 4)
    results = []
    for count in (1, 2, 4):
        threads(count)
        results.append(crop_flip_normalize(images, *given, MEAN, STD, 4))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    ("name", "value"),
    [("index", -1), ("index", 4), ("top", -1), ("top", 3), ("left", 2**40), ("left", -(2**40))],
)
def test_a_number_out_of_range_is_named(name, value):
    """A number out of range raises an error that names it, instead of a read outside the images."""
    images = bytes_of(4, 3, 8, 8)
    given = dict(zip(("index", "top", "left", "flip"), draws(images, 6, 1), strict=True))
    given[name][3] = value
    with pytest.raises(ValueError, match=f"{name}: {value} at position 3"):
        crop_flip_normalize(images, *given.values(), MEAN, STD, 1)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("images_u8", torch.zeros(4, 3, 8, 8), TypeError),
        ("images_u8", bytes_of(3, 8, 8), ValueError),
        ("images_u8", None, TypeError),
        ("index", torch.zeros(6, dtype=torch.int32), TypeError),
        ("index", [0] * 6, TypeError),
        ("top", torch.zeros(5, dtype=torch.int64), ValueError),
        ("left", torch.zeros(6, 1, dtype=torch.int64), ValueError),
        ("flip", torch.zeros(6, dtype=torch.int64), TypeError),
        ("mean", torch.zeros(4), ValueError),
        ("std", torch.zeros(3, dtype=torch.int64), TypeError),
        ("std", torch.zeros(3, device="meta"), ValueError),
        ("padding", -1, ValueError),
        ("padding", 1.0, TypeError),
        ("dtype", torch.float64, TypeError),
    ],
)
def test_bad_arguments_are_named(name, value, error):
    images = bytes_of(4, 3, 8, 8)
    index, top, left, flip = draws(images, 6, 1)
    given = {
        "images_u8": images, "index": index, "top": top, "left": left, "flip": flip,
        "mean": MEAN, "std": STD, "padding": 1, "dtype": torch.float32,
    }  # fmt: skip
    with pytest.raises(error, match=f"^{name}: "):
        crop_flip_normalize(**given | {name: value})


def test_opcheck():
    images = bytes_of(4, 3, 8, 8)
    table = torch.randn(3, 256)
    torch.library.opcheck(
        torch.ops.neuscale_ops.crop_flip_normalize.default, (images, *draws(images, 6, 1), table, 1)
    )


def test_compiles_whole():
    images = bytes_of(4, 3, 8, 8)
    given = draws(images, 6, 1)
    compiled = torch.compile(crop_flip_normalize, fullgraph=True, backend="aot_eager")
    found = compiled(images, *given, MEAN, STD, 1)
    assert torch.equal(found, one_by_one(images, *given, MEAN, STD, 1, torch.float32))
