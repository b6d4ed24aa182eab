"""The MLP equals its formula in float64, with torch's layers and with the native ops."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuscale.models.fused import fuse
from neuscale.models.layers import MLP, FusedOps, set_gelu

ROWS, WIDTH, HIDDEN = 7, 6, 10


def build(approximate: str, dropout: float = 0.0) -> MLP:
    """MLP whose GELU gets inputs around ±2, where the exact and the tanh form differ by up to 5e-4."""
    mlp = MLP(WIDTH, HIDDEN, dropout)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    set_gelu(mlp, approximate)
    return mlp


def rows() -> Tensor:
    return torch.randn(2, ROWS, WIDTH, generator=torch.Generator().manual_seed(1))


def formula(mlp: MLP, x: Tensor, approximate: str, drop: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    w1, b1, w2, b2 = (p.detach().double() for p in mlp.parameters())
    u = x.double() @ w1.T + b1
    if approximate == "tanh":  # Hendrycks and Gimpel 2016
        hidden = 0.5 * u * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (u + 0.044715 * u**3)))
    else:
        hidden = u * 0.5 * torch.erfc(-u / 2**0.5)
    return drop(drop(hidden) @ w2.T + b2)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("fused", [False, True], ids=["eager", "fused"])
@pytest.mark.parametrize("training", [False, True])
def test_it_computes_its_formula(
    dropout_by_channel: Callable[[Tensor], Tensor], approximate: str, fused: bool, training: bool
) -> None:
    if fused:
        pytest.importorskip("neuscale_ops", reason="the native ops are not built (make ops)")
    for dropout in (0.0, 0.3):
        mlp = build(approximate, dropout).train(training)
        if fused:
            fuse(mlp, torch.device("cpu"))
        drop = dropout_by_channel if training and dropout else lambda x: x
        expected = formula(mlp, rows(), approximate, drop)
        torch.testing.assert_close(mlp(rows()).double(), expected, rtol=1e-5, atol=2e-5)


class Recorder:
    """Fake ops that compute as torch does and record their calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, str]] = []
        self.fused = FusedOps(self.linear_gelu, self.gelu_mlp, "whichever")

    def linear_gelu(self, x: Tensor, w: Tensor, b: Tensor, approximate: str, implementation: str) -> Tensor:
        self.calls.append(("linear_gelu", approximate, implementation))
        return F.gelu(F.linear(x, w, b), approximate=approximate)

    def gelu_mlp(self, x: Tensor, w1: Tensor, b1: Tensor, *rest: Any) -> Tensor:
        w2, b2, approximate, implementation = rest
        self.calls.append(("gelu_mlp", approximate, implementation))
        return F.linear(F.gelu(F.linear(x, w1, b1), approximate=approximate), w2, b2)


@pytest.mark.parametrize(
    ("approximate", "dropout", "training", "op"),
    [
        ("tanh", 0.0, True, "gelu_mlp"),
        ("tanh", 0.0, False, "gelu_mlp"),
        ("tanh", 0.3, False, "gelu_mlp"),
        ("tanh", 0.3, True, "linear_gelu"),  # there is dropout between the two linear layers
        ("none", 0.0, True, "linear_gelu"),
        ("none", 0.3, False, "linear_gelu"),
    ],
)
def test_one_op_does_it_all_where_nothing_is_dropped_in_between(
    dropout_by_channel: Callable[[Tensor], Tensor], approximate: str, dropout: float, training: bool, op: str
) -> None:
    mlp = build(approximate, dropout).train(training)
    eager = mlp(rows())
    recorder = Recorder()
    mlp.fused = recorder.fused
    torch.testing.assert_close(mlp(rows()), eager)
    assert recorder.calls == [(op, approximate, "whichever")]


def test_the_form_of_gelu_is_set_in_every_mlp_and_nowhere_else() -> None:
    model = nn.Sequential(MLP(2, 3), nn.Sequential(nn.GELU(), MLP(2, 3)))
    set_gelu(model, "tanh")
    assert [m.approximate for m in model.modules() if isinstance(m, nn.GELU)] == ["tanh", "none", "tanh"]


class Doubled(nn.Linear):
    """A Linear whose output is more than its weight gives, as with an adapter (LoRA) in its place."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("which", [0, 3])
@pytest.mark.parametrize("kind", ["hook", "pre-hook", "subclass", "parametrized"])
def test_a_linear_that_is_more_than_its_weight_is_called(which: int, kind: str) -> None:
    """Native ops take weights and call no module; they are not used where that would skip a computation."""
    pytest.importorskip("neuscale_ops", reason="the native ops are not built (make ops)")
    mlp = build("tanh")
    fuse(mlp, torch.device("cpu"))
    changed = build("tanh")
    for model in (mlp, changed):
        linear = model[which]
        if kind == "hook":
            linear.register_forward_hook(lambda _module, _inputs, output: 2 * output)
        elif kind == "pre-hook":
            linear.register_forward_pre_hook(lambda _module, inputs: (2 * inputs[0],))
        elif kind == "subclass":
            linear.__class__ = Doubled
        else:
            nn.utils.parametrizations.weight_norm(linear)
            with torch.no_grad():
                linear.parametrizations.weight.original0.mul_(2)
    torch.testing.assert_close(mlp(rows()), changed(rows()), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(mlp(rows()), build("tanh")(rows()), atol=0.1)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_leaves_that_are_sharded_give_the_gradients_of_the_whole(approximate: str, tmp_path: Path) -> None:
    pytest.importorskip("neuscale_ops", reason="the native ops are not built (make ops)")
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        whole, sharded = build(approximate), build(approximate)
        fuse(sharded, torch.device("cpu"))
        for module in (sharded[0], sharded[3], sharded):
            fully_shard(module, mesh=mesh)
        for model in (whole, sharded):
            model(rows()).square().sum().backward()
        for expected, found in zip(whole.parameters(), sharded.parameters(), strict=True):
            torch.testing.assert_close(found.grad.full_tensor(), expected.grad, rtol=1e-4, atol=1e-4)
    finally:
        dist.destroy_process_group()
