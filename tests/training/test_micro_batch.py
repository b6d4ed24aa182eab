"""How a process's images of a step are cut into micro-batches."""

import torch

from neuscale.data.loader import Batch
from neuscale.training.micro_batch import accumulation_steps, smaller, split


def test_a_number_of_images_makes_so_many_micro_batches_of_a_process() -> None:
    assert accumulation_steps("4", 24, 2) == 3
    assert accumulation_steps("12", 24, 2) == 1
    assert accumulation_steps("500", 24, 2) == 1
    assert accumulation_steps("auto", 24, 2) == 1


def test_where_memory_runs_out_the_next_divisor_is_taken() -> None:
    assert [smaller(12, parts) for parts in (1, 2, 4, 12)] == [2, 4, 12, None]
    assert [smaller(9, parts) for parts in (1, 3, 9)] == [3, 9, None]
    assert smaller(7, 1) == 7


def test_pieces_are_the_rows_of_the_batches_in_their_order() -> None:
    rows = torch.arange(12)
    images = rows.view(12, 1, 1, 1).float()
    whole = [Batch(images[i : i + 6], rows[i : i + 6], rows[i : i + 6] + 100) for i in (0, 6)]
    pieces = list(split(whole, 6))
    assert [piece.labels.tolist() for piece in pieces] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]
    for piece in pieces:
        assert piece.images.flatten().tolist() == piece.labels.tolist()
        assert (piece.samples - 100).tolist() == piece.labels.tolist()
        assert piece.shares is None
