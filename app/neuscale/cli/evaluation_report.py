"""Output of `neuscale eval` as tables or JSON."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from neuscale.cli.console import escape, out, print_json
from neuscale.evaluation.evaluate import Evaluation
from neuscale.evaluation.multi_label import THRESHOLD, MultiLabelEvaluation
from neuscale.inference.evaluate_run import EvaluatedRun


def print_evaluation(name: str, evaluated: EvaluatedRun, split: str, tta: str) -> None:
    """Print one JSON object; results that were not requested are left out."""
    result, classes = evaluated.evaluation, evaluated.classes
    found: dict[str, Any] = {
        "run": name,
        "checkpoint": evaluated.checkpoint,
        "step": evaluated.step,
        "weights": evaluated.weights,
        "split": split,
        "tta": tta,
        "samples": result.samples,
        **result.scalars(),
        "per_class": dict(zip(classes, result.per_class(), strict=True)),
    }
    if isinstance(result, Evaluation):
        found |= {"ece": result.calibration.ece, "calibration": result.calibration.record()}
    if evaluated.corrupted:
        found["corrupted_top1" if isinstance(result, Evaluation) else "corrupted_map"] = _mean(
            evaluated.corrupted
        )
        found["corruptions"] = evaluated.corrupted
    if evaluated.latency:
        found["latency"] = [asdict(measured) for measured in evaluated.latency]
    print_json(found)


def show_evaluation(
    name: str, evaluated: EvaluatedRun, split: str, tta: str, reliability: Path | None
) -> None:
    """Print tables, followed by the metrics over all images."""
    result, classes = evaluated.evaluation, evaluated.classes
    title = f"{escape(name)}: {split}, {escape(evaluated.checkpoint)}"
    if isinstance(result, Evaluation):
        _show_classes(title, result, classes)
    else:
        _show_average_precisions(title, result, classes)
    if evaluated.corrupted:
        _show_corruptions(evaluated, result.headline[0])
    if evaluated.latency:
        _show_latency(evaluated, tta)
    heading, value = result.headline
    more = ece = ""
    if isinstance(result, Evaluation):
        out.print(f"balanced accuracy {result.balanced_accuracy:.2%}   macro-F1 {result.macro_f1:.2%}")
        more = f"   top-5 {result.top5:.2%}" if len(classes) > 5 else ""
        ece = f"   ECE {result.calibration.ece:.2%}"
    else:
        f1 = f"macro-F1 {result.macro_f1:.2%}   micro-F1 {result.micro_f1:.2%}"
        out.print(f"{f1}   all labels right {result.exact:.2%}, at a probability of {THRESHOLD:.0%}")
    if result.own:
        out.print("   ".join(f"{escape(name)} {number:.4f}" for name, number in result.own.items()))
    out.print(
        f"{heading} [bold]{value:.2%}[/]{more}   loss {result.loss:.4f}{ece}   on {result.samples:,} images"
        f"{', mirrored as well' if tta == 'flip' else ''}"
    )
    if evaluated.corrupted:
        out.print(f"{heading} [bold]{_mean(evaluated.corrupted):.2%}[/] on corrupted images, the mean of all")
    if reliability is not None:
        out.print(f"The reliability diagram is {escape(reliability)}")


def _show_average_precisions(title: str, result: MultiLabelEvaluation, classes: list[str]) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("class")
    for column in ("images", "average precision", "predicted", "right"):
        table.add_column(column, justify="right")
    values = result.average_precision
    for i in sorted(range(len(classes)), key=lambda i: (values[i] is None, values[i] or 0.0)):
        value = values[i]
        counts = [f"{int(found[i]):,}" for found in (result.actual, result.predicted, result.hits)]
        share = "no images" if value is None else f"{value:.1%}"
        table.add_row(escape(classes[i]), counts[0], share, *counts[1:])
    out.print(table)


def _show_classes(title: str, result: Evaluation, classes: list[str]) -> None:
    accuracy = result.per_class()
    table = Table(title=title, title_justify="left")
    table.add_column("class")
    table.add_column("images", justify="right")
    table.add_column("accuracy", justify="right")
    table.add_column("most often taken for")
    counts = result.confusion.sum(1).tolist()
    for i in sorted(range(len(classes)), key=lambda i: (accuracy[i] is None, accuracy[i] or 0.0)):
        wrong = result.confusion[i].clone()
        wrong[i] = 0
        other = int(wrong.argmax())
        taken_for = f"{escape(classes[other])} ({int(wrong[other])})" if int(wrong[other]) else ""
        share = accuracy[i]
        table.add_row(
            escape(classes[i]), f"{counts[i]:,}", "no images" if share is None else f"{share:.1%}", taken_for
        )
    out.print(table)


def _show_corruptions(evaluated: EvaluatedRun, heading: str) -> None:
    table = Table(title=f"{heading} on corrupted images, by severity", title_justify="left")
    table.add_column("corruption")
    for column in ("1", "2", "3", "4", "5", "mean"):
        table.add_column(column, justify="right")
    for kind, top1 in evaluated.corrupted.items():
        shares = [*top1, sum(top1) / len(top1)]
        table.add_row(kind.replace("_", " "), *(f"{share:.1%}" for share in shares))
    out.print(table)


def _show_latency(evaluated: EvaluatedRun, tta: str) -> None:
    title = "a forward pass" if tta == "none" else "two forward passes, one of them of mirror images"
    table = Table(title=title, title_justify="left")
    for column in ("batch", "median ms", "p95 ms", "img/s"):
        table.add_column(column, justify="right")
    for measured in evaluated.latency:
        table.add_row(
            f"{measured.batch_size:,}",
            f"{measured.median_ms:,.2f}",
            f"{measured.p95_ms:,.2f}",
            f"{measured.images_per_second:,.0f}",
        )
    out.print(table)


def _mean(corrupted: dict[str, list[float]]) -> float:
    """Unweighted mean over all kinds and severities."""
    values = [share for top1 in corrupted.values() for share in top1]
    return sum(values) / len(values)
