"""Layers of a model's parameters, and freezing some of them."""

from torch import nn

from neuscale.config.schema import TrainConfig
from neuscale.errors import UsageError
from neuscale.models.library import head_names
from neuscale.models.swin import SwinTransformer
from neuscale.models.vit import VisionTransformer


def parameter_layers(model: nn.Module) -> dict[str, int]:
    """Layer number of each parameter: 0 for the embedding, then one per block, the head last.

    Raises UsageError for a model whose blocks are not known.
    """
    blocks = _blocks(model)
    names = [name for name, _ in model.named_parameters()]
    return {name: _layer(name, blocks) for name in names}


def freeze(model: nn.Module, config: TrainConfig) -> list[nn.Module]:
    """Freeze the parameters that `config` excludes from training; return the modules that are frozen.

    Raises UsageError if nothing would be left to train.
    """
    if config.linear_probe:
        heads = head_names(model)
        frozen = {name for name, _ in model.named_parameters() if not name.startswith(heads)}
    elif config.freeze_layers:
        layers = parameter_layers(model)
        last = max(layers.values())
        if config.freeze_layers > last:
            raise UsageError(
                f"train.freeze_layers={config.freeze_layers}: the model has {last} layers before its head.",
                "Freeze fewer; train.linear_probe=true trains the head only.",
            )
        frozen = {name for name, layer in layers.items() if layer < config.freeze_layers}
    else:
        return []
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    return [
        module
        for module in model.modules()
        if module is not model
        and any(True for _ in module.parameters())
        and not any(p.requires_grad for p in module.parameters())
    ]


def training_mode(model: nn.Module, frozen: list[nn.Module]) -> None:
    """Set training mode, except for `frozen` modules, which keep their statistics and use no dropout."""
    model.train()
    for module in frozen:
        module.eval()


def _blocks(model: nn.Module) -> list[str]:
    """Name prefixes of the parameters of each block, in the order of the forward pass."""
    if isinstance(model, SwinTransformer):
        # Patch merging belongs to the block before it.
        return [
            f"features.{i}.{j}."
            for i, stage in enumerate(model.features)
            if i % 2
            for j in range(len(list(stage.children())))
        ]
    if isinstance(model, VisionTransformer):
        return [f"encoder.layers.{name}." for name, _ in model.encoder.layers.named_children()]
    raise UsageError(
        f"the layers of {type(model).__name__} are not known to optim.layer_decay and train.freeze_layers.",
        "They are for model=swin_… and model=vit_…; train.linear_probe=true works for all models.",
    )


def _layer(name: str, blocks: list[str]) -> int:
    for i, prefix in enumerate(blocks):
        if name.startswith(prefix):
            return i + 1
    if name.startswith("features.") and not name.startswith("features.0."):  # patch merging
        stage = int(name.split(".")[1])
        return sum(int(prefix.split(".")[1]) < stage for prefix in blocks)
    embedding = name.startswith(("features.0.", "conv_proj", "class_token", "encoder.pos_embedding"))
    return 0 if embedding else len(blocks) + 1
