"""Arguments that `import neuscale` passes on: configuration, run folder, device, threads, image sizes."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import neuscale
from conftest import ListeningProgress
from neuscale import api
from neuscale.config import Config
from neuscale.errors import UsageError
from neuscale.progress import Silent
from neuscale.runs.folder import RunFolder

from .conftest import ODD_RECIPE, Odd

Asked = list[tuple[Config, RunFolder | None, Any]]


@pytest.fixture(autouse=True)
def beside_odd(command: Callable[..., Any]) -> None:
    """Set the environment in which the run 'odd' is found."""
    del command


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Arguments of each training; a fake `train` records them."""
    asked: Asked = []

    def train(config: Config, folder: RunFolder | None, progress: Any) -> Any:
        asked.append((config, folder, progress))
        return SimpleNamespace(run=RunFolder(Path("made")), outcome="outcome")

    monkeypatch.setattr(api, "train_config", train)
    return asked


def test_a_run_that_is_resumed_goes_on_on_what_there_is(odd: Odd, asked: Asked) -> None:
    run = neuscale.load_run("odd")
    assert run.config.run.device == "cpu"
    resumed = run.resume("train.epochs=7")
    config, folder, progress = asked[-1]
    assert (config.train.epochs, config.run.device, config.run.seed) == (7, "auto", 5)
    assert folder is not None and folder.path.samefile(odd.run)
    assert isinstance(progress, Silent)
    assert (resumed.path, resumed.outcome) == (Path("made"), "outcome")
    run.resume("run.device=cpu", progress=(listening := ListeningProgress()))
    config, _, progress = asked[-1]
    assert (config.run.device, config.train.epochs, progress) == ("cpu", 1, listening)


def test_training_begins_anew_or_goes_on_as_asked(odd: Odd, asked: Asked) -> None:
    words = [*ODD_RECIPE, "run.name=odd"]
    neuscale.train(*words)
    assert asked[-1][1] is None
    neuscale.train(*words, "train.epochs=9", resume=True)
    config, folder, _ = asked[-1]
    assert folder is not None and folder.path.samefile(odd.run)
    assert config.train.epochs == 9
    neuscale.train(*words, "run.name=other", resume=True)
    assert asked[-1][1] is None
    with pytest.raises(UsageError, match=r"run\.seed cannot change in a run that has started"):
        neuscale.train(*words, "run.seed=6", resume=True)
    assert len(asked) == 3
    config = neuscale.compose_config(words)
    neuscale.train(config, "optim.lr=0.125")
    assert asked[-1][0] == replace(config, optim=replace(config.optim, lr=0.125))


@pytest.mark.parametrize(("threads", "cores", "wanted"), [(8, 3, [3]), (3, 3, []), (2, 3, [])])
def test_no_more_threads_are_used_than_there_are_cores(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, threads: int, cores: int, wanted: list[int]
) -> None:
    changed: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch, "set_num_threads", changed.append)
    monkeypatch.setattr(api, "available_cores", lambda: cores)
    neuscale.train(*ODD_RECIPE)
    assert changed == wanted
    assert len(asked) == 1


def test_progress_is_shown_only_when_asked_for(odd: Odd, asked: Asked) -> None:
    from neuscale.cli.progress import Bars, Lines

    neuscale.train(*ODD_RECIPE, progress=True)
    assert isinstance(asked[-1][2], Bars | Lines)
    listening = ListeningProgress()
    neuscale.evaluate("odd", progress=listening)
    assert [(task.title, task.done) for task in listening.tasks if task.unit == "img"] == [("evaluating", 29)]
    del odd


def test_data_are_prepared_at_the_size_asked_for_and_found_again(odd: Odd, tmp_path: Path) -> None:
    made = neuscale.load_data("small", source=odd.tree, size=5)
    images = made.images("val")
    assert images.shape == (29, 3, 5, 5)
    assert made.labels("val").tolist() == odd.labels().tolist()
    picture = (
        Image.open(odd.files()[3]).convert("RGB").resize((5, 5), Image.Resampling.BICUBIC, box=(2, 0, 12, 10))
    )
    assert np.array_equal(images[3], np.asarray(picture).transpose(2, 0, 1))
    again = neuscale.load_data("small")
    assert again.meta.fingerprint == made.meta.fingerprint
    with pytest.raises(UsageError, match=r"no such data set is prepared in .* \(there: .*odd, small"):
        neuscale.load_data("tiny_pets")
    shutil.rmtree(odd.data / "packed" / "small")
    del tmp_path


def test_a_model_fits_the_data_and_has_the_starting_weights(odd: Odd, tmp_path: Path) -> None:
    data = neuscale.load_data("odd")
    model = neuscale.create_model(*ODD_RECIPE, data=data)
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 7)
    weights = load_file(odd.run / "checkpoints" / "step-00000009" / "model.safetensors")
    save_file(weights, tmp_path / "w.safetensors")
    loaded = neuscale.create_model(*ODD_RECIPE, f"model.weights={tmp_path / 'w.safetensors'}").state_dict()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    fewer = replace(data.meta, classes=data.meta.classes[:4], channels=1)
    model = neuscale.create_model(*ODD_RECIPE, data=SimpleNamespace(meta=fewer))  # type: ignore[arg-type]
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 4)


def test_a_run_without_curves_has_none_and_its_folder_says_who_it_is(odd: Odd, tmp_path: Path) -> None:
    run = neuscale.load_run(odd.run)
    assert (run.name, run.path, run.outcome) == ("odd", odd.run, None)
    assert repr(run) == "<Run odd: finished>"
    assert [(point["split"], point["step"]) for point in run.metrics][-1] == ("val", 1)
    shutil.copytree(
        odd.run, tmp_path / "new", ignore=shutil.ignore_patterns("metrics.jsonl", "manifest.json")
    )
    new = neuscale.load_run(tmp_path / "new")
    assert (new.metrics, repr(new)) == ([], "<Run new: not started>")


def test_what_cannot_be_evaluated_is_said(odd: Odd) -> None:
    with pytest.raises(UsageError, match="`split` test: odd has train and val"):
        neuscale.evaluate("odd", split="test")
    with pytest.raises(UsageError, match="needs data"):
        neuscale.evaluate(torch.nn.Identity())
    del odd
