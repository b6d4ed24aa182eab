"""Choice of native ops by package, device, environment and configuration, with a fake package."""

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from neuscale import native_ops
from neuscale.config import compose_config
from neuscale.errors import UsageError
from neuscale.models.fused import choose_ops, fuse
from neuscale.models.layers import MLP

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def fresh_answer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("NEUSCALE_OPS", raising=False)
    native_ops.load_native_ops.cache_clear()
    yield
    native_ops.load_native_ops.cache_clear()


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Fake `neuscale_ops` package, built for the CPU."""
    module: Any = ModuleType("neuscale_ops")
    module.build_info = lambda: {"cpu": {}, "cuda": None}
    module.linear_gelu, module.gelu_mlp = object(), object()
    monkeypatch.setitem(sys.modules, "neuscale_ops", module)
    return module


def config(*words: str) -> Any:
    return compose_config(list(words)).model


def test_a_build_for_the_cpu_serves_the_cpu_only(package: Any) -> None:
    assert native_ops.native_ops(CPU) == (package, "")
    assert native_ops.native_ops(CUDA) == (None, "neuscale_ops has no kernels for cuda")
    assert native_ops.native_ops(torch.device("mps")) == (None, "neuscale_ops has no kernels for mps")


def test_a_build_for_cuda_serves_both(package: Any) -> None:
    package.build_info = lambda: {"cpu": {}, "cuda": {"architectures": ["90"]}}
    assert native_ops.native_ops(CUDA) == native_ops.native_ops(CPU) == (package, "")
    assert native_ops.native_ops(torch.device("mps"))[0] is None


@pytest.mark.parametrize("value", ["off", "OFF", "0"])
def test_the_environment_leaves_them_aside(package: Any, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("NEUSCALE_OPS", value)
    assert native_ops.native_ops(CPU) == (None, "NEUSCALE_OPS=off")


@pytest.mark.parametrize("value", ["on", "1", ""])
def test_any_other_value_takes_them(package: Any, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("NEUSCALE_OPS", value)
    assert native_ops.native_ops(CPU) == (package, "")


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "neuscale_ops", None)
    assert native_ops.native_ops(CPU) == (None, "neuscale_ops is not installed (make ops)")
    with pytest.raises(UsageError, match=r"model.ops=fused: neuscale_ops is not installed") as caught:
        choose_ops(config("model.ops=fused"), CPU)
    assert "model.ops=auto" in caught.value.fix
    choice = choose_ops(config("model.ops=auto"), CPU)
    assert (choice.kind, choice.reason) == ("eager", "neuscale_ops is not installed (make ops)")


def test_a_package_that_lacks_a_part_is_not_called_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """The name of the missing module shows which of the two has to be installed."""
    (tmp_path / "neuscale_ops.py").write_text("import a_part_that_is_missing\n")
    monkeypatch.delitem(sys.modules, "neuscale_ops", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    ops, reason = native_ops.load_native_ops()
    assert ops is None
    assert reason == "No module named 'a_part_that_is_missing'"


def test_it_is_asked_for_as_the_model_is_configured(package: Any) -> None:
    assert choose_ops(config("model.ops=eager"), CPU).kind == "eager"
    assert choose_ops(config("model.ops=auto"), CPU).kind == "fused"
    assert choose_ops(config("model.ops=fused"), CPU).kind == "fused"
    assert choose_ops(config("model=vit_ti4"), CPU).kind == "fused"
    with pytest.raises(UsageError, match="no kernels for cuda"):
        choose_ops(config("model.ops=fused"), CUDA)
    # models of other libraries run as they are, and there is no reason to report
    for words in (["model=torchvision", "model.arch=resnet18"], ["model=timm", "model.arch=resnet18"]):
        choice = choose_ops(config(*words), CPU)
        assert (choice.kind, choice.reason) == ("eager", "")


@pytest.mark.parametrize(("deterministic", "implementation"), [(True, "separate"), (False, "auto")])
def test_every_mlp_gets_both_ops_and_a_deterministic_run_times_nothing(
    package: Any, deterministic: bool, implementation: str
) -> None:
    """Timing the implementations would make the last bits depend on which is faster at that time."""
    model = nn.Sequential(MLP(2, 3), nn.Linear(2, 2), nn.Sequential(MLP(2, 3)))
    fuse(model, CPU, deterministic)
    mlps = [m for m in model.modules() if isinstance(m, MLP)]
    assert len(mlps) == 2
    for mlp in mlps:
        assert mlp.fused == (package.linear_gelu, package.gelu_mlp, implementation)
