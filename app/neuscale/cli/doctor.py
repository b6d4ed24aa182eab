"""`neuscale doctor`."""

from typing import Annotated

import typer


def doctor_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as one JSON object.")] = False,
) -> None:
    """Say what this machine has for training, and what is wrong with it."""
    from neuscale.cli.console import err, escape, out, print_json
    from neuscale.cluster.doctor import examine
    from neuscale.runs.manifest import PACKAGES

    findings = examine()
    problems = findings["problems"]
    if as_json:
        print_json(findings)
        raise typer.Exit(1 if problems else 0)
    width = max(map(len, findings))
    installed = findings["packages"]
    main = {name: installed.get(name) for name in PACKAGES}
    findings["packages"] = f"{_words(main)}, and {len(installed) - len(main)} more (--json)"
    for name, value in findings.items():
        if name != "problems":
            out.print(f"[bold]{name.replace('_', ' ').ljust(width)}[/]  {escape(_words(value))}")
    for problem in problems:
        err.print(f"[bold red]problem:[/] {escape(problem)}")
    if not problems:
        err.print("[green]Ready to train.[/]")
    raise typer.Exit(1 if problems else 0)


def _words(value: object) -> str:
    if isinstance(value, dict):
        shown = {key: key if item is True else f"{key} {_words(item)}" for key, item in value.items()}
        return ", ".join(shown[key] for key, item in value.items() if item is not False) or "none"
    if isinstance(value, list):
        return "; ".join(_words(item) for item in value) or "none"
    return "none" if value is None else str(value)
