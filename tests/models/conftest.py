"""Fixtures for small models, whose weights hide no term of the forward pass behind a zero."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

Scrambler = Callable[[nn.Module], nn.Module]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Use one thread; at this size, several only slow each other down."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def scramble() -> Scrambler:
    """A function that adds noise to every parameter: initial biases, norms and tables test too little."""

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
    """Deterministic dropout: in training, each channel is multiplied by its own factor.

    Returns the function that scales a tensor; every `nn.Dropout` with a rate above zero applies it. All
    tokens get the same factors, so that their order does not matter.
    """

    def scale(x: Tensor) -> Tensor:
        return x * torch.linspace(0.5, 1.5, x.shape[-1], dtype=x.dtype)

    def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return scale(x) if training and p > 0 else x

    monkeypatch.setattr("torch.nn.functional.dropout", dropout)
    return scale
