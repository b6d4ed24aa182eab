"""Each point of the curves covers the images since the previous point, and the time that they took."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import ListeningProgress, ListeningTask
from neuscale.config import Config
from neuscale.runs.manifest import read_manifest
from neuscale.training.run import TrainedRun, train

from .watched import BATCH, WAIT, Watched, seconds_of, watch

ConfigBuilder = Callable[..., Config]

# Ten steps of three micro-batches: a warm-up of five, then a linear decay to zero.
WORDS = ["train.epochs=2", "train.micro_batch=4", "optim=adamw", "optim.lr=0.01", "optim.schedule=linear"]
WORDS += ["optim.warmup_epochs=1", "tracking.trackers=[]"]
LR = [0.002, 0.004, 0.006, 0.008, 0.010, 0.010, 0.008, 0.006, 0.004, 0.002]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return watch(monkeypatch)


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the training points of metrics.jsonl."""
    found = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["split"] == "train"]


def assert_point(point: dict[str, Any], watched: Watched, steps: range) -> None:
    """Assert that loss and accuracy are those of `steps`, and the learning rate that of the last step."""
    loss, accuracy = watched.means(steps)
    assert point["step"] == steps[-1] + 1
    assert point["loss"] == pytest.approx(loss, rel=1e-5)
    assert point["accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert point["lr"] == watched.rates[steps[-1]]


def train_until(config: Config, steps: int, monkeypatch: pytest.MonkeyPatch) -> TrainedRun:
    """Start a run that is asked to stop after so many steps."""
    real = ListeningTask.advance

    def advance(self: ListeningTask, count: int = 1) -> None:
        real(self, count)
        if self.title == "training" and self.done == steps * BATCH:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(ListeningTask, "advance", advance)
        return train(config, None, ListeningProgress())


def test_a_point_is_the_mean_over_all_images_since_the_one_before(
    tiny: ConfigBuilder, watched: Watched
) -> None:
    run = train(tiny(*WORDS, "run.name=whole", "train.log_every_steps=3")).run
    assert [watched.rates[i] for i in range(10)] == pytest.approx(LR)
    points = lines(run.path)
    *regular, rest = points
    for point, steps in zip(regular, (range(3), range(3, 6), range(6, 9)), strict=True):
        assert_point(point, watched, steps)
    assert len({point["loss"] for point in regular}) == 3
    assert (rest["step"], rest.pop("rest_steps")) == (10, 1)
    assert_point(rest, watched, range(9, 10))


def test_the_clock_counts_steps_and_no_evaluation(tiny: ConfigBuilder, watched: Watched) -> None:
    trained = train(tiny(*WORDS, "run.name=whole"))
    total = seconds_of(range(10))
    assert trained.outcome.seconds == pytest.approx(total)
    result = read_manifest(trained.run.manifest_file)["result"]
    assert result["train_seconds"] == round(total, 2)
    assert result["images_per_second"] == round(10 * BATCH / total, 1)
    points = lines(trained.run.path)
    assert [point["step"] for point in points] == [2, 4, 6, 8, 10]
    # At a point its own step has not ended yet; it counts for the next point.
    timed = [range(1), range(1, 3), range(3, 5), range(5, 7), range(7, 9)]
    for point, steps in zip(points, timed, strict=True):
        assert point["images_per_second"] == pytest.approx(BATCH * len(steps) / seconds_of(steps))
        assert point["data_wait"] == pytest.approx(WAIT / 1.25), "a fifth of every step"


def test_a_run_that_went_on_counts_what_was_before(
    tiny: ConfigBuilder, watched: Watched, listening: ListeningProgress, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(*WORDS, "run.name=broken")
    stopped = train_until(config, 3, monkeypatch)
    assert stopped.outcome.stopped_by == "SIGTERM"
    result = read_manifest(stopped.run.manifest_file)["result"]
    assert (result["steps"], result["epochs"]) == (3, 0)
    assert result["train_seconds"] == seconds_of(range(3)), "the last step before a stop counts as well"
    assert result["images_per_second"] == round(3 * BATCH / seconds_of(range(3)), 1)

    train(config, stopped.run, listening)
    shown = [(task.title, task.total, task.done, task.unit) for task in listening.tasks]
    assert shown == [("training", 84, 84, "img"), *[("evaluating", 21, 21, "img")] * 2], "what is left"
    result = read_manifest(stopped.run.manifest_file)["result"]
    assert (result["steps"], result["epochs"]) == (10, 2)
    assert result["train_seconds"] == seconds_of(range(10))
    assert result["images_per_second"] == round(7 * BATCH / seconds_of(range(3, 10)), 1)
    points = lines(stopped.run.path)
    assert [point["step"] for point in points] == [2, 4, 6, 8, 10]
    for i, point in enumerate(points):
        assert_point(point, watched, range(2 * i, 2 * i + 2))
    assert "images_per_second" not in points[1], "no step of this process has ended at the first point"
    assert points[2]["images_per_second"] == pytest.approx(2 * BATCH / seconds_of(range(3, 5)))
    assert points[2]["data_wait"] == pytest.approx(WAIT / 1.25)


def test_points_further_apart_after_a_resume_are_means_all_the_same(
    tiny: ConfigBuilder, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first point after the resume averages the two steps since the last point, not four."""
    stopped = train_until(tiny(*WORDS, "run.name=broken"), 3, monkeypatch)
    train(tiny(*WORDS, "run.name=broken", "train.log_every_steps=4"), stopped.run)
    points = lines(stopped.run.path)
    assert [point["step"] for point in points] == [2, 4, 8, 10]
    assert points[-1].pop("rest_steps") == 2
    for point, steps in zip(points, (range(2), range(2, 4), range(4, 8), range(8, 10)), strict=True):
        assert_point(point, watched, steps)
