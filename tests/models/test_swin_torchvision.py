"""Swin equals torchvision's Swin: weights load in both directions and give the same outputs."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models import swin_transformer

from neuscale.models import windows
from neuscale.models.swin import PatchMerging, SwinStage, SwinTransformer

Scrambler = Callable[[nn.Module], nn.Module]
SMALL = {"embed_dim": 16, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 2, 4]}


def logits_and_gradient(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    images = images.clone().requires_grad_()
    logits = model(images)
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    assert images.grad is not None
    return logits.detach(), images.grad


def assert_same(ours: nn.Module, theirs: nn.Module, size: int, batch: int = 1) -> None:
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(size))
    logits, gradient = logits_and_gradient(ours.eval(), images)
    their_logits, their_gradient = logits_and_gradient(theirs.eval(), images)
    torch.testing.assert_close(logits, their_logits, rtol=1e-4, atol=1e-4)
    scale = their_gradient.abs().max()
    torch.testing.assert_close(gradient / scale, their_gradient / scale, rtol=1e-4, atol=1e-4)
    their_gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        expected = their_gradients[name].grad
        assert parameter.grad is not None and expected is not None
        scale = expected.abs().max().clamp(min=1e-6)
        torch.testing.assert_close(parameter.grad / scale, expected / scale, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize("depth", [6, 18], ids=["swin_t", "swin_s"])
def test_at_224_pixels_outputs_and_gradients_are_torchvisions(scramble: Scrambler, depth: int) -> None:
    """Pretrained weights are useless if the forward differs from the one that they were trained with."""
    theirs = scramble((torchvision.models.swin_t if depth == 6 else torchvision.models.swin_s)())
    ours = SwinTransformer(224, 1000, depths=(2, 2, depth, 2))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert_same(ours, theirs, 224)


def test_our_state_dict_loads_into_torchvision_strictly(scramble: Scrambler) -> None:
    """Weights that were trained here can be used in torchvision."""
    ours = scramble(SwinTransformer(224, 10, **SMALL))
    theirs = swin_transformer.SwinTransformer([4, 4], window_size=[7, 7], num_classes=10, **SMALL)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert_same(ours, theirs, 224, batch=2)


@pytest.mark.parametrize("size", [256, 232])
def test_where_the_map_is_padded_to_windows_it_is_padded_as_torchvision_does(
    scramble: Scrambler, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """At 256 pixels every stage is padded; at 232, odd maps (58, 29, 15, 8) are merged as well."""
    monkeypatch.setattr(windows, "PADDING_ALLOWED", 1e9)
    theirs = scramble(swin_transformer.SwinTransformer([4, 4], window_size=[7, 7], num_classes=10, **SMALL))
    ours = SwinTransformer(size, 10, **SMALL)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert_same(ours, theirs, size)


def test_256_pixels_pad_the_first_stages_as_torchvision_does_without_being_told(scramble: Scrambler) -> None:
    """Maps are padded from 64 to 70 and 32 to 35, as torchvision's weights expect at this common size."""
    shape = {"embed_dim": 16, "depths": [2, 2], "num_heads": [1, 2]}
    theirs = scramble(swin_transformer.SwinTransformer([4, 4], window_size=[7, 7], num_classes=10, **shape))
    ours = SwinTransformer(256, 10, **shape)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert_same(ours, theirs, 256)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(0, 9), st.integers(0, 9), st.integers(1, 3))
def test_a_stage_and_its_merging_are_torchvisions_on_maps_that_are_not_square(
    window: int, more_h: int, more_w: int, depth: int
) -> None:
    height, width, dim = window + more_h, window + more_w, 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "PADDING_ALLOWED", 1e9)
        plan = windows.window_plan(height, width, window)
    shifts = [[window // 2 if i % 2 else 0] * 2 for i in range(depth)]
    blocks = nn.Sequential(
        *[swin_transformer.SwinTransformerBlock(dim, 2, [window, window], shift) for shift in shifts]
    )
    merging = swin_transformer.PatchMerging(dim)
    stage = SwinStage(dim, depth, 2, window, plan, 4.0, 0.0, [0.0] * depth)
    stage.load_state_dict(blocks.state_dict(), strict=True)
    merge = PatchMerging(dim, plan, stage.order)
    merge.load_state_dict(merging.state_dict(), strict=True)
    x = torch.randn(2, height, width, dim)
    with torch.no_grad():
        expected = merging(blocks.eval()(x))
        torch.testing.assert_close(
            merge(stage.eval()(x.flatten(1, 2))), expected.flatten(1, 2), rtol=1e-4, atol=1e-5
        )
