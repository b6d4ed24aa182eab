"""Layers of a model: their numbers, and what it means that some are frozen."""

import torch
from torch import nn

from neuscale.config import compose_config
from neuscale.models.registry import create_model
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
