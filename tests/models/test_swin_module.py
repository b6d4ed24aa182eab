"""Swin as a torch module: copying, saving, export, autocast, moving to a device, and refused inputs."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from neuscale.models.swin import SwinTransformer


@pytest.fixture
def model() -> SwinTransformer:
    torch.manual_seed(0)
    return SwinTransformer(40, 5, embed_dim=16, depths=[2, 2], num_heads=[1, 2]).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))


def test_a_copy_and_a_saved_state_dict_give_the_same_logits(
    model: SwinTransformer, images: torch.Tensor, tmp_path: Path
) -> None:
    copied = copy.deepcopy(model)
    assert torch.equal(copied(images), model(images))
    assert not {p.data_ptr() for p in copied.parameters()} & {p.data_ptr() for p in model.parameters()}
    torch.save(model.state_dict(), tmp_path / "model.pth")
    fresh = SwinTransformer(40, 5, embed_dim=16, depths=[2, 2], num_heads=[1, 2]).eval()
    assert not torch.equal(fresh(images), model(images))
    fresh.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True), strict=True)
    assert torch.equal(fresh(images), model(images))


def test_weights_of_one_image_size_load_at_another(model: SwinTransformer) -> None:
    """Only the window plans differ, and the state dict does not contain them."""
    larger = SwinTransformer(224, 5, embed_dim=16, depths=[2, 2], num_heads=[1, 2])
    larger.load_state_dict(model.state_dict(), strict=True)


def test_it_can_be_exported(model: SwinTransformer, images: torch.Tensor) -> None:
    exported = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(exported(images), model(images))


def test_bfloat16_autocast_is_near_float32_and_trains(model: SwinTransformer, images: torch.Tensor) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
    expected = model(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model.train()(images)
    assert logits.dtype == torch.bfloat16
    assert (logits - expected).abs().max() < 0.03 * expected.abs().max()
    logits.float().square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_an_image_of_another_size_is_refused(model: SwinTransformer) -> None:
    """Its tokens would be indexed by a plan for another size, and the logits silently wrong."""
    for height, width in ((80, 80), (40, 80), (80, 40), (36, 40)):
        with pytest.raises(ValueError, match=rf"40-pixel images got \(1, 3, {height}, {width}\)"):
            model(torch.randn(1, 3, height, width))


def test_every_buffer_follows_the_model_to_another_device(model: SwinTransformer) -> None:
    """Otherwise a plan left on the CPU would fail on machines with a GPU only."""
    moved = model.to("meta")
    assert moved(torch.empty(2, 3, 40, 40, device="meta")).shape == (2, 5)


def test_the_head_reads_no_padding() -> None:
    """A 9×9 map in windows of 8 is padded to 16×16: the head must average 81 tokens, not 256."""
    model = SwinTransformer(9, 3, patch_size=1, embed_dim=8, depths=[1], num_heads=[1], window_size=8)
    stage = model.features[1]
    assert isinstance(stage, nn.Module)
    before = model.eval()(torch.ones(1, 3, 9, 9))
    stage.register_forward_hook(
        lambda _m, _i, out: out.index_fill(1, (stage.order // 16 >= 9).nonzero()[:, 0], 1e3)
    )
    torch.testing.assert_close(model(torch.ones(1, 3, 9, 9)), before)
