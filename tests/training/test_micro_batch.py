"""Split of a process's images of a step into micro-batches."""

from collections.abc import Callable

import pytest
import torch

from neuscale.data.loaders.loader import Batch
from neuscale.errors import UsageError
from neuscale.training.accumulation import accumulation_steps, next_accumulation_steps
from neuscale.training.trainer import Trainer

TrainerBuilder = Callable[..., Trainer]


def test_a_number_of_images_makes_so_many_micro_batches_of_a_process() -> None:
    assert accumulation_steps("4", 24, 2) == 3
    assert accumulation_steps("12", 24, 2) == 1
    assert accumulation_steps("500", 24, 2) == 1
    assert accumulation_steps("auto", 24, 2) == 1


def test_where_memory_runs_out_the_next_divisor_is_taken() -> None:
    assert [next_accumulation_steps(12, parts) for parts in (1, 2, 4, 12)] == [2, 4, 12, None]
    assert [next_accumulation_steps(9, parts) for parts in (1, 3, 9)] == [3, 9, None]
    assert next_accumulation_steps(7, 1) == 7


def test_pieces_are_the_rows_of_the_batches_in_their_order() -> None:
    rows = torch.arange(12)
    images = rows.view(12, 1, 1, 1).float()
    whole = [
        Batch(images[i : i + 6], rows[i : i + 6], rows[i : i + 6] + 100, 4, slice(50 + i, 56 + i))
        for i in (0, 6)
    ]
    pieces = [piece for batch in whole for piece in batch.split(3)]
    assert [piece.labels.tolist() for piece in pieces] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]
    for piece in pieces:
        assert piece.images.flatten().tolist() == piece.labels.tolist()
        assert (piece.samples - 100).tolist() == piece.labels.tolist()
        assert list(range(piece.positions.start, piece.positions.stop)) == (piece.labels + 50).tolist()
        assert piece.epoch == 4
        assert piece.mix_weights is None and piece.partner_labels is None


def test_pieces_of_mixed_images_keep_their_partners() -> None:
    rows = torch.arange(6)
    whole = Batch(torch.zeros(6, 1, 1, 1), rows, rows, 0, slice(0, 6), rows + 10, rows / 8)
    pieces = whole.split(2)
    assert [piece.partner_labels.tolist() for piece in pieces] == [[10, 11, 12], [13, 14, 15]]  # type: ignore[union-attr]
    assert [piece.mix_weights.tolist() for piece in pieces] == [[0.0, 0.125, 0.25], [0.375, 0.5, 0.625]]  # type: ignore[union-attr]


def test_batch_norm_is_not_trained_on_one_image(build_trainer: TrainerBuilder) -> None:
    """BatchNorm's statistics would be those of the one image; a frozen layer uses its own."""
    words = ["model=torchvision", "model.arch=mobilenet_v3_small", "data.image_size=32"]
    with pytest.raises(UsageError, match=r"BatchNorm \(features\.0\.1\), which needs several images"):
        build_trainer(*words, "train.global_batch_size=1")
    with pytest.raises(UsageError, match="a part has one"):
        build_trainer(*words, "train.global_batch_size=4", "train.micro_batch=1")
    build_trainer(*words, "train.global_batch_size=4", "train.micro_batch=2")
    build_trainer(*words, "train.global_batch_size=1", "train.linear_probe=true")
    build_trainer("train.global_batch_size=1")
