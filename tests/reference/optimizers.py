"""Update of one parameter by each optimizer in float64, from the formulas of the papers."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class SGD:
    """SGD with momentum (Sutskever et al. 2013) in torch's form; weight decay is added to the gradient."""

    momentum: float
    nesterov: bool
    state: dict[str, Tensor] = field(default_factory=dict)

    def update(self, name: str, w: Tensor, g: Tensor, lr: float, decay: float) -> Tensor:
        w, g = w.double(), g.double() + decay * w.double()
        velocity = self.momentum * self.state[name] + g if name in self.state else g
        self.state[name] = velocity
        return w - lr * (g + self.momentum * velocity if self.nesterov else velocity)


@dataclass
class AdamW:
    """AdamW (Loshchilov & Hutter 2019, algorithm 2): decoupled decay, bias correction of both moments."""

    beta1: float
    beta2: float
    eps: float
    state: dict[str, tuple[int, Tensor, Tensor]] = field(default_factory=dict)

    def update(self, name: str, w: Tensor, g: Tensor, lr: float, decay: float) -> Tensor:
        w, g = w.double(), g.double()
        step, first, second = self.state.get(name, (0, torch.zeros_like(g), torch.zeros_like(g)))
        step += 1
        first = self.beta1 * first + (1 - self.beta1) * g
        second = self.beta2 * second + (1 - self.beta2) * g * g
        self.state[name] = step, first, second
        mean, square = first / (1 - self.beta1**step), second / (1 - self.beta2**step)
        return w - lr * decay * w - lr * mean / (square.sqrt() + self.eps)


@dataclass
class Muon:
    """Muon (Jordan et al. 2024): orthogonalised momentum of a matrix, at AdamW's rates (Liu et al. 2025).

    The five steps of the quintic iteration are in bfloat16: their order and rounding affect the result.
    """

    momentum: float
    state: dict[str, Tensor] = field(default_factory=dict)

    def update(self, name: str, w: Tensor, g: Tensor, lr: float, decay: float) -> Tensor:
        buffer = torch.lerp(self.state.get(name, torch.zeros_like(g)), g, 1 - self.momentum)
        self.state[name] = buffer
        x = torch.lerp(g, buffer, self.momentum).bfloat16()  # Nesterov
        wide = x if x.shape[0] <= x.shape[1] else x.mT
        wide = wide / wide.norm()
        for _ in range(5):  # 3.4445 x - 4.7750 x³ + 2.0315 x⁵, each product rounded once
            square = wide @ wide.mT
            inner = torch.addmm(square, square, square, beta=-4.7750, alpha=2.0315)
            wide = torch.addmm(wide, inner, wide, beta=3.4445)
        direction = (wide if x.shape[0] <= x.shape[1] else wide.mT).double()
        rate = lr * 0.2 * math.sqrt(max(w.shape))
        return w.double() * (1 - lr * decay) - rate * direction


def clipped(gradients: dict[str, Tensor], most: float | None) -> dict[str, Tensor]:
    """Gradients scaled so that their global norm is at most `most`."""
    if most is None:
        return gradients
    norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients.values()))
    return {name: g * min(1.0, most / (norm + 1e-6)) for name, g in gradients.items()}


def averaged(average: Tensor, w: Tensor, decay: float, updates: int) -> Tensor:
    """Moving average after update number `updates`; its decay grows in the first updates."""
    now = min(decay, (1 + updates) / (10 + updates))
    return now * average.double() + (1 - now) * w.double()
