"""State of a run besides its weights is restored on resume."""

from collections.abc import Callable

import pytest
import yaml

from neuscale.config import Config
from neuscale.training import metrics_logger as meters
from neuscale.training.checkpoint import CheckpointFolder, open_checkpoint
from neuscale.training.run import train

ConfigBuilder = Callable[..., Config]


class StandInTime:
    """Fake clock that advances by a quarter of a second at each reading."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 0.25
        return self.now


def test_time_of_training_adds_up_and_speed_is_of_this_process(
    tiny: ConfigBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes two ticks of the clock: a quarter of a second for the batch, and as much for computing."""
    monkeypatch.setattr(meters, "time", StandInTime())
    words = ["train.epochs=2", "train.log_every_steps=1", "checkpoint.every_steps=1"]
    stopped = train(tiny(*words, "train.max_steps=4", "run.name=timed"))
    assert stopped.outcome.seconds == pytest.approx(4 * 0.5)
    assert stopped.outcome.images_per_second == pytest.approx(12 / 0.5)

    class Slower(StandInTime):
        def perf_counter(self) -> float:
            self.now += 1.0
            return self.now

    monkeypatch.setattr(meters, "time", Slower())
    trained = train(tiny(*words), stopped.run)
    assert trained.outcome.steps == 10
    assert trained.outcome.seconds == pytest.approx(4 * 0.5 + 6 * 2.0)
    assert trained.outcome.images_per_second == pytest.approx(12 / 2.0)
    saved = open_checkpoint(CheckpointFolder(trained.run.checkpoints).paths()[-1]).training_state()
    assert saved["train_seconds"] == pytest.approx(trained.outcome.seconds)


def test_the_average_goes_on_from_itself_and_from_its_count_of_updates(tiny: ConfigBuilder) -> None:
    words = ["train.epochs=2", "train.ema_decay=0.9", "optim.lr=0.05", "model.dropout=0"]
    whole = train(tiny(*words, "run.name=whole")).run
    cut = train(tiny(*words, "checkpoint.every_steps=1", "checkpoint.keep_last=9", "run.name=cut")).run
    # Without the checkpoints after the third step, the run resumes from there.
    for path in CheckpointFolder(cut.checkpoints).paths():
        if int(path.name.removeprefix("step-")) > 3:
            path.rename(path.with_name(f"gone-{path.name}"))
    resumed = train(tiny(*words), cut).run
    expected = open_checkpoint(CheckpointFolder(whole.checkpoints).paths()[-1]).average()
    found = open_checkpoint(CheckpointFolder(resumed.checkpoints).paths()[-1]).average()
    assert expected is not None and found is not None
    for name, value in expected.items():
        assert value.equal(found[name]), name


def test_what_was_changed_for_the_rest_of_the_run_is_stored(tiny: ConfigBuilder) -> None:
    run = train(tiny("train.epochs=1", "run.name=longer")).run
    train(tiny("train.epochs=2", "train.log_every_steps=3"), run)
    stored = yaml.safe_load(run.config_file.read_text())
    assert (stored["train"]["epochs"], stored["train"]["log_every_steps"]) == (2, 3)
