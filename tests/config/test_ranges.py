"""Range and choices of every field, tested at each bound and at the next number beyond it."""

import dataclasses
import math
import re
from typing import Any

import pytest

from neuscale.config import schema
from neuscale.config.fields import check_ranges
from neuscale.errors import EXIT_USAGE, UsageError

# "[" and "]" include the bound, "(" and ")" exclude it.
RANGES: dict[str, dict[str, str]] = {
    "DataConfig": {
        "image_size": "[4, 4096]",
        "crop": "(0, 1]",
        "std": "(0, inf)",
        "memory_share": "(0, 1]",
        "workers": "[0, 256]",
    },
    "AugmentConfig": {
        "crop_padding": "[0, 1024]",
        "resized_crop": "[0, 1]",
        "horizontal_flip": "[0, 1]",
        "policy_layers": "[1, 8]",
        "policy_magnitude": "[0, 30]",
        "brightness": "[0, 10]",
        "contrast": "[0, 10]",
        "saturation": "[0, 10]",
        "hue": "[0, 0.5]",
        "erasing": "[0, 1]",
        "mixup_alpha": "[0, 100]",
        "cutmix_alpha": "[0, 100]",
        "function_draws": "[0, 1024]",
    },
    "SwinConfig": {
        "patch_size": "[1, 1024]",
        "mlp_ratio": "[0.25, 64]",
        "dropout": "[0, 1)",
        "drop_path_rate": "[0, 1)",
        "embed_dim": "[1, 8192]",
        "depths": "[1, 200]",
        "num_heads": "[1, 1024]",
        "window_size": "[1, 64]",
    },
    "ViTConfig": {
        "patch_size": "[1, 1024]",
        "mlp_ratio": "[0.25, 64]",
        "dropout": "[0, 1)",
        "drop_path_rate": "[0, 1)",
        "hidden_dim": "[1, 8192]",
        "num_layers": "[1, 200]",
        "num_heads": "[1, 1024]",
    },
    "TorchvisionConfig": {},
    "TimmConfig": {"drop_rate": "[0, 1)", "drop_path_rate": "[0, 1)"},
    "AdamWConfig": {
        "lr": "(0, inf)",
        "weight_decay": "[0, inf)",
        "layer_decay": "(0, 1]",
        "warmup_epochs": "[0, inf)",
        "final_lr_ratio": "[0, 1]",
        "step_epochs": "[1, inf)",
        "step_factor": "(0, 1)",
        "clip_grad_norm": "(0, inf)",
        "beta1": "[0, 1)",
        "beta2": "[0, 1)",
        "eps": "(0, inf)",
    },
    "TrainConfig": {
        "epochs": "[1, inf)",
        "max_steps": "[1, inf)",
        "global_batch_size": "[1, 1048576]",
        "label_smoothing": "[0, 1)",
        "focal_gamma": "[0, 10]",
        "freeze_layers": "[0, inf)",
        "ema_decay": "[0, 1)",
        "patience": "[1, inf)",
        "log_every_steps": "[1, inf)",
    },
    "EvalConfig": {"batch_size": "[1, inf)", "every_epochs": "[1, inf)", "min_delta": "[0, inf)"},
    "CheckpointConfig": {"every_steps": "[1, inf)", "keep_last": "[1, inf)", "milestones": "[1, inf)"},
    "TrackingConfig": {"sample_images": "[0, 1024]"},
    "RunConfig": {"seed": "[0, 9223372036854775807]"},
}
_OF_ALL_OPTIMIZERS = {k: v for k, v in RANGES["AdamWConfig"].items() if k not in ("beta1", "beta2", "eps")}
RANGES["SGDConfig"] = _OF_ALL_OPTIMIZERS | {"momentum": "[0, 1)"}
RANGES["TargetOptimConfig"] = _OF_ALL_OPTIMIZERS
RANGES["MuonConfig"] = RANGES["AdamWConfig"] | {"momentum": "[0, 1)"}

SCHEDULES = {"schedule": "cosine linear step constant", "on_extend": "rescale hold restart"}
CHOICES: dict[str, dict[str, str]] = {
    "DataConfig": {
        "loader": "auto resident stream files",
        "sampler": "uniform balanced",
        "interpolation": "bilinear bicubic",
    },
    "AugmentConfig": {"policy": "none randaugment trivialaugment"},
    "SwinConfig": {"name": "swin", "gelu_approximate": "none tanh", "ops": "auto fused eager"},
    "ViTConfig": {
        "name": "vit",
        "gelu_approximate": "none tanh",
        "ops": "auto fused eager",
        "pool": "token mean",
    },
    "TorchvisionConfig": {"name": "torchvision"},
    "TimmConfig": {"name": "timm"},
    "TargetModelConfig": {"name": "target"},
    "TargetOptimConfig": {
        "name": "target",
        "schedule": "cosine linear step constant",
        "on_extend": "rescale hold restart",
    },
    "AdamWConfig": {
        "name": "adamw",
        "schedule": "cosine linear step constant",
        "on_extend": "rescale hold restart",
    },
    "SGDConfig": {
        "name": "sgd",
        "schedule": "cosine linear step constant",
        "on_extend": "rescale hold restart",
    },
    "MuonConfig": {
        "name": "muon",
        "schedule": "cosine linear step constant",
        "on_extend": "rescale hold restart",
    },
    "TrainConfig": {"precision": "auto fp32 tf32 bf16 fp16"},
    "RunConfig": {"device": "auto cuda mps cpu"},
}
SCHEMAS: dict[str, type] = {
    name: cls
    for name, cls in vars(schema).items()
    if dataclasses.is_dataclass(cls)
    and isinstance(cls, type)
    and name not in ("Config", "ModelConfig", "TransformerConfig", "OptimConfig")
}
INTEGERS = {
    *(
        "image_size",
        "workers",
        "crop_padding",
        "policy_layers",
        "policy_magnitude",
        "patch_size",
        "function_draws",
    ),
    *("embed_dim", "depths", "num_heads", "window_size", "hidden_dim", "num_layers", "step_epochs"),
    *("epochs", "max_steps", "global_batch_size", "freeze_layers", "patience", "log_every_steps"),
    *("batch_size", "every_epochs", "every_steps", "keep_last", "milestones", "sample_images", "seed"),
}
LISTS = {"std", "depths", "step_epochs", "milestones"}


def checked(cls: str, field: str, value: Any) -> None:
    """Check the ranges of a section with one field set to `value`."""
    listed = field in LISTS or (cls, field) == ("SwinConfig", "num_heads")
    section = SCHEMAS[cls]()
    setattr(section, field, [2, value, 3] if listed else value)
    for other in dataclasses.fields(section):  # fields without a default are not tested here
        if getattr(section, other.name) == "???" and other.name != field:
            setattr(section, other.name, None)
    check_ranges(section, "section.")


@pytest.mark.parametrize("cls", sorted(SCHEMAS))
def test_no_field_has_a_range_or_choices_that_are_not_written_here(cls: str) -> None:
    ranged, chosen = {}, {}
    for field in dataclasses.fields(SCHEMAS[cls]):
        meta = field.metadata
        if meta.get("choices"):
            chosen[field.name] = " ".join(meta["choices"])
        if any(meta.get(bound) is not None for bound in ("gt", "ge", "lt", "le")):
            ranged[field.name] = None
    assert set(ranged) == set(RANGES.get(cls, {}))
    assert chosen == CHOICES.get(cls, {})


@pytest.mark.parametrize(
    ("cls", "field"), [(cls, field) for cls, fields in RANGES.items() for field in fields]
)
def test_a_bound_holds_at_the_bound_and_fails_just_beyond(cls: str, field: str) -> None:
    found = re.fullmatch(r"([\[(])(\S+), (\S+)([\])])", RANGES[cls][field])
    assert found
    whole = field in INTEGERS
    allowed: list[float] = []
    refused: list[tuple[float, str]] = []
    for bracket, text, outwards in ((found[1], found[2], -1), (found[4], found[3], 1)):
        if text == "inf":
            allowed.append(10**15 if whole else 1e300)
            refused += [] if whole else [(math.inf, "a finite number"), (math.nan, "a finite number")]
            continue
        bound = int(text) if whole else float(text)
        beyond = bound + outwards if whole else math.nextafter(bound, outwards * math.inf)
        within = bound - outwards if whole else math.nextafter(bound, -outwards * math.inf)
        words = {"[": "at least", "(": "more than", "]": "at most", ")": "less than"}[bracket]
        said = f"{words} {bound:g}"
        if bracket in "[]":
            allowed += [bound, within]
        else:
            allowed.append(within)
            refused.append((bound, said))
        refused.append((beyond, said))
    for value in allowed:
        checked(cls, field, value)
    for value, said in refused:
        with pytest.raises(UsageError) as caught:
            checked(cls, field, value)
        assert caught.value.problem.startswith(f"section.{field}={value}: expected ")
        assert said in caught.value.problem
        assert caught.value.exit_code == EXIT_USAGE


@pytest.mark.parametrize(
    ("cls", "field"), [(cls, field) for cls, fields in CHOICES.items() for field in fields]
)
def test_each_choice_is_taken_and_no_other(cls: str, field: str) -> None:
    choices = CHOICES[cls][field].split()
    for choice in choices:
        checked(cls, field, choice)
    for wrong in ("other", "", choices[0].upper()):
        with pytest.raises(UsageError) as caught:
            checked(cls, field, wrong)
        assert caught.value.problem == f"section.{field}={wrong}: expected one of {', '.join(choices)}."


def test_a_field_that_may_be_null_has_no_range_there() -> None:
    for cls, field in (
        ("DataConfig", "workers"),
        ("TrainConfig", "patience"),
        ("SGDConfig", "clip_grad_norm"),
    ):
        checked(cls, field, None)
