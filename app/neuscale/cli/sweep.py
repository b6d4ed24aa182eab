"""`neuscale sweep`."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuscale.cli.options import AsJson
from neuscale.errors import EXIT_FAILED, EXIT_RESUME, UsageError

if TYPE_CHECKING:
    from neuscale.sweep.folder import PlannedRun, Sweep


def sweep_command(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FIELD=VALUES",
            help="As for 'train', with several values: optim.lr=1e-3,3e-4, run.seed=range(0,3),"
            " with --random also optim.lr=tag(log,interval(1e-4,1e-2)); with --resume the name of a SWEEP.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the sweep, and prefix of its runs' names.")
    ] = None,
    random: Annotated[
        int | None, typer.Option("--random", min=1, help="Draw this many runs instead of all combinations.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Random seed of --random.")] = 0,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="Runs at a time; without it one per free GPU, or 1 on the CPU."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume SWEEP, or the newest unfinished one.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train every combination of several values, or some of them, and rank the runs.

    Stop it with Ctrl-C: the runs save, and 'neuscale sweep --resume' continues.
    """
    from neuscale.sweep.folder import open_sweep, store_sweep

    if resume and (name is not None or random is not None):
        raise UsageError(
            "--resume continues a sweep as it was started.",
            "Remove --name and --random: --resume SWEEP.",
        )
    sweep = _resumed(words or [], open_sweep) if resume else _planned(words or [], name, random, seed)
    if dry_run:
        _list(sweep, as_json)
        return
    from neuscale.cli.console import beside, err, escape
    from neuscale.cli.progress import create_progress
    from neuscale.sweep.processes import choose_places, run_sweep

    places = choose_places(jobs, on_cpu="run.device=cpu" in sweep.runs[0].words)
    if not resume:
        store_sweep(sweep, sys.argv)
    with sweep.held():
        swept = run_sweep(sweep, places, create_progress())
    _show(sweep, swept.failed, as_json)
    if swept.failed:
        again = f"{beside('neuscale')} sweep --resume {sweep.name}"
        err.print(
            f"failed: {escape(', '.join(swept.failed))}. Try these again with: [bold]{escape(again)}[/]"
        )
    if not swept.failed and all(run.finished for run in sweep.runs):
        return
    if not swept.failed:
        by = f"stopped by {swept.stopped_by}; " if swept.stopped_by else ""
        err.print(f"{by}every run that has started is saved.")
        err.print(f"Resume with: [bold]{escape(beside('neuscale'))} sweep --resume {escape(sweep.name)}[/]")
    raise typer.Exit(EXIT_RESUME if swept.stopped_by or not swept.failed else EXIT_FAILED)


def _resumed(words: list[str], open_sweep: Any) -> "Sweep":
    if any("=" in word for word in words) or len(words) > 1:
        raise UsageError(
            "--resume continues one sweep, as it was started.", "For example: neuscale sweep --resume SWEEP."
        )
    return open_sweep(words[0] if words else None)


def _planned(words: list[str], name: str | None, random: int | None, seed: int) -> "Sweep":
    from neuscale.sweep.folder import plan_sweep
    from neuscale.sweep.grid import sampled_overrides, sweep_overrides, swept_fields

    for word in words:
        if "=" not in word:
            raise UsageError(f"'{word}' is not of the form field=value.", "For example: optim.lr=1e-3,3e-4.")
    if random is None:
        lists = sweep_overrides(words)
    else:
        lists = sampled_overrides(words, random, seed)
    return plan_sweep(lists, swept_fields(words), name)


def _list(sweep: "Sweep", as_json: bool) -> None:
    from neuscale.cli.console import print_json
    from neuscale.untrusted import printable

    if as_json:
        print_json({"sweep": sweep.name, "runs": [{"name": r.name, "words": r.words} for r in sweep.runs]})
        return
    for run in sweep.runs:
        typer.echo(printable(f"neuscale train {' '.join(run.words)} run.name={run.name}"))


def _show(sweep: "Sweep", failed: list[str], as_json: bool) -> None:
    """Print the runs, best first."""
    from rich.table import Table

    from neuscale.cli.console import escape, out, print_json
    from neuscale.sweep.folder import best_words

    rows = sorted((_row(sweep, run, failed) for run in sweep.runs), key=_best_first)
    if as_json:
        print_json({"sweep": str(sweep.path), "runs": rows})
        return
    table = Table(title=escape(sweep.name), title_justify="left")
    for heading in ("run", *sweep.fields):
        table.add_column(escape(heading))
    for heading in ("best", "last loss", "steps"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for row in rows:
        loss, steps = (row["last"] or {}).get("loss"), row["steps"]
        table.add_row(
            escape(row["name"]),
            *(escape(row["values"].get(field, "")) for field in sweep.fields),
            best_words(row),
            "" if loss is None else f"{loss:.4f}",
            "" if steps is None else f"{steps:,}",
            "" if row["status"] == "finished" else escape(row["status"]),
        )
    out.print(table)


def _best_first(row: dict[str, Any]) -> float:
    """Sort key: top-1, or the metric that selects the best evaluation if there is no top-1."""
    best = row["best"] or {}
    if row["best_top1"] is not None:
        return -float(row["best_top1"])
    value = best.get("value")
    if value is None:
        return float("inf")
    return float(value) if best["metric"] == "loss" else -float(value)


def _row(sweep: "Sweep", run: "PlannedRun", failed: list[str]) -> dict[str, Any]:
    manifest = run.manifest
    result = manifest.get("result") or {}
    values = dict(word.split("=", 1) for word in run.words)
    return {
        "name": run.name,
        "status": "failed" if run.name in failed else manifest.get("status", "not started"),
        "best": result.get("best"),
        "best_top1": result.get("best_top1"),
        "last": result.get("last"),
        "steps": result.get("steps"),
        "values": {field: values[field] for field in sweep.fields if field in values},
        "log": str(sweep.log(run)),
    }
