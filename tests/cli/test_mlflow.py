"""A run logged to MLflow's file store, read back with MLflow's own client."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neuscale.runs.manifest import read_manifest, write_manifest

mlflow = pytest.importorskip("mlflow", reason="mlflow is an extra")

WORDS = ["tracking=mlflow", "tracking.trackers=[mlflow]", "train.log_every_steps=1"]


@pytest.fixture(autouse=True)
def own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


def only_run(runs: Path, experiment: str) -> tuple[Any, Any]:
    client = mlflow.MlflowClient((runs / "mlruns").as_uri())
    [found] = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return client, found


def steps(client: Any, run: Any, name: str) -> list[int]:
    return sorted(point.step for point in client.get_metric_history(run.info.run_id, name))


def test_a_run_and_its_resume_are_one_run_there(
    train: Callable[..., Any], neuscale: Callable[..., Any], runs: Path
) -> None:
    words = [*WORDS, "tracking.project=pets", "tracking.options.mlflow.tags.team=birds"]
    said = train(*words, "train.epochs=1", "run.name=tracked", "optim.lr=0.02", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["status"] == "finished", "nothing else is on standard output"
    client, found = only_run(runs, "pets")
    assert (found.info.run_name, found.info.status) == ("tracked", "FINISHED")
    assert found.data.params["optim.lr"] == "0.02" and found.data.params["model.name"] == "swin"
    assert found.data.tags["team"] == "birds"
    assert steps(client, found, "train/loss") == [1, 2, 3, 4, 5]
    assert steps(client, found, "val/top1") == [5]

    run = runs / "tracked"
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert found.data.metrics["val/top1"] == last["top1"]
    manifest = read_manifest(run / "manifest.json")
    assert manifest["trackers"] == {"mlflow": {"id": found.info.run_id, "error": None, "missing": 0}}
    write_manifest(run / "manifest.json", manifest | {"status": "stopped"})
    assert neuscale("train", "tracked", "--resume", "train.epochs=2", "optim.lr=0.01").code == 0
    client, found = only_run(runs, "pets")
    assert steps(client, found, "train/loss") == list(range(1, 11))
    assert found.info.status == "FINISHED"
    names = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert names == {"config.yaml", "report.html", "val"}
    for folder in ("val/confusion", "val/per_class"):
        kept = [Path(file.path).stem for file in client.list_artifacts(found.info.run_id, folder)]
        assert kept == ["step-00000005", "step-00000010"]
    kept = Path(client.download_artifacts(found.info.run_id, "config.yaml")).read_bytes()
    assert kept == (run / "config.yaml").read_bytes()
    assert [row["name"] for row in neuscale("runs", "list", "--json").json["runs"]] == ["tracked"]


def test_the_environment_names_the_experiment_and_a_field_beats_it(
    train: Callable[..., Any], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "ours")
    assert train(*WORDS, "train.max_steps=1", "run.name=a").code == 0
    assert train(*WORDS, "train.max_steps=1", "run.name=b", "tracking.project=mine").code == 0
    assert only_run(runs, "ours")[1].info.run_name == "a"
    assert only_run(runs, "mine")[1].info.run_name == "b"


def test_a_server_that_is_not_there_stops_no_training(
    train: Callable[..., Any], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard and metrics.jsonl are complete; the manifest records the points that MLflow is missing."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said = train("tracking=mlflow", "train.log_every_steps=1", "train.epochs=1", "run.name=alone")
    assert said.code == 0, said.err
    assert "training goes on, and metrics.jsonl has everything" in said.words
    assert "points are missing there" in said.words
    told = read_manifest(runs / "alone" / "manifest.json")["trackers"]["mlflow"]
    assert told["id"] is None and told["missing"] > 0 and "127.0.0.1" in told["error"]
    assert len((runs / "alone" / "metrics.jsonl").read_text().splitlines()) == 6
    assert list((runs / "alone").glob("events.out.*"))


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["tracking.trackers=[mlfow]"], "there is no tracker 'mlfow'"),
        (["tracking.options.wandb.mode=offline"], "tracking.options.wandb: that tracker is not among"),
        ([*WORDS, "tracking.options.mlflow=3"], "expected"),
        (["tracking.trackers=[../../x]", "tracking.options.x._target_=a.B"], "there is no tracker '../../x'"),
    ],
)
def test_what_is_no_tracker_is_refused_before_anything_is_written(
    train: Callable[..., Any], runs: Path, words: list[str], problem: str
) -> None:
    said = train(*words)
    assert said.code == 2
    assert problem in said.words
    assert not runs.exists()
