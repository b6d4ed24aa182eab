"""The project in docs/own.md is written and trained exactly as documented."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Said

DOCUMENT = Path(__file__).parents[2] / "docs" / "own.md"
_FILE = re.compile(r"`([\w./]+\.(?:py|yaml))`:\n\n```(?:python|yaml)\n(.*?)```", re.DOTALL)


def test_the_documented_project_is_trained(
    project: Callable[[dict[str, str]], Path], command: Callable[..., Said], tmp_path: Path
) -> None:
    if not DOCUMENT.exists():
        pytest.skip("the image does not contain the documentation")
    if shutil.which("git") is None:
        pytest.skip("no git here")
    files = dict(_FILE.findall(DOCUMENT.read_text()))
    assert {"mynet.py", "conf/model/mynet.yaml", "conf/experiment/mine.yaml", "conf/optim/radam.yaml"} <= set(
        files
    )
    folder = project(files)
    git = ["git", "-C", str(folder), "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    words = ["data=image_folder", "data.name=photos", "train.global_batch_size=16", "run.device=cpu"]
    for number, word in enumerate(("model=mynet", "experiment=mine")):
        said = command("train", word, *words, "model.width=8", "train.epochs=1", f"run.name=r{number}")
        assert said.code == 0, said.err
        assert command("eval", f"r{number}").code == 0
    manifest = json.loads((tmp_path / "runs" / "r1" / "manifest.json").read_text())
    assert manifest["config"]["model"]["args"] == {"width": 8}
    assert manifest["config"]["optim"]["target"] == "torch.optim.RAdam"
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert manifest["own_code"]["repository"] == {"revision": head.stdout.strip(), "changed": False}
    assert command("runs", "show", "r1").code == 0
    printed = command("train", "experiment=mine", *words, "--print-config")
    (folder / "printed.yaml").write_text(printed.out)
    assert command("train", "--config", "printed.yaml", "train.max_steps=1").code == 0
