"""Initial weights: each parameter has its distribution, and no two parameters share random values.

Tolerances are five standard errors for the parameter's number of values.
"""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from neuscale.config import compose_config
from neuscale.models.layers import MLP, init_linear
from neuscale.models.registry import create_model

SWIN = ["model=swin_nano", "model.embed_dim=32", "model.depths=[2,1]", "model.num_heads=[2,4]"]
VIT = ["model=vit_ti4", "model.patch_size=2", "model.hidden_dim=48", "model.num_layers=2"]
WORDS = {"swin": SWIN, "vit": VIT}


def build(kind: str, seed: int = 3) -> nn.Module:
    return create_model(compose_config(WORDS[kind]).model, 16, 3, 7, seed)


def assert_normal(x: Tensor, std: float) -> None:
    """Assert mean 0, this standard deviation, and 68 % of values within it, unlike a uniform distribution."""
    n, x = x.numel(), x.detach().double()
    assert abs(x.mean().item()) < 5 * std / n**0.5
    assert x.square().mean().sqrt().item() == pytest.approx(std, rel=5 / (2 * n) ** 0.5)
    within = (x.abs() < std).double().mean().item()
    assert within == pytest.approx(math.erf(0.5**0.5), abs=5 * (0.683 * 0.317 / n) ** 0.5)


def assert_uniform(x: Tensor, bound: float) -> None:
    """Assert values from -bound to bound that reach these edges, with half of them in the inner half."""
    n, x = x.numel(), x.detach().double()
    assert x.abs().max().item() <= bound * (1 + 1e-6)
    assert x.abs().max().item() > bound * (1 - 10 / n)
    assert (x.abs() < bound / 2).double().mean().item() == pytest.approx(0.5, abs=5 * 0.5 / n**0.5)
    assert abs(x.mean().item()) < 5 * bound / 3**0.5 / n**0.5


def assert_constant(x: Tensor, value: float) -> None:
    assert (x == value).all()


def check(kind: str, name: str, x: Tensor) -> None:
    """Check a parameter's initialisation against both papers, or torchvision where they do not specify it."""
    last = name.rpartition(".")[2]
    if name == "features.0.0.weight" or name == "features.0.0.bias":
        assert_uniform(x, (3 * 4 * 4) ** -0.5)  # torch's default for a convolution: 1 / sqrt(fan-in)
    elif name == "conv_proj.weight":
        assert_normal(x, (3 * 2 * 2) ** -0.5)
    elif name == "class_token":
        assert_constant(x, 0)
    elif last == "in_proj_weight":
        assert x.shape == (144, 48)
        assert_uniform(x, (6 / (48 + 144)) ** 0.5)  # Glorot and Bengio 2010, equation 16
    elif last in ("relative_position_bias_table", "pos_embedding"):
        assert_normal(x, 0.02)
    elif last in ("bias", "in_proj_bias"):
        assert_constant(x, 0)
    elif x.dim() == 1:
        assert_constant(x, 1)  # the norms
    else:
        assert x.dim() == 2, f"{name} is not known to this test"
        assert_normal(x, 0.02)


@pytest.mark.parametrize("kind", WORDS)
def test_each_parameter_starts_with_its_own_distribution(kind: str) -> None:
    for name, parameter in build(kind).named_parameters():
        try:
            check(kind, name, parameter)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


@pytest.mark.parametrize("channels", [1, 3])
def test_a_vits_patches_are_scaled_to_their_number_of_inputs(channels: int) -> None:
    """The fan-in is channels times pixels: for standardised pixels, each output has variance 1."""
    words = [*VIT, "model.patch_size=8"]
    model = create_model(compose_config(words).model, 16, channels, 7, 0)
    assert_normal(model.get_parameter("conv_proj.weight"), (channels * 64) ** -0.5)


def fingerprints(model: nn.Module) -> dict[str, Tensor]:
    """First 32 values of each randomly initialised parameter, standardised."""
    first = {name: p.detach().flatten()[:32] for name, p in model.named_parameters()}
    return {
        name: (values - values.mean()) / values.std()
        for name, values in first.items()
        if len(values) == 32 and values.std() > 0
    }


@pytest.mark.parametrize("kind", WORDS)
def test_no_two_layers_start_alike(kind: str) -> None:
    found = fingerprints(build(kind))
    assert len(found) >= 11
    for (a, x), (b, y) in itertools.combinations(found.items(), 2):
        assert abs((x * y).mean().item()) < 0.9, f"{a} and {b} are drawn from the same numbers"


@pytest.mark.parametrize("kind", WORDS)
def test_another_seed_draws_every_layer_anew_and_the_same_seed_draws_it_again(kind: str) -> None:
    first, again, other = (fingerprints(build(kind, seed)) for seed in (3, 3, 4))
    for name, values in first.items():
        assert torch.equal(values, again[name]), name
        assert abs((values * other[name]).mean().item()) < 0.9, name


def test_a_linear_layer_that_had_values_gets_new_ones() -> None:
    """A linear layer without a bias is no error, and a convolution keeps its values."""
    mlp = MLP(64, 96)
    layers = nn.ModuleList([mlp, nn.Linear(50, 60, bias=False), nn.Conv2d(3, 5, 2)])
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.fill_(0.5)
    torch.manual_seed(0)
    init_linear(layers)
    for layer in (mlp[0], mlp[3]):
        assert_normal(layer.weight, 0.02)
        assert_constant(layer.bias, 0)
    assert_normal(layers[1].weight, 0.02)
    assert_constant(layers[2].weight, 0.5)
