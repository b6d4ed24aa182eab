"""Several runs from one command line: `optim.lr=1e-3,3e-4 run.seed=0,1,2` is six."""

import itertools
import re

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from neuscale.errors import UsageError

MOST_RUNS = 1000


def expand(words: list[str], name: str) -> list[list[str]]:
    """The words of each run, with a `run.name` each: `name`, and after it what differs.

    Lists are written as Hydra's override grammar has them: `a,b`, `choice(a,b)`, `range(0,3)`.
    Of a field that is given twice the last counts. UsageError for too many runs.
    """
    last = {word.partition("=")[0]: word for word in words if not word.startswith("run.name=")}
    choices = [_choices(word) for word in last.values()]
    count = 1
    for values in choices:
        count *= len(values)
    if count > MOST_RUNS:
        raise UsageError(f"these lists make {count:,} runs; at most {MOST_RUNS:,} are submitted at once.")
    if count == 1:
        return [[*(values[0] for values in choices), f"run.name={name}"]]
    runs = [list(chosen) for chosen in itertools.product(*choices)]
    swept = [position for position, values in enumerate(choices) if len(values) > 1]
    names = ["-".join([name, *(_label(run[position]) for position in swept)]) for run in runs]
    if len(set(names)) < count:  # what differs is in characters that a folder cannot have
        names = [f"{name}-{number}" for number in range(count)]
    return [[*run, f"run.name={each}"] for run, each in zip(runs, names, strict=True)]


def _choices(word: str) -> list[str]:
    """The words that `word` stands for: itself, unless it is a list of values."""
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:  # a path, say: whoever takes the word looks at it
        return [word]
    if not override.is_sweep_override():
        return [word]
    key = word.partition("=")[0]
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def _label(word: str) -> str:
    key, _, value = word.partition("=")
    return re.sub(r"[^A-Za-z0-9._-]+", "_", f"{key.rpartition('.')[2]}{value}").strip("_")
