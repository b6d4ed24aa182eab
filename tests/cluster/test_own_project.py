"""A user's project on two nodes, which import its model from the submission folder or the config folder."""

import json
from pathlib import Path

import pytest

from cluster.conftest import Cluster
from neuscale.project.folder import new_project
from project.foreign_models import BATCH_NORM

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("named", [False, True], ids=["current folder", "config dir"])
def test_a_model_of_ones_own_trains_on_two_nodes(
    named: bool, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cluster.folder / f"project-{named}".lower()
    new_project(folder)
    if named:  # a model that the template does not contain
        (folder / "batchnet.py").write_text(BATCH_NORM)
        (folder / "conf" / "model" / "batch.yaml").write_text("_target_: batchnet.Net\n")
    monkeypatch.chdir(cluster.folder if named else folder)
    words = ["experiment=first", "data.name=s", "data.dataset.count=240", "train.epochs=3"]
    words += ["model=batch"] if named else []
    words += [f"run.name=own-{named}", "--nodes=2", "--processes=1", "--cpus=1"]
    job = cluster.submit(*words, *(["--config-dir", str(folder / "conf")] if named else []))
    assert job.until_ended(120) == "COMPLETED", job.log()
    manifest = json.loads((Path(cluster.runs) / f"own-{named}" / "manifest.json").read_text())
    assert manifest["status"] == "finished" and manifest["machine"]["processes"] == 2
    assert {"batchnet.py" if named else "nets.py", "shapes.py"} == {
        file["file"] for file in manifest["own_code"]["files"]
    }
