"""Report of a run as a single, self-contained HTML file, which opens without a network."""

import hashlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml
from torch import Tensor

from neuscale.analysis.listing import metrics_of, state_of
from neuscale.analysis.report_figures import (
    Series,
    confusion_chart,
    confusion_picture,
    line_chart,
    seen_images,
)
from neuscale.errors import UserError, disk_error
from neuscale.evaluation.evaluate import AnyEvaluation
from neuscale.evaluation.multi_label import MultiLabelEvaluation
from neuscale.fs import make_folder, write_atomically
from neuscale.progress import Progress
from neuscale.runs.differences import code_words
from neuscale.runs.evaluation_file import stored_evaluation
from neuscale.runs.folder import RunFolder
from neuscale.runs.manifest import load_manifest
from neuscale.units import duration, now
from neuscale.untrusted import is_plain_name, printable, read_regular, reason_of
from neuscale.version import __version__

TEMPLATE = Path(__file__).with_name("report.html")


# With more classes, the confusion matrix is drawn as a picture, and the list shows only the worst ones.
MOST_CELLS = 30


MOST_BARS = 40


LONGEST_DIFF = 200_000


def write_report(run: RunFolder, path: Path, checkpoint: str | None, progress: Progress) -> list[str]:
    """Write the page of `run`; return notes on what is missing from it.

    Images and evaluation are from `checkpoint`, else from the best one. If that, or the run's data, is
    missing, the page has the last evaluation that the run stored. Raises UserError if the manifest
    cannot be read, `checkpoint` is missing, or the file cannot be written.
    """
    manifest = load_manifest(run.manifest_file)
    notes: list[str] = []
    page: dict[str, Any] = {}
    try:
        seen = seen_images(run, manifest, checkpoint or "best", progress)
        page |= {"worst": seen.worst, "pairs": seen.pairs, "rendering": seen.rendering}
        page["evaluation"] = _evaluation(seen.evaluation, seen.classes, seen.words)
    except UserError as error:
        if checkpoint is not None:
            raise
        notes.append(f"Without images: {error.problem}")
        stored = stored_evaluation(run.path)
        if stored is not None:
            words = f"After step {stored.step:,}, as the run stored it."
            page["evaluation"] = _evaluation(stored.evaluation, stored.classes, words)
    page |= {
        "name": run.name,
        "subtitle": _subtitle(manifest, state_of(run, manifest)),
        "notes": [*notes, *_warnings(manifest)],
        "numbers": _numbers(manifest, page.get("evaluation")),
        "charts": _charts(metrics_of(run)),
        "facts": _facts(manifest),
        "config": yaml.safe_dump(manifest["config"], sort_keys=False) if manifest["config"] else "",
        "diff": _diff(run, manifest),
        "packages": list(manifest["packages"].items()),
        "version": __version__,
        "now": now(),
    }
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.ChainableUndefined, finalize=without_controls
    )
    html = environment.from_string(TEMPLATE.read_text()).render(page)
    try:
        make_folder(path.parent)
        write_atomically(path, html)
    except OSError as error:
        raise disk_error(error, path) from error
    return notes


def without_controls(value: Any) -> Any:
    """Escape control characters in text or markup, which could control a terminal or the text direction."""
    return type(value)(printable(value, lines=True)) if isinstance(value, str) else value


def _subtitle(manifest: dict[str, Any], state: str) -> str:
    config = manifest["config"] or {}
    model = config.get("model", {})
    what = model.get("arch") or model.get("name") or "a model"
    recipe = f", experiment {config['experiment']}" if config.get("experiment") else ""
    return f"{what} on {manifest['data']['name']}{recipe}, seed {manifest['seed']}: {state}"


def _warnings(manifest: dict[str, Any]) -> list[str]:
    found = [f"It failed: {manifest['error']}"] if manifest["error"] else []
    if replayed := manifest.get("replay"):
        forced = " It was made with --force, on other data." if replayed["forced"] else ""
        found.append(f"A replay of {replayed['of']}: {replayed['verdict']}.{forced}")
    return found


def _numbers(manifest: dict[str, Any], evaluation: dict[str, Any] | None) -> list[tuple[str, str]]:
    result = manifest["result"] or {}
    found = list(evaluation["numbers"]) if evaluation else []
    if result:
        found += [
            ("of training", duration(result["train_seconds"])),
            ("images a second", f"{result['images_per_second']:,.0f}"),
            ("steps", f"{result['steps']:,}"),
        ]
    return found


def _charts(lines: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    def curve(split: str, name: str) -> list[tuple[int, float]]:
        return [(line["step"], line[name]) for line in lines if line.get("split") == split and name in line]

    def one(name: str) -> list[Series]:
        return [Series(name.replace("_", " "), curve("train", name))]

    top1 = Series("validation", curve("val", "top1"), "b", dots=True)
    precision = Series("validation", curve("val", "map"), "b", dots=True)
    accuracy = Series("training", curve("train", "accuracy"))
    right = ("Top-1", [accuracy, top1])
    if precision.points:
        right = ("mAP, and the training labels that are right", [accuracy, precision])
    loss = Series("validation", curve("val", "loss"), "b", dots=True)
    charts = [
        ("Loss", line_chart([Series("training", curve("train", "loss")), loss])),
        (right[0], line_chart(right[1], percent=True)),
        ("Learning rate", line_chart(one("lr"))),
        ("Throughput, images a second", line_chart(one("images_per_second"))),
        ("Share of time spent waiting for data", line_chart(one("data_wait"), percent=True)),
        ("Memory, GB", line_chart(one("memory_gb"))),
    ]
    return [(title, chart) for title, chart in charts if chart]


def _evaluation(result: AnyEvaluation, classes: list[str], words: str) -> dict[str, Any]:
    """The section of the page about an evaluation."""
    if isinstance(result, MultiLabelEvaluation):
        return _several_labels(result, classes, words)
    numbers = [("top-1", f"{result.top1:.2%}"), ("loss", f"{result.loss:.4f}")]
    if len(classes) > 5:
        numbers.insert(1, ("top-5", f"{result.top5:.2%}"))
    numbers += [
        ("balanced accuracy", f"{result.balanced_accuracy:.2%}"),
        ("macro-F1", f"{result.macro_f1:.2%}"),
        *((name, f"{value:.4f}") for name, value in result.own.items()),
    ]
    counts: Tensor = result.confusion
    few = len(classes) <= MOST_CELLS
    confusion = confusion_chart(counts.tolist(), classes) if few else confusion_picture(counts)
    accuracy = result.per_class()
    order = sorted(range(len(classes)), key=lambda i: (accuracy[i] is None, accuracy[i] or 0.0))
    title = "Accuracy of each class, the worst first"
    if len(order) > MOST_BARS:
        title = f"Accuracy of the worst {MOST_BARS} of {len(order)} classes"
    bars = [_bar(counts[i], i, accuracy[i], classes) for i in order[:MOST_BARS]]
    return {"words": words, "numbers": numbers, "confusion": confusion, "bars": bars, "bars_title": title}


def _several_labels(result: MultiLabelEvaluation, classes: list[str], words: str) -> dict[str, Any]:
    numbers = [("mAP", f"{result.mean_average_precision:.2%}"), ("loss", f"{result.loss:.4f}")]
    numbers += [("macro-F1", f"{result.macro_f1:.2%}"), ("micro-F1", f"{result.micro_f1:.2%}")]
    numbers += [(name, f"{value:.4f}") for name, value in result.own.items()]
    values = result.average_precision
    order = sorted(range(len(classes)), key=lambda i: (values[i] is None, values[i] or 0.0))
    bars = []
    for i in order[:MOST_BARS]:
        value = values[i]
        bars.append(
            {
                "name": classes[i],
                "percent": f"{100 * (value or 0):.1f}",
                "share": "no images" if value is None else f"{value:.1%}",
                "images": f"{int(result.actual[i]):,} images",
                "taken_for": f"predicted of {int(result.predicted[i]):,}, right {int(result.hits[i]):,}",
            }
        )
    title = "Average precision of each class, the worst first"
    return {"words": words, "numbers": numbers, "confusion": "", "bars": bars, "bars_title": title}


def _bar(counts: Tensor, label: int, accuracy: float | None, classes: list[str]) -> dict[str, str]:
    wrong = counts.clone()
    wrong[label] = 0
    other = int(wrong.argmax())
    return {
        "name": classes[label],
        "percent": f"{100 * (accuracy or 0):.1f}",
        "share": "no images" if accuracy is None else f"{accuracy:.1%}",
        "images": f"{int(counts.sum()):,} images",
        "taken_for": f"{int(wrong[other]):,} taken for {classes[other]}" if int(wrong[other]) else "",
    }


def _facts(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    machine, data, ops = manifest["machine"], manifest["data"], manifest["ops"]
    result, image = manifest["result"] or {}, manifest["image"] or {}
    threads = f", {machine['threads']} threads" if machine["threads"] else ""
    resumed = [f"step {resume['step']:,}" for resume in manifest["resumed"]]
    facts = [
        ("command", shlex.join(["neuscale", *manifest["command"][1:]])),
        ("started, ended", f"{manifest['started']}, {manifest['ended'] or 'not recorded'}"),
        ("resumed at", ", ".join(resumed)),
        ("data", f"{data['name']}, fingerprint {data['fingerprint']}"),
        ("code", f"neuscale {manifest['neuscale']}, {code_words(manifest['code'])}"),
        ("weights", f"sha256 {result['weights_sha256']}" if result.get("weights_sha256") else ""),
        ("torch", f"{manifest['packages'].get('torch')}, Python {manifest['python']}"),
        ("lock", f"sha256 {manifest['lock_sha256']}" if manifest["lock_sha256"] else ""),
        ("native ops", f"{ops['kind']}" + (f" ({ops['reason']})" if ops["reason"] else "")),
        ("image", f"{image.get('name') or image.get('version')}" if image else ""),
        ("machine", f"{machine['processes']} × {machine['device']}{threads}, {manifest['precision']}"),
        ("processor", machine["cpu"] or ""),
        ("system", f"{machine['system'] or ''}, host {machine['host'] or 'unknown'}"),
        ("driver", f"{machine['driver']}, CUDA {machine['cuda']}" if machine["driver"] else ""),
    ]
    return [(label, value) for label, value in facts if value]


def _diff(run: RunFolder, manifest: dict[str, Any]) -> str:
    known = (manifest["code"] or {}).get("diff")
    if not known:
        return ""
    if not is_plain_name(known["file"]):
        return f"The manifest names {known['file']!r}, which is not a file of this run."
    try:
        content = read_regular(run.path / known["file"])
    except OSError as error:
        return f"{known['file']} cannot be read ({reason_of(error)})"
    if hashlib.sha256(content).hexdigest() != known["sha256"]:
        return f"{known['file']} is not what the manifest recorded: its sha256 differs"
    text = content.decode(errors="replace")
    return text if len(text) <= LONGEST_DIFF else f"{len(text):,} characters: see {known['file']}"
