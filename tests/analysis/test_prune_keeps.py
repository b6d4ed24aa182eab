"""`runs prune` frees as much as it prints and keeps the best, the last and milestone checkpoints."""

import re
from collections.abc import Callable

import pytest

from conftest import Said
from neuscale.analysis.prune import removals, remove
from neuscale.runs.folder import RunFolder, find_run

from .conftest import RunWriter

Command = Callable[..., Said]

# Weights in bytes by step; no two subsets have the same sum. An epoch is five steps.
SIZES = {5: 1_000_000, 10: 2_000_000, 15: 4_000_000, 20: 8_000_000, 25: 16_000_000}


@pytest.fixture
def run(write_run: RunWriter) -> RunFolder:
    """A run whose second checkpoint is the best, whose fourth is a milestone and whose fifth is the last."""
    return write_run("pets", "checkpoint.milestones=[4,9]", checkpoints=SIZES, best=10)


def steps(run: RunFolder) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in run.checkpoints.glob("step-*"))


def total(run: RunFolder) -> int:
    return sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file())


def test_best_last_and_milestones_stay(neuscale: Command, run: RunFolder) -> None:
    before = total(run)
    said = neuscale("runs", "prune", "--yes")
    assert said.code == 0
    assert steps(run) == [10, 20, 25]
    assert sorted(path.name for path in run.checkpoints.iterdir())[:1] == ["best.json"]
    freed = before - total(run)
    assert freed == 5_000_000 + 2 * len("{}")
    assert said.out.splitlines()[0] == "5 MB can go"
    assert said.err.splitlines()[-1] == "freed 5 MB"


def test_the_sizes_that_are_said_are_those_of_each_folder(neuscale: Command, run: RunFolder) -> None:
    found = neuscale("runs", "prune", "--json").json
    assert found == {
        "removed": False,
        "bytes": 5_000_004,
        "folders": [
            {"path": str(path), "reason": "checkpoint, neither best nor last", "bytes": size}
            for path, size in (
                (run.checkpoints / "step-00000005", 1_000_002),
                (run.checkpoints / "step-00000015", 4_000_002),
            )
        ],
    }
    assert steps(run) == [5, 10, 15, 20, 25]
    # The total, then each folder: a long path is wrapped, and the size stands on its first line.
    assert re.findall(r"\d+ [kMG]?B\b", neuscale("runs", "prune").out) == ["5 MB", "1 MB", "4 MB"]


def test_only_the_named_runs_are_freed(neuscale: Command, run: RunFolder, write_run: RunWriter) -> None:
    other = write_run("other", checkpoints=SIZES, best=15)
    assert neuscale("runs", "prune", "other", "--yes").code == 0
    assert (steps(run), steps(other)) == ([5, 10, 15, 20, 25], [15, 25])


def test_what_a_save_cut_short_left_goes_and_is_counted(neuscale: Command, write_run: RunWriter) -> None:
    run = write_run(checkpoints={25: 10}, best=25)
    part = run.checkpoints / ".partial-00000030"
    part.mkdir()
    (part / "model.safetensors").write_bytes(bytes(777))
    found = neuscale("runs", "prune", "--yes", "--json").json
    assert [(one["path"], one["bytes"]) for one in found["folders"]] == [(str(part), 777)]
    assert not part.exists()
    assert steps(run) == [25]


def test_a_run_in_training_keeps_everything(write_run: RunWriter) -> None:
    run = write_run(checkpoints=SIZES, best=10, status="running")
    found = removals([run])
    assert [removal.path.name for removal in found] == ["step-00000005", "step-00000015", "step-00000020"]
    with run.held():
        assert removals([run]) == []
        from neuscale.errors import UsageError

        with pytest.raises(UsageError, match="another process is training"):
            remove(found[0])
    assert steps(run) == sorted(SIZES)


@pytest.mark.parametrize(
    ("status", "checkpoints", "lines", "failed", "goes"),
    [
        ("failed", {}, None, False, ["failed run"]),
        ("failed", {5: 1, 10: 2}, None, False, []),
        ("failed", {5: 1, 10: 2}, None, True, ["failed run, 2 checkpoints, best and last among them"]),
        ("stopped", {}, [], False, ["empty run"]),
        ("running", {}, [], False, ["empty run"]),  # killed: no process holds its lock
        ("stopped", {}, None, False, []),
        ("finished", {}, None, True, []),
        ("finished", {5: 1}, None, True, []),
    ],
)
def test_a_whole_run_goes_only_where_nothing_is_lost(
    write_run: RunWriter,
    status: str,
    checkpoints: dict[int, int],
    lines: list[dict[str, object]] | None,
    failed: bool,
    goes: list[str],
) -> None:
    run = write_run(status=status, checkpoints=checkpoints, best=min(checkpoints, default=None), lines=lines)
    found = removals([run], failed)
    assert [removal.reason for removal in found if removal.whole] == goes
    if goes:
        assert [removal.size for removal in found] == [total(run)]
        remove(found[0])
        assert not run.path.exists()


def test_a_run_that_never_began_goes_unless_something_is_in_it(write_run: RunWriter) -> None:
    for name, lines, checkpoints in (("none", [], {}), ("curves", None, {}), ("weights", [], {5: 1})):
        write_run(name, lines=lines, checkpoints=checkpoints).manifest_file.unlink()
    found = removals([find_run(name) for name in ("none", "curves", "weights")])
    assert [(removal.run.name, removal.whole) for removal in found] == [("none", True)]
