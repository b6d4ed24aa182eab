"""Names of all fields, frozen: stored runs and users' commands depend on them."""

import dataclasses

from neuscale.config import schema

FIELDS = {
    "Config": "experiment data augment model optim train eval checkpoint tracking run",
    "DataConfig": "name source stage image_size mean std interpolation crop sampler loader "
    "memory_share workers dataset",
    "AugmentConfig": "crop_padding resized_crop horizontal_flip policy policy_layers policy_magnitude "
    "brightness contrast saturation hue erasing mixup_alpha cutmix_alpha "
    "function function_draws",
    "ModelConfig": "name weights",
    "TransformerConfig": "+ patch_size mlp_ratio dropout drop_path_rate gradient_checkpointing "
    "gelu_approximate ops",
    "SwinConfig": "+ embed_dim depths num_heads window_size",
    "ViTConfig": "+ hidden_dim num_layers num_heads pool",
    "TorchvisionConfig": "+ arch",
    "TimmConfig": "+ arch imports drop_rate drop_path_rate gradient_checkpointing",
    "TargetModelConfig": "+ target args",
    "OptimConfig": "name lr weight_decay layer_decay schedule function warmup_epochs final_lr_ratio "
    "step_epochs step_factor on_extend clip_grad_norm",
    "AdamWConfig": "+ beta1 beta2 eps",
    "SGDConfig": "+ momentum nesterov",
    "MuonConfig": "+ momentum",
    "TargetOptimConfig": "+ target args",
    "TrainConfig": "epochs max_steps global_batch_size micro_batch loss class_weights label_smoothing "
    "focal_gamma precision freeze_layers linear_probe ema_decay patience compile channels_last "
    "log_every_steps profile",
    "EvalConfig": "batch_size every_epochs metric functions min_delta",
    "CheckpointConfig": "every_steps keep_last milestones",
    "TrackingConfig": "trackers sample_images project options",
    "RunConfig": "name seed time_limit deterministic device",
}
SCHEMAS = {name: value for name, value in vars(schema).items() if dataclasses.is_dataclass(value)}


def test_the_fields_are_these() -> None:
    """Change this list only on purpose: stored runs with a removed field can no longer be read."""
    found = {}
    for name, cls in SCHEMAS.items():
        inherited = {
            f.name
            for base in cls.__bases__
            if dataclasses.is_dataclass(base)
            for f in dataclasses.fields(base)
        }
        own = [f.name for f in dataclasses.fields(cls) if f.name not in inherited]
        found[name] = " ".join(["+", *own] if inherited else own)
    assert found == FIELDS


def test_every_field_has_a_help_and_its_default_is_in_range() -> None:
    for name, cls in SCHEMAS.items():
        for field in dataclasses.fields(cls):
            if field.default_factory is not dataclasses.MISSING and "help" not in field.metadata:
                assert name == "Config", f"{name}.{field.name} has no help"
            else:
                assert field.metadata["help"], f"{name}.{field.name}"


def test_nothing_heavy_is_imported_for_a_configuration() -> None:
    """No heavy package is imported, so that `neuscale train --help` and `--print-config` answer at once."""
    import subprocess
    import sys

    code = (
        "import sys; from neuscale.config import compose_config; compose_config([]); "
        "print([m for m in ('torch', 'torchvision', 'accelerate', 'numpy') if m in sys.modules])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert shown.stdout.strip() == "[]"
