"""Results of bias_gelu on the CPU, compared with float64."""

import pytest
import torch

from gelu_reference import EXTREMES, assert_close, derivative_bounds, reference_derivative, reference_gelu
from neuscale_ops import bias_gelu

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
FORMS = ["none", "tanh"]


def samples(dtype: torch.dtype, columns: int) -> torch.Tensor:
    """Numbers from -14 to 14, normally distributed numbers and EXTREMES, in rows of `columns`."""
    torch.manual_seed(0)
    # 6,023 numbers: neither this nor twice this is a multiple of 4, so every vector width leaves a tail.
    values = torch.cat([torch.linspace(-14, 14, 4001), torch.randn(1999), torch.tensor(EXTREMES)]).to(dtype)
    return values[: len(values) // columns * columns].view(-1, columns) if columns > 1 else values[:, None]


@pytest.mark.parametrize("approximate", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_is_float64_rounded(dtype, approximate):
    # one row, wider than a segment of 4096 columns
    x = torch.cat([samples(dtype, 1), samples(dtype, 1).flip(0)]).T.contiguous()
    y = bias_gelu(x, torch.zeros(x.shape[1], dtype=dtype), approximate)
    assert y.dtype == dtype
    assert_close(y, reference_gelu(x.double(), approximate), approximate)


@pytest.mark.parametrize("approximate", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_backward_is_float64_rounded(dtype, approximate):
    x = samples(dtype, 1).T.contiguous().requires_grad_()
    bias = torch.zeros(x.shape[1], dtype=dtype, requires_grad=True)
    grad = torch.linspace(-2, 2, x.shape[1]).to(dtype)[None]
    bias_gelu(x, bias, approximate).backward(grad)
    wanted = grad.double() * reference_derivative(x.detach().double(), approximate)
    assert_close(x.grad, wanted, **derivative_bounds(dtype, 2.0))
    assert_close(bias.grad, wanted[0], **derivative_bounds(dtype, 2.0))


@pytest.mark.parametrize("bias_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bias_of_another_type_keeps_its_digits(dtype, bias_dtype):
    torch.manual_seed(1)
    x, bias = torch.randn(19, 37).to(dtype), torch.randn(37).to(bias_dtype).requires_grad_()
    y = bias_gelu(x, bias)
    u = x.double() + bias.detach().double()
    assert_close(y.detach(), reference_gelu(u, "none"), scale=4)
    y.backward(torch.ones_like(y))
    assert bias.grad.dtype == bias_dtype
    assert_close(bias.grad, reference_derivative(u, "none").sum(0), **derivative_bounds(dtype, len(x)))


@pytest.mark.parametrize("payload", [0x7FFFFFFF, -1, 0x7F800001, -0x400000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_of_any_bits_in_the_bias_stays_nan(dtype, payload):
    """A NaN bias gives NaN; uninitialised memory is often all ones, which rounding could turn into zero."""
    bias = torch.full((20,), payload, dtype=torch.int32).view(torch.float32)
    x = torch.ones(2, 20, dtype=dtype, requires_grad=True)
    y = bias_gelu(x, bias.requires_grad_())
    y.backward(torch.ones_like(y))
    assert y.isnan().all()
    assert x.grad.isnan().all()
    assert bias.grad.isnan().all()


@pytest.mark.parametrize("shape", [(7,), (1, 1), (3, 5, 13), (2, 3, 4, 64), (130, 33), (2, 9001)])
def test_any_leading_shape(shape):
    torch.manual_seed(2)
    x, bias = torch.randn(shape, requires_grad=True), torch.randn(shape[-1], requires_grad=True)
    y = bias_gelu(x, bias)
    grad = torch.randn(shape)
    y.backward(grad)
    u = x.detach().double() + bias.detach().double()
    assert y.shape == x.shape
    assert_close(y.detach(), reference_gelu(u, "none"), scale=4)
    wanted = grad.double() * reference_derivative(u, "none")
    assert_close(x.grad, wanted, scale=8)
    assert_close(bias.grad, wanted.flatten(0, -2).sum(0) if x.dim() > 1 else wanted, scale=64)


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (2, 0, 3)])
def test_empty(shape):
    x, bias = torch.empty(shape, requires_grad=True), torch.ones(shape[-1], requires_grad=True)
    y = bias_gelu(x, bias)
    y.sum().backward()
    assert y.shape == x.shape
    assert x.grad.shape == x.shape
    assert torch.equal(bias.grad, torch.zeros(shape[-1]))


def test_strides_do_not_matter():
    torch.manual_seed(3)
    x, bias, grad = torch.randn(24, 11, 18), torch.randn(36), torch.randn(11, 24, 18)
    cut = x.transpose(0, 1).requires_grad_()
    y = bias_gelu(cut, bias[::2].requires_grad_())
    dense = cut.detach().contiguous().requires_grad_()
    wanted = bias_gelu(dense, bias[::2].contiguous())
    assert torch.equal(y, wanted)
    (got,) = torch.autograd.grad(y, cut, grad.transpose(1, 0).contiguous().transpose(0, 1))
    (want,) = torch.autograd.grad(wanted, dense, grad)
    assert torch.equal(got, want)


def test_bits_do_not_depend_on_threads(threads):
    """Results are bit-identical on any number of threads, so a replay on another machine is equal."""
    torch.manual_seed(4)
    x, bias, grad = torch.randn(777, 130), torch.randn(130), torch.randn(777, 130)
    results = []
    for count in (1, 2, 5):
        threads(count)
        leaf, b = x.clone().requires_grad_(), bias.clone().requires_grad_()
        y = bias_gelu(leaf, b)
        y.backward(grad)
        results.append((y.detach(), leaf.grad, b.grad))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_large_results():
    """Rows wider and narrower than a segment, split over threads, are correct up to the edges."""
    x = torch.randn(2100, 4099)
    bias = torch.randn(4099)
    for columns in (4099, 4000):
        part = x[:, :columns].contiguous().requires_grad_()
        y = bias_gelu(part, bias[:columns])
        y.backward(torch.ones_like(y))
        u = part.detach() + bias[:columns]
        assert_close(y.detach(), reference_gelu(u.double(), "none"))
        assert_close(part.grad, reference_derivative(u.double(), "none"), scale=8)


@pytest.mark.parametrize("approximate", FORMS)
def test_gradcheck_by_finite_differences(approximate):
    """Gradients match finite differences in float32: coarse, but independent of our own derivative."""
    torch.manual_seed(5)
    x, bias = torch.randn(3, 5, requires_grad=True), torch.randn(5, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, b: bias_gelu(x, b, approximate), (x, bias), eps=1e-2, atol=2e-3, rtol=2e-3, nondet_tol=0.0
    )


def test_half_rounds_every_value_as_torch_does():
    """Our integer conversions match torch's on every bit pattern and on ties."""
    for dtype in (torch.float16, torch.bfloat16):
        every = torch.arange(-32768, 32768, dtype=torch.int16).view(dtype)
        y = bias_gelu(every[None], torch.full((65536,), 200.0))  # gelu(u) = u for large u
        u = every.float() + 200.0
        far = u > 20
        assert torch.equal(y[0][far], u.to(dtype)[far])
        y = bias_gelu(torch.full((1, 65536), 300.0).to(dtype), every)
        assert torch.equal(y[0][far], (every.float() + 300.0).to(dtype)[far])
