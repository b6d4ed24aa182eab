"""The resident, stream and file loaders give bit-identical batches."""

import dataclasses
import threading
import time
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from neuscale.config.schema import AugmentConfig, DataConfig
from neuscale.data.augment.crops import Rows
from neuscale.data.formats.image_list import ListedDataset
from neuscale.data.formats.packed import PackedDataset
from neuscale.data.loaders import choose
from neuscale.data.loaders.choose import check_augment, choose_loader, create_loader
from neuscale.data.loaders.image_files import FileLoader
from neuscale.data.loaders.loader import Batch, Loader, Request
from neuscale.data.loaders.resident import ResidentLoader
from neuscale.data.loaders.streaming import GROUP, StreamLoader
from neuscale.distributed.rank import Rank
from neuscale.errors import UsageError

CPU = torch.device("cpu")
MIXED = AugmentConfig(crop_padding=2, horizontal_flip=0.5, erasing=0.5, mixup_alpha=0.8, cutmix_alpha=1.0)


def loaders(
    both: tuple[PackedDataset, ListedDataset], split: str, share: Rank, workers: int = 0
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
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name


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
            for kind, loader in loaders(both, "train", Rank(rank, processes)).items()
        }
        assert_same(batches["resident"], batches["stream"])
        assert_same(batches["resident"], batches["files"])


def test_processes_that_decode_change_no_pixel(both: tuple[PackedDataset, ListedDataset]) -> None:
    resident, files = (loaders(both, "train", Rank(), workers=3)[kind] for kind in ("resident", "files"))
    assert_same(flat(resident.training(MIXED, 1, 2, 0, 5, 12)), flat(files.training(MIXED, 1, 2, 0, 5, 12)))


@pytest.mark.parametrize("processes", [1, 2, 5, 30])
def test_evaluation_sees_the_same_in_all_of_them(
    both: tuple[PackedDataset, ListedDataset], processes: int
) -> None:
    for rank in range(processes):
        made = loaders(both, "val", Rank(rank, processes))
        batches = {kind: list(loader.evaluation(4)) for kind, loader in made.items()}
        assert len(batches["resident"]) == len(batches["stream"]) == len(batches["files"])
        if batches["resident"]:
            assert_same(batches["resident"], batches["stream"])
            assert_same(batches["resident"], batches["files"])


def test_the_stream_reads_ahead_but_not_without_end(
    both: tuple[PackedDataset, ListedDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream prefetches batches while the model computes, but no more than it has buffers for."""
    read: list[int] = []
    touch = StreamLoader._touch

    def counted(self: StreamLoader, samples: NDArray[np.int64]) -> None:
        read.append(len(samples))
        touch(self, samples)

    monkeypatch.setattr(StreamLoader, "_touch", counted)
    batches = StreamLoader(both[0], "train", None, CPU, Rank()).training(AugmentConfig(), 0, 0, 0, 20, 3)
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
    loader = StreamLoader(both[0], "train", None, CPU, Rank())
    with pytest.raises(OSError, match="Input/output"):
        next(loader.training(AugmentConfig(), 0, 0, 0, 5, 12))


def test_the_choice_follows_from_size_and_memory_and_says_so(
    both: tuple[PackedDataset, ListedDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, listed = both
    monkeypatch.setattr(choose, "device_memory", lambda _: 80_000)  # the images take 34,992 bytes
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
    assert isinstance(create_loader(choice, config, packed, "val", CPU, Rank()), StreamLoader)
    config.loader = "stream"
    with pytest.raises(UsageError, match=r"(?s)kept as image files.*--save-as noise"):
        choose_loader(config, listed, CPU)


def test_a_random_resized_crop_wants_the_files(both: tuple[PackedDataset, ListedDataset]) -> None:
    packed, listed = both
    config, augment = DataConfig(name="noise"), AugmentConfig(resized_crop=0.08)
    check_augment(augment, choose_loader(config, listed, CPU))
    with pytest.raises(UsageError, match=r"augment\.resized_crop"):
        check_augment(augment, choose_loader(config, packed, CPU))


def test_copied_batches_are_those_of_the_order_too(
    both: tuple[PackedDataset, ListedDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy path of a GPU, run on the CPU, reuses its buffers and gives the same batches."""
    packed, _ = both
    resident = ResidentLoader(packed, "train", None, CPU, Rank())
    stream = StreamLoader(packed, "train", None, CPU, Rank())

    def copied(requests: Iterable[Request]) -> Iterator[Rows]:
        for rows in stream._copied(requests):
            yield Rows(rows.images.clone())  # a GPU would have its own copy

    monkeypatch.setattr(stream, "_read", copied)
    assert_same(flat(resident.training(MIXED, 0, 0, 0, 20, 3)), flat(stream.training(MIXED, 0, 0, 0, 20, 3)))
