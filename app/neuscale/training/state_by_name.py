"""Optimizer state by parameter name, so that settings may change when a run is resumed.

The state of each parameter (means, momenta, counts) is loaded from the checkpoint; learning rates, weight
decays and the like always come from the configuration.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from neuscale.config.model_options import OptimConfig
from neuscale.training.optim import OptimizerSet, names_before

_KINDS = {"adamw": "AdamW", "sgd": "SGD", "muon": "AdamW"}  # if there is only one optimizer

# Fields that decide which parameters are trained, and how they are grouped.
GROUPING = ("optim.layer_decay", "train.freeze_layers", "train.linear_probe")


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """torch's `state_dict` of `optimizer`, with its class and the names of the parameters that it numbers.

    For an `OptimizerSet`, a list `optimizers` with the state of each.
    """
    if isinstance(optimizer, OptimizerSet):
        return {"optimizers": [optimizer_state(each, model) for each in optimizer.optimizers]}
    return {**optimizer.state_dict(), "kind": type(optimizer).__name__, "names": _names(optimizer, model)}


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, model: nn.Module, saved: dict[str, Any], config: OptimConfig
) -> tuple[list[str], list[str]]:
    """Load the saved state of `optimizer`'s parameters; the optimizer's settings stay as they are.

    Return the parameters that are trained now but were not before, whose state starts anew, and those that
    were trained before but are not now. Raises ValueError if an older checkpoint, without names, has other
    groups than `config` gives.
    """
    optimizers = optimizer.optimizers if isinstance(optimizer, OptimizerSet) else [optimizer]
    states = saved.get("optimizers", [saved])
    if any("names" not in state for state in states):
        states = _named_as_before(states, model, config)
    by_kind = {state["kind"]: state for state in states}
    new, gone = [], []
    for each in optimizers:
        state = by_kind.pop(type(each).__name__, {"state": {}, "names": []})
        places, names = {name: number for number, name in enumerate(state["names"])}, _names(each, model)
        found = {
            number: state["state"][places[name]]
            for number, name in enumerate(names)
            if name in places and places[name] in state["state"]
        }
        _check_shapes(each, found)
        each.load_state_dict({"state": found, "param_groups": each.state_dict()["param_groups"]})
        new += [name for name in names if name not in places]
        gone += [name for name in places if name not in set(names)]
    if isinstance(optimizer, OptimizerSet):
        optimizer.relist()
    return new, gone + [name for state in by_kind.values() for name in state["names"]]


def _named_as_before(
    states: Sequence[dict[str, Any]], model: nn.Module, config: OptimConfig
) -> list[dict[str, Any]]:
    """The states of an older checkpoint without parameter names, with the names added."""
    names = names_before(config, model)
    sizes = [[len(group["params"]) for group in state["param_groups"]] for state in states]
    if sizes != [[len(group) for group in groups] for groups in names]:
        raise ValueError(
            "being of an older version, it does not name the optimizer's parameters, which are others now:"
            f" leave {', '.join(GROUPING)} as they were"
        )
    kinds = ("Muon", "AdamW") if config.name == "muon" and len(states) == 2 else (_KINDS[config.name],)
    return [
        {**state, "kind": kind, "names": [name for group in groups for name in group]}
        for state, kind, groups in zip(states, kinds, names, strict=True)
    ]


def _check_shapes(optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Any]]) -> None:
    """Raise ValueError for state of another shape: a fused optimizer would write out of bounds."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, values in state.items():
        for value in values.values():
            if isinstance(value, torch.Tensor) and value.dim() and value.shape != parameters[number].shape:
                there, here = list(value.shape), list(parameters[number].shape)
                raise ValueError(f"the optimizer's state of a parameter is {there} there and {here} here")


def _names(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
