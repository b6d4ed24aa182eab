"""Initial weights depend only on run.seed, not on what torch's generator drew before."""

from collections.abc import Callable

import torch

from neuscale.config import Config
from neuscale.training.run import train
from reference.recording import recorded


def test_each_seed_has_weights_of_its_own_and_always_the_same(tiny: Callable[..., Config]) -> None:
    def first_weights(seed: int, name: str) -> dict[str, torch.Tensor]:
        with recorded() as recording:
            train(tiny("train.max_steps=1", "train.epochs=1", f"run.seed={seed}", f"run.name={name}"))
        return recording.weights[0]

    zero, again, one = first_weights(0, "zero"), first_weights(0, "again"), first_weights(1, "one")
    for name, value in zero.items():
        assert torch.equal(value, again[name]), name
        is_drawn = bool(value.std(unbiased=False) > 0)
        assert is_drawn != torch.equal(value, one[name]), name
