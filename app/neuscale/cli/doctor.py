"""`neuscale doctor`."""

from typing import Annotated, Any

import typer


def doctor_command(
    cluster: Annotated[
        bool,
        typer.Option(
            "--cluster", help="In a Slurm allocation: its nodes, the network between them, their disks."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as one JSON object.")] = False,
) -> None:
    """Check what this machine has for training, and report problems."""
    from neuscale.cli.console import print_json
    from neuscale.doctor.machine import examine
    from neuscale.runs.environment import PACKAGES

    if cluster:
        raise typer.Exit(_examine_cluster(as_json))
    findings = examine()
    problems = findings["problems"]
    if as_json:
        print_json(findings)
        raise typer.Exit(1 if problems else 0)
    installed = findings["packages"]
    main = {name: installed.get(name) for name in PACKAGES}
    findings["packages"] = f"{_words(main)}, and {len(installed.keys() - main.keys())} more (--json)"
    raise typer.Exit(_show(findings))


def _show(findings: dict[str, Any]) -> int:
    from neuscale.cli.console import err, escape, out

    problems = findings["problems"]
    width = max(map(len, findings))
    for name, value in findings.items():
        if name != "problems":
            out.print(f"[bold]{name.replace('_', ' ').ljust(width)}[/]  {escape(_words(value))}")
    for problem in problems:
        err.print(f"[bold red]problem:[/] {escape(problem)}")
    if not problems:
        err.print("[green]Ready to train.[/]")
    return 1 if problems else 0


def _examine_cluster(as_json: bool) -> int:
    """Start a process for each GPU of each node of the allocation; one of them prints the findings."""
    import os

    import torch

    from neuscale.cli.console import print_json
    from neuscale.distributed.launch import launch
    from neuscale.distributed.nodes import in_step, srun_nodes
    from neuscale.distributed.worker_errors import REPORTS
    from neuscale.doctor.cluster import examine_cluster, start_on_nodes

    words = ["doctor", "--cluster", *(["--json"] if as_json else [])]
    if REPORTS not in os.environ:
        if not in_step():
            return start_on_nodes(words)
        return launch(words, torch.cuda.device_count() or 1, srun_nodes())
    findings = examine_cluster()
    if findings is None:  # another rank prints the findings
        return 0
    if as_json:
        print_json(findings)
        return 1 if findings["problems"] else 0
    return _show(findings)


def _words(value: object) -> str:
    if isinstance(value, dict):
        shown = {key: key if item is True else f"{key} {_words(item)}" for key, item in value.items()}
        return ", ".join(shown[key] for key, item in value.items() if item is not False) or "none"
    if isinstance(value, list):
        return "; ".join(_words(item) for item in value) or "none"
    return "none" if value is None else str(value)
