"""Model and data are set up for the Trainer's device; Lightning need not be installed."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conftest import TINY_RECIPE
from neuscale.distributed.rank import Rank
from neuscale.errors import UsageError

WORDS = [*TINY_RECIPE, "model.ops=eager"]
SIZES = (8, 3, 7)
CPU = torch.device("cpu")


def trainer(modules: Any, **changed: Any) -> Any:
    """Fake Trainer of rank 1 and world size 3."""
    strategy = modules.recipe.DDPStrategy()
    strategy.root_device = CPU
    usual = {"strategy": strategy, "global_rank": 1, "world_size": 3, "precision": "32-true"}
    usual |= {"gradient_clip_val": None, "callbacks": [], "accumulate_grad_batches": 1}
    return SimpleNamespace(**{**usual, **changed})


class Opened:
    """Fake data set and loaders that record how they are opened."""

    def __init__(self, modules: Any, patch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.checked: list[tuple[Any, ...]] = []
        self.meta = SimpleNamespace(fingerprint="print", fingerprint_v1="older", classes=7, label_sets=None)
        patch.setattr(modules.data, "open_data", lambda _config, _progress: self)
        patch.setattr(modules.data, "choose_loader", lambda _config, _data, device: ("choice", device))
        patch.setattr(modules.data, "check_augment", lambda *given: self.checked.append(given))
        patch.setattr(modules.data, "create_loader", self.create)

    def create(self, choice: Any, _config: Any, data: Any, split: str, device: Any, rank: Rank) -> Any:
        assert (choice, data) == (("choice", CPU), self)
        self.asked.append((split, device, rank))
        return SimpleNamespace(split=split, rank=rank)


def test_each_process_opens_its_share_and_the_whole_validation_split(
    under_stand_ins: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Opened(under_stand_ins, monkeypatch)
    data = under_stand_ins.data.ImageDataModule([*WORDS, "eval.batch_size=5"])
    data.trainer = trainer(under_stand_ins)
    data.setup("fit")
    assert opened.asked == [
        ("train", CPU, Rank(1, 3)),
        ("val", CPU, Rank(1, 3)),
        ("val", CPU, Rank(0, 1)),
    ]
    assert opened.checked == [(data.config.augment, ("choice", CPU))]
    assert data.meta is opened.meta
    validation = data.val_dataloader()
    assert (validation._loader.rank, validation._whole.rank) == (Rank(1, 3), Rank(0, 1))
    assert validation._batch_size == 5
    assert data.train_dataloader()._loader.split == "train"
    batch = object()
    assert data.transfer_batch_to_device(batch, CPU, 0) is batch


def test_what_the_trainer_does_otherwise_matters_where_it_trains(
    under_stand_ins: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Opened(under_stand_ins, monkeypatch)
    data = under_stand_ins.data.ImageDataModule(WORDS)
    data.trainer = trainer(under_stand_ins, gradient_clip_val=1.0)
    data.setup("validate")
    with pytest.raises(UsageError, match="the recipe clips"):
        data.setup("fit")
    data.trainer = trainer(under_stand_ins, world_size=5)
    with pytest.raises(UsageError, match="does not divide into 5 processes"):
        data.setup("validate")


def ready(modules: Any, *words: str, stage: str = "validate") -> Any:
    module = modules.classifier.ImageClassifier([*WORDS, *words], SIZES)
    data = modules.data.ImageDataModule([*WORDS, *words])
    data._training = [0] * 60
    module.trainer = trainer(modules, datamodule=data)
    module.setup(stage)
    return module


def test_a_data_module_of_another_recipe_or_none_is_refused(under_stand_ins: Any) -> None:
    module = under_stand_ins.classifier.ImageClassifier(WORDS, SIZES)
    others = [None, object(), under_stand_ins.data.ImageDataModule([*WORDS, "run.seed=1"])]
    for other in others:
        module.trainer = trainer(under_stand_ins, datamodule=other)
        with pytest.raises(UsageError, match="with an ImageDataModule of the same recipe"):
            module.setup("fit")


@pytest.mark.parametrize("deterministic", ["true", "false"])
def test_the_native_ops_are_put_in_where_they_serve_the_device(
    under_stand_ins: Any, monkeypatch: pytest.MonkeyPatch, deterministic: str
) -> None:
    fused: list[tuple[Any, ...]] = []
    monkeypatch.setattr(under_stand_ins.classifier, "fuse", lambda *given: fused.append(given))
    for kind in ("eager", "fused"):
        choice = SimpleNamespace(kind=kind)
        monkeypatch.setattr(under_stand_ins.classifier, "choose_ops", lambda *_given, choice=choice: choice)
        module = ready(under_stand_ins, f"run.deterministic={deterministic}")
        assert fused == ([] if kind == "eager" else [(module.model, CPU, deterministic == "true")])


def test_channels_last_holds_for_the_filters_and_the_images(under_stand_ins: Any) -> None:
    for word, last in (("true", True), ("false", False)):
        module = ready(under_stand_ins, f"train.channels_last={word}")
        seen: list[torch.Tensor] = []
        module.model.register_forward_pre_hook(lambda _module, given, seen=seen: seen.append(given[0]))
        module(torch.zeros(2, 3, 8, 8))
        for tensor in (seen[0], module.model.features[0][0].weight):
            assert tensor.is_contiguous(memory_format=torch.channels_last) == last


def test_it_is_compiled_for_training_only(under_stand_ins: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(under_stand_ins.classifier, "check_compiler", lambda: calls.append("checked"))
    monkeypatch.setattr("torch.nn.Module.compile", lambda self: calls.append(type(self).__name__))
    ready(under_stand_ins, "train.compile=true")
    ready(under_stand_ins, stage="fit")
    assert calls == []
    ready(under_stand_ins, "train.compile=true", stage="fit")
    assert calls == ["checked", "SwinTransformer"]


def test_tf32_is_set_where_it_is_asked_for(under_stand_ins: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    precisions: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", precisions.append)
    ready(under_stand_ins, "train.precision=fp32")
    assert precisions == []
    ready(under_stand_ins, "train.precision=tf32")
    assert precisions == ["high"]


def test_starting_weights_are_for_a_new_model_and_not_for_a_loaded_one(
    under_stand_ins: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loaded checkpoint brings its own sizes and weights, so no starting weights are read."""
    loaded: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        under_stand_ins.classifier, "load_starting_weights", lambda *given: loaded.append(given)
    )
    meta = SimpleNamespace(name="some", height=8, width=8, channels=3, num_classes=7)
    monkeypatch.setattr(under_stand_ins.classifier, "open_data", lambda *_given: SimpleNamespace(meta=meta))
    words = [*WORDS, "model.weights=some.pth"]
    under_stand_ins.classifier.ImageClassifier(words, SIZES)
    assert loaded == []
    module = under_stand_ins.classifier.ImageClassifier(words)
    assert loaded == [(module.model, module.config.model, 8, 3, 7)]


def test_running_statistics_are_shared_before_an_evaluation(
    under_stand_ins: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: list[Any] = []
    monkeypatch.setattr(under_stand_ins.classifier, "share_running_statistics", shared.append)
    module = under_stand_ins.classifier.ImageClassifier(WORDS, SIZES)
    module.on_validation_start()
    assert shared == [module.model]
