"""The commands together, and how their errors reach the person at the terminal."""

import os
from typing import Annotated

import typer

from neuscale.cli import data, doctor, evaluate, train
from neuscale.errors import EXIT_FAILED, UserError, disk_error

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes longer to import than the help may take to appear
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from neuscale import __version__

        typer.echo(f"neuscale {__version__}")
        raise typer.Exit


@app.callback()
def neuscale(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")] = False,
) -> None:
    """Train vision transformers on real images: on a laptop, on several GPUs, on a cluster.

    Begin with 'neuscale train experiment=quickstart', which needs no download site and no GPU.
    """


app.add_typer(data.app, name="data")
app.command("train")(train.train_command)
app.command("eval")(evaluate.eval_command)
app.command("doctor")(doctor.doctor_command)


def run(words: list[str]) -> int:
    """Runs one command line; returns the exit code.

    0, 1 (it failed), 2 (bad usage) or 75 (saved before the end, to be resumed).
    """
    debug = "--debug" in words or bool(os.environ.get("NEUSCALE_DEBUG"))
    words = [word for word in words if word != "--debug"]
    if debug:
        os.environ["NEUSCALE_DEBUG"] = "1"  # for the processes that this one starts
    try:
        app(args=words, prog_name="neuscale")
    except SystemExit as stop:  # how typer ends, --help and bad usage included
        return stop.code if isinstance(stop.code, int) else EXIT_FAILED
    except UserError as error:
        if debug:
            raise
        _show(error.problem, error.fix)
        return error.exit_code
    except Exception as error:
        if debug:
            raise
        if isinstance(error, OSError) and error.filename is not None:
            told = disk_error(error, error.filename)
            _show(told.problem, told.fix)
        else:
            first = (str(error) or "no message").splitlines()[0]
            _show(f"{type(error).__name__}: {first}", "This was not foreseen: add --debug for the traceback.")
        return EXIT_FAILED
    return 0


def _show(problem: str, fix: str) -> None:
    from neuscale.cli.console import show_error
    from neuscale.cluster.launch import report_to_launcher

    if not report_to_launcher(problem, fix):
        show_error(problem, fix)
