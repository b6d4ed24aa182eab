"""Models with native ops have the same parameters and results as without them."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from neuscale import native_ops
from neuscale.config import compose_config
from neuscale.config.model_options import ModelConfig
from neuscale.errors import UsageError
from neuscale.models.fused import choose_ops, fuse
from neuscale.models.registry import create_model

CPU = torch.device("cpu")
SMALL = ["model.embed_dim=16", "model.depths=[2,2]", "model.num_heads=[2,2]"]


@pytest.fixture(autouse=True)
def fresh_answer() -> Iterator[None]:
    """Clear the cache of `load_native_ops`, which otherwise looks for the package once per process."""
    native_ops.load_native_ops.cache_clear()
    yield
    native_ops.load_native_ops.cache_clear()


@pytest.fixture
def ops() -> Any:
    return pytest.importorskip("neuscale_ops", reason="the native ops are not built (make ops)")


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize(
    "words", [["model=swin_nano", *SMALL], ["model=vit_ti4", "model.num_layers=2"]], ids=["swin", "vit"]
)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_fused_and_eager_agree_forward_and_backward(
    ops: Any, words: list[str], approximate: str, dropout: float
) -> None:
    composed = compose_config([*words, f"model.gelu_approximate={approximate}", f"model.dropout={dropout}"])
    eager = create_model(composed.model, 16, 3, 5, 0)
    fused = copy.deepcopy(eager)
    fuse(fused, CPU)
    assert list(fused.state_dict()) == list(eager.state_dict())
    images, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    grads = []
    for model in (eager, fused):
        torch.manual_seed(0)
        logits = model.train()(images)
        F.cross_entropy(logits, labels).backward()
        grads.append((logits, {name: p.grad for name, p in model.named_parameters()}))
    torch.testing.assert_close(grads[0][0], grads[1][0], rtol=1e-4, atol=1e-5)
    for name, grad in grads[0][1].items():
        torch.testing.assert_close(grads[1][1][name], grad, rtol=1e-3, atol=1e-5, msg=name)


def test_the_fused_model_really_calls_the_ops(ops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("linear_gelu", "gelu_mlp"):
        real: Callable[..., Any] = getattr(ops, name)
        monkeypatch.setattr(
            ops, name, lambda *given, real=real, name=name: (calls.append(name), real(*given))[1]
        )
    for approximate, expected in (("none", "linear_gelu"), ("tanh", "gelu_mlp")):
        composed = compose_config(["model=swin_nano", *SMALL, f"model.gelu_approximate={approximate}"])
        model = create_model(composed.model, 16, 3, 5, 0)
        fuse(model, CPU)
        calls.clear()
        model(torch.randn(1, 3, 16, 16))
        assert calls == [expected] * 4


def config(ops: str = "auto") -> ModelConfig:
    return compose_config(["model=swin_nano", f"model.ops={ops}"]).model


def test_auto_takes_them_where_they_are_and_says_why_not(monkeypatch: pytest.MonkeyPatch, ops: Any) -> None:
    assert choose_ops(config("auto"), CPU).kind == "fused"
    assert choose_ops(config("eager"), CPU).kind == "eager"
    native_ops.load_native_ops.cache_clear()
    monkeypatch.setenv("NEUSCALE_OPS", "off")
    choice = choose_ops(config("auto"), CPU)
    assert (choice.kind, choice.reason) == ("eager", "NEUSCALE_OPS=off")
    with pytest.raises(UsageError, match="make ops"):
        choose_ops(config("fused"), CPU)


def test_a_package_that_cannot_be_loaded_is_a_reason_and_no_crash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import builtins

    real = builtins.__import__

    def broken(name: str, *rest: Any, **named: Any) -> Any:
        if name == "neuscale_ops":
            raise ImportError("neuscale_ops was built for another torch: run 'make ops'")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", broken)
    choice = choose_ops(config(), CPU)
    assert choice.kind == "eager"
    assert "built for another torch" in choice.reason


def test_other_devices_than_the_built_ones_are_eager(ops: Any) -> None:
    choice = choose_ops(config(), torch.device("mps"))
    assert (choice.kind, choice.reason) == ("eager", "neuscale_ops has no kernels for mps")


def test_the_loader_gives_the_same_bits_with_and_without(
    ops: Any, build_image_tree: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neuscale.config.schema import AugmentConfig
    from neuscale.data.loaders.resident import ResidentLoader
    from neuscale.data.prepare import prepare
    from neuscale.distributed.rank import Rank

    data = prepare(
        "image_folder",
        root=tmp_path / "data",
        source=build_image_tree(tmp_path / "tree", train=20),
        save_as="x",
    )
    augment = AugmentConfig(crop_padding=2, horizontal_flip=0.5, mixup_alpha=0.5, erasing=0.5)
    batches = []
    for switch in ("on", "off"):
        monkeypatch.setenv("NEUSCALE_OPS", switch)
        native_ops.load_native_ops.cache_clear()
        loader = ResidentLoader(data, "train", None, CPU, Rank())
        assert (loader._normalize._ops is None) == (switch == "off")
        batches.append([batch.images for [batch] in loader.training(augment, 0, 0, 0, 5, 12)])
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))


def test_a_model_without_an_mlp_is_left_alone(ops: Any) -> None:
    model = nn.Linear(2, 2)
    fuse(model, CPU)
    assert model(torch.randn(1, 2)).shape == (1, 2)
