"""The runs of one submission, each with a name: `optim.lr=1e-3,3e-4 run.seed=0,1,2` is six."""

import re

from neuscale.config.sweep import sweep_overrides


def expand(words: list[str], name: str) -> list[list[str]]:
    """The words of each run, with a `run.name` each: `name`, and after it what differs.

    Of a field that is given twice the last counts. UsageError as in `sweep_overrides`.
    """
    last = {word.partition("=")[0]: word for word in words if not word.startswith("run.name=")}
    runs = sweep_overrides(list(last.values()))
    if len(runs) == 1:
        return [[*runs[0], f"run.name={name}"]]
    swept = [position for position, values in enumerate(zip(*runs, strict=True)) if len(set(values)) > 1]
    names = ["-".join([name, *(_label(run[position]) for position in swept)]) for run in runs]
    if len(set(names)) < len(runs):  # what differs is in characters that a folder cannot have
        names = [f"{name}-{number}" for number in range(len(runs))]
    return [[*run, f"run.name={each}"] for run, each in zip(runs, names, strict=True)]


def _label(word: str) -> str:
    key, _, value = word.partition("=")
    return re.sub(r"[^A-Za-z0-9._-]+", "_", f"{key.rpartition('.')[2]}{value}").strip("_")
