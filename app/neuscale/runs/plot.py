"""Curves of several runs in one picture."""

from pathlib import Path

from neuscale.errors import disk_error
from neuscale.files import make_folder, replacing
from neuscale.runs.compare import Comparison


def save_curves(comparison: Comparison, path: Path) -> None:
    """Writes a PNG: a panel for each kind of curve, a line for each run. Raises UserError."""
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
