"""Starting weights: all parameters but the head's equal those in the file."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import swin_transformer

from neuscale.config import compose_config
from neuscale.errors import CheckpointError, UsageError
from neuscale.models import weights
from neuscale.models.registry import create_model
from neuscale.models.swin import SwinTransformer
from neuscale.models.weights import load_starting_weights, load_weights

SMALL = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]}
WORDS = ["model.embed_dim=8", "model.depths=[1,1]", "model.num_heads=[1,2]", "model.mlp_ratio=4"]
Scrambler = Callable[[nn.Module], nn.Module]


@pytest.fixture
def pretrained(scramble: Scrambler) -> dict[str, Tensor]:
    """State dict of a torchvision Swin with a head for 1000 classes."""
    theirs = swin_transformer.SwinTransformer([4, 4], window_size=[7, 7], num_classes=1000, **SMALL)
    return scramble(theirs).state_dict()


def start_from(source: str, classes: int = 10, channels: int = 3) -> tuple[nn.Module, str, dict[str, Tensor]]:
    """Return (model, message, state dict before loading)."""
    config = compose_config([*WORDS, f"model.weights={source}"]).model
    model = create_model(config, 32, channels, classes, seed=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    return model, load_starting_weights(model, config, 32, channels, classes), before


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvision_weights_in_a_file_get_a_new_head(
    pretrained: dict[str, Tensor], tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"my weights=final{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(pretrained, path)
    model, said, before = start_from(str(path))
    assert said == f"weights from {path}, with a new head"
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] if name.startswith("head.") else pretrained[name]), name


def test_a_head_for_as_many_classes_is_taken_over(pretrained: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(pretrained, tmp_path / "w.pth")
    model, said, _ = start_from(str(tmp_path / "w.pth"), classes=1000)
    assert said.endswith("head included")
    assert torch.equal(model.state_dict()["head.weight"], pretrained["head.weight"])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_the_prefixes_of_wrapped_models_are_stripped(
    pretrained: dict[str, Tensor], tmp_path: Path, prefix: str
) -> None:
    """DistributedDataParallel and torch.compile add these prefixes, in either order."""
    torch.save({prefix + name: value for name, value in pretrained.items()}, tmp_path / "w.pth")
    model, _, _ = start_from(str(tmp_path / "w.pth"))
    assert torch.equal(model.state_dict()["norm.weight"], pretrained["norm.weight"])


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_training_checkpoint_with_the_weights_inside_is_opened(
    pretrained: dict[str, Tensor], tmp_path: Path, key: str
) -> None:
    torch.save({"epoch": 3, key: pretrained, "optimizer": {"lr": 0.1}}, tmp_path / "w.pth")
    model, _, _ = start_from(str(tmp_path / "w.pth"))
    assert torch.equal(model.state_dict()["norm.weight"], pretrained["norm.weight"])


def test_a_folder_with_model_safetensors_in_it_is_opened(
    pretrained: dict[str, Tensor], tmp_path: Path
) -> None:
    save_file(pretrained, tmp_path / "model.safetensors")
    _, said, _ = start_from(str(tmp_path))
    assert said.endswith("with a new head")


def test_grayscale_images_are_seen_as_gray_colour_images_were(
    pretrained: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(pretrained, tmp_path / "w.pth")
    gray, _, _ = start_from(str(tmp_path / "w.pth"), channels=1)
    colour, _, _ = start_from(str(tmp_path / "w.pth"))
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        for model in (gray, colour):
            model.get_submodule("head").load_state_dict(
                {"weight": torch.ones(10, 16), "bias": torch.zeros(10)}
            )
        torch.testing.assert_close(
            gray.eval()(images), colour.eval()(images.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4
        )


def test_only_the_first_layer_is_summed_over_colours(pretrained: dict[str, Tensor]) -> None:
    """A bias table for 3 heads is not summed to 1 head, as colour channels are to a grayscale one."""
    model = SwinTransformer(32, 10, embed_dim=8, depths=[1, 1], num_heads=[1, 2])
    name = "features.1.0.attn.relative_position_bias_table"
    with pytest.raises(CheckpointError, match="169×3 there and 169×1 here"):
        load_weights(model, {**pretrained, name: torch.zeros(169, 3)}, "w.pth", adapt=True)


def test_a_resumed_run_adapts_nothing(pretrained: dict[str, Tensor]) -> None:
    model = SwinTransformer(32, 10, **SMALL)
    with pytest.raises(CheckpointError, match=r"head.weight is 1000×16 there and 10×16 here, and 1 more"):
        load_weights(model, pretrained, "w.pth")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("norm.bias"), "norm.bias is missing there"),
        (lambda s: s.pop("head.bias"), "head.bias is missing there"),
        (lambda s: s.update(extra=torch.zeros(1)), "extra is unknown here"),
        (lambda s: s.update({"norm.weight": torch.zeros(7)}), "norm.weight is 7 there and 16 here"),
        (lambda s: s.update({"norm.weight": torch.zeros(2, 3, 4, 4)}), "2×3×4×4 there and 16 here"),
        (lambda s: s.update({"norm.weight": torch.tensor(1.0)}), "a single number there and 16 here"),
        (lambda s: s.update({"norm.weight": torch.ones(16).to_sparse()}), "cannot be copied"),
        (lambda s: s.clear(), "is missing there, and"),
    ],
)
def test_weights_of_another_model_are_named_and_nothing_is_loaded(
    pretrained: dict[str, Tensor], change: Callable[[dict[str, Tensor]], object], says: str
) -> None:
    change(pretrained)
    model = SwinTransformer(32, 1000, **SMALL)
    norm = {name: value.clone() for name, value in model.state_dict().items() if "norm1" in name}
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, pretrained, "my/w.pth", adapt=True)
    assert caught.value.problem.startswith("my/w.pth: ")
    assert says in caught.value.problem
    assert caught.value.fix
    if "copied" not in says:
        assert all(torch.equal(model.state_dict()[name], value) for name, value in norm.items())


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's empty download cache, weights registered for a small Swin, and a network that refuses."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub of torch"))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(weights._TORCHVISION_SWIN, (8, (1, 1)), "Swin_T_Weights")
    folder = Path(torch.hub.get_dir(), "checkpoints")
    folder.mkdir(parents=True)
    return folder


def test_imagenet_weights_come_from_torchs_cache(hub: Path, pretrained: dict[str, Tensor]) -> None:
    torch.save(pretrained, hub / "swin_t-704ceda3.pth")
    model, said, _ = start_from("imagenet")
    assert said == "weights from torchvision Swin_T_Weights.IMAGENET1K_V1, with a new head"
    assert torch.equal(model.state_dict()["norm.weight"], pretrained["norm.weight"])


def test_without_a_network_imagenet_weights_are_a_message_with_the_address(hub: Path) -> None:
    with pytest.raises(UsageError, match=r"swin_t-704ceda3.pth cannot be had .*refused") as caught:
        start_from("imagenet")
    assert "model.weights=PATH" in caught.value.fix
    assert list(hub.iterdir()) == []


class Touch:
    """Object whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_damaged_or_planted_file_in_the_cache_is_named_and_not_run(hub: Path, tmp_path: Path) -> None:
    """Others may be able to write to the cache, and torch checks the hash of downloads only."""
    cached = hub / "swin_t-704ceda3.pth"
    torch.save({"norm.weight": Touch(tmp_path / "ran")}, cached)
    planted = cached.read_bytes()
    for content in (planted, planted[:200], b"", b"<html>not found</html>"):
        cached.write_bytes(content)
        with pytest.raises(UsageError) as caught:
            start_from("imagenet")
        assert str(cached) in caught.value.fix
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("words", [["model=vit_ti4"], ["model=swin_t", "model.embed_dim=48"]])
def test_imagenet_for_a_model_that_torchvision_has_none_for(words: list[str]) -> None:
    config = compose_config([*words, "model.weights=imagenet"]).model
    with pytest.raises(UsageError, match="no weights for this model") as caught:
        load_starting_weights(nn.Identity(), config, 224, 3, 10)
    assert "swin_t, swin_s and swin_b" in caught.value.fix


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("preset", ["swin_t", "swin_s", "swin_b"])
def test_each_swin_preset_asks_for_its_own_imagenet_weights(preset: str) -> None:
    config = compose_config([f"model={preset}", "model.weights=imagenet"]).model
    with pytest.raises(UsageError, match=f"/{preset}-"):
        load_starting_weights(nn.Identity(), config, 224, 3, 10)
