"""A package with the entry point `neuscale.plugins` adds presets and registrations once it is installed."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Said

from .foreign_models import CONVOLUTIONAL

Project = Callable[[dict[str, str]], Path]
Run = Callable[..., Said]

WORDS = ["data=image_folder", "data.name=photos", "train.global_batch_size=16", "run.device=cpu"]
WORDS += ["train.max_steps=2", "train.epochs=1"]
REGISTERED = """
import timm
from birds.nets import Net

@timm.models.register_model
def bird_net(pretrained=False, num_classes=10, in_chans=3, **kwargs):
    return Net(num_classes=num_classes, in_channels=in_chans)
"""
PLUGIN = {
    "birds/__init__.py": REGISTERED,
    "birds/nets.py": CONVOLUTIONAL,
    "birds/losses.py": "def squared(logits, targets):\n    return ((logits - targets) ** 2).mean()\n",
    "birds/conf/model/bird.yaml": "_target_: birds.nets.Net\n",
    "birds/conf/experiment/birds.yaml": "# @package _global_\n"
    "defaults:\n  - override /model: bird\n"
    "experiment: birds\ntrain:\n  loss: {_target_: birds.losses.squared, _partial_: true}\n",
    "birds-1.2.dist-info/METADATA": "Metadata-Version: 2.1\nName: birds\nVersion: 1.2\n",
    "birds-1.2.dist-info/entry_points.txt": "[neuscale.plugins]\nbirds = birds\n",
}


@pytest.fixture
def run(project: Project, tmp_path: Path) -> Run:
    """A function that runs a command in a subprocess that finds packages in the test's folder `site`."""
    project({})

    def start(*words: str) -> Said:
        paths = [str(tmp_path / "site"), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, "-m", "neuscale", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        return Said(done.returncode, done.stdout, done.stderr)

    return start


def install(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def test_its_presets_and_what_it_registers_are_there(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    install(tmp_path / "site", PLUGIN)
    said = run("train", "experiment=birds", *WORDS, "run.name=a")
    assert said.code == 0, said.err
    manifest = (tmp_path / "runs" / "a" / "manifest.json").read_text()
    assert '"birds": "1.2"' in manifest, "it is in the list of packages"
    said = run("train", *WORDS, "model=timm", "model.arch=bird_net", "run.name=b")
    assert said.code == 0, said.err
    said = run("runs", "replay", "b")
    assert said.code == 0, said.err


def test_a_preset_that_the_project_has_too_is_refused(run: Run, project: Project, tmp_path: Path) -> None:
    install(tmp_path / "site", PLUGIN)
    project({"conf/model/bird.yaml": "_target_: torch.nn.Identity\n"})
    said = run("train", *WORDS, "model=bird")
    assert said.code == 2
    assert "both are model=bird" in said.words


@pytest.mark.parametrize(
    ("files", "words", "problem"),
    [
        (
            {"birds-1.2.dist-info/entry_points.txt": "[neuscale.plugins]\nb = gone.plugin\n"},
            [],
            "the package birds says that gone.plugin is its plugin, and has no such module",
        ),
        (
            {"birds/__init__.py": "raise OSError('no nest')\n"},
            ["model=timm", "model.arch=resnet18"],
            "neuscale.plugins: birds cannot be imported: OSError: no nest",
        ),
    ],
)
def test_a_broken_plugin_is_named(
    run: Run, tmp_path: Path, files: dict[str, str], words: list[str], problem: str
) -> None:
    pytest.importorskip("timm")
    install(tmp_path / "site", PLUGIN | files)
    said = run("train", *WORDS, *words)
    assert said.code == 2, said.err
    assert problem in said.words


def test_a_run_of_an_editable_package_is_used_where_the_package_is_and_names_its_changes(
    run: Run, tmp_path: Path
) -> None:
    """The package's files lie outside the project folder and the installed packages."""
    install(tmp_path / "site", PLUGIN)
    assert run("train", "experiment=birds", *WORDS, "run.name=a").code == 0
    said = run("eval", "a")
    assert said.code == 0, said.err
    nets = tmp_path / "site" / "birds" / "nets.py"
    nets.write_text(nets.read_text() + "SIZE = 3\n")
    said = run("eval", "a")
    assert said.code == 2
    assert "birds/nets.py has changed: + SIZE = 3" in said.words
    said = run("eval", "a", "--trust")
    assert said.code == 0, said.err
    nets.unlink()
    said = run("eval", "a")
    assert said.code == 2 and "birds/nets.py is not there" in said.words
