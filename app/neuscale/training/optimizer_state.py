"""An optimizer's state by the names of its parameters, so that settings may change when a run goes on.

What a checkpoint holds of each parameter (means, momenta, counts) is loaded; learning rates, decays and
the like are always those of the configuration.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from neuscale.errors import CheckpointError
from neuscale.training.optim import OptimizerSet

_KINDS = ("Muon", "AdamW")  # of a set, in its order

# What decides which parameters are trained, and together with which.
GROUPING = ("optim.layer_decay", "train.freeze_layers", "train.linear_probe")


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """The state of `optimizer`: torch's `state_dict`, and the names of the parameters that it numbers.

    Of an `OptimizerSet`, that of each in a list `optimizers`.
    """
    if isinstance(optimizer, OptimizerSet):
        return {"optimizers": [optimizer_state(each, model) for each in optimizer.optimizers]}
    return {**optimizer.state_dict(), "kind": type(optimizer).__name__, "names": _names(optimizer, model)}


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, model: nn.Module, saved: dict[str, Any]
) -> tuple[list[str], list[str]]:
    """Load what was saved of `optimizer`'s parameters; the settings stay as they are.

    Returns the parameters that are trained now and were not, whose state begins anew, and those that were
    and are not. Raises CheckpointError where an older checkpoint, without names, has other groups.
    """
    if isinstance(optimizer, OptimizerSet):
        kinds = {
            state.get("kind", name): state for name, state in zip(_KINDS, saved["optimizers"], strict=False)
        }
        parts = [
            load_optimizer_state(each, model, kinds.pop(type(each).__name__, {"state": {}, "names": []}))
            for each in optimizer.optimizers
        ]
        optimizer.relist()
        gone = [name for state in kinds.values() for name in state.get("names", ())]
        return [n for new, _ in parts for n in new], [n for _, old in parts for n in old] + gone
    now, then = _names(optimizer, model), saved.get("names")
    current = optimizer.state_dict()
    if then is None:
        if _sizes(saved["param_groups"]) != _sizes(current["param_groups"]):
            raise CheckpointError(
                f"its optimizer has other groups of parameters: {', '.join(GROUPING)} and the model's library"
                " cannot change after a checkpoint that an older version wrote."
            )
        then = now
    places = {name: number for number, name in enumerate(then)}
    state = {
        number: saved["state"][places[name]]
        for number, name in enumerate(now)
        if name in places and places[name] in saved["state"]
    }
    optimizer.load_state_dict({"state": state, "param_groups": current["param_groups"]})
    known = set(now)
    return [name for name in now if name not in places], [name for name in then if name not in known]


def _names(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _sizes(groups: Sequence[dict[str, Any]]) -> list[int]:
    return [len(group["params"]) for group in groups]
