"""Shared by the tests of the ops: skipping without a GPU, and torch's number of threads."""

from collections.abc import Callable, Iterator

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked gpu, with the reason, if no GPU is available."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU that this torch can use"))


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Function that sets torch's number of threads; the fixture restores it after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
