"""Charts are read back through their own axes; the drawn values are the measured ones."""

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from neuscale.analysis.report_figures import MOST_POINTS, Series, confusion_chart, line_chart


@dataclass
class Drawn:
    """Contents of a chart, with positions converted to values through the axis labels."""

    curves: dict[str, list[tuple[float, float]]]
    dots: list[tuple[float, float, str]]
    steps: list[float]
    values: list[float]
    legend: list[tuple[str, str]]


def number(label: str) -> float:
    """Value of an axis label."""
    factor = 0.01 if label.endswith("%") else 1000.0 if label.endswith("k") else 1.0
    return float(label.rstrip("%k").replace(",", "")) * factor


def read_back(html: str) -> Drawn:
    """Convert positions to values by the first and last label of each axis; the labels between must fit."""
    root = ET.fromstring(f"<div>{html}</div>")
    across, up = [], []
    for text in root.iter("text"):
        at, value = (float(text.attrib["x"]), float(text.attrib["y"])), number(text.text or "")
        (up if text.get("text-anchor") == "end" else across).append((*at, value))
    rows = {line.attrib["y1"] for line in root.iter("line")}
    assert {f"{y:.1f}" for _, y, _ in up} == rows, "each label stands at its line"
    assert len({x for x, _, _ in up}) == len({y for _, y, _ in across}) == 1
    assert min(y for _, y, _ in across) > max(y for _, y, _ in up), "the steps stand below"

    def axis(places: list[tuple[float, float]]) -> tuple[float, float]:
        (p0, v0), *_, (p1, v1) = places
        slope = (v1 - v0) / (p1 - p0)
        for place, value in places:  # tolerance: positions are written to a tenth of a unit
            assert v0 + (place - p0) * slope == pytest.approx(value, abs=0.11 * abs(slope))
        return v0 - slope * p0, slope

    x0, dx = axis([(x, value) for x, _, value in across])
    y0, dy = axis([(y, value) for _, y, value in up])
    assert dx > 0 > dy, "later is further right, more is higher"

    def value_at(x: float, y: float) -> tuple[float, float]:
        return x0 + dx * x, y0 + dy * y

    curves = {
        line.attrib["class"]: [
            value_at(*map(float, pair.split(","))) for pair in line.attrib["points"].split()
        ]
        for line in root.iter("polyline")
    }
    _, _, width, height = map(float, next(root.iter("svg")).attrib["viewBox"].split())
    places = [pair.split(",") for line in root.iter("polyline") for pair in line.attrib["points"].split()]
    assert all(0 < float(x) < width and 0 < float(y) < height for x, y in places), "within the drawing"
    assert 0 < min(y for _, y, _ in up) < height / 4, "the axis fills the drawing"
    assert height * 3 / 4 < max(y for _, y, _ in up) < height
    dots = [
        (*value_at(float(c.attrib["cx"]), float(c.attrib["cy"])), c.findtext("title") or "")
        for c in root.iter("circle")
    ]
    legend = [(span.attrib["class"], span.text or "") for span in root.iter("span")]
    return Drawn(curves, dots, [v for _, _, v in across], [v for _, _, v in up], legend)


def assert_close(found: Sequence[tuple[float, float]], points: Sequence[tuple[int, float]]) -> None:
    """Assert equality within a tenth of a unit of a drawing of 460×240 units."""
    width, height = max(x for x, _ in points), max(y for _, y in points)
    assert [x for x, _ in found] == pytest.approx([x for x, _ in points], abs=width / 1000)
    assert [y for _, y in found] == pytest.approx([y for _, y in points], abs=height / 300)


LOSS = [(2, 2.75), (4, 1.0), (6, 1.5), (30, 0.4)]
VAL = [(10, 2.0), (20, 0.9), (40, 1.2)]


def test_two_curves_are_drawn_where_their_values_are() -> None:
    drawn = read_back(line_chart([Series("training", LOSS), Series("validation", VAL, "b", dots=True)]))
    assert_close(drawn.curves["a"], LOSS)
    assert_close(drawn.curves["b"], VAL)
    assert_close([(x, y) for x, y, _ in drawn.dots], VAL)
    assert drawn.legend == [("a", "training"), ("b", "validation")]
    assert drawn.values[0] == 0.0
    assert drawn.values[-1] >= 2.75
    assert drawn.steps[0] == 0
    assert drawn.steps[-1] <= 40, "no label beyond the last step"


def test_a_dot_tells_its_curve_its_step_and_its_value() -> None:
    series = Series("valid<ation", [(1000, 0.1234), (2000, 0.56789)], "b", dots=True)
    titles = [title for _, _, title in read_back(line_chart([series], percent=True)).dots]
    assert titles == ["valid<ation, step 1,000: 12.34%", "valid<ation, step 2,000: 56.79%"]
    titles = [title for _, _, title in read_back(line_chart([series])).dots]
    assert titles == ["valid<ation, step 1,000: 0.1234", "valid<ation, step 2,000: 0.5679"]


def test_shares_have_an_axis_in_percent() -> None:
    points = [(1, 0.1), (2, 0.95)]
    html = line_chart([Series("validation", points)], percent=True)
    assert ">100%</text>" in html
    drawn = read_back(html)
    assert_close(drawn.curves["a"], points)
    assert drawn.legend == [], "one curve needs no legend"


@pytest.mark.parametrize("top", [3e-4, 0.7, 7.0, 800.0, 9_000.0, 12_000.0, 24_000.0, 1.1e6])
def test_the_labels_of_an_axis_are_those_of_its_places(top: float) -> None:
    """Throughput reaches thousands of img/s: the label of 12,500 must not be 12k."""
    points = [(5, top / 3), (10, top)]
    drawn = read_back(line_chart([Series("speed", points)]))
    assert_close(drawn.curves["a"], points)
    assert 3 <= len(drawn.values) <= 7


def test_an_axis_that_does_not_begin_at_zero_holds_all_values() -> None:
    points = [(1, 10.25), (2, 10.5), (3, 10.0)]
    drawn = read_back(line_chart([Series("x", points)], from_zero=False))
    assert [y for _, y in drawn.curves["a"]] == pytest.approx([10.25, 10.5, 10.0], abs=0.005)
    assert 9 < drawn.values[0] <= 10.0
    assert 10.5 <= drawn.values[-1] < 11


def test_what_is_no_number_leaves_a_gap_and_moves_nothing() -> None:
    broken = [(1, 1.0), (2, math.nan), (3, 3.0), (9, math.inf)]
    drawn = read_back(line_chart([Series("x", broken)]))
    assert_close(drawn.curves["a"], [(1, 1.0), (3, 3.0)])
    assert line_chart([Series("x", [(1, math.nan)]), Series("y", [])]) == ""


def test_a_curve_without_points_is_not_in_the_legend() -> None:
    drawn = read_back(line_chart([Series("training", []), Series("validation", VAL, "b")]))
    assert drawn.legend == [("b", "validation")]


def test_a_value_that_stays_is_drawn_at_its_height() -> None:
    drawn = read_back(line_chart([Series("lr", [(1, 0.5), (2, 0.5)])], from_zero=False))
    assert [y for _, y in drawn.curves["a"]] == pytest.approx([0.5, 0.5], abs=0.005)


def test_a_long_curve_keeps_its_first_and_its_last_point() -> None:
    points = [(step, float(step)) for step in range(1, 5002)]
    found = read_back(line_chart([Series("x", points)])).curves["a"]
    assert len(found) == MOST_POINTS
    assert_close([found[0], found[-1]], [points[0], points[-1]])
    assert all(x == pytest.approx(y, abs=30) for x, y in found)


# Cat: 6 of 8 right, 2 predicted as dog. No dog in the data. Owl: 300 of 400 right, 100 predicted as cat.
COUNTS = [[6, 2, 0], [0, 0, 0], [100, 0, 300]]
CLASSES = ["cat", "d<g", "a very long name of an owl"]


def test_a_confusion_matrix_has_the_true_class_in_its_rows() -> None:
    root = ET.fromstring(confusion_chart(COUNTS, CLASSES))
    cells = {}
    for rect in root.iter("rect"):
        place = float(rect.attrib["x"]), float(rect.attrib["y"])
        shown = rect.attrib["class"], float(rect.attrib["fill-opacity"]), rect.findtext("title")
        cells[place] = shown
    xs, ys = (sorted({place[i] for place in cells}) for i in (0, 1))
    (left, right), (top, bottom) = (xs[0], xs[-1]), (ys[0], ys[-1])
    assert right - left == bottom - top > 0
    middle = (left + right) / 2
    owl = "a very long name of an owl"
    assert cells == {
        (left, top): ("right", pytest.approx(math.sqrt(6 / 8), abs=1e-3), "cat: 6 of 8 right"),
        (middle, top): ("wrong", pytest.approx(0.5, abs=1e-3), "cat taken for d<g: 2 of 8"),
        (left, bottom): ("wrong", pytest.approx(0.5, abs=1e-3), f"{owl} taken for cat: 100 of 400"),
        (right, bottom): ("right", pytest.approx(math.sqrt(0.75), abs=1e-3), f"{owl}: 300 of 400 right"),
    }


def test_the_counts_stand_in_their_cells_and_the_names_beside_their_rows_and_columns() -> None:
    root = ET.fromstring(confusion_chart(COUNTS, CLASSES))
    size = float(next(root.iter("rect")).attrib["width"])
    boxes = {
        (rect.findtext("title") or "").split(": ")[1].split(" ")[0]: tuple(
            float(rect.attrib[name]) for name in ("x", "y")
        )
        for rect in root.iter("rect")
    }
    inside = [text for text in root.iter("text") if text.get("text-anchor") == "middle"]
    assert {text.text for text in inside} == boxes.keys()
    for text in inside:
        x, y = boxes[text.text or ""]
        assert x < float(text.attrib["x"]) < x + size
        assert y < float(text.attrib["y"]) < y + size
    on = {text.text for text in inside if text.get("class") == "on"}
    assert on == {"6", "300"}, "light figures on the dark cells of the diagonal alone"

    rows = [text for text in root.iter("text") if text.get("text-anchor") == "end"]
    assert [text.text for text in rows] == ["cat", "d<g", "a very long name of…"]
    heights = [float(text.attrib["y"]) for text in rows]
    assert boxes["6"][1] < heights[0] < boxes["6"][1] + size
    assert boxes["300"][1] < heights[2] < boxes["300"][1] + size
    columns = [text for text in root.iter("text") if "rotate" in text.get("transform", "")]
    assert [text.text for text in columns] == ["cat", "d<g", "a very long name of…"]
    places = [re.findall(r"[\d.]+", text.attrib["transform"])[0] for text in columns]
    assert boxes["6"][0] < float(places[0]) < boxes["6"][0] + size
    assert boxes["300"][0] < float(places[2]) < boxes["300"][0] + size


def test_a_larger_matrix_has_no_figures_and_fits_the_page() -> None:
    count = 28
    counts = [[1 + i + j for j in range(count)] for i in range(count)]
    root = ET.fromstring(confusion_chart(counts, [f"class {i}" for i in range(count)]))
    assert not [text for text in root.iter("text") if text.get("text-anchor") == "middle"]
    assert len(list(root.iter("rect"))) == count**2
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for rect in root.iter("rect"):
        assert float(rect.attrib["x"]) + float(rect.attrib["width"]) <= width <= 720
        assert float(rect.attrib["y"]) + float(rect.attrib["height"]) <= height
