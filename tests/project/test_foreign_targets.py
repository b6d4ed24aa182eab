"""A target in a stored configuration that is not a model is not called without --trust."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from conftest import Said
from neuscale.errors import UsageError
from neuscale.project.trust import check_targets

from .foreign_models import CONVOLUTIONAL

Command = Callable[..., Said]
Project = Callable[[dict[str, str]], Path]

WORDS = ["data=image_folder", "data.name=photos", "train.global_batch_size=16", "train.max_steps=1"]
WORDS += ["run.device=cpu", "run.name=a", "model=mine"]


@pytest.mark.parametrize("place", ["model", "through the module", "argument", "loss", "no own code"])
def test_a_planted_command_is_not_run(place: str, project: Project, command: Command, tmp_path: Path) -> None:
    project({"mynet.py": "import os\n" + CONVOLUTIONAL, "conf/model/mine.yaml": "_target_: mynet.Net\n"})
    assert command("train", *WORDS).code == 0
    run, proof = tmp_path / "runs" / "a", tmp_path / "proof"
    config = yaml.safe_load((run / "config.yaml").read_text())
    shell = {"command": f"touch {proof}"}
    if place == "argument":
        config["model"]["args"] = {"width": {"_target_": "os.system", **shell}}
    elif place == "loss":
        config["train"]["loss"] = {"_target_": "subprocess.getoutput", "cmd": f"touch {proof}"}
    else:
        target = "mynet.os.system" if place == "through the module" else "os.system"
        config["model"] |= {"target": target, "args": shell}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    if place == "no own code":
        manifest = json.loads((run / "manifest.json").read_text())
        del manifest["own_code"]
        (run / "manifest.json").write_text(json.dumps(manifest))
    for words in (
        ["eval", "a"],
        ["train", "--resume", "a", "train.max_steps=2"],
        ["export", "a", "--to", "torch"],
    ):
        said = command(*words)
        assert said.code == 2 and "which would be run" in said.err and "--trust" in said.err, said.err
    assert not proof.exists()


def test_an_exported_folder_runs_no_command(project: Project, command: Command, tmp_path: Path) -> None:
    from neuscale.inference.classifier import load_exported

    project({"mynet.py": CONVOLUTIONAL, "conf/model/mine.yaml": "_target_: mynet.Net\n"})
    assert command("train", *WORDS).code == 0
    assert command("export", "a", "--to", "safetensors").code == 0
    folder = tmp_path / "runs" / "a" / "export" / "safetensors"
    record = json.loads((folder / "model.json").read_text())
    config = yaml.safe_load(record["config"])
    config["model"] |= {"target": "os.system", "args": {"command": f"touch {tmp_path}/proof"}}
    (folder / "model.json").write_text(json.dumps(record | {"config": yaml.safe_dump(config)}))
    with pytest.raises(UsageError, match=r"names os\.system, which would be run"):
        load_exported(folder)
    assert not (tmp_path / "proof").exists()


def test_models_and_optimizers_of_packages_need_no_trust(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUSCALE_TRUST", "")
    for target in ("torch.optim.RAdam", "torchvision.models.resnet18", "torch.nn.Linear"):
        check_targets({"optim": {"target": target}}, (), "here")
    for target in ("torch.load", "torch.hub.load", "torch.optim.lr_scheduler.warnings.warn", "timeit.timeit"):
        with pytest.raises(UsageError, match="which would be run"):
            check_targets({"model": {"args": [{"_target_": target}]}}, (), "here")
    with pytest.raises(UsageError, match="names antigravity"):
        check_targets({"model": {"imports": ["antigravity"]}}, (), "here")


def test_a_sweep_of_somebody_else_names_no_code(project: Project, command: Command, tmp_path: Path) -> None:
    project({"mynet.py": CONVOLUTIONAL, "conf/model/mine.yaml": "_target_: mynet.Net\n"})
    said = command("sweep", *WORDS[:-2], "model=mine", "model.args.width=4,6", "--name", "s")
    assert said.code == 0, said.err
    (listed,) = tmp_path.rglob("sweep.json")
    content = json.loads(listed.read_text())
    content["runs"][0]["words"] += ["model=target", "model.target=os.system"]
    listed.write_text(json.dumps(content))
    said = command("sweep", "--resume", "s")
    assert said.code != 0 and "names code to be run" in said.err
