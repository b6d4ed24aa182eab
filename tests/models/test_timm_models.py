"""timm's models by name, with timm installed: they are timm's own models, at the data's image size."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from neuscale.config import compose_config
from neuscale.errors import EXIT_USAGE, UsageError
from neuscale.models.registry import create_model
from neuscale.models.weights import load_starting_weights

timm: Any = pytest.importorskip("timm")

Scrambler = Callable[[nn.Module], nn.Module]


def of_timm(arch: str, *words: str, size: int = 32, channels: int = 3) -> Any:
    config = compose_config(["model=timm", f"model.arch={arch}", *words]).model
    return create_model(config, size, channels, 5, seed=0)


@pytest.mark.parametrize("arch", ["test_vit", "test_resnet", "swin_tiny_patch4_window7_224"])
def test_what_is_trained_here_is_timms_own_model(arch: str) -> None:
    model = of_timm(arch)
    options = {} if "resnet" in arch else {"img_size": 32}
    theirs = timm.create_model(arch, num_classes=5, **options)
    theirs.load_state_dict(model.state_dict(), strict=True)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(images), theirs.eval()(images))


def test_the_start_is_a_function_of_the_seed() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = of_timm("test_vit").state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = of_timm("test_vit").state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_timm_is_told_the_number_of_channels() -> None:
    assert of_timm("test_resnet", channels=1)(torch.randn(2, 1, 32, 32)).shape == (2, 5)


def test_timms_options_reach_the_model() -> None:
    words = ["model.drop_rate=0.3", "model.drop_path_rate=0.4", "model.gradient_checkpointing=true"]
    model = of_timm("test_vit", *words)
    assert model.head_drop.p == 0.3
    assert max(m.drop_prob for m in model.modules() if hasattr(m, "drop_prob")) == pytest.approx(0.4)
    assert model.grad_checkpointing is True
    assert of_timm("efficientnet_b0").drop_rate == timm.create_model("efficientnet_b0").drop_rate


def test_timms_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for chosen in ("false", "true"):
        model = of_timm("test_vit", f"model.gradient_checkpointing={chosen}", "model.drop_path_rate=0.3")
        torch.manual_seed(3)
        model(torch.randn(4, 3, 32, 32)).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize(
    ("arch", "words", "size", "says", "fix"),
    [
        ("vit_tinny_patch16_224", [], 32, "timm has no such", "'vit_tiny_patch16_224'"),
        ("hf-hub:some/model", [], 32, "cannot be had (", "model.arch=local-dir:FOLDER"),
        ("resnet18.none", [], 32, "has no tag 'none'", "a1_in1k"),
        ("vit_tiny_patch16_224", [], 8, "an image of 8×8 does not go through", "data.image_size=224"),
        ("vgg11", ["model.drop_path_rate=0.1"], 32, "model.drop_path_rate: timm's vgg11", "Remove it"),
        ("resnet18", ["model.gradient_checkpointing=true"], 32, "resnet18 has BatchNorm", "without"),
    ],
)
def test_what_cannot_be_is_named(arch: str, words: list[str], size: int, says: str, fix: str) -> None:
    with pytest.raises(UsageError) as caught:
        of_timm(arch, *words, size=size)
    assert says in caught.value.problem
    assert "\n" not in caught.value.problem
    assert fix in caught.value.fix
    assert caught.value.exit_code == EXIT_USAGE


def test_weights_in_a_file_get_a_new_head(scramble: Scrambler, tmp_path: Path) -> None:
    state = scramble(timm.create_model("test_efficientnet", num_classes=7)).state_dict()
    torch.save(state, tmp_path / "w.pth")
    words = ["model=timm", "model.arch=test_efficientnet", f"model.weights={tmp_path / 'w.pth'}"]
    config = compose_config(words).model
    model = create_model(config, 32, 3, 5, seed=0)
    assert load_starting_weights(model, config, 32, 3, 5).endswith("with a new head")
    assert torch.equal(model.state_dict()["bn1.weight"], state["bn1.weight"])


def test_without_a_network_imagenet_weights_are_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    config = compose_config(["model=timm", "model.arch=resnet18", "model.weights=imagenet"]).model
    with pytest.raises(UsageError, match=r"^model.weights=imagenet: .* cannot be had") as caught:
        load_starting_weights(nn.Identity(), config, 32, 3, 5)
    assert "model.weights=PATH" in caught.value.fix
    assert "\n" not in caught.value.problem
