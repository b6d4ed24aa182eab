"""Differences between two runs are listed once each, without those that cannot change a result."""

import copy
from typing import Any

import pytest

from neuscale.analysis.compare import compare_runs
from neuscale.runs.differences import Difference, changing_fields, code_words, differences

from .conftest import RunWriter, manifest_of


def put(manifest: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Copy of a manifest with `value` at `path`, whose names are separated by slashes."""
    changed = copy.deepcopy(manifest)
    *parents, last = path.split("/")
    inner = changed
    for name in parents:
        inner = inner[name]
    inner[last] = value
    return changed


BASE = manifest_of("pets")

# (path, value, reported difference: area, what, before, now)
TOLD = [
    ("config/optim/lr", 0.5, ("config", "optim.lr", BASE["config"]["optim"]["lr"], 0.5)),
    ("config/run/seed", 8, ("config", "run.seed", 7, 8)),
    ("config/run/deterministic", True, ("config", "run.deterministic", False, True)),
    ("config/train/log_every_steps", 3, ("config", "train.log_every_steps", 50, 3)),
    ("config/train/patience", 3, ("config", "train.patience", None, 3)),
    ("config/data/loader", "files", ("config", "data.loader", "auto", "files")),
    ("config/eval/batch_size", 3, ("config", "eval.batch_size", BASE["config"]["eval"]["batch_size"], 3)),
    ("data/fingerprint", "0" * 64, ("data", "data", "f" * 12, "0" * 12)),
    ("packages/numpy", "2.2", ("packages", "numpy", "2.1.0", "2.2")),
    ("packages/more", "1", ("packages", "more", None, "1")),
    ("python", "3.12", ("python", "python", "3.11.7", "3.12")),
    ("ops/kind", "eager", ("ops", "kind", "fused", "eager")),
    ("ops/build/cpu_sha256", "0" * 64, ("ops", "cpu_sha256", "a" * 12, "0" * 12)),
    ("ops/build/cuda_sha256", "0" * 64, ("ops", "cuda_sha256", "b" * 12, "0" * 12)),
    ("precision", "fp16", ("precision", "precision", "bf16", "fp16")),
    ("determinism/cudnn_benchmark", True, ("determinism", "cudnn_benchmark", False, True)),
    ("machine/threads", 5, ("threads", "threads", 6, 5)),
    ("machine/processes", 4, ("processes", "processes", 2, 4)),
    *(
        (f"machine/{name}", "other", ("machine", name, BASE["machine"][name], "other"))
        for name in ("host", "system", "cpu", "kind", "driver", "cuda")
    ),
    (
        "machine/gpus",
        [{"name": "A"}, {"name": "B"}],
        ("machine", "gpus", "NVIDIA H100", "A, B"),
    ),
]


@pytest.mark.parametrize(("path", "value", "told"), TOLD, ids=[path for path, *_ in TOLD])
def test_each_thing_that_can_change_a_number_is_told(path: str, value: Any, told: tuple[Any, ...]) -> None:
    assert differences(BASE, put(BASE, path, value)) == [Difference(*told)]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("config/run/name", "other"),
        ("config/run/time_limit", "9h"),
        ("config/run/device", "cpu"),
        ("config/data/source", "elsewhere"),
        ("config/data/stage", "always"),
        ("config/tracking/tensorboard", False),
        ("config/checkpoint/keep_last", 77),
        ("packages/neuscale", "9"),
        ("neuscale", "9"),
        ("name", "other"),
        ("started", None),
        ("machine/cores", 99),
        ("machine/threads", None),
        ("determinism", None),
        ("code/revision", "0" * 40),
        ("code/changed", False),
        ("result", None),
    ],
)
def test_what_decides_no_number_or_is_not_known_is_not_told(path: str, value: Any) -> None:
    assert differences(BASE, put(BASE, path, value)) == []


def test_code_is_told_apart_by_its_files_and_without_them_by_its_revision() -> None:
    [found] = differences(BASE, put(BASE, "code/source_sha256", "6" * 64))
    assert (found.area, found.before) == ("code", "cccccccccccc with changes (55555555)")
    assert found.now == "cccccccccccc with changes (66666666)"
    unhashed = put(BASE, "code/source_sha256", None)
    assert differences(unhashed, BASE) == []
    for name, value in (("revision", "d" * 40), ("changed", False)):
        [found] = differences(unhashed, put(unhashed, f"code/{name}", value))
        assert found.area == "code"
    assert differences(put(BASE, "code", None), BASE) == []


def test_words_for_code() -> None:
    assert code_words(None) == "unknown"
    nothing = {"revision": None, "changed": None, "source_sha256": None}
    assert code_words(nothing) == "no revision"
    assert code_words({"revision": "0123456789abcdef", "changed": False}) == "0123456789ab"


def test_an_older_manifest_that_lacks_a_field_has_no_difference_in_it() -> None:
    older = put(BASE, "config/train/patience", None) | {"migrated_from": 1}
    newer = put(BASE, "config/train/patience", 9)
    assert differences(older, newer) == differences(newer, older) == []
    assert [d.what for d in differences(older, put(older, "config/optim/lr", 3.0))] == ["optim.lr"]


def test_a_difference_in_words() -> None:
    assert str(Difference("config", "optim.lr", 0.1, None)) == "config: optim.lr 0.1 → none"
    assert str(Difference("python", "python", "3.11", "3.12")) == "python 3.11 → 3.12"


def test_fields_that_change_numbers() -> None:
    fields = changing_fields(
        {"experiment": "x", "run": {"name": "n", "seed": 1}, "tracking": {"wandb": True}}
    )
    assert fields == {"run.seed": 1}
    assert changing_fields(None) is None


def test_in_a_comparison_every_run_has_its_own_value(write_run: RunWriter) -> None:
    """The second and the third run differ from the first in different fields."""
    machine = BASE["machine"]
    runs = [
        write_run("a"),
        write_run("b", "optim.lr=0.5", python="3.12"),
        write_run("c", "optim.weight_decay=0.75", machine={**machine, "host": "node8", "threads": 3}),
    ]
    optim = BASE["config"]["optim"]
    found = compare_runs(runs)
    assert found.configuration == {
        "optim.lr": [optim["lr"], 0.5, optim["lr"]],
        "optim.weight_decay": [optim["weight_decay"], optim["weight_decay"], 0.75],
    }
    assert found.environment == {
        "python": ["3.11.7", "3.12", "3.11.7"],
        "threads": [6, 6, 3],
        "machine: host": ["node7", "node7", "node8"],
    }
    assert [row.name for row in found.rows] == ["a", "b", "c"]
