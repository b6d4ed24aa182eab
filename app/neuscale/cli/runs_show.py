"""`neuscale runs show` and `neuscale runs compare`: details of one run, and several side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuscale.cli.options import AsJson, RunName
from neuscale.errors import UsageError

if TYPE_CHECKING:
    from neuscale.analysis.compare import Comparison
    from neuscale.analysis.listing import RunRow
    from neuscale.runs.folder import RunFolder


def show_command(run: RunName, as_json: AsJson = False) -> None:
    """Show one run in full.

    What was asked for, by which code, on what, and what came of it.
    """
    from neuscale.analysis.listing import run_row
    from neuscale.cli.console import print_json
    from neuscale.runs.folder import best_checkpoint, checkpoint_paths, find_run
    from neuscale.runs.manifest import load_manifest

    found = find_run(run)
    manifest = load_manifest(found.manifest_file)
    row = run_row(found)
    if as_json:
        best = best_checkpoint(found.checkpoints)
        checkpoints = [{"path": str(p), "best": p == best} for p in checkpoint_paths(found.checkpoints)]
        print_json({"run": str(found.path), "state": row.state, "checkpoints": checkpoints, **manifest})
        return
    _show(found, row, manifest)


def _show(run: "RunFolder", row: "RunRow", manifest: dict[str, Any]) -> None:
    from rich.table import Table

    from neuscale.analysis.listing import metrics_of
    from neuscale.cli.console import escape, out

    table = Table(title=f"{escape(run.name)}: {escape(row.state)}", title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _facts(run, row, manifest).items():
        if value:
            table.add_row(name, escape(value))
    out.print(table)
    for resume in manifest["resumed"]:
        changes = [_change_words(change) for change in resume["changed"]]
        out.print(
            f"resumed at step {resume['step']:,} ({escape(resume['time'] or '')})"
            + (f" with {escape('; '.join(changes))}" if changes else ", nothing changed")
        )
    evaluations = metrics_of(run, "val")
    for line in evaluations[-8:]:
        name, metric = ("mAP", "map") if "map" in line else ("top-1", "top1")
        out.print(f"step {line['step']:,}: {name} {line[metric]:.2%}, loss {line['loss']:.4f}")
    if replayed := manifest.get("replay"):
        forced = ", made with --force" if replayed["forced"] else ""
        out.print(f"replay of {escape(replayed['of'])}{forced}: {escape(replayed['verdict'])}")


def _change_words(change: dict[str, Any]) -> str:
    from neuscale.runs.differences import Difference

    return str(Difference(**change))


def _facts(run: "RunFolder", row: "RunRow", manifest: dict[str, Any]) -> dict[str, str]:
    """Rows of the table by label; unknown values are empty strings."""
    import shlex

    from neuscale.runs.differences import code_words, short
    from neuscale.runs.folder import best_checkpoint, checkpoint_paths
    from neuscale.units import duration, quantity

    machine, data, config = manifest["machine"], manifest["data"], manifest["config"]
    result, ops = manifest["result"] or {}, manifest["ops"]
    best = best_checkpoint(run.checkpoints)
    names = [f"{p.name}{' (best)' if p == best else ''}" for p in checkpoint_paths(run.checkpoints)]
    packages = manifest["packages"]
    processes, threads = machine["processes"], machine["threads"]
    share = f"{processes} process{'es' if processes > 1 else ''}" + (
        f", {threads} threads each" if threads else ""
    )
    speed = f" at {row.speed:,.0f} img/s" if row.speed else ""
    built = (ops["build"] or {}).get("version")
    image, diff = manifest["image"] or {}, (manifest["code"] or {}).get("diff")
    return {
        "command": shlex.join(["neuscale", *manifest["command"][1:]]),
        "experiment": str((config or {}).get("experiment") or ""),
        "seed": f"{manifest['seed']}, {manifest['precision']}",
        "data": f"{data['name']}, {data['counts'].get('train', 0):,} training images"
        f" (fingerprint {short(data['fingerprint'])})",
        "mAP" if row.map is not None else "top-1": f"{row.score.removeprefix('mAP ')} at best"
        if row.score
        else "",
        "training": f"{row.steps or 0:,} steps" + (f" in {duration(row.time)}{speed}" if row.time else ""),
        "weights": f"sha256 {result['weights_sha256']}" if result.get("weights_sha256") else "",
        "started, ended": f"{manifest['started']}, {manifest['ended'] or 'not yet, or killed'}",
        "error": manifest["error"] or "",
        "code": code_words(manifest["code"]) + (f", in {diff['file']}" if diff else ""),
        "packages": f"torch {packages.get('torch')} and {len(packages) - 1} more, Python {manifest['python']}"
        + (f", lock {short(manifest['lock_sha256'])}" if manifest["lock_sha256"] else ""),
        "ops": f"{ops['kind']}" + (f", neuscale_ops {built}" if built and ops["kind"] == "fused" else ""),
        "image": f"{image.get('name') or 'neuscale ' + str(image.get('version'))}" if image else "",
        "machine": f"{machine['device']}; {share}; {machine['cpu']}, host {machine['host']}",
        "driver": f"{machine['driver']}, CUDA {machine['cuda']}" if machine["driver"] else "",
        "checkpoints": ", ".join(names) or "none",
        "folder": f"{run.path} ({quantity(row.size or 0, 'B')})",
    }


def compare_command(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN…", help="Two runs or more.")],
    png: Annotated[Path | None, typer.Option("--png", help="Also write the curves as a picture.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare runs side by side.

    What differs in the configuration first, then results, curves, and where they ran.
    """
    from dataclasses import asdict

    from neuscale.analysis.compare import compare_runs
    from neuscale.analysis.equality import compare_results
    from neuscale.cli.console import err, escape, out, print_json
    from neuscale.runs.folder import find_run

    if len(runs) < 2:
        raise UsageError("compare takes two runs or more.", "'neuscale runs list' shows which there are.")
    found = [find_run(name) for name in runs]
    comparison = compare_runs(found)
    verdict = compare_results(found[0], found[1]) if len(found) == 2 else None
    if png is not None:
        from neuscale.analysis.compare import save_curves

        save_curves(comparison, png)
    if as_json:
        print_json(asdict(comparison) | {"verdict": asdict(verdict) if verdict else None})
        return
    _show_comparison(comparison)
    if verdict:
        out.print(escape(verdict.words))
    if png is not None:
        err.print(f"The curves are {escape(png)}")


def _show_comparison(comparison: "Comparison") -> None:
    import math

    from neuscale.analysis.compare import common_points, sparkline
    from neuscale.cli.console import out
    from neuscale.units import duration

    rows = comparison.rows
    if comparison.configuration:
        _print("configuration", rows, {n: list(map(_value, v)) for n, v in comparison.configuration.items()})
    else:
        out.print("The configurations are equal.")
    results = {
        "state": [row.state for row in rows],
        "best top-1": [row.score for row in rows],
        "loss": ["" if row.loss is None else f"{row.loss:.4f}" for row in rows],
        "steps": ["" if row.steps is None else f"{row.steps:,}" for row in rows],
        "time": ["" if row.time is None else duration(row.time) for row in rows],
        "img/s": ["" if row.speed is None else f"{row.speed:,.0f}" for row in rows],
    }
    _print("results", rows, results)
    for title, curves in comparison.curves.items():
        points = common_points(curves)
        values = [value for curve in curves for _, value in curve if math.isfinite(value)]
        if not values:
            continue
        show = (lambda x: f"{x:.2%}") if title in ("top-1", "mAP") else (lambda x: f"{x:.4f}")
        lines = {f"step {step:,}": list(map(show, at)) for step, at in points}
        if any(len(curve) > 2 for curve in curves):
            last = max(curve[-1][0] for curve in curves if curve)
            lines["curve"] = [sparkline(curve, last, min(values), max(values)) for curve in curves]
        if lines:
            _print(title, rows, lines)
    if comparison.environment:
        _print("environment", rows, {n: list(map(_value, v)) for n, v in comparison.environment.items()})
    else:
        out.print("Code, packages, ops, data and machine are equal.")


def _value(value: Any) -> str:
    return "none" if value is None else str(value)


def _print(title: str, rows: "list[RunRow]", lines: dict[str, list[str]]) -> None:
    from rich.table import Table

    from neuscale.cli.console import escape, out

    table = Table(title=title, title_justify="left")
    table.add_column("", style="bold")
    for row in rows:
        table.add_column(escape(row.name), overflow="fold")
    for name, values in lines.items():
        table.add_row(escape(name), *map(escape, values))
    out.print(table)
