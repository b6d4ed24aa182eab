"""Default of every field, spelled out: it holds where no recipe, preset or override sets the field."""

import dataclasses
from typing import Any

import pytest
from omegaconf import MISSING

from neuscale.config import schema

# Fields of each class; those of its base class apply unless they are given again.
DEFAULTS: dict[str, dict[str, Any]] = {
    "DataConfig": {
        "name": MISSING,
        "source": None,
        "stage": "auto",
        "image_size": None,
        "interpolation": None,
        "crop": None,
        "mean": [],
        "std": [],
        "sampler": "uniform",
        "loader": "auto",
        "memory_share": 0.5,
        "workers": None,
        "dataset": None,
    },
    "AugmentConfig": {
        "crop_padding": 0,
        "resized_crop": 0.0,
        "horizontal_flip": 0.0,
        "policy": "none",
        "policy_layers": 2,  # torchvision's defaults of RandAugment's N and M
        "policy_magnitude": 9,
        "brightness": 0.0,
        "contrast": 0.0,
        "saturation": 0.0,
        "hue": 0.0,
        "erasing": 0.0,
        "mixup_alpha": 0.0,
        "cutmix_alpha": 0.0,
        "function": None,
        "function_draws": 8,
    },
    "ModelConfig": {"name": MISSING, "weights": None},
    "TransformerConfig": {
        "patch_size": 4,
        "mlp_ratio": 4.0,
        "dropout": 0.0,
        "drop_path_rate": 0.0,
        "gradient_checkpointing": False,
        "gelu_approximate": "none",
        "ops": "auto",
    },
    "SwinConfig": {  # sizes of Swin-T
        "name": "swin",
        "embed_dim": 96,
        "depths": [2, 2, 6, 2],
        "num_heads": [3, 6, 12, 24],
        "window_size": 7,
    },
    "ViTConfig": {  # sizes of ViT-S
        "name": "vit",
        "hidden_dim": 384,
        "num_layers": 12,
        "num_heads": 6,
        "pool": "token",
    },
    "TorchvisionConfig": {"name": "torchvision", "arch": MISSING},
    "TimmConfig": {
        "name": "timm",
        "arch": MISSING,
        "drop_rate": None,
        "drop_path_rate": None,
        "gradient_checkpointing": False,
        "imports": [],
    },
    "TargetModelConfig": {"name": "target", "target": MISSING, "args": {}},
    "TargetOptimConfig": {"name": "target", "target": MISSING, "args": {}},
    "OptimConfig": {
        "name": MISSING,
        "lr": MISSING,
        "weight_decay": 0.0,
        "layer_decay": 1.0,
        "schedule": "cosine",
        "function": None,
        "warmup_epochs": 0.0,
        "final_lr_ratio": 0.0,
        "step_epochs": [],
        "step_factor": 0.1,
        "on_extend": "rescale",
        "clip_grad_norm": None,
    },
    "AdamWConfig": {
        "name": "adamw",
        "lr": 1e-3,
        "weight_decay": 0.05,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
    },
    "SGDConfig": {"name": "sgd", "lr": 0.1, "weight_decay": 5e-4, "momentum": 0.9, "nesterov": True},
    "MuonConfig": {"name": "muon", "momentum": 0.95},
    "TrainConfig": {
        "epochs": MISSING,
        "max_steps": None,
        "global_batch_size": MISSING,
        "micro_batch": "auto",
        "loss": None,
        "class_weights": "none",
        "label_smoothing": 0.0,
        "focal_gamma": 0.0,
        "precision": "auto",
        "freeze_layers": 0,
        "linear_probe": False,
        "ema_decay": 0.0,
        "patience": None,
        "compile": False,
        "channels_last": False,
        "log_every_steps": 50,
        "profile": False,
    },
    "EvalConfig": {"batch_size": 500, "every_epochs": 1, "metric": "auto", "functions": {}, "min_delta": 0.0},
    "CheckpointConfig": {"every_steps": None, "keep_last": 2, "milestones": []},
    "TrackingConfig": {
        "trackers": ["tensorboard"],
        "sample_images": 32,
        "project": None,
        "options": {},
    },
    "RunConfig": {
        "name": None,
        "seed": 0,
        "time_limit": None,
        "deterministic": False,
        "device": "auto",
    },
}
SCHEMAS = {
    name: cls
    for name, cls in vars(schema).items()
    if dataclasses.is_dataclass(cls) and isinstance(cls, type) and name != "Config"
}


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_every_default_is_the_one_written_here(name: str) -> None:
    expected: dict[str, Any] = {}
    for base in reversed(SCHEMAS[name].__mro__[:-1]):
        expected |= DEFAULTS[base.__name__]
    found = {
        field.name: field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[misc]
        for field in dataclasses.fields(SCHEMAS[name])
    }
    assert found == expected
    assert {key: type(value) for key, value in found.items()} == {
        key: type(value) for key, value in expected.items()
    }


def test_a_whole_configuration_starts_from_these_sections() -> None:
    assert {field.name: field.type for field in dataclasses.fields(schema.Config)} == {
        "experiment": str | None,
        "data": schema.DataConfig,
        "augment": schema.AugmentConfig,
        "model": schema.ModelConfig,
        "optim": schema.OptimConfig,
        "train": schema.TrainConfig,
        "eval": schema.EvalConfig,
        "checkpoint": schema.CheckpointConfig,
        "tracking": schema.TrackingConfig,
        "run": schema.RunConfig,
    }
    assert schema.Config().experiment is None


def test_two_configurations_share_no_list() -> None:
    """A change of one run's milestones does not change those of the next run."""
    one, other = schema.CheckpointConfig(), schema.CheckpointConfig()
    one.milestones.append(3)
    assert other.milestones == schema.CheckpointConfig().milestones == []
