"""`neuscale runs`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuscale.cli.options import AsJson, RunName
from neuscale.cli.runs_show import compare_command, show_command
from neuscale.errors import EXIT_FAILED, EXIT_RESUME, UsageError

if TYPE_CHECKING:
    from neuscale.analysis.listing import RunRow

app = typer.Typer(no_args_is_help=True, help="List, show, compare, replay, prune and report runs.")


@app.command("list")
def list_command(
    sort: Annotated[
        str,
        typer.Option(
            "--sort", help="started, name, state, experiment, top1, loss, time, speed or size; best first."
        ),
    ] = "started",
    as_json: AsJson = False,
) -> None:
    """Show all runs and their states.

    running; stopped, also by a kill ('neuscale train --resume' continues); finished; failed;
    empty, where training never began; damaged, where the manifest cannot be read.
    """
    from dataclasses import asdict

    from neuscale.analysis.listing import run_rows, sorted_rows
    from neuscale.cli.console import err, escape, out, print_json
    from neuscale.paths import runs_root
    from neuscale.slurm.jobs import with_jobs

    rows = sorted_rows(with_jobs(run_rows()), sort)
    if as_json:
        print_json({"folder": str(runs_root()), "runs": [asdict(row) for row in rows]})
        return
    if not rows:
        err.print(f"{escape(runs_root())}: there are no runs yet. Start one: neuscale train")
        return
    out.print(_table(rows, f"runs in {runs_root()}, by {sort}"))
    for row in rows:
        if row.note:
            err.print(f"{escape(row.name)}: {escape(row.note.splitlines()[0])}")


def _table(rows: "list[RunRow]", title: str) -> Any:
    """Table of runs; a narrow terminal gets fewer columns."""
    from rich.table import Table

    from neuscale.cli.console import escape, out
    from neuscale.units import duration, quantity

    colors = {"running": "cyan", "finished": "green", "failed": "red", "damaged": "red", "stopped": "yellow"}
    wide = not out.is_terminal or out.width >= 130
    table = Table(title=escape(title), title_justify="left")
    for name, right in (("run", False), ("state", False), *((n, True) for n in ("top-1", "loss", "time"))):
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    extra = ("experiment", "seed", "steps", "img/s", "size") if wide else ()
    for name in (*extra, "started"):
        table.add_column(name, justify="left" if name in ("experiment", "started") else "right", no_wrap=True)
    for row in rows:
        cells = [
            escape(row.name),
            f"[{colors.get(row.state, 'dim')}]{escape(row.state)}[/]",
            row.score,
            "" if row.loss is None else f"{row.loss:.3f}",
            "" if row.time is None else duration(row.time),
        ]
        if wide:
            cells += [
                escape(row.experiment or row.data or ""),
                "" if row.seed is None else str(row.seed),
                "" if row.steps is None else f"{row.steps:,}",
                "" if row.speed is None else f"{row.speed:,.0f}",
                "" if row.size is None else quantity(row.size, "B"),
            ]
        table.add_row(*cells, escape((row.started or "")[5:16].replace("T", " ")))
    return table


app.command("show")(show_command)
app.command("compare")(compare_command)


@app.command("replay")
def replay_command(
    run: RunName,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FIELD=VALUE", help="Fields to change, to measure their effect.", show_default=False
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replay although the data differ, and mark the result.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a run again and compare, to the last bit.

    From its manifest, in a new run folder, with as many processes and threads. What differs is
    named: the first step, and what changed since in configuration, code, packages, ops, data and
    machine. Exits with 0 where it is bitwise equal, with 1 where it is not.
    """
    from neuscale.runs.folder import find_run

    found = find_run(run)
    if wrong := next((word for word in overrides or [] if "=" not in word), None):
        raise UsageError(f"'{wrong}' is not of the form field=value.", "replay takes one run.")
    from dataclasses import asdict

    from neuscale.analysis.replay import replay
    from neuscale.cli.console import beside, err, escape, out, print_json
    from neuscale.cli.progress import create_progress

    replayed = replay(found, overrides or [], force, create_progress())
    verdict = replayed.verdict
    if as_json:
        print_json(
            {
                "run": str(replayed.run.path),
                "of": str(found.path),
                "equal": verdict.equal if verdict else None,
                "verdict": verdict.words if verdict else "stopped before its end",
                "first": asdict(verdict.first) if verdict and verdict.first else None,
                "forced": replayed.forced,
                "changed": [asdict(change) for change in replayed.changed],
            }
        )
    if verdict is None:
        name = replayed.run.argument
        err.print("stopped before its end; everything is saved. To resume, and then to compare:")
        err.print(f"  [bold]{beside('neuscale')} train --resume {escape(name)}[/]")
        err.print(f"  [bold]{beside('neuscale')} runs compare {escape(found.argument)} {escape(name)}[/]")
        raise typer.Exit(EXIT_RESUME)
    if not as_json:
        color = {True: "green", False: "red", None: "yellow"}[verdict.equal]
        out.print(f"[bold {color}]{escape(verdict.words)}[/]")
        if replayed.forced:
            out.print(f"made with --force, on other data: {escape(', '.join(replayed.forced))}")
        if replayed.changed:
            out.print("What changed since:")
            for change in replayed.changed:
                out.print(f"  {escape(change)}")
        else:
            out.print("Nothing changed in configuration, code, packages, ops, data and machine.")
        err.print(f"The run is {escape(replayed.run.path)}")
    raise typer.Exit(0 if verdict.equal else EXIT_FAILED)


@app.command("report")
def report_command(
    run: RunName,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="The file to write, instead of report.html in the run's folder."),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", help="best (as without it), last, or a checkpoint's name or path."),
    ] = None,
) -> None:
    """Write a run as one HTML page.

    It opens without a network: curves, confusion matrix, accuracy of each class, the worst and
    the most confused images, throughput, environment.
    """
    from neuscale.runs.folder import find_run

    found = find_run(run)
    path = output or found.path / "report.html"
    from neuscale.analysis.report import write_report
    from neuscale.cli.console import err, escape, out
    from neuscale.cli.progress import create_progress
    from neuscale.units import quantity

    for note in write_report(found, path, checkpoint, create_progress()):
        err.print(f"[yellow]warning:[/] {escape(note)}")
    out.print(f"{escape(path)} ({quantity(path.stat().st_size, 'B')})")


@app.command("prune")
def prune_command(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="Runs to prune; without it, all.", show_default=False),
    ] = None,
    failed: Annotated[
        bool, typer.Option("--failed", help="Also failed runs that have checkpoints and could resume.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove the files; else only list them.")] = False,
    as_json: AsJson = False,
) -> None:
    """Free space; without --yes only list what would be removed.

    Checkpoints that are neither best nor last, empty runs, and failed runs that left no checkpoint.
    Nothing goes without --yes.
    """
    from neuscale.analysis.prune import removals, remove
    from neuscale.cli.console import err, escape, out, print_json
    from neuscale.runs.folder import all_runs, find_run
    from neuscale.units import quantity

    chosen = [find_run(name) for name in runs] if runs else all_runs()
    found = removals(chosen, failed)
    total = sum(removal.size for removal in found)
    if as_json:
        shown = [{"path": str(r.path), "reason": r.reason, "bytes": r.size} for r in found]
    else:
        from rich.table import Table

        table = Table(title=f"{quantity(total, 'B')} can go", title_justify="left")
        for name in ("folder", "what it is", "size"):
            table.add_column(name, justify="right" if name == "size" else "left", overflow="fold")
        for removal in found:
            table.add_row(escape(removal.path), escape(removal.reason), quantity(removal.size, "B"))
        out.print(table if found else "There is nothing to free.")
    if yes:
        for removal in found:
            remove(removal)
        if found:
            err.print(f"freed {quantity(total, 'B')}")
    elif found:
        err.print("Nothing was removed. To do so, add --yes.")
    if as_json:
        print_json({"removed": yes, "bytes": total, "folders": shown})
