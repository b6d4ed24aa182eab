"""Under every torch transform the ops match torch's own GELU, and never silently return zero."""

import copy

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.distributed as dist
import torch.nn.functional as F
from torch.func import functional_call, stack_module_state
from torch.fx.experimental.proxy_tensor import make_fx

from neuscale_ops import LinearGELU, bias_gelu, gelu_mlp, linear_gelu

RAW = torch.ops.neuscale_ops.bias_gelu.default
FORMS = ["none", "tanh"]


def fused(approximate):
    return lambda x, bias: bias_gelu(x, bias, approximate)


def bare(approximate):
    """The bare op, as a traced graph calls it."""
    return lambda x, bias: RAW(x, bias, FORMS.index(approximate))


def torchs(approximate):
    return lambda x, bias: F.gelu(x + bias, approximate=approximate)


@pytest.fixture
def given():
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(*shape, generator=generator) for shape in ((5, 8), (8,))]


@pytest.fixture
def batched():
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(*shape, generator=generator) for shape in ((3, 5, 8), (3, 8))]


def loss(function, x, bias):
    return function(x, bias).square().sum()


def gradients(function, tensors, create_graph=False):
    tensors = [tensor.clone().requires_grad_() for tensor in tensors]
    return torch.autograd.grad(loss(function, *tensors), tensors, create_graph=create_graph), tensors


TRANSFORMS = {
    "vmap": lambda f, x, b: torch.vmap(f, (0, None))(x, b),
    "vmap of the last dimension": lambda f, x, b: torch.vmap(f, (None, 0), 1)(x, torch.stack([b, 2 * b])),
    "grad": lambda f, x, b: torch.func.grad(lambda v: loss(f, v, b))(x),
    "grad by the bias": lambda f, x, b: torch.func.grad(lambda v: loss(f, x, v))(b),
    "grad of grad": lambda f, x, b: torch.func.grad(
        lambda v: torch.func.grad(lambda u: loss(f, u, b))(v).square().sum()
    )(x),
    "jvp": lambda f, x, b: torch.func.jvp(f, (x, b), (torch.ones_like(x), torch.ones_like(b)))[1],
    "jacfwd": lambda f, x, b: torch.func.jacfwd(f, (0, 1))(x, b),
    "jacrev": lambda f, x, b: torch.func.jacrev(f, (0, 1))(x, b),
    "hessian": lambda f, x, b: torch.func.hessian(lambda v: loss(f, x, v))(b),
    "vmap of grad": lambda f, x, b: torch.vmap(torch.func.grad(lambda v: loss(f, v, b)))(x),
    "dual numbers": lambda f, x, b: dual(f, x, b),
}


def dual(function, x, bias):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, torch.ones_like(x)), bias)).tangent


@pytest.mark.parametrize("approximate", FORMS)
@pytest.mark.parametrize("op", [fused, bare])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_has_torchs_values(name, op, approximate, given):
    transform = TRANSFORMS[name]
    found, expected = transform(op(approximate), *given), transform(torchs(approximate), *given)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["grad", "grad of grad", "jvp", "jacfwd", "vmap", "vmap of grad"])
def test_a_compiled_transform_has_torchs_values(name, given):
    transform = TRANSFORMS[name]
    found = torch.compile(lambda x, b: transform(fused("none"), x, b), backend="aot_eager")(*given)
    torch.testing.assert_close(found, transform(torchs("none"), *given), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op", [fused, bare])
def test_gradients_of_a_vmap_over_both_arguments(op, batched):
    found, _ = gradients(torch.vmap(op("tanh")), batched)
    expected, _ = gradients(torch.vmap(torchs("tanh")), batched)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("approximate", FORMS)
@pytest.mark.parametrize("op", [fused, bare])
def test_second_derivatives(op, approximate, given):
    def twice(function):
        first, tensors = gradients(function, given, create_graph=True)
        return first, torch.autograd.grad(sum(value.square().sum() for value in first), tensors)

    torch.testing.assert_close(twice(op(approximate)), twice(torchs(approximate)), rtol=1e-4, atol=1e-5)


def test_the_backward_by_torchs_operations_is_that_of_torch():
    from neuscale_ops.plain import plain_bias_gelu_backward

    x, bias, grad = torch.randn(3, 4), torch.randn(4), torch.randn(3, 4)
    for form in FORMS:
        found = plain_bias_gelu_backward(grad, x, bias, FORMS.index(form))
        expected = torch.autograd.functional.vjp(torchs(form), (x, bias), grad)[1]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_graph_of_make_fx_has_gradients(given):
    graph = make_fx(lambda x, bias: bias_gelu(x, bias))(*given)
    assert "bias_gelu" in graph.code
    torch.testing.assert_close(
        gradients(graph, given)[0], gradients(torchs("none"), given)[0], rtol=1e-4, atol=1e-5
    )


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = LinearGELU(8, 16)

    def forward(self, x):
        return self.layer(x)


def trained(model, x):
    model.zero_grad()
    model(x).square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("decomposed", [False, True])
def test_an_exported_program_can_be_trained(decomposed, given):
    net, x = Net(), given[0]
    program = torch.export.export(net, (x,))
    program = program.run_decompositions() if decomposed else program
    torch.testing.assert_close(trained(program.module(), x), trained(net, x), rtol=1e-4, atol=1e-5)


def test_an_ensemble_has_the_gradients_of_its_models(given):
    torch.manual_seed(0)
    models, x = [Net() for _ in range(3)], given[0]
    parameters, buffers = stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")
    outputs = torch.vmap(lambda p, b: functional_call(base, (p, b), (x,)))(parameters, buffers)
    outputs.square().sum().backward()
    expected = [torch.stack(each) for each in zip(*(trained(model, x) for model in models), strict=True)]
    torch.testing.assert_close([p.grad for p in parameters.values()], expected, rtol=1e-4, atol=1e-5)


def test_the_linears_around_it_are_transformed_too():
    generator = torch.Generator().manual_seed(1)
    shapes = ((2, 8), (16, 8), (16,), (4, 16), (4,))
    x, w1, b1, w2, b2 = (torch.randn(*shape, generator=generator) for shape in shapes)

    def wanted(v):
        return F.linear(F.gelu(F.linear(v, w1, b1), approximate="tanh"), w2, b2)

    for function, expected in (
        (lambda v: linear_gelu(v, w1, b1), lambda v: F.gelu(F.linear(v, w1, b1), approximate="tanh")),
        (lambda v: gelu_mlp(v, w1, b1, w2, b2), wanted),
    ):
        torch.testing.assert_close(
            torch.func.jacfwd(function)(x), torch.func.jacfwd(expected)(x), rtol=1e-4, atol=1e-4
        )


@pytest.fixture
def mesh(tmp_path):
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("op", [fused, bare])
@pytest.mark.parametrize("split", [(0, None), (1, 0), (None, None)])
def test_distributed_tensors(op, split, given, mesh):
    """Gradients of DTensors are right: sharded by rows (data parallel), columns (tensor parallel), or not."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    tensors = [
        distribute_tensor(tensor, mesh, [Replicate() if dim is None else Shard(dim)])
        for tensor, dim in zip(given, split, strict=True)
    ]
    found, _ = gradients(op("none"), tensors)
    expected, _ = gradients(torchs("none"), given)
    torch.testing.assert_close([each.full_tensor() for each in found], list(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["nested", "jagged", "sparse_coo", "sparse_csr"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensors_of_other_layouts_are_refused_in_words(layout):
    rows = [torch.randn(2, 8), torch.randn(3, 8)]
    x = {
        "nested": lambda: torch.nested.nested_tensor(rows),
        "jagged": lambda: torch.nested.nested_tensor(rows, layout=torch.jagged),
        "sparse_coo": lambda: torch.eye(8).to_sparse(),
        "sparse_csr": lambda: torch.eye(8).to_sparse_csr(),
    }[layout]()
    with pytest.raises(TypeError, match=r"^x: a dense tensor, not a (nested|sparse_\w+) one"):
        bias_gelu(x, torch.randn(8))
