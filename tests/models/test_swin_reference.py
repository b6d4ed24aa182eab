"""Swin with fitted windows equals a slow reference forward, computed from pixel coordinates.

torchvision is no reference here, because it pads the map where our Swin fits the window. This
reference attends over the whole map at once; its mask and bias follow from each pixel's coordinates.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from neuscale.models.layers import DropPath
from neuscale.models.swin import SwinStage, SwinTransformer
from neuscale.models.windows import inverse, window_plan

Scrambler = Callable[[nn.Module], nn.Module]


def positions(side: int, window: int, shift: int) -> tuple[Tensor, Tensor, Tensor]:
    """(window, index within it, wrapped around by the shift or not) of each pixel along one side."""
    rolled = (torch.arange(side) - shift) % side
    return rolled // window, rolled % window, torch.arange(side) < shift


def dense_attention(x: Tensor, p: dict[str, Tensor], heads: int, nominal: int, shifted: bool) -> Tensor:
    """Shifted-window attention on a map [B, h, w, C], as masked attention of every token to every other."""
    B, height, width, C = x.shape
    plan = window_plan(height, width, nominal)
    x = F.pad(x, (0, 0, 0, plan.padded_w - width, 0, plan.padded_h - height))
    apart = torch.zeros(plan.padded_h * plan.padded_w, plan.padded_h * plan.padded_w, dtype=x.dtype)
    offsets = []
    for axis, side, window in ((0, plan.padded_h, plan.window_h), (1, plan.padded_w, plan.window_w)):
        shift = window // 2 if shifted and window < side else 0
        of_pixel = torch.arange(plan.padded_h * plan.padded_w)
        of_pixel = of_pixel // plan.padded_w if axis == 0 else of_pixel % plan.padded_w
        number, place, seam = (t[of_pixel] for t in positions(side, window, shift))
        apart = apart.masked_fill(seam[:, None] != seam[None, :], -100.0)
        offsets.append(place[:, None] - place[None, :] + nominal - 1)
        if axis == 0:
            rows = number
    columns = number
    apart = apart.masked_fill((rows[:, None] != rows) | (columns[:, None] != columns), float("-inf"))
    table = p["relative_position_bias_table"].view(2 * nominal - 1, 2 * nominal - 1, heads)
    bias = table[offsets[0].clamp(0, 2 * nominal - 2), offsets[1].clamp(0, 2 * nominal - 2)].permute(2, 0, 1)
    qkv = F.linear(x.flatten(1, 2), p["qkv.weight"], p["qkv.bias"]).view(B, -1, 3, heads, C // heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    weights = (q @ k.mT / (C // heads) ** 0.5 + bias + apart).softmax(-1)
    out = F.linear((weights @ v).transpose(1, 2).flatten(2), p["proj.weight"], p["proj.bias"])
    return out.view(B, plan.padded_h, plan.padded_w, C)[:, :height, :width]


def norm(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], 1e-5)


@dataclass
class Training:
    """Settings of the reference: `drop` is dropout, `kept` [blocks, branches, B] the drop path factors."""

    drop: Callable[[Tensor], Tensor] = lambda x: x
    kept: Iterator[Tensor] = field(default_factory=lambda: repeat(torch.ones(2, 1, dtype=torch.float64)))
    gelu: str = "none"


def dense_block(
    x: Tensor,
    p: dict[str, Tensor],
    name: str,
    heads: int,
    nominal: int,
    shifted: bool,
    training: Training | None = None,
) -> Tensor:
    training = training or Training()
    drop, kept = training.drop, next(training.kept)[:, :, None, None, None]
    attn = {k.removeprefix(f"{name}.attn."): v for k, v in p.items() if k.startswith(f"{name}.attn.")}
    x = x + kept[0] * drop(dense_attention(norm(x, p, f"{name}.norm1"), attn, heads, nominal, shifted))
    hidden = F.linear(norm(x, p, f"{name}.norm2"), p[f"{name}.mlp.0.weight"], p[f"{name}.mlp.0.bias"])
    hidden = drop(F.gelu(hidden, approximate=training.gelu))
    return x + kept[1] * drop(F.linear(hidden, p[f"{name}.mlp.3.weight"], p[f"{name}.mlp.3.bias"]))


def reference(
    model: SwinTransformer, images: Tensor, heads: list[int], nominal: int, training: Training | None = None
) -> Tensor:
    """Logits of the reference, computed from the model's named parameters."""
    p = dict(model.named_parameters())
    training = training or Training()

    patch = p["features.0.0.weight"].shape[-1]
    x = F.conv2d(images, p["features.0.0.weight"], p["features.0.0.bias"], stride=patch)
    x = norm(x.permute(0, 2, 3, 1), p, "features.0.2")
    for stage, number in enumerate(heads):
        for block in range(len(model.features[2 * stage + 1])):
            name = f"features.{2 * stage + 1}.{block}"
            x = dense_block(x, p, name, number, nominal, block % 2 == 1, training)
        if stage < len(heads) - 1:
            name = f"features.{2 * stage + 2}"
            x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
            x = torch.cat([x[:, i::2, j::2] for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))], -1)
            x = F.linear(norm(x, p, f"{name}.norm"), p[f"{name}.reduction.weight"])
    return F.linear(norm(x, p, "norm").mean((1, 2)), p["head.weight"], p["head.bias"])


def assert_matches_reference(model: SwinTransformer, size: int, heads: list[int], nominal: int) -> None:
    model = model.double().eval()
    images = torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logits, expected = model(images), reference(model, images, heads, nominal)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    parameters = list(model.parameters())
    direction = torch.linspace(-1, 1, logits.numel(), dtype=torch.float64).view_as(logits)
    ours = torch.autograd.grad((logits * direction).sum(), parameters)
    theirs = torch.autograd.grad((expected * direction).sum(), parameters)
    for (name, _), a, b in zip(model.named_parameters(), ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize("size", [28, 32, 36, 64])
def test_logits_and_gradients_at_the_sizes_that_are_trained_at(scramble: Scrambler, size: int) -> None:
    """28, 32 and 64 are native sizes of the data sets; 36 gives a map of 9, which is odd and padded to 14."""
    heads = [1, 2, 2, 4]
    model = scramble(SwinTransformer(size, 5, embed_dim=8, depths=[2, 2, 3, 2], num_heads=heads))
    assert isinstance(model, SwinTransformer)
    assert_matches_reference(model, size, heads, nominal=7)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 15), st.integers(1, 6))
def test_logits_and_gradients_at_any_map_and_window(scramble: Scrambler, size: int, window: int) -> None:
    model = SwinTransformer(
        size, 3, patch_size=1, embed_dim=4, depths=[2, 2], num_heads=[2, 2], window_size=window
    )
    scrambled = scramble(model)
    assert isinstance(scrambled, SwinTransformer)
    assert_matches_reference(scrambled, size, [2, 2], nominal=window)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 6))
def test_a_stage_on_a_map_whose_sides_get_different_windows(
    scramble: Scrambler, height: int, width: int, window: int
) -> None:
    plan = window_plan(height, width, window)
    stage = scramble(SwinStage(4, 2, 2, window, plan, 2.0, 0.0, [0.0, 0.0])).double()
    p = dict(stage.named_parameters())
    x = torch.randn(2, height, width, 4, dtype=torch.float64)
    expected = dense_block(dense_block(x, p, "0", 2, window, False), p, "1", 2, window, True)
    assert isinstance(stage, SwinStage)
    out = stage(x.flatten(1, 2))[:, inverse(stage.order)].view(2, plan.padded_h, plan.padded_w, 4)
    torch.testing.assert_close(out[:, :height, :width], expected, rtol=1e-9, atol=1e-9)


def trained(scramble: Scrambler, **options: Any) -> SwinTransformer:
    """Model in training mode: stages of three and two blocks on maps of 6 and 3 (odd), MLP ratio 2.5."""
    sizes = {"patch_size": 2, "embed_dim": 4, "depths": [3, 2], "num_heads": [2, 4], "window_size": 3}
    model = scramble(SwinTransformer(12, 3, **sizes, **{"mlp_ratio": 2.5, **options}))
    assert isinstance(model, SwinTransformer)
    return model.double().train()


def four_images(channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, channels, 12, 12, dtype=torch.float64, generator=generator)


def test_dropout_follows_the_attention_and_both_linears(
    scramble: Scrambler, dropout_by_channel: Callable[[Tensor], Tensor]
) -> None:
    model = trained(scramble, dropout=0.3)
    expected = reference(model, four_images(), [2, 4], 3, Training(drop=dropout_by_channel))
    torch.testing.assert_close(model(four_images()), expected, rtol=0, atol=1e-10)
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.3}


def test_drop_path_scales_each_branch_of_each_block_by_its_own_factor(scramble: Scrambler) -> None:
    model = trained(scramble, drop_path_rate=0.4)
    layers = [m for m in model.modules() if isinstance(m, DropPath)]
    assert [layer.rate for layer in layers] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    kept = torch.rand(5, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    kept[1, 0, 2] = kept[4, 1, 0] = 0
    kept[0] = 1  # at rate zero nothing is scaled
    for layer, factors in zip(layers, kept, strict=True):
        layer.scale = factors
    expected = reference(model, four_images(), [2, 4], 3, Training(kept=iter(kept)))
    torch.testing.assert_close(model(four_images()), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("gelu", ["none", "tanh"])
def test_gelu_has_the_chosen_form_in_training_too(scramble: Scrambler, gelu: str) -> None:
    model = trained(scramble, gelu_approximate=gelu)
    expected = reference(model, four_images(), [2, 4], 3, Training(gelu=gelu))
    torch.testing.assert_close(model(four_images()), expected, rtol=0, atol=1e-10)


def test_a_grayscale_model_reads_its_one_channel(scramble: Scrambler) -> None:
    model = trained(scramble, in_channels=1)
    expected = reference(model, four_images(1), [2, 4], 3)
    torch.testing.assert_close(model(four_images(1)), expected, rtol=0, atol=1e-10)
