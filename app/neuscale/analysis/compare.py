"""Compare runs side by side: differences in configuration and environment, results and curves."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuscale.analysis.listing import RunRow, metrics_of, run_row
from neuscale.errors import disk_error
from neuscale.fs import make_folder, replacing
from neuscale.runs.differences import differences
from neuscale.runs.folder import RunFolder
from neuscale.runs.manifest import load_manifest

_BLOCKS = "▁▂▃▄▅▆▇█"


SPARK_WIDTH = 32


COMMON_STEPS = 8


@dataclass(frozen=True)
class Comparison:
    """Comparison of runs; every list has one value per run.

    `configuration` and `environment`: values by field, for fields that differ between any two runs;
    `curves`: by the curve's name, the points of each run as (step, value).
    """

    rows: list[RunRow]
    configuration: dict[str, list[Any]]
    environment: dict[str, list[Any]]
    curves: dict[str, list[list[tuple[int, float]]]]


# Curves: split, name of the metric, and title.
_CURVES = (
    ("train", "loss", "training loss"),
    ("val", "loss", "validation loss"),
    ("val", "top1", "top-1"),
    ("val", "map", "mAP"),
)


def compare_runs(runs: Sequence[RunFolder]) -> Comparison:
    """Compare two or more runs. Raises UserError for a manifest that cannot be read."""
    manifests = [load_manifest(run.manifest_file) for run in runs]
    configuration: dict[str, list[Any]] = {}
    environment: dict[str, list[Any]] = {}
    for i, manifest in enumerate(manifests):
        for found in differences(manifests[0], manifest):
            table = configuration if found.area == "config" else environment
            name = found.what if found.area in ("config", found.what) else f"{found.area}: {found.what}"
            # Runs without a difference from the first one have its value.
            table.setdefault(name, [found.before] * len(runs))[i] = found.now
    points = [metrics_of(run) for run in runs]
    curves = {title: [_curve(lines, split, name) for lines in points] for split, name, title in _CURVES}
    return Comparison([run_row(run) for run in runs], configuration, environment, curves)


def _curve(lines: Sequence[Mapping[str, Any]], split: str, name: str) -> list[tuple[int, float]]:
    return [(line["step"], line[name]) for line in lines if line.get("split") == split and name in line]


def common_points(curves: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, list[float]]]:
    """(step, value of each curve) at up to 8 of the common steps, including the last."""
    values = [dict(curve) for curve in curves]
    steps = sorted(set.intersection(*(set(known) for known in values))) if values else []
    if len(steps) > COMMON_STEPS:
        last = len(steps) - 1
        steps = [steps[round(i * last / (COMMON_STEPS - 1))] for i in range(COMMON_STEPS)]
    return [(step, [known[step] for known in values]) for step in steps]


def sparkline(curve: Sequence[tuple[int, float]], last: int, low: float, high: float) -> str:
    """The curve over the steps up to `last` in one line of text; a gap for a value that is not finite."""
    line = ""
    for column in range(SPARK_WIDTH):
        step = last * (column + 1) / SPARK_WIDTH
        if not curve or step > curve[-1][0] + last / SPARK_WIDTH:
            break
        value = min(curve, key=lambda point: abs(point[0] - step))[1]
        share = (value - low) / ((high - low) or 1.0)
        line += _BLOCKS[round(share * (len(_BLOCKS) - 1))] if math.isfinite(value) else " "
    return line


def save_curves(comparison: Comparison, path: Path) -> None:
    """Write a PNG with one panel per kind of curve and one line per run. Raises UserError."""
    from matplotlib.figure import Figure

    names = [row.name for row in comparison.rows]
    shown = {title: curves for title, curves in comparison.curves.items() if any(curves)}
    figure = Figure(figsize=(4.5 * max(1, len(shown)), 3.4), dpi=110, layout="constrained")
    panels = figure.subplots(1, max(1, len(shown)), squeeze=False)[0]
    for axes, (title, curves) in zip(panels, shown.items(), strict=False):
        for name, curve in zip(names, curves, strict=True):
            marker = "o" if len(curve) < 20 else None
            axes.plot([s for s, _ in curve], [v for _, v in curve], marker=marker, markersize=3, label=name)
        axes.set(xlabel="step", title=title)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    panels[-1].legend(frameon=False, fontsize=8)
    try:
        make_folder(path.parent)
        with replacing(path) as part:
            figure.savefig(part, format="png")
    except OSError as error:
        raise disk_error(error, path) from error
