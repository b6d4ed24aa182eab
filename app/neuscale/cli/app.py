"""All commands of `neuscale`, and error messages for their exceptions."""

import errno
import logging
import os
import re
import sys
import threading
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from neuscale.cli import (
    bench,
    data,
    doctor,
    evaluate,
    export,
    init,
    predict,
    runs,
    serve,
    submit,
    sweep,
    train,
)
from neuscale.distributed.rank import leave_process_group
from neuscale.distributed.worker_errors import report_to_launcher, show_once
from neuscale.errors import EXIT_FAILED, UserError, disk_error
from neuscale.paths import runs_root
from neuscale.project.folder import VARIABLE
from neuscale.project.trust import TRUST

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing rich would delay the help text
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from neuscale.version import __version__

        typer.echo(f"neuscale {__version__}")
        raise typer.Exit


@app.callback()
def neuscale(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")] = False,
    config_dir: Annotated[
        str | None,
        typer.Option(
            "--config-dir",
            metavar="DIR",
            help="Presets of your own, beside whose folder your modules lie, instead of ./conf; anywhere.",
        ),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run the code that a run folder brings with it; anywhere.")
    ] = False,
) -> None:
    """Train vision transformers on real images: on a laptop, on several GPUs, on a cluster.

    Begin with 'neuscale train experiment=quickstart', which needs no download site and no GPU.
    """


app.add_typer(data.app, name="data")
app.add_typer(runs.app, name="runs")
app.add_typer(bench.app, name="bench")
app.command("init")(init.init_command)
app.command("train")(train.train_command)
app.command("sweep")(sweep.sweep_command)
app.command("eval")(evaluate.eval_command)
app.command("predict")(predict.predict_command)
app.command("export")(export.export_command)
app.command("serve")(serve.serve_command)
app.command("submit")(submit.submit_command)
app.command("doctor")(doctor.doctor_command)


def run(words: list[str]) -> int:
    """Run one command line and return its exit code.

    0; 1 (failed); 2 (bad usage); 75 (saved before the end, can be resumed); 130 after Ctrl-C.
    """
    debug = "--debug" in words or bool(os.environ.get("NEUSCALE_DEBUG"))
    words = [word for word in words if word != "--debug"]
    words = _for_all(words)
    if debug:
        os.environ["NEUSCALE_DEBUG"] = "1"  # for subprocesses
    else:
        threading.excepthook = _thread_failed
        # matplotlib warns on import if $HOME is read-only.
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        code = _run(words)
        if sys.stdout is not None:
            sys.stdout.flush()  # raises here if the reader, such as 'head', has exited
        return code
    except BrokenPipeError:
        # Python flushes stdout again at exit, and would print an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:
        if debug:
            traceback.print_exc()
        told = _as_options(_in_words(error), words)
        if not report_to_launcher(told):
            from neuscale.cli.console import show_error

            show_once(lambda: show_error(told.problem, told.fix))
        return told.exit_code
    finally:
        leave_process_group()


def _for_all(words: list[str]) -> list[str]:
    """Remove options allowed at any position from `words`; set environment variables in their place."""
    kept = []
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if word == "--trust":
            os.environ[TRUST] = "1"
        elif name == "--config-dir":
            os.environ[VARIABLE] = str(Path(value if equals else next(rest, "")).expanduser().absolute())
        else:
            kept.append(word)
    return kept


def _run(words: list[str]) -> int:
    try:
        app(args=words, prog_name="neuscale")
    except SystemExit as stop:  # raised by typer at the end, also after --help and bad usage
        return stop.code if isinstance(stop.code, int) else EXIT_FAILED
    return 0


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    """Print one line instead of a traceback; errors that matter are raised again in the waiting thread."""
    from neuscale.cli.console import err, escape

    err.print(f"[yellow]warning:[/] in the background: {escape(failed.exc_value)}")


def _as_options(error: UserError, words: list[str]) -> UserError:
    """The error with arguments of the library, such as `save_as`, replaced by options of the command."""
    command: Any = typer.main.get_command(app)
    for word in words:
        command = getattr(command, "commands", {}).get(word, command)
    names = [
        name
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
        if name.startswith("--")
    ]
    options = {name[2:].replace("-", "_"): name for name in names}
    options |= {"trust": "--trust", "config_dir": "--config-dir"}  # options of all commands

    def option(found: re.Match[str]) -> str:
        return options.get(f"no_{found[1]}" if found[2] else found[1], found[0])

    pattern = r"`(\w+)`( to false)?"
    error.problem, error.fix = (re.sub(pattern, option, text) for text in (error.problem, error.fix))
    return error


def _in_words(error: Exception) -> UserError:
    """Convert `error` to a UserError with a message for the user."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError) and (error.filename is not None or error.errno in DISK_FULL):
        return disk_error(error, error.filename or runs_root())
    targets = sys.modules.get("neuscale.project.targets")
    if targets is not None and targets.is_of_own_code(error):
        return UserError(f"{targets.words_of(error)}.", "This is your own code: --debug shows the traceback.")
    first = (str(error) or "no message").splitlines()[0]
    return UserError(
        f"{type(error).__name__}: {first}", "This was not foreseen: add --debug for the traceback."
    )
