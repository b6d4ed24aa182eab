"""Plot the curves of a run, for the README.

.venv/bin/python benchmarks/curves.py runs/NAME docs/NAME.png
"""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def draw(curves: list[dict[str, Any]], picture: Path) -> None:
    """Plot loss and accuracy in training and validation over the steps, and save to `picture`."""
    figure = Figure(figsize=(9, 3), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    points = [line for line in curves if line["split"] == "train"]
    val = [line for line in curves if line["split"] == "val"]
    left.plot([p["step"] for p in points], [p["loss"] for p in points])
    left.plot([p["step"] for p in val], [p["loss"] for p in val], "o")
    left.set(xlabel="step", ylabel="loss", ylim=(0, None))
    right.plot([p["step"] for p in points], [100 * p["accuracy"] for p in points], label="training")
    right.plot([p["step"] for p in val], [100 * p["top1"] for p in val], "o", label="validation")
    right.set(xlabel="step", ylabel="top-1, %", ylim=(0, 100))
    right.legend(loc="lower right", frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    picture.parent.mkdir(exist_ok=True)
    figure.savefig(picture)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("picture", type=Path)
    given = parser.parse_args()
    lines = (given.run / "metrics.jsonl").read_text().splitlines()
    draw([json.loads(line) for line in lines], given.picture)


if __name__ == "__main__":
    main()
