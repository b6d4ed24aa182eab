"""Values of every preset and recipe, spelled out where they differ from the fields' defaults."""

import dataclasses
from typing import Any

import pytest

from neuscale.config import compose_config
from neuscale.config.preset_files import preset_groups

# Swin: table 7 of Liu et al. 2021, with their drop path rates for ImageNet-1k.
SWIN_T = {"name": "swin", "drop_path_rate": 0.2}
SWIN_S = {"name": "swin", "depths": [2, 2, 18, 2], "drop_path_rate": 0.3}
SWIN_B = {
    "name": "swin",
    "embed_dim": 128,
    "depths": [2, 2, 18, 2],
    "num_heads": [4, 8, 16, 32],
    "drop_path_rate": 0.5,
}
SWIN_NANO = {"name": "swin", "embed_dim": 48, "depths": [2, 2], "num_heads": [3, 6], "mlp_ratio": 2.0}
# ViT: table 1 of Touvron et al. 2021.
VIT_TI4 = {"name": "vit", "hidden_dim": 192, "num_heads": 3}
VIT_S4 = {"name": "vit", "drop_path_rate": 0.1}

CROP_FLIP = {"crop_padding": 4, "horizontal_flip": 0.5}
# As in DeiT: RandAugment with 2 operations of magnitude 9, Mixup 0.8, CutMix 1.0, erasing 0.25.
STRONG = {
    "crop_padding": 4,
    "horizontal_flip": 0.5,
    "policy": "randaugment",
    "erasing": 0.25,
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
}
COSINE = {"warmup_epochs": 1.0, "clip_grad_norm": 1.0}
ADAMW = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05, **COSINE}
SGD = {"name": "sgd", "lr": 0.1, "weight_decay": 5e-4, **COSINE}
MUON = {"name": "muon", "lr": 2e-3, "weight_decay": 0.05, **COSINE}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "data": {
        name: {"name": name}
        for name in ("cifar10", "cifar100", "fashion_mnist", "image_folder", "tiny_imagenet")
    },
    "augment": {
        "none": {},
        "crop_flip": CROP_FLIP,
        "imagenet": {"resized_crop": 0.08, "horizontal_flip": 0.5},
        "strong": STRONG,
    },
    "model": {
        "swin_nano": SWIN_NANO,
        "swin_t": SWIN_T,
        "swin_s": SWIN_S,
        "swin_b": SWIN_B,
        "vit_ti4": VIT_TI4,
        "vit_s4": VIT_S4,
        "torchvision": {"name": "torchvision", "arch": "resnet18"},
        "timm": {"name": "timm", "arch": "resnet18"},
        "target": {"name": "target", "target": "a.B"},
    },
    "optim": {
        "adamw": ADAMW,
        "sgd": SGD,
        "muon": MUON,
        "target": {"name": "target", "target": "a.B", "lr": 0.1, "weight_decay": 0.0},
    },
    "tracking": {
        "tensorboard": {},
        **{
            name: {"trackers": ["tensorboard", name]}
            for name in ["aim", "clearml", "comet", "dvclive", "mlflow", "swanlab", "trackio", "wandb"]
        },
    },
}
EXPERIMENTS: dict[str, dict[str, dict[str, Any]]] = {
    "quickstart": {
        "data": {"name": "fashion_mnist"},
        "augment": {"crop_padding": 1, "horizontal_flip": 0.5},
        "model": SWIN_NANO,
        "optim": MUON | {"lr": 8e-3, "warmup_epochs": 0.25},
        "train": {"epochs": 2, "global_batch_size": 128},
    },
    "cifar10_swin_t": {
        "data": {"name": "cifar10"},
        "augment": CROP_FLIP,
        "model": SWIN_T,
        "optim": ADAMW | {"warmup_epochs": 5.0},
        "train": {"epochs": 100, "global_batch_size": 256, "label_smoothing": 0.1},
    },
    "tiny_imagenet_vit": {
        "data": {"name": "tiny_imagenet"},
        "augment": STRONG | {"crop_padding": 8},
        "model": VIT_S4,
        "optim": ADAMW | {"warmup_epochs": 10.0},
        "train": {"epochs": 100, "global_batch_size": 512, "label_smoothing": 0.1},
    },
    "finetune": {
        "data": {"name": "image_folder", "image_size": 224},
        "augment": CROP_FLIP,
        "model": SWIN_T | {"weights": "imagenet"},
        "optim": ADAMW | {"lr": 2e-4},
        "train": {"epochs": 10, "global_batch_size": 64, "label_smoothing": 0.1},
    },
}
# Fields that are always listed, even where they equal their defaults.
SHOWN = ("name", "lr", "weight_decay")


def changed(section: Any) -> dict[str, Any]:
    """Fields of a section that differ from their class's defaults, and those in SHOWN."""
    default = type(section)()
    return {
        field.name: getattr(section, field.name)
        for field in dataclasses.fields(section)
        if field.name in SHOWN or getattr(section, field.name) != getattr(default, field.name)
    }


def test_every_preset_is_written_here() -> None:
    written = {group: sorted(names) for group, names in PRESETS.items()}
    assert preset_groups() == written | {"experiment": sorted(EXPERIMENTS)}


@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group, names in PRESETS.items() for name in names]
)
def test_a_preset_has_the_values_written_here(group: str, name: str) -> None:
    needed = ["model.arch=resnet18"] if name in ("torchvision", "timm") else []
    if name == "target":
        needed = [f"{group}.target=a.B", *(["optim.lr=0.1"] if group == "optim" else [])]
    words = ["experiment=null", "train.epochs=1", "train.global_batch_size=1"]
    config = compose_config([*words, f"{group}={name}", *needed])
    assert changed(getattr(config, group)) == PRESETS[group][name]


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_a_recipe_has_the_values_written_here_and_no_others(name: str) -> None:
    config = compose_config([f"experiment={name}"])
    assert config.experiment == name
    sections = [field.name for field in dataclasses.fields(config) if field.name != "experiment"]
    found = {section: changed(getattr(config, section)) for section in sections}
    found["run"].pop("name")  # always listed; it is null
    assert {section: fields for section, fields in found.items() if fields} == EXPERIMENTS[name]


def test_without_a_recipe_the_base_has_a_small_model_and_adamw() -> None:
    config = compose_config(["experiment=null", "train.epochs=3", "train.global_batch_size=8"])
    assert changed(config.augment) == CROP_FLIP
    assert changed(config.model) == SWIN_NANO
    assert changed(config.optim) == ADAMW
    assert (config.data.name, config.train.epochs, config.train.global_batch_size) == ("fashion_mnist", 3, 8)
    assert config.tracking.trackers == ["tensorboard"]
