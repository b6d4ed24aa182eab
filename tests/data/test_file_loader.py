"""Batches from image files: damaged files, killed DataLoader workers, shared memory and random crops."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from neuscale.config.schema import AugmentConfig
from neuscale.data.augment.crops import draw_windows, window_pixels
from neuscale.data.formats.image_list import ListedDataset
from neuscale.data.formats.packed import PackedDataset
from neuscale.data.formats.write_image_list import list_images
from neuscale.data.loaders.image_files import FileLoader
from neuscale.distributed.rank import Rank
from neuscale.errors import DataError, UserError

CPU = torch.device("cpu")


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
        loader = FileLoader(data, "train", None, CPU, Rank(), workers)
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
from neuscale.data.loaders.image_files import FileLoader
from neuscale.data.formats.image_list import ListedDataset
from neuscale.distributed.rank import Rank
from neuscale.errors import UserError
import multiprocessing, time
data = ListedDataset.open(Path(sys.argv[1]))
batches = FileLoader(data, "train", None, torch.device("cpu"), Rank(), 2).evaluation(1)
next(batches), next(batches)  # one of each: both have begun
for child in multiprocessing.active_children():
    os.kill(child.pid, signal.SIGTERM)  # a job's signal is the parent's business
next(batches)
for child in multiprocessing.active_children():
    os.kill(child.pid, signal.SIGKILL)
time.sleep(1)  # a step of training: nothing is raised in the midst of it
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
    """The memory of a batch is fetched from its worker over a socket, which breaks in one of these ways."""

    def broken(*_: object, **__: object) -> None:
        raise error("on the socket")

    batches = "torch.utils.data.dataloader._MultiProcessingDataLoaderIter"
    monkeypatch.setattr(f"{batches}._try_get_data", broken)
    with pytest.raises(UserError, match=r"(?s)was killed.*data\.workers=1"):
        list(FileLoader(both[1], "train", None, CPU, Rank(), 2).evaluation(5))


def test_too_little_shared_memory_is_said_before_a_worker_dies_of_it(
    both: tuple[PackedDataset, ListedDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs("/dev/shm")
    small = os.statvfs_result([real[0], real[1], *[0] * 2, 1, *real[5:10]])
    monkeypatch.setattr(os, "statvfs", lambda _: small)
    with pytest.raises(UserError, match=r"(?s)/dev/shm.*data\.workers=\d"):
        next(FileLoader(both[1], "train", None, CPU, Rank(), 64).evaluation(60))


@pytest.mark.parametrize(("spare", "workers"), [(0, 8), (-1, 7)])
def test_shared_memory_is_counted_in_batches_of_bytes_that_are_on_their_way(
    both: tuple[PackedDataset, ListedDataset], monkeypatch: pytest.MonkeyPatch, spare: int, workers: int
) -> None:
    """Each worker holds two prefetched batches and one in progress: 15 images of 3·12·12 bytes each."""
    each = 3 * 15 * 3 * 12 * 12
    real = os.statvfs("/dev/shm")
    free = os.statvfs_result([1, 1, *[8 * each + spare] * 3, *real[5:10]])
    monkeypatch.setattr(os, "statvfs", lambda _: free)
    loader = FileLoader(both[1], "train", None, CPU, Rank(), 8)
    if not spare:
        loader._check_shared_memory(15)
        return
    with pytest.raises(UserError, match=rf"data\.workers={workers};"):
        loader._check_shared_memory(15)


def test_random_resized_crops_show_the_window_that_was_drawn(tmp_path: Path) -> None:
    """Colours encode positions, so the colours of a crop show where it was cut."""
    height, width = 90, 120
    ramp = np.zeros((height, width, 3), dtype=np.uint8)
    ramp[:, :, 0] = np.arange(height)[:, None] * 2
    ramp[:, :, 1] = np.arange(width)[None, :] * 2
    for split in ("train", "val"):
        (tmp_path / "tree" / split / "one").mkdir(parents=True)
        for i in range(8):
            Image.fromarray(ramp).save(tmp_path / "tree" / split / "one" / f"{i}.png")
    data = list_images("image_folder", root=tmp_path / "data", source=tmp_path / "tree", size=24)
    loader = FileLoader(data, "train", None, CPU, Rank(), 0)
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
