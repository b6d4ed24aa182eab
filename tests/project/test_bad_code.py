"""User code and presets that do not work give one clear error line and leave no half-written run."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Said
from neuscale.project.folder import VARIABLE, config_folder

from .foreign_models import CONVOLUTIONAL

Command = Callable[..., Said]
Project = Callable[[dict[str, str]], Path]

WORDS = ["data=image_folder", "data.name=photos", "train.global_batch_size=16", "train.max_steps=1"]
WORDS += ["run.device=cpu", "run.name=a"]

_NET = "from torch import nn\n\nclass Net(nn.Module):\n    def __init__(self, num_classes):\n"

MODELS = [
    (
        "import nothing_of_this_name\n",
        "",
        "No module named 'nothing_of_this_name' .*mynet.py, line 1",
    ),
    ("def f(:\n", "", r"SyntaxError: invalid syntax \(.*mynet.py, line 1\)"),
    ("x = 1 / 0\n", "", r"ZeroDivisionError: division by zero \(.*mynet.py, line 1\)"),
    ("raise SystemExit(3)\n", "", "cannot be imported: SystemExit: 3"),
    ("x = 1\n", "", "module 'mynet' has no attribute 'Net'"),
    (CONVOLUTIONAL, "wide: 3\n", "it has no argument 'wide'.*It has num_classes, in_channels, width"),
    (CONVOLUTIONAL, "width: much\n", r"TypeError: .*mynet.py, line 8"),
    ("def Net():\n    return 3\n", "", "gives int, which is no torch.nn.Module"),
    ("from torch import nn\nNet = nn.Identity\n", "", "the model has no parameters"),
    (
        CONVOLUTIONAL,
        "num_classes: 7\n",
        r"gives shape \(1, 7\), not a score for each of 3 .*num_classes=3",
    ),
    (
        _NET + "        super().__init__()\n        self.w = nn.Linear(3, 3)\n",
        "",
        "an image of 16×16 does not go through it",
    ),
]


@pytest.mark.parametrize(("source", "preset", "words"), MODELS, ids=[str(i) for i in range(len(MODELS))])
def test_a_model_that_does_not_work(
    source: str, preset: str, words: str, project: Project, command: Command, tmp_path: Path
) -> None:
    project({"mynet.py": source, "conf/model/mine.yaml": f"_target_: mynet.Net\n{preset}"})
    said = command("train", *WORDS, "model=mine")
    assert said.code == 2 and not said.out
    assert re.search(f"error: model.target=mynet.Net: .*{words}", said.err, re.DOTALL), said.err
    assert "Traceback" not in said.err and "not foreseen" not in said.err
    assert not (tmp_path / "runs" / "a").exists()


PRESETS = [
    ("model/mine.yaml", "_target_: [a\n", "model=mine", "model/mine.yaml, line 2: not YAML"),
    ("model/mine.yaml", "- a\n", "model=mine", "model/mine.yaml: holds no fields"),
    (
        "model/mine.yaml",
        "embed_dim: 3\ndefaults: [swin_t, _self_]\nwidht: 3\n",
        "model=mine",
        "mine.yaml, line 3: .*widht",
    ),
    (
        "model/swin_t.yaml",
        "embed_dim: 3\n",
        "model=swin_t",
        "swin_t.yaml: model=swin_t is a preset of the package",
    ),
    (
        "model/mine.yaml",
        "_target_: mynet.Net\nwidth: ${oc.env:NOT_THERE}\n",
        "model=mine",
        "line 2: width: .*NOT_THERE",
    ),
    ("model/mine.yaml", "_target_: mynet.Net\nwidth: ${other}\n", "model=mine", "line 2: width: .*other"),
    (
        "experiment/mine.yaml",
        "train:\n  epochs: many\n",
        "experiment=mine",
        "experiment/mine.yaml, line 2: train.epochs",
    ),
    (
        "experiment/mine.yaml",
        "train:\n  epochz: 3\n",
        "experiment=mine",
        "experiment/mine.yaml, line 2: .*epochz",
    ),
    ("experiment/mine.yaml", "defaults:\n  - override /model: nope\n", "experiment=mine", "nope"),
    ("optim/mine.yaml", "_target_: torch.optim.Nothing\nlr: 0.1\n", "optim=mine", "no attribute 'Nothing'"),
    ("optim/mine.yaml", "_target_: torch.optim.LBFGS\nlr: 0.1\n", "optim=mine", "LBFGS"),
    ("optim/mine.yaml", "_target_: torch.nn.Linear\nlr: 0.1\n", "optim=mine", "optim.target=torch.nn.Linear"),
    (
        "optim/mine.yaml",
        "_target_: torch.optim.RAdam\nlr: 0.1\nbetta: 3\n",
        "optim=mine",
        "it has no argument 'betta'",
    ),
    (
        "optim/mine.yaml",
        "_target_: torch.optim.Rprop\nlr: 0.1\nweight_decay: 0.1\n",
        "optim=mine",
        "it has no weight decay",
    ),
]


@pytest.mark.parametrize(
    ("file", "text", "word", "words"), PRESETS, ids=[str(i) for i in range(len(PRESETS))]
)
def test_a_preset_that_does_not_work(
    file: str, text: str, word: str, words: str, project: Project, command: Command, tmp_path: Path
) -> None:
    header = "# @package _global_\n" if file.startswith("experiment") else ""
    words = words.replace("line 2", "line 3") if header else words
    project({f"conf/{file}": header + text})
    said = command("train", *WORDS, word)
    assert said.code == 2, said.err
    assert re.search(f"error: .*{words}", said.err, re.DOTALL), said.err
    assert "Traceback" not in said.err and "not foreseen" not in said.err
    assert not (tmp_path / "runs" / "a").exists()


@pytest.mark.parametrize("name", ["yaml", "imaplib"])
def test_a_module_that_is_called_like_an_installed_one_is_named(
    name: str, project: Project, command: Command
) -> None:
    """The installed module may have been imported already (yaml) or not yet (imaplib)."""
    folder = project({f"{name}.py": CONVOLUTIONAL, "conf/model/mine.yaml": f"_target_: {name}.Net\n"})
    said = command("train", *WORDS, "model=mine")
    assert said.code == 2
    assert f"which comes before {folder}/{name}.py: give that file another name" in said.err


def test_without_a_project_folder_it_is_said_where_to_go(
    project: Project, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project({"mynet.py": CONVOLUTIONAL, "conf/model/mine.yaml": "_target_: mynet.Net\n"})
    assert command("train", *WORDS, "model=mine").code == 0
    monkeypatch.chdir(tmp_path)
    said = command("train", *WORDS, "model=mine")
    assert said.code == 2 and "there is no such model preset" in said.err
    said = command("eval", "a")
    assert said.code == 2 and "brings code of its own (mynet.py), which would be run" in said.err
    assert "--trust" in said.err
    monkeypatch.setenv("NEUSCALE_CONFIG_DIR", str(folder / "conf"))
    assert command("eval", "a").code == 0


def test_changed_code_is_named_and_the_runs_own_is_used_with_trust(
    project: Project, command: Command, tmp_path: Path, as_fresh: None
) -> None:
    folder = project({"mynet.py": CONVOLUTIONAL, "conf/model/mine.yaml": "_target_: mynet.Net\n"})
    assert command("train", *WORDS, "model=mine").code == 0
    expected = command("eval", "a", "--json").json["loss"]
    (folder / "mynet.py").write_text(CONVOLUTIONAL.replace(".relu()).relu()", ".relu()).tanh()"))
    said = command("eval", "a")
    assert said.code == 2 and "mynet.py has changed: - x = self.more(self.stem(x).relu()).relu()" in said.err
    said = command("runs", "replay", "a")
    assert said.code == 2 and "Say --trust" in said.err
    # This process has imported the earlier module already, so that the run's own needs a new process.
    said = command("eval", "a", "--trust")
    assert said.code == 2 and "its module mynet is in use already" in said.err
    copy = tmp_path / "runs" / "a" / "code" / "mynet.py"
    del sys.modules["mynet"]
    said = command("eval", "a", "--trust", "--json")
    assert said.code == 0, said.err
    assert said.json["loss"] == expected
    copy.write_text(copy.read_text() + "\n")
    said = command("eval", "a", "--trust")
    assert said.code == 2 and "is not the code that the run was trained with" in said.err


@pytest.mark.parametrize("form", ["{}", "--config-dir={}"])
def test_another_folder_is_named_anywhere_on_the_command_line(
    form: str, project: Project, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project({"mynet.py": CONVOLUTIONAL, "conf/model/mine.yaml": "_target_: mynet.Net\n"})
    monkeypatch.chdir(tmp_path)
    named = [form.format("project/conf")] if "=" in form else ["--config-dir", "project/conf"]
    said = command("train", *named, *WORDS, "model=mine")
    assert said.code == 0, said.err
    said = command(*named, "train", *WORDS, "model=nothing")
    assert said.code == 2 and "Known:" in said.err and "mine" in said.err
    said = command("train", *WORDS, "--config-dir", "nowhere")
    assert said.code == 2 and f"{tmp_path}/nowhere: there is no such folder of presets" in said.err
    assert "--config-dir" in said.err


def test_a_conf_of_another_user_is_not_taken_by_itself(
    project: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project({"mynet.py": CONVOLUTIONAL, "conf/model/mine.yaml": "_target_: mynet.Net\n"})
    monkeypatch.setattr("neuscale.project.folder.is_own", lambda _: False)
    said = command("train", *WORDS, "model=mine")
    assert said.code == 2 and "there is no such model preset" in said.err
    assert command("train", *WORDS, "model=mine", "--config-dir", str(folder / "conf")).code == 0


def test_a_conf_that_everybody_may_write_to_is_refused(
    project: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody could add a preset there that names code, which this user would run."""
    folder = project({"mynet.py": CONVOLUTIONAL, "conf/model/mine.yaml": "_target_: mynet.Net\n"}) / "conf"
    folder.chmod(0o777)
    said = command("train", *WORDS, "model=mine")
    assert said.code == 2 and f"{folder}: every user may write to it" in said.words
    assert f"chmod o-w {folder}" in said.words and "--config-dir" in said.words
    assert command("train", *WORDS, "model=mine", "--config-dir", str(folder)).code == 0
    monkeypatch.setenv(VARIABLE, "")
    for mode in (0o775, 0o1777):
        folder.chmod(mode)
        assert config_folder() == folder


def test_a_current_folder_that_is_closed_has_no_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(_: Path) -> bool:
        raise PermissionError(13, "Permission denied", "conf")

    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setattr(Path, "is_dir", closed)
    assert config_folder() is None
