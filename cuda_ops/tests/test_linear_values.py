"""linear_gelu, gelu_mlp and crop_flip_normalize on the CPU, against their formulas in float64."""

import pytest
import torch

from gelu_reference import reference_derivative, reference_gelu
from neuscale_ops import LinearGELU, crop_flip_normalize, gelu_mlp, linear_gelu

FORMS = ["none", "tanh"]
K, N, P = 6, 10, 7  # all different, and none a multiple of the vector width


def draws(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def leaves():
    """Leaf tensors x [2, 5, K], weight1 [N, K], bias1, weight2 [P, N], bias2; GELU's inputs are near ±2.5."""
    shapes = [(2, 5, K), (N, K), (N,), (P, N), (P,)]
    return [draws(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]


def assert_near(found, wanted):
    """Assert equality within the rounding error of sums of a few dozen float32 products of this size."""
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("approximate", FORMS)
def test_linear_gelu_and_its_gradients(approximate):
    x, weight, bias, *_ = leaves()
    grad = draws(2, 5, N, seed=9)
    y = linear_gelu(x, weight, bias, approximate)
    y.backward(grad)
    x64, weight64, bias64 = (t.detach().double() for t in (x, weight, bias))
    u = torch.einsum("abk,nk->abn", x64, weight64) + bias64
    assert_near(y.detach(), reference_gelu(u, approximate))
    du = grad.double() * reference_derivative(u, approximate)
    assert_near(x.grad, torch.einsum("abn,nk->abk", du, weight64))
    assert_near(weight.grad, torch.einsum("abn,abk->nk", du, x64))
    assert_near(bias.grad, du.sum((0, 1)))


@pytest.mark.parametrize("approximate", FORMS)
@pytest.mark.parametrize("implementation", ["auto", "separate"])
def test_gelu_mlp_and_its_gradients(approximate, implementation):
    x, weight1, bias1, weight2, bias2 = leaves()
    grad = draws(2, 5, P, seed=9)
    y = gelu_mlp(x, weight1, bias1, weight2, bias2, approximate, implementation)
    y.backward(grad)
    x64, w1, b1, w2, b2 = (t.detach().double() for t in (x, weight1, bias1, weight2, bias2))
    u = torch.einsum("abk,nk->abn", x64, w1) + b1
    hidden = reference_gelu(u, approximate)
    assert_near(y.detach(), torch.einsum("abn,pn->abp", hidden, w2) + b2)
    grad = grad.double()
    du = torch.einsum("abp,pn->abn", grad, w2) * reference_derivative(u, approximate)
    assert_near(x.grad, torch.einsum("abn,nk->abk", du, w1))
    assert_near(weight1.grad, torch.einsum("abn,abk->nk", du, x64))
    assert_near(bias1.grad, du.sum((0, 1)))
    assert_near(weight2.grad, torch.einsum("abp,abn->pn", grad, hidden))
    assert_near(bias2.grad, grad.sum((0, 1)))


@pytest.mark.parametrize("approximate", FORMS)
def test_the_layer_has_the_form_that_it_was_made_with(approximate):
    layer = LinearGELU(K, N, approximate)
    x = 5 * draws(4, K, seed=1)
    u = x.double() @ layer.weight.detach().double().T + layer.bias.detach().double()
    assert_near(layer(x).detach(), reference_gelu(u, approximate))
    assert f"approximate='{approximate}'" in repr(layer)


def test_without_a_choice_the_functions_take_the_tanh_form():
    x, weight1, bias1, weight2, bias2 = (t.detach() for t in leaves())
    assert torch.equal(linear_gelu(x, weight1, bias1), linear_gelu(x, weight1, bias1, "tanh"))
    assert not torch.equal(linear_gelu(x, weight1, bias1), linear_gelu(x, weight1, bias1, "none"))
    rest = weight1, bias1, weight2, bias2
    assert torch.equal(gelu_mlp(x, *rest), gelu_mlp(x, *rest, "tanh"))
    assert not torch.equal(gelu_mlp(x, *rest), gelu_mlp(x, *rest, "none"))
    assert LinearGELU(2, 2).approximate == "tanh"


@pytest.mark.parametrize("implementation", ["epilogue", "fast"])
def test_an_implementation_that_cannot_be_is_refused(implementation):
    x, weight1, bias1, weight2, bias2 = (t.detach() for t in leaves())
    with pytest.raises(ValueError, match=r"^implementation: "):
        linear_gelu(x, weight1, bias1, "tanh", implementation)
    with pytest.raises(ValueError, match=r"^implementation: "):
        gelu_mlp(x, weight1, bias1, weight2, bias2, "tanh", implementation)


def test_a_crop_by_hand_is_the_byte_over_255_less_the_mean_over_the_deviation():
    """Hand-computed crops of two of three 2×3 images with two channels: sizes, mean and std all differ."""
    images = torch.arange(36, dtype=torch.uint8).view(3, 2, 2, 3) * 7
    mean, std = torch.tensor([0.25, 0.5]), torch.tensor([0.125, 0.75])
    given = [torch.tensor([2, 0]), torch.tensor([0, 2]), torch.tensor([2, 1]), torch.tensor([False, True])]
    found = crop_flip_normalize(images, *given, mean, std, 1)
    # image 2 from its first padded row and third padded column; image 0 from its third row, mirrored
    bytes_ = [
        [[[0, 0, 0], [25, 26, 0]], [[0, 0, 0], [31, 32, 0]]],
        [[[5, 4, 3], [0, 0, 0]], [[11, 10, 9], [0, 0, 0]]],
    ]
    wanted = torch.tensor(bytes_, dtype=torch.float64) * 7 / 255
    wanted = (wanted - mean.double()[:, None, None]) / std.double()[:, None, None]
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6)


def test_under_autocast_it_computes_in_bfloat16_what_it_computes_without():
    x, weight1, bias1, weight2, bias2 = (t.detach() for t in leaves())
    exact = gelu_mlp(x, weight1, bias1, weight2, bias2)
    with torch.autocast("cpu", torch.bfloat16):
        found = gelu_mlp(x, weight1, bias1, weight2, bias2)
        first = linear_gelu(x, weight1, bias1)
    assert found.dtype == first.dtype == torch.bfloat16
    # bfloat16 has 8 bits; each of the three roundings is of numbers up to the largest result
    torch.testing.assert_close(found.float(), exact, rtol=0, atol=0.03 * exact.abs().max().item())
    torch.testing.assert_close(first.float(), linear_gelu(x, weight1, bias1), rtol=0.02, atol=0.05)
