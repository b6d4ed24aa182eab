"""bias_gelu and linear_gelu work with torch.compile, export, fake tensors, DDP and autocast."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from neuscale_ops import LinearGELU, bias_gelu, gelu_mlp, linear_gelu

OPS = torch.ops.neuscale_ops


def pair(rows=6, columns=16, dtype=torch.float32):
    torch.manual_seed(0)
    x = torch.randn(rows, columns).to(dtype).requires_grad_()
    return x, torch.randn(columns).to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    x, bias = (t.detach() for t in pair(dtype=dtype))
    torch.library.opcheck(OPS.bias_gelu.default, (x, bias, 0))
    torch.library.opcheck(OPS.bias_gelu_backward.default, (x, x, bias, 1))
    torch.library.opcheck(OPS.bias_gelu_backward.default, (x, x, None, 1))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_compiles_whole_forward_and_backward(approximate):
    x, bias = pair()
    compiled = torch.compile(bias_gelu, fullgraph=True, backend="aot_eager")
    grads = []
    for function in (bias_gelu, compiled):
        y = function(x, bias, approximate)
        grads.append((y.detach(), *torch.autograd.grad(y.square().sum(), (x, bias))))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_compiles_with_dynamic_rows():
    compiled = torch.compile(bias_gelu, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (3, 5, 8):
        x, bias = pair(rows)
        assert torch.equal(compiled(x, bias), bias_gelu(x, bias))


def test_exports():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = LinearGELU(8, 16)

        def forward(self, x):
            return self.layer(x)

    net, x = Net().eval(), torch.randn(4, 8)
    exported = torch.export.export(net, (x,))
    assert any("bias_gelu" in str(node.target) for node in exported.graph.nodes)
    assert torch.equal(exported.module()(x), net(x))


def test_fake_tensors():
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(3, 5, 8, dtype=torch.bfloat16, requires_grad=True)
        bias = torch.empty(8, requires_grad=True)
        y = bias_gelu(x, bias)
        assert (y.shape, y.dtype) == (x.shape, torch.bfloat16)
        y.sum().backward()
        assert (x.grad.dtype, bias.grad.dtype, bias.grad.shape) == (torch.bfloat16, torch.float32, (8,))


def test_gradient_checkpointing():
    x, bias = pair()
    plain = torch.autograd.grad(bias_gelu(x, bias).square().sum(), (x, bias))
    y = checkpoint(bias_gelu, x, bias, use_reentrant=False)
    again = torch.autograd.grad(y.square().sum(), (x, bias))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_distributed_data_parallel(tmp_path):
    """DDP gives the layer's own gradients; its hooks need each parameter's gradient once per step."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        layer = LinearGELU(8, 16)
        wrapped = torch.nn.parallel.DistributedDataParallel(copy.deepcopy(layer))
        x = torch.randn(4, 8)
        layer(x).square().sum().backward()
        wrapped(x).square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert torch.equal(layer.weight.grad, wrapped.module.weight.grad)
    assert torch.equal(layer.bias.grad, wrapped.module.bias.grad)


def test_autocast_gives_the_types_of_torch():
    layer = LinearGELU(8, 16)
    x = torch.randn(4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert layer.weight.grad.dtype == layer.bias.grad.dtype == torch.float32


def test_one_gradient_only():
    x, bias = pair()
    (only,) = torch.autograd.grad(bias_gelu(x, bias.detach()).sum(), x)
    both = torch.autograd.grad(bias_gelu(x, bias).sum(), (x, bias))
    assert torch.equal(only, both[0])
    (only,) = torch.autograd.grad(bias_gelu(x.detach(), bias).sum(), bias)
    assert torch.equal(only, both[1])


def test_linear_gelu_is_linear_then_gelu():
    torch.manual_seed(1)
    layer = LinearGELU(8, 16, approximate="none")
    linear = torch.nn.Linear(8, 16)
    linear.load_state_dict(layer.state_dict())
    layer.load_state_dict(copy.deepcopy(linear.state_dict()))
    x = torch.randn(3, 5, 8)
    torch.testing.assert_close(layer(x), F.gelu(linear(x)))
    assert list(layer.state_dict()) == list(linear.state_dict())


def test_gelu_mlp_is_its_parts():
    torch.manual_seed(2)
    x, w1, b1 = torch.randn(2, 7, 8), torch.randn(16, 8), torch.randn(16)
    w2, b2 = torch.randn(8, 16), torch.randn(8)
    for approximate in ("none", "tanh"):
        wanted = F.linear(F.gelu(F.linear(x, w1, b1), approximate=approximate), w2, b2)
        torch.testing.assert_close(gelu_mlp(x, w1, b1, w2, b2, approximate), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": [1.0]}, TypeError, "^x: a tensor"),
        ({"x": torch.zeros(2, 3, dtype=torch.float64)}, TypeError, "^x: float32"),
        ({"x": torch.zeros(())}, ValueError, "^x: one dimension"),
        ({"bias": torch.zeros(3, dtype=torch.int64)}, TypeError, "^bias: float32"),
        ({"bias": None}, TypeError, "^bias: a tensor"),
        ({"bias": torch.zeros(4)}, ValueError, r"^bias: shape \[3\]"),
        ({"bias": torch.zeros(1, 3)}, ValueError, r"^bias: shape \[3\]"),
        ({"bias": torch.zeros(3, device="meta")}, ValueError, "^bias: on meta"),
        ({"approximate": "erf"}, ValueError, "^approximate: "),
        ({"approximate": ["tanh"]}, ValueError, "^approximate: "),
    ],
)
def test_bad_arguments_are_named(change, error, words):
    with pytest.raises(error, match=words):
        bias_gelu(**{"x": torch.zeros(2, 3), "bias": torch.zeros(3)} | change)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"weight": torch.zeros(4, 5)}, ValueError, "^weight: shape"),
        ({"weight": torch.zeros(4, 3, dtype=torch.float16)}, TypeError, "^weight: "),
        ({"bias": torch.zeros(3)}, ValueError, r"^bias: shape \[4\]"),
        ({"implementation": "fast"}, ValueError, "^implementation: "),
        ({"implementation": "epilogue"}, ValueError, "^implementation: .*CUDA"),
    ],
)
def test_bad_arguments_of_linear_gelu_are_named(change, error, words):
    given = {"x": torch.zeros(2, 3), "weight": torch.zeros(4, 3), "bias": torch.zeros(4)}
    with pytest.raises(error, match=words):
        linear_gelu(**given | change)
