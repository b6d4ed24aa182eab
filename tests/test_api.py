"""The Python API as scripts and notebooks use it: real trainings of a tiny model."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import neuscale
from conftest import TINY_RECIPE, ListeningProgress, ListeningTask
from neuscale.errors import UsageError

ONE = [*TINY_RECIPE, "train.epochs=1", "tracking.trackers=[]", "train.log_every_steps=2"]


@pytest.fixture(scope="module")
def folders(build_image_tree: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder whose 'data' holds the prepared 'tiny': 60 and 21 images of 8×8 in three classes."""
    folder = tmp_path_factory.mktemp("api")
    tree = build_image_tree(folder / "tree", train=20, val=7)
    build_image_tree(folder / "others", classes=("x", "y"), train=2, val=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEUSCALE_DATA", str(folder / "data"))
        neuscale.load_data("tiny", source=tree)
    return folder


@pytest.fixture(autouse=True)
def places(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUSCALE_DATA", str(folders / "data"))
    monkeypatch.setenv("NEUSCALE_RUNS", str(tmp_path / "runs"))
    torch.set_num_threads(1)


def test_a_run_gives_its_outcome_its_curves_and_its_model() -> None:
    """All ways of evaluating the same weights give the same numbers."""
    run = neuscale.train(*ONE, "train.epochs=3", "run.name=whole")
    assert run.outcome is not None and run.outcome.last is not None
    assert (run.outcome.steps, run.outcome.stopped_by, run.path.name) == (15, None, "whole")
    best = max(point["top1"] for point in run.metrics if point["split"] == "val")
    assert best == run.outcome.best_top1
    assert [p["step"] for p in run.metrics if p["split"] == "train"] == [2, 4, 6, 8, 10, 12, 14, 15]

    loaded = neuscale.load_run("last")
    assert (loaded.name, loaded.config, loaded.manifest["status"]) == ("whole", run.config, "finished")
    data = neuscale.load_data("tiny")
    model = loaded.model()
    assert not model.training
    evaluations = [
        neuscale.evaluate(loaded),
        neuscale.evaluate("whole", data),
        neuscale.evaluate(model, data),
    ]
    assert {e.top1 for e in evaluations} == {best}
    assert {e.samples for e in evaluations} == {21}
    last = neuscale.evaluate(loaded.model("last"), data)
    assert last.loss == pytest.approx(run.outcome.last.loss, abs=1e-6)


def test_the_model_is_the_one_that_training_starts_from() -> None:
    """A Config followed by overrides gives the same model as all overrides together, and is not modified."""
    config = neuscale.compose_config(ONE)
    data = neuscale.load_data("tiny")
    model = neuscale.create_model(config, "run.seed=3")
    again = neuscale.create_model(*ONE, "run.seed=3", data=data)
    for name, value in model.state_dict().items():
        assert value.equal(again.state_dict()[name]), name
    run = neuscale.train(config, "run.seed=3", "train.max_steps=2", "run.name=seeded")
    assert (run.config.run.seed, config.run.seed) == (3, 0), "the Config is the caller's"


def test_errors_are_those_of_the_commands_and_end_nothing(folders: Path) -> None:
    with pytest.raises(neuscale.UserError, match=r"optim\.lrr: there is no such field\.\nDid you mean"):
        neuscale.train("optim.lrr=1")
    with pytest.raises(UsageError, match="resume=True needs the name of a run"):
        neuscale.train(*ONE, resume=True)
    with pytest.raises(UsageError, match=r"load_data\(\"pets\", source=FOLDER\)"):
        neuscale.load_data("pets")
    with pytest.raises(UsageError, match="there is no such run"):
        neuscale.load_run("nope")
    with pytest.raises(UsageError, match="is not of the form field=value"):
        neuscale.train({"optim.lr": 1})  # type: ignore[arg-type]
    others = neuscale.load_data("others", source=folders / "others")
    model = neuscale.create_model(*ONE)
    with pytest.raises(UsageError, match=r"returned shape \(1, 3\); expected \(1, 2\), .* of others"):
        neuscale.evaluate(model, others)
    run = neuscale.train(*ONE, "train.max_steps=1", "run.name=short")
    with pytest.raises(UsageError, match="others has other classes or channels than tiny"):
        neuscale.evaluate(run, others)


def test_an_argument_that_would_have_no_effect_is_refused() -> None:
    """Dropped in silence, it would leave the numbers of another batch size or resolution."""
    run = neuscale.train(*ONE, "train.max_steps=1", "run.name=short")
    data = neuscale.load_data("tiny")
    with pytest.raises(UsageError, match=r"`batch_size`: .* eval\.batch_size=5"):
        neuscale.evaluate(run, batch_size=4)
    for given in (None, data):
        with pytest.raises(UsageError, match=r"(?s)`image_size`: .*evaluate\(run\.model\(\), data"):
            neuscale.evaluate("short", given, image_size=4)
    assert neuscale.evaluate(run, data, batch_size=4).samples == 21


class Interrupting(ListeningProgress):
    """Progress that sends SIGINT to this process after 36 training images."""

    def task(self, title: str, total: int | None, unit: str):  # type: ignore[no-untyped-def]
        context = super().task(title, total, unit)

        class Task(ListeningTask):
            def advance(self, count: int = 1) -> None:
                super().advance(count)
                if self.title == "training" and self.done == 36:
                    os.kill(os.getpid(), signal.SIGINT)

        from contextlib import contextmanager

        @contextmanager
        def entered():  # type: ignore[no-untyped-def]
            with context:
                yield Task(title, total, unit)

        return entered()


def test_an_interrupt_saves_and_returns_and_resume_goes_on() -> None:
    handler = signal.getsignal(signal.SIGINT)
    run = neuscale.train(*ONE, "run.name=stopped", progress=Interrupting())
    assert run.outcome is not None
    assert (run.outcome.stopped_by, run.outcome.steps) == ("SIGINT", 3)
    assert signal.getsignal(signal.SIGINT) is handler, "the next Ctrl-C would do nothing"
    done = run.resume()
    assert done.outcome is not None and (done.outcome.steps, done.manifest["status"]) == (5, "finished")
    whole = neuscale.train(*ONE, "run.name=unstopped")
    for name, value in whole.model("last").state_dict().items():
        assert value.equal(done.model("last").state_dict()[name]), name
    again = neuscale.train(*ONE, "run.name=stopped", resume=True)
    assert again.outcome is not None and again.outcome.steps == 5, "it is finished, not begun anew"


def test_it_trains_in_a_thread() -> None:
    """Training works outside the main thread (web server, notebook widget), without signal handlers."""
    runs: list[neuscale.Run] = []
    thread = threading.Thread(target=lambda: runs.append(neuscale.train(*ONE, "run.name=threaded")))
    thread.start()
    thread.join()
    assert [run.manifest["status"] for run in runs] == ["finished"]


def test_importing_it_is_light_and_what_it_offers_is_typed() -> None:
    code = (
        "import json, sys, neuscale; dir(neuscale); neuscale.Config; neuscale.UserError;"
        "print(json.dumps([m for m in ('torch', 'accelerate', 'numpy') if m in sys.modules]))"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(shown.stdout) == []
    assert Path(neuscale.__file__).with_name("py.typed").exists()
    assert set(neuscale.__all__) <= set(dir(neuscale))
    with pytest.raises(AttributeError, match="no attribute 'tarin'"):
        neuscale.tarin  # type: ignore[attr-defined] # noqa: B018
