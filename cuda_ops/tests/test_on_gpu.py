"""Tests of the ops that need a GPU: `make test-gpu`."""

import pytest
import torch
import torch.nn.functional as F

from gelu_reference import EXTREMES, assert_close, derivative_bounds, reference_derivative, reference_gelu
from neuscale_ops import LinearGELU, bias_gelu, build_info, crop_flip_normalize, gelu_mlp, linear_gelu
from neuscale_ops.choice import choices

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def built_for_cuda():
    assert build_info()["cuda"], "the CUDA library is not built: make ops CUDA=ON"


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_extremes_forward_and_backward(dtype, approximate):
    """Extreme values give correct results; the GPU's approximate exp and division need wider bounds."""
    values = torch.cat([torch.linspace(-14, 14, 4001), torch.tensor(EXTREMES)]).to(dtype)
    x = values[None].to(CUDA).requires_grad_()
    bias = torch.zeros(x.shape[1], dtype=dtype, device=CUDA, requires_grad=True)
    y = bias_gelu(x, bias, approximate)
    y.backward(torch.ones_like(y))
    u = values.double()
    assert_close(y.detach().cpu()[0], reference_gelu(u, approximate), "tanh", scale=4)
    assert_close(x.grad.cpu()[0], reference_derivative(u, approximate), "tanh", **derivative_bounds(dtype))


@pytest.mark.parametrize(
    "shape", [(1, 1), (3, 5, 13), (257, 72), (64 * 197, 1536), (4, 0), (0, 8), (70000, 3)]
)
@pytest.mark.parametrize(("dtype", "bias_dtype"), [(d, b) for d in DTYPES for b in DTYPES])
def test_shapes_and_types(shape, dtype, bias_dtype):
    torch.manual_seed(0)
    x = torch.randn(shape, device=CUDA).to(dtype).requires_grad_()
    bias = torch.randn(shape[-1], device=CUDA).to(bias_dtype).requires_grad_()
    grad = torch.randn(shape, device=CUDA).to(dtype)
    y = bias_gelu(x, bias)
    y.backward(grad)
    u = x.detach().double() + bias.detach().double()
    d = grad.double() * reference_derivative(u, "none")
    assert_close(y.detach(), reference_gelu(u, "none"), "tanh", scale=8)
    assert_close(x.grad, d, "tanh", **derivative_bounds(dtype, 6.0))
    error = (bias.grad.double() - d.flatten(0, -2).sum(0)).abs().max() if d.numel() else 0.0
    eps = max(torch.finfo(bias_dtype).eps, 1e-6)
    assert error <= 4 * eps * max(
        1.0, d.flatten(0, -2).abs().sum(0).max().item() ** 0.5 * 8 if d.numel() else 1.0
    )
    assert bias.grad.dtype == bias_dtype


def test_misaligned_and_strided():
    base = torch.randn(33 * 64 + 1, device=CUDA)
    x, bias = base[1:].view(33, 64), torch.randn(64, device=CUDA)
    torch.testing.assert_close(bias_gelu(x, bias), F.gelu(x + bias), rtol=1e-5, atol=1e-6)
    x = torch.randn(64, 33, device=CUDA).t()
    torch.testing.assert_close(bias_gelu(x, bias), F.gelu(x + bias), rtol=1e-5, atol=1e-6)


def test_the_same_bits_every_time():
    x = torch.randn(64 * 197, 1536, device=CUDA, dtype=torch.bfloat16, requires_grad=True)
    bias = torch.randn(1536, device=CUDA, requires_grad=True)
    y = bias_gelu(x, bias)
    runs = [torch.autograd.grad(y, (x, bias), torch.ones_like(y), retain_graph=True) for _ in range(3)]
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


def test_compiles_with_inductor_and_captures_in_a_graph():
    x, bias = torch.randn(256, 64, device=CUDA), torch.randn(64, device=CUDA)
    wanted = bias_gelu(x, bias)
    assert torch.equal(torch.compile(bias_gelu, fullgraph=True)(x, bias), wanted)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = bias_gelu(x, bias)
    graph.replay()
    assert torch.equal(y, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "padding"), [(32, 4), (7, 2), (64, 8), (224, 0)])
def test_crop_has_the_bits_of_torch(size, padding, dtype):
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, 3, size, size), dtype=torch.uint8, generator=g).to(CUDA)
    index = torch.randint(0, 50, (64,), generator=g).to(CUDA)
    top, left = (torch.randint(0, 2 * padding + 1, (64,), generator=g).to(CUDA) for _ in range(2))
    flip = (torch.rand(64, generator=g) < 0.5).to(CUDA)
    mean, std = torch.tensor([0.49, 0.48, 0.45], device=CUDA), torch.tensor([0.25, 0.24, 0.26], device=CUDA)
    padded = F.pad(images[index], (padding,) * 4)
    cut = [p[:, t : t + size, x : x + size] for p, t, x in zip(padded, top, left, strict=True)]
    batch = torch.stack([c.flip(-1) if f else c for c, f in zip(cut, flip, strict=True)])
    scale, shift = 1.0 / (255.0 * std), -mean / std
    wanted = torch.addcmul(shift[:, None, None], batch.float(), scale[:, None, None]).to(dtype)
    assert torch.equal(crop_flip_normalize(images, index, top, left, flip, mean, std, padding, dtype), wanted)


def test_crop_out_of_range_is_nan_and_harms_nothing():
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8, device=CUDA)
    index = torch.tensor([0, 5, -1], device=CUDA)
    zero, no = torch.zeros(3, dtype=torch.int64, device=CUDA), torch.zeros(3, dtype=torch.bool, device=CUDA)
    mean = torch.full((3,), 0.5, device=CUDA)
    out = crop_flip_normalize(images, index, zero, zero, no, mean, mean, 0)
    torch.cuda.synchronize()
    assert out[0].isfinite().all()
    assert out[1:].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_epilogue_and_separate_agree(dtype):
    torch.manual_seed(0)
    shapes = [(3, 50, 64), (256, 64), (256,), (64, 256), (64,)]
    leaves = [(torch.randn(s, device=CUDA) * 0.2).to(dtype).requires_grad_() for s in shapes]
    wide = [t.detach().double().requires_grad_() for t in leaves]
    y = F.linear(F.gelu(F.linear(*wide[:3]), approximate="tanh"), *wide[3:])
    grad = torch.randn_like(y)
    wanted = [y, *torch.autograd.grad(y, wide, grad)]
    for implementation in ("epilogue", "separate", "auto"):
        y = gelu_mlp(*leaves, implementation=implementation)
        found = [y, *torch.autograd.grad(y, leaves, grad.to(dtype))]
        for a, b in zip(found, wanted, strict=True):
            error = (a.double() - b).norm() / b.norm()
            assert error < 8 * torch.finfo(dtype).eps, implementation
        y = linear_gelu(*leaves[:3], implementation=implementation)
        u = F.linear(*[t.double() for t in leaves[:3]])
        assert (y.double() - F.gelu(u, approximate="tanh")).norm() / y.double().norm() < 4 * torch.finfo(
            dtype
        ).eps
    assert {c["op"] for c in choices()} >= {"gelu_mlp", "linear_gelu"}


def test_autocast_and_gradients_of_the_layer():
    layer = LinearGELU(64, 128).to(CUDA)
    x = torch.randn(5, 16, 64, device=CUDA)
    with torch.autocast("cuda", torch.bfloat16):
        y = layer(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert layer.weight.grad.dtype == layer.bias.grad.dtype == torch.float32


def test_an_mlp_needs_less_memory_than_eager():
    def peak(function):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        torch.autograd.grad(function(*leaves), leaves, grad)
        return torch.cuda.max_memory_allocated()

    shapes = [(64 * 197, 384), (1536, 384), (1536,), (384, 1536), (384,)]
    leaves = [(torch.randn(s, device=CUDA) * 0.05).bfloat16().requires_grad_() for s in shapes]
    grad = torch.randn(64 * 197, 384, device=CUDA).bfloat16()

    def eager(x, w1, b1, w2, b2):
        return F.linear(F.gelu(F.linear(x, w1, b1), approximate="tanh"), w2, b2)

    gelu_mlp(*leaves)  # times the implementations and caches the choice
    assert peak(gelu_mlp) <= peak(eager)
