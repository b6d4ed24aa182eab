"""Options of a recipe do what their names say."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from neuscale.config import Config, compose_config
from neuscale.errors import UsageError
from neuscale.models.registry import create_model
from neuscale.runs.folder import RunFolder
from neuscale.runs.metrics import read_metrics
from neuscale.training.checkpoint import CheckpointFolder, open_checkpoint
from neuscale.training.ema import WeightAverage
from neuscale.training.lr_schedule import Span, lr_at, set_lr
from neuscale.training.optim import create_optimizer
from neuscale.training.param_groups import parameter_layers
from neuscale.training.run import train

ConfigBuilder = Callable[..., Config]


def rates(*words: str) -> list[float]:
    config = compose_config(["optim=adamw", "optim.lr=1.0", *words]).optim
    return [lr_at(config, step, 10, Span(0, 100)) for step in range(100)]


def newest(run: RunFolder) -> dict[str, torch.Tensor]:
    return open_checkpoint(CheckpointFolder(run.checkpoints).paths()[-1]).weights()


def test_schedules_besides_the_cosine() -> None:
    linear = rates("optim.schedule=linear", "optim.warmup_epochs=2", "optim.final_lr_ratio=0.1")
    assert linear[19] == 1.0
    assert linear[20:] == pytest.approx([1 - 0.9 * i / 80 for i in range(80)])
    step = rates(
        "optim.warmup_epochs=0", "optim.schedule=step", "optim.step_epochs=[3,8]", "optim.step_factor=0.5"
    )
    assert [step[i] for i in (0, 29, 30, 79, 80, 99)] == pytest.approx([1, 1, 0.5, 0.5, 0.25, 0.25])
    assert set(rates("optim.warmup_epochs=0", "optim.schedule=constant")) == {1.0}


@pytest.mark.parametrize(("model", "last"), [("swin_t", 13), ("vit_ti4", 13)])
def test_layer_decay_lowers_the_rate_towards_the_input(model: str, last: int) -> None:
    config = compose_config([f"model={model}", "optim=adamw", "optim.layer_decay=0.5", "optim.lr=1.0"])
    module = create_model(config.model, 32, 3, 10, 0)
    optimizer = create_optimizer(config.optim, module)
    set_lr(optimizer, 1.0)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    layers = parameter_layers(module)
    assert len(rate) == len(layers)
    for name, parameter in module.named_parameters():
        assert rate[id(parameter)] == 0.5 ** (last - layers[name]), name
    embedding = {"swin_t": "features.0.0.weight", "vit_ti4": "conv_proj.weight"}[model]
    head = {"swin_t": "head.weight", "vit_ti4": "heads.head.weight"}[model]
    assert (layers[embedding], layers[head]) == (0, last)
    if model == "swin_t":  # a merging belongs to the block before it
        assert layers["features.2.reduction.weight"] == layers["features.1.1.mlp.0.weight"] == 2
        assert layers["features.3.0.mlp.0.weight"] == 3


@pytest.mark.parametrize("optim", ["adamw", "sgd", "muon"])
def test_a_linear_probe_trains_the_head_and_nothing_else(tiny: ConfigBuilder, optim: str) -> None:
    words = [f"optim={optim}", "train.max_steps=3", "train.epochs=1"]
    config = tiny(*words, "train.linear_probe=true", "run.name=probe")
    before = create_model(config.model, 8, 3, 3, config.run.seed).state_dict()
    for name, value in newest(train(config).run).items():
        assert value.equal(before[name]) == (not name.startswith("head.")), name


def test_frozen_layers_stay_and_the_others_learn(tiny: ConfigBuilder) -> None:
    config = tiny("train.max_steps=3", "train.epochs=1", "train.freeze_layers=2", "run.name=frozen")
    before = create_model(config.model, 8, 3, 3, config.run.seed)
    layers = parameter_layers(before)
    after = newest(train(config).run)
    for name, value in before.named_parameters():
        assert torch.equal(value, after[name]) == (layers[name] < 2), name
    with pytest.raises(UsageError, match="has 4 layers before its head"):
        train(tiny("train.freeze_layers=9", "run.name=none", "train.epochs=1"))


def test_the_average_is_the_average_and_is_what_is_evaluated(tiny: ConfigBuilder) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    average = WeightAverage(model, 0.5)
    expected = model.weight.detach().clone()
    for update in range(1, 9):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        average.update()
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(average.average["weight"], expected)
    raw = model.weight.detach().clone()
    with average.swapped():
        torch.testing.assert_close(model.weight.detach(), expected)
    assert torch.equal(model.weight, raw)

    from neuscale.inference.evaluate_run import evaluate_run
    from neuscale.progress import Silent

    words = ["train.epochs=3", "optim.lr=0.01", "train.ema_decay=0.9"]
    trained = train(tiny(*words, "run.name=averaged"))
    assert trained.outcome.last is not None
    found = {
        kind: evaluate_run(trained.run, "last", "val", "cpu", Silent(), kind).evaluation.loss
        for kind in ("auto", "ema", "raw")
    }
    assert found["auto"] == found["ema"] == pytest.approx(trained.outcome.last.loss, rel=1e-6)
    assert found["raw"] != found["ema"]
    plain = train(tiny("train.epochs=3", "optim.lr=0.01", "run.name=plain"))
    for name, value in newest(plain.run).items():
        assert value.equal(newest(trained.run)[name]), "the average must not touch the training"


def test_patience_ends_a_run_that_gets_no_better(tiny: ConfigBuilder) -> None:
    trained = train(tiny("train.epochs=50", "train.patience=3", "optim.lr=1e-9", "run.name=patient"))
    assert trained.outcome.epochs == 4, "the first evaluation is the best, three more are no better"
    assert trained.outcome.stopped_by is None
    again = train(tiny("train.epochs=50", "train.patience=3", "optim.lr=1e-9"), trained.run)
    assert again.outcome.epochs == 4


def test_milestones_stay(tiny: ConfigBuilder) -> None:
    words = ["train.epochs=6", "checkpoint.keep_last=1", "checkpoint.milestones=[2,3]", "optim.lr=1e-9"]
    run = train(tiny(*words, "run.name=miles")).run
    steps = [open_checkpoint(path).step for path in CheckpointFolder(run.checkpoints).paths()]
    assert steps == [5, 10, 15, 30], "the best, the milestones and the last"


def test_a_compiled_model_trains_the_same_and_has_no_other_names(tiny: ConfigBuilder) -> None:
    words = ["optim=sgd", "optim.lr=0.01", "train.epochs=1", "train.max_steps=3", "model.dropout=0"]
    eager = newest(train(tiny(*words, "run.name=eager")).run)
    compiled = newest(train(tiny(*words, "train.compile=true", "run.name=compiled")).run)
    assert eager.keys() == compiled.keys()
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=2e-3, atol=2e-4)


def test_channels_last_changes_no_result(tiny: ConfigBuilder) -> None:
    words = ["optim=sgd", "optim.lr=0.01", "train.epochs=1", "train.max_steps=3"]
    plain = newest(train(tiny(*words, "run.name=plain")).run)
    other = newest(train(tiny(*words, "train.channels_last=true", "run.name=other")).run)
    for name, value in plain.items():
        torch.testing.assert_close(other[name], value, rtol=2e-3, atol=2e-4)


def test_a_point_of_the_curves_says_how_fast_and_how_much(tiny: ConfigBuilder) -> None:
    run = train(tiny("train.epochs=2", "run.name=told")).run
    points: list[dict[str, Any]] = [
        line for line in read_metrics(run.metrics_file) if line["split"] == "train"
    ]
    for point in points[1:]:
        assert 0 < point["data_wait"] < 1
        assert point["images_per_second"] > 0
        assert point["tflops"] > 0
        assert 0.05 < point["memory_gb"] < 64
        assert math.isfinite(point["loss"])
