"""Layers that both models share: drop path, taking tokens and initialisation of linear layers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from neuscale.models.layers import MLP, DropPath, init_linear, take_tokens
from neuscale.models.swin import SwinTransformer
from neuscale.models.vit import VisionTransformer
from neuscale.models.windows import inverse


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drop_path_drops_whole_samples_and_keeps_the_expectation(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rate, samples = 0.2, 4000
    out = DropPath(rate).train()(torch.ones(samples, 3, 2, dtype=dtype))
    assert out.dtype == dtype
    out = out.float()
    per_sample = out.flatten(1)
    assert (per_sample == per_sample[:, :1]).all(), "a sample was dropped in part"
    assert per_sample[:, 0].unique().tolist() == [0.0, 1.25]
    dropped = (per_sample[:, 0] == 0).float().mean().item()
    assert dropped == pytest.approx(rate, abs=5 * (rate * (1 - rate) / samples) ** 0.5)


def test_drop_path_does_nothing_in_evaluation_or_at_rate_zero() -> None:
    x = torch.randn(8, 3)
    assert DropPath(0.9).eval()(x) is x
    assert DropPath(0.0).train()(x) is x


def test_drop_path_takes_the_factors_of_the_branch_that_it_is_told_of() -> None:
    """Given factors for each branch and sample are applied in training only, and not scaled again."""
    layer = DropPath(0.5).train()
    layer.scale = torch.tensor([[0.0, 3.0], [7.0, 0.0]])
    x = torch.arange(1.0, 13.0, dtype=torch.bfloat16).view(2, 3, 2)
    assert torch.equal(layer(x), torch.stack([0 * x[0], 3 * x[1]]))
    assert torch.equal(layer(x, branch=1), torch.stack([7 * x[0], 0 * x[1]]))
    assert layer(x).dtype == torch.bfloat16
    assert layer.eval()(x) is x


def test_drop_path_draws_on_the_device_of_its_input() -> None:
    assert DropPath(0.5).train()(torch.empty(2, 3, device="meta")).shape == (2, 3)


@pytest.mark.parametrize("kind", ["swin", "vit"])
def test_drop_path_rises_linearly_from_the_first_block_to_the_last(kind: str) -> None:
    """Both papers use this schedule; a rate that stayed at its initial zero would regularise nothing."""
    model: nn.Module
    if kind == "swin":
        model = SwinTransformer(32, 5, embed_dim=8, depths=[1, 2, 2], num_heads=[1, 1, 1], drop_path_rate=0.4)
    else:
        model = VisionTransformer(16, 5, hidden_dim=8, num_heads=1, num_layers=5, drop_path_rate=0.4)
    rates = [m.rate for m in model.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("kind", ["swin", "vit"])
def test_drop_path_and_dropout_are_at_work_in_training_only(kind: str) -> None:
    rates = [{"drop_path_rate": 0.9}, {"dropout": 0.5}]
    for rate in rates:
        model: nn.Module
        if kind == "swin":
            model = SwinTransformer(16, 5, embed_dim=8, depths=[1, 2], num_heads=[1, 1], **rate)
        else:
            model = VisionTransformer(16, 5, hidden_dim=8, num_heads=1, num_layers=3, **rate)
        images = torch.randn(8, 3, 16, 16)
        assert not torch.equal(model.train()(images), model(images))
        assert torch.equal(model.eval()(images), model(images))


@settings(max_examples=20, deadline=None)
@given(st.permutations(list(range(6))))
def test_taking_tokens_is_indexing_and_so_is_its_gradient(numbers: list[int]) -> None:
    order = torch.tensor(numbers)
    back = inverse(order)
    x = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(take_tokens(x, order, back), x[:, order])
    assert torch.autograd.gradcheck(lambda t: take_tokens(t, order, back), x)
    assert torch.autograd.gradgradcheck(lambda t: take_tokens(t, order, back), x)


def test_linear_layers_start_small_and_without_a_bias() -> None:
    """Weights come from trunc_normal(0.02), as in both papers, and not from torch's wider default."""
    mlp = MLP(256, 512)
    init_linear(mlp)
    for layer in (mlp[0], mlp[3]):
        assert isinstance(layer, nn.Linear)
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not layer.bias.any()
