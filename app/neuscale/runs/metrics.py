"""`metrics.jsonl`: the points of a run's curves as JSON lines, in step with its checkpoints."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neuscale.fs import write_atomically
from neuscale.untrusted import LINE_BYTES, open_regular, parse_json

# Metrics that are about time and not about learning: they differ between equal runs.
TIMINGS = ("images_per_second", "data_wait", "tflops", "mfu", "memory_gb")

# Metrics that runs of earlier versions do not have.
ADDED_LATER = ("balanced_accuracy", "macro_f1")

# Of the last point of a training: the steps it is the mean of, where these are fewer than between others.
REST = "rest_steps"


class MetricsFile:
    """`metrics.jsonl`: one object a line, with `step` and `split`.

    Opened at the step a run goes on from, it loses what is written again: the lines beyond that step, the
    evaluation of that step if it is still due (the run was killed before its checkpoint had it), and a last
    point of the rest, whose steps count for the next one.
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
        """Make what was written durable: it is not written again once a checkpoint of its step is there."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics file; one that a kill cut short, or that holds no numbers, is left out.

    Raises OSError where it is not a regular file.
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
