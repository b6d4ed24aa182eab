"""Compared curves as table, sparkline and picture: each value appears at its step and its run."""

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from conftest import Said
from neuscale.analysis.compare import (
    COMMON_STEPS,
    SPARK_WIDTH,
    common_points,
    compare_runs,
    save_curves,
    sparkline,
)
from neuscale.errors import UserError

from .conftest import TOP1, RunWriter, train_lines, val_lines

Command = Callable[..., Said]
BLOCKS = "▁▂▃▄▅▆▇█"


def test_only_steps_that_all_have_are_compared_with_each_runs_own_value() -> None:
    a = [(1, 0.1), (2, 0.2), (4, 0.4)]
    b = [(4, 4.0), (2, 2.0), (3, 3.0)]
    assert common_points([a, b]) == [(2, [0.2, 2.0]), (4, [0.4, 4.0])]
    assert common_points([a, b, [(9, 9.0)]]) == common_points([]) == []


def test_of_many_common_steps_some_are_taken_the_first_and_the_last_among_them() -> None:
    curve = [(step, float(step)) for step in range(10, 210, 2)]
    found = common_points([curve, curve])
    steps = [step for step, _ in found]
    assert len(steps) == COMMON_STEPS
    assert (steps[0], steps[-1]) == (10, 208)
    gaps = [b - a for a, b in pairwise(steps)]
    assert max(gaps) - min(gaps) <= 2
    assert all(values == [step, step] for step, values in found)
    assert len(common_points([curve[:COMMON_STEPS]])) == COMMON_STEPS


def test_a_line_of_blocks_goes_up_where_the_curve_does() -> None:
    rising = [(step, float(step)) for step in range(1, 33)]
    line = sparkline(rising, last=32, low=1.0, high=32.0)
    assert len(line) == SPARK_WIDTH
    assert line == "".join(BLOCKS[round(i / 31 * 7)] for i in range(32))
    assert sparkline([(s, -v) for s, v in rising], 32, -32.0, -1.0) == line[::-1]
    assert sparkline([(32, 1.0)], 32, 0.0, 2.0)[-1] == BLOCKS[4]  # half way: round(3.5) is 4, half to even


def test_a_shorter_curve_ends_earlier_and_a_gap_is_one() -> None:
    curve = [(1, 0.0), (8, 1.0), (16, float("nan"))]
    line = sparkline(curve, last=32, low=0.0, high=1.0)
    assert 16 <= len(line) <= 17
    assert (line[0], line[7], line[15]) == (BLOCKS[0], BLOCKS[-1], " ")
    assert sparkline([], 32, 0.0, 1.0) == ""
    assert set(sparkline([(32, 5.0)], 32, 5.0, 5.0)) == {BLOCKS[0]}, "a curve that stays divides by nothing"


def lower(lines: list[dict[str, Any]], by: float) -> list[dict[str, Any]]:
    """The same curves with values lower by `by`."""
    names = ("loss", "accuracy", "top1")
    return [{n: v - by if n in names else v for n, v in line.items()} for line in lines]


@pytest.fixture
def pair(write_run: RunWriter) -> None:
    """'long' with 25 steps and 'short' with 15, whose values are 0.0625 lower."""
    write_run("long", lines=train_lines() + val_lines())
    lines = lower(train_lines()[:7] + val_lines()[:3], 0.0625)
    result = {"steps": 15, "train_seconds": 61.0, "images_per_second": 99.6, "weights_sha256": None}
    write_run("short", "optim.lr=0.5", lines=lines, result=result, status="stopped")


def printed(said: Said) -> dict[str, dict[str, list[str]]]:
    """Tables that a command printed: the title maps to rows, a row's name to its cells."""
    tables: dict[str, dict[str, list[str]]] = {}
    for line in said.out.splitlines():
        if not re.match(r"^[┏┡└│┃]", line):
            title = line.strip()
        elif line[0] in "│┃":
            name, *cells = (cell.strip() for cell in re.split(r"[│┃]", line.strip("│┃")))
            tables.setdefault(title, {})[name] = cells
    return tables


@pytest.mark.usefixtures("pair")
def test_the_tables_of_a_comparison(neuscale: Command) -> None:
    said = neuscale("runs", "compare", "long", "short")
    tables = printed(said)
    assert list(tables) == ["configuration", "results", "training loss", "validation loss", "top-1"]
    assert tables["configuration"]["optim.lr"][1] == "0.5"
    assert tables["results"] == {
        "": ["long", "short"],
        "state": ["finished", "stopped"],
        "best top-1": ["75.00%", "68.75%"],
        "loss": ["2.1250", "1.9375"],
        "steps": ["25", "15"],
        "time": ["1 h 2 min", "1 min 1 s"],
        "img/s": ["12,346", "100"],
    }
    losses = tables["training loss"]
    steps = [int(name.split()[1]) for name in losses if name.startswith("step")]
    assert steps == [2, 4, 6, 8, 10, 12, 14]
    assert losses["step 6"] == ["2.4000", "2.3375"]
    assert losses["step 14"] == ["1.6000", "1.5375"]
    assert tables["validation loss"]["step 10"] == ["1.7500", "1.6875"]
    assert tables["top-1"]["step 5"] == ["25.00%", "18.75%"]
    long, short = losses["curve"]
    assert len(long) > len(short)
    assert long[0] > long[-1], "the loss falls"
    assert "Code, packages, ops, data and machine are equal." in said.out
    assert "differs first at step 2: training accuracy" in said.out


@pytest.mark.usefixtures("pair")
def test_the_json_of_a_comparison_has_the_curves(neuscale: Command) -> None:
    found = neuscale("runs", "compare", "short", "long", "--json").json
    assert [row["name"] for row in found["rows"]] == ["short", "long"]
    assert found["curves"]["top-1"][1] == [[5 * (i + 1), x] for i, x in enumerate(TOP1)]
    assert found["curves"]["training loss"][0][0] == [2, pytest.approx(2.7375)]
    assert found["curves"]["validation loss"][0][-1] == [15, pytest.approx(1.9375)]
    assert found["verdict"]["first"]["step"] == 2


@pytest.mark.usefixtures("pair")
def test_the_picture_has_a_panel_for_each_curve_and_a_line_for_each_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neuscale.runs.folder import find_run

    saved: list[Figure] = []
    real = Figure.savefig

    def save(figure: Figure, *words: Any, **options: Any) -> None:
        saved.append(figure)
        real(figure, *words, **options)

    monkeypatch.setattr(Figure, "savefig", save)
    comparison = compare_runs([find_run("long"), find_run("short")])
    save_curves(comparison, tmp_path / "new" / "curves.png")
    [figure] = saved
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert list(panels) == ["training loss", "validation loss", "top-1"]
    lines = {line.get_label(): line for line in panels["top-1"].lines}
    assert list(lines) == ["long", "short"]
    assert [list(map(float, xy)) for xy in lines["long"].get_data()] == [[5, 10, 15, 20, 25], list(TOP1)]
    assert list(lines["short"].get_ydata()) == [0.1875, 0.6875, 0.4375]
    losses = [line for line in panels["training loss"].lines if line.get_label() == "short"]
    assert list(losses[0].get_xdata()) == [2, 4, 6, 8, 10, 12, 14]
    for axes in figure.axes:
        assert axes.get_xlabel() == "step"
        (low, high), (left, right) = axes.get_ylim(), axes.get_xlim()
        assert low < high, "more is higher"
        assert left < right
    legend = figure.axes[-1].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["long", "short"]
    assert [line.get_color() for line in panels["top-1"].lines] == [
        line.get_color() for line in panels["training loss"].lines
    ], "a run has one colour in all panels"
    with Image.open(tmp_path / "new" / "curves.png") as picture:
        assert picture.format == "PNG"
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file"):
        save_curves(comparison, tmp_path / "file" / "curves.png")
