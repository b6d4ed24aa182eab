"""ViT equals its paper's equations, written out with the named parameters in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neuscale.models.layers import DropPath
from neuscale.models.vit import VisionTransformer

Scrambler = Callable[[nn.Module], nn.Module]
Change = Callable[[Tensor], Tensor]

# Different sizes: 9 patches (and a class token), 2 heads of 6 channels, 30 hidden, 3 blocks, 5 classes.
PATCH, WIDTH, HEADS, BLOCKS, CLASSES = 2, 12, 2, 3, 5


def build(scramble: Scrambler, **options: Any) -> VisionTransformer:
    options = {"mlp_ratio": 2.5, **options}
    model = VisionTransformer(3 * PATCH, CLASSES, 3, PATCH, WIDTH, BLOCKS, HEADS, **options)
    scrambled = scramble(model).double()
    assert isinstance(scrambled, VisionTransformer)
    return scrambled


def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Layer normalisation with torchvision's epsilon for ViT."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight + bias


def gelu(x: Tensor, approximate: str) -> Tensor:
    if approximate == "tanh":
        return x / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    return x / 2 * (1 + torch.erf(x / 2**0.5))


def attention(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    """Attention head by head; the rows of in_proj are queries, then keys, then values."""
    q, k, v = (x @ w.T + b for w, b in zip(p[f"{name}.in_proj_weight"].split(WIDTH),
                                          p[f"{name}.in_proj_bias"].split(WIDTH), strict=True))  # fmt: skip
    size = WIDTH // HEADS
    heads = []
    for head in range(HEADS):
        own = slice(head * size, (head + 1) * size)
        weights = (q[..., own] @ k[..., own].mT / size**0.5).softmax(-1)
        heads.append(weights @ v[..., own])
    return torch.cat(heads, -1) @ p[f"{name}.out_proj.weight"].T + p[f"{name}.out_proj.bias"]


def reference(
    model: VisionTransformer,
    images: Tensor,
    approximate: str = "none",
    drop: Change = lambda x: x,
    kept: Tensor | None = None,
) -> Tensor:
    """Logits. `drop` is applied as dropout; `kept` [blocks, branches, B] are the drop path factors."""
    p = dict(model.named_parameters())
    B = len(images)
    patches = images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # [B, 3, rows, columns, h, w]
    patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(B, 9, -1)
    x = patches @ p["conv_proj.weight"].flatten(1).T + p["conv_proj.bias"]
    if "class_token" in p:
        x = torch.cat([p["class_token"].expand(B, 1, WIDTH), x], 1)
    x = drop(x + p["encoder.pos_embedding"])
    if kept is None:
        kept = torch.ones(BLOCKS, 2, B, dtype=x.dtype)
    for block in range(BLOCKS):
        name = f"encoder.layers.encoder_layer_{block}"
        attn, mlp = kept[block, :, :, None, None]
        normed = norm(x, p[f"{name}.ln_1.weight"], p[f"{name}.ln_1.bias"])
        x = x + attn * drop(attention(normed, p, f"{name}.self_attention"))
        normed = norm(x, p[f"{name}.ln_2.weight"], p[f"{name}.ln_2.bias"])
        hidden = drop(gelu(normed @ p[f"{name}.mlp.0.weight"].T + p[f"{name}.mlp.0.bias"], approximate))
        x = x + mlp * drop(hidden @ p[f"{name}.mlp.3.weight"].T + p[f"{name}.mlp.3.bias"])
    x = norm(x, p["encoder.ln.weight"], p["encoder.ln.bias"])
    pooled = x[:, 0] if "class_token" in p else x.mean(1)
    return pooled @ p["heads.head.weight"].T + p["heads.head.bias"]


def some_images() -> Tensor:
    return torch.randn(
        4, 3, 3 * PATCH, 3 * PATCH, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize("pool", ["token", "mean"])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_the_logits_are_those_of_the_equations(scramble: Scrambler, pool: str, approximate: str) -> None:
    model = build(scramble, pool=pool, gelu_approximate=approximate)
    for mode in (True, False):  # with nothing to drop, training computes the same
        torch.testing.assert_close(
            model.train(mode)(some_images()), reference(model, some_images(), approximate), rtol=0, atol=1e-11
        )


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_dropout_follows_the_positions_the_attention_and_both_linears(
    scramble: Scrambler, dropout_by_channel: Change, pool: str
) -> None:
    model = build(scramble, pool=pool, dropout=0.3)
    expected = reference(model, some_images(), drop=dropout_by_channel)
    torch.testing.assert_close(model.train()(some_images()), expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(
        model.eval()(some_images()), reference(model, some_images()), rtol=0, atol=1e-11
    )
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.3}


def test_drop_path_scales_each_branch_of_each_block_by_its_own_factor(scramble: Scrambler) -> None:
    model = build(scramble, drop_path_rate=0.4)
    kept = torch.rand(BLOCKS, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    kept[1, 0, 2] = kept[2, 1, 0] = 0
    kept[0] = 1  # its rate is zero: a block that never drops is not scaled
    layers = [m for m in model.modules() if isinstance(m, DropPath)]
    for layer, factors in zip(layers, kept, strict=True):
        layer.scale = factors
    expected = reference(model, some_images(), kept=kept)
    torch.testing.assert_close(model.train()(some_images()), expected, rtol=0, atol=1e-11)


def test_a_grayscale_model_reads_its_one_channel(scramble: Scrambler) -> None:
    model = scramble(VisionTransformer(6, 5, 1, PATCH, WIDTH, BLOCKS, HEADS, mlp_ratio=2.5)).double()
    assert isinstance(model, VisionTransformer)
    images = some_images()[:, :1]
    torch.testing.assert_close(model.eval()(images), reference(model, images), rtol=0, atol=1e-11)
