"""`metrics.jsonl`: the points of a run's curves as JSON lines, consistent with its checkpoints."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neuscale.fs import write_atomically
from neuscale.untrusted import LINE_BYTES, open_regular, parse_json

# Metrics of speed and memory, which differ between runs that are otherwise equal.
TIMINGS = ("images_per_second", "data_wait", "tflops", "mfu", "memory_gb")

# Metrics that are missing in runs of earlier versions.
ADDED_LATER = ("balanced_accuracy", "macro_f1")

# Field of the last point of a training: its number of steps, if that is less than between other points.
REST = "rest_steps"


class MetricsFile:
    """`metrics.jsonl`: one object per line, with `step` and `split`.

    Opening it at the step where a run resumes removes lines that will be written again: those after that
    step, the evaluation of that step if it is still due (the run was killed before its checkpoint had it),
    and a last point with `REST`, whose steps count for the next point.
    """

    def __init__(self, path: Path, step: int, evaluation_due: bool = False) -> None:
        lines = read_metrics(path) if path.exists() else ()
        due = step if evaluation_due else None
        kept = [
            line
            for line in lines
            if line["step"] <= step
            and REST not in line
            and not (line["step"] == due and line.get("split") == "val")
        ]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a")

    def write(self, split: str, step: int, values: dict[str, float]) -> None:
        self._file.write(json.dumps({"split": split, "step": step, **values}) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Fsync the file: lines up to a saved checkpoint are not written again after a resume."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a metrics file; lines cut off by a kill, or with invalid values, are skipped.

    Raises OSError if it is not a regular file.
    """
    with open_regular(path) as file:
        while line := file.readline(LINE_BYTES):
            try:
                value = parse_json(line)
            except ValueError:
                continue
            if isinstance(value, dict) and type(value.get("step")) is int and _is_of_numbers(value):
                yield value


def _is_of_numbers(line: dict[str, Any]) -> bool:
    kinds = {name: (str,) if name == "split" else (int, float) for name in line}
    return all(type(value) in kinds[name] for name, value in line.items())
