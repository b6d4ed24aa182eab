"""Optimizers, their parameter groups, and the learning rate as a function of the step."""

import math
from typing import Any

import torch
from torch import nn

from neuscale.config.schema import AdamWConfig, MuonConfig, OptimConfig, SGDConfig

# Parameters with these words in their names are tables of embeddings, not matrices of weights.
_TABLES = ("relative_position_bias_table", "pos_embedding", "class_token")


class OptimizerSet(torch.optim.Optimizer):
    """Several optimizers of disjoint parameters that act as one.

    Its groups are all of theirs, so that one schedule sets every learning rate.
    """

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers
        super().__init__([p for o in optimizers for g in o.param_groups for p in g["params"]], {})
        self.param_groups = [group for o in optimizers for group in o.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": [o.state_dict() for o in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        # Loading gives an optimizer new groups; the ones listed here must be those.
        self.param_groups = [group for o in self.optimizers for group in o.param_groups]


def create_optimizer(config: OptimConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of `model`; norms, biases, embeddings and bias tables have no weight decay."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [(n, p) for n, p in named if p.dim() > 1 and not any(word in n for word in _TABLES)]
    matrices = {id(p) for _, p in decayed}
    plain = [p for _, p in named if id(p) not in matrices]
    groups: list[dict[str, Any]] = [
        {"params": [p for _, p in decayed]},
        {"params": plain, "weight_decay": 0.0},
    ]
    match config:
        case MuonConfig():
            return _create_muon(config, decayed, plain)
        case AdamWConfig():
            return _create_adamw(config, groups)
        case SGDConfig():
            return torch.optim.SGD(
                groups,
                lr=config.lr,
                weight_decay=config.weight_decay,
                momentum=config.momentum,
                nesterov=config.nesterov and config.momentum > 0,
            )
    raise AssertionError(f"no optimizer for {type(config).__name__}")


def _create_adamw(config: AdamWConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        groups,
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def _create_muon(
    config: MuonConfig, decayed: list[tuple[str, nn.Parameter]], plain: list[nn.Parameter]
) -> torch.optim.Optimizer:
    # Muon is for the hidden matrices: not for the patch embedding (a filter), nor for the head.
    hidden = [p for name, p in decayed if p.dim() == 2 and not name.startswith("head")]
    inside = {id(p) for p in hidden}
    rest = [p for _, p in decayed if id(p) not in inside]
    muon = torch.optim.Muon(
        hidden,
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        adjust_lr_fn="match_rms_adamw",
    )
    groups: list[dict[str, Any]] = [{"params": rest}, {"params": plain, "weight_decay": 0.0}]
    return OptimizerSet([muon, _create_adamw(config, groups)])


def lr_at(config: OptimConfig, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """The learning rate of a step: linear warm-up, then half a cosine (Loshchilov & Hutter 2017)."""
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total_steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    floor = config.final_lr_ratio
    return config.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Gives all groups the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr
