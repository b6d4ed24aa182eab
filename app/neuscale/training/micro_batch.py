"""Into how many parts a process cuts its share of a global batch, and what to do when memory runs out."""

from collections.abc import Iterator
from dataclasses import fields

from torch import Tensor

from neuscale.data.loader import Batch
from neuscale.errors import UsageError


def accumulation_steps(micro_batch: str, global_batch_size: int, processes: int) -> int:
    """The parts of a process's share for `train.micro_batch`, "auto" or a number of images.

    Raises UsageError where it is neither, or does not divide the share.
    """
    share = global_batch_size // processes
    if micro_batch == "auto":
        return 1
    if not micro_batch.isascii() or not micro_batch.isdigit() or int(micro_batch) == 0:
        raise UsageError(f"train.micro_batch={micro_batch}: expected auto or a whole number of at least 1.")
    size = min(int(micro_batch), share)
    if share % size:
        near = max(n for n in range(1, size) if share % n == 0)
        raise UsageError(
            f"train.micro_batch={micro_batch} does not divide a process's {share} images of a step.",
            f"The nearest below that does: train.micro_batch={near}.",
        )
    return share // size


def smaller(share: int, parts: int) -> int | None:
    """The next larger number of parts that divides a share and its parts; None where each is one image."""
    size = share // parts
    for divisor in range(2, size + 1):
        if size % divisor == 0:
            return parts * divisor
    return None


def split(batches: list[Batch], parts: int) -> Iterator[Batch]:
    """`batches` cut into `parts` in all, in the same order; `parts` is a multiple of their number."""
    each = parts // len(batches)
    for batch in batches:
        size = len(batch.labels) // each
        for first in range(0, len(batch.labels), size):
            yield _piece(batch, slice(first, first + size))


def _piece(batch: Batch, rows: slice) -> Batch:
    values: dict[str, Tensor | None] = {field.name: getattr(batch, field.name) for field in fields(Batch)}
    return Batch(**{name: value[rows] if value is not None else None for name, value in values.items()})  # type: ignore[arg-type]
