"""Optimizers and their parameter groups."""

import inspect
from typing import Any

import torch
from torch import nn

from neuscale.config.model_options import (
    AdamWConfig,
    MuonConfig,
    OptimConfig,
    SGDConfig,
    TargetOptimConfig,
)
from neuscale.errors import UsageError
from neuscale.models.library import head_names
from neuscale.project.targets import call_target, import_target
from neuscale.training.param_groups import parameter_layers

# Parts of the names of embedding tables, and of scales or the modules that generate them.
_TABLES = ("relative_position_bias_table", "pos_embed", "class_token", "cls_token", "reg_token", "dist_token")
_SCALES = ("logit_scale", "cpb_mlp")

# Names of heads in the version whose checkpoints did not record parameter names.
_HEADS_BEFORE = ("head", "heads", "fc", "classifier", "head_dist")


class OptimizerSet(torch.optim.Optimizer):
    """Several optimizers of disjoint parameters that act as one.

    `param_groups` contains the groups of all, so that one schedule sets every learning rate.
    """

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers
        super().__init__([p for o in optimizers for g in o.param_groups for p in g["params"]], {})
        self.param_groups = [group for o in optimizers for group in o.param_groups]

    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": [o.state_dict() for o in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.relist()

    def relist(self) -> None:
        """Collect the groups again, since loading a state gives an optimizer new ones."""
        self.param_groups = [group for o in self.optimizers for group in o.param_groups]


def create_optimizer(config: OptimConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of `model`'s trainable parameters.

    Norms, biases, scales, embeddings, bias tables and the parameters named by the model's
    `no_weight_decay()` have no weight decay. With `layer_decay` the groups have `lr_scale`, the layer's
    factor on the learning rate (Bao et al. 2021); raises UsageError for a model whose layers are not known.
    """
    hidden, groups = (each.listed() for each in _grouped(config, model, _decaying(model), head_names(model)))
    match config:
        case MuonConfig():
            return OptimizerSet(
                [
                    *([_create_muon(config, hidden)] if hidden else []),
                    *([_create_adamw(config, groups)] if groups else []),
                ]
            )
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
        case TargetOptimConfig():
            return _create_target(config, groups)
    raise AssertionError(f"no optimizer for {type(config).__name__}")


def names_before(config: OptimConfig, model: nn.Module) -> list[list[list[str]]]:
    """Parameter names per optimizer and group, for an older checkpoint that does not contain them."""
    tables = {
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1 and not any(word in name for word in _TABLES)
    }
    heads = tuple(f"{name}." for name in _HEADS_BEFORE)
    parts = _grouped(config, model, tables, heads)
    return [groups for part in parts if (groups := part.names())]


def _grouped(
    config: OptimConfig, model: nn.Module, decaying: set[str], heads: tuple[str, ...]
) -> tuple["_Groups", "_Groups"]:
    """The parameters for Muon, and all others, in groups."""
    scales = _lr_scales(config, model)
    hidden, groups = _Groups(), _Groups()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # Muon is for the hidden matrices: not for the patch embedding (a filter), nor for the head.
        is_hidden = name in decaying and parameter.dim() == 2 and not name.startswith(heads)
        target = hidden if isinstance(config, MuonConfig) and is_hidden else groups
        target.add(name, parameter, name in decaying, scales.get(name, 1.0))
    return hidden, groups


def _decaying(model: nn.Module) -> set[str]:
    """Names of parameters with weight decay: matrices, except tables, scales and the model's exceptions."""
    excepted: set[str] = set()
    if callable(own := getattr(model, "no_weight_decay", None)):  # as in timm's models
        excepted = {str(name) for name in own()}
    return {
        name
        for name, parameter in model.named_parameters()
        # A scale of [C, 1, 1] is a vector.
        if parameter.squeeze().dim() > 1
        and name not in excepted
        and not any(word in name for word in (*_TABLES, *_SCALES))
    }


class _Groups:
    """Parameters grouped by weight decay (yes or no) and learning-rate factor, in the order of the model."""

    def __init__(self) -> None:
        self._found: dict[tuple[bool, float], list[tuple[str, nn.Parameter]]] = {}

    def add(self, name: str, parameter: nn.Parameter, decays: bool, scale: float) -> None:
        self._found.setdefault((decays, scale), []).append((name, parameter))

    def names(self) -> list[list[str]]:
        """Parameter names of each group."""
        return [[name for name, _ in found] for found in self._found.values()]

    def listed(self) -> list[dict[str, Any]]:
        """The groups in the form that torch's optimizers take."""
        return [
            {
                "params": [parameter for _, parameter in found],
                "lr_scale": scale,
                **({} if decays else {"weight_decay": 0.0}),
            }
            for (decays, scale), found in self._found.items()
        ]


def _lr_scales(config: OptimConfig, model: nn.Module) -> dict[str, float]:
    """Factor on the learning rate of each parameter; empty if all factors are 1."""
    if config.layer_decay == 1.0:
        return {}
    layers = parameter_layers(model)
    last = max(layers.values())
    return {name: config.layer_decay ** (last - layer) for name, layer in layers.items()}


def _create_adamw(config: AdamWConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        groups,
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def _create_target(config: TargetOptimConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Create a torch or user-defined optimizer with the groups, `lr`, and `weight_decay` if it takes that."""
    found = import_target(config.target, "optim.target")
    names = list(inspect.signature(found).parameters) if callable(found) else []
    settings: dict[str, Any] = {"lr": config.lr}
    if "weight_decay" in names:
        settings["weight_decay"] = config.weight_decay
    elif config.weight_decay:
        raise UsageError(
            f"optim.target={config.target}: it has no weight decay, and optim.weight_decay is"
            f" {config.weight_decay:g}.",
            "Set optim.weight_decay=0.",
        )
    else:
        groups = [{name: v for name, v in group.items() if name != "weight_decay"} for group in groups]
    optimizer = call_target(config.target, {"params": groups, **settings, **config.args}, "optim.target", {})
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(
            f"optim.target={config.target}: gives {type(optimizer).__name__}, no torch.optim.Optimizer.",
            "Name a class of optimizers.",
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UsageError(
            f"optim.target={config.target}: its steps compute the loss themselves, which is not supported.",
            "Choose one whose step() needs no closure.",
        )
    return optimizer


def _create_muon(config: MuonConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.Muon(
        groups,
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        adjust_lr_fn="match_rms_adamw",
    )
