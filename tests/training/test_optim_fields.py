"""Every field of an optimizer reaches torch's optimizer and is in effect when it takes a step."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from neuscale.config import Config
from neuscale.config.model_options import AdamWConfig, MuonConfig, OptimConfig, SGDConfig
from neuscale.training import trainer
from neuscale.training.optim import OptimizerSet
from neuscale.training.run import train

ConfigBuilder = Callable[..., Config]

# Every field of each optimizer, mostly at a non-default value; an epoch has 5 steps.
FIELDS: dict[type[OptimConfig], dict[str, Any]] = {
    AdamWConfig: {
        "name": "adamw",
        "lr": 0.02,
        "weight_decay": 0.03,
        "layer_decay": 0.5,
        "schedule": "step",
        "warmup_epochs": 0.4,
        "final_lr_ratio": 0.125,  # unused by the step schedule
        "step_epochs": [1],
        "step_factor": 0.3,
        "on_extend": "hold",  # used only on resume
        "clip_grad_norm": 1e-3,
        "beta1": 0.8,
        "beta2": 0.97,
        "eps": 1e-6,
    },
    SGDConfig: {
        "name": "sgd",
        "lr": 0.04,
        "weight_decay": 0.07,
        "layer_decay": 1.0,
        "schedule": "cosine",
        "warmup_epochs": 0.2,
        "final_lr_ratio": 0.25,
        "step_epochs": [2],
        "step_factor": 0.5,
        "on_extend": "restart",  # used only on resume
        "clip_grad_norm": None,
        "momentum": 0.7,
        "nesterov": False,
    },
    MuonConfig: {
        "name": "muon",
        "lr": 0.01,
        "weight_decay": 0.02,
        "layer_decay": 0.75,
        "schedule": "linear",
        "warmup_epochs": 1.0,
        "final_lr_ratio": 0.5,
        "step_epochs": [1],
        "step_factor": 0.5,
        "on_extend": "rescale",  # used only on resume
        "clip_grad_norm": 0.002,
        "beta1": 0.85,
        "beta2": 0.96,
        "eps": 1e-5,
        "momentum": 0.6,
    },
}
# Layer of each parameter of the tiny model, by the prefix of its name: two blocks, a merging that
# belongs to the second, one block, and the head with its norm.
LAYERS = {
    "features.0.": 0,
    "features.1.0.": 1,
    "features.1.1.": 2,
    "features.2.": 2,
    "features.3.0.": 3,
    "norm.": 4,
    "head.": 4,
}


@dataclasses.dataclass
class Step:
    """Optimizer class and group of each parameter when a step is taken, and the norm of all gradients."""

    kinds: dict[str, type]
    groups: dict[str, dict[str, Any]]
    norm: float


@pytest.fixture
def stepped(
    tiny: ConfigBuilder, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[type[OptimConfig]], list[Step]]]:
    """Function that trains two epochs of 5 steps with all FIELDS of an optimizer and returns the steps."""
    names: dict[int, str] = {}
    taken: list[Step] = []
    create = trainer.create_optimizer

    def named(config: OptimConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
        names.update({id(parameter): name for name, parameter in model.named_parameters()})
        return create(config, model)

    def look(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if isinstance(optimizer, OptimizerSet):
            taken.append(Step({}, {}, 0.0))
            return
        if not taken or set(taken[-1].groups) & {names[id(p)] for p in optimizer.param_groups[0]["params"]}:
            taken.append(Step({}, {}, 0.0))
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = names[id(parameter)]
                taken[-1].kinds[name] = type(optimizer)
                taken[-1].groups[name] = {key: value for key, value in group.items() if key != "params"}
                taken[-1].norm = math.hypot(taken[-1].norm, parameter.grad.norm().item())

    monkeypatch.setattr(trainer, "create_optimizer", named)
    hook = register_optimizer_step_pre_hook(look)

    def run(schema: type[OptimConfig]) -> list[Step]:
        fields = FIELDS[schema]
        words = [
            f"optim.{field}={'null' if value is None else value}"
            for field, value in fields.items()
            if field != "name"
        ]
        words += ["train.epochs=2", "tracking.trackers=[]", "run.name=stepped"]
        train(tiny(f"optim={fields['name']}", *words))
        return taken

    yield run
    hook.remove()


def layer(name: str) -> int:
    return next(number for beginning, number in LAYERS.items() if name.startswith(beginning))


def decays(name: str) -> bool:
    return name.endswith("weight") and "norm" not in name and ".0.2." not in name


@pytest.mark.parametrize("schema", FIELDS)
def test_every_field_has_a_value_here(schema: type[OptimConfig]) -> None:
    own = {"function"}  # set to the user's own code: tests/project/test_own_parts.py
    assert {*FIELDS[schema], *own} == {field.name for field in dataclasses.fields(schema)}


def test_every_field_of_adamw_is_in_its_groups(stepped: Callable[..., list[Step]]) -> None:
    steps = stepped(AdamWConfig)
    assert len(steps) == 10
    peak, warm = 0.02, [0.5, 1.0]  # 0.4 epochs of 5 steps
    for number, step in enumerate(steps):
        assert len(step.groups) == 4 + 3 * 13 + 3 + 4, "embedding, blocks, merging, norm and head"
        rate = peak * (warm[number] if number < 2 else 0.3 if number >= 5 else 1.0)
        for name, group in step.groups.items():
            assert step.kinds[name] is torch.optim.AdamW
            assert group["betas"] == (0.8, 0.97)
            assert group["eps"] == 1e-6
            assert group["weight_decay"] == (0.03 if decays(name) else 0.0), name
            assert group["lr"] == pytest.approx(rate * 0.5 ** (4 - layer(name))), name
        assert step.norm == pytest.approx(1e-3, rel=1e-3)


def test_every_field_of_sgd_is_in_its_groups(stepped: Callable[..., list[Step]]) -> None:
    steps = stepped(SGDConfig)
    assert len(steps) == 10
    cosine = [0.5 * (1 + math.cos(math.pi * i / 9)) for i in range(9)]
    rates = [0.04, *(0.04 * (0.25 + 0.75 * share) for share in cosine)]
    for rate, step in zip(rates, steps, strict=True):
        for name, group in step.groups.items():
            assert step.kinds[name] is torch.optim.SGD
            assert (group["momentum"], group["nesterov"], group["dampening"]) == (0.7, False, 0)
            assert group["weight_decay"] == (0.07 if decays(name) else 0.0), name
            assert group["lr"] == pytest.approx(rate), name
        assert step.norm > 0.02, "no clipping"


def test_every_field_of_muon_is_in_its_groups_and_in_adamws_beside_it(
    stepped: Callable[..., list[Step]],
) -> None:
    steps = stepped(MuonConfig)
    assert len(steps) == 10
    rates = [0.01 * (i + 1) / 5 for i in range(5)] + [0.01 * (1 - 0.5 * i / 5) for i in range(5)]
    for rate, step in zip(rates, steps, strict=True):
        for name, group in step.groups.items():
            hidden = decays(name) and not name.startswith(("features.0.", "head."))
            assert step.kinds[name] is (torch.optim.Muon if hidden else torch.optim.AdamW), name
            assert group["weight_decay"] == (0.02 if decays(name) else 0.0), name
            assert group["lr"] == pytest.approx(rate * 0.75 ** (4 - layer(name))), name
            if hidden:
                assert (group["momentum"], group["nesterov"]) == (0.6, True)
                assert group["adjust_lr_fn"] == "match_rms_adamw"
            else:
                assert (group["betas"], group["eps"]) == ((0.85, 0.96), 1e-5)
        assert step.norm == pytest.approx(2e-3, rel=1e-3)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, True), (0.0, False)])
def test_sgd_has_nesterovs_momentum_where_it_has_momentum(momentum: float, nesterov: bool) -> None:
    """Nesterov is our default, but torch refuses it without momentum, so it is switched off there."""
    from neuscale.training.optim import create_optimizer

    config = SGDConfig(momentum=momentum, nesterov=True)
    (group,) = create_optimizer(config, torch.nn.Linear(2, 2, bias=False)).param_groups
    assert (group["momentum"], group["nesterov"]) == (momentum, nesterov)
