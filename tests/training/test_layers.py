"""Layers of a model: their numbers, the effect of freezing, and parameters without weight decay."""

import pytest
import torch
from torch import nn

from neuscale.config import compose_config
from neuscale.config.schema import TrainConfig
from neuscale.models.library import head_names
from neuscale.models.registry import create_model
from neuscale.training.optim import create_optimizer
from neuscale.training.param_groups import freeze, parameter_layers, training_mode


def test_the_layers_of_a_vit_count_from_the_patches_to_the_head() -> None:
    config = compose_config(["model=vit_ti4", "model.num_layers=3"])
    layers = parameter_layers(create_model(config.model, 8, 3, 5, 0))
    assert {name.split(".")[0]: layers[name] for name in layers if "encoder" not in name} == {
        "class_token": 0,
        "conv_proj": 0,
        "heads": 4,
    }
    assert layers["encoder.pos_embedding"] == 0
    assert layers["encoder.ln.weight"] == layers["encoder.ln.bias"] == 4
    for block in range(3):
        of_block = {n for name, n in layers.items() if f"encoder_layer_{block}." in name}
        assert of_block == {block + 1}


def test_what_is_frozen_drops_nothing_and_keeps_its_statistics() -> None:
    body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)))
    model = nn.Sequential()
    model.add_module("body", body)
    model.add_module("head", nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)))
    frozen = freeze(model, compose_config(["train.linear_probe=true"]).train)
    training_mode(model, frozen)
    assert model.training and model.head.training and model.head[1].training
    assert not any(module.training for module in (body[0], body[1], body[2]))
    before = body[1].running_mean.clone()
    model(torch.randn(8, 4))
    assert torch.equal(body[1].running_mean, before)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "head.0.weight",
        "head.0.bias",
    ]


@pytest.mark.parametrize(
    ("arch", "heads"),
    [
        ("inception_v4", {"last_linear"}),
        ("levit_128s", {"head", "head_dist"}),
        ("efficientvit_b0", {"head"}),
        ("resnet18", {"fc"}),
    ],
)
def test_a_librarys_model_says_itself_what_classifies(arch: str, heads: set[str]) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model(arch, num_classes=7)
    freeze(model, TrainConfig(1, None, 1, linear_probe=True))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and {name.split(".")[0] for name in trained} <= heads
    assert all(name.startswith(head_names(model)) for name in trained)
    assert {dict(model.named_parameters())[name].shape[0] for name in trained if "weight" in name} >= {7}


def no_decay(model: torch.nn.Module, *words: str) -> set[str]:
    optimizer = create_optimizer(compose_config(["optim=adamw", *words]).optim, model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]
        for group in optimizer.param_groups
        if group["weight_decay"] == 0
        for parameter in group["params"]
    }


def test_what_a_model_excepts_from_weight_decay_has_none() -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(4, 4)
            self.grid = torch.nn.Parameter(torch.zeros(2, 4, 4))
            self.scale = torch.nn.Parameter(torch.zeros(4, 1, 1))
            self.filter = torch.nn.Parameter(torch.zeros(4, 1, 3, 3))

        def no_weight_decay(self) -> set[str]:
            return {"grid"}

    assert no_decay(Odd()) == {"inner.bias", "grid", "scale"}


def test_scales_and_relative_positions_of_torchvisions_models_have_no_weight_decay() -> None:
    import torchvision

    found = no_decay(torchvision.models.convnext_tiny())
    scales = {name for name in found if name.endswith("layer_scale")}
    assert len(scales) == 18 and not any(name.endswith("block.0.weight") for name in found)
    swin = torchvision.models.swin_v2_t()
    without = no_decay(swin)
    for name, parameter in swin.named_parameters():
        is_scale = "logit_scale" in name or "cpb_mlp" in name
        assert (name in without) == (is_scale or parameter.dim() == 1), name
