"""ViT equals torchvision's ViT at a small size; positions are learnt, the head reads a token or the mean."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision.models import vision_transformer

from neuscale.models.vit import VisionTransformer

Scrambler = Callable[[nn.Module], nn.Module]
SMALL = {"patch_size": 4, "hidden_dim": 24, "num_layers": 3, "num_heads": 3}


def test_with_a_class_token_outputs_and_gradients_are_torchvisions(scramble: Scrambler) -> None:
    theirs = scramble(
        vision_transformer.VisionTransformer(image_size=32, mlp_dim=96, num_classes=7, **SMALL)
    ).eval()
    ours = VisionTransformer(32, 7, **SMALL).eval()
    assert set(ours.state_dict()) == set(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected, logits = theirs(images), ours(images)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    for out in (expected, logits):
        (out * torch.linspace(-1, 1, 14).view(2, 7)).sum().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(("pool", "tokens"), [("token", 257), ("mean", 256)])
def test_a_64_pixel_image_is_256_patches_whose_positions_are_learnt(pool: str, tokens: int) -> None:
    model = VisionTransformer(64, 5, pool=pool, **SMALL)
    positions = model.encoder.pos_embedding
    assert positions.shape == (1, tokens, 24)
    before = positions.detach().clone()
    assert before.std() > 0.01  # and no two start alike
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(torch.randn(2, 3, 64, 64)).logsumexp(1).sum().backward()
    optimizer.step()
    assert (positions != before).any(-1).all(), "some position does not learn"


def test_positions_tell_a_moved_patch_apart() -> None:
    """Without positions, the model cannot distinguish an image from its shuffled patches."""
    model = VisionTransformer(16, 5, pool="mean", **SMALL).eval()
    image = torch.randn(1, 3, 16, 16)
    assert not torch.allclose(model(image), model(image.roll(4, -1)), atol=1e-5)
    with torch.no_grad():
        model.encoder.pos_embedding.zero_()
    torch.testing.assert_close(model(image), model(image.roll(4, -1)), rtol=1e-4, atol=1e-5)


def test_mean_pooling_reads_every_patch_alike_and_has_no_class_token() -> None:
    model = VisionTransformer(16, 5, pool="mean", **SMALL).eval()
    assert "class_token" not in model.state_dict()
    encoded: list[torch.Tensor] = []
    model.encoder.register_forward_hook(lambda _m, _i, out: encoded.append(out))
    logits = model(torch.randn(2, 3, 16, 16))
    torch.testing.assert_close(logits, model.heads(encoded[0].mean(1)))
    assert encoded[0].shape[1] == 16


def test_the_class_token_reads_the_whole_image() -> None:
    model = VisionTransformer(16, 5, **SMALL).eval()
    image = torch.randn(1, 3, 16, 16, requires_grad=True)
    model(image).logsumexp(1).sum().backward()
    assert image.grad is not None
    assert (image.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize(("pool", "size"), [("token", 32), ("mean", 48)])
def test_an_image_of_another_size_is_refused(pool: str, size: int) -> None:
    model = VisionTransformer(16, 5, pool=pool, **SMALL)
    with pytest.raises((RuntimeError, ValueError), match="size"):
        model(torch.randn(1, 3, size, size))
