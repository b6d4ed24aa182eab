"""Gradient checkpointing changes memory use and nothing else."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from neuscale.models.swin import SwinTransformer
from neuscale.models.vit import VisionTransformer

SWIN = partial(SwinTransformer, 32, 5, embed_dim=8, depths=[2, 4], num_heads=[1, 2])
VIT = partial(VisionTransformer, 16, 5, hidden_dim=16, num_heads=2, num_layers=6)


def gradients(model: nn.Module, size: int) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(3)
    logits = model(torch.randn(4, 3, size, size))
    logits.square().sum().backward()
    return logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def saved_bytes(model: nn.Module, size: int) -> int:
    """Bytes that autograd saves for the backward pass: each storage once, without parameters."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.randn(4, 3, size, size))
    return sum(t.untyped_storage().nbytes() for t in kept.values())


@pytest.mark.parametrize(("build", "size"), [(SWIN, 32), (VIT, 16)], ids=["swin", "vit"])
@pytest.mark.parametrize("random", [False, True], ids=["plain", "with drop path and dropout"])
def test_the_gradients_are_the_same_to_the_bit(build: partial[nn.Module], size: int, random: bool) -> None:
    """With drop path and dropout too: each block must be recomputed with the samples that it dropped."""
    rates = {"drop_path_rate": 0.5, "dropout": 0.2} if random else {}
    plain = build(**rates)
    saving = build(**rates, gradient_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    logits, expected = gradients(plain, size)
    same_logits, actual = gradients(saving, size)
    assert torch.equal(logits, same_logits)
    assert actual.keys() == expected.keys() == {name for name, _ in plain.named_parameters()}
    for name, gradient in expected.items():
        assert torch.equal(actual[name], gradient), name


@pytest.mark.parametrize(("build", "size"), [(SWIN, 32), (VIT, 16)], ids=["swin", "vit"])
def test_a_fraction_of_the_activations_is_kept(build: partial[nn.Module], size: int) -> None:
    assert saved_bytes(build(gradient_checkpointing=True), size) < 0.35 * saved_bytes(build(), size)


@pytest.mark.parametrize(("build", "size"), [(SWIN, 32), (VIT, 16)], ids=["swin", "vit"])
def test_evaluation_recomputes_nothing(
    build: partial[nn.Module], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise AssertionError("checkpointed in evaluation")

    monkeypatch.setattr("neuscale.models.swin.checkpoint", fail)
    monkeypatch.setattr("neuscale.models.vit.checkpoint", fail)
    build(gradient_checkpointing=True).eval()(torch.randn(1, 3, size, size))
