"""Settings that are changed on resume are those that the run is trained with from there."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import ListeningProgress
from neuscale.config import Config
from neuscale.errors import CheckpointError
from neuscale.runs.folder import RunFolder
from neuscale.runs.metrics import read_metrics
from neuscale.training.checkpoint import CheckpointFolder, open_checkpoint
from neuscale.training.run import train
from neuscale.training.trainer import Trainer

ConfigBuilder = Callable[..., Config]

CUT = 4  # steps; an epoch has 5
WORDS = [
    "train.epochs=2",
    "optim.lr=0.02",
    "optim.warmup_epochs=0.4",
    "model.dropout=0.1",
    "train.ema_decay=0.9",
]
CHANGES = [
    *("optim.weight_decay=0.3", "optim.lr=0.005", "optim.clip_grad_norm=0.01", "optim.schedule=constant"),
    *("optim=adamw optim.beta1=0.5", "optim=adamw optim.beta2=0.9", "optim=adamw optim.eps=1e-3"),
    *("optim=sgd optim.momentum=0.4", "optim=sgd optim.nesterov=false", "optim=muon optim.momentum=0.5"),
    *("optim.layer_decay=0.6", "train.freeze_layers=1", "train.linear_probe=true"),
    *("train.label_smoothing=0.3", "optim=muon train.freeze_layers=2"),
]


def state_of(run: RunFolder) -> dict[str, torch.Tensor]:
    return open_checkpoint(CheckpointFolder(run.checkpoints).paths()[-1]).weights()


def rates(run: RunFolder) -> list[float]:
    return [line["lr"] for line in read_metrics(run.metrics_file) if line["split"] == "train"]


@pytest.fixture
def changed_at_the_cut(monkeypatch: pytest.MonkeyPatch) -> Callable[[Config, Config], RunFolder]:
    """Function that trains with the first config and switches to the second's values after CUT steps.

    No checkpoint is read: the optimizer's state stays in memory, and its parameter groups are built anew.
    """

    def trained(first: Config, second: Config) -> RunFolder:
        real = Trainer.train_step

        def step(trainer: Trainer, batches: Any) -> None:
            if trainer.step == CUT:
                other = Trainer(second, trainer.data, trainer.accelerator, ListeningProgress())
                by_name = dict(trainer.raw_model.named_parameters())
                kept = {
                    name: state
                    for name, parameter in by_name.items()
                    if (state := _state_of(trainer.inner_optimizer, parameter))
                }
                for name, parameter in other.raw_model.named_parameters():
                    parameter.data.copy_(by_name[name])
                    if parameter.requires_grad and name in kept:
                        _set_state(other.inner_optimizer, parameter, kept[name])
                assert trainer.ema is not None and other.ema is not None
                other.ema.load(trainer.ema.average, trainer.ema.updates)
                for name in (
                    "model",
                    "raw_model",
                    "optimizer",
                    "inner_optimizer",
                    "_stepped",
                    "_clipped",
                    "ema",
                    "loss",
                ):
                    setattr(trainer, name, getattr(other, name))
                for name in ("drop_path", "accumulation", "_frozen"):
                    setattr(trainer, name, getattr(other, name))
                trainer.config = second
                from neuscale.training.param_groups import training_mode

                training_mode(trainer.model, trainer._frozen)
            real(trainer, batches)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "train_step", step)
            return train(first).run

    return trained


def _optimizers(optimizer: Any) -> list[torch.optim.Optimizer]:
    return getattr(optimizer, "optimizers", [optimizer])


def _state_of(optimizer: Any, parameter: torch.Tensor) -> dict[str, Any]:
    return next((each.state[parameter] for each in _optimizers(optimizer) if parameter in each.state), {})


def _set_state(optimizer: Any, parameter: torch.Tensor, state: dict[str, Any]) -> None:
    for each in _optimizers(optimizer):
        if any(parameter is other for group in each.param_groups for other in group["params"]):
            each.state[parameter] = {
                name: value.clone() if isinstance(value, torch.Tensor) else value
                for name, value in state.items()
            }


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_what_a_run_is_trained_with_from_there(
    tiny: ConfigBuilder, changed_at_the_cut: Callable[[Config, Config], RunFolder], change: str
) -> None:
    presets = [word for word in change.split() if word.startswith("optim=")]
    words = [word for word in change.split() if word not in presets]
    start = [*presets, *WORDS]
    expected = state_of(changed_at_the_cut(tiny(*start, "run.name=whole"), tiny(*start, *words)))
    unchanged = state_of(train(tiny(*start, "run.name=unchanged")).run)
    often = ["checkpoint.every_steps=1", "checkpoint.keep_last=99"]
    cut = train(tiny(*start, *often, "run.name=cut")).run
    for path in CheckpointFolder(cut.checkpoints).paths()[CUT:]:
        shutil.rmtree(path)
    found = state_of(train(cut.config(words), cut).run)
    assert any(not value.equal(unchanged[name]) for name, value in found.items()), "it has no effect"
    for name, value in found.items():
        assert value.equal(expected[name]), name


def go_on(run: RunFolder, *words: str) -> tuple[RunFolder, str]:
    listening = ListeningProgress()
    train(run.config(list(words)), run, listening)
    return run, " ".join(listening.warnings)


@pytest.mark.parametrize("policy", ["rescale", "hold", "restart"])
def test_a_longer_run_has_the_schedule_that_was_chosen(tiny: ConfigBuilder, policy: str) -> None:
    plain = ["optim.schedule=cosine", "optim.lr=0.02", "optim.warmup_epochs=0.4", "train.log_every_steps=1"]
    run = train(tiny(*plain, "train.epochs=2", "run.name=longer", "optim.final_lr_ratio=0.1")).run
    assert rates(run)[-1] == pytest.approx(0.02 * (0.1 + 0.9 * (1 + math.cos(math.pi * 7 / 8)) / 2))
    _, said = go_on(run, "train.epochs=4", f"optim.on_extend={policy}")

    def cosine(progress: float) -> float:
        return 0.02 * (0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2)

    after = {
        "rescale": [cosine(i / 18) for i in range(8, 18)],
        "hold": [0.002] * 10,
        "restart": [cosine(i / 10) for i in range(10)],
    }[policy]
    assert rates(run)[10:] == pytest.approx(after)
    if policy == "hold":
        assert "learning rate" not in said
    else:
        assert f"the learning rate is {after[0]:.3g} from here on, where it would have been 0.002" in said
        assert "the run has 20 steps instead of 10" in said and f"optim.on_extend={policy}" in said
    # Resuming once more, without a change, keeps the schedule: here from the middle.
    for path in CheckpointFolder(run.checkpoints).paths():
        if path.name.endswith("20"):
            path.rename(path.with_name("gone"))
    _, said = go_on(run)
    assert rates(run)[10:] == pytest.approx(after) and said == ""


def test_what_is_trained_from_here_on_or_not_any_more_is_said(tiny: ConfigBuilder) -> None:
    run = train(tiny(*WORDS, "train.linear_probe=true", "run.name=probe")).run
    _, said = go_on(run, "train.epochs=3", "train.linear_probe=false")
    assert " …: trained from here on" in said and "features." in said
    _, said = go_on(run, "train.epochs=4", "train.freeze_layers=1")
    assert "not trained any more" in said


def test_an_older_checkpoint_goes_on_and_other_groups_are_refused_by_name(tiny: ConfigBuilder) -> None:
    run = train(tiny("optim=adamw", "train.epochs=1", "run.name=older")).run
    path = CheckpointFolder(run.checkpoints).paths()[-1]
    checkpoint = open_checkpoint(path)
    training = checkpoint.training_state()
    for name in ("names", "kind"):
        del training["optimizer"][name]
    for name in ("schedule", "total_steps"):
        del training[name]
    training |= {"best_top1": 0.25, "stale": 1}
    folder = CheckpointFolder(run.checkpoints)
    folder.save(checkpoint.step, 1, checkpoint.weights(), training, {}, False)
    with pytest.raises(CheckpointError) as caught:
        train(run.config(["train.epochs=2", "optim.layer_decay=0.5"]), run)
    for name in ("optim.layer_decay", "train.freeze_layers", "train.linear_probe"):
        assert name in caught.value.problem
    trained = train(run.config(["train.epochs=2", "optim.weight_decay=0.2"]), run)
    assert trained.outcome.steps == 10 and trained.outcome.best_top1 >= 0.25


def test_a_folder_of_another_version_is_no_checkpoint_of_names(tiny: ConfigBuilder, tmp_path: Path) -> None:
    """The saved names are those of the parameters that the optimizer numbers, in its order."""
    run = train(tiny("optim=muon", "train.epochs=1", "run.name=names")).run
    saved = open_checkpoint(CheckpointFolder(run.checkpoints).paths()[-1]).training_state()["optimizer"]
    every = [name for each in saved["optimizers"] for name in each["names"]]
    assert sorted(every) == sorted(state_of(run).keys() - {n for n in state_of(run) if "index" in n})
    for each in saved["optimizers"]:
        assert [i for group in each["param_groups"] for i in group["params"]] == list(
            range(len(each["names"]))
        )


def test_state_of_another_shape_is_refused(tiny: ConfigBuilder) -> None:
    """torch would load the state unchecked, and AdamW's fused kernel would write beyond its end."""
    run = train(tiny("optim=adamw", "train.epochs=1", "run.name=shapes")).run
    checkpoint = open_checkpoint(CheckpointFolder(run.checkpoints).paths()[-1])
    training = checkpoint.training_state()
    training["optimizer"]["state"][0]["exp_avg"] = torch.zeros(1)
    CheckpointFolder(run.checkpoints).save(checkpoint.step, 1, checkpoint.weights(), training, {}, False)
    with pytest.raises(CheckpointError, match=r"the optimizer's state of a parameter is \[1\] there"):
        train(run.config(["train.epochs=2"]), run)
