"""The sections of the schema that have variants: the model and the optimizer."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from neuscale.config.fields import option


@dataclass
class ModelConfig:
    name: str = option(
        MISSING,
        "architecture, or the library that has it",
        choices=("swin", "vit", "torchvision", "timm", "target"),
    )
    weights: str | None = option(
        None,
        "where to start from: 'imagenet' (its library's weights), a file of weights, or hf:OWNER/NAME;"
        " null: from scratch",
    )

    @property
    def title(self) -> str:
        """Display name of the model."""
        return self.name


@dataclass
class TransformerConfig(ModelConfig):
    """Fields common to this package's own models, Swin and ViT."""

    patch_size: int = option(4, "side of a patch in pixels", ge=1, le=1024)
    mlp_ratio: float = option(4.0, "hidden width of the MLP over the model's", ge=0.25, le=64)
    dropout: float = option(0.0, "dropout after attention and in the MLP", ge=0, lt=1)
    drop_path_rate: float = option(
        0.0, "stochastic depth, from 0 at the first block to this at the last", ge=0, lt=1
    )
    gradient_checkpointing: bool = option(False, "recompute each block in the backward pass to save memory")
    gelu_approximate: str = option(
        "none", "GELU's form: exact, or by tanh, which GPUs can fuse into the GEMM", choices=("none", "tanh")
    )
    ops: str = option(
        "auto", "native ops in the MLPs: 'auto' where they are built", choices=("auto", "fused", "eager")
    )


@dataclass
class SwinConfig(TransformerConfig):
    name: str = option("swin", "architecture", choices=("swin",))
    embed_dim: int = option(
        96, "channels of the first stage; each further stage has twice as many", ge=1, le=8192
    )
    depths: list[int] = option([2, 2, 6, 2], "blocks per stage", ge=1, le=200)
    num_heads: list[int] = option([3, 6, 12, 24], "attention heads per stage", ge=1, le=1024)
    window_size: int = option(7, "side of an attention window in tokens, fitted to smaller maps", ge=1, le=64)


@dataclass
class ViTConfig(TransformerConfig):
    name: str = option("vit", "architecture", choices=("vit",))
    hidden_dim: int = option(384, "channels", ge=1, le=8192)
    num_layers: int = option(12, "blocks", ge=1, le=200)
    num_heads: int = option(6, "attention heads", ge=1, le=1024)
    pool: str = option("token", "what the head reads", choices=("token", "mean"))


@dataclass
class TorchvisionConfig(ModelConfig):
    """A classification model of torchvision, as its constructor makes it."""

    name: str = option("torchvision", "the library", choices=("torchvision",))
    arch: str = option(MISSING, "a name that torchvision.models.list_models() shows, such as resnet18")

    @property
    def title(self) -> str:
        return self.arch


@dataclass
class TimmConfig(ModelConfig):
    """A classification model of timm, as its create_model makes it."""

    name: str = option("timm", "the library", choices=("timm",))
    arch: str = option(
        MISSING,
        "a name that timm.list_models() shows, such as vit_tiny_patch16_224; local-dir:FOLDER or"
        " hf-hub:NAME of a model that timm saved",
    )
    imports: list[str] = option([], "modules of your own that are imported first, for timm.register_model")
    drop_rate: float | None = option(None, "dropout before the head; null: the model's own", ge=0, lt=1)
    drop_path_rate: float | None = option(None, "stochastic depth; null: the model's own", ge=0, lt=1)
    gradient_checkpointing: bool = option(False, "recompute each block in the backward pass to save memory")

    @property
    def title(self) -> str:
        return self.arch.rstrip("/").rpartition("/")[2].rpartition(":")[2]


@dataclass
class TargetModelConfig(ModelConfig):
    name: str = option("target", "a class or function by its name", choices=("target",))
    target: str = option(MISSING, "the class, or the function that makes the model, as package.module.Name")
    args: dict[str, Any] = option(
        {}, "its arguments; num_classes, in_channels and image_size come by themselves"
    )

    @property
    def title(self) -> str:
        return self.target.rpartition(".")[2]


@dataclass
class OptimConfig:
    name: str = option(MISSING, "optimizer", choices=("adamw", "sgd", "muon", "target"))
    lr: float = option(MISSING, "peak learning rate", gt=0)
    weight_decay: float = option(
        0.0, "weight decay of matrices; norms, biases and embeddings have none", ge=0
    )
    layer_decay: float = option(
        1.0, "each layer's learning rate over that of the layer behind it", gt=0, le=1
    )
    schedule: str = option(
        "cosine",
        "the learning rate after warm-up",
        choices=("cosine", "linear", "step", "constant"),
    )
    function: dict[str, Any] | None = option(
        None,
        "a schedule of your own (`_target_`): step, total_steps, steps_per_epoch to a share of lr; null: as"
        " schedule says",
    )
    warmup_epochs: float = option(0.0, "epochs of linear warm-up", ge=0)
    final_lr_ratio: float = option(
        0.0, "learning rate at the end of a cosine or linear schedule over the peak's", ge=0, le=1
    )
    step_epochs: list[int] = option([], "epochs at whose ends a step schedule lowers the rate", ge=1)
    step_factor: float = option(0.1, "what it is multiplied by there", gt=0, lt=1)
    on_extend: str = option(
        "rescale",
        "the schedule of a run that goes on with more or fewer steps than it began with: stretched over"
        " all of them, held at its end, or begun anew over those that are left, without warm-up",
        choices=("rescale", "hold", "restart"),
    )
    clip_grad_norm: float | None = option(None, "largest norm of the gradient; null: no clipping", gt=0)


@dataclass
class AdamWConfig(OptimConfig):
    name: str = option("adamw", "optimizer", choices=("adamw",))
    lr: float = option(1e-3, "peak learning rate", gt=0)
    weight_decay: float = option(
        0.05, "weight decay of matrices; norms, biases and embeddings have none", ge=0
    )
    beta1: float = option(0.9, "decay of the gradient's mean", ge=0, lt=1)
    beta2: float = option(0.999, "decay of the gradient's mean square", ge=0, lt=1)
    eps: float = option(1e-8, "added to the denominator", gt=0)


@dataclass
class SGDConfig(OptimConfig):
    name: str = option("sgd", "optimizer", choices=("sgd",))
    lr: float = option(0.1, "peak learning rate", gt=0)
    weight_decay: float = option(
        5e-4, "weight decay of matrices; norms, biases and embeddings have none", ge=0
    )
    momentum: float = option(0.9, "momentum", ge=0, lt=1)
    nesterov: bool = option(True, "Nesterov's momentum")


@dataclass
class MuonConfig(AdamWConfig):
    """Muon for the blocks' matrices, AdamW with the same learning rate for everything else."""

    name: str = option("muon", "optimizer", choices=("muon",))
    momentum: float = option(0.95, "Muon's momentum", ge=0, lt=1)


@dataclass
class TargetOptimConfig(OptimConfig):
    name: str = option("target", "a class by its name", choices=("target",))
    target: str = option(MISSING, "the optimizer's class, as package.module.Name")
    args: dict[str, Any] = option({}, "its arguments beside lr and weight_decay")
