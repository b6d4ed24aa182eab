"""Small models, and weights under which no term of the forward is hidden by a zero."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

Scrambler = Callable[[nn.Module], nn.Module]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """More threads than one only get in each other's way at this size."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def scramble() -> Scrambler:
    """A function that adds noise to every parameter: fresh biases, norms and tables say too little."""

    def add_noise(model: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                scale = 1.0 if "bias_table" in name or "pos_embedding" in name else 0.1
                parameter += scale * torch.randn(parameter.shape, generator=generator).to(parameter)
        return model

    return add_noise


@pytest.fixture
def dropout_by_channel(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tensor], Tensor]:
    """Dropout without chance: in training, each channel is multiplied by a number of its own.

    Returns what is done to a tensor, and has every `nn.Dropout` of a rate above zero do it. All tokens get
    the same, so that it does not matter in which order they stand.
    """

    def scale(x: Tensor) -> Tensor:
        return x * torch.linspace(0.5, 1.5, x.shape[-1], dtype=x.dtype)

    def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return scale(x) if training and p > 0 else x

    monkeypatch.setattr("torch.nn.functional.dropout", dropout)
    return scale
