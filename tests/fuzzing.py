"""Hypothesis strategies that damage input files: random byte changes and replaced JSON values.

`make test` tries a few examples of each parser, the same ones every time; `make test-fuzz` tries
NEUSCALE_FUZZ_EXAMPLES different ones in each run.
"""

import json
import os
import random
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("NEUSCALE_FUZZ_EXAMPLES", "0"))

fuzz = settings(
    max_examples=EXAMPLES or 60,
    derandomize=not EXAMPLES,  # a failure in the normal test run is reproducible
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# Wrong values in place of a number, a string, a list or null.
WRONG = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10**30),
    st.floats(),
    st.text(max_size=8) | st.sampled_from(["a\x00b", "../x", "\x1b[2J", "${oc.env:HOME}", "\ud800"]),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.sampled_from(["train", "val", "a", "step", "split"]), st.integers(), max_size=2),
)

NUMBERS = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF]


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values inside `value`, including the empty path of `value` itself."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(leaf for key, item in pairs for leaf in leaves(item, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Copy of `value` with `new` at `path`."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@st.composite
def changed_json(draw: st.DrawFn, value: Any) -> str:
    """JSON text of `value` with one or two values replaced or fields removed, and sometimes bytes changed."""
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(leaves(value)))
        if path and isinstance(path[-1], str) and draw(st.booleans()):
            inner = value
            for key in path[:-1]:
                inner = inner[key]
            value = replaced(value, path[:-1], {k: v for k, v in inner.items() if k != path[-1]})
        else:
            value = replaced(value, path, draw(WRONG))
    text = json.dumps(value)
    if draw(st.integers(0, 3)) == 0:
        return draw(damaged(text.encode())).decode("utf-8", "surrogateescape")
    return text


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """`whole` with bits flipped, integers written, pieces deleted, doubled or copied, or its end cut off.

    The edits come from `random.Random` with a drawn seed instead of from Hypothesis, so that an example
    takes microseconds.
    """
    return edited(whole, draw(st.integers(0, 2**48)), draw(st.integers(1, 8)))


def edited(whole: bytes, seed: int, edits: int) -> bytes:
    """`whole` after `edits` random edits, which `seed` determines."""
    chance = random.Random(seed)
    data = bytearray(whole)
    for _ in range(edits):
        at = chance.randrange(len(data) + 1)
        length = min(len(data) - at, int(chance.expovariate(1 / 8)) + 1)
        match chance.randrange(7):
            case 0 if at < len(data):
                data[at] ^= 1 << chance.randrange(8)
            case 1 if at < len(data):
                data[at] = chance.choice([0, 0xFF, 0x7F, 0x0A, 0x2F, 0x5C, 0x22, chance.randrange(256)])
            case 2:
                width = chance.choice([1, 2, 4, 8])
                number = chance.choice(NUMBERS) & (1 << 8 * width) - 1
                data[at : at + width] = number.to_bytes(width, chance.choice(["little", "big"]))
            case 3:
                del data[at : at + length]
            case 4:
                data[at:at] = data[at : at + length]
            case 5:
                there = chance.randrange(len(data) + 1)
                data[at : at + length] = data[there : there + length]
            case 6 if chance.random() < 0.3:
                del data[at:]
    return bytes(data)
