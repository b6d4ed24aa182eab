"""Resident, stream and files: the same batches to the last bit, whatever brings the bytes."""

import dataclasses
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from neuscale.config.schema import AugmentConfig, DataConfig
from neuscale.data import choose
from neuscale.data.augment import Rows
from neuscale.data.choose import check_augment, choose_loader, create_loader
from neuscale.data.file_loader import FileLoader
from neuscale.data.listed import ListedDataset
from neuscale.data.listed_writer import list_images
from neuscale.data.loader import Batch, Loader, Request, Share
from neuscale.data.packed import PackedDataset
from neuscale.data.prepare import prepare
from neuscale.data.resident import ResidentLoader
from neuscale.data.resized_crop import draw_windows, window_pixels
from neuscale.data.stream import GROUP, StreamLoader
from neuscale.errors import DataError, UsageError, UserError

CPU = torch.device("cpu")
MIXED = AugmentConfig(crop_padding=2, horizontal_flip=0.5, erasing=0.5, mixup_alpha=0.8, cutmix_alpha=1.0)


@pytest.fixture(scope="module")
def both(
    build_image_tree: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[PackedDataset, ListedDataset]:
    """The same images, of different sizes as files, packed at 12 pixels and listed at 12 pixels."""
    folder = tmp_path_factory.mktemp("images")
    tree = build_image_tree(folder / "tree", train=20, val=7, size=(40, 30))
    packed = prepare("image_folder", root=folder / "data", source=tree, size=12, save_as="noise")
    listed = list_images("image_folder", root=folder / "data", source=tree, size=12, save_as="noise")
    return packed, listed


def loaders(
    both: tuple[PackedDataset, ListedDataset], split: str, share: Share, workers: int = 0
) -> dict[str, Loader]:
    packed, listed = both
    return {
        "resident": ResidentLoader(packed, split, None, CPU, share),
        "stream": StreamLoader(packed, split, None, CPU, share),
        "files": FileLoader(listed, split, None, CPU, share, workers),
    }


def assert_same(ones: list[Batch], others: list[Batch]) -> None:
    assert len(ones) == len(others) > 0
    for one, other in zip(ones, others, strict=True):
        for field in dataclasses.fields(Batch):
            a, b = getattr(one, field.name), getattr(other, field.name)
            assert (a is None and b is None) or torch.equal(a, b), field.name


def flat(steps: Iterator[list[Batch]]) -> list[Batch]:
    return [batch for step in steps for batch in step]


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 99),
    epoch=st.integers(0, 5),
    first=st.integers(0, 4),
    split=st.sampled_from([(1, 1), (2, 1), (3, 2), (4, 1), (1, 4)]),
    mixed=st.booleans(),
)
def test_all_loaders_give_the_same_batches(
    both: tuple[PackedDataset, ListedDataset],
    seed: int,
    epoch: int,
    first: int,
    split: tuple[int, int],
    mixed: bool,
) -> None:
    processes, accumulation = split
    augment = MIXED if mixed else AugmentConfig(crop_padding=2, horizontal_flip=0.5)
    for rank in {0, processes - 1}:
        batches = {
            kind: flat(loader.training(augment, seed, epoch, first, 5, 12, accumulation))
            for kind, loader in loaders(both, "train", Share(rank, processes)).items()
        }
        assert_same(batches["resident"], batches["stream"])
        assert_same(batches["resident"], batches["files"])


def test_processes_that_decode_change_no_pixel(both: tuple[PackedDataset, ListedDataset]) -> None:
    resident, files = (loaders(both, "train", Share(), workers=3)[kind] for kind in ("resident", "files"))
    assert_same(flat(resident.training(MIXED, 1, 2, 0, 5, 12)), flat(files.training(MIXED, 1, 2, 0, 5, 12)))


@pytest.mark.parametrize("processes", [1, 2, 5, 30])
def test_evaluation_sees_the_same_in_all_of_them(
    both: tuple[PackedDataset, ListedDataset], processes: int
) -> None:
    for rank in range(processes):
        made = loaders(both, "val", Share(rank, processes))
        batches = {kind: list(loader.evaluation(4)) for kind, loader in made.items()}
        assert len(batches["resident"]) == len(batches["stream"]) == len(batches["files"])
        if batches["resident"]:
            assert_same(batches["resident"], batches["stream"])
            assert_same(batches["resident"], batches["files"])


def test_the_stream_reads_ahead_but_not_without_end(
    both: tuple[PackedDataset, ListedDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the model computes, the next batches are read, and no more than there are buffers for."""
    read: list[int] = []
    touch = StreamLoader._touch

    def counted(self: StreamLoader, samples: NDArray[np.int64]) -> None:
        read.append(len(samples))
        touch(self, samples)

    monkeypatch.setattr(StreamLoader, "_touch", counted)
    batches = StreamLoader(both[0], "train", None, CPU, Share()).training(AugmentConfig(), 0, 0, 0, 20, 3)
    next(batches)
    deadline = time.monotonic() + 20
    while sum(read) < 3 * 2 * GROUP and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert sum(read) == 3 * 2 * GROUP
    batches.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("stream")]


def test_an_error_while_reading_ahead_reaches_the_one_who_trains(
    both: tuple[PackedDataset, ListedDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(StreamLoader, "_touch", broken)
    loader = StreamLoader(both[0], "train", None, CPU, Share())
    with pytest.raises(OSError, match="Input/output"):
        next(loader.training(AugmentConfig(), 0, 0, 0, 5, 12))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_changed_or_went_is_named(
    build_image_tree: Callable[..., Path], tmp_path: Path, workers: int
) -> None:
    tree = build_image_tree(tmp_path / "tree", train=6, val=2, size=(20, 20))
    data = list_images("image_folder", root=tmp_path / "data", source=tree, size=8)
    victim = tree / data.files("train")[3].name
    kept = victim.read_bytes()
    for damage, reason in (
        (None, "No such file"),
        (kept[:-40], "changed after"),
        (b"\xff" * len(kept), "image"),
    ):
        victim.unlink() if damage is None else victim.write_bytes(damage)
        loader = FileLoader(data, "train", None, CPU, Share(), workers)
        with pytest.raises(DataError, match=rf"(?s){victim.name}.*{reason}") as caught:
            list(loader.evaluation(4))
        assert caught.value.fix
        assert data.verify() == [data.files("train")[3].name]
        victim.write_bytes(kept)
    assert data.verify() == []


def test_a_killed_decoder_is_an_error_with_a_remedy(both: tuple[PackedDataset, ListedDataset]) -> None:
    code = """
import os, sys, signal
from pathlib import Path
import torch
from neuscale.data.file_loader import FileLoader
from neuscale.data.listed import ListedDataset
from neuscale.data.loader import Share
from neuscale.errors import UserError
import multiprocessing, time
data = ListedDataset.open(Path(sys.argv[1]))
batches = FileLoader(data, "train", None, torch.device("cpu"), Share(), 2).evaluation(1)
next(batches), next(batches)  # one of each: both have begun
for child in multiprocessing.active_children():
    os.kill(child.pid, signal.SIGTERM)  # a job's signal is the parent's business
next(batches)
for child in multiprocessing.active_children():
    os.kill(child.pid, signal.SIGKILL)
try:
    list(batches)
except UserError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(both[1].folder)], capture_output=True, text=True, timeout=120
    )
    assert "data.workers=1" in done.stdout, done.stderr


@pytest.mark.parametrize("error", [EOFError, ConnectionResetError, ConnectionRefusedError, FileNotFoundError])
def test_a_decoder_killed_while_it_hands_over_a_batch(
    both: tuple[PackedDataset, ListedDataset], monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """The memory of a batch is fetched from its process by a socket, which breaks in one of these ways."""

    def broken(*_: object, **__: object) -> None:
        raise error("on the socket")

    batches = "torch.utils.data.dataloader._MultiProcessingDataLoaderIter"
    monkeypatch.setattr(f"{batches}._try_get_data", broken)
    with pytest.raises(UserError, match=r"(?s)was killed.*data\.workers=1"):
        list(FileLoader(both[1], "train", None, CPU, Share(), 2).evaluation(5))


def test_too_little_shared_memory_is_said_before_a_worker_dies_of_it(
    both: tuple[PackedDataset, ListedDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs("/dev/shm")
    small = os.statvfs_result([real[0], real[1], *[0] * 2, 1, *real[5:10]])
    monkeypatch.setattr(os, "statvfs", lambda _: small)
    with pytest.raises(UserError, match=r"(?s)/dev/shm.*data\.workers=\d"):
        next(FileLoader(both[1], "train", None, CPU, Share(), 64).evaluation(60))


def test_the_choice_follows_from_size_and_memory_and_says_so(
    both: tuple[PackedDataset, ListedDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, listed = both
    monkeypatch.setattr(choose, "device_memory", lambda _: 80_000)  # the images have 34,992 bytes
    config = DataConfig(name="noise", memory_share=0.5)
    assert choose_loader(config, packed, CPU).kind == "resident"
    config.memory_share = 0.4
    choice = choose_loader(config, packed, CPU)
    assert choice.kind == "stream"
    assert "0.4 of the" in choice.reason
    config.loader = "resident"
    assert choose_loader(config, packed, CPU).kind == "resident"
    config.loader = "auto"
    assert choose_loader(config, listed, CPU).kind == "files"
    assert isinstance(create_loader(choice, config, packed, "val", CPU, Share()), StreamLoader)
    config.loader = "stream"
    with pytest.raises(UsageError, match=r"(?s)kept as image files.*--save-as noise"):
        choose_loader(config, listed, CPU)


def test_a_random_resized_crop_wants_the_files(both: tuple[PackedDataset, ListedDataset]) -> None:
    packed, listed = both
    config, augment = DataConfig(name="noise"), AugmentConfig(resized_crop=0.08)
    check_augment(augment, choose_loader(config, listed, CPU))
    with pytest.raises(UsageError, match=r"augment\.resized_crop"):
        check_augment(augment, choose_loader(config, packed, CPU))


def test_random_resized_crops_show_the_window_that_was_drawn(tmp_path: Path) -> None:
    """Of images whose colour is their place, the crop's colours tell where it was cut."""
    height, width = 90, 120
    ramp = np.zeros((height, width, 3), dtype=np.uint8)
    ramp[:, :, 0] = np.arange(height)[:, None] * 2
    ramp[:, :, 1] = np.arange(width)[None, :] * 2
    for split in ("train", "val"):
        (tmp_path / "tree" / split / "one").mkdir(parents=True)
        for i in range(8):
            Image.fromarray(ramp).save(tmp_path / "tree" / split / "one" / f"{i}.png")
    data = list_images("image_folder", root=tmp_path / "data", source=tmp_path / "tree", size=24)
    loader = FileLoader(data, "train", None, CPU, Share(), 0)
    [batch] = next(loader.training(AugmentConfig(resized_crop=0.3), 5, 1, 0, 1, 8))
    mean, std = (torch.tensor(x)[:, None, None] for x in (data.meta.mean, data.meta.std))
    pixels = (batch.images * std + mean) * 255
    windows = draw_windows(0.3, 5, 1, 8)
    for image, window in zip(pixels, windows, strict=True):
        top, left, h, w = window_pixels(window, height, width)
        assert 0.29 * height * width < h * w <= height * width
        assert image[0].mean() / 2 == pytest.approx(top + (h - 1) / 2, abs=0.7)
        assert image[1].mean() / 2 == pytest.approx(left + (w - 1) / 2, abs=0.7)
        assert (image[0, -1] - image[0, 0]).mean() / 2 == pytest.approx(h - h / 24, abs=1.5)


def test_listing_the_same_images_again_is_no_work_and_other_images_are_not_replaced(
    both: tuple[PackedDataset, ListedDataset], build_image_tree: Callable[..., Path], tmp_path: Path
) -> None:
    _, listed = both
    root = listed.folder.parent.parent
    before = (listed.folder / "meta.json").stat().st_mtime_ns
    again = list_images("image_folder", root=root, source=listed.files_folder, size=12, save_as="noise")
    assert again.meta.fingerprint == listed.meta.fingerprint
    assert (listed.folder / "meta.json").stat().st_mtime_ns == before
    other = build_image_tree(tmp_path / "other")
    with pytest.raises(DataError, match=r"(?s)lists .* already.*--force"):
        list_images("image_folder", root=root, source=other, save_as="noise")
    assert both[0].meta.mean == listed.meta.mean, "packed or listed, they are normalised alike"


def test_copied_batches_are_those_of_the_order_too(
    both: tuple[PackedDataset, ListedDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of a device of its own, on the one there is: buffers are used again and again."""
    packed, _ = both
    resident = ResidentLoader(packed, "train", None, CPU, Share())
    stream = StreamLoader(packed, "train", None, CPU, Share())

    def copied(requests: Iterable[Request]) -> Iterator[Rows]:
        for rows in stream._copied(requests):
            yield Rows(rows.images.clone())  # a device has memory of its own

    monkeypatch.setattr(stream, "_read", copied)
    assert_same(flat(resident.training(MIXED, 0, 0, 0, 20, 3)), flat(stream.training(MIXED, 0, 0, 0, 20, 3)))
