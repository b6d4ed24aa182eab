"""Typed schema of a run's configuration. Presets set its values; the command line overrides them.

Each field is declared with its help text, range and choices, which the checks read. Nothing here
imports torch.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from neuscale.config.fields import option
from neuscale.config.model_options import (
    AdamWConfig,
    ModelConfig,
    MuonConfig,
    OptimConfig,
    SGDConfig,
    SwinConfig,
    TargetModelConfig,
    TargetOptimConfig,
    TimmConfig,
    TorchvisionConfig,
    TransformerConfig,
    ViTConfig,
)

__all__ = [
    "TENSORBOARD",
    "AdamWConfig",
    "AugmentConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EvalConfig",
    "ModelConfig",
    "MuonConfig",
    "OptimConfig",
    "RunConfig",
    "SGDConfig",
    "SwinConfig",
    "TargetModelConfig",
    "TargetOptimConfig",
    "TimmConfig",
    "TorchvisionConfig",
    "TrackingConfig",
    "TrainConfig",
    "TransformerConfig",
    "ViTConfig",
]


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
    mean: list[float] = option(
        [],
        "what is subtracted from each channel, of values in 0 … 1; []: as model.weights, else the data's own",
    )
    std: list[float] = option([], "what each channel is then divided by", gt=0)
    interpolation: str | None = option(
        None,
        "how images that are not of image_size become it; null: as for model.weights, else bilinear",
        choices=("bilinear", "bicubic"),
    )
    crop: float | None = option(
        None,
        "share of the side whose middle is kept of such images; null: as for model.weights, else 1",
        gt=0,
        le=1,
    )
    sampler: str = option(
        "uniform",
        "the images of an epoch: each once, or as many of each class, those of small ones several times",
        choices=("uniform", "balanced"),
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
    dataset: dict[str, Any] | None = option(
        None,
        "a data source of your own (`_target_`): pairs of image and label for each `split`",
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
    function: dict[str, Any] | None = option(
        None,
        "a function of your own (`_target_`): of bytes [B, C, H, W] and draws in 0 … 1 [B, function_draws]",
    )
    function_draws: int = option(8, "random numbers that it gets for each image", ge=0, le=1024)


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
    loss: dict[str, Any] | None = option(
        None,
        "a loss of your own (`_target_`), of logits and soft targets [B, classes]; null: the cross-entropy",
    )
    class_weights: str = option(
        "none",
        "what an image counts in the loss by its class: none, balanced (the classes alike), or a list of a"
        " number for each class, as [1,2.5,1]",
    )
    label_smoothing: float = option(0.0, "share of the target spread over all classes", ge=0, lt=1)
    focal_gamma: float = option(
        0.0, "focal loss: an image counts (1 - probability of its label)^gamma; 0: all alike", ge=0, le=10
    )
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
        None, "evaluations without a better eval.metric after which training ends; null: never", ge=1
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
    metric: str = option(
        "auto",
        "what makes an evaluation the best, and what train.patience waits for: top1, top5, loss,"
        " balanced_accuracy, macro_f1, map, micro_f1, exact, or one of eval.functions; auto: top1, or map"
        " where images may have several labels",
    )
    functions: dict[str, Any] = option(
        {}, "metrics of your own, each a name with a `_target_`: of all logits [N, classes] and targets"
    )
    min_delta: float = option(0.0, "what an improvement is at least, for train.patience", ge=0)


@dataclass
class CheckpointConfig:
    every_steps: int | None = option(
        None, "steps between two checkpoints; null: one at the end of each epoch", ge=1
    )
    keep_last: int = option(2, "newest checkpoints to keep; the best one is kept besides", ge=1)
    milestones: list[int] = option([], "epochs whose last checkpoints are kept for good", ge=1)


TENSORBOARD = "tensorboard"


@dataclass
class TrackingConfig:
    trackers: list[str] = option(
        [TENSORBOARD],
        "what follows a run besides metrics.jsonl: tensorboard, aim, clearml, comet, dvclive, mlflow,"
        " swanlab, trackio, wandb, or a name with a _target_ in tracking.options",
    )
    sample_images: int = option(
        32, "training images, as the model sees them, to show in TensorBoard", ge=0, le=1024
    )
    project: str | None = option(
        None, "project or experiment in the trackers; null: what their own variables say, else neuscale"
    )
    options: dict[str, Any] = option(
        {}, "arguments of a tracker's own start, by its name, as in tracking.options.wandb.entity=team"
    )


@dataclass
class RunConfig:
    name: str | None = option(None, "folder below the runs folder; null: made of the experiment and the time")
    seed: int = option(0, "random seed", ge=0, le=2**63 - 1)
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
    """Configuration of a run."""

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
