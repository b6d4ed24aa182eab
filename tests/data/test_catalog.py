"""The catalogue agrees with what the publisher of each data set states."""

import pytest

from neuscale.data.catalog import CATALOG

# Labels in their order, from the readme of each data set.
FASHION = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"]
FASHION += ["Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
# Some fine labels of CIFAR-100, as `meta` in its archive numbers them.
CIFAR100 = {0: "apple", 1: "aquarium_fish", 23: "cloud", 47: "maple_tree", 53: "orange", 71: "sea"}
CIFAR100 |= {99: "worm"}


def test_classes_are_in_the_order_of_their_labels() -> None:
    assert list(CATALOG["fashion_mnist"].classes or ()) == FASHION
    assert list(CATALOG["cifar10"].classes or ()) == CIFAR10
    fine = CATALOG["cifar100"].classes or ()
    assert {label: fine[label] for label in CIFAR100} == CIFAR100
    assert list(fine) == sorted(fine) and len(set(fine)) == 100
    assert CATALOG["tiny_imagenet"].classes is CATALOG["image_folder"].classes is None


@pytest.mark.parametrize(
    ("name", "title", "classes", "channels", "side", "megabytes"),
    [
        ("fashion_mnist", "Fashion-MNIST", 10, 1, 28, 30.878645),
        ("cifar10", "CIFAR-10", 10, 3, 32, 170.498071),
        ("cifar100", "CIFAR-100", 100, 3, 32, 169.001437),
        ("tiny_imagenet", "Tiny ImageNet", 200, 3, 64, 248.100043),
        ("image_folder", "Image folder", None, 3, None, 0.0),
    ],
)
def test_numbers_are_those_of_the_makers(
    name: str, title: str, classes: int | None, channels: int, side: int | None, megabytes: float
) -> None:
    entry = CATALOG[name]
    assert (entry.name, entry.title) == (name, title)
    assert (entry.num_classes, entry.channels, entry.native_size) == (classes, channels, side)
    assert entry.download_bytes == round(megabytes * 1e6)
    assert entry.classes is None or len(entry.classes) == classes


def test_files_sizes_and_checksums_are_the_published_ones() -> None:
    """Sources: the table in Fashion-MNIST's readme, and the zip of Tiny ImageNet, which torchvision lacks."""
    fashion = {file.name: (file.bytes, file.md5) for file in CATALOG["fashion_mnist"].files}
    assert fashion == {
        "train-images-idx3-ubyte.gz": (26_421_880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        "train-labels-idx1-ubyte.gz": (29_515, "25c81989df183df01b3e8a0aad5dffbe"),
        "t10k-images-idx3-ubyte.gz": (4_422_102, "bef4ecab320f06d8554ea6380940ec79"),
        "t10k-labels-idx1-ubyte.gz": (5_148, "bb300cfdad3c16e7a12a480ee83cd310"),
    }
    # Of the unpacked arrays; the files in Debian's package give the same (`zcat FILE | md5sum`).
    assert [file.content_md5 for file in CATALOG["fashion_mnist"].files] == [
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    ]
    (tiny,) = CATALOG["tiny_imagenet"].files
    assert (tiny.name, tiny.md5) == ("tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de")
    for entry in CATALOG.values():
        for file in entry.files:
            assert file.urls and all(url.endswith(f"/{file.name}") for url in file.urls)
    package = CATALOG["fashion_mnist"].distribution_package
    assert package == "dataset-fashion-mnist"
