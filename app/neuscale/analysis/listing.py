"""List the runs as rows of a table."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from neuscale.errors import UsageError, UserError
from neuscale.runs.folder import RunFolder, all_runs
from neuscale.runs.manifest import load_manifest
from neuscale.runs.metrics import read_metrics


@dataclass(frozen=True)
class RunRow:
    """A run in a table; `note`: details of `state`.

    `state`: running, stopped, finished, failed, empty or damaged; for a batch job also pending or requeued.

    `top1`: the best so far (for multi-label data `map`); `loss`: of the last evaluation; `time`: seconds of
    training; `speed`: images per second; `size`: bytes on disk. None: not known, or not yet.
    """

    name: str
    state: str
    experiment: str | None = None
    data: str | None = None
    seed: int | None = None
    steps: int | None = None
    top1: float | None = None
    map: float | None = None
    loss: float | None = None
    time: float | None = None
    speed: float | None = None
    device: str | None = None
    started: str | None = None
    size: int | None = None
    note: str = ""

    @property
    def score(self) -> str:
        """The best result as text: top-1, or mAP with its name."""
        if self.top1 is not None:
            return f"{self.top1:.2%}"
        return "" if self.map is None else f"mAP {self.map:.2%}"


# Columns for sorting; True: largest first.
SORTS = {
    "started": True,
    "name": False,
    "state": False,
    "experiment": False,
    "top1": True,
    "map": True,
    "loss": False,
    "time": False,
    "speed": True,
    "size": True,
}


def run_rows() -> list[RunRow]:
    """One row per run folder."""
    return [run_row(run) for run in all_runs()]


def sorted_rows(rows: Iterable[RunRow], sort: str) -> list[RunRow]:
    """The rows sorted by a column; rows without a value come last. Raises UsageError."""
    if sort not in SORTS:
        raise UsageError(f"`sort` {sort}: expected one of {', '.join(SORTS)}.")
    values = [(getattr(row, sort), row) for row in rows]
    known = [(value, row) for value, row in values if value is not None and value == value]
    missing = [row for value, row in values if value is None or value != value]  # NaN has no position
    known.sort(key=lambda pair: pair[0], reverse=SORTS[sort])
    return [row for _, row in known] + missing


def run_row(run: RunFolder) -> RunRow:
    """The row of a run; a damaged manifest gives the state "damaged"."""
    size = folder_size(run)
    if not run.manifest_file.exists():
        return RunRow(run.name, "running" if run.is_held() else "empty", size=size)
    try:
        manifest = load_manifest(run.manifest_file)
    except UserError as error:
        return RunRow(run.name, "damaged", size=size, note=error.problem)
    result = manifest["result"] or {}
    evaluations = metrics_of(run, "val")
    top1 = max((line["top1"] for line in evaluations if "top1" in line), default=result.get("best_top1"))
    best_map = max((line["map"] for line in evaluations if "map" in line), default=None)
    last = evaluations[-1] if evaluations else result.get("last") or {}
    points = metrics_of(run)
    return RunRow(
        name=run.name,
        state=state_of(run, manifest),
        experiment=(manifest["config"] or {}).get("experiment"),
        data=manifest["data"]["name"],
        seed=manifest["seed"],
        steps=result.get("steps", points[-1]["step"] if points else 0),
        top1=top1,
        map=best_map,
        loss=last.get("loss"),
        time=result.get("train_seconds"),
        speed=result.get("images_per_second"),
        device=manifest["machine"]["device"],
        started=manifest["started"],
        size=size,
        note=manifest["error"] or "",
    )


def state_of(run: RunFolder, manifest: dict[str, Any]) -> str:
    """State of a run with a manifest: with status 'running' but without a lock, it was killed ('stopped')."""
    status = str(manifest["status"])
    if run.is_held():
        return "running"
    return "stopped" if status == "running" else status


def metrics_of(run: RunFolder, split: str | None = None) -> list[dict[str, Any]]:
    """Points of a run's curves, of one split or both; empty without a readable file."""
    try:
        return [line for line in read_metrics(run.metrics_file) if split in (None, line.get("split"))]
    except (OSError, ValueError):  # ValueError: not valid text
        return []


def folder_size(run: RunFolder) -> int:
    """Size of all files of a run in bytes."""
    sizes = 0
    for path in run.path.rglob("*"):
        try:
            sizes += path.lstat().st_size if path.is_file() else 0
        except OSError:  # a run in training adds and removes checkpoints
            continue
    return sizes
