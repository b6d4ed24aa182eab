"""Learning rates and parameter groups."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch

from neuscale.config import Config, compose_config
from neuscale.models.registry import create_model
from neuscale.training.lr_schedule import Span, lr_at, set_lr
from neuscale.training.optim import create_optimizer

ConfigBuilder = Callable[..., Config]


def schedule(*words: str, steps_per_epoch: int = 10, epochs: int = 10) -> list[float]:
    config = compose_config(["optim=adamw", "optim.lr=1.0", *words])
    total = steps_per_epoch * epochs
    return [lr_at(config.optim, step, steps_per_epoch, Span(0, total)) for step in range(total)]


def test_warm_up_is_linear_and_then_half_a_cosine() -> None:
    lr = schedule("optim.warmup_epochs=2")
    assert lr[:20] == pytest.approx([(i + 1) / 20 for i in range(20)])
    assert lr[20:] == pytest.approx([0.5 * (1 + math.cos(math.pi * i / 80)) for i in range(80)])
    assert max(lr) == 1.0


def test_the_rate_ends_at_its_floor() -> None:
    lr = schedule("optim.warmup_epochs=0", "optim.final_lr_ratio=0.1", steps_per_epoch=1000)
    assert lr[0] == 1.0
    assert lr[-1] == pytest.approx(0.1, abs=1e-4)
    assert all(a >= b for a, b in itertools.pairwise(lr))


def test_a_warm_up_longer_than_the_run_is_cut() -> None:
    assert schedule("optim.warmup_epochs=50")[-1] == pytest.approx(1.0)


@pytest.mark.parametrize("optim", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize("model", ["swin_nano", "vit_ti4"])
def test_every_parameter_is_in_one_group_and_only_matrices_decay(optim: str, model: str) -> None:
    config = compose_config([f"optim={optim}", f"model={model}"])
    module = create_model(config.model, 28, 1, 10, 0)
    optimizer = create_optimizer(config.optim, module)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(decay)
    for name, parameter in module.named_parameters():
        table = any(word in name for word in ("bias_table", "pos_embedding", "class_token"))
        expected = 0.0 if parameter.dim() == 1 or table else config.optim.weight_decay
        assert decay[id(parameter)] == expected, name


def test_muon_takes_the_hidden_matrices_and_nothing_else() -> None:
    config = compose_config(["optim=muon"])
    module = create_model(config.model, 28, 1, 10, 0)
    names = {id(p): name for name, p in module.named_parameters()}
    optimizer = create_optimizer(config.optim, module)
    muon = {names[id(p)] for p in optimizer.param_groups[0]["params"]}
    assert "features.1.0.attn.qkv.weight" in muon
    assert "features.2.reduction.weight" in muon
    assert not any("head" in name or "table" in name or "features.0" in name for name in muon)


@pytest.mark.parametrize("optim", ["adamw", "sgd", "muon"])
def test_a_rate_of_zero_changes_nothing(optim: str) -> None:
    """The schedule reaches every group of every optimizer."""
    config = compose_config([f"optim={optim}"])
    module = create_model(config.model, 28, 1, 10, 0)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = create_optimizer(config.optim, module)
    set_lr(optimizer, 0.0)
    module(torch.randn(2, 1, 28, 28)).sum().backward()
    optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
    set_lr(optimizer, 0.1)
    optimizer.step()
    assert not any(torch.equal(p, before[n]) for n, p in module.named_parameters() if p.grad.abs().sum() > 0)
