"""Choice of a run's loader by the size of the images and the memory that they may take."""

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from neuscale.config.schema import AugmentConfig, DataConfig
from neuscale.data.formats.image_list import ListedDataset
from neuscale.data.formats.packed import PackedDataset
from neuscale.data.loaders import choose
from neuscale.data.loaders.choose import Choice, check_augment, choose_loader, create_loader
from neuscale.data.loaders.image_files import FileLoader
from neuscale.data.loaders.resident import ResidentLoader
from neuscale.data.loaders.streaming import StreamLoader
from neuscale.distributed.rank import Rank
from neuscale.errors import UsageError

CPU = torch.device("cpu")
TRAIN, VAL = 400_000, 100_000  # images of 3 · 64 · 64 = 12,288 bytes: 6,144,000,000 in total


def images(split: str) -> object:
    """Return an array of the size of these images that takes no memory."""
    return np.broadcast_to(np.uint8(0), ({"train": TRAIN, "val": VAL}[split], 3, 64, 64))


LARGE = cast(PackedDataset, SimpleNamespace(images=images))
SIZE = 6_144_000_000


@pytest.mark.parametrize(
    ("memory", "share", "kind"),
    [
        (2 * SIZE, 0.5, "resident"),  # exactly the limit
        (2 * SIZE - 2, 0.5, "stream"),
        (4 * SIZE, 0.25, "resident"),
        (4 * SIZE, 0.2, "stream"),
        (SIZE, 1.0, "resident"),
        (SIZE - 1, 1.0, "stream"),
    ],
)
def test_images_stay_on_the_device_up_to_their_share_of_its_memory(
    memory: int, share: float, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "device_memory", lambda _: memory)
    assert choose_loader(DataConfig(name="x", memory_share=share), LARGE, CPU).kind == kind


def test_half_of_the_memory_is_what_images_may_take_unless_one_says_otherwise() -> None:
    assert DataConfig(name="x").memory_share == 0.5
    assert DataConfig(name="x").loader == "auto"


@pytest.mark.parametrize(("device", "where"), [("cpu", "this machine"), ("cuda", "the device")])
def test_the_reason_gives_the_sizes_that_were_compared(
    device: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(choose, "device_memory", lambda of: asked.append(of) or 10_000_000_000)
    config = DataConfig(name="x", memory_share=0.75)
    sizes = f"6.1 GB of images, 7.5 GB allowed (0.75 of the 10.0 GB on {where})"
    assert choose_loader(config, LARGE, torch.device(device)) == Choice("resident", sizes)
    assert asked == [torch.device(device)]
    config.loader = "stream"
    chosen = choose_loader(config, LARGE, torch.device(device))
    assert chosen == Choice("stream", f"data.loader=stream; {sizes}")


def test_small_sizes_are_in_megabytes(
    both: tuple[PackedDataset, ListedDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """81 images of 432 bytes are shown as 0.0 MB."""
    monkeypatch.setattr(choose, "device_memory", lambda _: 99_000_000)
    reason = choose_loader(DataConfig(name="noise", memory_share=1.0), both[0], CPU).reason
    assert reason == "0.0 MB of images, 99.0 MB allowed (1 of the 99.0 MB on this machine)"


def test_the_loader_that_is_made_is_the_chosen_one_for_the_split_and_the_share(
    both: tuple[PackedDataset, ListedDataset],
) -> None:
    packed, listed = both
    config = DataConfig(name="noise", image_size=10, workers=3)
    share = Rank(1, 3)
    for data, kind, made in (
        (packed, "resident", ResidentLoader),
        (packed, "stream", StreamLoader),
        (listed, "files", FileLoader),
    ):
        for split, count in (("train", 60), ("val", 21)):
            loader = create_loader(Choice(kind, ""), config, data, split, CPU, share)
            assert type(loader) is made and loader.kind == kind
            assert (len(loader), loader.size, loader.rank, loader.device) == (count, 10, share, CPU)
    assert isinstance(loader, FileLoader) and loader.workers == 3


@pytest.mark.parametrize("wanted", ["resident", "stream"])
def test_what_is_asked_for_is_what_one_gets(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "device_memory", lambda _: SIZE)
    assert choose_loader(DataConfig(name="x", loader=wanted), LARGE, CPU).kind == wanted


def test_only_a_resized_crop_needs_the_files() -> None:
    for kind in ("resident", "stream", "files"):
        check_augment(AugmentConfig(crop_padding=4), Choice(kind, ""))
    check_augment(AugmentConfig(resized_crop=0.3), Choice("files", ""))
    for kind in ("resident", "stream"):
        with pytest.raises(UsageError):
            check_augment(AugmentConfig(resized_crop=0.3), Choice(kind, ""))


def test_the_advice_to_pack_has_the_folder_and_the_size(both: tuple[PackedDataset, ListedDataset]) -> None:
    with pytest.raises(UsageError) as caught:
        choose_loader(DataConfig(name="noise", loader="resident"), both[1], CPU)
    assert f"--source {both[1].files_folder} --size 12 --save-as noise" in caught.value.fix
