"""The typed schema of a run. Presets fill it in; the command line has the last word.

A field's help, range and choices stand beside it; the checks read them. Nothing here is
imported from torch.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


def option(
    default: Any,
    help: str,
    *,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A field with its help and the values it may take (for a list, those of each item)."""
    metadata = {"help": help, "gt": gt, "ge": ge, "lt": lt, "le": le, "choices": choices}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class DataConfig:
    name: str = option(MISSING, "packed data set to train on, as 'neuscale data list' shows it")
    source: str | None = option(None, "file or folder to prepare it from where it is not prepared yet")
    stage: str = option(
        "auto", "copy to the node's own disk first: 'none', 'auto' ($TMPDIR in a batch job), or a folder"
    )
    image_size: int | None = option(
        None,
        "side in pixels of what the model sees, resized on the device; null: the data's own",
        ge=4,
        le=4096,
    )
    loader: str = option(
        "auto",
        "where images wait: on the device, packed on disk and read ahead, or in files",
        choices=("auto", "resident", "stream", "files"),
    )
    memory_share: float = option(
        0.5, "part of the device's memory that images may take; more than that is streamed", gt=0, le=1
    )
    workers: int | None = option(
        None, "processes that decode image files, for each process; null: one per core", ge=0, le=256
    )


@dataclass
class AugmentConfig:
    crop_padding: int = option(
        0, "pixels of zero padding for a random crop at the data's own size", ge=0, le=1024
    )
    resized_crop: float = option(
        0.0,
        "smallest part of an image's area that a random resized crop takes (ImageNet: 0.08); 0: none",
        ge=0,
        le=1,
    )
    horizontal_flip: float = option(0.0, "probability of mirroring an image", ge=0, le=1)
    policy: str = option(
        "none", "operations drawn for each image", choices=("none", "randaugment", "trivialaugment")
    )
    policy_layers: int = option(2, "RandAugment's operations per image", ge=1, le=8)
    policy_magnitude: int = option(9, "RandAugment's strength", ge=0, le=30)
    brightness: float = option(0.0, "brightness is multiplied by 1 ± this", ge=0, le=10)
    contrast: float = option(0.0, "contrast is multiplied by 1 ± this", ge=0, le=10)
    saturation: float = option(0.0, "saturation is multiplied by 1 ± this", ge=0, le=10)
    hue: float = option(0.0, "hue is turned by ± this part of the colour circle", ge=0, le=0.5)
    erasing: float = option(0.0, "probability that a rectangle of an image is erased", ge=0, le=1)
    mixup_alpha: float = option(0.0, "Mixup with shares from Beta(this, this); 0: none", ge=0, le=100)
    cutmix_alpha: float = option(0.0, "CutMix with shares from Beta(this, this); 0: none", ge=0, le=100)


@dataclass
class ModelConfig:
    name: str = option(
        MISSING, "architecture, or the library that has it", choices=("swin", "vit", "torchvision", "timm")
    )
    weights: str | None = option(
        None,
        "where to start from: 'imagenet' (its library's weights) or a file of weights; null: from scratch",
    )

    @property
    def title(self) -> str:
        """What to call the model."""
        return self.name


@dataclass
class TransformerConfig(ModelConfig):
    """What the models of this package, Swin and ViT, have in common."""

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
    arch: str = option(MISSING, "a name that timm.list_models() shows, such as vit_tiny_patch16_224")
    drop_rate: float | None = option(None, "dropout before the head; null: the model's own", ge=0, lt=1)
    drop_path_rate: float | None = option(None, "stochastic depth; null: the model's own", ge=0, lt=1)
    gradient_checkpointing: bool = option(False, "recompute each block in the backward pass to save memory")

    @property
    def title(self) -> str:
        return self.arch


@dataclass
class OptimConfig:
    name: str = option(MISSING, "optimizer", choices=("adamw", "sgd", "muon"))
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
    warmup_epochs: float = option(0.0, "epochs of linear warm-up", ge=0)
    final_lr_ratio: float = option(
        0.0, "learning rate at the end of a cosine or linear schedule over the peak's", ge=0, le=1
    )
    step_epochs: list[int] = option([], "epochs at whose ends a step schedule lowers the rate", ge=1)
    step_factor: float = option(0.1, "what it is multiplied by there", gt=0, lt=1)
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
    """Muon for the blocks' matrices, AdamW with the same rate for everything else."""

    name: str = option("muon", "optimizer", choices=("muon",))
    momentum: float = option(0.95, "Muon's momentum", ge=0, lt=1)


@dataclass
class TrainConfig:
    epochs: int = option(MISSING, "passes over the training images", ge=1)
    max_steps: int | None = option(None, "stop after this many optimizer steps; null: after the epochs", ge=1)
    global_batch_size: int = option(MISSING, "images per optimizer step, over all processes", ge=1, le=2**20)
    micro_batch: str = option(
        "auto",
        "images per process and forward pass: a number; or auto, the whole share,"
        " halved where memory runs out",
    )
    label_smoothing: float = option(0.0, "share of the target spread over all classes", ge=0, lt=1)
    precision: str = option(
        "auto",
        "arithmetic of the forward pass; auto: bf16 on a GPU that has it, fp16 on an older one, else fp32",
        choices=("auto", "fp32", "tf32", "bf16", "fp16"),
    )
    freeze_layers: int = option(0, "layers, from the input on, whose parameters stay as they are", ge=0)
    linear_probe: bool = option(False, "train the head only, on what the rest of the model makes of images")
    ema_decay: float = option(
        0.0, "decay of a moving average of the weights, which is then evaluated; 0: none", ge=0, lt=1
    )
    patience: int | None = option(
        None, "evaluations without a better top-1 after which training ends; null: never", ge=1
    )
    compile: bool = option(False, "torch.compile the model")
    channels_last: bool = option(False, "keep images in channels-last memory format; for convolutions")
    log_every_steps: int = option(50, "steps between two points of the curves", ge=1)
    profile: bool = option(
        False, "profile a few steps: a trace and a table of the most expensive ops in the run folder"
    )


@dataclass
class EvalConfig:
    batch_size: int = option(500, "images per process and forward pass", ge=1)
    every_epochs: int = option(1, "epochs between two evaluations; the last is always evaluated", ge=1)


@dataclass
class CheckpointConfig:
    every_steps: int | None = option(
        None, "steps between two checkpoints; null: one at the end of each epoch", ge=1
    )
    keep_last: int = option(2, "newest checkpoints to keep; the best one is kept besides", ge=1)
    milestones: list[int] = option([], "epochs whose last checkpoints are kept for good", ge=1)


@dataclass
class TrackingConfig:
    tensorboard: bool = option(True, "write TensorBoard events besides metrics.jsonl")
    sample_images: int = option(
        32, "training images, as the model sees them, to show in TensorBoard", ge=0, le=1024
    )
    wandb: bool = option(False, "send the run to Weights & Biases")
    wandb_project: str = option("neuscale", "its project there")
    wandb_mode: str = option(
        "online",
        "whether to send it now, or to write it into the run folder for 'wandb sync'",
        choices=("online", "offline"),
    )


@dataclass
class RunConfig:
    name: str | None = option(None, "folder below the runs folder; null: made of the experiment and the time")
    seed: int = option(0, "the one number that all randomness comes from", ge=0, le=2**63 - 1)
    time_limit: str | None = option(
        None, "time after which the run saves and exits with code 75, such as 90m, 8h or 7:45:00"
    )
    deterministic: bool = option(
        False, "only algorithms that give the same bits each time; slower on a GPU, always so on a CPU"
    )
    device: str = option(
        "auto", "where to compute; auto: CUDA, then MPS, then CPU", choices=("auto", "cuda", "mps", "cpu")
    )


@dataclass
class Config:
    """A whole run."""

    experiment: str | None = option(None, "recipe that this configuration started from")
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    run: RunConfig = field(default_factory=RunConfig)
