"""Stubs for Lightning, to test without it what NeuScale passes to it."""

import sys
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from torch import nn


class Module(nn.Module):
    """Stub of LightningModule that records what is logged and saved."""

    device: Any = None
    trainer: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[str, Any, dict[str, Any]]] = []
        self.saved: dict[str, Any] = {}

    def log(self, name: str, value: Any, **options: Any) -> None:
        self.logged.append((name, value, options))

    def save_hyperparameters(self, saved: dict[str, Any]) -> None:
        self.saved = saved


class DataModule:
    """Stub of LightningDataModule."""

    trainer: Any = None


STAND_INS: dict[str, dict[str, Any]] = {
    "lightning": {},
    "lightning.pytorch": {"Trainer": object, "LightningModule": Module, "LightningDataModule": DataModule},
    "lightning.pytorch.callbacks": {"GradientAccumulationScheduler": type("Accumulates", (), {})},
    "lightning.pytorch.strategies": {
        "DDPStrategy": type("DDPStrategy", (), {"root_device": None}),
        "SingleDeviceStrategy": type("SingleDeviceStrategy", (), {"root_device": None}),
    },
}
OURS = ["recipe", "data", "classifier"]


@pytest.fixture(scope="module")
def under_stand_ins() -> Iterator[SimpleNamespace]:
    """NeuScale's modules for Lightning, imported with the stubs: `recipe`, `data`, `classifier`."""
    package = "neuscale.integrations.lightning"
    names = [package, *(f"{package}.{name}" for name in OURS)]
    before = {name: sys.modules.pop(name, None) for name in names}
    with pytest.MonkeyPatch.context() as patch:
        for name, content in STAND_INS.items():
            module = ModuleType(name)
            vars(module).update(content)
            patch.setitem(sys.modules, name, module)
        sys.modules["lightning"].pytorch = sys.modules["lightning.pytorch"]  # type: ignore[attr-defined]
        recipe, data, classifier = (import_module(name) for name in names[1:])
        yield SimpleNamespace(recipe=recipe, data=data, classifier=classifier)
    for name in names:
        del sys.modules[name]
    sys.modules.update({name: module for name, module in before.items() if module is not None})
