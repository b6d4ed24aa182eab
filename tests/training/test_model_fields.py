"""Every field of a model reaches the module that is trained."""

import dataclasses
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from neuscale.config.model_options import ModelConfig, SwinConfig, TimmConfig, TorchvisionConfig, ViTConfig
from neuscale.errors import UsageError
from neuscale.models import fused, swin, vit
from neuscale.models.layers import MLP, DropPath
from neuscale.models.swin import SwinTransformer
from neuscale.models.vit import VisionTransformer
from neuscale.training.trainer import Trainer

TrainerBuilder = Callable[..., Trainer]

# Values that differ from the defaults; the images of the tiny data are 8×8.
SWIN = {
    "patch_size": 1,
    "embed_dim": 12,
    "depths": [1, 2, 1],
    "num_heads": [3, 2, 6],
    "window_size": 4,
    "mlp_ratio": 3.0,
    "dropout": 0.25,
    "drop_path_rate": 0.3,
    "gradient_checkpointing": True,
    "gelu_approximate": "tanh",
    "ops": "eager",
}
VIT = {
    "patch_size": 2,
    "hidden_dim": 10,
    "num_layers": 3,
    "num_heads": 5,
    "pool": "mean",
    "mlp_ratio": 1.5,
    "dropout": 0.125,
    "drop_path_rate": 0.4,
    "gradient_checkpointing": True,
    "gelu_approximate": "tanh",
    "ops": "eager",
}
# The fields that the tests below check.
PROBED: dict[type[ModelConfig], set[str]] = {
    SwinConfig: {"name", "weights", *SWIN},
    ViTConfig: {"name", "weights", *VIT},
    TorchvisionConfig: {"name", "weights", "arch"},
    TimmConfig: {"name", "weights", "arch", "drop_rate", "drop_path_rate", "gradient_checkpointing"}
    | {"imports"},
}


@pytest.mark.parametrize("schema", PROBED)
def test_every_field_is_looked_for(schema: type[ModelConfig]) -> None:
    assert PROBED[schema] == {field.name for field in dataclasses.fields(schema)}


def words_of(fields: dict[str, Any]) -> list[str]:
    return [f"model.{name}={value}".replace(" ", "") for name, value in fields.items()]


def of_type(model: nn.Module, kind: type) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, kind)]


def calls(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Count the calls of Dropout, DropPath and checkpoint in one training forward pass."""
    counts = {"dropout": 0, "drop path": 0, "checkpoint": 0}

    def checkpoint(block: nn.Module, x: torch.Tensor, use_reentrant: bool) -> torch.Tensor:
        counts["checkpoint"] += 1
        return block(x)

    monkeypatch.setattr(swin, "checkpoint", checkpoint)
    monkeypatch.setattr(vit, "checkpoint", checkpoint)
    for name, kind in (("dropout", nn.Dropout), ("drop path", DropPath)):
        for module in of_type(model, kind):
            module.register_forward_hook(
                lambda *_args, name=name, **_kwargs: counts.update({name: counts[name] + 1})
            )
    model.train()(torch.zeros(2, 3, 8, 8))
    return counts


def test_every_field_of_swin_is_in_the_module(
    build_trainer: TrainerBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_trainer("model=swin_nano", *words_of(SWIN)).raw_model
    assert isinstance(model, SwinTransformer)
    patches = model.features[0][0]
    assert (patches.kernel_size, patches.stride, patches.out_channels) == ((1, 1), (1, 1), 12)
    stages = [model.features[i] for i in (1, 3, 5)]
    assert [len(stage) for stage in stages] == [1, 2, 1]
    blocks = [block for stage in stages for block in stage]
    assert [block.attn.num_heads for block in blocks] == [3, 2, 2, 6]
    assert [block.attn.qkv.in_features for block in blocks] == [12, 24, 24, 48]
    assert [block.attn.window_tokens for block in blocks] == [16, 16, 16, 4], "maps of 8, 4 and 2"
    assert [len(block.attn.relative_position_bias_table) for block in blocks] == [(2 * 4 - 1) ** 2] * 4
    assert [block.mlp[0].out_features for block in blocks] == [36, 72, 72, 144]
    assert [block.mlp[3].in_features for block in blocks] == [36, 72, 72, 144]
    assert [module.p for module in of_type(model, nn.Dropout)] == [0.25] * 12
    assert [module.rate for module in of_type(model, DropPath)] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert [module.approximate for module in of_type(model, nn.GELU)] == ["tanh"] * 4
    assert all(mlp.fused is None for mlp in of_type(model, MLP))
    assert calls(model, monkeypatch) == {"dropout": 12, "drop path": 8, "checkpoint": 4}


def test_every_field_of_vit_is_in_the_module(
    build_trainer: TrainerBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_trainer("model=vit_ti4", *words_of(VIT)).raw_model
    assert isinstance(model, VisionTransformer)
    assert (model.conv_proj.kernel_size, model.conv_proj.stride) == ((2, 2), (2, 2))
    assert model.conv_proj.out_channels == 10
    assert model.class_token is None, "pool=mean"
    assert model.encoder.pos_embedding.shape == (1, 16, 10)
    blocks = list(model.encoder.layers)
    assert [block.self_attention.num_heads for block in blocks] == [5, 5, 5]
    assert [(b.mlp[0].out_features, b.mlp[3].in_features) for b in blocks] == [(15, 15)] * 3
    assert [module.p for module in of_type(model, nn.Dropout)] == [0.125] * (1 + 3 * 3)
    assert [module.rate for module in of_type(model, DropPath)] == pytest.approx([0.0, 0.2, 0.4])
    assert [module.approximate for module in of_type(model, nn.GELU)] == ["tanh"] * 3
    assert calls(model, monkeypatch) == {"dropout": 10, "drop path": 6, "checkpoint": 3}


@pytest.mark.parametrize("preset", ["swin_nano", "vit_ti4"])
def test_what_is_switched_on_by_a_field_is_off_without_it(
    preset: str, build_trainer: TrainerBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = "embed_dim=6" if preset == "swin_nano" else "hidden_dim=6"
    model = build_trainer(
        f"model={preset}", "model.patch_size=2", f"model.{size}", "model.ops=eager"
    ).raw_model
    assert calls(model, monkeypatch)["checkpoint"] == 0
    assert {module.approximate for module in of_type(model, nn.GELU)} == {"none"}
    assert {module.p for module in of_type(model, nn.Dropout)} == {0.0}
    assert {module.rate for module in of_type(model, DropPath)} == {0.0}
    assert (getattr(model, "class_token", None) is not None) == (preset == "vit_ti4")


def test_ops_says_who_computes_the_mlps(
    build_trainer: TrainerBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Native ops are faked, so it does not matter whether they are built on this machine."""
    ops = types.SimpleNamespace(linear_gelu=object(), gelu_mlp=object())
    monkeypatch.setattr(fused, "native_ops", lambda _device: (ops, ""))
    for asked, kind in (("auto", "fused"), ("fused", "fused"), ("eager", "eager")):
        trainer = build_trainer(f"model.ops={asked}")
        assert trainer.ops == fused.OpsChoice(kind)
        for mlp in of_type(trainer.raw_model, MLP):
            if kind == "fused":
                assert mlp.fused == (ops.linear_gelu, ops.gelu_mlp, "auto")
            else:
                assert mlp.fused is None
    trainer = build_trainer("model.ops=fused", "run.deterministic=true")
    assert {mlp.fused.implementation for mlp in of_type(trainer.raw_model, MLP)} == {"separate"}
    monkeypatch.setattr(fused, "native_ops", lambda _device: (None, "nobody built them"))
    assert build_trainer("model.ops=auto").ops == fused.OpsChoice("eager", "nobody built them")
    with pytest.raises(UsageError, match="nobody built them"):
        build_trainer("model.ops=fused")


SMALL = {
    "swin": ["model=swin_nano", "model.patch_size=2", "model.embed_dim=6"],
    "vit": ["model=vit_ti4", "model.patch_size=2", "model.hidden_dim=6", "model.num_layers=1"],
    "torchvision": ["model=torchvision", "model.arch=shufflenet_v2_x0_5"],
}


@pytest.mark.parametrize("name", SMALL)
def test_training_starts_from_the_weights_that_are_named(
    name: str, build_trainer: TrainerBuilder, tmp_path: Path
) -> None:
    """Weights of a model with another seed are loaded bit for bit; without the field they differ."""
    there = build_trainer(*SMALL[name], "run.seed=7").raw_model.state_dict()
    torch.save(there, tmp_path / "weights.pth")
    own = build_trainer(*SMALL[name]).raw_model.state_dict()
    here = build_trainer(*SMALL[name], f"model.weights={tmp_path / 'weights.pth'}").raw_model.state_dict()
    drawn = [key for key in own if not torch.equal(own[key], there[key])]
    assert any("head" in key or "fc" in key for key in drawn) and len(drawn) > 2
    for key, value in here.items():
        assert torch.equal(value, there[key]), key


def test_a_model_of_torchvision_is_the_one_that_is_named(build_trainer: TrainerBuilder) -> None:
    trainer = build_trainer("model=torchvision", "model.arch=squeezenet1_1", "data.image_size=32")
    assert isinstance(trainer.raw_model, torchvision.models.SqueezeNet)
    assert trainer.raw_model.features[0].out_channels == 64, "version 1.1, not 1.0"
    assert trainer.raw_model.classifier[1].out_channels == 3, "classes"
    assert trainer.config.model.title == "squeezenet1_1"


class Made(nn.Module):
    """Model that the fake timm returns: one layer filled with `start`, and a record of the arguments."""

    def __init__(self, asked: dict[str, Any], start: float) -> None:
        super().__init__()
        self.asked = asked
        self.checkpointing: list[bool] = []
        self.pretrained_cfg = {"classifier": "fc", "tag": "in1k"}
        self.fc = nn.Linear(asked["in_chans"] * asked["img_size"] ** 2, asked["num_classes"])
        nn.init.constant_(self.fc.weight, start)

    def set_grad_checkpointing(self, enable: bool) -> None:
        self.checkpointing.append(enable)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(images.flatten(1))


@pytest.fixture
def stand_in_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(arch: str, pretrained: bool, **options: Any) -> Made:
        asked = {"arch": arch, **options}
        return Made(asked, 0.5 if pretrained else 0.25)

    timm = types.ModuleType("timm")
    timm.create_model = create_model  # type: ignore[attr-defined]
    timm.is_model = lambda name: name == "tiny_net"  # type: ignore[attr-defined]
    timm.list_models = lambda: ["tiny_net"]  # type: ignore[attr-defined]
    timm.list_pretrained = lambda _pattern: ["tiny_net.in1k"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", timm)


def test_every_field_of_a_timm_model_is_what_timm_is_asked_for(
    build_trainer: TrainerBuilder, stand_in_timm: None
) -> None:
    plain = build_trainer("model=timm", "model.arch=tiny_net", "data.image_size=6").raw_model
    assert isinstance(plain, Made)
    sizes = {"arch": "tiny_net", "num_classes": 3, "in_chans": 3, "img_size": 6}
    assert plain.asked == {**sizes, "drop_rate": None, "drop_path_rate": None}
    assert plain.checkpointing == []
    assert set(plain.fc.weight.unique().tolist()) == {0.25}, "from scratch"
    fields = ["model.drop_rate=0.125", "model.drop_path_rate=0.375", "model.gradient_checkpointing=true"]
    trainer = build_trainer("model=timm", "model.arch=tiny_net.in1k", *fields, "model.weights=imagenet")
    model = trainer.raw_model
    assert isinstance(model, Made)
    assert model.asked == {
        **sizes,
        "arch": "tiny_net.in1k",
        "img_size": 8,
        "drop_rate": 0.125,
        "drop_path_rate": 0.375,
    }
    assert model.checkpointing == [True]
    assert set(model.fc.weight.unique().tolist()) == {0.5}, "timm's weights"
    assert trainer.config.model.title == "tiny_net.in1k"


def test_a_name_or_a_tag_that_timm_does_not_have_is_refused(
    build_trainer: TrainerBuilder, stand_in_timm: None
) -> None:
    with pytest.raises(UsageError, match="timm has no such classification model") as caught:
        build_trainer("model=timm", "model.arch=tiny_ne")
    assert "tiny_net" in caught.value.fix
    with pytest.raises(UsageError, match="tiny_net has no tag 'in21k'") as caught:
        build_trainer("model=timm", "model.arch=tiny_net.in21k")
    assert "tagged in1k" in caught.value.fix
