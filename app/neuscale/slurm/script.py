"""The batch script of a training: the template train.sbatch, filled in for one submission."""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from neuscale.errors import UsageError
from neuscale.untrusted import printable

TEMPLATE = Path(__file__).with_name("scripts") / "train.sbatch"


@dataclass(frozen=True)
class Job:
    """A job to submit; `runs`: the overrides of each run; several runs make a job array.

    `seconds`: the time limit; `lead`: the part of it reserved for saving; `processes` on each node,
    with `gpus` GPUs if that is not 0; `sif` or `venv`: the container image or virtual environment that
    contains the program; `sbatch`: further options of sbatch, one word each.
    """

    name: str
    runs: list[list[str]]
    logs: Path
    nodes: int
    gpus: int
    gpu_type: str | None
    processes: int
    cpus: int
    seconds: float
    lead: float
    partition: str | None = None
    account: str | None = None
    memory: str | None = None
    sif: Path | None = None
    venv: Path | None = None
    sbatch: list[str] = field(default_factory=list)
    site: Path | None = None
    command: list[str] = field(default_factory=list)


def batch_script(job: Job) -> str:
    """The complete script for `sbatch`, so that the same job can be submitted again without this program.

    Raises UsageError for a control character in an option, a path or an override: a line break would
    start a new line of the script.
    """
    array = f"0-{len(job.runs) - 1}" if len(job.runs) > 1 else None
    options = {
        "job-name": job.name,
        "output": str(job.logs).replace("%", "%%") + ("/%A-%a.log" if array else "/%j.log"),
        "nodes": str(job.nodes),
        "gpus-per-node": (f"{job.gpu_type}:" if job.gpu_type else "") + str(job.gpus) if job.gpus else None,
        "cpus-per-task": str(job.cpus),
        "time": slurm_time(job.seconds),
        "signal": f"B:USR2@{round(job.lead)}",
        "array": array,
        "partition": job.partition,
        "account": job.account,
        "mem": job.memory,
    }
    for what, value in (
        *options.items(),
        *(("an override", word) for words in job.runs for word in words),
        *(("the path", str(path)) for path in (job.site, job.sif, job.venv) if path),
        *(("an option of sbatch", word) for word in job.sbatch),
    ):
        if value is not None and printable(value) != value:
            raise UsageError(f"{what} '{printable(value)}': a job's script cannot hold a control character.")
    option = f"--gpus {job.gpus}" if job.gpus else f"--processes {job.processes}"
    text = TEMPLATE.read_text()
    check_sbatch_options(job.sbatch)
    for name, value in options.items():
        text = _with_option(text, name, value)
    lines = "".join(f"#SBATCH {shlex.quote(word)}\n" for word in job.sbatch)
    text = text.replace("set -a #", f"{lines}set -a #", 1)
    text = _with_line(text, "#     sbatch ", f"#     {printable(shlex.join(job.command))}")
    text = _with_line(text, "site=", f"site={shlex.quote(str(job.site)) if job.site else ''}")
    text = _with_line(text, "processes=", f"processes=({option})")
    text = _with_line(text, "words=", _words(job.runs))
    text = _with_line(text, "sif=", f"sif={shlex.quote(str(job.sif)) if job.sif else ''}")
    return _with_line(text, "venv=", f"venv={shlex.quote(str(job.venv)) if job.venv else ''}")


# Options of sbatch that the script sets itself, with the option of `submit` that sets them, if any.
_TAKEN = {
    **dict.fromkeys(("array", "signal", "requeue", "no-requeue", "open-mode", "ntasks", "ntasks-per-node")),
    **dict.fromkeys(("output", "error", "job-name", "wrap", "parsable", "test-only", "export")),
    "time": "time",
    "nodes": "nodes",
    "gpus-per-node": "gpus",
    "gpus": "gpus",
    "cpus-per-task": "cpus",
    "partition": "partition",
    "account": "account",
    "mem": "memory",
}


def check_sbatch_options(words: list[str]) -> None:
    """Raise UsageError for a word that is not a long option, or for an option that the script sets itself."""
    for word in words:
        if not re.fullmatch(r"--[a-z][a-z0-9-]*(=.*)?", word):
            raise UsageError(
                f"`sbatch` {printable(word)}: expected a long option, its value behind an equals sign.",
                "As mail-type=END, with two dashes before it.",
            )
        name = word[2:].partition("=")[0]
        if name in _TAKEN:
            own = _TAKEN[name]
            fix = f"Set `{own}`." if own else "The job's saving and resuming need it as it is."
            raise UsageError(f"`sbatch` {name}: the script has this option already.", fix)


def slurm_time(seconds: float) -> str:
    """Format seconds as D-HH:MM:SS, or HH:MM:SS for less than a day."""
    minutes, rest = divmod(round(seconds), 60)
    days, minutes = divmod(minutes, 24 * 60)
    clock = f"{minutes // 60:02}:{minutes % 60:02}:{rest:02}"
    return f"{days}-{clock}" if days else clock


def _with_option(text: str, name: str, value: str | None) -> str:
    line = f"#SBATCH --{name}={shlex.quote(value)}\n" if value is not None else ""
    text, found = re.subn(rf"^#SBATCH --{name}=.*\n", lambda _: line, text, flags=re.MULTILINE)
    if found or not line:
        return text
    last = list(re.finditer(r"^#SBATCH .*\n", text, flags=re.MULTILINE))[-1].end()
    return text[:last] + line + text[last:]


def _with_line(text: str, beginning: str, line: str) -> str:
    text, found = re.subn(rf"^{re.escape(beginning)}.*$", lambda _: line, text, flags=re.MULTILINE)
    assert found == 1, beginning
    return text


def _words(runs: list[list[str]]) -> str:
    if len(runs) == 1:
        lines = [f"words=({shlex.join(runs[0])})"]
    else:
        cases = [f"  {number}) words=({shlex.join(words)}) ;;" for number, words in enumerate(runs)]
        lines = ["case $SLURM_ARRAY_TASK_ID in", *cases, "esac"]
    if any(sign in word for words in runs for word in words for sign in "$`"):
        lines.insert(0, "# shellcheck disable=SC2016")  # single quotes are intended: nothing is expanded
    return "\n".join(lines)
