"""Overrides that stand for several configurations, in Hydra's grammar: lists, ranges and intervals.

    optim.lr=1e-3,3e-4   run.seed=range(0,3)   model=swin_t,vit_s4
    optim.lr=interval(1e-4,1e-2)   optim.lr=tag(log,interval(1e-4,1e-2))   train.epochs=int(interval(5,20))

Nothing here imports torch.
"""

import math
import random
import re
from dataclasses import dataclass
from itertools import islice, product

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.errors import HydraException

from neuscale.errors import UsageError

# After this many consecutive repeated draws, no further combinations are expected.
_TRIES = 1000


MOST_RUNS = 1000


_MOST_VALUES = 1_000_000  # of one field, so that an endless range stops


_CALL = re.compile(r"(range|interval|choice|tag|glob|shuffle|sort|int|float)\(")


def sweep_overrides(overrides: list[str]) -> list[list[str]]:
    """Every combination of the values in `overrides`, as overrides of one run; the last changes fastest.

    Raises UsageError for an interval, which has no list of values, for an empty list, and for too many runs.
    """
    choices = []
    for word in _last_of_each(overrides):
        values = _values(word)
        if values is None:
            raise UsageError(
                f"'{word}' is an interval, from which values are drawn.",
                f"Set `random` to the number of draws, or list values: {word.partition('=')[0]}=A,B,C.",
            )
        choices.append(values)
    count = math.prod(map(len, choices))
    if count > MOST_RUNS:
        raise UsageError(
            f"these values make {count:,} runs, more than {MOST_RUNS:,}.",
            "Give fewer values, or draw some of the runs with `random`.",
        )
    return [list(combination) for combination in product(*choices)]


def sampled_overrides(overrides: list[str], count: int, seed: int) -> list[list[str]]:
    """Draw `count` different combinations of values from `overrides`; a larger count adds to the same draws.

    Draws are uniform over the values of a list or range and over an interval, and log-uniform over an
    interval tagged `log`. Raises UsageError if there are fewer combinations.
    """
    if count > MOST_RUNS:
        raise UsageError(f"`random` {count}: more than {MOST_RUNS:,} runs.", "Draw fewer.")
    choices = [_values(word) or _Interval.parse(word) for word in _last_of_each(overrides)]
    lists = [values for values in choices if isinstance(values, list)]
    there = math.prod(map(len, lists))
    if len(lists) == len(choices) and there < count:
        raise UsageError(
            f"`random` {count}: there are {there} combinations of these values.",
            "Remove `random` to run them all.",
        )
    drawn: list[list[str]] = []
    attempt = last = 0
    while len(drawn) < count:
        if attempt - last > max(_TRIES, 20 * there):
            raise UsageError(f"`random` {count}: there are only {len(drawn)} combinations.", "Draw fewer.")
        generator = random.Random(f"{seed} {attempt}")
        attempt += 1
        draw = [c.draw(generator) if isinstance(c, _Interval) else generator.choice(c) for c in choices]
        if draw not in drawn:
            drawn.append(draw)
            last = attempt
    return drawn


def _last_of_each(overrides: list[str]) -> list[str]:
    """The last override of each field."""
    return list({override.partition("=")[0]: override for override in overrides}.values())


def swept_fields(overrides: list[str]) -> list[str]:
    """The fields with several values in `overrides`, in order."""
    return [
        word.partition("=")[0] for word in overrides if (values := _values(word)) is None or len(values) > 1
    ]


def _values(word: str) -> list[str] | None:
    """The single-run overrides that `word` stands for; None for an interval."""
    override = _parsed(word)
    if override is None or not override.is_sweep_override():
        return [word]
    if isinstance(override.value(), IntervalSweep):
        return None
    if isinstance(override.value(), Glob):
        raise UsageError(f"'{word}': glob is not understood here.", "List the values: model=swin_t,vit_s4.")
    key = override.get_key_element()
    try:
        values = [f"{key}={text}" for text in islice(override.sweep_string_iterator(), _MOST_VALUES)]
    except (HydraException, ValueError, ZeroDivisionError) as error:
        raise UsageError(
            f"'{word}': {str(error).splitlines()[0]}.", "For example: optim.lr=1e-3,3e-4."
        ) from error
    if not values:
        raise UsageError(f"'{word}' has no value.", "range(0,3) counts up: 0, 1, 2.")
    return list(dict.fromkeys(values))


@dataclass(frozen=True)
class _Interval:
    """Numbers from `low` to `high` for a field; `log`: drawn log-uniformly; `whole`: integers."""

    field: str
    low: float
    high: float
    log: bool
    whole: bool

    @classmethod
    def parse(cls, word: str) -> "_Interval":
        override = _parsed(word)
        assert override is not None
        interval = override.value()
        assert isinstance(interval, IntervalSweep) and interval.start is not None and interval.end is not None
        low, high, log = float(interval.start), float(interval.end), "log" in interval.tags
        if not low < high or (log and low <= 0):
            raise UsageError(
                f"'{word}': an interval goes from a smaller to a larger number{', above 0' if log else ''}.",
                "For example: optim.lr=interval(1e-4,1e-2).",
            )
        whole = isinstance(interval.start, int) and isinstance(interval.end, int)
        return cls(override.get_key_element(), low, high, log, whole)

    def draw(self, generator: random.Random) -> str:
        if self.log:
            value = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = generator.uniform(self.low, self.high)
        # Four digits keep commands and tables short.
        return f"{self.field}={round(value) if self.whole else float(f'{value:.4g}')}"


def _parsed(word: str) -> Override | None:
    """The parsed override; None if Hydra cannot parse it (composing the configuration reports that)."""
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException as error:
        if _CALL.match(word.partition("=")[2]):
            raise UsageError(
                f"'{word}': {str(error).splitlines()[0]}.",
                "For example: run.seed=range(0,3), optim.lr=interval(1e-4,1e-2).",
            ) from error
        return None
