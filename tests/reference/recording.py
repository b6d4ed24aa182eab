"""Recorder of the steps of a training, through torch's own hooks."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook


@dataclass
class Recording:
    """Record of a training.

    `images`: input of each forward pass in training; `weights`: before the first step and after each;
    `gradients`: of each step, as the optimizer got them.
    """

    images: list[Tensor] = field(default_factory=list)
    weights: list[dict[str, Tensor]] = field(default_factory=list)
    gradients: list[dict[str, Tensor]] = field(default_factory=list)

    def images_of(self, step: int) -> list[Tensor]:
        """Images of the micro-batches of a step."""
        each = len(self.images) // len(self.gradients)
        return self.images[step * each : (step + 1) * each]


@contextmanager
def recorded() -> Iterator[Recording]:
    """Record the single model that is trained in the `with` block."""
    recording = Recording()
    models: list[nn.Module] = []
    inside: list[object] = []  # modules and optimizers whose forward or step is running

    def snapshot() -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in models[0].named_parameters()}

    def before_forward(module: nn.Module, inputs: tuple[object, ...]) -> None:
        if not inside and module.training and isinstance(inputs[0], Tensor) and inputs[0].dim() == 4:
            models.append(module)
            recording.images.append(inputs[0].detach().clone())
        inside.append(module)

    def after_forward(module: nn.Module, _inputs: object, _output: object) -> None:
        assert inside.pop() is module

    def before_step(optimizer: torch.optim.Optimizer, _args: object, _kwargs: object) -> None:
        if not inside:
            if not recording.weights:
                recording.weights.append(snapshot())
            recording.gradients.append(
                {n: p.grad.detach().clone() for n, p in models[0].named_parameters() if p.grad is not None}
            )
        inside.append(optimizer)

    def after_step(optimizer: torch.optim.Optimizer, _args: object, _kwargs: object) -> None:
        assert inside.pop() is optimizer
        if not inside:
            recording.weights.append(snapshot())

    hooks = [
        register_module_forward_pre_hook(before_forward),
        register_module_forward_hook(after_forward),
        register_optimizer_step_pre_hook(before_step),
        register_optimizer_step_post_hook(after_step),
    ]
    try:
        yield recording
    finally:
        for hook in hooks:
            hook.remove()
