"""Dynamic batching: requests that wait form the next batch, and one that fails does not fail the others."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from neuscale.serving.batcher import Batcher, Busy


class Model:
    """Doubles each image's sum; each call waits until the test opens the gate."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.gate = threading.Event()
        self.entered = threading.Event()

    def __call__(self, images: Tensor) -> Tensor:
        self.entered.set()
        assert self.gate.wait(10)
        self.sizes.append(len(images))
        if (images == 13).any():
            raise ValueError("thirteen")
        return images.flatten(1).sum(1, keepdim=True) * 2


def images(*values: int) -> list[Tensor]:
    return [torch.full((1, 1, 1), value) for value in values]


def with_batcher(
    model: Model, act: Callable[[Batcher], Awaitable[Any]], max_batch: int = 4, max_waiting: int = 100
) -> Any:
    async def run() -> Any:
        async with Batcher(model, max_batch, max_waiting) as batcher:
            return await asyncio.wait_for(act(batcher), 20)

    return asyncio.run(run())


async def first_in_the_model(batcher: Batcher, model: Model) -> "asyncio.Task[Tensor]":
    """A request that the model is computing, so that later ones wait."""
    task = asyncio.create_task(batcher.logits(images(1)[0]))
    while not model.entered.is_set():
        await asyncio.sleep(0.001)
    return task


def test_requests_that_wait_form_batches_and_each_gets_its_own_answer() -> None:
    model = Model()

    async def act(batcher: Batcher) -> list[Tensor]:
        first = await first_in_the_model(batcher, model)
        others = [asyncio.create_task(batcher.logits(image)) for image in images(*range(2, 12))]
        await asyncio.sleep(0.01)
        model.gate.set()
        return await asyncio.gather(first, *others)

    answers = with_batcher(model, act)
    assert [int(answer) for answer in answers] == [2 * value for value in range(1, 12)]
    assert model.sizes == [1, 4, 4, 2]


def test_a_batch_that_fails_fails_its_own_requests_only() -> None:
    """Requests of later batches are answered, and the batcher goes on."""
    model = Model()

    async def act(batcher: Batcher) -> list[Any]:
        first = await first_in_the_model(batcher, model)
        others = [asyncio.create_task(batcher.logits(image)) for image in images(2, 13, 3, 4)]
        await asyncio.sleep(0.01)
        model.gate.set()
        return await asyncio.gather(first, *others, return_exceptions=True)

    answers = with_batcher(model, act, max_batch=2)
    assert [str(answer) for answer in answers if isinstance(answer, ValueError)] == ["thirteen"] * 2
    assert [int(answers[i]) for i in (0, 3, 4)] == [2, 6, 8]


@pytest.mark.parametrize("broken", ["rows", "stop"])
def test_a_model_that_breaks_its_promise_fails_that_batch_and_no_later_one(broken: str) -> None:
    """Another number of rows, and a StopIteration, which asyncio cannot hand on."""

    def run(images: Tensor) -> Tensor:
        if (images == 13).any():
            return next(iter(())) if broken == "stop" else images[:0]
        return images.flatten(1).float()

    async def act() -> None:
        async with Batcher(run, 1, 10) as batcher:
            with pytest.raises((RuntimeError, ValueError)):
                await asyncio.wait_for(batcher.logits(images(13)[0]), 10)
            assert int(await asyncio.wait_for(batcher.logits(images(4)[0]), 10)) == 4
            assert batcher.works

    asyncio.run(act())


def test_a_full_queue_turns_requests_away_at_once() -> None:
    model = Model()

    async def act(batcher: Batcher) -> None:
        first = await first_in_the_model(batcher, model)
        waiting = [asyncio.create_task(batcher.logits(image)) for image in images(2, 3)]
        await asyncio.sleep(0.01)
        with pytest.raises(Busy):
            await batcher.logits(images(4)[0])
        model.gate.set()
        assert [int(answer) for answer in await asyncio.gather(first, *waiting)] == [2, 4, 6]
        assert int(await batcher.logits(images(4)[0])) == 8

    with_batcher(model, act, max_waiting=2)


def test_requests_given_up_while_they_wait_are_not_computed() -> None:
    model = Model()

    async def act(batcher: Batcher) -> Tensor:
        first = await first_in_the_model(batcher, model)
        gone = asyncio.create_task(batcher.logits(images(13)[0]))
        kept = asyncio.create_task(batcher.logits(images(5)[0]))
        await asyncio.sleep(0.01)
        gone.cancel()
        first.cancel()  # the one in the model, too
        await asyncio.sleep(0)
        model.gate.set()
        return await kept

    assert int(with_batcher(model, act)) == 10
    assert model.sizes == [1, 1]
