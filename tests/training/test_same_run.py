"""A resumed run is the same run: changes that would alter its numbers are refused, field by field."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from neuscale.config import compose_config, config_to_yaml
from neuscale.errors import UsageError
from neuscale.runs.differences import check_same_data, check_same_run
from neuscale.runs.folder import RunFolder

BEGUN = [
    "model=swin_nano",
    "optim=adamw",
    "data.name=pets",
    "data.image_size=64",
    "run.seed=3",
    "train.global_batch_size=96",
]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Run that was started with BEGUN."""
    found = RunFolder(tmp_path / "begun")
    found.path.mkdir()
    found.config_file.write_text(config_to_yaml(compose_config(BEGUN)))
    found.manifest_file.write_text(json.dumps({"data": {"fingerprint": "abc1" * 16}}))
    return found


@pytest.mark.parametrize(
    ("word", "name", "was"),
    [
        ("model.embed_dim=96", "model.embed_dim", None),
        ("model.drop_path_rate=0.7", "model.drop_path_rate", None),
        ("data.name=cars", "data.name", "pets"),
        ("data.image_size=32", "data.image_size", "64"),
        ("train.global_batch_size=48", "train.global_batch_size", "96"),
        ("run.seed=4", "run.seed", "3"),
        ("optim=sgd", "optim.name", "adamw"),
        ("optim=muon", "optim.name", "adamw"),
    ],
)
def test_what_would_make_it_another_run_is_refused(
    run: RunFolder, word: str, name: str, was: str | None
) -> None:
    config = compose_config([*BEGUN, word])
    with pytest.raises(UsageError, match=rf"begun: {name.replace('.', '[.]')} cannot change") as raised:
        check_same_run(config, run)
    then: Any = run.config()
    for part in name.split("."):
        then = getattr(then, part)
    assert f"(it was {then})" in raised.value.problem
    assert was in (None, str(then))


@pytest.mark.parametrize(
    "word",
    [
        "model.gradient_checkpointing=true",
        "model.weights=w.safetensors",
        "optim.lr=0.25",
        "train.epochs=99",
        "train.precision=bf16",
        "train.micro_batch=3",
        "augment.mixup_alpha=0.9",
        "run.device=cpu",
        "run.name=other",
    ],
)
def test_what_may_change_may(run: RunFolder, word: str) -> None:
    check_same_run(compose_config([*BEGUN, word]), run)


def test_another_model_is_another_run(run: RunFolder) -> None:
    with pytest.raises(UsageError, match=r"model\.\w+ cannot change"):
        check_same_run(compose_config(["model=vit_ti4", *BEGUN[1:]]), run)


def test_other_data_under_the_same_name_are_refused(run: RunFolder) -> None:
    def prepared(fingerprint: str) -> Any:
        return SimpleNamespace(meta=SimpleNamespace(is_recorded_as=lambda f: f == fingerprint, name="pets"))

    check_same_data(prepared("abc1" * 16), run)
    with pytest.raises(
        UsageError, match="begun: was trained on other data than what is now prepared as 'pets'"
    ):
        check_same_data(prepared("abd1" * 16), run)
    run.manifest_file.write_text("{}")  # as of a run that ended before it recorded its data
    check_same_data(prepared("abd1" * 16), run)
